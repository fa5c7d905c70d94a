"""A person in front of a web page: headless Chromium, told what to do over its DevTools protocol."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import io
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

NAMES: Final = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
SIZE: Final = (1280, 760)
START_SECONDS: Final = 60
OPTIONS: Final = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--remote-debugging-port=0",
)


def found() -> str | None:
    """Where Chromium is; None where it is not installed."""
    return next((path for path in map(shutil.which, NAMES) if path), None)


@contextlib.contextmanager
def browsing(folder: Path) -> Iterator[Browser]:
    """A browser with one empty page.

    Args:
        folder: For its profile.
    """
    program = found()
    assert program is not None, "Chromium is not installed"
    command = [program, *OPTIONS, f"--user-data-dir={folder}", "about:blank"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    loop = asyncio.new_event_loop()
    try:
        port = _port(folder / "DevToolsActivePort", process)
        browser = Browser(loop, loop.run_until_complete(_connected(port)))
        try:
            yield browser
        finally:
            browser.close()
    finally:
        loop.close()
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


class Browser:
    """One page; `browsing` makes it.

    Attributes:
        errors: What the page's own scripts complained of.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, connection: tuple[Any, Any]) -> None:
        self._loop = loop
        self._session, self._socket = connection
        self._number = 0
        self.errors: list[str] = []
        for domain in ("Page", "Runtime"):
            self.tell(f"{domain}.enable")
        size = {"width": SIZE[0], "height": SIZE[1], "deviceScaleFactor": 1, "mobile": False}
        self.tell("Emulation.setDeviceMetricsOverride", **size)

    def tell(self, method: str, **parameters: Any) -> Any:
        """One command of the protocol and its result."""
        return self._loop.run_until_complete(self._tell(method, parameters))

    def open(self, url: str) -> None:
        """Goes to an address."""
        self.tell("Page.navigate", url=url)

    def value(self, script: str) -> Any:
        """What an expression of JavaScript is in the page."""
        said = self.tell("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in said, said
        return said["result"].get("value")

    def wait(self, condition: str | Callable[[], Any], seconds: float) -> Any:
        """Waits until a function gives something true, which is given back, or until a selector finds something."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            result = condition() if callable(condition) else self.value(f"!!document.querySelector({condition!r})")
            if result:
                return result
            self._loop.run_until_complete(asyncio.sleep(0.1))
        raise AssertionError(f"it did not come: {condition}\n{self.value('document.body.innerText')}\n{self.errors}")

    def place_of(self, selector: str) -> tuple[int, int, int, int]:
        """Left, top, width and height in pixels of what is found first."""
        box = self.value(
            f"(e => e && (r => [r.x, r.y, r.width, r.height])(e.getBoundingClientRect()))"
            f"(document.querySelector({selector!r}))"
        )
        assert box, f"there is no {selector}"
        left, top, width, height = (round(one) for one in box)
        return left, top, width, height

    def click(self, selector: str) -> None:
        """With the left button of the mouse, in the middle of it."""
        left, top, width, height = self.place_of(selector)
        where = {"x": left + width / 2, "y": top + height / 2, "button": "left", "clickCount": 1}
        for kind in ("mousePressed", "mouseReleased"):
            self.tell("Input.dispatchMouseEvent", type=kind, **where)

    def scroll(self, selector: str, steps: int) -> None:
        """Turns the mouse wheel over it, towards the person where positive."""
        left, top, width, height = self.place_of(selector)
        where = {"x": left + width / 2, "y": top + height / 2, "deltaX": 0, "deltaY": 120 * steps}
        self.tell("Input.dispatchMouseEvent", type="mouseWheel", **where)

    def type(self, text: str) -> None:
        """Writes where the cursor is."""
        self.tell("Input.insertText", text=text)

    def enter(self) -> None:
        """Presses Enter."""
        key = {"key": "Enter", "code": "Enter", "windowsVirtualKeyCode": 13, "text": "\r"}
        for kind in ("keyDown", "keyUp"):
            self.tell("Input.dispatchKeyEvent", type=kind, **key)

    def picture(self) -> NDArray[np.uint8]:
        """What is seen, `(height, width, 3)`."""
        data = self.tell("Page.captureScreenshot", format="png")["data"]
        return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB"))

    def close(self) -> None:
        """Lets go of the page."""
        self._loop.run_until_complete(self._socket.close())
        self._loop.run_until_complete(self._session.close())

    async def _tell(self, method: str, parameters: dict[str, Any]) -> Any:
        self._number += 1
        await self._socket.send_json({"id": self._number, "method": method, "params": parameters})
        while True:
            said = await asyncio.wait_for(self._socket.receive_json(), 60)
            if said.get("method") == "Runtime.exceptionThrown":
                details = said["params"]["exceptionDetails"]
                self.errors.append(str(details.get("exception", details).get("description", details))[:400])
            if said.get("id") == self._number:
                assert "error" not in said, f"{method}: {said['error']}"
                return said["result"]


async def _connected(port: int) -> tuple[Any, Any]:
    import aiohttp

    session = aiohttp.ClientSession(trust_env=False)
    async with session.get(f"http://127.0.0.1:{port}/json/list") as reply:
        pages = [one for one in await reply.json() if one["type"] == "page"]
    return session, await session.ws_connect(pages[0]["webSocketDebuggerUrl"], max_msg_size=2**26)


def _port(file: Path, process: subprocess.Popen[bytes]) -> int:
    """Where it listens, as it writes down."""
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end and process.poll() is None:
        with contextlib.suppress(FileNotFoundError, ValueError, IndexError):
            return int(file.read_text().split()[0])
        time.sleep(0.05)
    raise AssertionError("Chromium did not start")

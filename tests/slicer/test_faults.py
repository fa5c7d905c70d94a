"""Everything that a network and a server can do wrong, seen by a person at the module's window.

Each time the window says in a sentence what happened, keeps what had come, and answers the next question; and its main
thread is never away for longer than a tenth of a second. That is measured on PySide6, which lets other threads run
while it waits; in PythonQt they run when the poll ticks, which only the desktop program can show.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medsight_core.chat.turns import Turn
from medsight_core.events import TextDelta
from tests.chat.scripted import COLUMNS, ROWS, answer, events_of
from tests.client.fake import INFO, Exchange, Fake, faking, problem, says, streams
from tests.slicer.backing import PATIENCE, stored
from tests.slicer.bodies import matrix
from tests.slicer.desk import add_views, ras_of
from tests.slicer.heart import Heart, beating

pytest.importorskip("qtpy", reason="the module's window needs Qt")

CHAT = "POST /v1/chat/completions"
INFO_ROUTE = "GET /v1/medsight/info"
TEXT = "Die Leber — größer als 13 cm: 脾臓 🩻."


@dataclass
class Place:
    """The window, the server that it asks, and a scan."""

    lib: Any
    window: Any
    fake: Fake

    @property
    def outline(self) -> Any:
        return self.window.assistant.outline

    @property
    def last(self) -> Turn:
        turn = self.window.assistant.conversation.last
        assert turn is not None
        return turn

    def point_to(self, url: str, **settings: Any) -> None:
        """Has another server asked, and allows it."""
        connection = self.window.connection
        connection.store.save(self.lib.settings.Settings(where="server", url=url, **settings))
        connection.consents.give(connection.address)

    def good(self, *, words: tuple[str, ...] = ("Leber",)) -> list[bytes]:
        """A whole answer, as a server writes it."""
        return streams(self.outline, *events_of(answer(self.outline, 2, TEXT, words=words)))

    def ask(self, during: Callable[[], Any] = lambda: None) -> Turn:
        """Asks in the window, does something once words are there or it is over, and waits for the end."""
        self.window.chat.send("Was ist das?")
        self.settle(during)
        return self.last

    def settle(self, during: Callable[[], Any] = lambda: None) -> None:
        done, end = False, time.monotonic() + PATIENCE
        while self.window.assistant.busy and time.monotonic() < end:
            if not done and self.last.text:
                during()
                done = True
            self.lib.settle(5)
        assert not self.window.assistant.busy
        while self.window.chat._paint.isActive() and time.monotonic() < end:  # what is new is painted a little later
            self.lib.settle(5)

    def page(self) -> str:
        """What the person reads."""
        return str(self.window.chat.browser.toPlainText())

    def works_on(self) -> None:
        """The next question is answered, with a segment."""
        parts = self.good()
        self.fake.replies[CHAT] = lambda exchange: exchange.stream(*parts)
        turn = self.ask()
        assert turn.state == "done" and turn.text == TEXT, turn.note
        assert len(turn.kept) == 1 and self.window.assistant.segments.ids


@pytest.fixture
def place(lib: Any, scene: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    """A window that has answered one question, so that all that is imported late is there."""
    import slicer

    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    views = add_views(scene)
    values = np.arange(5 * ROWS * COLUMNS, dtype=np.int16).reshape(5, ROWS, COLUMNS)
    node = slicer.util.addVolumeFromArray(values, ijkToRAS=matrix(turn=0.0), name="scan")
    views["Red"].JumpSliceByCentering(*ras_of(node, 2, ROWS / 2, COLUMNS / 2))
    window = lib.window.Window(scene, store=stored(lib, tmp_path))
    window.widget.resize(420, 700)
    window.widget.show()
    window.assistant.choose(node)
    with faking() as fake:
        made = Place(lib, window, fake)
        made.point_to(fake.url)
        made.works_on()
        try:
            yield made
        finally:
            window.close()
            lib._qt.dispose(window.widget)
            lib.settle(20)


def test_a_pause_would_be_noticed(lib: Any) -> None:
    from PySide6 import QtCore

    def spin() -> None:
        end = time.thread_time() + 0.15
        while time.thread_time() < end:
            pass

    for away in (lambda: time.sleep(0.15), spin):
        heart = Heart(lib)
        QtCore.QTimer.singleShot(20, away)
        lib.settle(250)
        heart.stop()
        assert 0.12 < heart.longest < 1


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        (problem(401, "unauthorized"), "It is unauthorized. Type the token of this server in the settings"),
        (says(401, b"", "text/plain"), "wants a token, or another one. Type the token"),
        (problem(413, "too_large"), "It is too_large. Do something."),
        (says(413, b"<html>", "text/html"), "The proxy takes no request as large as this"),
        (problem(500, "internal_error"), "It is internal_error."),
        (says(500, b"oops", "text/plain"), "500 Internal Server Error"),
        (says(504, b"<html>Time-out</html>", "text/html"), "this is a proxy, not MedSIGHT"),
        (says(200, b"<html>Log in</html>", "text/html"), "whether a login page stands in between"),
        (problem(507, "out_of_memory"), "It is out_of_memory."),
    ],
)  # fmt: skip
def test_a_refusal_is_said_in_a_sentence(place: Place, reply: Callable[[Exchange], None], words: str) -> None:
    def play() -> None:
        place.fake.replies[CHAT] = reply
        turn = place.ask()
        assert turn.state == "failed" and words in turn.note, turn.note
        assert words in place.page() and "Retry" in place.page()
        assert "<html" not in place.page() and "Traceback" not in place.page()

    beating(place.lib, play)
    place.works_on()


def test_a_busy_server_is_waited_for_and_the_window_says_so(place: Place) -> None:
    def play() -> None:
        waits = iter([problem(429, "busy", Retry_After="1")])
        parts, seen = place.good(), []
        place.fake.replies[CHAT] = lambda exchange: next(waits, lambda one: one.stream(*parts))(exchange)
        place.window.chat.send("Was ist das?")
        while place.window.assistant.busy:
            seen.append(place.page())
            place.lib.settle(20)
        assert any("Waiting for the server, which is busy" in page for page in seen)
        assert place.last.state == "done"

    beating(place.lib, play)


def test_a_server_that_stays_busy_is_said(place: Place) -> None:
    place.fake.replies[CHAT] = problem(429, "busy", Retry_After="0")
    turn = place.ask()
    assert turn.state == "failed" and "It is busy." in turn.note
    place.works_on()


def test_words_may_be_cut_anywhere_even_within_a_character(place: Place) -> None:
    def play() -> None:
        whole = b": still at work\n\n" + b"".join(place.good())
        cut = [whole[start : start + 3] for start in range(0, len(whole), 3)]
        place.fake.replies[CHAT] = lambda exchange: exchange.stream(*cut)
        turn = place.ask()
        assert turn.state == "done" and turn.text == TEXT and len(turn.kept) == 1

    beating(place.lib, play)
    assert TEXT in place.page()


def test_a_damaged_mask_is_an_error_and_no_segment(place: Place) -> None:
    def play() -> None:
        parts = []
        for message in place.good():
            content = json.loads(message[6:])
            if content["medsight"]["type"] == "region_found":
                mask = content["medsight"]["region"]["mask"]
                mask["data"] = mask["data"][: len(mask["data"]) // 8 * 4]
            parts.append(b"data: %s\n\n" % json.dumps(content).encode())
        place.fake.replies[CHAT] = lambda exchange: exchange.stream(*parts)
        before = len(place.window.assistant.segments.ids)
        turn = place.ask()
        assert turn.state == "failed" and turn.text == TEXT and not turn.kept, "the words before it stay"
        assert "mask" in turn.note.lower() and len(place.window.assistant.segments.ids) == before

    beating(place.lib, play)
    place.works_on()


@pytest.mark.parametrize("clean", [True, False])
def test_an_answer_that_breaks_off_keeps_its_words(place: Place, clean: bool) -> None:
    def play() -> None:
        parts = streams(place.outline, TextDelta("Das ist "), TextDelta("die Leber"))
        place.fake.replies[CHAT] = lambda exchange: exchange.stream(*parts, end=clean)
        turn = place.ask()
        assert turn.state == "failed" and turn.text == "Das ist die Leber"
        assert "broke the connection off before the answer was complete" in turn.note
        assert "Das ist die Leber" in place.page()

    beating(place.lib, play)
    place.works_on()


def test_stopping_is_at_once_and_the_server_notices(place: Place) -> None:
    def play() -> None:
        gone = threading.Event()

        def wait(exchange: Exchange) -> None:
            exchange.connection.settimeout(20)
            if not exchange.connection.recv(1):
                gone.set()

        parts = streams(place.outline, TextDelta("Das ist "))
        place.fake.replies[CHAT] = lambda exchange: exchange.stream(*parts, lambda: wait(exchange), end=False)
        began: list[float] = []

        def stop() -> None:
            began.append(time.monotonic())
            place.window.chat.stop()

        turn = place.ask(stop)
        assert turn.state == "stopped" and turn.text == "Das ist " and time.monotonic() - began[0] < 2
        assert gone.wait(20)

    beating(place.lib, play)
    place.works_on()


def test_a_server_that_says_nothing_leaves_the_window_alive(place: Place) -> None:
    def play() -> None:
        gate = threading.Event()
        parts = place.good()
        place.fake.replies[CHAT] = lambda exchange: (gate.wait(20), exchange.stream(*parts))[1]
        place.window.chat.send("Was ist das?")
        place.lib.settle(700)
        assert place.window.assistant.busy
        gate.set()
        place.settle()
        assert place.last.state == "done"

    beating(place.lib, play)


def test_a_server_that_was_restarted_is_sent_the_scan_again(place: Place) -> None:
    def play() -> None:
        kept: list[bytes] = []
        parts = place.good()

        def put(exchange: Exchange) -> None:
            kept.append(exchange.content)
            says(201, {})(exchange)

        def chat(exchange: Exchange) -> None:
            if kept:
                exchange.stream(*parts)
            else:
                problem(409, "volume_unknown")(exchange)

        replies = {"HEAD /v1/volumes/": lambda one: says(200 if kept else 404, b"")(one), "PUT /v1/volumes/": put}
        place.fake.replies.update({**replies, CHAT: chat})
        turn = place.ask()
        assert turn.state == "done" and len(kept) == 1

    beating(place.lib, play)


def test_a_server_that_is_gone_is_named_and_may_come_back(place: Place) -> None:
    with faking() as other:
        place.point_to(other.url)
    port = other.url.rpartition(":")[2]

    def play() -> None:
        turn = place.ask()
        assert turn.state == "failed" and f"Nothing listens at port {port} of this computer." in turn.note, turn.note
        assert "settings" in turn.note and "medsight serve" not in turn.note

    beating(place.lib, play)
    place.point_to(place.fake.url)
    place.works_on()


def test_a_certificate_nobody_vouches_for_is_refused_until_it_is_chosen(place: Place, tmp_path: Path) -> None:
    pytest.importorskip("cryptography", reason="it makes the certificate")
    from tests.client.certificates import certificate, serving_context

    paths = certificate(tmp_path / "tls")
    with faking(serving_context(paths)) as secure:
        place.point_to(secure.url, token="tok-secret")

        def play() -> None:
            turn = place.ask()
            assert turn.state == "failed" and "Nobody known here vouches for the certificate" in turn.note
            assert "choose the file with its certificate in the settings" in turn.note
            assert secure.seen == [], "not even the token"

        beating(place.lib, play)
        place.point_to(secure.url, token="tok-secret", ca=str(paths[0]))
        parts = place.good()
        secure.replies[CHAT] = lambda exchange: exchange.stream(*parts)

        def play_again() -> None:
            assert place.ask().state == "done"

        beating(place.lib, play_again)
        assert {headers.get("Authorization") for _, headers, _ in secure.seen} == {"Bearer tok-secret"}


def test_proxies_are_not_asked_about_this_computer(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    beating(place.lib, place.works_on)


def test_a_proxy_that_lets_nothing_through_is_named(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    place.point_to("https://gpu.invalid")

    def play() -> None:
        turn = place.ask()
        assert turn.state == "failed" and "The proxy on the way to gpu.invalid:443 does not let this" in turn.note

    beating(place.lib, play)


def test_another_version_is_named(place: Place) -> None:
    with faking() as other:
        other.replies[INFO_ROUTE] = says(200, INFO | {"protocol": 7, "version": "9.9"})
        place.point_to(other.url)

        def play() -> None:
            turn = place.ask()
            assert turn.state == "failed" and "speaks protocol 7" in turn.note
            assert "Install the same version on both computers." in turn.note
            assert not any("/volumes/" in route for route in other.routes()), "no scan went there"

        beating(place.lib, play)
    place.point_to(place.fake.url)
    place.works_on()


def test_a_server_nobody_allowed_is_asked_about_and_gets_nothing(place: Place) -> None:
    from PySide6 import QtWidgets

    with faking() as other:
        connection = place.window.connection
        connection.store.save(place.lib.settings.Settings(where="server", url=other.url))
        turn = place.ask()
        assert turn.state == "failed" and "Nothing was sent" in turn.note and other.seen == []
        val = place.lib._qt.val
        shown = [one for one in QtWidgets.QApplication.topLevelWidgets() if one.isVisible()]
        (dialog,) = [one for one in shown if val(one.objectName) == "MedSIGHTConsent"]
        parts = place.good()
        other.replies[CHAT] = lambda exchange: exchange.stream(*parts)
        QtWidgets.QDialog.findChild(dialog, QtWidgets.QPushButton, "MedSIGHTAllow").click()
        place.lib.settle(50)
        place.settle()
        assert place.last.state == "done" and other.seen, "and then it went on by itself"


def test_the_window_may_go_while_a_server_is_silent(place: Place) -> None:
    gate = threading.Event()
    place.fake.replies[CHAT] = lambda exchange: gate.wait(20)
    place.window.chat.send("Was ist das?")
    place.lib.settle(100)
    assert place.window.assistant.busy
    began = time.monotonic()
    place.window.close()
    assert time.monotonic() - began < 1
    gate.set()
    place.lib.settle(100)

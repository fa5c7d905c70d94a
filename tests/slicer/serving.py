"""`medsight serve` as a program of its own, in a Python that has torch: ``MEDSIGHT_SERVER_PYTHON``, else this one."""

from __future__ import annotations

import contextlib
import os
import queue
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
START_SECONDS = 180
_ADDRESS = re.compile(r" at (https?://[^\s,]+)")


def server_python() -> str | None:
    """A Python that can serve; None where there is none."""
    named = os.environ.get("MEDSIGHT_SERVER_PYTHON", sys.executable)
    run = subprocess.run(
        [named, "-c", "import torch, transformers, fastapi, uvicorn, typer"], capture_output=True, check=False
    )
    return None if run.returncode else named


@contextlib.contextmanager
def serving(python: str, store: Path, *options: str) -> Iterator[str]:
    """A server on this computer with a port of its own, and its address.

    Args:
        python: Runs it.
        store: Where it keeps volumes.
        options: Further ones of `medsight serve`.
    """
    command = [python, "-m", "medsight_core.cli", "serve", "--port", "0", "--store", str(store), *options]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "COLUMNS": "300", "NO_COLOR": "1"}
    with program(command, environment) as lines:
        yield lines.find(_ADDRESS, START_SECONDS)


class Lines:
    """What a program says, line by line."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._said: list[str] = []
        self._process = process
        self._lines: queue.Queue[str | None] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def find(self, pattern: re.Pattern[str], seconds: float) -> str:
        """The first group of a pattern, in the first line that has it."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            with contextlib.suppress(queue.Empty):
                line = self._lines.get(timeout=0.2)
                if line is None:
                    break
                self._said.append(line)
                if found := pattern.search(line):
                    return found[1]
        raise AssertionError("It did not start:\n" + "".join(self._said[-40:]))

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.put(line)
        self._lines.put(None)


@contextlib.contextmanager
def program(command: list[str], environment: dict[str, str]) -> Iterator[Lines]:
    """A program that runs until it is left, and what it says."""
    process = subprocess.Popen(
        command, env=environment, cwd=REPOSITORY, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    try:
        yield Lines(process)
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

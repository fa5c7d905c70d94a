"""The server needs nobody: it answers where there is no network, and never reaches for one."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.server.isolated import is_outside


@pytest.fixture(scope="module")
def alone(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a server said in a network namespace without routes; skipped where none can be made."""
    unshare = shutil.which("unshare")
    if unshare is None:
        pytest.skip("there is no unshare on this system")
    without = [unshare, "-rn"]
    trial = subprocess.run([*without, "true"], capture_output=True, text=True, timeout=30, check=False)
    if trial.returncode:
        pytest.skip("no network namespace may be made here (unshare -rn)")
    # Whatever would speak to the network by itself is left as it is; only the model hub is not told to be offline.
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "TRANSFORMERS_"))}
    run = subprocess.run(
        [*without, sys.executable, "-m", "tests.server.isolated", str(tmp_path_factory.mktemp("store"))],
        cwd=repository,
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    said: dict[str, Any] = json.loads(run.stdout.splitlines()[-1])
    return said


def test_there_was_no_network(alone: dict[str, Any]) -> None:
    assert alone["interfaces"] == ["lo"]
    assert alone["reached"] is False


def test_questions_are_answered(alone: dict[str, Any]) -> None:
    assert alone["model"] and alone["text"] and alone["click"]


def test_nothing_outside_was_ever_tried(alone: dict[str, Any]) -> None:
    assert alone["noticed"], "the watch must see an attempt when there is one"
    assert alone["outside"] == []


@pytest.mark.parametrize(
    ("event", "arguments", "outside"),
    [
        ("socket.connect", (None, ("127.0.0.1", 80)), False),
        ("socket.connect", (None, ("::1", 80, 0, 0)), False),
        ("socket.connect", (None, "/run/some.socket"), False),
        ("socket.connect", (None, ("10.0.0.1", 80)), True),
        ("socket.connect", (None, ("2001:db8::1", 443, 0, 0)), True),
        ("socket.sendto", (None, ("8.8.8.8", 53)), True),
        ("socket.getaddrinfo", ("localhost", 80, 0, 0, 0), False),
        ("socket.getaddrinfo", ("127.0.0.1", 80, 0, 0, 0), False),
        ("socket.getaddrinfo", ("huggingface.co", 443, 0, 0, 0), True),
        ("socket.gethostbyname", ("example.org",), True),
    ],
)
def test_what_counts_as_outside(event: str, arguments: tuple[Any, ...], outside: bool) -> None:
    assert is_outside(event, arguments) is outside

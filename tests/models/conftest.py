"""A folder of models and a cache of the hub of the test's own, and a hub with a real tiny checkpoint on it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import Result
from huggingface_hub import constants
from typer.testing import CliRunner

from medsight_core.cli import app
from tests.inference.tiny import save_tiny
from tests.models.hub import FakeHub, serve_hub

REPOSITORY = Path(__file__).resolve().parents[2]
REPO = "someone/tiny-medsight"

Command = Callable[..., Result]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Nothing of the person who runs the tests is read or changed."""
    monkeypatch.setenv("MEDSIGHT_MODELS", str(tmp_path / "models"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf" / "hub"))  # which was read long ago
    for name in ("HF_TOKEN", "HF_ENDPOINT", "HF_HUB_OFFLINE", "HF_HUB_CACHE", "MEDSIGHT_MODEL", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole checkpoint."""
    return save_tiny(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def hub(tiny: Path) -> Iterator[FakeHub]:
    """A hub with the checkpoint, some code beside it that nobody should take, and a folder."""
    files = {file.name: file.read_bytes() for file in tiny.iterdir()}
    extra = {"modeling.py": b"raise SystemExit", "docs/notes.txt": b"notes", "optimizer.pt": b"x" * 9000}
    with serve_hub({REPO: files | extra}) as served:
        yield served


@pytest.fixture
def medsight(home: Path) -> Command:
    """Runs the command in this process."""

    def run(*arguments: str, **environment: str) -> Result:
        return CliRunner().invoke(app, list(arguments), env={"COLUMNS": "200", "NO_COLOR": "1", **environment})

    return run


def run_apart(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs the command in a process of its own, which reads the environment anew."""
    return subprocess.run(
        [sys.executable, "-m", "medsight_core.cli", *arguments],
        cwd=REPOSITORY,
        env={**os.environ, "COLUMNS": "200", "NO_COLOR": "1", **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )

"""A tiny model, opened as a batch opens it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from medsight_core.inference.checkpoint import open_checkpoint
from medsight_core.inference.engine import Engine
from medsight_core.inference.local import LocalBackend
from tests.inference.tiny import save_tiny

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole checkpoint whose answers are short: it draws a region for every other token, and each takes its time."""
    folder = save_tiny(tmp_path_factory.mktemp("models") / "tiny")
    settings = folder / "generation_config.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"max_new_tokens": 6}))
    return folder


@pytest.fixture(scope="session")
def digest(checkpoint: Path) -> str:
    """Of `checkpoint`."""
    return open_checkpoint(checkpoint).digest


@pytest.fixture(scope="session")
def backend(checkpoint: Path) -> LocalBackend:
    """`checkpoint` in this process."""
    return LocalBackend(Engine.from_pretrained(checkpoint, device="cpu"))

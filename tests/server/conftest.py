"""One small model and one server with it, for the tests that change neither."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from medsight_core.inference.engine import Engine
from medsight_core.inference.scheduler import Scheduler
from tests.inference.tiny import save_tiny
from tests.server.running import Running, serving

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole checkpoint of a tiny model that says little."""
    folder = save_tiny(tmp_path_factory.mktemp("models") / "tiny")
    settings = folder / "generation_config.json"
    said = json.loads(settings.read_text(encoding="utf-8"))
    settings.write_text(json.dumps(said | {"max_new_tokens": 24}), encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def engine(checkpoint: Path) -> Engine:
    """An engine on `checkpoint`."""
    return Engine.from_pretrained(checkpoint, device="cpu")


@pytest.fixture(scope="session")
def backend(engine: Engine) -> Iterator[Scheduler]:
    """A scheduler on `engine`."""
    scheduler = Scheduler(engine)
    yield scheduler
    scheduler.close()


@pytest.fixture(scope="session")
def running(backend: Scheduler, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A server with the tiny model, on this computer, without a token."""
    with serving(backend, tmp_path_factory.mktemp("store")) as server:
        yield server

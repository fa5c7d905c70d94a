"""`medsight serve`, as it is, with a model that takes its time over each word; run as a program."""

from __future__ import annotations

from pathlib import Path

import torch

import medsight_core.cli.backends
from medsight_core.inference.running import Running
from medsight_core.server.cli import app
from tests.server.running import paced_engine

PAUSE = 0.1


def load_paced(model: Path, running: Running) -> object:
    """Takes the place of what loads the model."""
    torch.set_num_threads(1)
    return paced_engine(model, pause=PAUSE)


if __name__ == "__main__":
    medsight_core.cli.backends.load_engine = load_paced  # type: ignore[assignment]
    app(prog_name="medsight")

"""One release and what it was converted to, for the tests that change neither."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.convert.command import convert
from tests.convert.release import write_release

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole release."""
    return write_release(tmp_path_factory.mktemp("release") / "MedSIGHT")


@pytest.fixture(scope="session")
def converted(release: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`release` in our format, nothing rounded."""
    out = tmp_path_factory.mktemp("converted") / "medsight-8b"
    convert(release, out, "--dtype", "float32")
    return out

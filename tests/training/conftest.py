"""One thread for tests that use torch: small tensors are quicker so, and nothing else on the machine waits."""

from __future__ import annotations

import sys

import pytest


@pytest.fixture(autouse=True)
def one_thread() -> None:
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(1)

"""One thread: small models are quicker so, and sums come out the same everywhere."""

from __future__ import annotations

import pytest
import torch

from medsight_core.model import MedSightForConditionalGeneration
from tests.model.small import build, convolutional, transformer


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def convolutional_model() -> MedSightForConditionalGeneration:
    """As medsight-mini; nobody changes it."""
    return build(convolutional())


@pytest.fixture(scope="session")
def transformer_model() -> MedSightForConditionalGeneration:
    """As the large model; nobody changes it."""
    return build(transformer())


@pytest.fixture(params=["convolutional", "transformer"])
def model(request: pytest.FixtureRequest) -> MedSightForConditionalGeneration:
    """Both kinds in turn; nobody changes them."""
    found: MedSightForConditionalGeneration = request.getfixturevalue(f"{request.param}_model")
    return found

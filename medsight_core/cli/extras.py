"""What commands say where a package is missing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from medsight_core.errors import MedSightError


@contextmanager
def needs_extra(name: str) -> Iterator[None]:
    """Turns a missing package into a sentence that says which extra of MedSIGHT brings it."""
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] in {"medsight_core", "training"}:
            raise  # a defect of ours
        sentence = f"The package {error.name} is not installed, and this command needs it."
        raise MedSightError("missing_package", sentence, f"Say: pip install 'medsight[{name}]'.") from error

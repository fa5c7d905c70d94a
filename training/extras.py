"""What the commands of training say where a package is missing."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from medsight_core.errors import MedSightError


@contextmanager
def needs_extra(name: str) -> Iterator[None]:
    """Turns a missing package into a sentence that says which extra of MedSIGHT brings it."""
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # its notices are not for the person who trains
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] in {"medsight_core", "training"}:
            raise  # a defect of ours
        sentence = f"The package {error.name} is not installed, and this command needs it."
        raise MedSightError("missing_package", sentence, f"Say: pip install 'medsight[{name}]'.") from error

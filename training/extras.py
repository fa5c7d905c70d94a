"""The packages of training."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from medsight_core.cli.extras import needs_extra


@contextmanager
def needs_training() -> Iterator[None]:
    """Says so where one is missing; see `needs_extra`."""
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # its notices are not for the person who trains
    with needs_extra("train"):
        yield

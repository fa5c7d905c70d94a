"""Stored values to real ones, in the smallest type that holds them exactly."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

_INT16 = np.iinfo(np.int16)


def real_values(stored: npt.NDArray[Any], slope: float = 1.0, intercept: float = 0.0) -> npt.NDArray[Any]:
    """``stored * slope + intercept`` as int16 where that is exact, else as float32.

    Widened before anything else: in 16 bits, 200 - 1024 wraps round to a bright 64712.
    """
    if stored.dtype.kind in "iub" and slope == int(slope) and intercept == int(intercept):
        ends = [int(end) * int(slope) + int(intercept) for end in (stored.min(), stored.max())]
        if min(ends) >= _INT16.min and max(ends) <= _INT16.max:
            if slope == 1 and intercept == 0:
                return stored.astype(np.int16)
            # Between the two ends everything fits, so do the intermediate products in 64 bits.
            return (
                stored.astype(np.int64 if stored.dtype.itemsize > 2 else np.int32) * int(slope) + int(intercept)
            ).astype(np.int16)
    with np.errstate(over="ignore"):
        if slope == 1 and intercept == 0:
            return stored.astype(np.float32)
        return (stored.astype(np.float64) * slope + intercept).astype(np.float32)

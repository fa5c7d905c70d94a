"""What the readers of NIfTI, NRRD and photographs share: named damage, choice among several, the finished volume."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from medsight_core.errors import InputError, MedSightError
from medsight_core.imaging.files import check_size, printable
from medsight_core.imaging.orientation import Arrangement, place
from medsight_core.imaging.volume import Kind, Source, Volume

BOMB_BYTES: Final = 256 * 2**20
BOMB_RATIO: Final = 200
"""A file that inflates to more than `BOMB_BYTES` by more than this factor is not a scan."""

CT_AIR: Final = (-2100.0, -900.0)
"""Where the smallest value of a CT lies: air, or the padding of some scanners. No other modality has such values."""

COPY_AGAIN: Final = "Copy it again from where it came."


@contextmanager
def damage_named(path: Path) -> Iterator[None]:
    """Turns whatever a library raises over a damaged file into one named error.

    Raises:
        InputError: truncated, or pixels_unreadable.
    """
    try:
        yield
    except (MedSightError, KeyboardInterrupt, SystemExit):
        raise
    except EOFError as error:
        raise InputError("truncated", f"{label(path)} ends before its data: it is cut off.", COPY_AGAIN) from error
    except (gzip.BadGzipFile, zlib.error) as error:
        raise InputError(
            "pixels_unreadable", f"{label(path)} is damaged inside its compressed data.", COPY_AGAIN
        ) from error
    except BaseException as error:  # native decoders raise what they like
        raise InputError(
            "pixels_unreadable",
            f"{label(path)} cannot be read ({type(error).__name__}): it is cut off, damaged or of an unknown kind.",
            COPY_AGAIN,
        ) from error


def label(path: Path) -> str:
    """The file's own name, fit to be shown."""
    return printable(path.name)


def check_ratio(path: Path, declared: int) -> None:
    """Refuses a file that claims to inflate beyond reason.

    Raises:
        InputError: too_large.
    """
    there = max(1, path.stat().st_size)
    if declared > BOMB_BYTES and declared > BOMB_RATIO * there:
        raise InputError(
            "too_large",
            f"{label(path)} has {there:,} bytes but declares {declared:,}, over {BOMB_RATIO} times as many.",
            "The header is damaged; save the scan again.",
        )


def one_of_many(path: Path, shape: tuple[int, ...], wanted: str | None) -> tuple[tuple[int, int, int], int]:
    """The three axes of one volume and its number from 1, in a file whose further axes count volumes.

    Raises:
        InputError: bad_header, too_large, several_volumes, unknown_series.
    """
    if not 2 <= len(shape) <= 7 or min(shape) < 1:
        raise InputError(
            "bad_header", f"{label(path)} declares axes of {shape}, expected 2 or 3 positive sizes.", COPY_AGAIN
        )
    space = (*shape[:3], 1)[:3]
    check_size(label(path), space[::-1])
    count = 1
    for size in shape[3:]:
        count *= size
    check_size(label(path), (count, *space[::-1]))
    if count == 1:
        return (space[0], space[1], space[2]), 1
    choose = f"Choose one with --series and its number, 1 to {count}."
    if wanted is None:
        raise InputError(
            "several_volumes", f"{label(path)} holds {count} volumes, such as time points or echoes.", choose
        )
    if not (wanted.isdecimal() and 1 <= int(wanted) <= count):
        raise InputError(
            "unknown_series", f'There is no volume "{printable(wanted)}" among the {count} of {label(path)}.', choose
        )
    return (space[0], space[1], space[2]), int(wanted)


def finished(
    path: Path, array: npt.NDArray[Any], arrangement: Arrangement, warnings: list[str], *, kind: Kind
) -> Volume:
    """The volume of an array that was already brought into the order of ``arrangement``."""
    placed = place(arrangement)
    if array.dtype == np.float32 and not np.isfinite(array).all():
        array = np.nan_to_num(array, copy=False, nan=0.0, posinf=0.0, neginf=0.0)
        warnings.append("Values that are not finite were set to 0.")
    looks_ct = array.dtype != np.uint8 and CT_AIR[0] <= float(array.min()) <= CT_AIR[1] and float(array.max()) > 100
    if looks_ct:
        warnings.append("The file does not name its modality; its values look like CT (Hounsfield units).")
    if placed.problem is not None:
        warnings.append(placed.problem.sentence)
    return Volume(
        array=array,
        frame=placed.frame,
        slice_frames=placed.slice_frames,
        modality="CT" if looks_ct else "unknown",
        source=Source(kind=kind, paths=(path,)),
        warnings=tuple(warnings),
        problem=placed.problem,
    )

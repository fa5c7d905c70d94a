"""The figures for one answer: overlap of two masks, the point a person would click, words of a diagnosis."""

from __future__ import annotations

import re
import unicodedata

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from medsight_core.errors import MedSightError

Mask = NDArray[np.bool_]

_WORD = re.compile(r"[^\W_]+")
_PLURAL_KEEPS = ("ss", "us", "is")


def dice(prediction: Mask, truth: Mask) -> float:
    """Overlap of two masks: twice the common area by the sum of the areas.

    Args:
        prediction: (rows, columns) or (slices, rows, columns) bool.
        truth: Of the same grid.

    Returns:
        0 to 1; 1 where both are empty, for nothing was to be found and nothing was.

    Raises:
        MedSightError: the masks lie on different grids.
    """
    if prediction.shape != truth.shape:
        raise MedSightError("bad_mask", f"Two masks of one grid were expected, got {prediction.shape}, {truth.shape}.")
    total = int(np.count_nonzero(prediction)) + int(np.count_nonzero(truth))
    if total == 0:
        return 1.0
    return 2.0 * int(np.count_nonzero(prediction & truth)) / total


def interior_point(mask: Mask) -> tuple[int, int]:
    """The pixel of a mask that is farthest from its border, where a person would click.

    The edge of the image counts as border. Of several equally far pixels the first in reading order is taken, so the
    point is the same on every machine.

    Args:
        mask: (rows, columns) bool, not empty.

    Returns:
        (row, column)
    """
    if not mask.any():
        raise MedSightError("empty_mask", "An empty mask has no interior point.")
    row, column = np.unravel_index(int(np.argmax(squared_depth(mask))), mask.shape)
    return int(row), int(column)


def squared_depth(mask: Mask) -> NDArray[np.int64]:
    """Square of every pixel's distance to the border of the mask, in pixels; 0 outside.

    Squared distances from integer offsets are exact: ties stay ties whatever the platform's square root does.
    """
    nearest = ndimage.distance_transform_edt(np.pad(mask, 1), return_distances=False, return_indices=True)
    squared: NDArray[np.int64] = ((nearest - np.indices(nearest.shape[1:])) ** 2).sum(axis=0)[1:-1, 1:-1]
    return squared


def words(text: str) -> frozenset[str]:
    """The words of a text as they are compared: case, punctuation, plural s and British spelling do not count."""
    found = _WORD.findall(unicodedata.normalize("NFKC", text).casefold())
    return frozenset(_plain(word) for word in found)


def _plain(word: str) -> str:
    if len(word) > 3 and word.endswith("s") and not word.endswith(_PLURAL_KEEPS):
        word = word[:-1]
    return word.replace("tumour", "tumor").replace("oedema", "edema").replace("haem", "hem")


def diagnosis_recall(diagnosis: str, answer: str) -> float:
    """Share of the diagnosis's words that the answer says.

    Sets of words are compared: saying a word twice earns nothing (in the released evaluation script it does).

    Returns:
        0 to 1

    Raises:
        MedSightError: the diagnosis has no words.
    """
    wanted = words(diagnosis)
    if not wanted:
        raise MedSightError("empty_diagnosis", f"A diagnosis needs at least one word, got {diagnosis!r}.")
    return len(wanted & words(answer)) / len(wanted)

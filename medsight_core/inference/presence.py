"""Where in a volume something is: which slices are worth reading, and on which slices a structure may be drawn."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from medsight_core.naming import find_names
from medsight_core.terminology import normal_words

PRESENT: Final = 0.4
"""A class is on a slice when its presence there is at least this."""

_LONGEST_NAME: Final = 4


def named_classes(text: str, known: Sequence[str]) -> tuple[int, ...]:
    """The classes that a text names, by their number in ``known``; longer names win over those within them."""
    words = normal_words(text)
    found: set[str] = set()
    start = 0
    while start < len(words):
        for length in range(min(_LONGEST_NAME, len(words) - start), 0, -1):
            named = find_names(words[start : start + length], known)
            if named is not None:
                found.update(named.names)
                start += length
                break
        else:
            start += 1
    return tuple(n for n, name in enumerate(known) if name in found)


def strength(profile: NDArray[np.float32], classes: Sequence[int]) -> NDArray[np.float32]:
    """How likely each slice shows any of some classes ``(slices,)``; anything at all where none is named.

    Args:
        profile: ``(slices, classes + 1)``, the last one for anything.
        classes: By number.
    """
    columns = list(classes) or [profile.shape[1] - 1]
    strongest: NDArray[np.float32] = profile[:, columns].max(axis=1)
    return strongest


def choose_key_slices(
    profile: NDArray[np.float32], *, count: int, named: Sequence[int] = (), shown: int | None = None
) -> tuple[int, ...]:
    """Slices that the language model reads, ascending: where the evidence is, spread over all of it.

    The slice that is shown is always among them. Where classes are named, the others show these; else each class that
    is there gets its best slice first. The rest are the best of equal parts of what is left.

    Args:
        profile: ``(slices, classes + 1)``, see `strength`.
        count: At most so many.
        named: Classes that the question names.
        shown: Place of the slice that is shown; None where none is.
    """
    chosen: list[int] = [] if shown is None else [shown]
    if not named:
        peaks = profile[:, :-1].max(axis=0)
        for one in np.argsort(-peaks, kind="stable"):
            if peaks[one] < PRESENT or len(chosen) >= count:
                break
            if not any(profile[k, one] >= PRESENT for k in chosen):
                chosen.append(int(profile[:, one].argmax()))
    sure = strength(profile, named)
    # First where the evidence is; what is left over goes to the rest, where the eye may have missed something.
    for pool in (np.flatnonzero(sure >= PRESENT), np.arange(len(profile))):
        parts = [part for part in np.array_split(pool, min(count, len(pool))) if len(part)] if len(pool) else []
        best = [int(part[sure[part].argmax()]) for part in parts]
        open_parts = [n for n, part in enumerate(parts) if not np.isin(part, chosen).any()]
        for n in sorted(open_parts, key=lambda n: (-sure[best[n]], n)):
            if len(chosen) < count:
                chosen.append(best[n])
    return tuple(sorted(set(chosen)))


def where_present(sure: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Slices on which a structure may be: those that show it, and single ones between two that do."""
    present = sure >= PRESENT
    between = np.zeros_like(present)
    between[1:-1] = present[:-2] & present[2:]
    return present | between


def denies(text: str, label: str) -> bool:
    """Whether a text says that there is no such thing: "there is no liver lesion"."""
    words, name = normal_words(text), normal_words(label)
    if not name:
        return False
    sentence = " ".join(words)
    return re.search(rf"\b(?:no|not|without)(?: \w+){{0,3}} {re.escape(' '.join(name))}\b", sentence) is not None

"""Which series of a folder is read, and what a broken file beside it means for it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pydicom.filereader import read_partial
from pydicom.tag import Tag

from medsight_core.errors import InputError
from medsight_core.imaging.dicom_header import Header, text
from medsight_core.imaging.files import printable

LISTED_SERIES: Final = 12
SHORTEST_ENDING: Final = 4
"""Characters of a UID's end that may stand for it; fewer are too easily a number."""

_NAMED_BROKEN: Final = 3
_CHOOSE: Final = "Choose one with --series and its number, description or UID."
_SERIES_UID: Final = Tag("SeriesInstanceUID")


@dataclass(frozen=True, kw_only=True)
class Broken:
    """A DICOM file that cannot be read.

    Attributes:
        path: The file.
        series_uid: The series that it says it belongs to; None where even that cannot be read.
        error: What is wrong with it.
    """

    path: Path
    series_uid: str | None
    error: InputError


def series_of(path: Path) -> str | None:
    """The Series Instance UID of a file that may be damaged; None where it is not whole."""
    beyond: list[int] = []

    def stop(tag: int, _vr: str | None, _length: int) -> bool:
        if tag > _SERIES_UID:
            beyond.append(tag)
        return bool(beyond)

    try:
        with path.open("rb") as file:
            dataset = read_partial(file, stop, specific_tags=[_SERIES_UID])
    except Exception:  # the library has many ways to stumble over a damaged file
        return None
    # A file that ends within the UID has a UID that is not its own.
    return text(dataset, "SeriesInstanceUID") or None if beyond else None


def choose_series(all_series: Mapping[str, Sequence[Header]], wanted: str | None, folder: Path) -> str:
    """The UID of the one series, or of the one that is wanted.

    Args:
        all_series: Headers of every series by UID.
        wanted: Series number, UID, the end of a UID, or description.
        folder: Names the place in the sentence.

    Raises:
        InputError: several_series, unknown_series; the sentence lists what there is.
    """
    uids = sorted(all_series, key=lambda uid: (all_series[uid][0].text("SeriesNumber").zfill(12), uid))
    chosen = uids if wanted is None else _called(wanted, all_series, uids)
    if len(chosen) == 1:
        return chosen[0]
    listed = "; ".join(_describe(uid, all_series) for uid in uids[:LISTED_SERIES])
    listed += f"; and {len(uids) - LISTED_SERIES} more" if len(uids) > LISTED_SERIES else ""
    place = printable(folder.name) or str(folder)
    if wanted is None:
        raise InputError("several_series", f"{place} holds {len(uids)} series ({listed}).", _CHOOSE)
    count = "No series is" if not chosen else f"{len(chosen)} series are"
    raise InputError(
        "unknown_series", f'{count} called "{printable(wanted)}" in {place}, which holds {listed}.', _CHOOSE
    )


def unique_ending(uid: str, others: Sequence[str]) -> str:
    """The shortest end of a UID, of `SHORTEST_ENDING` characters or more, with which none of the others ends."""
    for length in range(SHORTEST_ENDING, len(uid)):
        if not any(other.endswith(uid[-length:]) for other in others):
            return uid[-length:]
    return uid


def without_broken(
    broken: Sequence[Broken], headers: Sequence[Header], others: Sequence[str], *, regular: bool
) -> list[str]:
    """Leaves broken files out of a series where it is whole without them.

    Args:
        broken: What could not be read.
        headers: Of the chosen series.
        others: UIDs of the other series in the folder.
        regular: Whether the chosen series is a regular stack.

    Returns:
        Sentences to stand beside the scan.

    Raises:
        InputError: What is wrong with a file whose absence would be a silent gap.
    """
    said = []
    uid = headers[0].text("SeriesInstanceUID")
    whole = regular and not _has_hole(headers)
    for file in broken:
        if file.series_uid in others:
            reason = "it belongs to another series"
        elif whole and (not _is_alike(file.path, headers) if file.series_uid is None else file.series_uid != uid):
            # Its series has no other file, or is not known: then nothing may speak for a slice that is missing here.
            reason = f"the {len(headers)} image(s) of the series read are numbered and placed without a gap"
        else:
            raise file.error
        said.append(f"{file.error.sentence} It was left out: {reason}.")
    more = len(said) - _NAMED_BROKEN
    return said if more <= 0 else [*said[:_NAMED_BROKEN], f"{more} more broken file(s) left out for such reasons."]


def _called(wanted: str, all_series: Mapping[str, Sequence[Header]], uids: Sequence[str]) -> list[str]:
    def names(uid: str) -> tuple[str, ...]:
        return (uid, all_series[uid][0].text("SeriesNumber"), all_series[uid][0].text("SeriesDescription"))

    exact = [uid for uid in uids if wanted in names(uid)]
    return exact or [uid for uid in uids if len(wanted) >= SHORTEST_ENDING and uid.endswith(wanted)]


def _describe(uid: str, all_series: Mapping[str, Sequence[Header]]) -> str:
    head = all_series[uid][0]
    label = printable(head.text("SeriesDescription"), 40)
    count = sum(header.layout.frames for header in all_series[uid])
    number = printable(head.text("SeriesNumber"), 12)
    if not number or sum(other[0].text("SeriesNumber") == number for other in all_series.values()) > 1:
        number = f"UID ending in {printable(unique_ending(uid, [other for other in all_series if other != uid]))}"
    return f'{number}: {printable(head.text("Modality"), 8)} "{label}", {count} image(s)'


def _has_hole(headers: Sequence[Header]) -> bool:
    """Whether the instance numbers are not 1, 2, 3 ..., so that a file may be missing."""
    numbers = {header.text("InstanceNumber") for header in headers}
    return numbers != {str(number) for number in range(1, len(headers) + 1)}


def _is_alike(path: Path, headers: Sequence[Header]) -> bool:
    """Whether a file lies beside the files of a series and is called like them but for numbers."""

    def pattern(path: Path) -> tuple[Path, str]:
        return path.parent, re.sub(r"\d+", "#", path.name)

    return pattern(path) in {pattern(header.path) for header in headers}

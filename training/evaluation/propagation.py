"""One click followed through a volume, beside one click on every slice: what following costs in 3D Dice.

Both start from the same simulated person, who clicks into the middle of what a label map shows. Who clicks on every
slice knows on which slices there is something; who clicks once has to be told by the model where it ends.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np

from medsight_core.errors import InputError
from medsight_core.events import Event
from medsight_core.imaging.volume import Volume, open_volume
from medsight_core.regions import Prompt, Region, VolumeRegion
from training.evaluation.metrics import Mask, dice, interior_point
from training.evaluation.segmentation import places_on

FEWEST_SLICES: Final = 3
"""A structure on fewer slices has nothing to be followed through."""


class Follows(Protocol):
    """What a session tells."""

    @property
    def perceived(self) -> int: ...
    @property
    def volume_region(self) -> VolumeRegion | None: ...
    def add(self, prompt: Prompt, slice_index: int) -> Region | None: ...
    def propagate(self) -> Iterator[Event]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Labelled:
    """A scan with a label map on its grid.

    Attributes:
        image: Path of the scan.
        labels: Path of the label map.
        names: Value of the label map to what it means; empty where that is not known.
    """

    image: Path
    labels: Path
    names: Mapping[int, str]

    def read(self) -> tuple[Volume, dict[str, Mask]]:
        """The scan, and each structure's mask ``(slices, rows, columns)``.

        Where all labels are parts of one thing (*anterior hippocampus*, *posterior hippocampus*), so is their union.

        Raises:
            InputError: The two do not lie on one grid.
        """
        volume, labels = open_volume(self.image), open_volume(self.labels)
        same = volume.array.shape == labels.array.shape
        if not same or not labels.require_frame().is_close(volume.require_frame()):
            raise InputError(
                "other_grid", f"The label map {self.labels.name} does not lie on the grid of {self.image.name}.",
                "Resample it to that grid first.",
            )  # fmt: skip
        values = [int(value) for value in np.unique(labels.array) if value > 0]
        masks = {self.names.get(value, f"label {value}"): labels.array == value for value in values}
        last_words = {name.split()[-1] for name in masks}
        if len(masks) > 1 and len(last_words) == 1 and self.names:
            masks[last_words.pop()] = labels.array > 0
        return volume, masks


@dataclass(frozen=True, slots=True, kw_only=True)
class Followed:
    """One structure of one volume.

    Attributes:
        volume: Name of the scan.
        structure: What it is.
        slices: On how many slices it is.
        clicked: The slice of the one click.
        propagated: 3D Dice of that click, followed.
        per_slice: 3D Dice of a click on every slice that shows it.
        found: First and last slice that the click was followed to; None where there was no region.
        truth: First and last slice that shows it.
        seconds: For following.
        passes: Of the perceiver, for following.
    """

    volume: str
    structure: str
    slices: int
    clicked: int
    propagated: float
    per_slice: float
    found: tuple[int, int] | None
    truth: tuple[int, int]
    seconds: float
    passes: int

    @property
    def ratio(self) -> float | None:
        """What following keeps of the Dice of clicking on every slice."""
        return self.propagated / self.per_slice if self.per_slice else None

    def to_json(self) -> dict[str, Any]:
        """Ready for ``json.dumps``."""
        return {
            "volume": self.volume,
            "structure": self.structure,
            "slices": self.slices,
            "clicked": self.clicked,
            "propagated": round(self.propagated, 4),
            "per_slice": round(self.per_slice, 4),
            "ratio": None if self.ratio is None else round(self.ratio, 4),
            "found": None if self.found is None else list(self.found),
            "truth": list(self.truth),
            "seconds": round(self.seconds, 3),
            "passes": self.passes,
        }


def read_pairs(manifest: Path) -> list[Labelled]:
    """The label maps that a manifest of volumes names, each with its scan.

    A line is a JSON object per file: ``file``, ``kind`` ("image" or "label"), and for label maps ``image`` and
    ``labels`` (value to name, or null); paths start from the folder of the manifest.

    Raises:
        InputError: It cannot be read, names no label map, or a file is missing.
    """
    try:
        rows = [json.loads(line) for line in manifest.read_text(encoding="utf-8").splitlines() if line.strip()]
        chosen = [row for row in rows if row["kind"] == "label"]
        pairs = [
            Labelled(
                image=manifest.parent / row["image"],
                labels=manifest.parent / row["file"],
                names={int(value): str(name) for value, name in (row.get("labels") or {}).items()},
            )
            for row in chosen
        ]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            "bad_manifest", f"{manifest} is no manifest of volumes ({type(error).__name__}: {error}).",
            "Expected one JSON object per line with file, kind, image and labels.",
        ) from error  # fmt: skip
    if not pairs:
        raise InputError("bad_manifest", f"{manifest} names no label map.", 'Expected lines of kind "label".')
    check_pairs(pairs)
    return pairs


def check_pairs(pairs: Sequence[Labelled]) -> None:
    """Makes sure that all files are there.

    Raises:
        InputError: One is missing.
    """
    for path in (path for pair in pairs for path in (pair.image, pair.labels)):
        if not path.exists():
            raise InputError("missing_files", f"There is no file {path}.", "Check the path.")


def follow(
    open_session: Callable[[Volume], Follows],
    pairs: Sequence[Labelled],
    *,
    on_progress: Callable[[int], None] = lambda done: None,
) -> Iterator[Followed]:
    """Every structure of every volume, both ways.

    Args:
        open_session: Begins work on a scan; sessions of one scan share its features.
        pairs: The scans.
        on_progress: Told after each scan.
    """
    for pair in pairs:
        volume, masks = pair.read()
        name = pair.image.name
        for structure, truth in masks.items():
            areas = truth.sum(axis=(1, 2))
            if np.count_nonzero(areas) >= FEWEST_SLICES:
                yield _follow_one(open_session, volume, name, structure, truth, int(areas.argmax()))
        on_progress(1)


def _follow_one(
    open_session: Callable[[Volume], Follows], volume: Volume, name: str, structure: str, truth: Mask, clicked: int
) -> Followed:
    covered = [int(k) for k in np.flatnonzero(truth.any(axis=(1, 2)))]
    by_slice = np.zeros(truth.shape, bool)
    for k in covered:
        region = open_session(volume).add(_click(volume, truth, k), k)
        if region is not None:
            by_slice[k] = region.mask
    session, started = open_session(volume), time.perf_counter()
    whole: VolumeRegion | None = None
    if session.add(_click(volume, truth, clicked), clicked) is not None:
        for _ in session.propagate():
            pass
        whole = session.volume_region
    return Followed(
        volume=name,
        structure=structure,
        slices=len(covered),
        clicked=clicked,
        propagated=dice(np.zeros(truth.shape, bool) if whole is None else whole.mask, truth),
        per_slice=dice(by_slice, truth),
        found=None if whole is None else whole.slices,
        truth=(covered[0], covered[-1]),
        seconds=time.perf_counter() - started,
        passes=session.perceived,
    )


def _click(volume: Volume, truth: Mask, k: int) -> Prompt:
    row, column = interior_point(truth[k])
    return Prompt(kind="point", points=places_on(volume.slice_frame(k), [(column, row)], truth.shape[1:]))


def summarise(results: Sequence[Followed]) -> dict[str, Any]:
    """All rows and their means, ready for ``json.dumps``."""
    known = [one for one in results if one.ratio is not None]
    propagated = float(np.mean([one.propagated for one in results])) if results else None
    per_slice = float(np.mean([one.per_slice for one in results])) if results else None
    return {
        "propagated": None if propagated is None else round(propagated, 4),
        "per_slice": None if per_slice is None else round(per_slice, 4),
        "ratio_of_means": round(propagated / per_slice, 4) if propagated is not None and per_slice else None,
        "median_ratio": round(float(np.median([one.ratio for one in known])), 4) if known else None,
        "structures": [one.to_json() for one in results],
    }


def markdown(report: Mapping[str, Any]) -> str:
    """The figures as a table to read."""
    lines = [
        f"# Following a click: {report['model']['name']}",
        "",
        f"Mean 3D Dice {_number(report['propagated'])} from one click, {_number(report['per_slice'])} with a click on "
        f"every slice: {_number(report['ratio_of_means'])} of it is kept (median of the structures: "
        f"{_number(report['median_ratio'])}).",
        "",
        "| volume | structure | slices | one click, followed | a click on each slice | kept | followed to | shown on |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in report["structures"]:
        found = "-" if row["found"] is None else "{} to {}".format(*row["found"])
        lines.append(
            f"| {row['volume']} | {row['structure']} | {row['slices']} | {_number(row['propagated'])} "
            f"| {_number(row['per_slice'])} | {_number(row['ratio'])} | {found} | {row['truth'][0]} to "
            f"{row['truth'][1]} |"
        )
    return "\n".join(lines) + "\n"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"

"""Text-prompted structures in 3D: decided once and propagated, read slice by slice, or surveyed without words.

Each is compared with a label map on the scan's own grid. Slices are looked at once for all questions about a scan; the
time of that look counts for each of them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
from matplotlib.figure import Figure

from medsight_core.events import Event, fold
from medsight_core.imaging.planes import Plane, reformat
from medsight_core.imaging.volume import Volume
from medsight_core.imaging.windowing import display
from medsight_core.naming import find_names
from medsight_core.regions import Answer, VolumeRegion
from medsight_core.terminology import normal_words
from training.evaluation.metrics import Mask, dice
from training.evaluation.propagation import Labelled
from training.evaluation.questions import WORDING
from training.evaluation.report import write_file

COLOURS: Final = {"truth": "#56b4e9", "once": "#e69f00", "exact": "#cc79a7"}
"""Told apart in every common form of colour blindness."""

_PICTURES: Final = 24


class Surveyed(Protocol):
    """What a survey found."""

    @property
    def regions(self) -> Mapping[str, VolumeRegion | None]: ...


class AsksVolumes(Protocol):
    """What is evaluated."""

    @property
    def classes(self) -> tuple[str, ...]: ...
    def ask(self, text: str, volume: Volume, *, plane: Plane, exact: bool = False) -> Iterator[Event]: ...
    def survey(self, volume: Volume, names: Sequence[str], *, plane: Plane) -> Surveyed: ...
    def forget(self, volume: Volume) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Found:
    """One structure of one volume.

    Attributes:
        volume: Name of the scan.
        structure: What was asked for.
        slices: On how many slices of the plane it is; of how many.
        once, exact, survey: 3D Dice of the three ways; ``exact`` is None where it was left out.
        seconds: Of the same, by name.
        read: Slices that the language model read, by name.
        picture: What is needed to draw it.
    """

    volume: str
    structure: str
    slices: tuple[int, int]
    once: float
    exact: float | None
    survey: float
    seconds: Mapping[str, float]
    read: Mapping[str, int]
    picture: Picture

    def to_json(self) -> dict[str, Any]:
        """Ready for ``json.dumps``."""
        return {
            "volume": self.volume,
            "structure": self.structure,
            "slices": list(self.slices),
            "dice": {name: _rounded(value) for name, value in self.dices.items()},
            "seconds": {name: round(value, 2) for name, value in self.seconds.items()},
            "slices_read": dict(self.read),
        }

    @property
    def dices(self) -> dict[str, float | None]:
        """By way."""
        return {"once": self.once, "exact": self.exact, "survey": self.survey}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Picture:
    """The slice with most of a structure, upright.

    Attributes:
        slice_index: Which.
        image: ``(rows, columns, 3)`` uint8.
        aspect: Height of a pixel by its width.
        masks: By name, ``(rows, columns)`` bool.
    """

    slice_index: int
    image: np.ndarray
    aspect: float
    masks: Mapping[str, Mask]


def known_structures(masks: Mapping[str, Mask], classes: Sequence[str]) -> list[str]:
    """The structures of a label map that the model knows by exactly such a name, and that are there."""
    found = []
    for name, mask in masks.items():
        named = find_names(normal_words(name), classes)
        if named is not None and len(named.names) == 1 and named.side is None and mask.any():
            found.append(name)
    return found


def measure(
    volumes: AsksVolumes,
    pairs: Sequence[Labelled],
    *,
    plane: Plane = "acquired",
    exact: bool = True,
    on_progress: Callable[[int], None] = lambda done: None,
) -> Iterator[Found]:
    """Asks for every structure of every volume that the model knows.

    Args:
        volumes: Who answers.
        pairs: The scans and their label maps.
        plane: In which the slices are looked at.
        exact: Read every slice as well.
        on_progress: Told after each scan.
    """
    for pair in pairs:
        volume, masks = pair.read()
        looking: float | None = None
        for structure in known_structures(masks, volumes.classes):
            question = WORDING["text"].format(target=structure)
            answers = {"once": fold(volumes.ask(question, volume, plane=plane))}
            if looking is None:
                looking = float(answers["once"].provenance.timings["look"])
            if exact:
                answers["exact"] = fold(volumes.ask(question, volume, plane=plane, exact=True))
            surveyed = volumes.survey(volume, [structure], plane=plane).regions[structure]
            yield _found(pair.image.name, volume, structure, masks[structure], answers, surveyed, looking, plane)
        volumes.forget(volume)
        on_progress(1)


def _found(
    name: str,
    volume: Volume,
    structure: str,
    truth: Mask,
    answers: Mapping[str, Answer],
    surveyed: VolumeRegion | None,
    looking: float,
    plane: Plane,
) -> Found:
    masks = {way: union(answer.volume_regions, truth.shape) for way, answer in answers.items()}
    turned = reformat(volume, plane)
    seen = turned.forth(truth)
    k = int(seen.sum(axis=(1, 2)).argmax())
    return Found(
        volume=name,
        structure=structure,
        slices=(int(seen.any(axis=(1, 2)).sum()), len(seen)),
        once=dice(masks["once"], truth),
        exact=dice(masks["exact"], truth) if "exact" in masks else None,
        survey=dice(union([surveyed] if surveyed else [], truth.shape), truth),
        seconds={
            way: looking + answer.provenance.timings["total"] - answer.provenance.timings["look"]
            for way, answer in answers.items()
        },
        read={way: len(answer.provenance.settings["slices_read"]) for way, answer in answers.items()},
        picture=Picture(
            slice_index=k,
            image=display(turned.volume, k),
            aspect=float(turned.volume.slice_frame(k).pixel_aspect),
            masks={way: turned.forth(mask)[k].copy() for way, mask in {"truth": truth, **masks}.items()},
        ),
    )


def union(regions: Sequence[VolumeRegion], shape: tuple[int, ...]) -> Mask:
    """All that was drawn."""
    mask: Mask = np.zeros(shape, dtype=bool)
    for region in regions:
        mask |= region.mask
    return mask


def summarise(results: Sequence[Found]) -> dict[str, Any]:
    """All rows and their means, ready for ``json.dumps``."""
    both = [one for one in results if one.exact is not None]

    def mean(values: Sequence[float]) -> float | None:
        return _rounded(float(np.mean(values))) if values else None

    return {
        "dice": {
            "once": mean([one.once for one in results]),
            "exact": mean([one.exact for one in both if one.exact is not None]),
            "survey": mean([one.survey for one in results]),
        },
        "seconds": {
            way: mean([one.seconds[way] for one in results if way in one.seconds]) for way in ("once", "exact")
        },
        "time_kept": mean([one.seconds["once"] / one.seconds["exact"] for one in both]),
        "structures": [one.to_json() for one in results],
    }


def markdown(report: Mapping[str, Any]) -> str:
    """The figures as a table to read."""
    means, seconds, settings = report["dice"], report["seconds"], report["settings"]
    lines = [
        f"# Structures in volumes: {report['model']['name']}",
        "",
        f"Model digest `{report['model']['digest']}`, on {settings['device']} with {settings['threads']} threads, "
        f"{settings['plane']} slices. *once*: key slices read, codes drawn on all slices. *exact*: every slice read. "
        "*survey*: the region queries alone, no words.",
        "",
        "| volume | structure | on slices | Dice once | Dice exact | Dice survey | read | s once | s exact |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in report["structures"]:
        dices, spent = row["dice"], row["seconds"]
        lines.append(
            f"| {row['volume']} | {row['structure']} | {row['slices'][0]} of {row['slices'][1]} "
            f"| {_number(dices['once'])} | {_number(dices['exact'])} | {_number(dices['survey'])} "
            f"| {row['slices_read']['once']} | {spent['once']:.1f} | {_seconds(spent.get('exact'))} |"
        )
    lines.append(
        f"| **mean** | | | {_number(means['once'])} | {_number(means['exact'])} | {_number(means['survey'])} | "
        f"| {_seconds(seconds['once'])} | {_seconds(seconds['exact'])} |"
    )
    return "\n".join(lines) + "\n"


def pictures(results: Sequence[Found]) -> Figure:
    """A page: of each structure the slice with most of it, truth and both answers as contours."""
    shown = results[:_PICTURES]
    columns = min(6, max(1, len(shown)))
    rows = -(-len(shown) // columns) or 1
    figure = Figure(figsize=(2.6 * columns, 2.9 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    for axis, one in zip(axes.flat, shown, strict=False):
        picture = one.picture
        axis.imshow(picture.image, aspect=picture.aspect)
        for way, mask in picture.masks.items():
            if mask.any() and not mask.all():
                axis.contour(mask.astype(np.float32), levels=[0.5], colors=[COLOURS[way]], linewidths=1.1)
        axis.set_title(
            f"{one.volume[:28]}\n{one.structure}, slice {picture.slice_index}\nDice {one.once:.2f} / "
            f"{_number(one.exact)}",
            fontsize=7,
        )
    figure.suptitle("Truth blue, decided once orange, every slice read purple", fontsize=9)
    return figure


def write_report(folder: Path, *, report: Mapping[str, Any], results: Sequence[Found]) -> list[Path]:
    """Writes ``volumes.json``, ``volumes.md`` and ``volumes.png``, each whole or not at all."""
    text = json.dumps(report, indent=1) + "\n"
    figure = pictures(results)
    return [
        write_file(folder / "volumes.json", "w", lambda file: file.write(text)),
        write_file(folder / "volumes.md", "w", lambda file: file.write(markdown(report))),
        write_file(folder / "volumes.png", "wb", lambda file: figure.savefig(file, format="png", dpi=110)),
    ]


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"

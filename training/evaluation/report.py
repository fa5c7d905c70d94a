"""What a run of the evaluation leaves behind: the figures as JSON, a table to read, every case as CSV, and pictures."""

from __future__ import annotations

import csv
import json
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
from matplotlib.figure import Figure

from medsight_core.errors import InputError
from medsight_core.imaging.volume import open_volume
from medsight_core.imaging.windowing import display
from training.evaluation.manifest import read_mask
from training.evaluation.segmentation import Outcome

TRUTH_COLOUR = "#56b4e9"
PREDICTION_COLOUR = "#e69f00"
"""Sky blue and orange: told apart in every common form of colour blindness."""

_LABELS = {
    "macro_dice": "macro Dice, by text",
    "macro_dice_point": "macro Dice, by text and point",
    "diagnosis_recall": "diagnosis recall",
    "emission_rate": "answers with a region, where one is due",
    "absent_false_positive_rate": "false positives on absent targets",
}
_CASE_COLUMNS = (
    "kind", "dataset", "split", "image", "mask", "modality", "site", "patient", "target", "reason", "question",
    "diagnosis", "dice", "recall", "area_pixels", "codes", "seconds", "answer",
)  # fmt: skip
_PER_PAIR = 2
"""At most so many pictures of one data set and target, or the hardest pair would fill the page."""


def prepare_folder(folder: Path) -> None:
    """Makes the folder of the report, so that a run of hours does not end with nowhere to write to.

    Raises:
        InputError: it cannot be made or written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        writable = os.access(folder, os.W_OK)
    except OSError:
        writable = False
    if not writable:
        raise InputError("bad_out", f"Nothing can be written to {folder}.", "Choose another folder with --out.")


def write_report(folder: Path, *, report: Mapping[str, Any], outcomes: Sequence[Outcome], root: Path) -> list[Path]:
    """Writes ``segmentation.json``, ``segmentation.md``, ``cases.csv`` and ``best_and_worst.png``.

    Each file appears whole or not at all.

    Returns:
        The files written.
    """
    prepare_folder(folder)
    files = [
        write_file(folder / "segmentation.json", "w", lambda file: file.write(json.dumps(report, indent=1) + "\n")),
        write_file(folder / "segmentation.md", "w", lambda file: file.write(markdown(report))),
        write_file(folder / "cases.csv", "w", lambda file: _write_cases(file, outcomes)),
    ]
    if any(outcome.packed is not None for outcome in outcomes):
        figure = best_and_worst(outcomes, root)
        files.append(
            write_file(folder / "best_and_worst.png", "wb", lambda file: figure.savefig(file, format="png", dpi=110))
        )
    return files


def write_file(path: Path, mode: str, fill: Callable[[IO[Any]], object]) -> Path:
    """Writes a file whole or not at all: ``fill`` gets it open in ``mode``."""
    temporary = path.with_name(f".{path.name}.part")
    text = "b" not in mode
    with open(temporary, mode, encoding="utf-8" if text else None, newline="" if text else None) as file:
        fill(file)
    os.replace(temporary, path)
    return path


def _write_cases(file: IO[str], outcomes: Sequence[Outcome]) -> None:
    writer = csv.DictWriter(file, _CASE_COLUMNS, lineterminator="\n")
    writer.writeheader()
    for outcome in outcomes:
        case, row = outcome.case, outcome.case.row
        writer.writerow(
            {
                "kind": case.kind,
                "dataset": row.dataset,
                "split": row.split,
                "image": row.image,
                "mask": row.mask if outcome.dice is not None else None,
                "modality": row.modality,
                "site": row.site,
                "patient": row.patient,
                "target": case.target,
                "reason": case.reason,
                "question": case.wording,
                "diagnosis": row.diagnosis if outcome.recall is not None else None,
                "dice": None if outcome.dice is None else round(outcome.dice, 4),
                "recall": None if outcome.recall is None else round(outcome.recall, 4),
                "area_pixels": outcome.area,
                "codes": " ".join(outcome.codes),
                "seconds": round(outcome.seconds, 4),
                "answer": outcome.text,
            }
        )


def markdown(report: Mapping[str, Any]) -> str:
    """The figures as tables to read."""
    settings = report["settings"]
    rule = settings["rule"]
    lines = [
        f"# Segmentation: {report['model']['name']}",
        "",
        f"Split `{settings['split']}` of `{settings['manifest']['name']}`, model digest `{report['model']['digest']}`.",
        "",
        "| figure | value | 95 % interval | n |",
        "|---|---|---|---|",
    ]
    for name, label in _LABELS.items():
        figure = report[name]
        lines.append(f"| {label} | {_number(figure['value'])} | {_range(figure['interval'])} | {figure['count']} |")
    lines += ["", f"Means go over pairs with at least {rule['min_training_masks']} training masks (column *counts*)"]
    if not rule["training_masks_known"]:
        lines[-1] += "; here no training masks are known, so all pairs count"
    lines[-1] += f". Apart: {', '.join(rule['apart']) or 'none'}."
    lines += [
        "",
        "| data set | target | n | trained on | Dice | median | 95 % interval "
        "| Dice with point | median | region given | counts |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for pair in report["pairs"]:
        lines.append(
            f"| {pair['dataset']} | {pair['target']} | {pair['n']} | {pair['training_masks']} "
            f"| {_number(pair['dice'])} | {_number(pair['dice_median'])} | {_range(pair['dice_interval'])} "
            f"| {_number(pair['dice_point'])} | {_number(pair['dice_point_median'])} "
            f"| {pair['emission_rate']:.2f} | {_yes(pair['counted'])} |"
        )
    if report["diagnoses"]:
        lines += ["", "| data set | diagnosis | n | trained on | recall | counts |", "|---|---|---|---|---|---|"]
        for row in report["diagnoses"]:
            lines.append(
                f"| {row['dataset']} | {row['diagnosis']} | {row['n']} | {row['training_images']} "
                f"| {_number(row['recall'])} | {_yes(row['counted'])} |"
            )
    if report["absent"]:
        lines += ["", "| absent because | data set | n | false positives |", "|---|---|---|---|"]
        for row in report["absent"]:
            lines.append(f"| {row['reason']} | {row['dataset']} | {row['n']} | {_number(row['rate'])} |")
    return "\n".join(lines) + "\n"


def _yes(answer: bool) -> str:
    return "yes" if answer else "no"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _range(interval: Sequence[float] | None) -> str:
    return "–" if interval is None else f"{interval[0]:.3f} to {interval[1]:.3f}"


def extremes(outcomes: Sequence[Outcome], count: int, *, best: bool) -> list[Outcome]:
    """The best or worst cases by text, at most two of one data set and target."""
    ranked = sorted(
        (outcome for outcome in outcomes if outcome.case.kind == "text" and outcome.dice is not None),
        key=lambda outcome: (-(outcome.dice or 0.0) if best else outcome.dice, outcome.case.row.mask),
    )
    taken: Counter[tuple[str, str]] = Counter()
    chosen: list[Outcome] = []
    for outcome in ranked:
        pair = (outcome.case.row.dataset, outcome.case.target)
        if taken[pair] < _PER_PAIR and len(chosen) < count:
            taken[pair] += 1
            chosen.append(outcome)
    return chosen


def best_and_worst(outcomes: Sequence[Outcome], root: Path, *, count: int = 8) -> Figure:
    """A page of pictures: the best cases above, the worst below, truth and prediction as contours."""
    figure = Figure(figsize=(2.3 * count, 6.2), layout="constrained")
    axes = figure.subplots(2, count, squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    for line, best in zip(axes, (True, False), strict=True):
        for axis, outcome in zip(line, extremes(outcomes, count, best=best), strict=False):
            _draw(axis, outcome, root)
    figure.suptitle("Eight best cases above, eight worst below; truth blue, prediction orange")
    return figure


def _draw(axis: Any, outcome: Outcome, root: Path) -> None:
    row = outcome.case.row
    assert row.mask is not None  # extremes() chose among cases with a mask
    volume = open_volume(root / row.image)
    truth = read_mask(root / row.mask)
    prediction = outcome.prediction((truth.shape[0], truth.shape[1]))
    # Both grids cover the same picture: extents in units of the truth put contours and image onto each other.
    axis.imshow(display(volume, volume.middle), extent=(-0.5, truth.shape[1] - 0.5, truth.shape[0] - 0.5, -0.5))
    for mask, colour in ((truth, TRUTH_COLOUR), (prediction, PREDICTION_COLOUR)):
        if mask.any() and not mask.all():
            axis.contour(mask.astype(np.float32), levels=[0.5], colors=[colour], linewidths=1.2)
    axis.set_title(f"{row.dataset}\n{outcome.case.target}\nDice {outcome.dice:.2f}", fontsize=8)

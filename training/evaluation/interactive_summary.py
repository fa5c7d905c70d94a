"""Sums up what clicks achieved: means over pairs of data set and target with their intervals, and tables to read."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import IO, Any, Final

import numpy as np

from training.evaluation.bootstrap import Bootstrap, Estimate
from training.evaluation.interactive import CLICKS, Background, Interaction
from training.evaluation.manifest import Row
from training.evaluation.questions import training_masks
from training.evaluation.report import prepare_folder, write_file
from training.evaluation.summary import Pair, Rule

STEPS: Final = (*CLICKS, "box")
MARGINS: Final = (-0.5, -0.2, 0.0, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9)
"""By which "no object" could have to be likelier than the likeliest class for a first click to give nothing."""

_LABELS: Final = {
    "text": "macro Dice, by text alone",
    "click_1": "macro Dice, one click",
    "click_2": "macro Dice, two clicks",
    "click_3": "macro Dice, three clicks",
    "box": "macro Dice, a box",
    "gain_of_click_1": "one click less text",
    "gain_of_click_3": "three clicks less one",
    "background_no_region": "clicks on nothing without a region",
}


def summarise(
    interactions: Sequence[Interaction],
    backgrounds: Sequence[Background],
    *,
    text: Mapping[str, float],
    training_rows: Sequence[Row],
    rule: Rule,
    bootstrap: Bootstrap,
) -> dict[str, Any]:
    """All figures, ready for ``json.dumps``.

    Args:
        interactions: One per mask.
        backgrounds: Clicks on nothing.
        text: Dice by text alone, by the mask's path; empty where that was not measured.
        training_rows: Whose train split says how much each pair was trained.
        rule: Which pairs count.
        bootstrap: How intervals are drawn.
    """
    trained = training_masks(training_rows)
    counted = [one for one in interactions if rule.counts(_pair(one), trained)]

    def estimate(
        some: Sequence[Any], figure: Callable[[Any], float], group: Callable[[Any], Hashable] = lambda one: None
    ) -> dict[str, Any]:
        mean: Estimate = bootstrap.macro_mean(
            [figure(one) for one in some],
            groups=[group(one) for one in some],
            clusters=[one.row.cluster for one in some],
            strata=[one.row.dataset for one in some],
        )
        return mean.to_json()

    asked = [one for one in counted if one.row.mask in text]
    figures: dict[str, Any] = {
        "text": estimate(asked, lambda one: text[one.row.mask], _pair),
        **{name: estimate(counted, partial(_dice, name), _pair) for name in STEPS},
        "gain_of_click_1": estimate(asked, lambda one: one.dice["click_1"] - text[one.row.mask], _pair),
        "gain_of_click_3": estimate(counted, lambda one: one.dice["click_3"] - one.dice["click_1"], _pair),
        "background_no_region": estimate(backgrounds, lambda one: float(not one.region)),
    }
    return {
        **figures,
        "pairs": _pair_rows(interactions, text, trained, rule),
        "background": _background_rows(backgrounds),
        "decision": _decision(counted, backgrounds),
        "seconds": _seconds(interactions),
    }


def _pair_rows(
    interactions: Sequence[Interaction], text: Mapping[str, float], trained: Mapping[Pair, int], rule: Rule
) -> list[dict[str, Any]]:
    rows = []
    for pair in sorted({_pair(one) for one in interactions}):
        some = [one for one in interactions if _pair(one) == pair]
        said = [text[mask] for one in some if (mask := one.row.mask) is not None and mask in text]
        rows.append(
            {
                "dataset": pair[0],
                "target": pair[1],
                "n": len(some),
                "patients": len({one.row.cluster for one in some}),
                "training_masks": trained.get(pair, 0),
                "counted": rule.counts(pair, trained),
                "text": _mean(said),
                **{name: _mean([one.dice[name] for one in some]) for name in STEPS},
            }
        )
    return rows


def _background_rows(backgrounds: Sequence[Background]) -> list[dict[str, Any]]:
    rows = []
    for dataset in sorted({one.row.dataset for one in backgrounds}):
        some = [one for one in backgrounds if one.row.dataset == dataset]
        images = len({one.row.image for one in some})
        rate = _mean([float(not one.region) for one in some])
        rows.append({"dataset": dataset, "images": images, "n": len(some), "no_region": rate})
    return rows


def _decision(interactions: Sequence[Interaction], backgrounds: Sequence[Background]) -> list[dict[str, Any]]:
    """What each margin would do: first clicks on a structure that it refuses, and clicks on nothing that it refuses."""
    return [
        {
            "margin": margin,
            "structures_refused": _mean([float(one.nothing >= margin) for one in interactions]),
            "background_refused": _mean([float(one.nothing >= margin) for one in backgrounds]),
        }
        for margin in MARGINS
    ]


def _seconds(interactions: Sequence[Interaction]) -> dict[str, Any]:
    """Medians per step, and the second click by the third: the first one may have had to encode."""
    medians = {
        name: round(median(times), 4)
        for name in STEPS
        if (times := [one.seconds[name] for one in interactions if name in one.seconds])
    }
    ratios = [
        one.seconds["click_2"] / one.seconds["click_3"]
        for one in interactions
        if {"click_2", "click_3"} <= set(one.seconds)
    ]
    return {"median": medians, "click_2_by_click_3": round(median(ratios), 4) if ratios else None}


def markdown(report: Mapping[str, Any]) -> str:
    """The figures as tables to read."""
    settings = report["settings"]
    lines = [
        f"# Interaction: {report['model']['name']}",
        "",
        f"Split `{settings['split']}` of `{settings['manifest']['name']}`, model digest `{report['model']['digest']}`. "
        f"Means go over pairs with at least {settings['rule']['min_training_masks']} training masks (column *counts*).",
        "",
        "| figure | value | 95 % interval | n |",
        "|---|---|---|---|",
    ]
    for name, label in _LABELS.items():
        figure = report[name]
        interval = figure["interval"]
        spread = f"{interval[0]:.3f} to {interval[1]:.3f}" if interval else "-"
        lines.append(f"| {label} | {_number(figure['value'])} | {spread} | {figure['count']} |")
    lines += _table(
        ("data set", "target", "n", "trained on", "text", "1 click", "2 clicks", "3 clicks", "box", "counts"),
        (
            (row["dataset"], row["target"], row["n"], row["training_masks"], _number(row["text"]))
            + tuple(_number(row[name]) for name in STEPS)
            + ("yes" if row["counted"] else "no",)
            for row in report["pairs"]
        ),
    )
    lines += ["", "Clicks on nothing, on images that show no known structure without an outline:"]
    lines += _table(
        ("data set", "images", "clicks", "no region"),
        ((row["dataset"], row["images"], row["n"], _number(row["no_region"])) for row in report["background"]),
    )
    lines += [
        "",
        f"A first click gives nothing where *no object* is likelier by {settings['nothing_margin']} than the likeliest "
        "class. Other margins would refuse:",
    ]
    lines += _table(
        ("margin", "clicks on a structure", "clicks on nothing"),
        (
            (row["margin"], _number(row["structures_refused"]), _number(row["background_refused"]))
            for row in report["decision"]
        ),
    )
    spent = ", ".join(f"{name.replace('_', ' ')} {value:.3f} s" for name, value in report["seconds"]["median"].items())
    lines += ["", f"Median time: {spent}."]
    return "\n".join(lines) + "\n"


def _table(head: Sequence[str], rows: Any) -> list[str]:
    lines = ["", "| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return lines + ["| " + " | ".join(map(str, row)) + " |" for row in rows]


def write_report(
    folder: Path,
    *,
    report: Mapping[str, Any],
    interactions: Sequence[Interaction],
    backgrounds: Sequence[Background],
    text: Mapping[str, float],
) -> list[Path]:
    """Writes ``interactive.json``, ``interactive.md``, ``clicks.csv`` and ``background.csv``; returns their paths."""
    prepare_folder(folder)

    def clicks(file: IO[str]) -> None:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("dataset", "target", "image", "mask", "patient", "text", *STEPS, "nothing"))
        for one in interactions:
            row = one.row
            said = text.get(row.mask or "")
            writer.writerow(
                (row.dataset, row.target, row.image, row.mask, row.patient, None if said is None else round(said, 4))
                + tuple(round(one.dice[name], 4) for name in STEPS)
                + (round(one.nothing, 4),)
            )

    def nothing(file: IO[str]) -> None:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("dataset", "image", "patient", "seed", "column", "row", "region", "nothing"))
        for one in backgrounds:
            writer.writerow(
                (one.row.dataset, one.row.image, one.row.patient, one.seed, *one.xy, int(one.region))
                + (round(one.nothing, 4),)
            )

    return [
        write_file(folder / "interactive.json", "w", lambda file: file.write(json.dumps(report, indent=1) + "\n")),
        write_file(folder / "interactive.md", "w", lambda file: file.write(markdown(report))),
        write_file(folder / "clicks.csv", "w", clicks),
        write_file(folder / "background.csv", "w", nothing),
    ]


def _pair(one: Interaction) -> Pair:
    return one.row.dataset, one.row.target or ""


def _dice(name: str, one: Interaction) -> float:
    return one.dice[name]


def _mean(values: Sequence[float]) -> float | None:
    return round(float(np.mean(values)), 4) if values else None


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"

"""Sums up: means over pairs of data set and target, with their intervals."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import numpy as np

from training.evaluation.bootstrap import Bootstrap, Estimate
from training.evaluation.manifest import Row
from training.evaluation.questions import WORDING, training_diagnoses, training_masks
from training.evaluation.segmentation import Outcome

Pair = tuple[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """Which pairs count towards the means.

    Attributes:
        min_training_masks: A pair counts with at least so many masks in the train split. Where no pair has any, the
            rule cannot be applied and all count.
        apart: Data sets that are reported apart, for nothing like them was trained on.
    """

    min_training_masks: int = 20
    apart: tuple[str, ...] = ("BiomedParse-Demo",)

    def counts(self, pair: Pair, trained: Mapping[Pair, int]) -> bool:
        """Whether a pair counts, given how often each occurs in the train split."""
        return pair[0] not in self.apart and (not trained or trained.get(pair, 0) >= self.min_training_masks)

    def to_json(self, *, applied: bool) -> dict[str, Any]:
        """Ready for ``json.dumps``."""
        return {
            "min_training_masks": self.min_training_masks,
            "apart": list(self.apart),
            "training_masks_known": applied,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """What the outcomes of a run come to.

    Attributes:
        headline: The five figures that the JSON has at its top level.
        details: Further figures, such as those of the data sets that stand apart.
        pairs: One row per data set and target.
        diagnoses: One row per data set and diagnosis.
        absent: One row per reason and data set.
        timings: Seconds per question, by kind of question.
    """

    headline: dict[str, Estimate]
    details: dict[str, Estimate]
    pairs: list[dict[str, Any]]
    diagnoses: list[dict[str, Any]]
    absent: list[dict[str, Any]]
    timings: dict[str, dict[str, float]] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Ready for ``json.dumps``."""
        return {
            **{name: estimate.to_json() for name, estimate in self.headline.items()},
            "details": {name: estimate.to_json() for name, estimate in self.details.items()},
            "pairs": self.pairs,
            "diagnoses": self.diagnoses,
            "absent": self.absent,
            "timings": self.timings,
        }


def summarise(
    outcomes: Sequence[Outcome], *, training_rows: Sequence[Row], rule: Rule, bootstrap: Bootstrap
) -> Summary:
    """Means over pairs with their intervals.

    Args:
        outcomes: Of one run.
        training_rows: The manifest (and negatives) whose train split says how much each pair was trained.
        rule: Which pairs count.
        bootstrap: How intervals are drawn.
    """
    masks, diagnoses = training_masks(training_rows), training_diagnoses(training_rows)
    by_kind = {kind: [outcome for outcome in outcomes if outcome.case.kind == kind] for kind in WORDING}
    text, point, diagnosis, absent = by_kind["text"], by_kind["point"], by_kind["diagnosis"], by_kind["absent"]

    def estimate(
        some: Sequence[Outcome], figure: Callable[[Outcome], float], group: Callable[[Outcome], Any]
    ) -> Estimate:
        return bootstrap.macro_mean(
            [figure(outcome) for outcome in some],
            groups=[group(outcome) for outcome in some],
            clusters=[outcome.case.row.cluster for outcome in some],
            strata=[outcome.case.row.dataset for outcome in some],
        )

    def whole(outcome: Outcome) -> None:
        return None

    def counted(some: Sequence[Outcome], pair: Callable[[Outcome], Pair], trained: Mapping[Pair, int]) -> list[Outcome]:
        return [outcome for outcome in some if rule.counts(pair(outcome), trained)]

    def apart(some: Sequence[Outcome]) -> list[Outcome]:
        return [outcome for outcome in some if outcome.case.row.dataset in rule.apart]

    headline = {
        "macro_dice": estimate(counted(text, _pair, masks), _dice, _pair),
        "macro_dice_point": estimate(counted(point, _pair, masks), _dice, _pair),
        "diagnosis_recall": estimate(counted(diagnosis, _diagnosis, diagnoses), _recall, _diagnosis),
        "emission_rate": estimate(text, _emitted, whole),
        "absent_false_positive_rate": estimate(absent, _found, whole),
    }
    reasons = sorted({outcome.case.reason for outcome in absent})
    details = {
        "emission_rate_counted_pairs": estimate(counted(text, _pair, masks), _emitted, whole),
        "emission_rate_point": estimate(point, _emitted, whole),
        "diagnosis_recall_per_image": estimate(diagnosis, _recall, whole),
        "macro_dice_apart": estimate(apart(text), _dice, _pair),
        "macro_dice_point_apart": estimate(apart(point), _dice, _pair),
        **{
            f"absent_false_positive_rate_{reason.replace(' ', '_')}": estimate(
                [outcome for outcome in absent if outcome.case.reason == reason], _found, whole
            )
            for reason in reasons
        },
    }
    points = _grouped(point, _pair)
    pair_rows = []
    for pair, some in sorted(_grouped(text, _pair).items()):
        clicked = points.get(pair, [])
        pair_rows.append(
            {
                "dataset": pair[0],
                "target": pair[1],
                "n": len(some),
                "patients": len({outcome.case.row.cluster for outcome in some}),
                "training_masks": masks.get(pair, 0),
                "counted": rule.counts(pair, masks),
                **_spread_of("dice", some, estimate(some, _dice, whole)),
                **_spread_of("dice_point", clicked, estimate(clicked, _dice, whole)),
                "emission_rate": _mean(some, _emitted),
            }
        )
    diagnosis_rows = [
        {
            "dataset": pair[0],
            "diagnosis": pair[1],
            "n": len(some),
            "training_images": diagnoses.get(pair, 0),
            "counted": rule.counts(pair, diagnoses),
            "recall": _mean(some, _recall),
        }
        for pair, some in sorted(_grouped(diagnosis, _diagnosis).items())
    ]
    absent_rows = [
        {"reason": reason, "dataset": dataset, "n": len(some), "rate": _mean(some, _found)}
        for (reason, dataset), some in sorted(_grouped(absent, lambda o: (o.case.reason, o.case.row.dataset)).items())
    ]
    timings: dict[str, dict[str, float]] = {
        kind: {
            "median": round(median(times), 4),
            "p95": round(float(np.quantile(times, 0.95)), 4),
            "total": round(sum(times), 2),
        }
        for kind, some in by_kind.items()
        if (times := [outcome.seconds for outcome in some])
    }
    return Summary(
        headline=headline,
        details=details,
        pairs=pair_rows,
        diagnoses=diagnosis_rows,
        absent=absent_rows,
        timings=timings,
    )


def _pair(outcome: Outcome) -> Pair:
    return outcome.case.row.dataset, outcome.case.target


def _diagnosis(outcome: Outcome) -> Pair:
    return outcome.case.row.dataset, outcome.case.row.diagnosis or ""


def _dice(outcome: Outcome) -> float:
    assert outcome.dice is not None
    return outcome.dice


def _recall(outcome: Outcome) -> float:
    assert outcome.recall is not None
    return outcome.recall


def _emitted(outcome: Outcome) -> float:
    return float(bool(outcome.codes))


def _found(outcome: Outcome) -> float:
    return float(outcome.area > 0)


def _mean(some: Sequence[Outcome], figure: Callable[[Outcome], float]) -> float:
    return round(float(np.mean([figure(outcome) for outcome in some])), 4)


def _grouped(some: Iterable[Outcome], key: Callable[[Outcome], Pair]) -> dict[Pair, list[Outcome]]:
    groups: dict[Pair, list[Outcome]] = {}
    for outcome in some:
        groups.setdefault(key(outcome), []).append(outcome)
    return groups


def _spread_of(name: str, some: Sequence[Outcome], estimate: Estimate) -> dict[str, Any]:
    values = estimate.to_json()
    middle = round(median(_dice(outcome) for outcome in some), 4) if some else None
    return {name: values["value"], f"{name}_median": middle, f"{name}_interval": values["interval"]}

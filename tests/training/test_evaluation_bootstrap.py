from __future__ import annotations

import numpy as np
import pytest

from medsight_core.errors import MedSightError
from training.evaluation.bootstrap import Bootstrap


def test_with_one_group_the_mean_is_plain_and_its_interval_is_that_of_the_standard_error() -> None:
    values = np.random.default_rng(1).normal(0.6, 0.2, size=400)
    names = list(range(400))
    estimate = Bootstrap().macro_mean(values.tolist(), groups=[0] * 400, clusters=names, strata=["a"] * 400)
    assert estimate.value == pytest.approx(values.mean())
    assert estimate.count == 400
    half = 1.96 * values.std() / np.sqrt(400)
    assert estimate.interval == pytest.approx((values.mean() - half, values.mean() + half), abs=0.004)


def test_the_macro_mean_gives_each_group_one_vote() -> None:
    estimate = Bootstrap().macro_mean(
        [1.0] * 8 + [0.0, 0.0], groups=["many"] * 8 + ["few"] * 2, clusters=list(range(10)), strata=["a"] * 10
    )
    assert estimate.value == 0.5


def test_slices_of_one_patient_are_drawn_together() -> None:
    """Forty slices of four patients are worth four measurements, not forty."""
    patients = np.repeat([0.2, 0.4, 0.6, 0.8], 10).tolist()
    shared = {"groups": [0] * 40, "strata": ["a"] * 40}
    together = Bootstrap().macro_mean(patients, clusters=np.repeat(range(4), 10).tolist(), **shared)
    apart = Bootstrap().macro_mean(patients, clusters=list(range(40)), **shared)
    assert together.interval is not None and apart.interval is not None
    assert (together.value, apart.value) == pytest.approx((0.5, 0.5))
    width = together.interval[1] - together.interval[0]
    assert width > 2.5 * (apart.interval[1] - apart.interval[0])


def test_strata_keep_their_size() -> None:
    """Two data sets without spread inside: nothing of the difference between them enters the interval."""
    estimate = Bootstrap().macro_mean(
        [0.0] * 5 + [1.0] * 5, groups=[None] * 10, clusters=list(range(10)), strata=["a"] * 5 + ["b"] * 5
    )
    assert estimate.interval == pytest.approx((0.5, 0.5))


def test_the_same_seed_gives_the_same_interval_and_another_seed_another() -> None:
    values = np.random.default_rng(2).random(50).tolist()
    shared = {"groups": [0] * 50, "clusters": list(range(50)), "strata": ["a"] * 50}
    assert Bootstrap(seed=3).macro_mean(values, **shared) == Bootstrap(seed=3).macro_mean(values, **shared)
    assert Bootstrap(seed=3).macro_mean(values, **shared) != Bootstrap(seed=4).macro_mean(values, **shared)


def test_what_cannot_be_known_is_none() -> None:
    assert Bootstrap().macro_mean([], groups=[], clusters=[], strata=[]).to_json() == {
        "value": None,
        "interval": None,
        "count": 0,
    }
    one = Bootstrap().macro_mean([0.4, 0.6], groups=[0, 0], clusters=["p", "p"], strata=["a", "a"])
    assert one.value == 0.5 and one.interval is None and one.count == 2


def test_a_rare_group_that_a_draw_misses_does_not_spoil_the_mean() -> None:
    values = [1.0] + [0.5] * 9
    estimate = Bootstrap(replicates=200).macro_mean(
        values, groups=["rare"] + ["common"] * 9, clusters=list(range(10)), strata=["a"] * 10
    )
    assert estimate.value == 0.75
    assert estimate.interval == pytest.approx((0.5, 0.75))


def test_confused_input_is_refused() -> None:
    with pytest.raises(MedSightError, match="two strata"):
        Bootstrap().macro_mean([0.0, 1.0, 1.0], groups=[0, 0, 0], clusters=["p", "p", "q"], strata=["a", "b", "a"])
    with pytest.raises(MedSightError, match="differ in length"):
        Bootstrap().macro_mean([0.0], groups=[], clusters=[], strata=[])

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from medsight_core.errors import MedSightError
from training.evaluation.metrics import diagnosis_recall, dice, interior_point, words

masks = arrays(np.bool_, st.tuples(st.integers(1, 9), st.integers(1, 9)))


def test_dice_of_known_masks() -> None:
    truth = np.zeros((4, 4), dtype=bool)
    truth[:2] = True
    shifted = np.roll(truth, 1, axis=0)
    assert dice(truth, truth) == 1.0
    assert dice(shifted, truth) == 0.5
    assert dice(~truth, truth) == 0.0
    assert dice(np.zeros_like(truth), truth) == 0.0
    assert dice(np.zeros_like(truth), np.zeros_like(truth)) == 1.0


def test_masks_of_two_grids_are_refused() -> None:
    with pytest.raises(MedSightError, match=r"\(2, 2\), \(2, 3\)"):
        dice(np.ones((2, 2), dtype=bool), np.ones((2, 3), dtype=bool))


@given(st.integers(1, 9).flatmap(lambda n: st.tuples(arrays(np.bool_, (n, n + 1)), arrays(np.bool_, (n, n + 1)))))
def test_dice_is_symmetric_and_bounded(pair: tuple[np.ndarray, np.ndarray]) -> None:
    one, other = pair
    assert dice(one, other) == dice(other, one)
    assert 0.0 <= dice(one, other) <= 1.0
    assert (dice(one, other) == 1.0) == np.array_equal(one, other)


@settings(deadline=None)
@given(masks.filter(np.any))
def test_the_interior_point_is_the_first_of_the_farthest_from_all_outside(mask: np.ndarray) -> None:
    outside = np.argwhere(~np.pad(mask, 1)) - 1
    best, expected = -1, None
    for row, column in np.argwhere(mask):
        distance = ((outside - (row, column)) ** 2).sum(axis=1).min()
        if distance > best:
            best, expected = distance, (row, column)
    assert interior_point(mask) == expected


def test_the_interior_point_of_a_full_image_is_its_middle() -> None:
    assert interior_point(np.ones((5, 7), dtype=bool)) == (2, 2)
    with pytest.raises(MedSightError):
        interior_point(np.zeros((3, 3), dtype=bool))


@pytest.mark.parametrize(
    ("diagnosis", "answer", "recall"),
    [
        ("tuberculosis", "The X-ray shows Tuberculosis.", 1.0),
        ("tuberculosis", "The lungs are clear.", 0.0),
        ("lower-grade glioma", "A lower grade glioma lies in the frontal lobe.", 1.0),
        ("lower-grade glioma", "A glioma, a glioma, a glioma.", 1 / 3),
        ("common nevus", "This is an atypical nevus.", 0.5),
        ("kidney tumor", "Kidney tumours on the left.", 1.0),
        ("normal", "The picture is abnormal.", 0.0),
        ("COVID-19, ARDS", "covid 19", 2 / 3),
    ],
)
def test_diagnosis_recall_counts_words_once(diagnosis: str, answer: str, recall: float) -> None:
    assert diagnosis_recall(diagnosis, answer) == pytest.approx(recall)


@given(st.text(max_size=40), st.integers(1, 4))
def test_repeating_an_answer_does_not_change_its_words(answer: str, times: int) -> None:
    assert words(" ".join([answer] * times)) == words(answer)


def test_a_diagnosis_without_words_is_refused() -> None:
    with pytest.raises(MedSightError, match="at least one word"):
        diagnosis_recall("?", "answer")

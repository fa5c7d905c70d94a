"""Questions, prompts, regions and answers check themselves and tell what they measure."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from medsight_core.errors import InputError, MedSightError
from medsight_core.geometry import Frame
from medsight_core.imaging.volume import Source, Volume
from medsight_core.regions import Answer, Prompt, Provenance, Question, Region, Span


def frame(rows: int, columns: int, *, physical: bool = True, spacing: tuple[float, float] = (0.5, 2.0)) -> Frame:
    return Frame(
        shape=(1, rows, columns),
        origin=np.zeros(3),
        spacing=np.array([3.0, *spacing]),
        direction=np.eye(3),
        physical=physical,
    )


def region(mask: np.ndarray, *, physical: bool = True, score: float = 0.9, span: Span | None = None) -> Region:
    return Region(
        code="[C2_16]",
        label="liver",
        span=span or Span(0, 5),
        score=score,
        slice_index=0,
        mask=mask,
        frame=frame(*mask.shape, physical=physical),
    )


@given(hnp.arrays(bool, hnp.array_shapes(min_dims=2, max_dims=2, max_side=12)))
def test_area_and_box_are_those_of_the_mask(mask: np.ndarray) -> None:
    found = region(mask)
    assert found.area_pixels == mask.sum()
    assert found.area_mm2 == pytest.approx(mask.sum() * 0.5 * 2.0)
    if not mask.any():
        assert found.box is None
        return
    assert found.box is not None
    left, top, right, bottom = found.box
    inside = np.zeros_like(mask)
    inside[top : bottom + 1, left : right + 1] = True
    assert not (mask & ~inside).any()
    for edge in (mask[top], mask[bottom], mask[:, left], mask[:, right]):
        assert edge.any()


def test_without_spacing_there_is_no_area_in_mm2() -> None:
    found = region(np.ones((3, 4), bool), physical=False)
    assert found.area_mm2 is None
    assert found.area_text == "12 pixels"
    assert region(np.ones((30, 40), bool)).area_text == "1,200 mm²"
    assert region(np.ones((3, 4), bool)).area_text == "12.0 mm²"


@pytest.mark.parametrize(
    ("score", "word"),
    [(1.0, "certain"), (0.8, "certain"), (0.79, "likely"), (0.5, "likely"), (0.49, "uncertain"), (0.0, "uncertain")],
)
def test_a_score_has_a_word(score: float, word: str) -> None:
    assert region(np.ones((1, 1), bool), score=score).certainty == word


@pytest.mark.parametrize("score", [-0.01, 1.01, float("nan"), float("inf")])
def test_a_score_lies_between_0_and_1(score: float) -> None:
    with pytest.raises(MedSightError, match="between 0 and 1"):
        region(np.ones((1, 1), bool), score=score)


def test_a_mask_must_fit_its_slice() -> None:
    with pytest.raises(MedSightError, match=r"\(2, 3\)"):
        dataclasses.replace(region(np.ones((4, 4), bool)), mask=np.ones((2, 3), bool))


def test_a_mask_cannot_be_changed_afterwards_and_the_given_array_can() -> None:
    mask = np.ones((2, 2), bool)
    found = region(mask)
    with pytest.raises(ValueError, match="read-only"):
        found.mask[0, 0] = False
    mask[0, 0] = False


@pytest.mark.parametrize(
    ("kind", "count", "legal"),
    [
        ("point", 1, True),
        ("point", 2, False),
        ("box", 2, True),
        ("box", 1, False),
        ("scribble", 5, True),
        ("scribble", 1, False),
        ("mask", 0, False),
    ],
)
def test_a_prompt_has_the_points_of_its_kind(kind: str, count: int, legal: bool) -> None:
    if legal:
        assert len(Prompt(kind=kind, points=np.zeros((count, 3))).points) == count  # type: ignore[arg-type]
        return
    with pytest.raises(InputError):
        Prompt(kind=kind, points=np.zeros((count, 3)))  # type: ignore[arg-type]


def test_a_prompt_is_finite_and_a_mask_prompt_is_a_mask() -> None:
    with pytest.raises(InputError, match="finite"):
        Prompt(kind="point", points=np.array([[0, np.nan, 0]]))
    with pytest.raises(InputError, match="non-empty"):
        Prompt(kind="mask", mask=np.zeros((3, 3), bool))
    with pytest.raises(InputError, match="kind mask"):
        Prompt(kind="point", points=np.zeros((1, 3)), mask=np.ones((3, 3), bool))
    assert Prompt(kind="mask", mask=np.ones((3, 3), bool)).points.shape == (0, 3)


def volume(slices: int) -> Volume:
    whole = Frame.of_pixels((slices, 4, 4))
    return Volume(
        array=np.zeros((slices, 4, 4), np.float32),
        frame=whole,
        slice_frames=tuple(whole.slice(k) for k in range(slices)),
        modality="CT",
        source=Source(kind="image", paths=()),
    )


@pytest.mark.parametrize(("slices", "k", "words"), [(5, 5, "0 to 4"), (5, -1, "0 to 4"), (1, 1, "only slice is 0")])
def test_a_slice_out_of_range_names_the_legal_ones(slices: int, k: int, words: str) -> None:
    with pytest.raises(InputError, match=words) as caught:
        Question(text="What is this?", volume=volume(slices), slice_index=k)
    assert caught.value.code == "slice_out_of_range"


@pytest.mark.parametrize("text", ["", "  ", "\n\t"])
def test_an_empty_question_is_refused(text: str) -> None:
    with pytest.raises(InputError) as caught:
        Question(text=text, volume=volume(1), slice_index=0)
    assert caught.value.code == "empty_question"


@given(st.integers(-3, 3), st.integers(-3, 3))
def test_a_span_is_ordered(start: int, end: int) -> None:
    if 0 <= start <= end:
        assert Span(start, end).of("abcd") == "abcd"[start:end]
    else:
        with pytest.raises(MedSightError):
            Span(start, end)


def test_an_answer_is_json_and_its_spans_lie_in_its_text() -> None:
    made = Answer(
        text="liver é",
        raw="<p>liver</p>[C2_16] é",
        regions=(region(np.eye(3, dtype=bool)),),
        warnings=("mind",),
        provenance=Provenance(model="mini", digest="ab", settings={"device": "cpu"}, timings={"decode": 0.123456}),
    )
    content = json.loads(json.dumps(made.to_json(), allow_nan=False))
    assert content["regions"] == [
        {
            "code": "[C2_16]",
            "label": "liver",
            "span": [0, 5],
            "score": 0.9,
            "certainty": "certain",
            "slice": 0,
            "area_mm2": 3.0,
            "area_pixels": 3,
            "box": [0, 0, 2, 2],
        }
    ]
    assert (content["model"], content["digest"], content["timings"]) == ("mini", "ab", {"decode": 0.1235})
    with pytest.raises(MedSightError, match="text of 7"):
        dataclasses.replace(made, regions=(region(np.ones((2, 2), bool), span=Span(3, 8)),))

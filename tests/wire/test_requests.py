"""Questions and what is to be segmented cross the wire whole, and a request that is not ours is refused by name."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medsight_core.backend import SegmentRequest, Stroke, Whole
from medsight_core.errors import InputError, MedSightError
from medsight_core.regions import Prompt, Question
from medsight_core.wire.requests import (
    question_from_json,
    question_to_json,
    segment_from_json,
    segment_to_json,
    volume_named,
)
from tests.wire.scans import scan

DIGEST = "0123456789abcdef" * 4
SCAN = scan()
MASK = np.arange(48).reshape(8, 6) % 5 == 0

coordinates = st.floats(-1e6, 1e6, allow_nan=False)
points = st.tuples(coordinates, coordinates, coordinates)
prompts = st.one_of(
    st.builds(lambda p, sign: Prompt(kind="point", points=np.array([p]), positive=sign), points, st.booleans()),
    st.builds(lambda a, b: Prompt(kind="box", points=np.array([a, b])), points, points),
    st.builds(
        lambda many, sign: Prompt(kind="scribble", points=np.array(many), positive=sign),
        st.lists(points, min_size=2, max_size=9),
        st.booleans(),
    ),
    st.just(Prompt(kind="mask", mask=MASK)),
)
ranges = st.none() | st.builds(range, st.integers(0, 9), st.integers(0, 9))
wholes = st.builds(
    Whole,
    plane=st.sampled_from(("acquired", "axial", "coronal", "sagittal")),
    slices=ranges,
    exact=st.booleans(),
    shown=st.none() | st.integers(0, 9),
)


def over_the_wire(value: Any) -> Any:
    return json.loads(json.dumps(value, allow_nan=False))


def same(one: Prompt, other: Prompt) -> bool:
    masks = one.mask is None or (other.mask is not None and (one.mask == other.mask).all())
    return (
        (one.kind, one.positive, one.mask is None) == (other.kind, other.positive, other.mask is None)
        and one.points.tobytes() == other.points.tobytes()
        and bool(masks)
    )


@settings(deadline=None)
@given(st.integers(0, 2), st.lists(prompts, max_size=4), st.text(min_size=1).filter(str.strip))
def test_a_question_comes_back(k: int, drawn: list[Prompt], text: str) -> None:
    text = text.encode("utf-8", "replace").decode()
    asked = Question(text=text, volume=SCAN, slice_index=k, prompts=tuple(drawn), history=(("a", "b"),))
    sent = over_the_wire(question_to_json(asked, digest=DIGEST))
    assert volume_named(sent) == DIGEST
    got, whole = question_from_json(sent, SCAN, text=text, history=asked.history)
    assert whole is None
    assert (got.text, got.slice_index, got.history, got.volume) == (text, k, asked.history, SCAN)
    assert len(got.prompts) == len(drawn) and all(map(same, got.prompts, drawn))


@settings(deadline=None)
@given(wholes)
def test_how_a_volume_is_asked_about_comes_back(whole: Whole) -> None:
    asked = Question(text="What is there?", volume=SCAN, slice_index=1)
    got, back = question_from_json(over_the_wire(question_to_json(asked, whole, digest=DIGEST)), SCAN, text=asked.text)
    assert back == whole and got.slice_index == 1


@settings(deadline=None)
@given(
    st.lists(st.builds(lambda k, p: Stroke(slice_index=k, prompt=p), st.integers(0, 2), prompts), max_size=4), ranges
)
def test_what_is_to_be_segmented_comes_back(strokes: list[Stroke], slices: range | None) -> None:
    asked = SegmentRequest(
        volume=SCAN, slice_index=2, strokes=tuple(strokes), text="left kidney", whole=slices is not None, slices=slices
    )
    got = segment_from_json(over_the_wire(segment_to_json(asked, digest=DIGEST)), SCAN)
    assert (got.slice_index, got.text, got.whole, got.slices) == (2, "left kidney", asked.whole, slices)
    assert [stroke.slice_index for stroke in got.strokes] == [stroke.slice_index for stroke in strokes]
    assert all(same(a.prompt, b.prompt) for a, b in zip(got.strokes, strokes, strict=True))


def test_what_is_left_out_has_a_plain_meaning() -> None:
    question, whole = question_from_json({}, SCAN, text="What is this?")
    assert (question.slice_index, question.prompts, whole) == (SCAN.middle, (), None)
    assert volume_named({}) is None


QUESTION = question_to_json(Question(text="?", volume=SCAN, slice_index=1), digest=DIGEST)
POINT = {"kind": "point", "points": [[1.0, 2.0, 3.0]]}
STROKE = POINT | {"slice": 1}


@pytest.mark.parametrize(
    "wrong",
    [
        {"slices": 3},
        {"slice": "1"},
        {"slice": 1.0},
        {"slice": True},
        {"slice": -1},
        {"slice": 3},
        {"slice": 10**30},
        {"modality": "CT"},
        {"prompts": {}},
        {"prompts": [[]]},
        {"prompts": [{}]},
        {"prompts": [{"kind": "circle"}]},
        {"prompts": [{"kind": ["point"]}]},
        {"prompts": [POINT | {"slice": 1}]},
        {"prompts": [POINT | {"points": [[1.0, 2.0]]}]},
        {"prompts": [POINT | {"points": [[1.0, 2.0, float("nan")]]}]},
        {"prompts": [POINT | {"points": [[1.0, 2.0, float("inf")]]}]},
        {"prompts": [POINT | {"points": [[1.0, 2.0, 10**400]]}]},
        {"prompts": [POINT | {"points": [[1.0, 2.0, "3"]]}]},
        {"prompts": [POINT | {"points": [1.0, 2.0, 3.0]}]},
        {"prompts": [POINT | {"positive": 1}]},
        {"prompts": [POINT] * 300},
        {"prompts": [{"kind": "scribble", "points": [[0, 0, 0]] * 20_000}]},
        {"prompts": [{"kind": "mask"}]},
        {"prompts": [{"kind": "mask", "mask": {"shape": [9, 9], "box": [[0, 0], [0, 0]], "data": ""}}]},
        {"whole": True},
        {"whole": {"plane": "diagonal"}},
        {"whole": {"slices": [1]}},
        {"whole": {"slices": [1, 2, 3]}},
        {"whole": {"slices": ["a", "b"]}},
        {"whole": {"exact": "yes"}},
        {"whole": {"shown": -1}},
        {"whole": {}, "prompts": [POINT]},
    ],
)
def test_a_question_that_is_not_ours_is_refused(wrong: dict) -> None:
    with pytest.raises(InputError):
        question_from_json(QUESTION | wrong, SCAN, text="What is this?")


@pytest.mark.parametrize(
    "wrong",
    [
        {"volume": 1, "strokes": [STROKE], "undo": True},
        {"strokes": [STROKE]},
        {"volume": DIGEST},
        {"volume": DIGEST, "text": 5},
        {"volume": DIGEST, "text": "x" * 200_000},
        {"volume": DIGEST, "text": "\ud800"},
        {"volume": DIGEST, "text": "liver", "whole": 1},
        {"volume": DIGEST, "strokes": [POINT]},
        {"volume": DIGEST, "strokes": [STROKE | {"slice": 7}]},
        {"volume": DIGEST, "strokes": [STROKE | {"name": "x"}]},
    ],
)
def test_a_request_to_segment_that_is_not_ours_is_refused(wrong: dict) -> None:
    with pytest.raises(InputError):
        segment_from_json(wrong, SCAN)


@pytest.mark.parametrize("name", [5, "", "abc", DIGEST.upper(), DIGEST + "0", "../" + DIGEST[3:], [DIGEST]])
def test_a_volume_is_named_by_its_digest_only(name: object) -> None:
    with pytest.raises(InputError, match="digest"):
        volume_named({"volume": name})


def test_masks_of_a_few_bytes_do_not_take_the_memory_of_many() -> None:
    large = scan((1, 4000, 4000))
    mask = {"kind": "mask", "mask": {"shape": [4000, 4000], "box": [[0, 0], [0, 0]], "data": ""}}
    with pytest.raises(InputError) as caught:
        question_from_json({"prompts": [mask] * 200}, large, text="What is this?")
    assert caught.value.code == "too_large"


def test_errors_do_not_repeat_what_was_sent() -> None:
    with pytest.raises(InputError) as caught:
        question_from_json({"Doe^Jane": 1, "slice": 1}, SCAN, text="What is this?")
    assert "Doe" not in str(caught.value)
    with pytest.raises(InputError) as caught:
        question_from_json({"slice": "Doe^Jane"}, SCAN, text="What is this?")
    assert "Doe" not in str(caught.value)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
    max_leaves=12,
)
known_fields = st.sampled_from(("volume", "slice", "prompts", "strokes", "whole", "text", "slices", "kind", "mask"))


@settings(max_examples=300, deadline=None)
@given(json_values | st.dictionaries(known_fields, json_values | st.just([POINT]) | st.just([STROKE]), max_size=5))
def test_whatever_comes_the_error_has_a_name(value: object) -> None:
    for read in (
        volume_named,
        lambda given: question_from_json(given, SCAN, text="What is this?"),
        lambda given: segment_from_json(given, SCAN),
    ):
        try:
            read(value)
        except MedSightError as error:
            assert error.code and error.sentence

"""A stream of events comes back as it was, each mask once."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from medsight_core.errors import MedSightError
from medsight_core.events import Done, Event, Failed, Progress, RegionFound, TextDelta, Warning
from medsight_core.regions import Answer, Provenance, Region, Span, VolumeRegion
from medsight_core.wire.events import INLINE_BYTES, EventReader, EventWriter
from medsight_core.wire.masks import PackedMask
from tests.wire.scans import scan

SCAN = scan()
texts = st.text(st.characters(exclude_categories=("Cs",)), max_size=20)
scores = st.floats(0, 1)


@st.composite
def regions(draw: st.DrawFn) -> Region | VolumeRegion:
    facts: dict[str, Any] = {
        "code": draw(st.sampled_from(("[C0_1]", "[C2_16]"))),
        "label": draw(texts),
        "span": Span(0, draw(st.integers(0, 5))),
        "score": draw(scores),
    }
    if draw(st.booleans()):
        k = draw(st.integers(0, 2))
        mask = draw(arrays.arrays(bool, (8, 6)))
        return Region(**facts, slice_index=k, mask=mask, frame=SCAN.slice_frame(k))
    keys = tuple(draw(st.lists(st.integers(0, 2), max_size=3)))
    return VolumeRegion(**facts, mask=draw(arrays.arrays(bool, (3, 8, 6))), frame=SCAN.require_frame(), key_slices=keys)


def answer_of(found: Iterable[Region | VolumeRegion], **changes: Any) -> Answer:
    found = list(found)
    return Answer(
        **{
            "text": "liver and more",
            "raw": "liver[C0_1] and more",
            "regions": tuple(one for one in found if isinstance(one, Region)),
            "volume_regions": tuple(one for one in found if isinstance(one, VolumeRegion)),
            "warnings": ("Mind the gap.",),
            "provenance": Provenance(
                model="m", digest="d", settings={"limit": 3, "a": [1.5, None]}, timings={"decode": 0.1 + 0.2}
            ),
        }
        | changes
    )


def over_the_wire(stream: Iterable[Event], **options: Any) -> list[Event]:
    writer, reader = EventWriter(SCAN, **options), EventReader(SCAN)
    return [reader.from_json(json.loads(json.dumps(writer.to_json(event), allow_nan=False))) for event in stream]


def assert_same_region(one: Region | VolumeRegion, other: Region | VolumeRegion) -> None:
    assert type(one) is type(other)
    assert (one.code, one.label, one.span, one.score) == (other.code, other.label, other.span, other.score)
    assert one.mask.tobytes() == other.mask.tobytes() and one.mask.shape == other.mask.shape
    assert one.frame.shape == other.frame.shape and (one.frame.affine == other.frame.affine).all()
    if isinstance(one, Region):
        assert one.slice_index == other.slice_index
    else:
        assert one.key_slices == other.key_slices


def assert_same_answer(one: Answer, other: Answer) -> None:
    assert (one.text, one.raw, one.warnings, one.provenance) == (
        other.text,
        other.raw,
        other.warnings,
        other.provenance,
    )
    for mine, yours in ((one.regions, other.regions), (one.volume_regions, other.volume_regions)):
        assert len(mine) == len(yours)
        for a, b in zip(mine, yours, strict=True):
            assert_same_region(a, b)


@settings(deadline=None)
@given(
    st.lists(
        st.builds(TextDelta, texts)
        | st.builds(Progress, st.integers(0, 99), st.integers(0, 99), texts)
        | st.builds(Warning, texts)
        | st.builds(Failed, texts, texts, texts)
    )
)
def test_plain_events_come_back(stream: list[Event]) -> None:
    assert over_the_wire(stream) == stream


@settings(deadline=None)
@given(st.lists(regions(), max_size=4), st.data())
def test_regions_and_their_answer_come_back_bit_for_bit(found: list[Any], data: st.DataObject) -> None:
    told = data.draw(st.lists(st.sampled_from(found), unique_by=id)) if found else []
    *announced, done = over_the_wire([*map(RegionFound, told), Done(answer_of(found))])
    for sent, got in zip(told, announced, strict=True):
        assert_same_region(sent, got.region)
    assert_same_answer(answer_of(found), done.answer)


def block(label: str = "liver", k: int = 1) -> Region:
    mask = np.zeros((8, 6), bool)
    mask[2:5, 1:4] = True
    return Region(
        code="[C0_1]", label=label, span=Span(0, 5), score=0.75, slice_index=k, mask=mask, frame=SCAN.slice_frame(k)
    )


def test_a_mask_crosses_once() -> None:
    found = block()
    writer = EventWriter(SCAN)
    announced = writer.to_json(RegionFound(found))
    again = replace(found, span=Span(0, 3))  # as an answer says it: the same mask, other words
    done = writer.to_json(Done(answer_of([again])))
    assert "data" in announced["region"]["mask"]
    assert done["answer"]["regions"][0]["mask"] == {"of": 0}
    assert done["answer"]["regions"][0]["span"] == [0, 3]


def test_a_mask_of_another_slice_is_another_mask() -> None:
    found = block()
    moved = replace(found, slice_index=2, frame=SCAN.slice_frame(2))
    *_, done = over_the_wire([RegionFound(found), Done(answer_of([found, moved]))])
    assert [region.slice_index for region in done.answer.regions] == [1, 2]


def test_a_region_may_be_announced_twice() -> None:
    found = block()
    first, second, _ = over_the_wire([RegionFound(found), RegionFound(found), Done(answer_of([found]))])
    assert_same_region(first.region, second.region)


def test_large_masks_are_left_to_be_fetched() -> None:
    kept: dict[str, PackedMask] = {}

    def put(region: Region | VolumeRegion, packed: PackedMask) -> str:
        return kept.setdefault(f"/v1/masks/{len(kept)}", packed) and f"/v1/masks/{len(kept) - 1}"

    large = scan((1, 1500, 1500))
    noise = np.random.default_rng(0).random((1500, 1500)) < 0.5
    small = np.zeros((1500, 1500), bool)
    small[7, 9] = True
    found = [
        Region(code="[C0_1]", label="x", span=Span(0, 1), score=1.0, slice_index=0, mask=m, frame=large.slice_frame(0))
        for m in (noise, small)
    ]
    writer = EventWriter(large, put_mask=put)
    sent = [json.loads(json.dumps(writer.to_json(RegionFound(one)))) for one in found]
    assert len(kept["/v1/masks/0"].data) > INLINE_BYTES
    assert set(sent[0]["region"]["mask"]) == {"id", "url"}
    assert set(sent[1]["region"]["mask"]) == {"id", "url", "shape", "box", "data"}
    reader = EventReader(large, get_mask=kept.__getitem__)
    for event, region in zip(sent, found, strict=True):
        assert (reader.from_json(event).region.mask == region.mask).all()
    with pytest.raises(MedSightError) as caught:
        EventReader(large).from_json(sent[0])
    assert caught.value.code == "bad_reply"


def test_what_fetching_a_mask_fails_with_is_not_renamed() -> None:
    def fetch(url: str) -> PackedMask:
        raise MedSightError("mask_unknown", "It is gone.")

    event = EventWriter(SCAN).to_json(RegionFound(block()))
    event["region"]["mask"] = {"id": 0, "url": "/v1/masks/x"}
    with pytest.raises(MedSightError) as caught:
        EventReader(SCAN, get_mask=fetch).from_json(event)
    assert caught.value.code == "mask_unknown"


def test_a_region_of_another_scan_is_not_sent() -> None:
    other = scan(frame=None, problem=MedSightError("cine", "It is a film."))
    with pytest.raises(MedSightError) as caught:
        EventWriter(other).to_json(RegionFound(next(r for r in [whole_block()])))
    assert caught.value.code == "bad_region"
    shifted = replace(block(), frame=SCAN.slice_frame(2))
    with pytest.raises(MedSightError):
        EventWriter(SCAN).to_json(RegionFound(shifted))


def whole_block() -> VolumeRegion:
    return VolumeRegion(
        code="[C0_1]",
        label="liver",
        span=Span(0, 5),
        score=0.5,
        mask=np.ones((3, 8, 6), bool),
        frame=SCAN.require_frame(),
    )


def test_a_whole_answer_carries_its_masks() -> None:
    answer = answer_of([block(), whole_block()])
    sent = json.loads(json.dumps(EventWriter(SCAN).answer_to_json(answer)))
    assert_same_answer(answer, EventReader(SCAN).answer_from_json(sent))


REGION = EventWriter(SCAN).to_json(RegionFound(block()))
DONE = EventWriter(SCAN).to_json(Done(answer_of([block()])))


def changed(event: dict, path: str, value: object) -> dict:
    event = json.loads(json.dumps(event))
    *folders, name = path.split(".")
    inner: Any = event
    for folder in folders:
        inner = inner[int(folder) if folder.isdecimal() else folder]
    inner[name] = value
    return event


@pytest.mark.parametrize(
    "event",
    [
        [],
        {},
        {"type": "thought"},
        {"type": 5},
        {"type": "text_delta"},
        {"type": "progress", "done": -1, "total": 2, "what": ""},
        {"type": "failed", "code": "x"},
        {"type": "region_found"},
        {"type": "done", "answer": None},
        changed(REGION, "region.slice", 7),
        changed(REGION, "region.score", 1.5),
        changed(REGION, "region.score", float("nan")),
        changed(REGION, "region.span", [3]),
        changed(REGION, "region.span", [3, 1]),
        changed(REGION, "region.mask.id", 1),
        changed(REGION, "region.mask", {"of": 0}),
        changed(REGION, "region.mask", {}),
        changed(REGION, "region.mask.shape", [6, 8]),
        changed(REGION, "region.mask.data", "AAAA"),
        changed(DONE, "answer.text", "x"),
        changed(DONE, "answer.provenance", {}),
        changed(DONE, "answer.provenance.timings", {"a": "b"}),
        changed(DONE, "answer.regions.0.mask", {"of": 5}),
        changed(DONE, "answer.warnings", "none"),
    ],
)
def test_what_no_server_of_ours_sends_is_named(event: object) -> None:
    with pytest.raises(MedSightError) as caught:
        EventReader(SCAN).from_json(event)
    assert caught.value.code == "bad_reply"


def test_facts_of_a_later_server_are_passed_over() -> None:
    event = changed(REGION, "region.colour", "#ff0000")
    assert_same_region(EventReader(SCAN).from_json(event).region, block())


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_damage_is_a_named_error(data: st.DataObject) -> None:
    text = json.dumps(data.draw(st.sampled_from((REGION, DONE))))
    where = data.draw(st.integers(0, len(text) - 1))
    with_damage = text[:where] + data.draw(st.sampled_from('0123456789-e.,"[]{}nax')) + text[where + 1 :]
    try:
        event = json.loads(with_damage)
    except ValueError:
        return
    try:
        EventReader(SCAN).from_json(event)
    except MedSightError as error:
        assert error.code == "bad_reply"

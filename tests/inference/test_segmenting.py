"""Requests that hold all strokes: further ones cost a pass each, and the result is that of a session from nothing."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from medsight_core.backend import SegmentRequest, Stroke
from medsight_core.errors import InputError, MedSightError
from medsight_core.events import Done, Event, Failed, Progress, RegionFound, TextDelta, fold
from medsight_core.imaging.volume import Volume
from medsight_core.inference.engine import Engine
from medsight_core.inference.local import LocalBackend
from medsight_core.inference.segmenting import Segmenter
from medsight_core.inference.session import Session
from medsight_core.inference.volumes import VolumeEngine
from medsight_core.regions import Answer, Prompt, Region, VolumeRegion
from tests.inference.tiny import save_tiny, stack

SLICES = 7


@pytest.fixture
def engine(checkpoint: Path) -> Engine:
    """One that draws what is pointed at, whatever it takes it for."""
    engine = Engine.from_pretrained(checkpoint, device="cpu")
    with torch.no_grad():
        engine.model.model.perceiver.segmentation_cls_head.class_embed.bias[-1] = -20.0
    return engine


@pytest.fixture
def volume() -> Volume:
    rng = np.random.default_rng(0)
    return stack(np.cumsum(rng.normal(size=(SLICES, 40, 48)), axis=0).astype(np.float32))


def point(volume: Volume, row: float, column: float, k: int = 3, *, positive: bool = True) -> Stroke:
    points = volume.slice_frame(k).to_lps([[0, row, column]])
    return Stroke(slice_index=k, prompt=Prompt(kind="point", points=points, positive=positive))


def box(volume: Volume, k: int = 3) -> Stroke:
    points = volume.slice_frame(k).to_lps([[0, 5, 6], [0, 30, 40]])
    return Stroke(slice_index=k, prompt=Prompt(kind="box", points=points))


def request(volume: Volume, *strokes: Stroke, **options: object) -> SegmentRequest:
    return SegmentRequest(volume=volume, slice_index=3, strokes=strokes, **options)  # type: ignore[arg-type]


def segmenter(engine: Engine, **options: int) -> Segmenter:
    return Segmenter(VolumeEngine(engine), **options)


def run(segmenter: Segmenter, asked: SegmentRequest) -> Answer:
    return fold(event for event in segmenter.steps(asked) if event is not None)


def regions(answer: Answer) -> tuple[Region | VolumeRegion, ...]:
    return (*answer.regions, *answer.volume_regions)


def same(one: Answer, two: Answer) -> bool:
    return (one.text, one.raw, one.warnings) == (two.text, two.raw, two.warnings) and all(
        (a.code, a.label, a.span, a.score) == (b.code, b.label, b.span, b.score) and np.array_equal(a.mask, b.mask)
        for a, b in zip(regions(one), regions(two), strict=True)
    )


def passes(engine: Engine) -> list[str]:
    seen: list[str] = []
    for name in ("vision", "perceiver"):
        getattr(engine.model.model, name).register_forward_hook(lambda *_, name=name: seen.append(name))
    return seen


def test_a_further_stroke_costs_one_pass_and_gives_what_a_session_from_nothing_gives(
    engine: Engine, volume: Volume
) -> None:
    strokes = [point(volume, 20, 24), point(volume, 10, 12, positive=False), box(volume, 5), point(volume, 30, 30)]
    remembering, seen = segmenter(engine), passes(engine)
    for count in range(1, len(strokes) + 1):
        seen.clear()
        asked = request(volume, *strokes[:count])
        answer = run(remembering, asked)
        assert seen.count("perceiver") == 1
        assert seen.count("vision") == (1 if count in (1, 3) else 0), "a slice is encoded once"
        assert regions(answer) and same(answer, run(segmenter(engine), asked))


def test_strokes_are_known_by_what_was_drawn(engine: Engine, volume: Volume) -> None:
    """What comes over a network is another object every time."""
    remembering = segmenter(engine)
    run(remembering, request(volume, point(volume, 20, 24)))
    seen = passes(engine)
    run(remembering, request(volume, point(volume, 20, 24), point(volume, 25, 30)))
    assert seen == ["perceiver"]
    run(remembering, request(volume, point(volume, 20, 24.5), point(volume, 25, 30)))
    assert seen == ["perceiver"] * 3, "another place is another stroke"


def test_a_stroke_less_costs_nothing(engine: Engine, volume: Volume) -> None:
    strokes = [point(volume, 20, 24), point(volume, 25, 30), point(volume, 12, 12)]
    remembering = segmenter(engine)
    alone = [run(segmenter(engine), request(volume, *strokes[:count])) for count in (1, 2, 3)]
    run(remembering, request(volume, *strokes))
    seen = passes(engine)
    for count in (3, 2, 1):
        assert same(run(remembering, request(volume, *strokes[:count])), alone[count - 1])
    assert seen == []


def test_following_leaves_no_trace_in_what_comes_after(engine: Engine, volume: Volume) -> None:
    """A stroke on a slice that the region was followed to finds nothing there: it is the first one on that slice."""
    first, later = box(volume), point(volume, 20, 24, 5)
    remembering = segmenter(engine)
    run(remembering, request(volume, first, whole=True))
    asked = request(volume, first, later, whole=True)
    assert same(run(remembering, asked), run(segmenter(engine), asked))
    asked = request(volume, first)
    assert same(run(remembering, asked), run(segmenter(engine), asked))


def test_what_was_followed_before_is_not_followed_again(engine: Engine, volume: Volume) -> None:
    remembering, seen = segmenter(engine), passes(engine)
    answer = run(remembering, request(volume, box(volume), whole=True))
    assert seen.count("perceiver") > 1, "it was followed"
    seen.clear()
    assert same(run(remembering, request(volume, box(volume), whole=True)), answer) and seen == []


def test_two_at_once_do_not_share_a_session(engine: Engine, volume: Volume) -> None:
    first, one, two = point(volume, 20, 24), point(volume, 28, 30), point(volume, 10, 14)
    remembering = segmenter(engine)
    run(remembering, request(volume, first))
    streams = [remembering.steps(request(volume, first, other, whole=True)) for other in (one, two)]
    ends: dict[int, Answer] = {}
    while len(ends) < 2:
        for n, stream in enumerate(streams):
            event = next(stream, None)
            if isinstance(event, Done):
                ends[n] = event.answer
    for n, other in enumerate((one, two)):
        assert same(ends[n], run(segmenter(engine), request(volume, first, other, whole=True)))


def test_memory_is_bounded(engine: Engine, volume: Volume) -> None:
    small = segmenter(engine, budget=1)
    for row in (10, 20, 30):
        run(small, request(volume, point(volume, row, 20)))
    assert len(small._sessions) == 1
    many = segmenter(engine)
    for n in range(40):
        run(many, request(volume, point(volume, n, 20)))
    assert len(many._sessions) == 32
    kept = sum(session.bytes for _, session in many._sessions)
    assert 0 < kept <= 32 * 40 * 48
    other = stack(np.zeros((3, 40, 48), np.float32))
    for _ in range(6):
        another = stack(np.array(other.array))
        run(many, SegmentRequest(volume=another, slice_index=1, strokes=(point(another, 9, 9, 1),)))
    assert len({id(session.volume) for _, session in many._sessions}) == 4


def test_it_is_what_a_session_makes(engine: Engine, volume: Volume) -> None:
    session = Session(engine, volume)
    stroke = box(volume)
    session.add(stroke.prompt, 3)
    alone = session.answer(session.region)
    answer = run(segmenter(engine), request(volume, stroke))
    assert same(answer, alone)
    assert set(answer.provenance.settings) == set(alone.provenance.settings)


@pytest.mark.parametrize("whole", [False, True])
def test_events_add_up(engine: Engine, volume: Volume, whole: bool) -> None:
    events: list[Event] = list(LocalBackend(engine).segment(request(volume, box(volume), whole=whole)))
    (*before, last) = events
    assert isinstance(last, Done) and not any(isinstance(event, Done | Failed) for event in before)
    assert "".join(event.text for event in before if isinstance(event, TextDelta)) == last.answer.text
    assert tuple(event.region for event in before if isinstance(event, RegionFound)) == regions(last.answer)
    assert whole == any(isinstance(event, Progress) for event in before)


def test_nothing_found_is_an_answer(engine: Engine, volume: Volume) -> None:
    with torch.no_grad():
        engine.model.model.perceiver.segmentation_cls_head.class_embed.bias[-1] = 20.0
    for whole in (False, True):
        answer = run(segmenter(engine), request(volume, point(volume, 20, 24), whole=whole))
        assert answer.text == "There is nothing at this place." and not regions(answer)


@pytest.mark.parametrize("whole", [False, True])
def test_words_go_to_the_language_model(
    scripted: Callable[..., Engine], tmp_path: Path, volume: Volume, whole: bool
) -> None:
    folder = save_tiny(tmp_path / "named", class_names=["liver", "left lung", "polyp", "right lung"])
    engine = scripted("The <p>liver</p>[C1_0].", folder=folder)
    answer = run(segmenter(engine), request(volume, point(volume, 20, 24), text="the liver", whole=whole))
    assert answer.text == "The liver."
    (region,) = regions(answer)
    assert isinstance(region, VolumeRegion) == whole
    assert region.span.of(answer.text) == "liver" and region.code == "[C1_0]"
    if whole:
        assert region.key_slices == (3,)


def test_that_a_name_was_never_taught_is_said(scripted: Callable[..., Engine], tmp_path: Path, volume: Volume) -> None:
    folder = save_tiny(tmp_path / "named", class_names=["liver", "left lung", "polyp", "right lung"])
    answer = run(segmenter(scripted("Nothing.", folder=folder)), request(volume, text="femur"))
    assert any("femur" in sentence and "says nothing about the scan" in sentence for sentence in answer.warnings)


def test_names_throughout_a_volume(tmp_path: Path, volume: Volume) -> None:
    folder = save_tiny(tmp_path / "named", class_names=["liver", "left lung", "polyp", "right lung"])
    engine = Engine.from_pretrained(folder, device="cpu")
    for words in ("liver", "the largest polyp"):
        answer = run(segmenter(engine), request(volume, text=words, whole=True, slices=range(1, 5)))
        assert not answer.regions
        for region in answer.volume_regions:
            assert not region.mask[:1].any() and not region.mask[5:].any()


@pytest.mark.parametrize(
    ("make", "code"),
    [
        (lambda volume: request(volume, point(volume, 99, 5)), "prompt_outside"),
        (lambda volume: request(volume, point(volume, 5, 5, positive=False)), "nothing_to_remove"),
        (
            lambda volume: request(volume, point(volume, 5, 5), point(volume, 5, 5, 4, positive=False)),
            "nothing_to_remove",
        ),
        (lambda volume: request(volume, point(volume, 5, 5), slices=range(2, 4)), "slices_without_volume"),
        (lambda volume: request(volume, point(volume, 5, 5), whole=True, slices=range(4, 6)), "prompt_outside_range"),
        (lambda volume: request(volume, point(volume, 5, 5, 4), text="liver"), "prompt_on_other_slice"),
        (lambda volume: request(volume, text="why " * 400), "question_too_long"),
        (lambda volume: request(volume), "nothing_asked"),
        (lambda volume: request(volume, point(volume, 5, 5, SLICES)), "slice_out_of_range"),
    ],
)
def test_bad_requests_are_refused_at_once(
    engine: Engine, volume: Volume, make: Callable[[Volume], SegmentRequest], code: str
) -> None:
    seen = passes(engine)
    with pytest.raises(InputError) as caught:
        LocalBackend(engine).segment(make(volume))
    assert caught.value.code == code and not seen


def test_a_model_that_reads_no_prompts_says_so(tmp_path: Path, volume: Volume) -> None:
    engine = Engine.from_pretrained(save_tiny(tmp_path / "blind", use_prompts=False), device="cpu")
    with pytest.raises(InputError) as caught:
        LocalBackend(engine).segment(request(volume, point(volume, 5, 5)))
    assert caught.value.code == "prompts_not_read"
    assert "prompts" not in LocalBackend(engine).info().capabilities


def test_it_stops_when_asked(engine: Engine, volume: Volume) -> None:
    cancel, seen = threading.Event(), passes(engine)
    strokes = [point(volume, 5 + n, 20) for n in range(6)]
    stream: Iterator[Event | None] = segmenter(engine).steps(request(volume, *strokes), cancel=cancel)
    assert next(stream) is None
    cancel.set()
    rest = list(stream)
    assert [event.code for event in rest if isinstance(event, Failed)] == ["stopped"] and len(rest) == 1
    assert seen.count("perceiver") == 1


def test_a_fault_in_the_middle_is_not_remembered_as_done(
    engine: Engine, volume: Volume, monkeypatch: pytest.MonkeyPatch
) -> None:
    strokes = [point(volume, 20, 24), point(volume, 25, 30)]
    remembering, add = segmenter(engine), Session.add
    count = [0]

    def fails(self: Session, prompt: Prompt, k: int) -> Region | None:
        count[0] += 1
        if count[0] == 2:
            raise MedSightError("out_of_memory", "No.")
        return add(self, prompt, k)

    monkeypatch.setattr(Session, "add", fails)
    with pytest.raises(MedSightError):
        run(remembering, request(volume, *strokes))
    answer = run(remembering, request(volume, *strokes))
    assert count[0] == 3, "the first stroke was remembered"
    assert same(answer, run(segmenter(engine), request(volume, *strokes)))

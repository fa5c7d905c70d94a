"""Drawing, refining, following through the volume, on a tiny model whose sense of presence is set by hand."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from medsight_core.errors import InputError, MedSightError
from medsight_core.events import Done, Event, Progress, RegionFound, Warning, fold
from medsight_core.geometry import Frame
from medsight_core.imaging.volume import Volume
from medsight_core.inference.engine import Engine
from medsight_core.inference.inputs import draw_prompts, slice_transform
from medsight_core.inference.pointing import Pointer, shared
from medsight_core.inference.propagation import AGREEMENT, innermost
from medsight_core.inference.session import Session
from medsight_core.outline import lasso
from medsight_core.regions import Prompt, Region, Span, VolumeRegion
from tests.inference.tiny import photograph, save_tiny, stack

SLICES, ROWS, COLUMNS = 9, 50, 80
SOMETHING, NOTHING = -20.0, 20.0
FOLLOWED = 1 + 2 * (SLICES - 1)
"""Passes for one click that is followed through all slices."""


@pytest.fixture(scope="module")
def seeing(checkpoint: Path) -> Callable[[float], Engine]:
    """Makes engines whose class "no object" is never or always the likeliest."""
    engines: dict[float, Engine] = {}

    def make(bias: float) -> Engine:
        if bias not in engines:
            engines[bias] = Engine.from_pretrained(checkpoint, device="cpu")
            with torch.no_grad():
                engines[bias].model.model.perceiver.segmentation_cls_head.class_embed.bias[-1] = bias
        return engines[bias]

    return make


@pytest.fixture(autouse=True)
def undemanding(monkeypatch: pytest.MonkeyPatch) -> None:
    """What random weights make of a click has little to do with what they make of it with a mask or a slice further."""
    monkeypatch.setattr("medsight_core.inference.session.AGREEMENT", 0.0)
    monkeypatch.setattr("medsight_core.inference.propagation.goes_on", lambda before, after: True)


@pytest.fixture
def engine(seeing: Callable[[float], Engine]) -> Engine:
    return seeing(SOMETHING)


@pytest.fixture(scope="module")
def block() -> np.ndarray:
    """A bright block on all slices, in noise."""
    rng = np.random.default_rng(1)
    array = rng.normal(0, 20, (SLICES, ROWS, COLUMNS))
    array[:, 10:40, 20:60] += 500
    return array.astype(np.int16)


@pytest.fixture
def volume(block: np.ndarray) -> Volume:
    """A new one for each test: features are remembered by volume."""
    return stack(block)


def point(volume: Volume, row: float, column: float, k: int, *, positive: bool = True) -> Prompt:
    return Prompt(kind="point", points=volume.slice_frame(k).to_lps([[0, row, column]]), positive=positive)


def box(volume: Volume, k: int, *corners: tuple[float, float]) -> Prompt:
    return Prompt(kind="box", points=volume.slice_frame(k).to_lps([[0, *corner] for corner in corners]))


def found(events: list[Event]) -> VolumeRegion:
    (region,) = (event.region for event in events if isinstance(event, RegionFound))
    assert isinstance(region, VolumeRegion)
    return region


def masks(session: Session) -> list[np.ndarray | None]:
    regions = [session.on_slice(k) for k in range(SLICES)]
    return [None if region is None else region.mask for region in regions]


def same(some: list[np.ndarray | None], others: list[np.ndarray | None]) -> bool:
    pairs = zip(some, others, strict=True)
    return all((a is None and b is None) or (a is not None and np.array_equal(a, b)) for a, b in pairs)


def test_a_click_gives_a_region_on_its_slice(engine: Engine, volume: Volume) -> None:
    session = Session(engine, volume)
    region = session.add(point(volume, 20, 30, 4), 4)
    assert region is not None and region is session.region and region is session.on_slice(4)
    assert region.mask.shape == (ROWS, COLUMNS) and region.area_pixels > 0
    assert region.slice_index == 4 and region.frame.is_close(volume.slice_frame(4))
    group_of_mr = [name for name in map(engine.processor.codes.name, engine.processor.codes) if name.startswith("[C1_")]
    assert region.code in group_of_mr
    assert 0 < region.score <= 1
    assert (session.encoded, session.perceived) == (1, 1)


def test_a_second_click_is_one_pass_more_and_encodes_nothing(engine: Engine, volume: Volume) -> None:
    session = Session(engine, volume)
    first = session.add(point(volume, 20, 30, 4), 4)
    encoded = engine.features.encoded
    second = session.add(point(volume, 30, 50, 4), 4)
    assert (session.encoded, session.perceived) == (1, 2)
    assert engine.features.encoded == encoded
    assert first is not None and second is not None and not np.array_equal(first.mask, second.mask)


def test_all_clicks_go_along_with_the_result_so_far_as_a_mask(engine: Engine, volume: Volume) -> None:
    session = Session(engine, volume)
    clicks = [point(volume, 20, 30, 4), point(volume, 30, 50, 4), point(volume, 3, 3, 4, positive=False)]
    regions = [session.add(click, 4) for click in clicks]
    assert regions[1] is not None and regions[2] is not None
    frame = volume.slice_frame(4)
    transform = slice_transform(engine.processor, frame)
    raster = draw_prompts([*clicks, Prompt(kind="mask", mask=regions[1].mask)], frame, transform)
    (vision,) = engine.features.get(volume, [4])
    pointed = Pointer(model=engine.model, processor=engine.processor).point(vision, raster, modality="MR")
    by_hand = pointed.region(transform=transform, slice_index=4, frame=frame)
    assert by_hand is not None and np.array_equal(by_hand.mask, regions[2].mask)
    assert by_hand.score == regions[2].score and by_hand.code == regions[2].code


def test_the_same_clicks_give_the_same_masks(checkpoint: Path, engine: Engine, block: np.ndarray) -> None:
    results = []
    for used in (engine, engine):
        volume = stack(block)
        session = Session(used, volume)
        session.add(point(volume, 20, 30, 4), 4)
        session.add(point(volume, 3, 3, 4, positive=False), 4)
        list(session.propagate())
        results.append(masks(session))
    assert same(*results)


def test_the_label_is_the_likeliest_class(tmp_path: Path, volume: Volume) -> None:
    folder = save_tiny(tmp_path / "named", class_names=["aorta", "liver", "spleen", "colon"])
    engine = Engine.from_pretrained(folder, device="cpu")
    with torch.no_grad():
        head = engine.model.model.perceiver.segmentation_cls_head.class_embed
        head.weight.zero_()
        head.bias.copy_(torch.tensor([0.0, 1.0, 9.0, 0.0, 2.0]))
    region = Session(engine, volume).add(point(volume, 20, 30, 0), 0)
    assert region is not None and region.label == "spleen"
    assert region.score <= 1 - np.exp(2) / np.exp([0, 1, 9, 0, 2]).sum()


def test_a_click_on_nothing_gives_nothing_until_a_person_insists(
    seeing: Callable[[float], Engine], volume: Volume
) -> None:
    session = Session(seeing(NOTHING), volume)
    assert session.add(point(volume, 20, 30, 4), 4) is None
    assert session.region is None and session.volume_region is None
    insisted = session.add(point(volume, 22, 33, 4), 4)
    assert insisted is not None and insisted.area_pixels > 0
    assert insisted.certainty == "uncertain", "drawn, but not believed"


@pytest.mark.parametrize("kind", ["box", "mask", "lasso"])
def test_a_box_or_an_outline_is_always_drawn(seeing: Callable[[float], Engine], volume: Volume, kind: str) -> None:
    outline = volume.slice_frame(4).to_lps([[0, 10, 20], [0, 10, 60], [0, 40, 60], [0, 40, 20]])
    drawn = np.zeros((ROWS, COLUMNS), bool)
    drawn[10:40, 20:60] = True
    prompts = {
        "box": box(volume, 4, (10, 20), (39, 59)),
        "mask": Prompt(kind="mask", mask=drawn),
        "lasso": lasso(outline, volume.slice_frame(4)),
    }
    assert Session(seeing(NOTHING), volume).add(prompts[kind], 4) is not None


def test_a_new_mask_replaces_the_region_so_far(engine: Engine, volume: Volume) -> None:
    drawn = np.zeros((ROWS, COLUMNS), bool)
    drawn[10:40, 20:60] = True
    click, mask = point(volume, 20, 30, 4), Prompt(kind="mask", mask=drawn)
    session = Session(engine, volume)
    session.add(click, 4)
    after = session.add(mask, 4)
    frame = volume.slice_frame(4)
    transform = slice_transform(engine.processor, frame)
    pointed = Pointer(model=engine.model, processor=engine.processor).point(
        engine.features.get(volume, [4])[0], draw_prompts([click, mask], frame, transform), modality="MR"
    )
    wanted = pointed.region(transform=transform, slice_index=4, frame=frame)
    assert after is not None and wanted is not None and np.array_equal(after.mask, wanted.mask)


def test_undo_and_redo_go_back_and_forth_without_a_pass(engine: Engine, volume: Volume) -> None:
    session = Session(engine, volume)
    assert session.undo() is None and session.redo() is None and not session.can_undo
    first = session.add(point(volume, 20, 30, 4), 4)
    second = session.add(point(volume, 30, 50, 4), 4)
    passes = session.perceived
    assert session.undo() is first and len(session.prompts) == 1
    assert session.can_redo and session.redo() is second
    assert session.undo() is first and session.undo() is None
    assert not session.can_undo and session.perceived == passes
    assert session.redo() is first
    third = session.add(point(volume, 5, 5, 4, positive=False), 4)
    assert third is not second and not session.can_redo, "a new step ends what was taken back"
    session.clear()
    assert session.region is None and session.on_slice(4) is None
    assert session.undo() is third and session.perceived == passes + 1


def test_following_costs_one_look_and_two_passes_a_slice(engine: Engine, volume: Volume) -> None:
    session = Session(engine, volume)
    session.add(point(volume, 20, 30, 4), 4)
    events = list(session.propagate())
    region = found(events)
    assert isinstance(events[-1], Done) and events[-1].answer.volume_regions == (region,)
    assert (session.encoded, session.perceived) == (SLICES, FOLLOWED)
    assert region.mask.shape == volume.array.shape and volume.frame is not None
    assert region.frame.is_close(volume.frame) and region.key_slices == (4,)
    assert region.slices == (0, SLICES - 1)
    for k in range(SLICES):
        part = session.on_slice(k)
        assert part is not None and np.array_equal(part.mask, region.mask[k])
    steps = [event for event in events if isinstance(event, Progress)]
    assert [step.done for step in steps] == sorted(step.done for step in steps)
    assert steps[-1].done == steps[-1].total == SLICES
    answer = fold(iter(events))
    assert answer.text == region.label and answer.volume_regions[0].span.of(answer.text) == region.label
    assert answer.provenance.settings["perceived"] == FOLLOWED


def test_a_click_with_and_without_the_mask_of_the_slice_before_are_the_prompts(engine: Engine, volume: Volume) -> None:
    session = Session(engine, volume)
    session.add(point(volume, 20, 30, 4), 4)
    list(session.propagate())
    pointer = Pointer(model=engine.model, processor=engine.processor)
    for k, before in ((5, 4), (6, 5), (3, 4), (0, 1)):
        source, target = session.on_slice(before), session.on_slice(k)
        assert source is not None and target is not None
        frame = volume.slice_frame(k)
        transform = slice_transform(engine.processor, frame)
        click, mask = point(volume, *innermost(source.mask), k), Prompt(kind="mask", mask=source.mask)
        rasters = [draw_prompts(prompts, frame, transform) for prompts in ([click, mask], [click])]
        (vision,) = engine.features.get(volume, [k])
        pointed = pointer.point(vision, *rasters, modality="MR")
        by_hand = pointed.region(transform=transform, slice_index=k, frame=frame)
        assert by_hand is not None and np.array_equal(by_hand.mask, target.mask), k
        alone = [pointer.point(vision, raster, modality="MR") for raster in rasters]
        assert np.allclose(pointed.logits, (alone[0].logits + alone[1].logits) / 2, atol=1e-5)
        assert pointed.nothing == pytest.approx((alone[0].nothing + alone[1].nothing) / 2, abs=1e-6)
        assert pointed.agreement == shared(np.stack([one.logits > 0 for one in alone]))
        assert pointed.code == alone[0].code and alone[0].agreement == 1.0


def test_following_ends_where_the_two_ways_do_not_mean_the_same(
    engine: Engine, volume: Volume, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Session(engine, volume)
    whole.add(point(volume, 20, 30, 4), 4)
    assert found(list(whole.propagate())).slices == (0, SLICES - 1)
    session = Session(engine, volume)
    session.add(point(volume, 20, 30, 4), 4)
    monkeypatch.setattr("medsight_core.inference.session.AGREEMENT", AGREEMENT)
    monkeypatch.setattr("medsight_core.inference.pointing.shared", lambda masks: AGREEMENT - 0.01)
    assert found(list(session.propagate())).slices == (4, 4)


def test_what_masks_share() -> None:
    some = np.zeros((2, 4, 4), bool)
    assert shared(some) == 1.0
    some[0, :2] = True
    assert shared(some) == 0.0 and shared(some[:1]) == 1.0
    some[1, 1:3] = True
    assert shared(some) == pytest.approx(4 / 12)


def test_following_ends_where_there_is_nothing(seeing: Callable[[float], Engine], volume: Volume) -> None:
    session = Session(seeing(NOTHING), volume)
    session.add(box(volume, 4, (10, 20), (39, 59)), 4)
    region = found(list(session.propagate()))
    assert region.slices == (4, 4)
    assert session.perceived == 5, "one for the box, two for each neighbour"


def test_a_correction_elsewhere_is_followed_from_there(engine: Engine, volume: Volume) -> None:
    session = Session(engine, volume)
    session.add(point(volume, 20, 30, 2), 2)
    before = found(list(session.propagate()))
    followed = session.on_slice(6)
    passes = session.perceived
    corrected = session.add(point(volume, 6, 6, 6, positive=False), 6)
    assert corrected is not None and followed is not None
    assert session.perceived == passes + 1
    assert not np.array_equal(corrected.mask, followed.mask), "it refined what was followed to this slice"
    after = found(list(session.propagate()))
    assert after.key_slices == (2, 6)
    # Slices up to the middle, 4, belong to slice 2 and were followed before; 5, 7 and 8 are followed from 6.
    assert session.perceived == passes + 1 + 2 * 3
    assert session.encoded == SLICES
    assert np.array_equal(after.mask[:5], before.mask[:5])
    assert np.array_equal(after.mask[6], corrected.mask)
    assert not np.array_equal(after.mask[7], before.mask[7])
    session.undo()
    session.undo()
    assert np.array_equal(session.volume_region.mask, before.mask)  # type: ignore[union-attr]
    session.redo()
    session.redo()
    assert np.array_equal(session.volume_region.mask, after.mask)  # type: ignore[union-attr]


def test_a_propagation_is_a_step_that_can_be_taken_back(engine: Engine, volume: Volume) -> None:
    session = Session(engine, volume)
    first = session.add(point(volume, 20, 30, 4), 4)
    region = found(list(session.propagate()))
    assert session.undo() is first
    assert session.on_slice(5) is None and session.volume_region is not None
    assert session.volume_region.slices == (4, 4)
    session.redo()
    assert np.array_equal(session.volume_region.mask, region.mask)


def test_cancel_ends_before_the_next_slice_and_work_can_go_on(engine: Engine, volume: Volume) -> None:
    session, cancel = Session(engine, volume), threading.Event()
    session.add(point(volume, 20, 30, 4), 4)
    events = []
    for event in session.propagate(cancel=cancel):
        events.append(event)
        if isinstance(event, Progress) and event.done == 3:
            cancel.set()
    assert session.perceived == 1 + 2 * 2
    assert found(events).slices == (4, 6)
    assert any(isinstance(event, Warning) and "stopped" in event.sentence for event in events)
    whole = found(list(session.propagate()))
    assert session.perceived == FOLLOWED, "what was followed before is not followed again"
    other = Session(engine, volume)
    other.add(point(volume, 20, 30, 4), 4)
    assert np.array_equal(whole.mask, found(list(other.propagate())).mask)


def test_a_propagation_that_nobody_reads_to_its_end_changes_nothing(engine: Engine, volume: Volume) -> None:
    session = Session(engine, volume)
    session.add(point(volume, 20, 30, 4), 4)
    stream = session.propagate()
    next(stream)
    del stream
    assert session.on_slice(5) is None and session.on_slice(4) is not None


def test_a_range_bounds_the_work(engine: Engine, volume: Volume) -> None:
    session = Session(engine, volume)
    session.add(point(volume, 20, 30, 4), 4)
    assert found(list(session.propagate(range(3, 6)))).slices == (3, 5)
    assert session.encoded == 3


def test_a_small_memory_changes_no_result(checkpoint: Path, engine: Engine, block: np.ndarray) -> None:
    results = []
    for budget in (engine.features.budget, 1):
        volume = stack(block)
        small = Engine.from_pretrained(checkpoint, device="cpu")
        small.features.budget = budget
        with torch.no_grad():
            small.model.model.perceiver.segmentation_cls_head.class_embed.bias[-1] = SOMETHING
        session = Session(small, volume)
        session.add(point(volume, 20, 30, 2), 2)
        list(session.propagate())
        session.add(point(volume, 6, 6, 6, positive=False), 6)
        list(session.propagate())
        results.append((masks(session), session.encoded))
    assert same(results[0][0], results[1][0])
    assert results[0][1] == SLICES < results[1][1]


def test_a_region_from_elsewhere_keeps_its_name(engine: Engine, volume: Volume) -> None:
    other = Session(engine, volume).add(point(volume, 20, 30, 4), 4)
    assert other is not None
    session = Session(engine, volume)
    session.adopt(replace(other, label="left kidney", code="[C1_0]"))
    assert session.perceived == 0
    refined = session.add(point(volume, 30, 50, 4), 4)
    assert refined is not None and (refined.label, refined.code) == ("left kidney", "[C1_0]")
    region = found(list(session.propagate()))
    assert (region.label, region.code) == ("left kidney", "[C1_0]")


def irregular(volume: Volume) -> Volume:
    return replace(volume, frame=None, problem=MedSightError("missing_slices", "Slices are missing.", "Resample."))


def test_bad_input_is_refused_before_any_work(engine: Engine, volume: Volume) -> None:
    session = Session(engine, volume)
    encoded = engine.features.encoded

    def refused(code: str, act: Callable[[], object]) -> str:
        with pytest.raises(MedSightError) as caught:
            act()
        assert caught.value.code == code
        assert (session.perceived, engine.features.encoded) == (0, encoded)
        return caught.value.sentence

    refused("slice_out_of_range", lambda: session.add(point(volume, 5, 5, 0), SLICES))
    refused("prompt_outside", lambda: session.add(point(volume, ROWS + 3, 5, 4), 4))
    refused("prompt_on_other_slice", lambda: session.add(point(volume, 5, 5, 4), 5))
    refused("nothing_to_remove", lambda: session.add(point(volume, 5, 5, 4, positive=False), 4))
    assert "no area" in refused("bad_prompt", lambda: session.add(box(volume, 4, (5, 5), (5, 30)), 4))
    refused("bad_prompt", lambda: session.add(Prompt(kind="mask", mask=np.ones((3, 3), bool)), 4))
    refused("nothing_to_follow", lambda: session.propagate())
    assert not session.can_undo, "a refused step is none"

    grid = Frame.of_pixels((1, ROWS, COLUMNS))
    elsewhere = Region(
        code="[C1_0]", label="x", span=Span(0, 0), score=1.0, slice_index=4,
        mask=np.ones((ROWS, COLUMNS), bool), frame=grid,
    )  # fmt: skip
    refused("other_grid", lambda: session.adopt(elsewhere))


@pytest.mark.parametrize(
    ("slices", "code"),
    [
        (range(4, 4), "empty_range"),
        (range(6, 2), "empty_range"),
        (range(0, SLICES + 1), "slice_out_of_range"),
        (range(-2, 6), "slice_out_of_range"),
        (range(0, SLICES, 2), "slice_out_of_range"),
        (range(0, 3), "prompt_outside_range"),
    ],
)
def test_a_bad_range_is_refused_at_once(engine: Engine, volume: Volume, slices: range, code: str) -> None:
    session = Session(engine, volume)
    session.add(point(volume, 20, 30, 4), 4)
    with pytest.raises(InputError) as caught:
        session.propagate(slices)
    assert caught.value.code == code and session.perceived == 1


def test_what_is_no_volume_cannot_be_followed(engine: Engine, block: np.ndarray) -> None:
    single = stack(block[:1])
    picture = photograph(np.repeat(np.clip(block[0] // 3, 0, 255).astype(np.uint8)[..., None], 3, axis=2))
    frames = replace(
        picture,
        array=np.repeat(picture.array, 3, axis=0),
        frame=Frame.of_pixels((3, ROWS, COLUMNS)),
        slice_frames=picture.slice_frames * 3,
    )
    tilted = irregular(stack(block))
    for volume, code in (
        (single, "one_slice"),
        (picture, "one_slice"),
        (frames, "colour_volume"),
        (tilted, "missing_slices"),
    ):
        session = Session(engine, volume)
        assert session.add(point(volume, 20, 30, 0), 0) is not None, "a slice by itself works"
        with pytest.raises(MedSightError) as caught:
            session.propagate()
        assert caught.value.code == code
    assert session.volume_region is None


def test_a_model_without_a_prompt_encoder_says_so(tmp_path: Path, volume: Volume) -> None:
    blind = Engine.from_pretrained(save_tiny(tmp_path / "blind", use_prompts=False), device="cpu")
    with pytest.raises(InputError, match="does not read points"):
        Session(blind, volume)

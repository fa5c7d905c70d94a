"""Questions about a volume that measuring answers: asked as any other, and no slice is read for them."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from dataclasses import replace
from itertools import permutations, product
from pathlib import Path

import numpy as np
import pytest
import torch

from medsight_core.errors import InputError
from medsight_core.events import Done, Event, Failed, Progress, RegionFound, TextDelta, Warning, fold
from medsight_core.geometry import Frame
from medsight_core.imaging.volume import Source, Volume
from medsight_core.inference.engine import Engine
from medsight_core.inference.measuring import wanted_names
from medsight_core.inference.plan import Pace
from medsight_core.inference.referring import evidence_of, refer
from medsight_core.inference.volumes import VolumeEngine
from medsight_core.measure import measure
from medsight_core.questioning import answer_from_evidence, slices_text
from medsight_core.regions import Answer, VolumeRegion
from medsight_core.understanding import understand
from tests.inference.tiny import save_tiny

NAMES = ("liver", "kidney", "polyp", "lung")
SHOWN_IN = {"liver": ["CT", "MRI"], "kidney": ["CT"], "polyp": ["CT", "Endoscopy"], "lung": ["X-ray"]}
PACE = Pace(look=0.01, read=0.02, draw=0.001, kept=200_000)
ORDERS = tuple(permutations((0, 1, 2)))
FLIPS = tuple(product((False, True), repeat=3))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(
        tmp_path_factory.mktemp("models") / "m",
        class_names=list(NAMES),
        class_modalities=SHOWN_IN,
    )


@pytest.fixture(scope="module")
def engine(folder: Path) -> Engine:
    """A model that sees polyps everywhere, so that there is something to measure."""
    made = Engine.from_pretrained(folder, device="cpu")
    with torch.no_grad():
        made.model.model.perceiver.segmentation_cls_head.class_embed.bias[NAMES.index("polyp")] += 4
    return made


def body(shape: tuple[int, int, int] = (5, 40, 48), modality: str = "CT") -> Volume:
    """Something bright and uneven in air; slices to the head, rows to the back, columns to the patient's left."""
    rng = np.random.default_rng(4)
    z, y, x = np.indices(shape)
    inside = ((y - shape[1] / 2) / (0.4 * shape[1])) ** 2 + ((x - shape[2] / 2) / (0.38 * shape[2])) ** 2 < 1
    array = np.where(inside, rng.integers(-150, 300, shape) + 60 * (x > 26) * (z > 1), -1000).astype(np.int16)
    frame = Frame(
        shape=shape,
        origin=np.array([-60.0, -50.0, 0.0]),
        spacing=np.array([5.0, 2.5, 2.5]),
        direction=np.eye(3)[::-1],
    )
    return Volume(
        array=array,
        frame=frame,
        slice_frames=tuple(frame.slice(k) for k in range(shape[0])),
        modality=modality,
        source=Source(kind="nifti", paths=(Path("scan.nii"),)),
    )


def ask(engine: Engine, text: str, volume: Volume, **how: object) -> Answer:
    return fold(VolumeEngine(engine, pace=PACE).ask(text, volume, **how))  # type: ignore[arg-type]


def never_read(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "read", lambda *_, **__: pytest.fail("a slice was read"))


@pytest.mark.parametrize("text", ["How large is the polyp?", "Is there a liver?", "Segment the largest polyp."])
def test_it_is_measured_and_says_so(engine: Engine, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    volumes, volume = VolumeEngine(engine, pace=PACE, batch=2), body()
    plan = volumes.plan(volume, text)
    never_read(engine, monkeypatch)
    events: list[Event] = list(volumes.ask(text, volume))
    assert plan.read == 0 and "reads none of them" in plan.sentence
    assert events[0] == Progress(0, 5, plan.sentence)
    assert [e.done for e in events if isinstance(e, Progress) and e.what == "Looking at slices"] == [2, 4, 5]
    assert isinstance(events[-1], Done) and sum(isinstance(e, Done | Failed) for e in events) == 1
    answer = events[-1].answer
    assert "".join(e.text for e in events if isinstance(e, TextDelta)) == answer.text
    assert tuple(e.region for e in events if isinstance(e, RegionFound)) == answer.volume_regions
    assert tuple(e.sentence for e in events if isinstance(e, Warning)) == answer.warnings
    assert bool(answer.volume_regions) == ("polyp" in text)
    for region in answer.volume_regions:
        assert isinstance(region, VolumeRegion) and region.span.of(answer.text) == region.label == "polyp"
    rests = answer.provenance.settings["slices"]
    said = "This was measured, not read: 5 axial slices were looked at, and the language model read none. It rests on "
    assert answer.warnings[0] == f"{said}axial {slices_text(rests)}."
    shown = {f"{region.label}:" for region in answer.volume_regions}
    assert all(sentence.startswith(tuple(shown)) for sentence in answer.warnings[1:]), "nothing of what is not shown"
    assert answer.text.endswith(f"This rests on {slices_text(rests)}.")
    assert answer.provenance.settings["read"] == 0 and answer.provenance.timings["measure"] > 0


def test_numbers_are_those_of_the_masks(engine: Engine) -> None:
    volume = body()
    answer = ask(engine, "How large is the largest polyp?", volume)
    (found,) = answer.volume_regions
    measured = measure(found.mask, found.frame, values=volume.array)
    assert f"longest diameter {measured.diameter.length_mm:.1f} mm" in answer.text
    volumes = VolumeEngine(engine, pace=PACE)
    evidence = evidence_of(volume, volumes.survey(volume))
    for text in ("How many polyps are there?", "Where is the largest polyp?", "Is there a kidney?"):
        from_all = answer_from_evidence(text, evidence)
        assert from_all is not None and fold(volumes.ask(text, volume)).text == from_all.text, "a report says the same"


def test_a_reference_is_the_same_by_either_name(engine: Engine) -> None:
    volumes, volume = VolumeEngine(engine, pace=PACE), body()
    asked, referred = (
        fold(volumes.ask("the two largest polyps", volume)),
        refer(volumes, "the two largest polyps", volume),
    )
    assert asked.text == referred.text and len(asked.volume_regions) == len(referred.volume_regions)


def test_everything_else_is_read(engine: Engine) -> None:
    volumes, volume = VolumeEngine(engine, pace=PACE), body()
    for text in ("Segment the polyp in this image.", "What is the diagnosis?"):
        assert volumes.plan(volume, text).read == 5
        answer = fold(volumes.ask(text, volume))
        assert answer.provenance.settings["slices_read"] == [0, 1, 2, 3, 4]
        assert not any("measured" in sentence for sentence in answer.warnings)
    exact = fold(volumes.ask("How large is the polyp?", volume, exact=True))
    assert (
        exact.provenance.settings["mode"] == "exact" and volumes.plan(volume, "the largest polyp", exact=True).read == 5
    )


def test_what_was_never_taught_is_named(engine: Engine) -> None:
    volumes, volume = VolumeEngine(engine, pace=PACE), body()
    for text, thing in (("How large is the lung?", "lung"), ("How many vertebrae are there?", "vertebrae")):
        for act in (volumes.ask, lambda text, volume: volumes.plan(volume, text)):
            with pytest.raises(InputError) as caught:
                act(text, volume)
            assert caught.value.sentence == (
                f'This model was never taught to find "{thing}" in CT; it was taught liver, kidney, polyp.'
            )
    for text, thing in (("Is there a fracture?", "fracture"), ("Segment the femur.", "femur")):
        answer = fold(volumes.ask(text, volume))
        assert answer.warnings[0].startswith(f'This model was never taught to find "{thing}" in CT.')
        assert answer.provenance.settings["slices_read"]


@pytest.mark.parametrize(
    ("modality", "names"),
    [("CT", NAMES[:3]), ("MR", NAMES[:1]), ("unknown", NAMES), ("Ultrasound", NAMES), ("X-ray", NAMES[3:])],
)
def test_only_what_was_taught_in_such_scans_is_looked_for(engine: Engine, modality: str, names: tuple) -> None:
    volumes, volume = VolumeEngine(engine, pace=PACE), body(modality=modality)
    survey = volumes.survey(volume)
    assert tuple(survey.regions) == survey.known == volumes.taught(volume) == names
    named = volumes.survey(volume, ["lung"])
    assert tuple(named.regions) == ("lung",), "what a person names is looked for all the same"
    assert named.known == tuple(name for name in NAMES if name in (*names, "lung"))


def test_a_checkpoint_that_does_not_say_looks_for_all(tmp_path: Path) -> None:
    old = Engine.from_pretrained(save_tiny(tmp_path / "m", class_names=list(NAMES)), device="cpu")
    assert VolumeEngine(old, pace=PACE).taught(body()) == NAMES


def test_what_is_looked_for_beside_what_is_named() -> None:
    taught = ("aorta", "kidney", "left lung", "liver", "polyp", "right adrenal gland", "right lung", "stomach")

    def names(text: str) -> tuple[str, ...]:
        return wanted_names(understand(text, taught), taught)

    middle = ("kidney", "left lung", "right lung")
    assert names("How large is the liver?") == ("liver",)
    assert names("How large is the left kidney?") == tuple(dict.fromkeys(("kidney", *middle)))
    assert names("the largest polyp on the left") == ("polyp", *middle)
    assert names("Where is the liver?") == ("liver", *middle)
    assert set(names("Where is the polyp?")) == set(taught)
    assert names("How large is it?") == taught


def test_it_is_what_was_spoken_of(engine: Engine) -> None:
    volumes, volume = VolumeEngine(engine, pace=PACE), body()
    history = [("Is there a polyp?", "Yes."), ("Why?", "")]
    answer = fold(volumes.ask("How large is it?", volume, history=history))
    assert answer.text == fold(volumes.ask("How large is the polyp?", volume)).text
    assert volumes.plan(volume, "How large is it?", history=history).looks == 0


@pytest.mark.parametrize("when", ["Looks at", "Looking at slices", "Joining", "Measuring"])
def test_it_stops_when_asked(engine: Engine, when: str, monkeypatch: pytest.MonkeyPatch) -> None:
    never_read(engine, monkeypatch)
    cancel, events = threading.Event(), []
    for event in VolumeEngine(engine, pace=PACE, batch=2).ask("How many polyps are there?", body(), cancel=cancel):
        events.append(event)
        if isinstance(event, Progress) and event.what.startswith(when):
            cancel.set()
    assert isinstance(events[-1], Failed) and events[-1].code == "stopped"
    assert not any(isinstance(event, RegionFound | TextDelta | Done) for event in events)


def test_a_range_and_another_plane(engine: Engine) -> None:
    volume = body()
    answer = ask(engine, "Which slices show the polyp?", volume, slices=range(1, 4))
    assert set(answer.provenance.settings["slices"]) <= {1, 2, 3} and "3 axial slices were" in answer.warnings[0]
    coronal = ask(engine, "Which slices show the polyp?", volume, plane="coronal", slices=range(10, 30))
    assert "20 coronal slices were looked at" in coronal.warnings[0]
    assert coronal.warnings[0].endswith(
        f"axial {slices_text(coronal.provenance.settings['slices'])}, as they were acquired."
    )
    one = ask(engine, "How many polyps are there?", volume, slices=range(2, 3))
    assert "slice 2 alone was looked at" in one.warnings[0]


def stored(volume: Volume, order: tuple[int, ...], flips: tuple[bool, ...]) -> Volume:
    """The same body with its axes in another order and direction."""
    assert volume.frame is not None
    array = volume.array.transpose(order)[tuple(slice(None, None, -1 if flip else 1) for flip in flips)]
    steps = np.zeros((4, 4))
    steps[3, 3] = 1
    for new, (old, flip) in enumerate(zip(order, flips, strict=True)):
        steps[old, new] = -1 if flip else 1
        steps[old, 3] = volume.frame.shape[old] - 1 if flip else 0
    frame = Frame.from_affine(volume.frame.affine @ steps, array.shape)
    return replace(volume, array=array, frame=frame, slice_frames=tuple(frame.slice(k) for k in range(frame.shape[0])))


def in_body(region: VolumeRegion, frame: Frame) -> list[tuple[int, ...]]:
    """Where its voxels lie, as indices of a frame."""
    places = np.rint(frame.to_index(region.frame.to_lps(np.argwhere(region.mask)))).astype(int)
    return sorted(map(tuple, places.tolist()))


def without_slices(text: str) -> str:
    """Numbers of slices are those of the file; all other words are the patient's."""
    return re.sub(r"(?:(?:axial|coronal|sagittal) )?slices? [\d, toand]+", "", text)


@pytest.fixture(scope="module")
def told(engine: Engine) -> Callable[[Volume], list]:
    def tell(volume: Volume) -> list:
        """Words and voxels of questions of every way, and of a survey, on axial slices."""
        volumes, frame = VolumeEngine(engine, pace=PACE, key_slices=1), body().require_frame()
        found: list = []
        for text in (
            "Where are the polyps?",
            "How many polyps are there?",
            "the polyps on the right",
            "the rightmost polyp",
            "Segment the polyp in this image.",
        ):
            answer = fold(volumes.ask(text, volume, plane="axial"))
            found.append((without_slices(answer.text), [(r.label, in_body(r, frame)) for r in answer.volume_regions]))
        referred = refer(volumes, "the uppermost polyp", volume, plane="axial")
        found.append((without_slices(referred.text), [in_body(r, frame) for r in referred.volume_regions]))
        survey = volumes.survey(volume, plane="axial")
        found.append([(name, r and in_body(r, frame)) for name, r in survey.regions.items()])
        return found

    return tell


@pytest.fixture(scope="module")
def straight(told: Callable[[Volume], list]) -> list:
    found = told(body())
    assert "on the right side of the body" in found[0][0]
    assert all(regions for _, regions in found[:-1])
    return found


@pytest.mark.parametrize("order", ORDERS, ids=lambda order: "".join("SPL"[axis] for axis in order))
def test_how_a_scan_is_stored_changes_no_word_side_or_voxel(
    order: tuple[int, ...], told: Callable[[Volume], list], straight: list
) -> None:
    """All 48 orders and directions of the axes: LPS, RAS, PIR ..."""
    for flips in FLIPS:
        assert told(stored(body(), order, flips)) == straight, flips

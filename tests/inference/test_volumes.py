"""Questions about volumes, asked of a whole engine with random weights; what it says is scripted where that matters."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest

from medsight_core.errors import InputError, MedSightError
from medsight_core.events import Done, Event, Failed, Progress, RegionFound, TextDelta, Warning, fold
from medsight_core.geometry import Frame
from medsight_core.imaging.volume import Source, Volume, open_volume
from medsight_core.inference.engine import Engine
from medsight_core.inference.plan import Pace
from medsight_core.inference.reply import finish
from medsight_core.inference.stopping import Stopped, stoppable
from medsight_core.inference.volumes import VolumeEngine
from medsight_core.regions import Answer, Question, VolumeRegion
from tests.inference.tiny import noise, save_tiny, stack

CLASSES = ["liver", "left lung", "polyp", "right lung"]
PACE = Pace(look=0.01, read=0.02, draw=0.001, kept=200_000)
ASKED = "Segment the left lung in this image."
YES, NO = "The <p>left lung</p>[C0_3] is seen.", "There is no left lung."


def scan(slices: int = 12, rows: int = 40, columns: int = 48, seed: int = 0) -> Volume:
    """Smooth noise that changes from slice to slice."""
    rng = np.random.default_rng(seed)
    return stack(np.cumsum(rng.normal(size=(slices, rows, columns)), axis=0).astype(np.float32))


@pytest.fixture(scope="module")
def named(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint whose classes have names."""
    return save_tiny(tmp_path_factory.mktemp("models") / "named", class_names=CLASSES)


@pytest.fixture(scope="module")
def random(named: Path) -> Engine:
    """An engine that says what comes to its mind."""
    return Engine.from_pretrained(named, device="cpu")


def ask(engine: Engine, volume: Volume, *, text: str = ASKED, options: dict | None = None, **how: object) -> Answer:
    return fold(VolumeEngine(engine, pace=PACE, **(options or {})).ask(text, volume, **how))  # type: ignore[arg-type]


def same(one: Answer, other: Answer) -> bool:
    return (
        one.text == other.text
        and one.raw == other.raw
        and [r.to_json() for r in one.volume_regions] == [r.to_json() for r in other.volume_regions]
        and all(np.array_equal(a.mask, b.mask) for a, b in zip(one.volume_regions, other.volume_regions, strict=True))
    )


def counted(engine: Engine) -> list[str]:
    """Passes of encoder and perceiver from now on."""
    passes: list[str] = []
    core = engine.model.model
    for name in ("vision", "perceiver"):
        getattr(core, name).register_forward_hook(lambda *_, name=name: passes.append(name))
    return passes


def test_it_is_decided_once_and_drawn_everywhere(scripted: Callable[..., Engine], named: Path) -> None:
    engine, volume = scripted(YES, YES, YES, folder=named), scan()
    passes = counted(engine)
    answer = ask(engine, volume, options={"key_slices": 3})
    assert passes.count("vision") == passes.count("perceiver") == volume.n_slices, "every slice is looked at once"
    assert len(answer.provenance.settings["slices_read"]) == 3
    assert answer.text == "The left lung is seen."
    (region,) = answer.volume_regions
    assert isinstance(region, VolumeRegion) and region.code == "[C0_3]"
    assert region.label == region.span.of(answer.text) == "left lung"
    assert region.mask.shape == volume.array.shape and region.frame is volume.frame
    assert set(region.key_slices) <= set(answer.provenance.settings["slices_read"])
    assert region.mask[list(region.key_slices)].any(axis=(1, 2)).all()
    assert answer.regions == () and 0 < region.score <= 1
    answer.to_json()


def test_events_tell_what_happens(random: Engine) -> None:
    volumes = VolumeEngine(random, pace=PACE, batch=5)
    volume = scan()
    events: list[Event] = list(volumes.ask(ASKED, volume))
    assert isinstance(events[0], Progress) and events[0].what.startswith("Looks at 12 axial slices")
    looked = [event.done for event in events if isinstance(event, Progress) and event.what == "Looking at slices"]
    assert looked == [5, 10, 12]
    assert sum(isinstance(event, Done | Failed) for event in events) == 1 and isinstance(events[-1], Done)
    answer = events[-1].answer
    assert "".join(event.text for event in events if isinstance(event, TextDelta)) == answer.text
    assert tuple(event.region for event in events if isinstance(event, RegionFound)) == answer.volume_regions
    for region in answer.volume_regions:
        if region.span.end > region.span.start:
            assert region.span.of(answer.text) == region.label


@pytest.mark.parametrize("exact", [False, True])
def test_the_batch_changes_nothing(random: Engine, exact: bool) -> None:
    volume = scan(17, 24, 30)
    answers = [ask(random, volume, options={"batch": batch}, exact=exact) for batch in (1, 4, 50)]
    assert answers[0].volume_regions and same(answers[0], answers[1]) and same(answers[0], answers[2])


@pytest.mark.parametrize("decoder", ["head", "perceiver"])
def test_memory_changes_nothing_but_time(decoder: str, tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "m", mask_decoder=decoder, class_names=CLASSES)
    engine, volume = Engine.from_pretrained(folder, device="cpu"), scan(8)
    passes = counted(engine)
    ample = ask(engine, volume)
    once = passes.count("vision")
    scarce = ask(engine, volume, options={"budget": 0})
    assert ample.volume_regions and same(ample, scarce)
    assert once == 8 < passes.count("vision") - once


def test_the_exact_mode_says_what_the_engine_says_of_each_slice(random: Engine) -> None:
    volume = scan(6)
    answer = ask(random, volume, exact=True)
    alone = [random.answer(Question(text=ASKED, volume=volume, slice_index=k)) for k in range(6)]
    assert answer.provenance.settings["slices_read"] == list(range(6))
    labels = {region.label.lower() for one in alone for region in one.regions}
    assert {region.label.lower() for region in answer.volume_regions} == labels
    for region in answer.volume_regions:
        union = np.zeros(volume.array.shape, dtype=bool)
        for one in alone:
            for part in one.regions:
                if part.label.lower() == region.label.lower():
                    union[part.slice_index] |= part.mask
        assert np.mean(union != region.mask) <= 2e-3  # features are kept in half precision


def test_a_slice_that_is_denied_stays_empty(scripted: Callable[..., Engine], named: Path) -> None:
    volume = scan()
    read = ask(scripted(YES, YES, YES, folder=named), volume, options={"key_slices": 3}).provenance.settings[
        "slices_read"
    ]
    answer = ask(scripted(YES, NO, YES, folder=named), volume, options={"key_slices": 3})
    assert answer.provenance.settings["slices_read"] == read
    (region,) = answer.volume_regions
    assert not region.mask[read[1]].any() and read[1] not in region.key_slices


def test_where_nothing_is_said_to_be_there_is_no_mask(scripted: Callable[..., Engine], named: Path) -> None:
    answer = ask(scripted(NO, NO, NO, folder=named), scan(), options={"key_slices": 3})
    assert answer.text == NO and answer.volume_regions == ()
    assert any("were read" in sentence for sentence in answer.warnings)


def test_what_the_eye_saw_and_the_words_deny_is_told(scripted: Callable[..., Engine], named: Path) -> None:
    engine, volume = scripted(NO, NO, folder=named), scan(5)
    volumes = VolumeEngine(engine, pace=PACE, key_slices=2)
    looked = volumes.known(volume, "acquired")
    assert list(volumes.look(looked, range(5), budget=1 << 30)) == [0, 0, 0, 0, 5]
    for k, sure in enumerate((0.0, 0.9, 0.1, 0.85, 0.0)):
        looked.presence[k] = np.array([0, sure, 0, 0, sure], dtype=np.float32)
    answer = fold(volumes.ask(ASKED, volume))
    assert not answer.volume_regions and set(answer.provenance.settings["slices_read"]) == {1, 3}
    assert "The answer shows no left lung, but axial slices 1 and 3 look as if there were." in answer.warnings


def test_words_of_several_slices_say_whose_they_are(scripted: Callable[..., Engine], named: Path) -> None:
    other = "A <p>polyp</p>[C1_0] too."
    answer = ask(scripted(YES, other, folder=named), scan(), text="What is seen?", options={"key_slices": 2})
    first, second = answer.provenance.settings["slices_read"]
    lines = {f"Axial slice {first}: The left lung is seen.", f"Axial slice {second}: A polyp too."}
    assert set(answer.text.splitlines()) == lines
    for region in answer.volume_regions:
        assert region.span.of(answer.text) == region.label


def test_a_range_is_kept_to(random: Engine) -> None:
    answer = ask(random, scan(), slices=range(3, 8), shown=4)
    assert answer.volume_regions
    for region in answer.volume_regions:
        assert not region.mask[:3].any() and not region.mask[8:].any()
    assert 4 in answer.provenance.settings["slices_read"]
    assert set(answer.provenance.settings["slices_read"]) <= set(range(3, 8))


def test_one_slice_is_a_volume_too(random: Engine) -> None:
    volume = scan(1)
    answer = ask(random, volume)
    alone = random.answer(Question(text=ASKED, volume=volume, slice_index=0))
    assert answer.text == alone.text
    assert all(region.slices == (0, 0) for region in answer.volume_regions)
    assert ask(random, noise()).volume_regions  # a picture in colour, without a place


def test_other_planes_come_back_to_the_scan(random: Engine) -> None:
    volume = scan()
    answer = ask(random, volume, plane="coronal")
    assert answer.volume_regions
    for region in answer.volume_regions:
        assert region.mask.shape == volume.array.shape and region.frame is volume.frame
        assert all(region.mask[k].any() for k in region.key_slices)
    assert "oronal slice" in " ".join((answer.text, *answer.warnings))


def test_a_second_question_looks_at_nothing_again(random: Engine) -> None:
    volumes, volume = VolumeEngine(random, pace=PACE), scan()
    first = fold(volumes.ask(ASKED, volume))
    passes = counted(random)
    assert same(first, fold(volumes.ask(ASKED, volume)))
    volumes.survey(volume)
    assert not passes
    volumes.forget(volume)
    fold(volumes.ask(ASKED, volume))
    assert passes.count("vision") == volume.n_slices


def test_several_volumes_are_remembered_within_one_budget(random: Engine) -> None:
    volumes, scans = VolumeEngine(random, pace=PACE), [scan(4, seed=n) for n in range(5)]
    first = [fold(volumes.ask(ASKED, volume)) for volume in scans]
    passes = counted(random)
    for n in (4, 1):
        assert same(first[n], fold(volumes.ask(ASKED, scans[n])))
    assert not passes
    assert same(first[0], fold(volumes.ask(ASKED, scans[0])))
    assert passes.count("vision") == 4, "of the fifth last nothing is left"
    small = VolumeEngine(random, pace=PACE, budget=5 * PACE.kept)
    for n in (0, 1, 2, 0):
        assert same(first[n], fold(small.ask(ASKED, scans[n])))
        assert sum(small.known(volume, "acquired").bytes for volume in scans[:3]) <= 5 * PACE.kept


def test_two_questions_side_by_side_do_not_mix(random: Engine) -> None:
    volumes, one, two = VolumeEngine(random, pace=PACE), scan(8, seed=1), scan(8, seed=2)
    asked = [(ASKED, one), ("Is there a polyp? Why?", one), (ASKED, two)]
    alone = [fold(VolumeEngine(random, pace=PACE).ask(text, volume)) for text, volume in asked]
    streams = [volumes.steps(text, volume) for text, volume in asked]
    ends: dict[int, Answer] = {}
    while len(ends) < len(streams):
        for n, stream in enumerate(streams):
            event = next(stream, None)
            if isinstance(event, Done):
                ends[n] = event.answer
    assert all(same(ends[n], answer) for n, answer in enumerate(alone))


@pytest.mark.parametrize("after", [0, 4, 40])
def test_it_stops_when_asked(random: Engine, after: int) -> None:
    """At the next slice, whatever is being done; what was found so far is not passed off as an answer."""
    cancel, volume = threading.Event(), scan(30)
    passes = counted(random)
    events: list[Event] = []
    for event in VolumeEngine(random, pace=PACE, batch=4).ask(ASKED, volume, cancel=cancel):
        events.append(event)
        if isinstance(event, Progress) and event.done >= after:
            cancel.set()
    if after == 40:
        assert isinstance(events[-1], Done)
        return
    assert isinstance(events[-1], Failed) and events[-1].code == "stopped"
    assert passes.count("vision") == after and not any(isinstance(e, RegionFound | TextDelta) for e in events)


def test_what_cannot_be_interrupted_is_left_alone() -> None:
    cancel, slow = threading.Event(), threading.Event()
    threading.Timer(0.2, cancel.set).start()
    started = time.perf_counter()
    with pytest.raises(Stopped):
        finish(stoppable(lambda: slow.wait(20), cancel))
    assert time.perf_counter() - started < 5
    slow.set()
    assert finish(stoppable(lambda: 3, threading.Event())) == 3 and finish(stoppable(lambda: 4, None)) == 4
    with pytest.raises(KeyError):
        finish(stoppable(lambda: {}["no"], threading.Event()))


def turned(volume: Volume, *, transpose: bool, rows: bool, columns: bool, slices: bool) -> Volume:
    """The same body, with the axes of its array in another order or direction."""
    assert volume.frame is not None
    axes = (0, 2, 1) if transpose else (0, 1, 2)
    steps = np.zeros((4, 4))
    steps[3, 3] = 1
    for new, (old, flip) in enumerate(zip(axes, (slices, rows, columns), strict=True)):
        steps[old, new] = -1 if flip else 1
        steps[old, 3] = volume.frame.shape[old] - 1 if flip else 0
    array = volume.array.transpose(axes)[:: -1 if slices else 1, :: -1 if rows else 1, :: -1 if columns else 1]
    frame = Frame.from_affine(volume.frame.affine @ steps, array.shape)
    return replace(volume, array=array, frame=frame, slice_frames=tuple(frame.slice(k) for k in range(frame.shape[0])))


def in_body(region: VolumeRegion, frame: Frame) -> np.ndarray:
    """Where the voxels of a region lie, as indices of a frame, in order."""
    places = np.rint(frame.to_index(region.frame.to_lps(np.argwhere(region.mask)))).astype(int)
    return places[np.lexsort(places.T)]


@pytest.mark.parametrize("transpose", [False, True])
@pytest.mark.parametrize("flips", [(True, False, False), (False, True, False), (True, True, True)])
def test_how_a_scan_is_stored_changes_nothing(random: Engine, transpose: bool, flips: tuple[bool, ...]) -> None:
    volume = scan(9, 30, 34)
    rows, columns, slices = flips
    straight = ask(random, volume)
    other = ask(random, turned(volume, transpose=transpose, rows=rows, columns=columns, slices=slices))
    assert straight.volume_regions
    assert [r.label for r in straight.volume_regions] == [r.label for r in other.volume_regions]
    for one, two in zip(straight.volume_regions, other.volume_regions, strict=True):
        np.testing.assert_array_equal(in_body(one, one.frame), in_body(two, one.frame))


def test_a_real_scan_in_any_orientation(random: Engine, shared_data: Path, tmp_path: Path) -> None:
    source = nibabel.load(shared_data / "volumes" / "hippocampus" / "hippocampus_001.nii.gz")
    answers = []
    for letters in ("RAS", "LPS", "LPI", "ASR"):
        now, then = (
            nibabel.orientations.io_orientation(source.affine),
            nibabel.orientations.axcodes2ornt(tuple(letters)),
        )
        path = tmp_path / f"{letters}.nii"
        nibabel.save(source.as_reoriented(nibabel.orientations.ornt_transform(now, then)), path)
        answers.append(ask(random, open_volume(path), slices=range(8, 16)))
    for other in answers[1:]:
        assert other.text == answers[0].text
        for one, two in zip(answers[0].volume_regions, other.volume_regions, strict=True):
            assert one.label == two.label and one.key_slices == two.key_slices
            np.testing.assert_array_equal(in_body(one, one.frame), in_body(two, one.frame))


def film() -> Volume:
    frame = Frame.of_pixels((3, 20, 30))
    return Volume(
        array=np.zeros((3, 20, 30, 3), dtype=np.uint8),
        frame=frame,
        slice_frames=tuple(frame.slice(k) for k in range(3)),
        modality="Endoscopy",
        source=Source(kind="image", paths=(Path("film.png"),)),
    )


def gappy() -> Volume:
    problem = InputError("missing_slices", "2 slices are missing.", "Say --resample.")
    return replace(scan(), frame=None, problem=problem)


@pytest.mark.parametrize(
    ("volume", "how", "code"),
    [
        (scan, {"slices": range(5, 5)}, "empty_range"),
        (scan, {"slices": range(5, 99)}, "slice_out_of_range"),
        (scan, {"shown": 12}, "slice_out_of_range"),
        (scan, {"plane": "slanted"}, "unknown_plane"),
        (noise, {"plane": "coronal"}, "no_geometry"),
        (film, {}, "colour_volume"),
        (gappy, {}, "missing_slices"),
        (scan, {"text": "  "}, "empty_question"),
        (scan, {"text": "why " * 400}, "question_too_long"),
        (scan, {"options": {"memory": 100_000}}, "not_enough_memory"),
    ],
)
def test_bad_input_is_refused_before_any_work(random: Engine, volume: Callable, how: dict, code: str) -> None:
    passes = counted(random)
    with pytest.raises(InputError) as caught:
        ask(random, volume(), **how)
    assert caught.value.code == code and not passes
    assert "\n" not in str(caught.value)


def flat(gap: float = 10.0) -> Volume:
    """Slices of 1 mm pixels, ``gap`` mm apart."""
    volume = scan(6, 30, 34)
    frame = Frame.from_affine(np.diag([gap, 1.0, 1.0, 1.0])[[2, 1, 0, 3]], volume.array.shape)
    return replace(volume, frame=frame, slice_frames=tuple(frame.slice(k) for k in range(6)))


@pytest.mark.parametrize(
    ("plane", "said"),
    [("acquired", "10 mm apart and their pixels 1 mm (1:10)"), ("coronal", "pixels of 10 x 1 mm and lie 1 mm apart")],
)
@pytest.mark.parametrize("text", [ASKED, "the largest polyp"])
def test_long_thin_voxels_are_named_before_any_work(random: Engine, plane: str, said: str, text: str) -> None:
    passes = counted(random)
    volumes = VolumeEngine(random, pace=PACE)
    (sentence,) = volumes.plan(flat(), plane=plane).warnings  # type: ignore[arg-type]
    assert said in sentence and sentence.endswith((" where there is one.", " that were acquired."))
    stream = volumes.ask(text, flat(), plane=plane)  # type: ignore[arg-type]
    assert next(stream) == Warning(sentence) and not passes
    answer = fold(stream)
    assert answer.warnings.count(sentence) == 1
    assert not volumes.plan(flat(9.9), plane=plane).warnings and not volumes.plan(scan()).warnings  # type: ignore[arg-type]


def test_a_survey_finds_by_name(random: Engine) -> None:
    volumes, volume = VolumeEngine(random, pace=PACE), scan()
    told: list[Progress] = []
    survey = volumes.survey(volume, on_progress=told.append)
    assert list(survey.regions) == list(survey.presence) == CLASSES and survey.slices == tuple(range(12))
    assert told and told[-1].done == told[-1].total == 12
    found = [region for region in survey.regions.values() if region is not None]
    assert found, "the random model takes something for one of its classes"
    for name, region in survey.regions.items():
        presence = np.array([survey.presence[name][k] for k in survey.slices])
        assert ((presence >= 0) & (presence <= 1)).all()
        if region is not None:
            assert region.label == name and region.code.startswith("[C1_"), "the group of MR"
            assert region.frame is volume.frame and region.key_slices
            assert (presence[region.mask.any(axis=(1, 2))] > 0).all()
    few = volumes.survey(volume, ["the liver", "lungs"], slices=range(2, 9))
    assert list(few.regions) == ["the liver", "lungs"] and few.slices == tuple(range(2, 9))
    with pytest.raises(InputError, match="does not know"):
        volumes.survey(volume, ["femur"])
    cancel = threading.Event()
    cancel.set()
    with pytest.raises(MedSightError) as caught:
        VolumeEngine(random, pace=PACE).survey(volume, cancel=cancel)
    assert caught.value.code == "stopped"


def test_the_plan_counts_what_is_done(random: Engine) -> None:
    volume = scan()
    volumes = VolumeEngine(random, pace=PACE)
    plan = volumes.plan(volume, slices=range(2, 12))
    assert (plan.looks, plan.read, plan.kept, plan.words) == (10, 7, 10, "axial")
    assert plan.seconds == pytest.approx(10 * 0.01 + 7 * 0.02 + 4 * 10 * 0.001)
    assert plan.sentence.startswith("Looks at 10 axial slices (2 to 11) and reads 7: about 1 s and ")
    assert volumes.plan(volume, exact=True).read == 12
    twice = VolumeEngine(random, pace=PACE, budget=3 * PACE.kept).plan(volume)
    assert (twice.kept, twice.looks) == (3, 21) and "9 of them twice" in twice.sentence
    needed = plan.bytes
    assert VolumeEngine(random, pace=PACE, memory=int(needed / 0.9) + 9).plan(volume, slices=range(2, 12)).kept == 10
    timed = VolumeEngine(random).plan(volume)
    assert timed.seconds > 0 and timed.bytes > 0
    fold(volumes.ask(ASKED, volume, slices=range(2, 12)))
    assert volumes.plan(volume).looks == 2, "ten slices were seen before"


def test_the_same_words_in_a_row(scripted: Callable[..., Engine], named: Path) -> None:
    """Codes for one thing on one slice become one structure; for two things, two."""
    texts: Sequence[str] = ("A <p>polyp</p>[C0_1] and a <p>Polyp</p>[C0_2], the <p>liver</p>[C0_3].",)
    answer = ask(scripted(*texts, folder=named), scan(5), text="What is seen?", options={"key_slices": 1})
    assert [region.label for region in answer.volume_regions] == ["polyp", "liver"]

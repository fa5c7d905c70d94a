"""The same question gives the same answer from a model in this process and from a server: on real scans, with mini."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch

from medsight_core.backend import SegmentRequest, Stroke, Whole
from medsight_core.client import RemoteBackend
from medsight_core.errors import InputError
from medsight_core.events import Done, Failed, TextDelta
from medsight_core.imaging.volume import Volume, open_volume
from medsight_core.inference.engine import Engine
from medsight_core.inference.local import LocalBackend
from medsight_core.inference.scheduler import Scheduler
from medsight_core.regions import Prompt, Question
from tests.client.equal import assert_same
from tests.server.running import serving

SCANS = {
    "CT": "ct_abdomen_totalseg",
    "MR": "mr_brain_PGBM-003_FLAIR",
    "X-ray": "dx_chest",
    "Ultrasound": "us/gdcm-US-ALOKA-16.dcm",
}
QUESTIONS = {
    "CT": "Segment the liver in this image.",
    "MR": "Segment the lower-grade glioma in this image.",
    "X-ray": "Where are the left lung and the right lung?",
    "Ultrasound": "Is there a benign tumor?",
}


@dataclass(frozen=True, kw_only=True)
class Places:
    """The same model, here and on a server."""

    local: LocalBackend
    remote: RemoteBackend


def twin(engine: Engine) -> Engine:
    """The same model with nothing remembered."""
    return Engine(model=engine.model, processor=engine.processor, name=engine.name, digest=engine.digest)


@pytest.fixture(scope="module")
def mini() -> Engine:
    torch.set_num_threads(1)
    return Engine.from_pretrained(device="cpu")


@pytest.fixture(scope="module")
def places(mini: Engine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Places]:
    scheduler = Scheduler(twin(mini))
    with serving(scheduler, tmp_path_factory.mktemp("store")) as running:
        yield Places(local=LocalBackend(twin(mini)), remote=RemoteBackend(running.url))
    scheduler.close()


@pytest.fixture(scope="module")
def scans(shared_data: Path) -> dict[str, Volume]:
    return {name: open_volume(shared_data / "dicom" / folder) for name, folder in SCANS.items()}


def drawn(volume: Volume, k: int, kind: str = "point", *at: tuple[float, float], positive: bool = True) -> Stroke:
    """Something drawn at parts of the slice's height and width."""
    _, rows, columns = volume.slice_frame(k).shape
    points = volume.slice_frame(k).to_lps([[0, y * (rows - 1), x * (columns - 1)] for y, x in at])
    return Stroke(slice_index=k, prompt=Prompt(kind=kind, points=points, positive=positive))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", SCANS)
def test_a_conversation_about_a_slice(name: str, places: Places, scans: dict[str, Volume]) -> None:
    volume = scans[name]
    k, history = volume.middle, ()
    for text in (QUESTIONS[name], "What is shown in this image?", "Is it large?"):
        question = Question(text=text, volume=volume, slice_index=k, history=history)
        here = list(places.local.ask(question, max_new_tokens=40))
        assert_same(here, unsent(places.remote.ask(question, max_new_tokens=40)))
        assert isinstance(here[-1], Done)
        history = (*history, (text, here[-1].answer.raw))
    box = drawn(volume, k, "box", (0.3, 0.3), (0.7, 0.6)).prompt
    question = Question(text="What is this?", volume=volume, slice_index=k, prompts=(box,))
    assert_same(places.local.ask(question), unsent(places.remote.ask(question)))


@pytest.mark.parametrize("name", SCANS)
def test_clicks_on_a_slice(name: str, places: Places, scans: dict[str, Volume]) -> None:
    volume = scans[name]
    k = volume.middle
    strokes = [
        drawn(volume, k, "point", (0.5, 0.4)),
        drawn(volume, k, "scribble", (0.4, 0.3), (0.5, 0.35), (0.6, 0.3)),
        drawn(volume, k, "point", (0.1, 0.9), positive=False),
    ]
    for count in (1, 2, 3, 2) if name in ("CT", "MR") else (2,):
        request = SegmentRequest(volume=volume, slice_index=k, strokes=tuple(strokes[:count]))
        assert_same(places.local.segment(request), unsent(places.remote.segment(request)))
    request = SegmentRequest(volume=volume, slice_index=k, strokes=tuple(strokes[:1]), text="lesion")
    assert_same(places.local.segment(request), unsent(places.remote.segment(request)))


@pytest.mark.parametrize("name", ["CT", "MR"])
def test_a_whole_volume(name: str, places: Places, scans: dict[str, Volume]) -> None:
    volume = scans[name]
    middle = volume.middle
    slices = range(middle - 2, middle + 2)
    for text in (QUESTIONS[name], "What is shown here?"):
        question = Question(text=text, volume=volume, slice_index=middle)
        for whole in (Whole(slices=slices), Whole(slices=range(middle, middle + 2), exact=True, shown=middle)):
            assert_same(places.local.ask(question, whole=whole), unsent(places.remote.ask(question, whole=whole)))
    point = drawn(volume, middle, "point", (0.5, 0.4))
    requests = [
        SegmentRequest(volume=volume, slice_index=middle, whole=True, slices=slices, **what)  # type: ignore[arg-type]
        for what in ({"strokes": (point,)}, {"text": "the largest lesion"}, {"text": "adrenal glands"})
    ]
    for request in requests:
        assert_same(places.local.segment(request), unsent(places.remote.segment(request)))


def unsent(stream: Iterator) -> Iterator:
    """Without the note that the scan is sent, which is not needed in one process."""
    return (event for event in stream if getattr(event, "what", "") != "Sending the scan")


def test_both_refuse_the_same(places: Places, scans: dict[str, Volume]) -> None:
    volume = scans["CT"]
    outside = Prompt(kind="point", points=volume.slice_frame(3).to_lps([[0, -40, 5]]))
    elsewhere = Prompt(kind="point", points=volume.slice_frame(4).to_lps([[0, 40, 5]]))
    plain = Question(text="What?", volume=volume, slice_index=3)
    click = SegmentRequest(
        volume=volume, slice_index=3, strokes=(drawn(volume, 3, "point", (0.5, 0.5)),), slices=range(2)
    )
    asked = [
        lambda backend: backend.ask(replace(plain, prompts=(outside,))),
        lambda backend: backend.ask(replace(plain, prompts=(elsewhere,))),
        lambda backend: backend.ask(replace(plain, text="What? " * 2000)),
        lambda backend: backend.ask(plain, whole=Whole(slices=range(90, 95))),
        lambda backend: backend.ask(plain, max_new_tokens=0),
        lambda backend: backend.segment(click),
    ]
    for ask in asked:
        errors = []
        for backend in (places.local, places.remote):
            with pytest.raises(InputError) as caught:
                list(ask(backend))
            errors.append((caught.value.code, caught.value.sentence, caught.value.remedy))
        assert errors[0] == errors[1]


def test_what_they_are_is_the_same(places: Places) -> None:
    here, there = places.local.info(), places.remote.info()
    for name in ("version", "protocol", "model", "digest", "device", "dtype", "classes"):
        assert getattr(here, name) == getattr(there, name)
    assert here.capabilities <= there.capabilities
    assert [check.error for check in places.remote.check()] == [None] * 5


def test_stopping_ends_the_work_and_keeps_the_words(places: Places, scans: dict[str, Volume]) -> None:
    cancel, came = threading.Event(), []
    question = Question(text=QUESTIONS["X-ray"], volume=scans["X-ray"], slice_index=0)
    for event in places.remote.ask(question, cancel=cancel):
        came.append(event)
        if isinstance(event, TextDelta):
            cancel.set()
    assert isinstance(came[-1], Failed) and came[-1].code == "stopped"
    again = list(places.remote.ask(question))
    assert_same(places.local.ask(question), again)

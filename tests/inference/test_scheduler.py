"""Many questions at once: each gets its own answer, nobody starves, and what goes wrong stays with whose it is."""

from __future__ import annotations

import pickle
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from medsight_core.backend import Backend, SegmentRequest, Stroke, Whole
from medsight_core.errors import Busy, InputError, MedSightError
from medsight_core.events import Done, Event, Failed, Progress, RegionFound, TextDelta, Warning, fold
from medsight_core.imaging.volume import Volume
from medsight_core.inference.answering import Answering, Writing
from medsight_core.inference.decoding import Slots, Step
from medsight_core.inference.engine import Engine
from medsight_core.inference.faults import is_out_of_memory, is_sticky
from medsight_core.inference.local import LocalBackend
from medsight_core.inference.reply import finish
from medsight_core.inference.scheduler import Scheduler
from medsight_core.regions import Answer, Prompt, Question
from tests.inference.test_engine import click, questions, same
from tests.inference.tiny import ask_about, noise, stack

PATIENCE = 60.0
"""Seconds until a test gives up; no test takes them."""


@pytest.fixture
def fresh(checkpoint: Path) -> Engine:
    """An engine that remembers nothing yet and may be broken."""
    return Engine.from_pretrained(checkpoint, device="cpu")


@pytest.fixture
def scheduler(fresh: Engine) -> Iterator[Scheduler]:
    with Scheduler(fresh) as scheduler:
        yield scheduler


def until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.005)


class Gate:
    """Lets the language model pass when it is opened.

    Args:
        engine: Whose model.
    """

    def __init__(self, engine: Engine) -> None:
        self.passes: list[int] = []
        """How many texts each pass was about."""
        self._open = threading.Event()
        engine.model.model.language_model.register_forward_pre_hook(self._pass, with_kwargs=True)

    def _pass(self, module: object, arguments: tuple, options: dict) -> None:
        given = options.get("inputs_embeds", options.get("input_ids"))
        self.passes.append(len(given))
        assert self._open.wait(PATIENCE)

    def open(self) -> None:
        """Lets all passes through from now on."""
        self._open.set()


def failing(engine: Engine, error: Callable[[], BaseException], when: Callable[[int], bool]) -> list[int]:
    """From now on the language model fails in passes over so many texts; returns how many were in each pass."""
    passes: list[int] = []

    def fail(module: object, arguments: tuple) -> None:
        passes.append(len(arguments[0]))
        if when(len(arguments[0])):
            raise error()

    # In the second layer: the first one's key/values have grown by then.
    engine.model.model.language_model.layers[1].register_forward_pre_hook(fail)
    return passes


def scan(slices: int = 8, seed: int = 0) -> Volume:
    rng = np.random.default_rng(seed)
    return stack(np.cumsum(rng.normal(size=(slices, 40, 48)), axis=0).astype(np.float32))


def test_it_is_a_backend(scheduler: Scheduler) -> None:
    backend: Backend = scheduler
    info = backend.info()
    assert (info.model, info.digest, info.device) == (scheduler.engine.name, scheduler.engine.digest, "cpu")
    assert {"ask", "segment", "volumes", "prompts"} <= info.capabilities
    volume = noise()
    assert backend.open(volume).volume is volume


def test_a_question_alone_is_answered_as_by_the_engine_bit_for_bit(scheduler: Scheduler, engine: Engine) -> None:
    for question in questions():
        events = list(scheduler.ask(question, max_new_tokens=30))
        alone = list(engine.ask(question, max_new_tokens=30))
        assert [type(event) for event in events] == [type(event) for event in alone]
        for one, two in zip(events, alone, strict=True):
            if isinstance(one, RegionFound):
                assert (one.region.mask == two.region.mask).all() and one.region.score == two.region.score
            elif isinstance(one, Done):
                assert one.answer.raw == two.answer.raw
                assert one.answer.provenance.settings == two.answer.provenance.settings
            else:
                assert one == two


def test_sixteen_at_once_about_different_images_each_get_their_own_answer(scheduler: Scheduler, engine: Engine) -> None:
    asked = [ask_about(noise(40 + 3 * n, 70 - 2 * n, seed=n), f"The liver, {n}?") for n in range(16)]
    gate = Gate(scheduler.engine)
    with ThreadPoolExecutor(16) as clients:
        streams = [scheduler.ask(question, max_new_tokens=24) for question in asked]
        gate.open()
        answers = list(clients.map(fold, streams))
    assert max(gate.passes) == 8, "they were written together, and never too many"
    alone = [engine.answer(question, max_new_tokens=24) for question in asked]
    assert len({answer.raw for answer in alone}) > 8
    for one, two in zip(answers, alone, strict=True):
        same(one, two)


def answer_of(events: list[Event]) -> Answer:
    return next(event.answer for event in events if isinstance(event, Done))


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    plan=st.lists(
        st.tuples(st.integers(0, 4), st.integers(0, 12), st.one_of(st.none(), st.integers(0, 12)), st.booleans()),
        min_size=1,
        max_size=6,
    )
)
def test_however_texts_come_and_go_each_is_what_it_is_alone(engine: Engine, plan: list[tuple]) -> None:
    """Which question, when it joins, when it is stopped (or never), and whether it is then let go or cut."""
    asked = questions()
    writing = Writing(engine.slots())
    stops = [threading.Event() for _ in plan]
    answerings = [
        Answering(engine, engine.make_ready(asked[which], max_new_tokens=14), cancel=stop)
        for (which, *_), stop in zip(plan, stops, strict=True)
    ]
    got: dict[Answering, list[Event]] = {answering: [] for answering in answerings}
    written = dict.fromkeys(answerings, 0)
    left: set[Answering] = set()

    def take(steps: list[tuple[Answering, Step]]) -> None:
        for answering, step in steps:
            assert answering not in left
            written[answering] += step.token is not None
            got[answering] += answering.take(step)

    for moment in range(40):
        for n, (_, joins, leaves, drops) in enumerate(plan):
            answering = answerings[n]
            if joins == moment:
                take(writing.join([(answering, finish(answering.prepare()))]))
            if leaves is not None and joins + leaves == moment:
                if drops:
                    writing.leave(answering)
                    left.add(answering)
                else:
                    stops[n].set()
        take(writing.step())
    assert not len(writing)
    for (which, *_), answering in zip(plan, answerings, strict=True):
        if answering in left:
            continue
        alone = engine.answer(asked[which], max_new_tokens=max(1, written[answering]))
        mine = answer_of(got[answering])
        assert mine.raw == alone.raw
        assert mine.text == "".join(event.text for event in got[answering] if isinstance(event, TextDelta))
        assert [(r.code, r.span) for r in mine.regions] == [(r.code, r.span) for r in alone.regions]
        for one, two in zip(mine.regions, alone.regions, strict=True):
            assert np.mean(one.mask != two.mask) <= 1e-3
            if len(plan) == 1:
                assert (one.mask == two.mask).all() and one.score == two.score


def test_a_second_question_on_a_slice_sees_and_reads_nothing_again(scheduler: Scheduler) -> None:
    engine, volume = scheduler.engine, noise()
    first = fold(scheduler.ask(ask_about(volume)))
    counts = (engine.features.encoded, engine.perceived.passes)
    assert counts == (1, 1)
    read = engine.prefixes.read
    fold(scheduler.ask(ask_about(volume, "Is there a polyp?")))
    assert (engine.features.encoded, engine.perceived.passes) == counts
    words = engine.prefixes.read - read
    image = engine.make_ready(ask_about(volume)).cuts[0]
    assert 0 < words == len(engine.make_ready(ask_about(volume, "Is there a polyp?")).input_ids) - image
    later = ask_about(volume, "And the liver?", history=((ask_about(volume).text, first.raw),))
    read = engine.prefixes.read
    fold(scheduler.ask(later))
    made = engine.make_ready(later)
    assert engine.prefixes.read - read == len(made.input_ids) - made.cuts[-1], "only what is new is read"
    fold(scheduler.ask(ask_about(volume, prompts=(click(volume, 20, 30),))))
    assert (engine.features.encoded, engine.perceived.passes) == (1, 2), "a click costs one pass of the perceiver"


def test_the_queue_is_bounded_and_says_when_to_come_again(fresh: Engine) -> None:
    gate = Gate(fresh)
    with Scheduler(fresh, waiting=2, together=1) as scheduler:
        under_way = scheduler.ask(ask_about(noise()), max_new_tokens=3)
        until(lambda: scheduler.running == 1)
        waiting = [scheduler.ask(ask_about(noise()), max_new_tokens=3) for _ in range(2)]
        assert scheduler.waiting == 2
        with pytest.raises(Busy) as caught:
            scheduler.ask(ask_about(noise()))
        assert caught.value.code == "busy" and caught.value.retry_after >= 1
        again = pickle.loads(pickle.dumps(caught.value))
        assert (str(again), again.retry_after) == (str(caught.value), caught.value.retry_after)
        with pytest.raises(InputError, match="empty"):
            scheduler.ask(ask_about(noise(), " "))
        gate.open()
        for stream in (under_way, *waiting):
            fold(stream)
        until(lambda: scheduler.running == scheduler.waiting == 0)


def test_a_stream_that_is_stopped_ends_and_leaves_the_others_alone(scheduler: Scheduler, engine: Engine) -> None:
    asked = questions()[:3]
    gate, cancel = Gate(scheduler.engine), threading.Event()
    streams = [scheduler.ask(question, cancel=cancel if n == 1 else None) for n, question in enumerate(asked)]
    gate.open()
    events = []
    for event in streams[1]:
        events.append(event)
        if isinstance(event, TextDelta):
            cancel.set()
    stopped = answer_of(events)
    assert stopped.warnings[-1] == "The answer was stopped before it was complete."
    assert engine.answer(asked[1]).text.startswith(stopped.text)
    for n in (0, 2):
        same(fold(streams[n]), engine.answer(asked[n]))


@pytest.mark.parametrize("how", ["close", "drop"])
def test_a_stream_that_nobody_reads_any_more_costs_nothing_more(scheduler: Scheduler, how: str) -> None:
    gate = Gate(scheduler.engine)
    stream = scheduler.ask(ask_about(noise()))
    until(lambda: len(gate.passes) == 1)
    if how == "close":
        stream.close()
        assert list(stream) == []
    else:
        del stream
    gate.open()
    until(lambda: scheduler.running == 0)
    assert len(gate.passes) <= 2, "the pass that was under way, and at most one more"
    assert fold(scheduler.ask(ask_about(noise()), max_new_tokens=3)).raw


def test_what_waits_and_is_stopped_is_never_begun(fresh: Engine) -> None:
    gate, cancel = Gate(fresh), threading.Event()
    with Scheduler(fresh, together=1) as scheduler:
        first = scheduler.ask(ask_about(noise()), max_new_tokens=2)
        until(lambda: scheduler.running == 1)
        second = scheduler.ask(ask_about(noise()), cancel=cancel)
        cancel.set()
        gate.open()
        assert [event.code for event in second if isinstance(event, Failed)] == ["stopped"]
        fold(first)


def test_an_exception_fails_the_one_it_belongs_to(
    scheduler: Scheduler, engine: Engine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    bad = ask_about(noise(seed=9), "SECRET polyp?")
    take = Answering.take

    def faulty(self: Answering, step: Step) -> Iterator[Event]:
        if self.made.question is bad and step.token is not None and self.made.limit:
            raise KeyError(self.made.question.text)
        return take(self, step)

    monkeypatch.setattr(Answering, "take", faulty)
    gate = Gate(scheduler.engine)
    asked = [questions()[0], bad, questions()[1]]
    streams = [scheduler.ask(question, max_new_tokens=12) for question in asked]
    gate.open()
    failed = list(streams[1])[-1]
    assert isinstance(failed, Failed) and failed.code == "failed"
    assert "Traceback" not in failed.sentence and "SECRET" not in failed.sentence + failed.remedy + caplog.text
    assert "KeyError" in caplog.text
    monkeypatch.setattr(Answering, "take", take)
    for n in (0, 2):
        same(fold(streams[n]), engine.answer(asked[n], max_new_tokens=12))


def test_a_batch_that_fails_is_tried_in_parts_until_it_is_known_whose_fault_it_is(
    scheduler: Scheduler, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A text that the model cannot go on with, beside three that it can."""
    asked = [ask_about(noise(seed=n), f"Liver {n}?") for n in range(4)]
    limits = [10, 10, 11, 10]
    gate = Gate(scheduler.engine)
    streams = [scheduler.ask(question, max_new_tokens=n) for question, n in zip(asked, limits, strict=True)]
    together: list[int] = []
    read = Slots._read

    def poisoned(self: Slots) -> torch.Tensor:
        together.append(len(self))
        hidden = read(self)  # it fails behind the model, when key/values have grown already
        if len(self) != 3 and any(text.limit == 11 for text in self._rows):
            raise ValueError("no")
        return hidden

    monkeypatch.setattr(Slots, "_read", poisoned)
    gate.open()
    last = list(streams[2])[-1]
    assert isinstance(last, Failed) and last.code == "failed"
    answers = {n: fold(streams[n]) for n in (0, 1, 3)}
    assert max(together) == 4
    monkeypatch.setattr(Slots, "_read", read)
    for n, answer in answers.items():
        same(answer, engine.answer(asked[n], max_new_tokens=10))


def out_of_memory() -> BaseException:
    return torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


def test_too_little_memory_for_many_is_enough_for_fewer(scheduler: Scheduler, engine: Engine) -> None:
    asked = [ask_about(noise(seed=n), f"Liver {n}?") for n in range(6)]
    gate = Gate(scheduler.engine)
    streams = [scheduler.ask(question, max_new_tokens=10) for question in asked]
    passes = failing(scheduler.engine, out_of_memory, lambda count: count > 3)
    gate.open()
    answers = [fold(stream) for stream in streams]
    assert max(passes) > 3, "it was too much at first"
    for answer, question in zip(answers, asked, strict=True):
        same(answer, engine.answer(question, max_new_tokens=10))


@pytest.mark.parametrize("error", [out_of_memory, MemoryError])
def test_too_little_memory_even_so_is_said_and_the_next_one_is_answered(
    scheduler: Scheduler, engine: Engine, error: Callable[[], BaseException]
) -> None:
    failures = [4]

    def few(count: int) -> bool:
        failures[0] -= 1
        return failures[0] >= 0

    failing(scheduler.engine, error, few)
    with pytest.raises(MedSightError) as caught:
        fold(scheduler.ask(ask_about(noise()), max_new_tokens=10))
    assert caught.value.code == "out_of_memory" and "memory" in caught.value.sentence
    failures[0] = 0
    same(
        fold(scheduler.ask(ask_about(noise()), max_new_tokens=10)), engine.answer(ask_about(noise()), max_new_tokens=10)
    )


def test_too_little_memory_once_goes_unnoticed(scheduler: Scheduler, engine: Engine) -> None:
    """Wherever it strikes: in the encoder, in the prompt, in a step, in a mask, in a slice of a volume."""
    volume = scan()
    for module in ("vision", "perceiver", "language_model", "text_to_vision"):
        for whole in (None, Whole()):
            scheduler._clear()
            failures = [1]

            def fail(*given: object, failures: list[int] = failures) -> None:
                failures[0] -= 1
                if failures[0] >= 0:
                    raise torch.OutOfMemoryError("CUDA out of memory.")

            hook = getattr(scheduler.engine.model.model, module).register_forward_pre_hook(fail)
            question = ask_about(volume)
            answer = fold(scheduler.ask(question, whole=whole, max_new_tokens=40))
            hook.remove()
            alone = fold(LocalBackend(engine).ask(question, whole=whole, max_new_tokens=40))
            assert failures[0] < 0 and answer.raw == alone.raw
            assert len(answer.regions) + len(answer.volume_regions) > 0


@pytest.mark.parametrize(
    ("error", "sticky", "short"),
    [
        (RuntimeError("CUDA error: device-side assert triggered\nCUDA kernel errors might ..."), True, False),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), True, False),
        (RuntimeError("CUDA error: unspecified launch failure"), True, False),
        (RuntimeError("CUDA error: uncorrectable ECC error encountered"), True, False),
        (torch.AcceleratorError("CUDA error: misaligned address"), True, False),
        (RuntimeError("CUDA error: out of memory"), False, True),
        (torch.OutOfMemoryError("CUDA out of memory."), False, True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes."), False, True),
        (MemoryError(), False, True),
        (RuntimeError("The size of tensor a (3) must match the size of tensor b (4)"), False, False),
        (ValueError("device-side assert"), False, False),
        (KeyError("x"), False, False),
    ],
)
def test_what_a_fault_means(error: BaseException, sticky: bool, short: bool) -> None:
    assert (is_sticky(error), is_out_of_memory(error)) == (sticky, short)


def test_a_lost_device_ends_everything_by_name(scheduler: Scheduler) -> None:
    gate = Gate(scheduler.engine)
    streams = [scheduler.ask(ask_about(noise(seed=n))) for n in range(10)]
    failing(scheduler.engine, lambda: RuntimeError("CUDA error: device-side assert triggered"), lambda count: True)
    gate.open()
    assert {list(stream)[-1].code for stream in streams} == {"device_failed"}
    assert scheduler.sick is not None and scheduler.sick.code == "device_failed"
    with pytest.raises(MedSightError) as caught:
        scheduler.ask(ask_about(noise()))
    assert caught.value.code == "device_failed" and caught.value is not scheduler.sick
    assert (scheduler.running, scheduler.waiting) == (0, 0)


def test_nobody_starves(scheduler: Scheduler, engine: Engine) -> None:
    """Questions about a slice are answered, and a click is, while whole volumes are worked on."""
    long = [scheduler.ask(ask_about(scan(40, seed)), whole=Whole(exact=True)) for seed in (1, 2, 3)]
    seen = [next(stream) for stream in long[:2]]
    assert all(isinstance(event, Progress | Warning) for event in seen)
    volume = scan()
    asked = ask_about(volume)
    stroke = Stroke(slice_index=4, prompt=click(volume, 20, 20))
    request = SegmentRequest(volume=volume, slice_index=4, strokes=(stroke,))
    same(fold(scheduler.ask(asked, max_new_tokens=20)), engine.answer(asked, max_new_tokens=20))
    assert fold(scheduler.segment(request)).text
    assert scheduler.running + scheduler.waiting >= 3, "and the volumes are still under way"
    for stream in long:
        stream.close()
    until(lambda: scheduler.running == 0)


def test_a_volume_beside_words_gets_on_too(scheduler: Scheduler, engine: Engine) -> None:
    volume = scan()
    stop = threading.Event()

    def chatter() -> None:
        n = 0
        while not stop.is_set():
            n += 1
            fold(scheduler.ask(ask_about(noise(seed=n % 3), f"{n}?"), max_new_tokens=20))

    with ThreadPoolExecutor(2) as clients:
        talking = [clients.submit(chatter) for _ in range(2)]
        answer = fold(scheduler.ask(ask_about(volume), whole=Whole()))
        stop.set()
        for one in talking:
            one.result()
    alone = fold(LocalBackend(engine).ask(ask_about(volume), whole=Whole()))
    assert answer.raw == alone.raw and answer.warnings == alone.warnings
    for one, two in zip(answer.volume_regions, alone.volume_regions, strict=True):
        assert (one.mask == two.mask).all(), "what is read of a volume is read by itself"


def test_the_steps_of_long_work_are_short(engine: Engine) -> None:
    """Between two steps of work about a volume there is at most one pass of each part of the model."""
    passes = {"vision": 0, "language_model": 0}
    hooks = [
        getattr(engine.model.model, name).register_forward_hook(
            lambda *_, name=name: passes.update({name: passes[name] + 1})
        )
        for name in passes
    ]
    backend = LocalBackend(engine)
    volume = scan(20)
    try:
        for text, exact in ((ask_about(volume).text, False), (ask_about(volume).text, True), ("How large?", False)):
            steps = backend._volumes.steps(text, volume, exact=exact, cancel=threading.Event())
            worst = dict.fromkeys(passes, 0)
            before = dict(passes)
            for n, _ in enumerate(steps):
                if n > 8:  # the first ones time a slice
                    worst = {name: max(worst[name], passes[name] - before[name]) for name in passes}
                before = dict(passes)
            assert worst["vision"] <= 1 and worst["language_model"] <= 2
    finally:
        for hook in hooks:
            hook.remove()


def test_what_cannot_be_known_before_is_raised_before_the_first_event(
    scheduler: Scheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("medsight_core.inference.volumes.free_memory", lambda: 1000)
    stream = scheduler.ask(ask_about(scan()), whole=Whole())
    with pytest.raises(InputError) as caught:
        next(stream)
    assert caught.value.code == "not_enough_memory" and list(stream) == []


@pytest.mark.parametrize(
    ("whole", "options", "code"),
    [
        (Whole(slices=range(3, 99)), {}, "slice_out_of_range"),
        (Whole(plane="slanted"), {}, "unknown_plane"),  # type: ignore[arg-type]
        (Whole(shown=50), {}, "slice_out_of_range"),
        (Whole(), {"prompts": 1}, "prompt_on_volume"),
    ],
)
def test_bad_input_is_refused_before_it_waits(scheduler: Scheduler, whole: Whole, options: dict, code: str) -> None:
    volume = scan()
    prompts = (click(volume, 5, 5),) if options else ()
    question = Question(text="Liver?", volume=volume, slice_index=volume.middle, prompts=prompts)
    for backend in (scheduler, LocalBackend(scheduler.engine)):
        with pytest.raises(InputError) as caught:
            backend.ask(question, whole=whole)
        assert caught.value.code == code
    assert scheduler.running == scheduler.waiting == 0


def test_draining_takes_nothing_more_and_lets_the_rest_be_done(fresh: Engine) -> None:
    gate = Gate(fresh)
    with Scheduler(fresh) as scheduler:
        streams = [scheduler.ask(ask_about(noise(seed=n)), max_new_tokens=4) for n in range(3)]
        assert not scheduler.drain(0.05)
        with pytest.raises(MedSightError) as caught:
            scheduler.ask(ask_about(noise()))
        assert caught.value.code == "stopping"
        gate.open()
        assert scheduler.drain(PATIENCE)
        for stream in streams:
            assert fold(stream).raw


def test_closing_ends_streams_and_leaves_no_thread(fresh: Engine) -> None:
    before = set(threading.enumerate())
    gate = Gate(fresh)
    scheduler = Scheduler(fresh, together=1)
    streams = [scheduler.ask(ask_about(noise()), max_new_tokens=4) for _ in range(3)]
    streams.append(scheduler.ask(ask_about(scan()), whole=Whole()))
    threading.Timer(0.1, gate.open).start()
    scheduler.close()
    scheduler.close()
    for stream in streams[1:3]:
        (*_, last) = stream
        assert isinstance(last, Failed) and last.code == "stopped"
    (*_, last) = streams[0]
    assert isinstance(last, Done | Failed)
    with pytest.raises(MedSightError):
        scheduler.ask(ask_about(noise()))
    until(lambda: set(threading.enumerate()) <= before)


def test_a_prompt_beside_others_is_its_own(scheduler: Scheduler, engine: Engine) -> None:
    """One image, four places: no answer is mixed with that of another place."""
    volume = noise()
    asked = [ask_about(volume, prompts=(click(volume, 5 + 10 * n, 10 + 15 * n),)) for n in range(4)]
    gate = Gate(scheduler.engine)
    streams = [scheduler.ask(question, max_new_tokens=16) for question in asked]
    gate.open()
    for stream, question in zip(streams, asked, strict=True):
        same(fold(stream), engine.answer(question, max_new_tokens=16))


def test_segments_are_those_of_the_backend_in_this_thread(scheduler: Scheduler, engine: Engine) -> None:
    volume = scan()
    box = Prompt(kind="box", points=volume.slice_frame(4).to_lps([[0, 5, 6], [0, 30, 40]]))
    strokes = (Stroke(slice_index=4, prompt=box), Stroke(slice_index=4, prompt=click(volume, 12, 12)))
    local = LocalBackend(engine)
    for whole in (False, True):
        request = SegmentRequest(volume=volume, slice_index=4, strokes=strokes, whole=whole)
        one, two = fold(scheduler.segment(request)), fold(local.segment(request))
        assert one.text == two.text and one.warnings == two.warnings
        regions = ((*one.regions, *one.volume_regions), (*two.regions, *two.volume_regions))
        assert regions[0]
        for mine, other in zip(*regions, strict=True):
            assert (mine.mask == other.mask).all() and mine.score == other.score

"""A stream of events is folded into its answer, and its failures into errors."""

from __future__ import annotations

import pickle

import pytest

from medsight_core import events
from medsight_core.errors import CheckpointError, InputError, MedSightError
from medsight_core.regions import Answer, Provenance

ANSWER = Answer(text="ok", raw="ok", regions=(), warnings=(), provenance=Provenance(model="m", digest="d"))


def test_the_answer_of_a_stream_is_that_of_done() -> None:
    stream = [events.Progress(0, 2, "looking"), events.TextDelta("o"), events.Warning("mind"), events.TextDelta("k")]
    assert events.fold([*stream, events.Done(ANSWER)]) is ANSWER


def test_nothing_is_read_beyond_the_end() -> None:
    stream = iter([events.Done(ANSWER), events.TextDelta("left")])
    events.fold(stream)
    assert next(stream) == events.TextDelta("left")


def test_a_failure_is_raised_with_all_it_said() -> None:
    with pytest.raises(MedSightError) as caught:
        events.fold([events.TextDelta("o"), events.Failed("out_of_memory", "It needs 9 GB.", "Use --device cpu.")])
    assert (caught.value.code, str(caught.value)) == ("out_of_memory", "It needs 9 GB. Use --device cpu.")


@pytest.mark.parametrize("stream", [[], [events.TextDelta("half")]])
def test_a_stream_that_breaks_off_is_no_answer(stream: list[events.Event]) -> None:
    with pytest.raises(MedSightError, match="broke off"):
        events.fold(stream)


@pytest.mark.parametrize("kind", [MedSightError, InputError, CheckpointError])
def test_errors_say_what_and_what_to_do_and_travel_between_processes(kind: type[MedSightError]) -> None:
    error = pickle.loads(pickle.dumps(kind("bad_thing", "This is wrong.", "Do that.")))
    assert type(error) is kind
    assert (error.code, error.sentence, error.remedy) == ("bad_thing", "This is wrong.", "Do that.")
    assert str(error) == "This is wrong. Do that."
    assert str(kind("bad_thing", "This is wrong.")) == "This is wrong."

"""An answer that goes on where another attempt broke off is told once, or said to be another one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from medsight_core.events import Done, Event, Failed, Progress, RegionFound, TextDelta, Warning
from medsight_core.inference.engine import Engine
from medsight_core.server.replay import Told
from tests.inference.tiny import ask_about, noise


def answer_of(engine: Engine) -> list[Event]:
    return list(engine.ask(ask_about(noise())))


def broken(events: list[Event], after: int) -> Iterator[Event]:
    yield from events[:after]
    raise ConnectionError


def through(told: Told, events: Iterator[Event]) -> list[Event]:
    """What comes through, up to where it breaks off."""
    came = []
    try:
        for event in told.rest(events):
            came.append(event)
    except ConnectionError:
        pass
    return came


def known(event: Event) -> object:
    """An event without what is another object each time."""
    match event:
        case RegionFound(region):
            return ("region", region.code, region.label)
        case Done(answer):
            return ("done", answer.text)
        case _:
            return event


@pytest.mark.parametrize("breaks", [(0,), (3,), (1, 5), (9, 2, 14)])
def test_whatever_breaks_off_the_reader_is_told_everything_once(breaks: tuple[int, ...], engine: Engine) -> None:
    whole = answer_of(engine)
    assert sum(isinstance(event, RegionFound) for event in whole) > 1
    told, came = Told(), []
    for after in breaks:
        came += through(told, broken(whole, after))
    came += through(told, iter(whole))
    heard = [known(event) for event in came if not isinstance(event, Progress)]
    assert heard == [known(event) for event in whole if not isinstance(event, Progress)]


def test_words_may_come_in_other_pieces(engine: Engine) -> None:
    told = Told()
    first = through(told, broken([TextDelta("There is a les"), Warning("Mind.")], 2))
    done = answer_of(engine)[-1]
    second = through(
        told, iter([Warning("Mind."), TextDelta("There"), TextDelta(" is a lesion"), TextDelta("."), done])
    )
    assert [known(event) for event in first + second] == [
        TextDelta("There is a les"), Warning("Mind."), TextDelta("ion"), TextDelta("."), known(done),
    ]  # fmt: skip


@pytest.mark.parametrize("again", ["There is no", "T.", "XX"])
def test_another_answer_is_not_passed_off_as_the_rest(again: str) -> None:
    told = Told()
    through(told, broken([TextDelta("There is a")], 1))
    came = through(told, iter([TextDelta(again), TextDelta(" more")]))
    assert [type(event) for event in came] == [Failed] and came[0] == Failed(
        "interrupted", "The process that was answering died, and another one answers differently.", "Ask again."
    )


def test_other_regions_are_not_passed_off_as_the_rest(engine: Engine) -> None:
    first = next(event for event in answer_of(engine) if isinstance(event, RegionFound))
    told = Told()
    through(told, broken([first], 1))
    other = RegionFound(replace(first.region, label="another one"))
    assert isinstance(through(told, iter([other]))[0], Failed)

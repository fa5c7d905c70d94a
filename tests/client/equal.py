"""When two streams of events say the same, timings apart."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from medsight_core.events import Done, Event, Progress, RegionFound
from medsight_core.regions import Answer, Region, VolumeRegion


def assert_same(first: Iterable[Event], second: Iterable[Event]) -> None:
    """Both streams have the same events, with masks that are equal bit for bit."""
    mine, theirs = list(first), list(second)
    assert [type(event).__name__ for event in mine] == [type(event).__name__ for event in theirs]
    for one, other in zip(mine, theirs, strict=True):
        match one, other:
            case RegionFound(region), RegionFound(again):
                assert_same_region(region, again)
            case Done(answer), Done(again):
                assert_same_answer(answer, again)
            case Progress(_, _, what), Progress(_, _, again) if what.endswith("."):
                assert what.partition(":")[0] == again.partition(":")[0]  # then come seconds
            case _:
                assert one == other


def assert_same_answer(one: Answer, other: Answer) -> None:
    """The same words, codes and masks, from the same model."""
    assert (one.text, one.raw, one.warnings) == (other.text, other.raw, other.warnings)
    assert (one.provenance.model, one.provenance.digest) == (other.provenance.model, other.provenance.digest)
    settings = [plain(answer.provenance.settings) for answer in (one, other)]
    for guess in settings:
        guess.pop("estimated_seconds", None)
    assert settings[0] == settings[1]
    assert one.provenance.timings.keys() == other.provenance.timings.keys()
    for mine, theirs in ((one.regions, other.regions), (one.volume_regions, other.volume_regions)):
        assert len(mine) == len(theirs)
        for region, again in zip(mine, theirs, strict=True):
            assert_same_region(region, again)


def assert_same_region(one: Region | VolumeRegion, other: Region | VolumeRegion) -> None:
    """The same code, words, score and mask at the same place."""
    assert type(one) is type(other)
    assert (one.code, one.label, one.span, one.score) == (other.code, other.label, other.span, other.score)
    assert np.array_equal(one.mask, other.mask)
    assert np.array_equal(one.frame.affine, other.frame.affine) and one.frame.shape == other.frame.shape
    if isinstance(one, Region):
        assert isinstance(other, Region) and one.slice_index == other.slice_index
    else:
        assert isinstance(other, VolumeRegion) and one.key_slices == other.key_slices


def plain(value: Any) -> Any:
    """As JSON would have it."""
    if isinstance(value, dict):
        return {str(name): plain(one) for name, one in value.items()}
    return [plain(one) for one in value] if isinstance(value, list | tuple) else value

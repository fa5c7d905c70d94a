"""The command that asks the same again: what it keeps, and that it names whatever has become different."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.imaging.synthetic import write_series
from tests.server.bright import Brightness
from tests.slicer.binding import library
from tests.slicer.reference import Case, Outcome, differences, run

pytest.importorskip("qtpy", reason="the binding of the module's package needs Qt")

SCAN = Case(series="scan", k=2, questions=("What is bright?", "And now?"), throughout="Everything bright.")


@pytest.fixture
def outcome(tmp_path: Path) -> Any:
    values = np.zeros((5, 24, 24), np.uint16)
    values[1:4, 6:18, 6:18] = 4000
    write_series(tmp_path / "scan", stored=values)
    said: list[str] = []
    for _ in library("plain"):
        yield run(tmp_path, Brightness(), said.append, (SCAN,))
    assert len(said) == 4


def test_what_was_kept_is_read_again_and_is_the_same(outcome: Outcome, tmp_path: Path) -> None:
    assert [turn["state"] for turn in outcome.turns] == ["done"] * 4
    assert len(outcome.masks) >= 3 and all(mask.shape == (5, 24, 24) and mask.any() for mask in outcome.masks.values())
    outcome.save(tmp_path / "kept")
    again = Outcome.load(tmp_path / "kept")
    assert (again.model, again.turns) == (outcome.model, outcome.turns)
    assert differences(again, outcome) == []


def test_what_differs_is_named(outcome: Outcome) -> None:
    name, mask = next(iter(outcome.masks.items()))
    moved = {**outcome.masks, name: np.roll(mask, 1, axis=-1)}
    (said,) = differences(outcome, replace(outcome, masks=moved))
    assert "Dice of 0." in said and "What is bright?" in said
    cut = {**outcome.masks, name: mask[1:]}
    assert "another size" in differences(outcome, replace(outcome, masks=cut))[0]
    first, *rest = outcome.turns
    (said,) = differences(outcome, replace(outcome, turns=[{**first, "text": "Nothing."}, *rest]))
    assert 'is "Nothing."' in said
    (said,) = differences(outcome, replace(outcome, turns=[{**first, "findings": []}, *rest]))
    assert "findings were" in said
    assert "answers were kept" in differences(outcome, replace(outcome, turns=rest))[0]
    other = {**outcome.model, "digest": "another"}
    assert "Another model" in differences(outcome, replace(outcome, model=other))[0]

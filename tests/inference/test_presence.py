"""Which slices are read, and where a structure may be drawn."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as stn

from medsight_core.inference.presence import (
    PRESENT,
    choose_key_slices,
    denies,
    named_classes,
    strength,
    where_present,
)

KNOWN = ("aorta", "left lung", "liver", "malignant tumor", "right lung", "spleen")


def profile(**present: range) -> np.ndarray:
    """Forty slices; a class is sure on its range, surest in its middle."""
    found = np.zeros((40, len(KNOWN) + 1), dtype=np.float32)
    for name, slices in present.items():
        middle = (slices[0] + slices[-1]) / 2
        for k in slices:
            found[k, KNOWN.index(name.replace("_", " "))] = 0.95 - 0.4 * abs(k - middle) / len(slices)
    found[:, -1] = found[:, :-1].max(axis=1)
    return found


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("Where is the liver?", {"liver"}),
        ("Segment the left lung in this image.", {"left lung"}),
        ("Is there a malignant tumour in the spleen?", {"malignant tumor", "spleen"}),
        ("What is this?", set()),
        ("Show the lungs.", {"left lung", "right lung"}),
    ],
)
def test_what_a_question_names(text: str, names: set[str]) -> None:
    assert {KNOWN[n] for n in named_classes(text, KNOWN)} == names


def test_key_slices_lie_where_the_named_structure_is() -> None:
    liver = KNOWN.index("liver")
    chosen = choose_key_slices(profile(liver=range(10, 30), aorta=range(40)), count=5, named=[liver])
    assert len(chosen) == 5 and all(10 <= k < 30 for k in chosen)
    assert min(chosen) < 16 and max(chosen) > 24, "spread over it"


def test_without_a_name_every_structure_gets_a_slice() -> None:
    seen = profile(liver=range(2, 8), spleen=range(20, 26), aorta=range(32, 39))
    chosen = choose_key_slices(seen, count=3)
    for structure in (range(2, 8), range(20, 26), range(32, 39)):
        assert len(set(chosen) & set(structure)) == 1


def test_the_slice_that_is_shown_is_read() -> None:
    liver = KNOWN.index("liver")
    assert 39 in choose_key_slices(profile(liver=range(10, 30)), count=4, named=[liver], shown=39)
    assert choose_key_slices(profile(liver=range(10, 30)), count=1, named=[liver], shown=3) == (3,)


def test_where_nothing_is_seen_the_range_is_covered() -> None:
    chosen = choose_key_slices(profile(), count=4)
    assert len(chosen) == 4 and all(len(set(chosen) & set(range(n, n + 10))) == 1 for n in (0, 10, 20, 30))


@given(
    stn.arrays(np.float32, st.tuples(st.integers(1, 30), st.just(5)), elements=st.floats(0, 1, width=32)),
    st.integers(1, 9),
    st.data(),
)
def test_always_some_never_too_many(seen: np.ndarray, count: int, data: st.DataObject) -> None:
    named = data.draw(st.lists(st.integers(0, 3), max_size=3, unique=True))
    shown = data.draw(st.none() | st.integers(0, len(seen) - 1))
    chosen = choose_key_slices(seen, count=count, named=named, shown=shown)
    assert 1 <= len(chosen) <= count and list(chosen) == sorted(set(chosen))
    assert set(chosen) <= set(range(len(seen))) and (shown is None or shown in chosen)
    assert chosen == choose_key_slices(seen, count=count, named=named, shown=shown)


def test_where_a_structure_may_be_drawn() -> None:
    sure = np.array([0, PRESENT, 0, PRESENT, 0, 0, 1, 0], dtype=np.float32)
    assert where_present(sure).tolist() == [False, True, True, True, False, False, True, False]
    for few in (np.array([1.0], np.float32), np.array([1.0, 0.0], np.float32)):
        np.testing.assert_array_equal(where_present(few), few > 0)


def test_strength_of_nothing_named_is_that_of_anything() -> None:
    seen = profile(liver=range(3, 9))
    np.testing.assert_array_equal(strength(seen, []), seen[:, -1])
    assert not strength(seen, [KNOWN.index("spleen")]).any()


@pytest.mark.parametrize(
    ("text", "denied"),
    [
        ("There is no liver here.", True),
        ("No signs of the liver.", True),
        ("The liver is seen.", False),
        ("There is no spleen; the liver is large.", True),
        ("", False),
    ],
)
def test_what_a_text_denies(text: str, denied: bool) -> None:
    assert denies(text, "liver") is denied

"""Where a region goes on, who follows it where, and what the slices make together."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medsight_core.geometry import Frame
from medsight_core.inference.propagation import AREA_CHANGE, Chain, goes_on, innermost, join, prompts_for, shares
from medsight_core.regions import Region, Span

FRAME = Frame.from_affine(np.diag([3.0, 0.7, 0.7, 1.0])[[2, 1, 0, 3]], (9, 40, 40))


def square(side: int, k: int = 4, *, top: int = 5, left: int = 5, score: float = 0.8) -> Region:
    mask = np.zeros((40, 40), bool)
    mask[top : top + side, left : left + side] = True
    return Region(
        code="[C0_1]", label="liver", span=Span(0, 0), score=score, slice_index=k, mask=mask, frame=FRAME.slice(k)
    )


@pytest.mark.parametrize(
    ("before", "after", "same"),
    [
        (square(10), square(10, top=7), True),
        (square(10), square(20), True),
        (square(10), square(21), False),
        (square(20), square(10), True),
        (square(20), square(9), False),
        (square(10), square(10, top=15), False),
        (square(1), square(2), True),
    ],
)
def test_a_structure_keeps_its_size_and_overlaps_itself(before: Region, after: Region, same: bool) -> None:
    assert AREA_CHANGE == 4.0
    assert goes_on(before, after) is same


def test_a_chain_ends_at_nothing_and_at_another_structure() -> None:
    chain = Chain(start=square(10, 4), direction=1)
    chain.add(square(11, 5))
    assert (chain.last.slice_index, chain.ended) == (5, False)
    chain.add(square(11, 6, top=30))
    assert chain.ended and chain.last.slice_index == 5
    empty = Chain(start=square(10, 4), direction=-1)
    empty.add(None)
    assert empty.ended and empty.regions == []


def test_a_region_is_looked_for_by_a_click_with_and_without_its_mask() -> None:
    before = square(9, 4)
    (click, mask), (alone,) = prompts_for(before, FRAME.slice(5))
    assert (click.kind, mask.kind) == ("point", "mask") and alone is click
    assert mask.mask is not None and np.array_equal(mask.mask, before.mask)
    assert np.allclose(FRAME.to_index(click.points), [[5, 9, 9]])


@given(st.integers(0, 30), st.integers(0, 30), st.integers(1, 10), st.integers(1, 10))
def test_the_innermost_pixel_is_inside_and_as_far_from_the_border_as_any(
    top: int, left: int, rows: int, columns: int
) -> None:
    mask = np.zeros((40, 40), bool)
    mask[top : top + rows, left : left + columns] = True
    row, column = innermost(mask)
    assert mask[row, column]
    depth = min(row - top, top + rows - 1 - row, column - left, left + columns - 1 - column)
    assert depth == (min(rows, columns) - 1) // 2


def test_the_innermost_pixel_of_a_crooked_mask_lies_in_its_thick_part() -> None:
    mask = np.zeros((40, 40), bool)
    mask[20, :] = True
    mask[2:9, 30:37] = True
    mask[9:20, 33] = True
    assert innermost(mask) == (5, 33)


@given(st.sets(st.integers(3, 40), min_size=1, max_size=6), st.integers(0, 3), st.integers(41, 50))
def test_every_slice_belongs_to_the_nearest_drawing_and_to_one_only(starts: set[int], low: int, high: int) -> None:
    owners: dict[int, int] = {start: start for start in starts}
    for share in shares(starts, range(low, high)):
        for step in range(1, share.length + 1):
            k = share.start + share.direction * step
            assert k not in owners
            owners[k] = share.start
    assert sorted(owners) == list(range(low, high))
    for k, owner in owners.items():
        assert abs(k - owner) == min(abs(k - start) for start in starts)


def test_slices_are_joined_in_their_place() -> None:
    parts = {4: square(10, 4, score=0.9), 5: square(5, 5, score=0.5)}
    region = join(parts, frame=FRAME, code="[C0_1]", label="liver", drawn_on=[4])
    assert region.mask.sum() == 125 and region.slices == (4, 5) and region.key_slices == (4,)
    assert np.array_equal(region.mask[4], parts[4].mask) and not region.mask[3].any()
    assert region.score == pytest.approx((0.9 * 100 + 0.5 * 25) / 125)
    assert region.volume_mm3 == pytest.approx(125 * 3.0 * 0.7 * 0.7)
    assert region.span.of(region.label) == "liver"

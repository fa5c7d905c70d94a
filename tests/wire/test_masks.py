"""Masks packed and unpacked: bit for bit, small, and strict about what strangers send."""

from __future__ import annotations

import json
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from medsight_core.errors import InputError, MedSightError
from medsight_core.wire.masks import PackedMask, pack_mask, unpack_mask

shapes = arrays.array_shapes(min_dims=2, max_dims=3, min_side=1, max_side=17)


@settings(deadline=None)
@given(arrays.arrays(bool, shapes))
def test_a_mask_comes_back_bit_for_bit(mask: np.ndarray) -> None:
    packed = PackedMask.from_json(json.loads(json.dumps(pack_mask(mask).to_json())))
    back = unpack_mask(packed, shape=mask.shape)
    assert back.dtype == bool and back.shape == mask.shape and (back == mask).all()


@settings(deadline=None)
@given(arrays.arrays(bool, shapes))
def test_only_the_bounding_box_travels(mask: np.ndarray) -> None:
    packed = pack_mask(mask)
    outside = mask.copy()
    outside[tuple(slice(start, stop) for start, stop in packed.box)] = False
    assert not outside.any()
    for axis, (start, stop) in enumerate(packed.box):
        assert (stop == 0) == (not mask.any())
        assert not mask.any() or (mask.take(start, axis).any() and mask.take(stop - 1, axis).any())


def test_a_liver_in_a_large_scan_takes_few_bytes() -> None:
    mask = np.zeros((100, 512, 512), bool)
    mask[40:60, 100:300, 120:260] = True
    assert len(json.dumps(pack_mask(mask).to_json())) < 2000


def test_an_empty_mask_has_no_data() -> None:
    packed = pack_mask(np.zeros((4, 5), bool))
    assert packed == PackedMask(shape=(4, 5), box=((0, 0), (0, 0)), data=b"")
    assert not unpack_mask(packed, shape=(4, 5)).any()


def good() -> dict:
    mask = np.zeros((20, 30), bool)
    mask[3:9, 4:20] = True
    return pack_mask(mask).to_json()


@pytest.mark.parametrize(
    "change",
    [
        {"shape": [20]},
        {"shape": [20, 30, 1, 1]},
        {"shape": [0, 30]},
        {"shape": [20, 10**21]},
        {"shape": [20.0, 30]},
        {"shape": [True, 30]},
        {"shape": "20 30"},
        {"box": [[3, 9]]},
        {"box": [[9, 3], [4, 20]]},
        {"box": [[3, 21], [4, 20]]},
        {"box": [[-1, 9], [4, 20]]},
        {"box": [[3, 9, 1], [4, 20]]},
        {"box": [[0, 0], [0, 0]]},
        {"box": [[3, 9], [4, 19]]},
        {"data": ""},
        {"data": "!!!!"},
        {"data": "å"},
        {"data": None},
        {"data": "AAAA"},
        {"data": "A" * 4000},
        {"more": 1},
    ],
)
def test_a_mask_that_contradicts_itself_is_refused(change: dict) -> None:
    with pytest.raises(InputError) as caught:
        unpack_mask(PackedMask.from_json(good() | change), shape=(20, 30))
    assert caught.value.code in ("bad_mask", "bad_request")


def test_the_shape_is_the_scans_not_the_strangers() -> None:
    huge = PackedMask(shape=(10**9, 10**9), box=((0, 1), (0, 8)), data=zlib.compress(b"\xff"))
    with pytest.raises(InputError, match="expected"):
        unpack_mask(huge, shape=(20, 30))


@pytest.mark.parametrize("extra", [b"\xff", b"\xff" * 10**7])
def test_a_mask_does_not_inflate_beyond_its_box(extra: bytes) -> None:
    packed = PackedMask(shape=(512, 512), box=((0, 512), (0, 512)), data=zlib.compress(b"\xff" * 32768 + extra))
    with pytest.raises(InputError) as caught:
        unpack_mask(packed, shape=(512, 512))
    assert caught.value.code == "bad_mask"


def test_nothing_may_follow_the_data() -> None:
    packed = pack_mask(np.ones((5, 5), bool))
    with pytest.raises(InputError):
        unpack_mask(PackedMask(shape=(5, 5), box=packed.box, data=packed.data + b"x"), shape=(5, 5))


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_damage_is_a_named_error(data: st.DataObject) -> None:
    packed = pack_mask(np.random.default_rng(0).random((20, 30)) < 0.3)
    damaged = bytearray(packed.data)
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    cut = bytes(damaged[: data.draw(st.integers(0, len(damaged)))])
    try:
        unpack_mask(PackedMask(shape=packed.shape, box=packed.box, data=cut), shape=packed.shape)
    except MedSightError as error:
        assert error.code == "bad_mask"

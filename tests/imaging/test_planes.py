"""Volumes cut in other planes: the same body gives the same pictures however it is stored, and masks find back."""

from __future__ import annotations

from itertools import permutations, product
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medsight_core.errors import InputError
from medsight_core.geometry import Frame
from medsight_core.imaging.planes import Plane, check_slices, check_volume, reformat
from medsight_core.imaging.volume import Source, Volume

SHAPE = (5, 7, 9)  # of the body below: slices feet to head, rows front to back, columns to the patient's left
SPACING = (3.0, 0.8, 0.5)
VOXELS = np.arange(np.prod(SHAPE), dtype=np.float32).reshape(SHAPE)
BODY = np.array([[0.0, 0.0, 0.5, -20.0], [0.0, 0.8, 0.0, 30.0], [3.0, 0.0, 0.0, 100.0], [0, 0, 0, 1.0]])
STORAGES = list(product(permutations(range(3)), product((False, True), repeat=3)))


def stored(axes: tuple[int, ...] = (0, 1, 2), flips: tuple[bool, ...] = (False,) * 3, **changes: object) -> Volume:
    """The body with its axes in another order and direction."""
    steps = np.zeros((4, 4))
    steps[3, 3] = 1
    for new, (old, flip) in enumerate(zip(axes, flips, strict=True)):
        steps[old, new] = -1 if flip else 1
        steps[old, 3] += SHAPE[old] - 1 if flip else 0
    array = VOXELS.transpose(axes)[tuple(slice(None, None, -1 if flip else 1) for flip in flips)]
    frame = Frame.from_affine(BODY @ steps, array.shape)
    return Volume(
        array=array,
        frame=frame,
        slice_frames=tuple(frame.slice(k) for k in range(len(array))),
        modality="CT",
        source=Source(kind="nifti", paths=(Path("body.nii"),)),
        **changes,  # type: ignore[arg-type]
    )


@pytest.mark.parametrize(("axes", "flips"), STORAGES)
def test_one_body_one_set_of_pictures(axes: tuple[int, ...], flips: tuple[bool, ...]) -> None:
    volume = stored(axes, flips)
    axial = reformat(volume, "axial")
    np.testing.assert_array_equal(axial.volume.array, VOXELS)
    assert axial.volume.frame is not None
    np.testing.assert_allclose(axial.volume.frame.affine, BODY, atol=1e-12)
    coronal = reformat(volume, "coronal").volume
    np.testing.assert_array_equal(coronal.array, VOXELS.transpose(1, 0, 2)[:, ::-1])
    sagittal = reformat(volume, "sagittal").volume
    np.testing.assert_array_equal(sagittal.array, VOXELS.transpose(2, 0, 1)[::-1, ::-1])


@given(st.sampled_from(STORAGES), st.sampled_from(["acquired", "axial", "coronal", "sagittal"]), st.data())
@settings(max_examples=40, deadline=None)
def test_every_voxel_finds_its_place(storage: tuple, plane: Plane, data: st.DataObject) -> None:
    volume = stored(*storage)
    cut = reformat(volume, plane)
    assert volume.frame is not None and cut.volume.frame is not None
    index = tuple(data.draw(st.integers(0, size - 1)) for size in cut.volume.array.shape)
    mask = np.zeros(cut.volume.array.shape, dtype=bool)
    mask[index] = True
    back = cut.back(mask)
    (original,) = np.argwhere(back)
    assert volume.array[tuple(original)] == cut.volume.array[index]
    np.testing.assert_allclose(volume.frame.to_lps(original), cut.volume.frame.to_lps(index), atol=1e-9)
    assert original[cut.axis] == cut.index(index[0])
    np.testing.assert_array_equal(cut.forth(back), mask)
    place = cut.volume.slice_frame(index[0]).to_lps((0, *index[1:]))
    np.testing.assert_allclose(place, cut.volume.frame.to_lps(index), atol=1e-9)


@given(st.sampled_from(STORAGES))
@settings(max_examples=20, deadline=None)
def test_acquired_slices_keep_their_order_and_stand_upright(storage: tuple) -> None:
    volume = stored(*storage)
    cut = reformat(volume)
    assert cut.axis == 0 and [cut.index(k) for k in range(volume.n_slices)] == list(range(volume.n_slices))
    proper = reformat(volume, cut.words).volume.array  # type: ignore[arg-type]
    np.testing.assert_array_equal(cut.volume.array[::-1] if cut.backwards else cut.volume.array, proper)


def test_what_stands_upright_already_is_left_alone() -> None:
    volume = stored()
    for plane in ("acquired", "axial"):
        assert reformat(volume, plane).volume is volume
    assert reformat(volume).words == "axial"


def test_a_mask_of_another_plane_is_refused() -> None:
    with pytest.raises(ValueError, match="expected"):
        reformat(stored(), "coronal").back(np.zeros(SHAPE, dtype=bool))


def test_what_cannot_be_cut() -> None:
    picture = Volume(
        array=np.zeros((4, 6, 8), dtype=np.uint8).astype(np.int16),
        frame=Frame.of_pixels((4, 6, 8)),
        slice_frames=tuple(Frame.of_pixels((4, 6, 8)).slice(k) for k in range(4)),
        modality="Ultrasound",
        source=Source(kind="image", paths=(Path("a.png"),)),
    )
    assert reformat(picture).volume is picture and reformat(picture).words == ""
    one = stored()
    one = Volume(
        array=one.array[:1],
        frame=one.slice_frames[0],
        slice_frames=one.slice_frames[:1],
        modality="CT",
        source=one.source,
    )
    assert reformat(one, "axial").volume is one
    broken = stored()
    broken = Volume(
        array=broken.array,
        frame=None,
        slice_frames=broken.slice_frames,
        modality="CT",
        source=broken.source,
        problem=InputError("missing_slices", "Slice 3 is missing.", "Say --resample."),
    )
    for volume, plane, code in (
        (picture, "coronal", "no_geometry"),
        (one, "coronal", "one_slice"),
        (one, "upside", "unknown_plane"),
        (broken, "axial", "missing_slices"),
    ):
        with pytest.raises(InputError) as caught:
            reformat(volume, plane)  # type: ignore[arg-type]
        assert caught.value.code == code and caught.value.remedy
    with pytest.raises(InputError, match="missing"):
        check_volume(broken)


@pytest.mark.parametrize(
    ("slices", "code"),
    [
        (range(2, 2), "empty_range"),
        (range(4, 2), "empty_range"),
        (range(0, 5, 2), "slice_out_of_range"),
        (range(-1, 3), "slice_out_of_range"),
        (range(3, 6), "slice_out_of_range"),
        (range(9, 12), "slice_out_of_range"),
    ],
)
def test_a_bad_range_is_named(slices: range, code: str) -> None:
    with pytest.raises(InputError) as caught:
        check_slices(slices, reformat(stored()))
    assert caught.value.code == code and "0 to 4" in caught.value.sentence


def test_a_good_range_is_taken() -> None:
    cut = reformat(stored(), "sagittal")
    assert check_slices(None, cut) == range(9)
    assert check_slices(range(4, 9), cut) == range(4, 9)


def test_colour_pictures_are_no_volume() -> None:
    frame = Frame.of_pixels((3, 6, 8))
    film = Volume(
        array=np.zeros((3, 6, 8, 3), dtype=np.uint8),
        frame=frame,
        slice_frames=tuple(frame.slice(k) for k in range(3)),
        modality="Endoscopy",
        source=Source(kind="image", paths=(Path("film.png"),)),
    )
    with pytest.raises(InputError) as caught:
        check_volume(film)
    assert caught.value.code == "colour_volume"

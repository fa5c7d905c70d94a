"""References on bodies whose places are known: the same words mean the same voxels however the scan is stored."""

from __future__ import annotations

from itertools import permutations, product
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from medsight_core.geometry import Frame
from medsight_core.imaging.volume import open_volume
from medsight_core.laterality import NO_ORIENTATION, ONE_SIDED, body_midline
from medsight_core.referring import parse_reference
from medsight_core.regions import Region, Span, VolumeRegion
from medsight_core.resolving import Resolved, resolve, split
from tests.core.body import LESIONS, ORGANS, Grid, inside, region, regions, scan

KNOWN = ("liver", "spleen", "kidney", "lesion", "polyp")
ORDERS = tuple(permutations((0, 1, 2)))
GRIDS = [Grid(order=order, flips=(a, b, c)) for order in ORDERS for a, b, c in product((False, True), repeat=3)]

CASES = {
    "the largest lesion": ["large right"],
    "the two largest lesions": ["large right", "splenic"],
    "the second largest lesion": ["splenic"],
    "the smallest lesion": ["small right"],
    "the uppermost lesion": ["small right"],
    "the lowest lesion": ["middle liver"],
    "the most posterior lesion": ["splenic"],
    "the leftmost lesion": ["splenic"],
    "the rightmost lesion": ["large right"],
    "the lesion on the left": ["splenic"],
    "the lesions in the liver": ["large right", "middle liver", "small right"],
    "the lesion in the spleen": ["splenic"],
    "the lesions in the right lobe of the liver": ["large right", "small right"],
    "the lesion in the left lobe of the liver": ["middle liver"],
    "the smallest lesion in the right lobe": ["small right"],
    "the lesion nearest to the spleen": ["splenic"],
    "the liver lesion nearest to the spleen": ["middle liver"],
    "the lesion farthest from the spleen": ["small right"],
}


def letters(grid: Grid) -> str:
    """Where slices, rows and columns of a grid run to, such as "SPL"."""
    return "".join("LPSRAI"[axis + 3 * flip] for axis, flip in zip(grid.order, grid.flips, strict=True))


def ask(phrase: str, found: list[VolumeRegion], **options) -> Resolved:  # type: ignore[no-untyped-def]
    return resolve(parse_reference(phrase, KNOWN), found, **options)


def whole_midline(frame: Frame) -> float | None:
    return body_midline(scan(frame), frame, modality="CT")


@pytest.mark.parametrize("phrase", CASES)
@pytest.mark.parametrize("grid", [GRIDS[0], GRIDS[21], GRIDS[42]], ids=lambda g: f"{g.order}{g.flips}")
def test_a_phrase_means_the_same_lesions_on_every_grid(phrase: str, grid: Grid) -> None:
    frame = grid.frame
    resolved = ask(phrase, regions(frame), midline=whole_midline(frame))
    assert [piece.of.label for piece in resolved.pieces] == ["lesion"] * len(CASES[phrase])
    for piece, name in zip(resolved.regions(), CASES[phrase], strict=True):
        assert isinstance(piece, VolumeRegion)
        np.testing.assert_array_equal(piece.mask, inside(frame, LESIONS[name]))
        assert piece.frame is frame
        assert set(piece.key_slices) <= set(np.flatnonzero(piece.mask.any(axis=(1, 2))))


@pytest.mark.parametrize("grid", GRIDS, ids=letters)
def test_sides_are_the_patients_in_every_storage_order(grid: Grid) -> None:
    """All 48 orders and directions of the axes."""
    frame = grid.frame
    found, midline = regions(frame), whole_midline(frame)
    for phrase in ("the lesion on the left", "the rightmost lesion", "the lesion in the left lobe of the liver"):
        (piece,) = ask(phrase, found, midline=midline).regions()
        np.testing.assert_array_equal(piece.mask, inside(frame, LESIONS[CASES[phrase][0]]))


@settings(deadline=None, max_examples=12)
@given(
    grid=st.sampled_from(GRIDS),
    turn=st.tuples(*[st.floats(-15, 15)] * 3),
    side=st.sampled_from(["left", "right"]),
    by_pair=st.booleans(),
)
def test_left_is_the_patients_left_under_flips_permutations_and_rotations(grid, turn, side, by_pair) -> None:  # type: ignore[no-untyped-def]
    """With the body's middle, or only with the other kidney to compare with; the grid may lie aslant."""
    matrix = Rotation.from_euler("xyz", turn, degrees=True).as_matrix()
    frame = Grid(order=grid.order, flips=grid.flips, turn=matrix).frame
    midline = None if by_pair else whole_midline(frame)
    if midline is None:  # a flank leaves a grid that lies far aslant; the other kidney is there all the same
        assert by_pair or max(map(abs, turn)) > 5
    else:
        assert midline == pytest.approx(0, abs=12)
    resolved = ask(f"the {side} kidney", regions(frame), midline=midline)
    (found,) = resolved.regions()
    np.testing.assert_array_equal(found.mask, inside(frame, ORGANS[f"{side} kidney"]))
    assert not resolved.notes


@pytest.mark.parametrize("grid", [GRIDS[0], GRIDS[13]], ids=["axial", "other"])
def test_one_organ_across_the_middle_is_cut_there_and_it_is_said(grid: Grid) -> None:
    frame = grid.frame
    joined = region("kidney", inside(frame, ((0, 30, -30), (60, 15, 20))), frame)
    resolved = ask("left kidney", [joined], midline=0.0)
    (half,) = resolved.regions()
    x = frame.to_lps(np.argwhere(half.mask))[:, 0]
    assert x.min() > 0 and half.mask.sum() == pytest.approx(joined.voxels / 2, rel=0.15)
    assert "cut there" in resolved.notes[0]


def test_where_sides_cannot_be_told_it_is_said_in_one_sentence() -> None:
    frame = Grid(crop=(10.0, 150.0)).frame
    found = [region("kidney", inside(frame, ORGANS["left kidney"]), frame)]
    assert whole_midline(frame) is None
    one_sided = ask("the left kidney", found, midline=whole_midline(frame))
    assert (one_sided.pieces, one_sided.notes) == ((), (ONE_SIDED,))
    whole = regions(Grid().frame)
    assert ask("the left kidney", whole, placed=False, midline=0.0).notes == (NO_ORIENTATION,)
    assert ask("the uppermost lesion", whole, placed=False).notes == (NO_ORIENTATION,)
    pixels = Frame.of_pixels(Grid().frame.shape)
    bare = [region(r.label, r.mask, pixels) for r in whole]
    assert ask("the lesion on the left", bare, midline=0.0).notes == (NO_ORIENTATION,)
    assert len(ask("the largest lesion", bare).pieces) == 1  # size needs no orientation
    assert ask("the lesion on the left", [r for r in whole if r.label == "lesion"]).notes == (ONE_SIDED,)


def test_two_fragments_of_one_kidney_are_no_pair() -> None:
    frame = Grid(crop=(10.0, 150.0)).frame
    halves = inside(frame, ORGANS["left kidney"])
    halves[:, :, 8] = False  # cut in two beside each other
    assert len(split(region("kidney", halves, frame))) == 2
    assert ask("left kidney", [region("kidney", halves, frame)]).notes == (ONE_SIDED,)


def test_sides_with_names_give_the_middle_to_the_others() -> None:
    frame = Grid().frame
    named = [region(name, inside(frame, ORGANS[name]), frame) for name in ("left kidney", "right kidney")]
    lesions = [r for r in regions(frame) if r.label == "lesion"]
    (found,) = ask("the lesion on the left", [*lesions, *named]).regions()
    np.testing.assert_array_equal(found.mask, inside(frame, LESIONS["splenic"]))


def test_what_is_missing_is_said() -> None:
    frame = Grid().frame
    found = regions(frame)
    assert ask("the polyp", found).notes == ('Nothing was found for "the polyp".',)
    assert ask("the five largest lesions", found).notes == ("Only 4 were found.",)
    assert ask("the lesion", found).notes == ("There are 4; the largest comes first.",)
    assert not ask("the lesions", found).notes
    without = [r for r in found if r.label != "liver"]
    resolved = ask("the lesion in the liver", without)
    assert not resolved.pieces and "The liver was not found" in resolved.notes[0]
    assert "half is taken" in ask("the lesion in the left lobe of the liver", found).notes[0]


def test_whole_structures_are_not_split() -> None:
    frame = Grid().frame
    found = regions(frame)
    resolved = ask("all organs", found)
    assert [piece.of.label for piece in resolved.pieces] == ["liver", "spleen", "kidney"]
    for piece in resolved.pieces:
        np.testing.assert_array_equal(piece.region().mask, piece.of.mask)


def test_a_single_image_has_pieces_too() -> None:
    mask = np.zeros((20, 30), bool)
    mask[2:5, 2:5] = mask[10:18, 10:20] = True
    frame = Frame.of_pixels((1, 20, 30))
    found = Region(code="[C4_1]", label="polyp", span=Span(0, 0), score=0.7, slice_index=3, mask=mask, frame=frame)
    resolved = resolve(parse_reference("the smallest polyp", KNOWN), [found])
    (piece,) = resolved.regions()
    assert isinstance(piece, Region)
    assert piece.area_pixels == 9 and piece.mask[3, 3] and piece.slice_index == 3


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10**6))
def test_pieces_are_a_partition_as_simpleitk_counts_it(seed: int) -> None:
    random = np.random.default_rng(seed)
    mask = random.random((4, 9, 11)) < 0.12
    mask[0, 0, 0] = True
    whole = region("lesion", mask, Frame.of_pixels(mask.shape))
    pieces = split(whole)
    assert len(pieces) == int(
        sitk.GetArrayFromImage(sitk.ConnectedComponent(sitk.GetImageFromArray(mask.astype(np.uint8)), True)).max()
    )
    total = np.sum([piece.region().mask for piece in pieces], axis=0)
    np.testing.assert_array_equal(total, mask.astype(int))
    assert [piece.voxels for piece in pieces] == sorted((piece.voxels for piece in pieces), reverse=True)


def stored(image: sitk.Image, path: Path, orientation: str) -> Path:
    """The same image with its axes in another order; the file says so."""
    sitk.WriteImage(sitk.DICOMOrient(image, orientation), str(path))
    return path


@pytest.mark.parametrize("suffix", [".nii.gz", ".nrrd"])
@pytest.mark.parametrize("orientation", ["LPS", "RAS", "PIR", "SLA"])
def test_real_kidneys_keep_their_sides_in_every_storage_order(
    shared_data: Path, tmp_path: Path, orientation: str, suffix: str
) -> None:
    """A label map that tells left from right, a model that would not, and files in LPS, RAS and permuted orders."""
    labels = sitk.ReadImage(str(shared_data / "volumes" / "ct_abdomen_totalseg_3mm_seg.nii.gz"), sitk.sitkUInt8)
    scan_image = sitk.ReadImage(str(shared_data / "volumes" / "ct_abdomen_totalseg_3mm.nii.gz"), sitk.sitkInt16)
    volume = open_volume(stored(scan_image, tmp_path / f"scan{suffix}", orientation))
    seen = open_volume(stored(labels, tmp_path / f"labels{suffix}", orientation))
    frame = volume.require_frame()
    assert frame.is_close(seen.require_frame())
    right, left = (np.rint(seen.array) == number for number in (2, 3))
    found = [region("kidney", left | right, frame)]
    for midline in (None, body_midline(volume.array, frame, modality="CT")):
        for side, truth in (("left", left), ("right", right)):
            resolved = ask(f"the {side} kidney", found, placed=volume.has_place, midline=midline)
            (half,) = resolved.regions()
            overlap = 2 * (half.mask & truth).sum() / (half.mask.sum() + truth.sum())
            assert overlap > 0.99


def test_one_lesion_found_under_two_names_counts_once() -> None:
    frame = Grid().frame
    found = [region(name, inside(frame, LESIONS["large right"]), frame) for name in ("kidney tumor", "malignant tumor")]
    found.append(region("polyp", inside(frame, LESIONS["splenic"]), frame))
    known = tuple(one.label for one in found)
    assert len(resolve(parse_reference("all lesions", known), found).pieces) == 2

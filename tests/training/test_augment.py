"""Augmentation: nothing at strength 0, masks with their images, left and right where they belong."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from training.data.augment import MIRROR, affine, augment, intensity
from training.data.biomedparse import Sample, Target

SIDED = ("CT", "MRI", "X-Ray", "X-ray", "OCT", "something new")


def sample(image: np.ndarray, *masks: np.ndarray, modality: str = "CT") -> Sample:
    return Sample(
        image=image,
        targets=tuple(Target(names=(f"target {i}",), mask=mask) for i, mask in enumerate(masks)),
        dataset="d",
        modality=modality,
        site="chest",
        patient="1",
        diagnosis=None,
        path="x.png",
    )


def square(side: int = 64, *, row: int = 16, column: int = 16, reach: int = 6) -> tuple[np.ndarray, np.ndarray]:
    """A bright square on black, and its mask."""
    mask = np.zeros((side, side), bool)
    mask[row - reach : row + reach + 1, column - reach : column + reach + 1] = True
    return np.repeat((255 * mask.astype(np.uint8))[..., None], 3, axis=2), mask


def centre(plane: Tensor) -> tuple[float, float]:
    """Row and column of the centre of light, as shares of the picture from its middle, -0.5..0.5."""
    weight = plane.double() / plane.double().sum()
    rows, columns = (((torch.arange(n) + 0.5) / n - 0.5).double() for n in plane.shape)
    return float((weight.sum(1) * rows).sum()), float((weight.sum(0) * columns).sum())


@pytest.mark.parametrize("modality", ["CT", "Dermoscopy", "Ultrasound"])
def test_strength_zero_is_the_plain_image(modality: str) -> None:
    rng = np.random.default_rng(0)
    image, mask = rng.integers(0, 256, (64, 64, 3), dtype=np.uint8), rng.random((64, 64)) > 0.5
    out = augment([sample(image, mask, ~mask, modality=modality)] * 2, size=64, rng=rng, strength=0.0)
    plain = torch.from_numpy(image).permute(2, 0, 1).float() / 255
    torch.testing.assert_close(out.images, plain.expand(2, -1, -1, -1), atol=1e-5, rtol=0)
    coarse = torch.nn.functional.avg_pool2d(torch.from_numpy(mask).float()[None], 2)[0]
    assert [m.shape for m in out.masks] == [(2, 32, 32)] * 2
    torch.testing.assert_close(out.masks[1][0], coarse, atol=1e-5, rtol=0)
    torch.testing.assert_close(out.masks[1][1], 1 - coarse, atol=1e-5, rtol=0)


def test_larger_pictures_shrink_without_moving() -> None:
    """Twice the input's side, strength 0: averages of four pixels, and a mask at half the input's side on its place."""
    image, mask = square(128, row=40, column=90, reach=10)
    out = augment([sample(image, mask)], size=64, rng=np.random.default_rng(0), strength=0.0)
    assert out.images.shape == (1, 3, 64, 64) and out.masks[0].shape == (1, 32, 32)
    expected = torch.nn.functional.avg_pool2d(torch.from_numpy(image).permute(2, 0, 1).float() / 255, 2)
    torch.testing.assert_close(out.images[0], expected, atol=1e-5, rtol=0)
    for found in (out.images[0, 0], out.masks[0][0]):
        assert centre(found) == pytest.approx((40.5 / 128 - 0.5, 90.5 / 128 - 0.5), abs=5e-3)


@pytest.mark.parametrize("modality", [*SIDED, *MIRROR])
def test_masks_move_with_their_images(modality: str) -> None:
    """Over many draws, the bright square and its mask stay on top of each other."""
    image, mask = square(row=24, column=38, reach=9)
    rng = np.random.default_rng(1)
    out = augment([sample(image, mask, modality=modality)] * 24, size=64, rng=rng)
    moved = set()
    for picture, masks in zip(out.images, out.masks, strict=True):
        grey = torch.nn.functional.avg_pool2d(picture.mean(0)[None], 2)[0]
        found, truth = grey > (grey.max() + grey.min()) / 2, masks[0] > 0.5
        overlap = (found & truth).sum() / (found | truth).sum()
        assert overlap > 0.85
        moved.add(tuple(round(c, 2) for c in centre(masks[0])))
    assert len(moved) > 12, "the square never moved"


def corners(modality: str, seeds: int = 150) -> set[tuple[bool, bool]]:
    """Where a mark in the upper left corner is found: (lower half, right half)."""
    image, mask = square(row=16, column=16, reach=4)
    rng = np.random.default_rng(2)
    out = augment([sample(image, mask, modality=modality)] * seeds, size=64, rng=rng)
    places = [centre(m[0]) for m in out.masks]
    return {(row > 0, column > 0) for row, column in places}


@pytest.mark.parametrize("modality", SIDED)
def test_left_stays_left(modality: str) -> None:
    """CT, MRI, X-ray, and any modality that nobody has thought about, are never mirrored or turned over."""
    assert corners(modality) == {(False, False)}
    picture = sample(*square(), modality=modality)
    rng = np.random.default_rng(3)
    for _ in range(200):
        assert torch.linalg.det(affine(picture, rng, 1.0)[:, :2]) > 0


def test_what_has_no_left_is_mirrored() -> None:
    everywhere = {(False, False), (False, True), (True, False), (True, True)}
    for modality, how in MIRROR.items():
        assert corners(modality) == (everywhere if how == "dihedral" else {(False, False), (False, True)})


def test_mirrored_pictures_come_both_ways() -> None:
    """About half of the draws are mirrored: the sign of the map's determinant."""
    picture = sample(*square(), modality="Endoscopy")
    rng = np.random.default_rng(4)
    signs = [float(torch.linalg.det(affine(picture, rng, 1.0)[:, :2])) < 0 for _ in range(400)]
    assert 0.4 < np.mean(signs) < 0.6


def test_geometry_is_bounded() -> None:
    """No more than 15 degrees, a quarter in size, and a few hundredths of the side."""
    picture = sample(*square())
    rng = np.random.default_rng(5)
    for _ in range(300):
        matrix = affine(picture, rng, 1.0).double()
        values = torch.linalg.svdvals(matrix[:, :2])
        assert values.min() > 0.7 and values.max() < 1.4
        turn = torch.atan2(matrix[1, 0] - matrix[0, 1], matrix[0, 0] + matrix[1, 1])
        assert abs(float(torch.rad2deg(turn))) <= 15.5
        assert matrix[:, 2].abs().max() <= 0.08 + 1e-6


def test_intensity_touches_images_only_within_range() -> None:
    images = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    samples = [sample(*square(16), modality=m) for m in ("CT", "MRI", "Endoscopy", "Pathology")]
    out = intensity(images.clone(), samples, np.random.default_rng(6), 1.0)
    assert out.shape == images.shape and out.min() >= 0 and out.max() <= 1
    assert all(not torch.allclose(a, b, atol=1e-3) for a, b in zip(out, images, strict=True))


def test_grey_pictures_stay_grey() -> None:
    """A tint is for photographs; a scan's three channels stay equal."""
    image = np.repeat(np.random.default_rng(7).integers(20, 230, (32, 32, 1), dtype=np.uint8), 3, axis=2)
    rng = np.random.default_rng(8)
    scan = augment([sample(image)] * 4, size=32, rng=rng).images
    torch.testing.assert_close(scan[:, 0], scan[:, 1], atol=1e-5, rtol=0)
    photograph = augment([sample(image, modality="Endoscopy")] * 4, size=32, rng=rng).images
    assert (photograph[:, 0] - photograph[:, 1]).abs().max() > 0.01


def test_different_numbers_of_targets() -> None:
    """Every sample gets its own masks back, none included."""
    image, mask = square()
    samples = [sample(image), sample(image, mask, ~mask), sample(image, mask)]
    out = augment(samples, size=64, rng=np.random.default_rng(9))
    assert [len(m) for m in out.masks] == [0, 2, 1]
    assert out.samples == samples
    inside = (out.masks[1][0] > 0.99) & (out.masks[1][1] < 0.01)
    assert inside.any(), "a mask and its complement were exchanged"
    none = augment([sample(image)] * 2, size=64, rng=np.random.default_rng(9))
    assert [m.shape for m in none.masks] == [(0, 32, 32)] * 2


def test_the_same_seed_gives_the_same_batch() -> None:
    """All randomness comes from the generator: a resumed run sees the batches it would have seen."""
    picture = sample(*square(), modality="Endoscopy")
    first, second = (augment([picture] * 3, size=64, rng=np.random.default_rng(10)) for _ in range(2))
    assert torch.equal(first.images, second.images)
    assert all(torch.equal(a, b) for a, b in zip(first.masks, second.masks, strict=True))

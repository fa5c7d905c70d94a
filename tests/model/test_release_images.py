"""Pictures as the release prepares them: shortest edge fitted, bicubic, centre cropped, as open_clip evaluates.

`Resize` and `CenterCrop` of torchvision round in their own ways, which are written out here.
"""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from medsight_core.model import MedSightImageProcessor
from medsight_core.model.official_settings import IMAGE_OPTIONS

SIDE = 56
SHAPES = [(512, 512), (300, 511), (511, 301), (90, 57), (40, 30), (56, 56)]
LONG = (57, 2048)


def picture(shape: tuple[int, int]) -> np.ndarray:
    """Edges at every scale."""
    rng = np.random.default_rng(shape[0] * shape[1])
    coarse = rng.integers(0, 256, (9, 9, 3), dtype=np.uint8)
    smooth = np.asarray(Image.fromarray(coarse).resize(shape[::-1], Image.Resampling.NEAREST), np.int16)
    return (smooth + rng.integers(-40, 40, smooth.shape)).clip(0, 255).astype(np.uint8)


def prepare(image: np.ndarray) -> np.ndarray:
    """By the processor, back to 0..255 `(rows, columns, 3)`."""
    processor = MedSightImageProcessor(size=SIDE, image_mean=[0.0] * 3, image_std=[1.0] * 3, **IMAGE_OPTIONS)
    return (processor.pixels(image) * 255).permute(1, 2, 0).numpy()


def resized(shape: tuple[int, int]) -> tuple[int, int]:
    """torchvision's `Resize` of an int: the longer side is truncated."""
    short, long = sorted(shape)
    sides = SIDE, int(SIDE * long / short)
    return sides if shape[0] <= shape[1] else sides[::-1]


def cropped(array: np.ndarray) -> np.ndarray:
    """torchvision's `CenterCrop`: beginnings are rounded."""
    top, left = (round((n - SIDE) / 2.0) for n in array.shape[:2])
    return array[top : top + SIDE, left : left + SIDE]


@pytest.mark.parametrize("shape", SHAPES)
def test_as_resize_and_crop(shape: tuple[int, int]) -> None:
    """Pillow's resizing of the whole picture, then the crop: the same, to the last step."""
    image = picture(shape)
    whole = Image.fromarray(image).resize(resized(shape)[::-1], Image.Resampling.BICUBIC)
    expected = cropped(np.asarray(whole, np.float32))
    np.testing.assert_allclose(prepare(image), expected, atol=1e-3)


@pytest.mark.parametrize("shape", [*SHAPES, LONG])
def test_as_another_bicubic_filter(shape: tuple[int, int]) -> None:
    """torch's antialiased bicubic resizing, in floats; without pure black and white, which Pillow clips in between."""
    image = picture(shape) // 2 + 64
    planes = torch.from_numpy(image).permute(2, 0, 1)[None].float()
    whole = F.interpolate(planes, size=resized(shape), mode="bicubic", antialias=True, align_corners=False)
    expected = cropped(whole[0].permute(1, 2, 0).clamp(0, 255).numpy())
    assert np.abs(prepare(image) - expected).max() <= 1.1


def test_bilinear_would_differ() -> None:
    """The filter matters: what a bilinear one makes of the same picture is many steps away."""
    image = picture((300, 511))
    other = MedSightImageProcessor(size=SIDE, image_mean=[0.0] * 3, image_std=[1.0] * 3, fit="centre_crop")
    assert np.abs(prepare(image) - (other.pixels(image) * 255).permute(1, 2, 0).numpy()).max() > 8


@pytest.mark.parametrize("shape", [*SHAPES, LONG])
@pytest.mark.parametrize("aspect", [Fraction(1), Fraction(3, 2), Fraction(2, 3)])
def test_the_transform_tells_where_pixels_went(shape: tuple[int, int], aspect: Fraction) -> None:
    """A ramp along the columns, read back through the inverse, is where it was; inverse and transform are exact."""
    processor = MedSightImageProcessor(size=SIDE, image_mean=[0.0] * 3, image_std=[1.0] * 3, **IMAGE_OPTIONS)
    transform = processor.transform(shape, aspect)
    assert transform.then(transform.inverse()).scale == (1, 1)
    assert transform.then(transform.inverse()).offset == (0, 0)
    ramp = np.linspace(0, 255, shape[1]).round().astype(np.uint8)
    found = processor.pixels(np.broadcast_to(ramp[None, :, None], (*shape, 3)).copy(), aspect)[0, SIDE // 2] * 255
    columns = transform.inverse().points(np.stack([np.arange(SIDE), np.full(SIDE, SIDE // 2)], axis=1).astype(float))
    inner = slice(4, -4)  # at the rim the filter has pixels on one side only
    expected = np.interp(columns[:, 0], np.arange(shape[1]), np.linspace(0, 255, shape[1]))
    np.testing.assert_allclose(found.numpy()[inner], expected[inner], atol=1.5)

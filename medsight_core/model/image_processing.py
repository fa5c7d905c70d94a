"""From a picture as a person sees it to the model's input, with the exact way back.

Models trained here letterbox: nothing of a scan is thrown away. The released model fits the shortest edge, bicubic, and
crops the centre, as open_clip's evaluation transform does; its own configuration keeps that.
"""

from collections.abc import Sequence
from fractions import Fraction
from typing import Final, Literal

import numpy as np
import torch
from PIL import Image
from transformers.feature_extraction_utils import BatchFeature
from transformers.image_processing_utils import BaseImageProcessor

from medsight_core.geometry import GridTransform

LONGEST: Final = 8
"""Times its shorter side that a picture is resized whole before its centre is cut out; of a longer one only the centre
is resized, which spares memory and differs by the rounding between its two passes."""


class MedSightImageProcessor(BaseImageProcessor):
    """Resizes and normalises pictures.

    Args:
        size: side of the square input, pixels.
        fit: "letterbox" pads the shorter side; "centre_crop" cuts the longer one.
        resample: how values between pixels are found, antialiased where the picture shrinks; a letterbox is bilinear.
        image_mean, image_std: per channel, for values in 0..1.
        patch_size: pixels per side of one patch of the model's grid.
    """

    model_input_names = ["pixel_values"]

    def __init__(
        self,
        size: int = 336,
        fit: Literal["letterbox", "centre_crop"] = "letterbox",
        resample: Literal["bilinear", "bicubic"] = "bilinear",
        image_mean: Sequence[float] = (0.48145466, 0.4578275, 0.40821073),
        image_std: Sequence[float] = (0.26862954, 0.26130258, 0.27577711),
        patch_size: int = 14,
        **kwargs,
    ) -> None:
        super().__init__(**kwargs)
        self.size = size
        self.fit = fit
        self.resample = resample
        self.image_mean = list(image_mean)
        self.image_std = list(image_std)
        self.patch_size = patch_size

    def transform(self, shape: tuple[int, int], aspect: Fraction = Fraction(1)) -> GridTransform:
        """The map from a picture's grid to the model's input grid, whose pixels are square.

        Args:
            shape: rows and columns of the picture.
            aspect: height of one of its pixels by its width.
        """
        target = (self.size, self.size)
        if self.fit == "letterbox":
            return GridTransform.letterbox(shape, target, aspect=aspect)
        resized, top, left = self._centre(shape, aspect)
        return GridTransform.resize(shape, resized).then(GridTransform.crop(resized, top=top, left=left, size=target))

    def _centre(self, shape: tuple[int, int], aspect: Fraction) -> tuple[tuple[int, int], int, int]:
        """Rows and columns with the shorter side fitted, and where the crop begins; rounded as torchvision does."""
        height, width = shape[0] * aspect, Fraction(shape[1])
        shorter = min(height, width)
        rows, columns = (int(self.size * n / shorter) for n in (height, width))
        return (rows, columns), round((rows - self.size) / 2), round((columns - self.size) / 2)

    def __call__(self, images, return_tensors: str | None = "pt", **kwargs) -> BatchFeature:
        """Same as `preprocess`."""
        return self.preprocess(images, return_tensors=return_tensors)

    def preprocess(self, images, return_tensors: str | None = "pt", **kwargs) -> BatchFeature:
        """Make `pixel_values` `(batch, 3, size, size)` of pictures, arrays `(rows, columns, 3)` uint8 or PIL images."""
        if not isinstance(images, list | tuple):
            images = [images]
        pixels = torch.stack([self.pixels(np.asarray(image)) for image in images])
        return BatchFeature({"pixel_values": pixels}, tensor_type=return_tensors)

    def pixels(self, image: np.ndarray, aspect: Fraction = Fraction(1)) -> torch.Tensor:
        """One picture, `(3, size, size)` float32, normalised.

        Args:
            image: `(rows, columns, 3)` uint8.
            aspect: height of one of its pixels by its width.

        Raises:
            ValueError: when it is not `(rows, columns, 3)` uint8.
        """
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
            raise ValueError(f"picture is {image.dtype} {image.shape}, expected uint8 (rows, columns, 3)")
        fitted = torch.from_numpy(self._fitted(image, aspect)).permute(2, 0, 1).float() / 255
        mean, std = torch.tensor(self.image_mean), torch.tensor(self.image_std)
        return (fitted - mean[:, None, None]) / std[:, None, None]

    def _fitted(self, image: np.ndarray, aspect: Fraction) -> np.ndarray:
        """A picture on the model's input grid `(size, size, 3)` uint8."""
        if self.fit == "letterbox":
            return self.transform(image.shape[:2], aspect).image(image)
        (rows, columns), top, left = self._centre(image.shape[:2], aspect)
        picture, filtering = Image.fromarray(image), Image.Resampling[self.resample.upper()]
        if max(rows, columns) <= LONGEST * self.size:
            # Whole and then cropped, as the release does it: pixels beyond the crop's border have a say near it.
            whole = picture.resize((columns, rows), filtering)
            return np.array(whole.crop((left, top, left + self.size, top + self.size)))
        down, across = Fraction(image.shape[0], rows), Fraction(image.shape[1], columns)
        corners = (left * across, top * down, (left + self.size) * across, (top + self.size) * down)
        box = tuple(float(corner) for corner in corners)
        return np.array(picture.resize((self.size, self.size), filtering, box=box))

"""From a picture as a person sees it to the model's input, with the exact way back.

Models trained here letterbox: nothing of a scan is thrown away. Released checkpoints fit the shortest edge and crop the
centre, which their own configuration keeps.
"""

from collections.abc import Sequence
from fractions import Fraction
from typing import Literal

import numpy as np
import torch
from transformers.feature_extraction_utils import BatchFeature
from transformers.image_processing_utils import BaseImageProcessor

from medsight_core.geometry import GridTransform


class MedSightImageProcessor(BaseImageProcessor):
    """Resizes and normalises pictures.

    Args:
        size: side of the square input, pixels.
        fit: "letterbox" pads the shorter side; "centre_crop" cuts the longer one.
        image_mean, image_std: per channel, for values in 0..1.
        patch_size: pixels per side of one patch of the model's grid.
    """

    model_input_names = ["pixel_values"]

    def __init__(
        self,
        size: int = 336,
        fit: Literal["letterbox", "centre_crop"] = "letterbox",
        image_mean: Sequence[float] = (0.48145466, 0.4578275, 0.40821073),
        image_std: Sequence[float] = (0.26862954, 0.26130258, 0.27577711),
        patch_size: int = 14,
        **kwargs,
    ) -> None:
        super().__init__(**kwargs)
        self.size = size
        self.fit = fit
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
        height, width = float(shape[0] * aspect), float(shape[1])
        factor = self.size / min(height, width)
        resized = (max(self.size, round(height * factor)), max(self.size, round(width * factor)))
        top, left = ((n - self.size) // 2 for n in resized)
        return GridTransform.resize(shape, resized).then(GridTransform.crop(resized, top=top, left=left, size=target))

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
        fitted = torch.from_numpy(self.transform(image.shape[:2], aspect).image(image)).permute(2, 0, 1).float() / 255
        mean, std = torch.tensor(self.image_mean), torch.tensor(self.image_std)
        return (fitted - mean[:, None, None]) / std[:, None, None]

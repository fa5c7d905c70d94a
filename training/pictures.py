"""Sheets of small pictures, to look at what a model does while it trains."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from torch import Tensor

TILE = 192


def overlay_sheet(items: Sequence[tuple[Tensor, Tensor, Tensor, str]], path: Path, *, columns: int = 6) -> None:
    """One picture of many: prediction red, truth green, both yellow.

    Args:
        items: image `(3, h, w)` in 0..1, predicted and true mask `(h', w')` bool, caption.
        path: PNG to write; folders are made.
        columns: tiles in a row.
    """
    rows = max(1, -(-len(items) // columns))
    sheet = Image.new("RGB", (columns * TILE, rows * TILE))
    for place, (image, mask, truth, caption) in enumerate(items):
        picture = Image.fromarray((image.permute(1, 2, 0).numpy() * 255).astype(np.uint8)).resize((TILE, TILE))
        paint = np.zeros((*mask.shape, 3), np.uint8)
        paint[..., 0], paint[..., 1] = mask.numpy() * 255, truth.numpy() * 255
        colour = Image.fromarray(paint).resize((TILE, TILE), Image.Resampling.NEAREST)
        alpha = Image.fromarray(((mask | truth).numpy() * 110).astype(np.uint8)).resize((TILE, TILE))
        picture.paste(colour, mask=alpha)
        ImageDraw.Draw(picture).text((4, 4), caption, fill="white", stroke_width=1, stroke_fill="black")
        sheet.paste(picture, (place % columns * TILE, place // columns * TILE))
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path)

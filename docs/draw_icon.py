"""Draws the icon of the Slicer extension: what is said about a scan, and the finding that it is tied to.

python docs/draw_icon.py
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from PIL import Image, ImageDraw

FILE: Final = Path(__file__).resolve().parents[1] / "SlicerMedSIGHT" / "Resources" / "Icons" / "MedSIGHT.png"
SIZE: Final = 128
FINE: Final = 8
"""Drawn so many times as large, then made smaller: smooth edges."""

GROUND, BUBBLE, BODY, FINDING = "#14506e", "#ffffff", "#9db8c6", "#f2762e"


def icon() -> Image.Image:
    """The icon, as large as Slicer wants it."""
    image = Image.new("RGBA", (SIZE * FINE, SIZE * FINE), (0, 0, 0, 0))
    draw = ImageDraw.Draw(image)

    def at(*numbers: float) -> tuple[float, ...]:
        return tuple(number * FINE for number in numbers)

    draw.rounded_rectangle(at(2, 2, 126, 126), radius=28 * FINE, fill=GROUND)
    draw.polygon(at(36, 84, 36, 114, 70, 84), fill=BUBBLE)
    draw.rounded_rectangle(at(16, 18, 112, 94), radius=24 * FINE, fill=BUBBLE)
    draw.ellipse(at(28, 28, 100, 84), fill=BODY)
    draw.ellipse(at(60, 38, 92, 70), fill=FINDING)
    return image.resize((SIZE, SIZE), Image.Resampling.LANCZOS)


if __name__ == "__main__":
    FILE.parent.mkdir(parents=True, exist_ok=True)
    icon().save(FILE, optimize=True)

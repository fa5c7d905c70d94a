"""Draws the pictures of the extension's page: the views of a phantom, with its findings.

    python -m tests.slicer.pictures [FOLDER]

To be run as the tests of the views are (`make test-slicer`), off screen.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, Final

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from tests.slicer.phantom import add_findings, add_phantom
from tests.slicer.windows import Windows, picture

FOLDER: Final = Path(__file__).resolve().parents[2] / "SlicerMedSIGHT" / "Resources" / "Screenshots"
NAMES: Final = {"Red": "Axial", "Yellow": "Sagittal", "Green": "Coronal"}
BARS: Final = {"Red": "#f34a33", "Yellow": "#edd54c", "Green": "#6eb04b", "3D": "#7f9ed1"}
BAR: Final = 22


def four_up(windows: Windows) -> Image.Image:
    """The views as Slicer lays them out."""
    panels = [
        ("Red", NAMES["Red"], windows.slices["Red"]),
        ("3D", "3D", windows.space),
        ("Green", NAMES["Green"], windows.slices["Green"]),
        ("Yellow", NAMES["Yellow"], windows.slices["Yellow"]),
    ]
    drawn = [framed(picture(view), name, BARS[bar]) for bar, name, view in panels]
    width, height = drawn[0].size
    whole = Image.new("RGB", (2 * width + 2, 2 * height + 2), "#1e1e1e")
    for n, panel in enumerate(drawn):
        whole.paste(panel, ((n % 2) * (width + 2), (n // 2) * (height + 2)))
    return whole


def framed(pixels: Any, name: str, colour: str) -> Image.Image:
    """A view under its bar."""
    height, width = pixels.shape[:2]
    whole = Image.new("RGB", (width, height + BAR), colour)
    whole.paste(Image.fromarray(pixels), (0, BAR))
    ImageDraw.Draw(whole).text((8, BAR / 2), name, fill="#101010", anchor="lm", font=ImageFont.load_default(13))
    return whole


def main() -> None:
    """Draws and saves them."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    windows = Windows((520, 380))
    node, masks = add_phantom()
    windows.show(node)
    segments, _ = add_findings(node, masks)
    segments.node.CreateClosedSurfaceRepresentation()
    *_, lesion = segments.ids.values()
    for view in windows.slices.values():
        view.get_view_node().JumpSliceByOffsetting(*segments.centre(lesion))
    for name, one in zip(masks, segments.ids.values(), strict=True):
        segments.node.GetDisplayNode().SetSegmentOpacity3D(one, 0.4 if name == "liver" else 1.0)
    view_node = windows.space.get_view_node()
    view_node.SetBoxVisible(False)
    view_node.SetAxisLabelsVisible(False)
    windows.space.set_background_gradient_color([116, 120, 190], [193, 195, 232])
    windows.space.reset_view()
    windows.space.reset_focal_point()
    four_up(windows).save(folder / "findings.png", optimize=True)
    segments.emphasise(lesion)
    pair = [framed(picture(windows.slices[name]), NAMES[name], BARS[name]) for name in ("Red", "Green")]
    whole = np.concatenate([np.asarray(one) for one in pair], axis=1)
    Image.fromarray(whole).save(folder / "emphasised.png", optimize=True)


if __name__ == "__main__":
    main()

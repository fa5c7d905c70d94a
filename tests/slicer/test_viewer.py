"""In a real browser: a question typed, an answer read, its overlay seen on the scan, its word clicked.

The scene and its views are Slicer's own, drawn by trame-slicer (`viewer`), the answers are those of `medsight serve`
with mini in another process, and headless Chromium is told over its DevTools protocol what a person does (`chromium`).
With ``MEDSIGHT_SCREENSHOTS`` set to a folder, pictures of the page are left there.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray
from PIL import Image

pytest.importorskip("trame_slicer", reason="the views need slicer-core 5.11 and trame-slicer")
pytest.importorskip("aiohttp", reason="the browser is driven over a WebSocket")

from tests.slicer import chromium
from tests.slicer.serving import REPOSITORY, program, server_python, serving

CT = "seg_ct3slice_liver/ct"
PATIENCE = 120.0
WORD = '#conversation a[href^="finding"]'
COLOURED = 60
"""Of 255: how far the channels of a pixel lie apart that is not grey; its way to the browser is JPEG."""


@pytest.fixture
def page(shared_data: Path, tmp_path: Path) -> Iterator[tuple[chromium.Browser, Path]]:
    """The viewer in a browser, and the folder of its series."""
    python = server_python()
    if python is None:
        pytest.skip("no Python with torch to serve with (set MEDSIGHT_SERVER_PYTHON)")
    if chromium.found() is None:
        pytest.skip("Chromium is not installed")
    folder = shared_data / "dicom" / CT
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    with serving(python, tmp_path / "volumes") as server:
        command = [sys.executable, "-m", "tests.slicer.viewer", str(folder), "--server", server, "--slice", "1"]
        with program(command, environment) as viewer, chromium.browsing(tmp_path / "profile") as browser:
            browser.open(viewer.find(re.compile(r" at (http\S+)"), PATIENCE))
            browser.wait("#question", PATIENCE)
            yield browser, folder
            assert browser.errors == []


def view(browser: chromium.Browser, name: str) -> NDArray[np.int16]:
    """What a view shows; its edges are left out."""
    left, top, width, height = browser.place_of(f"#view-{name}")
    return browser.picture()[top + 2 : top + height - 2, left + 2 : left + width - 2].astype(np.int16)


def coloured(pixels: NDArray[np.int16]) -> NDArray[np.bool_]:
    found: NDArray[np.bool_] = np.ptp(pixels, axis=-1) > COLOURED
    return found


def keep(browser: chromium.Browser, name: str) -> None:
    folder = os.environ.get("MEDSIGHT_SCREENSHOTS")
    if folder:
        Image.fromarray(browser.picture()).save(Path(folder) / f"viewer_{name}.png")


@pytest.mark.timeout(400)
def test_a_question_typed_into_a_page_becomes_an_overlay_on_the_scan(page: Any) -> None:
    browser, folder = page

    def axial() -> NDArray[np.int16]:
        return view(browser, "Red")

    browser.wait(lambda: axial().std() > 20, PATIENCE)  # the scan is drawn, in grey alone
    assert coloured(axial()).mean() < 0.001
    keep(browser, "before")

    browser.click("#question")
    browser.type("Segment the liver in this image.")
    browser.enter()
    browser.wait(WORD, PATIENCE)
    browser.wait(lambda: coloured(axial()).mean() > 0.02, PATIENCE)
    browser.wait(lambda: coloured(view(browser, "ThreeD")).mean() > 0.001, PATIENCE)
    keep(browser, "answer")
    page_text = browser.value("document.querySelector('#conversation').innerText")
    assert "Segment the liver in this image." in page_text and "slice 1" in page_text
    assert browser.value(f"document.querySelector({WORD!r}).innerText") == "liver"

    # As large on the screen as it says: the view shows the rows of the slice from top to bottom.
    pixels, shown = axial(), coloured(axial())
    header = pydicom.dcmread(sorted(folder.glob("*.dcm"))[0], stop_before_pixels=True)
    millimetres = header.Rows * float(header.PixelSpacing[0]) / browser.place_of("#view-Red")[3]
    said = float(re.search(r"([\d,]+) mm²", page_text)[1].replace(",", ""))
    assert shown.sum() * millimetres**2 == pytest.approx(said, rel=0.05)

    # And in the colour that its word has: half of it, over the grey of the scan.
    square = browser.value(
        "getComputedStyle([...document.querySelectorAll('#conversation span')].find(e => e.innerText === '■')).color"
    )
    colour = np.array([int(one) for one in re.findall(r"\d+", square)[:3]])
    beneath = 2 * pixels[shown] - colour
    assert np.median(np.ptp(beneath, axis=-1)) < 30, "what lies under the colour is grey"

    browser.scroll("#view-Red", 1)
    browser.wait(lambda: coloured(axial()).mean() < 0.001, PATIENCE)  # it was found on that slice alone
    browser.click(WORD)
    browser.wait(lambda: coloured(axial()).mean() > 0.02, PATIENCE)
    keep(browser, "clicked")

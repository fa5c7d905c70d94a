"""A question on a real DICOM image and on a picture, and answers to them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydicom import examples

from medsight_core.imaging.volume import Volume, open_volume
from medsight_core.markup import parse_markup
from medsight_core.regions import Answer, Provenance, Question, Region

Answering = Callable[..., tuple[Question, Answer]]


@pytest.fixture(scope="session")
def ct() -> Volume:
    """pydicom's small CT image, 128 x 128."""
    return open_volume(Path(examples.get_path("ct")))


@pytest.fixture(scope="session")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Volume:
    """A colour picture of 60 rows and 90 columns."""
    rows, columns = np.mgrid[:60, :90]
    pixels = np.stack((rows * 4, columns * 2, rows + columns), axis=-1).astype(np.uint8)
    path = tmp_path_factory.mktemp("scans") / "DOE_JANE_1970.png"
    Image.fromarray(pixels).save(path)
    return open_volume(path)


@pytest.fixture
def answering() -> Answering:
    """Makes a question and its answer from a generated text; the n-th code gets the n-th mask and label."""

    def make(
        volume: Volume,
        raw: str = "The <p>left lung</p>[C4_3] and the <p>heart</p>[C4_7].",
        masks: Sequence[np.ndarray] | None = None,
        labels: Sequence[str] = ("left lung", "heart"),
        question: str = "What is this?",
        warnings: tuple[str, ...] = (),
    ) -> tuple[Question, Answer]:
        k = volume.middle
        frame = volume.slice_frame(k)
        _, rows, columns = frame.shape
        if masks is None:
            first, second = np.zeros((rows, columns), bool), np.zeros((rows, columns), bool)
            first[10:40, 5:30] = True
            second[20:50, 35:55] = True
            masks = (first, second)
        text, found = parse_markup(raw)
        regions = tuple(
            Region(code=str(code), label=label, span=span, score=score, slice_index=k, mask=mask, frame=frame)
            for (code, span), mask, label, score in zip(found, masks, labels, (0.91, 0.4, 0.6), strict=False)
        )
        answer = Answer(
            text=text,
            raw=raw,
            regions=regions,
            warnings=warnings,
            provenance=Provenance(
                model="fake-mini", digest="sha256:00ff", settings={"device": "cpu"}, timings={"decode": 0.25}
            ),
        )
        return Question(text=question, volume=volume, slice_index=k), answer

    return make

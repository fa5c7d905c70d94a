"""Masks come back where they belong."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medsight_core.geometry import Frame
from medsight_core.inference.checkpoint import open_checkpoint
from medsight_core.inference.engine import Engine
from medsight_core.inference.grounding import ground
from medsight_core.inference.loading import load
from medsight_core.inference.transcript import Mention
from medsight_core.model import MedSightForConditionalGeneration, MedSightImageProcessor
from medsight_core.regions import Span
from tests.inference.tiny import SIDE, ScriptedHead, ask_about, photograph, save_tiny, stack

MENTION = Mention(code="[C0_1]", label="square", span=Span(0, 6))


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    return np.count_nonzero(a & b) / np.count_nonzero(a | b)


def grounded(logits: np.ndarray, shape: tuple[int, int], *, fit: str = "letterbox", probability: float = 1.0):
    return ground(
        logits.astype(np.float32),
        mention=MENTION,
        probability=probability,
        transform=MedSightImageProcessor(size=128, fit=fit).transform(shape),
        slice_index=0,
        frame=Frame.of_pixels((1, *shape)),
    )


@settings(deadline=None, max_examples=40)
@given(
    rows=st.integers(40, 300),
    columns=st.integers(40, 300),
    grid=st.sampled_from([32, 64, 128]),
    fit=st.sampled_from(["letterbox", "centre_crop"]),
    corner=st.tuples(st.floats(0.25, 0.4), st.floats(0.25, 0.4)),
)
def test_a_rectangle_comes_back_to_its_place(
    rows: int, columns: int, grid: int, fit: str, corner: tuple[float, float]
) -> None:
    """A source rectangle, sent to the model's grid as a picture would be, returns to within a grid cell."""
    shape = (rows, columns)
    truth = np.zeros(shape, bool)
    top, left = int(corner[0] * rows), int(corner[1] * columns)
    truth[top : int(0.6 * rows), left : int(0.7 * columns)] = True
    transform = MedSightImageProcessor(size=128, fit=fit).transform(shape)
    seen = transform.image(truth.astype(np.float32))
    pooled = seen.reshape(grid, 128 // grid, grid, 128 // grid).mean((1, 3))
    region = grounded((pooled - 0.5) * 20, shape, fit=fit)
    assert region is not None and region.box is not None
    in_sight = transform.inverse().image(np.ones((128, 128), np.float32)) > 0.5
    x0, y0, x1, y1 = region.box
    ys, xs = np.nonzero(truth & in_sight)
    cell_y, cell_x = (128 / grid / float(factor) for factor in transform.scale)
    assert abs(y0 - ys.min()) <= cell_y and abs(y1 - ys.max()) <= cell_y
    assert abs(x0 - xs.min()) <= cell_x and abs(x1 - xs.max()) <= cell_x
    assert not (region.mask & ~in_sight).any()


@pytest.mark.parametrize("shape", [(40, 200), (200, 40), (33, 200)])
def test_what_the_letterbox_added_is_not_used(shape: tuple[int, int]) -> None:
    """Cells of the mask grid that show nothing of the picture are full of mask, and none of it is seen."""
    transform = MedSightImageProcessor(size=128).transform(shape)
    top, left = (int(offset / 2) for offset in transform.offset)
    bottom, right = (
        int(np.ceil(float(offset + n * scale) / 2))
        for offset, n, scale in zip(transform.offset, shape, transform.scale, strict=True)
    )
    logits = np.full((64, 64), 9.0)
    logits[top:bottom, left:right] = -9.0
    assert (logits > 0).mean() > 0.7
    assert grounded(logits, shape) is None
    region = grounded(-logits, shape)
    assert region is not None and region.mask.all()


def test_what_a_crop_cut_off_is_never_inside() -> None:
    region = grounded(np.full((64, 64), 9.0), (100, 200), fit="centre_crop")
    assert region is not None
    assert region.box == (50, 0, 149, 99)
    assert region.mask[:, 50:150].all()


def test_the_score_is_probability_times_certainty() -> None:
    logits = np.full((64, 64), -5.0)
    logits[16:48, 16:48] = np.log(0.8 / 0.2)
    region = grounded(logits, (128, 128), probability=0.5)
    assert region is not None
    # Pixels at the rim are less certain than those inside, so the mean lies a little below 0.8.
    assert 0.5 * 0.75 < region.score <= 0.5 * 0.8 + 1e-6
    sure = grounded(np.full((64, 64), 1e30), (128, 128))
    assert sure is not None and sure.score == pytest.approx(1.0)


@pytest.mark.parametrize("value", [-1.0, 0.0, -np.inf, np.nan])
def test_no_pixel_no_region(value: float) -> None:
    assert grounded(np.full((64, 64), value), (30, 70)) is None


def see_brightness(model: MedSightForConditionalGeneration, pixels: torch.Tensor, bright: torch.Tensor) -> None:
    """Makes the stem pass brightness on, and sets P_t→v so that every code's mask is what is bright.

    The query is the least-squares one on this image's features.
    """
    core = model.model
    first, last = core.vision.pixel_stem.layers[0], core.vision.pixel_stem.layers[2]
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for layer in (first, last):
            layer.weight.zero_()
            layer.bias.zero_()
        first.weight[:4, :, 1, 1], first.weight[4:, :, 1, 1] = 1.0, -1.0
        last.weight[:, :, 1, 1] = 3 * torch.randn(last.weight.shape[:2], generator=generator)
        features = core.encode_image(pixels[None]).regions.pixels[0].flatten(0, 1)
        target = torch.where(bright.flatten() > 0.5, 4.0, -4.0)
        wanted = torch.linalg.lstsq(features, target[:, None]).solution[:, 0]
        head, out = core.perceiver.segmentation_cls_head.proj, core.text_to_vision[-1]
        out.weight.zero_()
        out.bias.copy_(torch.linalg.solve(head.weight, wanted - head.bias))


@pytest.fixture
def sees_brightness(tmp_path: Path) -> Callable[[np.ndarray], Engine]:
    """Makes an engine that always names a square and whose masks are what is bright in pictures like the given one."""

    def make(picture: np.ndarray) -> Engine:
        model, processor = load(open_checkpoint(save_tiny(tmp_path / "tiny")))
        images = processor.image_processor
        bright = images.transform(picture.shape).image((picture > 128).astype(np.float32))
        half = torch.nn.functional.avg_pool2d(torch.from_numpy(bright)[None], 2)[0]
        see_brightness(model, images.pixels(np.repeat(picture[..., None], 3, axis=2)), half)
        script = processor.tokenizer("A bright <p>square</p>[C0_1].", add_special_tokens=False)["input_ids"]
        model.lm_head = ScriptedHead(
            [script], vocab_size=model.config.text_config.vocab_size, stop=processor.tokenizer.eos_token_id
        )
        return Engine(model=model, processor=processor, name="brightness", digest="0" * 16)

    return make


@pytest.mark.parametrize("shape", [(60, 110), (48, 60), (64, 64)])
def test_a_bright_square_is_found_where_it_is_in_the_patient(
    sees_brightness: Callable[[np.ndarray], Engine], shape: tuple[int, int]
) -> None:
    """From pixels through the whole model to a mask in patient space, on an oblique, anisotropic stack."""
    rows, columns = shape
    truth = np.zeros(shape, bool)
    truth[rows // 2 : rows // 2 + 24, columns // 8 : columns // 8 + 28] = True
    picture = np.where(truth, 255, 0).astype(np.uint8)
    volume = stack(np.stack([np.full(shape, 7, np.int16), picture.astype(np.int16), np.full(shape, 9, np.int16)]))
    answer = sees_brightness(picture).answer(ask_about(volume))
    (region,) = answer.regions
    assert (region.slice_index, region.label, region.code) == (1, "square", "[C0_1]")
    assert overlap(region.mask, truth) > 0.7

    def centre(mask: np.ndarray) -> np.ndarray:
        indices = np.argwhere(mask[None]).astype(float)
        return region.frame.to_lps(indices).mean(0)

    whole = volume.require_frame().to_lps(np.argwhere(truth[None]) + [1, 0, 0]).mean(0)
    assert np.linalg.norm(centre(region.mask) - whole) < 2.5 * volume.require_frame().spacing[1:].max()
    assert region.frame.is_close(volume.slice_frame(1))


def test_the_picture_decides_not_the_model(sees_brightness: Callable[[np.ndarray], Engine]) -> None:
    """The same query finds the square elsewhere: the mask is read from the image that is asked about."""
    first = np.zeros((SIDE, SIDE), np.uint8)
    first[8:32, 8:32] = 255
    second = np.rot90(first, 2).copy()
    engine = sees_brightness(first)
    for picture in (first, second):
        engine._model.lm_head.calls = 0
        (region,) = engine.answer(ask_about(photograph(np.repeat(picture[..., None], 3, 2)))).regions
        assert overlap(region.mask, picture > 128) > 0.7

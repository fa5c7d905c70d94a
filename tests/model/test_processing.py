"""From question, picture and drawing to model inputs, and the same after saving."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import AutoImageProcessor, AutoProcessor

from medsight_core.model import MedSightImageProcessor, MedSightProcessor
from medsight_core.prompt_raster import CHANNELS, Mark
from tests.model.small import build, convolutional, language
from training.tokenizer import build_tokenizer

TEXTS = ["The image shows the <p>left lung</p>[C0_1] and the <p>liver</p>[C1_0].", "What is the abnormality?", "No."]
GROUPS, CODES, COUNT = 2, 3, 7


def build_processor(**changes: object) -> MedSightProcessor:
    tokenizer = build_tokenizer(TEXTS, vocab_size=320, groups=GROUPS, codes=CODES)
    images = MedSightImageProcessor(size=64, image_mean=[0.5] * 3, image_std=[0.25] * 3, patch_size=16)
    return MedSightProcessor(images, tokenizer, num_visual_tokens=COUNT, **changes)


@pytest.fixture(scope="module")
def processor() -> MedSightProcessor:
    return build_processor()


def picture(rows: int, columns: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (rows, columns, 3), dtype=np.uint8)


def token(processor: MedSightProcessor, name: str) -> int:
    found = processor.tokenizer.convert_tokens_to_ids(name)
    assert isinstance(found, int)
    return found


def test_one_placeholder_per_visual_token(processor: MedSightProcessor) -> None:
    texts = [processor.chat("What is it?"), processor.chat("Outline the liver, please.", prompted=True)]
    out = processor(images=[picture(40, 60), picture(64, 64)], text=texts)
    ids, mask = out["input_ids"], out["attention_mask"]
    assert (ids == token(processor, "<image>")).sum(1).tolist() == [COUNT, COUNT]
    assert (ids == token(processor, "<prompt>")).sum(1).tolist() == [0, 1]
    assert out["pixel_values"].shape == (2, 3, 64, 64)
    assert "prompt_raster" not in out
    # Texts go on at their right end, so that padding stands on the left.
    assert mask[0, 0] == 0 and mask[:, -1].tolist() == [1, 1]


def test_chat_form(processor: MedSightProcessor) -> None:
    assert processor.chat("What is it?") == (
        "<|im_start|>user\n<image>\nWhat is it?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert processor.chat("What is it?", prompted=True) == (
        "<|im_start|>user\n<image>\n<prompt>\nWhat is it?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert processor.chat("What is it?", answer="A lung[C0_1].") == (
        "<|im_start|>user\n<image>\nWhat is it?<|im_end|>\n<|im_start|>assistant\nA lung[C0_1].<|im_end|>\n"
    )


def test_history(processor: MedSightProcessor) -> None:
    """The image stands in the first question, the drawing in the last."""
    text = processor.chat("And this?", history=[("What is it?", "A lung[C0_1].")], prompted=True)
    assert text == (
        "<|im_start|>user\n<image>\nWhat is it?<|im_end|>\n<|im_start|>assistant\nA lung[C0_1].<|im_end|>\n"
        "<|im_start|>user\n<prompt>\nAnd this?<|im_end|>\n<|im_start|>assistant\n"
    )


def test_prompt_of_the_model_is_a_prefix_of_its_training_text(processor: MedSightProcessor) -> None:
    """What inference ends with is exactly what training goes on from, as text and as tokens."""
    asked, answered = processor.chat("What is it?"), processor.chat("What is it?", answer="A lung[C0_1].")
    assert answered.startswith(asked)
    short, long = (processor(text=t)["input_ids"][0].tolist() for t in (asked, answered))
    assert long[: len(short)] == short


def test_released_models_have_no_generation_header() -> None:
    processor = build_processor(generation_header=False)
    assert processor.chat("What is it?").endswith("What is it?<|im_end|>\n")


def test_codes_are_single_tokens_and_stay_visible(processor: MedSightProcessor) -> None:
    ids = processor(text=TEXTS[0])["input_ids"][0].tolist()
    vocabulary = processor.codes
    assert len(vocabulary) == GROUPS * CODES
    assert [str(code) for i in ids if (code := vocabulary.code(i)) is not None] == ["[C0_1]", "[C1_0]"]
    assert processor.tokenizer.decode(ids, skip_special_tokens=True) == TEXTS[0]


@pytest.mark.parametrize("shape", [(40, 80), (90, 30), (64, 64), (513, 200)])
@pytest.mark.parametrize("fit", ["letterbox", "centre_crop"])
def test_a_mark_lands_on_what_it_was_drawn_on(shape: tuple[int, int], fit: str) -> None:
    """A bright spot in a picture that is not square: the click's peak is where the spot is in the model's input."""
    rows, columns = shape
    images = MedSightImageProcessor(size=64, fit=fit, image_mean=[0.0] * 3, image_std=[1.0] * 3)
    processor = build_processor()
    processor.image_processor = images
    row, column = rows // 2 + min(shape) // 5, columns // 2 - min(shape) // 4
    reach = max(2, min(shape) // 16)
    dark = np.zeros((rows, columns, 3), np.uint8)
    dark[row - reach : row + reach + 1, column - reach : column + reach + 1] = 255
    place = images.transform(shape).points(np.array([[column, row]]))
    out = processor(images=[dark], prompts=[[Mark(kind="point", xy=place)]])
    light = out["pixel_values"][0, 0].double()
    grid = torch.arange(64, dtype=torch.float64)
    spot = ((light.sum(0) * grid).sum() / light.sum(), (light.sum(1) * grid).sum() / light.sum())
    point = out["prompt_raster"][0, CHANNELS.index("point")]
    peak = divmod(int(point.argmax()), 64)
    assert abs(peak[1] - float(spot[0])) <= 0.75 and abs(peak[0] - float(spot[1])) <= 0.75
    assert out["prompt_raster"].shape == (1, len(CHANNELS), 64, 64)


def test_raster_only_where_somebody_drew(processor: MedSightProcessor) -> None:
    mark = Mark(kind="point", xy=np.array([[5.0, 6.0]]))
    assert "prompt_raster" not in processor(images=[picture(9, 9)], prompts=[[]])
    raster = processor(images=[picture(9, 9)] * 2, prompts=[[], [mark]])["prompt_raster"]
    assert not raster[0].any() and raster[1].any()


@given(rows=st.integers(1, 300), columns=st.integers(1, 300), fit=st.sampled_from(["letterbox", "centre_crop"]))
@settings(max_examples=60, deadline=None)
def test_the_way_back_is_exact(rows: int, columns: int, fit: str) -> None:
    """Any picture's pixel goes to the input and back to itself; the input is full or padded, never stretched apart."""
    transform = MedSightImageProcessor(size=64, fit=fit).transform((rows, columns))
    assert transform.source == (rows, columns) and transform.target == (64, 64)
    corners = np.array([[0, 0], [columns - 1, rows - 1]], float)
    np.testing.assert_allclose(transform.inverse().points(transform.points(corners)), corners, atol=1e-6)
    there = transform.points(np.array([[-0.5, -0.5], [columns - 0.5, rows - 0.5]]))
    if fit == "letterbox":
        assert there.min() >= -0.5 - 1e-9 and there.max() <= 63.5 + 1e-9
    else:
        assert (there[0] <= -0.5 + 1e-9).all() and (there[1] >= 63.5 - 1e-9).all()


def test_normalised(processor: MedSightProcessor) -> None:
    """Values 0..255 to (v / 255 - mean) / std, arrays and PIL pictures alike."""
    array = picture(64, 64)
    found = processor.image_processor(array)["pixel_values"]
    expected = (torch.from_numpy(array).permute(2, 0, 1).float() / 255 - 0.5) / 0.25
    torch.testing.assert_close(found[0], expected)
    assert torch.equal(processor.image_processor(Image.fromarray(array))["pixel_values"], found)


@pytest.mark.parametrize(
    "wrong",
    [np.zeros((8, 8), np.uint8), np.zeros((8, 8, 4), np.uint8), np.zeros((8, 8, 3), np.float32)],
    ids=["grey", "four channels", "float"],
)
def test_other_pictures_are_refused(processor: MedSightProcessor, wrong: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"expected uint8 \(rows, columns, 3\)"):
        processor(images=[wrong])


def test_saved_processor_is_the_same(processor: MedSightProcessor, tmp_path: Path) -> None:
    """Through the Auto classes, beside a model."""
    build(convolutional(text_config=language(vocab_size=320))).save_pretrained(tmp_path)
    odd = build_processor(generation_header=False)
    odd.image_processor.fit = "centre_crop"
    odd.save_pretrained(tmp_path)
    found = AutoProcessor.from_pretrained(tmp_path)
    assert type(found) is MedSightProcessor
    assert (found.num_visual_tokens, found.generation_header) == (COUNT, False)
    assert type(found.image_processor) is MedSightImageProcessor
    assert type(AutoImageProcessor.from_pretrained(tmp_path)) is MedSightImageProcessor
    text = odd.chat("Outline the liver.", prompted=True)
    assert found.chat("Outline the liver.", prompted=True) == text
    marks = [[Mark(kind="box", xy=np.array([[3.0, 4.0], [30.0, 20.0]]))]]
    ours = odd(images=[picture(50, 90)], text=text, prompts=marks)
    theirs = found(images=[picture(50, 90)], text=text, prompts=marks)
    assert ours.keys() == theirs.keys() == {"pixel_values", "prompt_raster", "input_ids", "attention_mask"}
    for name in ours:
        assert torch.equal(ours[name], theirs[name])
    assert set(found.model_input_names) == set(ours.keys())

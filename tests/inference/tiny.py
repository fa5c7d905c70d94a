"""A real MedSIGHT model of some ten thousand weights, and what the tests of the engine ask it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import CLIPVisionConfig, Qwen3Config, ResNetConfig

from medsight_core.codes import RegionVocabulary
from medsight_core.geometry import Frame
from medsight_core.imaging.volume import Source, Volume
from medsight_core.model import (
    MedSightConfig,
    MedSightForConditionalGeneration,
    MedSightImageProcessor,
    MedSightProcessor,
)
from medsight_core.regions import Question
from training.tokenizer import build_tokenizer

SIDE = 64
SENTENCES = [
    "Segment the left lung in this image.",
    "The image shows the left lung and the right lung.",
    "Is there a polyp? No, there is no polyp here.",
    "The liver is seen, and a bright square with it.",
]


def save_tiny(folder: Path, *, vision: str = "resnet", tied: bool = False, half: bool = False, **options: Any) -> Path:
    """Saves a checkpoint with random weights that likes to write region codes.

    Args:
        folder: Where to.
        vision: "resnet" or "clip".
        tied: One matrix for reading and writing words.
        half: Store in float16.
        options: For `MedSightConfig` and, by the name ``fit``, for the image processor.
    """
    torch.manual_seed(3)
    fit = options.pop("fit", "letterbox")
    tokenizer = build_tokenizer(SENTENCES * 3, vocab_size=400, groups=3, codes=4)
    codes = list(RegionVocabulary.from_tokens(tokenizer.get_vocab()).token_ids.values())
    if vision == "resnet":
        eye: Any = ResNetConfig(embedding_size=8, hidden_sizes=[8, 12, 16, 16], depths=[1] * 4, layer_type="basic")
        options = {"vision_feature_layer": [3, 4], "detail_layers": [2, 1], "detail_from_pixels": True} | options
    else:
        eye = CLIPVisionConfig(
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=SIDE,
            patch_size=8,
        )
    text = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        max_position_embeddings=256,
        tie_word_embeddings=tied,
        initializer_range=0.4,
    )
    config = MedSightConfig(
        vision_config=eye,
        text_config=text,
        region_dim=16,
        num_region_queries=3,
        perceiver_stages=3,
        perceiver_heads=2,
        perceiver_head_dim=8,
        perceiver_ff_mult=2,
        modality_names=["CT", "MR", "X-ray"],
        codes_per_group=4,
        code_dim=8,
        num_classes=4,
        visual_token_pooling=2,
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        prompt_token_id=tokenizer.convert_tokens_to_ids("<prompt>"),
        code_token_ids=codes,
        tie_word_embeddings=tied,
        **({"mask_decoder": "head"} | options),
    )
    model = MedSightForConditionalGeneration(config).eval()
    with torch.no_grad():
        for parameter in (*model.model.perceiver.parameters(), *model.model.text_to_vision.parameters()):
            if parameter.ndim > 1:
                parameter.normal_(std=0.3)
        if model.model.prompt_encoder is not None:
            for parameter in model.model.prompt_encoder.parameters():
                parameter.normal_(std=0.3)
        if not tied:
            model.lm_head.weight.normal_(std=0.4)
            model.lm_head.weight[codes] *= 2.5
        features = model.model.encode_image(torch.zeros(1, 3, SIDE, SIDE))
        tokens = model.model.visual_tokens(features).shape[1]
    if half:
        model = model.half()
    model.save_pretrained(folder)
    images = MedSightImageProcessor(size=SIDE, fit=fit, image_mean=[0.5] * 3, image_std=[0.25] * 3)
    MedSightProcessor(images, tokenizer, num_visual_tokens=tokens).save_pretrained(folder)
    return folder


class ScriptedHead(nn.Module):
    """Writes what it is told: a token at each call in each text that is still under way.

    Args:
        scripts: Token ids of each text, in the order in which the texts begin; all of them begin together.
        vocab_size: Of the model.
        stop: Written when a script is over.
    """

    def __init__(self, scripts: Sequence[Sequence[int]], *, vocab_size: int, stop: int) -> None:
        super().__init__()
        self.scripts = scripts
        self.out_features = vocab_size
        self.stop = stop
        self.calls = 0

    def forward(self, hidden: Tensor) -> Tensor:
        """Logits `(texts, vocabulary)`; a text that ended is not among them any more."""
        going = [script for script in self.scripts if len(script) >= self.calls]
        assert len(hidden) == len(going)
        logits = hidden.new_zeros(len(hidden), self.out_features)
        for row, script in enumerate(going):
            logits[row, script[self.calls] if self.calls < len(script) else self.stop] = 20.0
        self.calls += 1
        return logits


def photograph(array: np.ndarray) -> Volume:
    """A scan of one picture `(rows, columns[, 3])` uint8 without a place in the body."""
    frame = Frame.of_pixels((1, *array.shape[:2]))
    return Volume(
        array=array[None],
        frame=frame,
        slice_frames=(frame,),
        modality="Endoscopy",
        source=Source(kind="image", paths=(Path("picture.png"),)),
    )


def stack(array: np.ndarray) -> Volume:
    """A scan of several slices `(slices, rows, columns)`, oblique and anisotropic."""
    affine = np.array([[0.6, 0.0, 0.5, -40.0], [0.0, 1.4, 0.0, 12.0], [3.2, 0.0, -0.09375, 7.0], [0, 0, 0, 1.0]])
    frame = Frame.from_affine(affine, array.shape)
    return Volume(
        array=array,
        frame=frame,
        slice_frames=tuple(frame.slice(k) for k in range(len(array))),
        modality="MR",
        source=Source(kind="nifti", paths=(Path("scan.nii"),)),
    )


def noise(rows: int = 50, columns: int = 80, seed: int = 0) -> Volume:
    """A picture of smooth noise."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 255, (-(-rows // 8), -(-columns // 8), 3), dtype=np.uint8)
    return photograph(np.ascontiguousarray(coarse.repeat(8, 0).repeat(8, 1)[:rows, :columns]))


def ask_about(volume: Volume, text: str = "Segment the left lung in this image.", **options: Any) -> Question:
    """A question about the middle slice."""
    return Question(text=text, volume=volume, slice_index=volume.middle, **options)

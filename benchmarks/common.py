"""What the benchmarks share: taking turns, a scan, a checkpoint, the options, the table and its file."""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import Qwen3Config, ResNetConfig

from medsight_core.errors import CheckpointError
from medsight_core.geometry import Frame
from medsight_core.imaging.volume import Source, Volume
from medsight_core.inference.checkpoint import open_checkpoint
from medsight_core.inference.loading import quiet_loading
from medsight_core.model import (
    MedSightConfig,
    MedSightForConditionalGeneration,
    MedSightImageProcessor,
    MedSightProcessor,
)

QUESTION = "Segment the liver in this image."


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One line of the table.

    Attributes:
        name: What is compared.
        ratio: Median of the ratios, or the value itself where there is nothing to compare with.
        spread: Lowest and highest.
        goal: What it should be, with its direction.
        detail: The two medians, in words.
    """

    name: str
    ratio: float
    spread: tuple[float, float]
    goal: str
    detail: str


CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
"""CPU time of this process stands in for the clock on the wall where other work takes the processor away."""


def in_turns(
    first: Callable[[], Any], second: Callable[[], Any], repeats: int, clock: Callable[[], float]
) -> tuple[list[float], list[float]]:
    """Seconds of both, after one unmeasured round each; who begins changes every time."""
    seconds: tuple[list[float], list[float]] = ([], [])
    pair = (first, second)
    for run in pair:
        run()
    for repeat in range(repeats):
        for which in (0, 1) if repeat % 2 == 0 else (1, 0):
            start = clock()
            pair[which]()
            seconds[which].append(clock() - start)
    return seconds


def random_mini(folder: Path) -> Path:
    """A checkpoint of the size of medsight-mini with random weights."""
    from training.tokenizer import build_tokenizer

    torch.manual_seed(0)
    tokenizer = build_tokenizer([QUESTION], vocab_size=2048, groups=9, codes=16)
    vision = ResNetConfig(embedding_size=32, hidden_sizes=[48, 96, 160, 256], depths=[2, 2, 3, 2], layer_type="basic")
    text = Qwen3Config(
        vocab_size=2048,
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=6,
        num_key_value_heads=6,
        head_dim=32,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        initializer_range=0.2,
    )
    config = MedSightConfig(
        vision_config=vision,
        text_config=text,
        vision_feature_layer=[3, 4],
        detail_layers=[2, 1],
        detail_from_pixels=True,
        region_dim=64,
        num_region_queries=16,
        perceiver_stages=3,
        perceiver_heads=2,
        perceiver_head_dim=32,
        perceiver_ff_mult=2,
        num_code_groups=9,
        codes_per_group=16,
        code_dim=32,
        mask_decoder="head",
        visual_token_pooling=2,
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        prompt_token_id=tokenizer.convert_tokens_to_ids("<prompt>"),
        tie_word_embeddings=True,
    )
    model = MedSightForConditionalGeneration(config).eval()
    images = MedSightImageProcessor(size=256, image_mean=[0.5] * 3, image_std=[0.25] * 3)
    with torch.inference_mode():
        tokens = model.model.visual_tokens(model.model.encode_image(torch.zeros(1, 3, 256, 256))).shape[1]
    with quiet_loading():
        model.half().save_pretrained(folder)
    MedSightProcessor(images, tokenizer, num_visual_tokens=tokens).save_pretrained(folder)
    return folder


SIDE = 512


def bright_ct(slices: int, *, side: int = SIDE) -> Volume:
    """A CT with a bright ellipsoid in noise.

    Args:
        slices: How many.
        side: Rows and columns of each.
    """
    rng = np.random.default_rng(0)
    z, y, x = np.ogrid[:slices, :side, :side]
    middle, radius = np.array([slices, 1.02 * side, 0.7 * side]) / 2, np.array([0.4 * slices, 0.29 * side, 0.23 * side])
    inside = sum(((at - c) / r) ** 2 for at, c, r in zip((z, y, x), middle, radius, strict=True)) < 1
    array = np.empty((slices, side, side), np.int16)
    for k in range(slices):  # one at a time, or the noise alone would take gigabytes
        array[k] = rng.normal(-20, 25, (side, side)) + 120 * inside[k]
    frame = Frame.from_affine(np.diag([2.0, 0.8, 0.8, 1.0])[[2, 1, 0, 3]], array.shape)
    return Volume(
        array=array,
        frame=frame,
        slice_frames=tuple(frame.slice(k) for k in range(slices)),
        modality="CT",
        source=Source(kind="nifti", paths=(Path("scan.nii"),)),
    )


def options(description: str, *, repeats: int) -> argparse.ArgumentParser:
    """The options that every benchmark has."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--model", type=Path, help="checkpoint; default: medsight-mini, else random weights")
    parser.add_argument("--repeats", type=int, default=repeats, help="of every measurement")
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1), help="for torch")
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="cpu, with --threads 1, on a busy machine")
    parser.add_argument("--json", type=Path, help="write the figures here as well")
    return parser


@contextmanager
def checkpoint(model: Path | None) -> Iterator[tuple[Path, str]]:
    """The folder of the model that is measured, and what is to be said of it.

    Raises:
        CheckpointError: There is none in ``model``.
    """
    with tempfile.TemporaryDirectory() as scratch:
        try:
            folder, what = open_checkpoint(model).folder, ""
        except CheckpointError:
            if model is not None:
                raise
            folder, what = random_mini(Path(scratch) / "random-mini"), " (random weights: medsight-mini is not here)"
        yield folder, folder.name + what


def machine(given: argparse.Namespace, model: str, **more: Any) -> dict[str, Any]:
    """What was measured on."""
    return {
        "model": model,
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
        "threads": given.threads,
        "torch": torch.__version__,
        "repeats": given.repeats,
        "clock": given.clock,
        **more,
    }


def table(figures: Sequence[Figure]) -> str:
    """The figures as Markdown."""
    lines = ["| what | median | lowest to highest | goal | measured |", "|---|---|---|---|---|"]
    for figure in figures:
        low, high = figure.spread
        digits = 0 if figure.ratio >= 100 else 3
        lines.append(
            f"| {figure.name} | {figure.ratio:.{digits}f} | {low:.{digits}f} to {high:.{digits}f} "
            f"| {figure.goal} | {figure.detail} |"
        )
    return "\n".join(lines)


def show(
    figures: Sequence[Figure], measured_on: dict[str, Any], *, lines: Sequence[str] = (), file: Path | None
) -> None:
    """Prints the table, and writes it as JSON where a file is named.

    Args:
        figures: The lines of the table.
        measured_on: From `machine`.
        lines: To stand above the table.
        file: Where to write it as well.
    """
    print(", ".join(f"{name} {value}" for name, value in measured_on.items()))
    print(*lines, table(figures), sep="\n")
    if file is not None:
        content = {"machine": measured_on, "figures": [asdict(figure) for figure in figures]}
        file.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")

"""What the benchmarks of volumes and of clicks share: a scan, a checkpoint, the options, the table and its file."""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from engine import CLOCKS, Figure, random_mini, table

from medsight_core.errors import CheckpointError
from medsight_core.geometry import Frame
from medsight_core.imaging.volume import Source, Volume
from medsight_core.inference.checkpoint import open_checkpoint

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


def show(figures: Sequence[Figure], measured_on: dict[str, Any], *, lines: Sequence[str], file: Path | None) -> None:
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

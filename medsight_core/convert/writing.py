"""Writes the shards of a conversion: safetensors files, block by block, so that no tensor is ever in memory as a whole.

A shard is written under a name of its own and renamed when it is whole; a conversion that was interrupted keeps the
shards that are.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from medsight_core.convert.plan import Plan, Planned
from medsight_core.convert.stored import DTYPES
from medsight_core.errors import CheckpointError
from medsight_core.inference.checkpoint import INDEX

PARTIAL: Final = ".partial"
_ALIGNMENT: Final = 8
"""The header of a safetensors file is filled up to a multiple of this."""

Advance = Callable[[int], Any]


def write_shards(plan: Plan, folder: Path, *, advance: Advance) -> None:
    """Writes the shards that are not there yet, and their index.

    Args:
        plan: Without problems.
        folder: Where to; shards in it are of this plan.
        advance: Called with the bytes that were written since it was called last.

    Raises:
        CheckpointError: A source is damaged.
        OSError: The disk is full.
    """
    for number, shard in enumerate(plan.shards):
        file = folder / plan.shard_name(number)
        if file.is_file():
            advance(sum(tensor.size for tensor in shard))
            continue
        partial = file.with_name(file.name + PARTIAL)
        _write(shard, partial, advance)
        partial.rename(file)
    if len(plan.shards) > 1:
        _write_index(plan, folder)


def _write(shard: Sequence[Planned], file: Path, advance: Advance) -> None:
    with file.open("wb") as out:
        out.write(_header(shard))
        for tensor in shard:
            written = 0
            for piece in tensor.pieces:
                for block in piece.blocks():
                    stored = block.to(DTYPES[tensor.dtype])
                    if not finite(stored):
                        what = f"too large for {tensor.dtype}" if finite(block) else "infinite or not a number"
                        raise CheckpointError(
                            "not_finite",
                            f"{piece.file} holds values for {tensor.name} that are {what}.",
                            "Take the file from where it was published.",
                        )
                    content = stored.view(torch.uint8).numpy()
                    out.write(memoryview(content))
                    written += content.nbytes
                    advance(content.nbytes)
            if written != tensor.size:
                raise CheckpointError(
                    "wrong_shape",
                    f"{tensor.name} came to {written:,} bytes, expected {tensor.size:,}.",
                    "Please report it.",
                )
        out.flush()
        os.fsync(out.fileno())


def finite(values: Tensor) -> bool:
    """Whether no value is infinite or not a number: either would be the least or the largest."""
    return all(math.isfinite(bound) for bound in torch.aminmax(values)) if len(values) else True


def _header(shard: Sequence[Planned]) -> bytes:
    table: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    start = 0
    for tensor in shard:
        end = start + tensor.size
        table[tensor.name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": [start, end]}
        start = end
    text = json.dumps(table, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    return len(text).to_bytes(8, "little") + text


def _write_index(plan: Plan, folder: Path) -> None:
    table = {tensor.name: plan.shard_name(k) for k, shard in enumerate(plan.shards) for tensor in shard}
    index = {"metadata": {"total_size": plan.size, "total_parameters": plan.parameters}, "weight_map": table}
    partial = folder / (INDEX + PARTIAL)
    partial.write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")
    partial.rename(folder / INDEX)

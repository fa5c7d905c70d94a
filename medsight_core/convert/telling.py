"""A plan in words, and as JSON."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from medsight_core.convert.plan import Plan
from medsight_core.convert.release import PARTS


def plan_as_text(plan: Plan, out: Path) -> Iterator[str]:
    """Lines for a person."""
    width = max(len(PARTS[part]) for part in plan.release.sources)
    yield f"From {plan.release.folder}"
    for part, source in plan.release.sources.items():
        size = sum(file.stat().st_size for file in source.files)
        what = f"{len(source.tensors)} tensor{'s' if len(source.tensors) > 1 else ''}, {_gb(size)}"
        what += "" if part in plan.used else "; not needed: the language model's folder has what it became"
        yield f"  {PARTS[part]:{width}}  {_within(source.path, plan.release.folder)}  ({what})"
    for path in plan.release.unused:
        yield f"  {'not used':{width}}  {_within(path, plan.release.folder)}"
    for reason, count in plan.unused.items():
        yield f"  left out: {count} tensor{'s' if count > 1 else ''}, {reason}"
    if "codebook" not in plan.release.sources:
        yield "  no codebook was found: words and masks do not need it"
    config = plan.config
    yield f"To {out}"
    files = f"{len(plan.shards)} file{'s' if len(plan.shards) > 1 else ''}"
    yield f"  {plan.parameters:,} parameters, {_gb(plan.size)} in {files}"
    yield (
        f"  {config.num_codes} region codes in {config.num_code_groups} groups; {config.num_region_queries} region "
        f"queries; image {config.vision_config.image_size}, features of layer {config.vision_feature_layer}"
    )
    yield f"  {_gb(_free(out))} are free there"


def plan_as_json(plan: Plan, out: Path) -> dict[str, Any]:
    """The same for programs."""
    return {
        "out": str(out),
        "parts": {part: str(source.path) for part, source in plan.release.sources.items()},
        "parameters": plan.parameters,
        "bytes": plan.size,
        "free_bytes": _free(out),
        "files": {plan.shard_name(k): sum(t.size for t in shard) for k, shard in enumerate(plan.shards)},
        "tensors": {
            t.name: {"shape": list(t.shape), "dtype": t.dtype, "from": sorted({p.file.name for p in t.pieces})}
            for t in plan.tensors
        },
        "left_out": dict(plan.unused),
    }


def _within(path: Path, folder: Path) -> Path:
    return path.relative_to(folder) if path.is_relative_to(folder) else path


def _free(out: Path) -> int:
    place = out
    while not place.exists():
        place = place.parent
    return shutil.disk_usage(place).free


def _gb(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 10**8 else f"{size / 1e6:.1f} MB"

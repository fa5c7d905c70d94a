"""What is said of a converted model: a page for people and a record for programs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from medsight_core import __version__
from medsight_core.convert.plan import LANGUAGE, Plan
from medsight_core.convert.release import PARTS
from medsight_core.convert.stored import DTYPES

CARD: Final = "README.md"
RECORD: Final = "conversion.json"

_SWITCHES: Final[Mapping[str, str]] = {
    "vision_feature_layer": "hidden state of the image encoder that is read",
    "code_state": "hidden state of a region code that is decoded: its own (at) or the one before it (before)",
    "mask_decoder": "what draws",
    "joint_decoding": "whether the codes of an answer are drawn together",
    "use_codebook": "whether the codebook is in the model; words and masks do not need it",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Digested:
    """A source file and its SHA-256."""

    file: Path
    size: int
    sha256: str


def card(
    plan: Plan, digested: list[Digested], *, digest: str, settings: Mapping[str, Mapping[str, Any]], agreement: str
) -> str:
    """The model card.

    Args:
        plan: Of the conversion.
        digested: Every weight file that was read.
        digest: Of the result; see `open_checkpoint`.
        settings: What is set beside the configuration, by where it is set.
        agreement: What comparing the codebook with its rows of words came to; may be empty.
    """
    kind = str(DTYPES[next(t.dtype for t in plan.tensors if t.name.startswith(LANGUAGE))]).removeprefix("torch.")
    parts = "\n".join(
        f"| {PARTS[part]} | `{source.path.name}`{'' if part in plan.used else ', read but not needed'} |"
        for part, source in plan.release.sources.items()
    )
    files = "\n".join(f"| `{d.file.name}` | {d.size:,} | `{d.sha256}` |" for d in digested)
    told = {name: (getattr(plan.config, name), what) for name, what in _SWITCHES.items()}
    switches = "\n".join(f"| `{name}` | `{json.dumps(value)}` | {what} |" for name, (value, what) in told.items())
    switches += "".join(
        f"\n| `{name}` | `{json.dumps(value)}` | in `{file}` |"
        for file, table in settings.items()
        for name, value in table.items()
    )
    left = "\n".join(f"- {count:,} tensor{'s' if count > 1 else ''}: {reason}" for reason, count in plan.unused.items())
    return f"""---
library_name: transformers
pipeline_tag: image-text-to-text
tags: [medical, segmentation, grounding, dicom, medsight]
---

# MedSIGHT, converted from the published release

**For research. Not a medical device, not for clinical use.**

Made by `medsight convert` {__version__} from the files that the authors of MedSIGHT published. The values are theirs:
none was changed but for the type in which it is stored. Their terms hold for these weights; look them up where you got
the files.

    medsight ask --model FOLDER scan.dcm "Segment the liver in this image."

## What it is

{plan.parameters:,} parameters; the language model in {kind}, everything else in float32.
Digest of the weights: `{digest}`.

| part | from |
|---|---|
{parts}

Left out, because nothing of it takes part in an answer:

{left or "- nothing"}
{agreement and f"{chr(10)}{agreement}{chr(10)}"}
## How it behaves

| switch | value | what |
|---|---|---|
{switches}

## Source files

| file | bytes | SHA-256 |
|---|---|---|
{files}

## Not measured

Nothing was measured with these weights: neither how well they answer and draw nor whether they do what the authors'
own program does with them. What can be compared without the weights was: see the page on released models in the
documentation.
"""


def record(plan: Plan, digested: list[Digested], *, digest: str) -> dict[str, Any]:
    """The record for programs."""
    return {
        "medsight": __version__,
        "digest": digest,
        "parameters": plan.parameters,
        "sources": [{"file": d.file.name, "bytes": d.size, "sha256": d.sha256} for d in digested],
        "parts": {part: source.path.name for part, source in plan.release.sources.items()},
        "files": [plan.shard_name(number) for number in range(len(plan.shards))],
    }

"""The command that this package brings to `medsight`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Final

import typer

from medsight_core.cli import Json
from medsight_core.cli.extras import needs_extra
from medsight_core.errors import InputError

SHARD: Final = "5GB"

app = typer.Typer()


@app.command()
def convert(
    release: Annotated[
        Path, typer.Argument(metavar="RELEASE", help="The folder with the published files, in folders of it or not.")
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The folder to make.")],
    clip: Annotated[
        Path | None, typer.Option(metavar="FILE", help="UniMed-CLIP's weights, where they lie elsewhere.")
    ] = None,
    perceiver: Annotated[Path | None, typer.Option(metavar="FILE", help="The region perceiver's .pt.")] = None,
    codebook: Annotated[Path | None, typer.Option(metavar="FILE", help="The codebook's .pt.")] = None,
    instruct: Annotated[Path | None, typer.Option(metavar="DIR", help="The folder of the language model.")] = None,
    mm_projector: Annotated[Path | None, typer.Option(metavar="FILE", help="mm_projector.bin.")] = None,
    added_tokens: Annotated[Path | None, typer.Option(metavar="FILE", help="added_tokens.json.")] = None,
    dtype: Annotated[
        str,
        typer.Option(help="How to store the language model: bfloat16, or float32, which takes twice the room."),
    ] = "bfloat16",
    shard_size: Annotated[str, typer.Option(metavar="SIZE", help="Largest file of weights, such as 5GB.")] = SHARD,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a model in OUT.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and write nothing.")] = False,
    as_json: Json = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress.")] = False,
) -> None:
    """Make a MedSIGHT model of the files that its authors published.

    The files are found in RELEASE by what they hold; where one lies elsewhere, name it. They are read as data: nothing
    in them is run. A conversion that was interrupted goes on when the same command is said again.

    [bold]Examples[/bold]

    medsight convert MedSIGHT/ medsight-8b/ --clip unimed_clip_vit_l14_base_text_encoder.pt

    medsight convert MedSIGHT/ medsight-8b/ --dry-run

    medsight ask --model medsight-8b/ scan.dcm "Segment the liver in this image."

    [bold]What you get[/bold]

    OUT with safetensors files, configuration, tokenizer and processor, README.md that says where everything came from,
    and conversion.json with the digests.
    """
    with needs_extra("model"):
        from medsight_core.convert.release import Part
        from medsight_core.convert.run import run_convert

    named: dict[Part, Path | None] = {
        "clip": clip,
        "perceiver": perceiver,
        "codebook": codebook,
        "instruct": instruct,
        "mm_projector": mm_projector,
    }
    run_convert(
        folder=release,
        out=out,
        given={part: path for part, path in named.items() if path is not None},
        added_tokens=added_tokens,
        dtype=dtype,
        shard_bytes=_bytes(shard_size),
        overwrite=overwrite,
        dry_run=dry_run,
        as_json=as_json,
        quiet=quiet,
    )


def _bytes(text: str) -> int:
    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?([kMG]?)B", text)
    size = int(float(match[1]) * {"": 1, "k": 10**3, "M": 10**6, "G": 10**9}[match[2]]) if match else 0
    if size <= 0:
        raise InputError("bad_size", f'"{text}" is no size.', "Write it like 5GB or 500MB.")
    return size

"""The command `medsight`.

Only what the help text needs is imported here; each command imports the rest when it runs, so that ``medsight --help``
answers at once and needs neither torch nor pydicom.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final

import typer

from medsight_core import __version__
from medsight_core.cli.group import CommandGroup

DEFAULT_OUT: Final = Path("medsight-answer")

app = typer.Typer(
    name="medsight",
    cls=CommandGroup,
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Scan = Annotated[
    Path,
    typer.Argument(metavar="SCAN", help="A DICOM file or series folder, NIfTI, NRRD, PNG or JPEG.", show_default=False),
]
Series = Annotated[
    str | None,
    typer.Option(metavar="UID", help="Which series, where a folder has several: number or UID (see `info`)."),
]
Resample = Annotated[
    bool,
    typer.Option(
        "--resample", help="Bring a tilted or irregular series to a regular grid instead of reading it as it is."
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, and nothing else, on standard output.")]


@app.callback(epilog="Research use only. Not a medical device.")
def main() -> None:
    """Ask a medical scan in plain words; the answer's terms are tied to masks on the scan.

    [bold]Try[/bold]

    medsight ask scan.dcm "Segment the liver in this image."

    medsight info series-folder/
    """


@app.command()
def ask(
    scan: Scan,
    question: Annotated[str, typer.Argument(metavar="QUESTION", help="In plain words.", show_default=False)],
    slice_index: Annotated[
        int | None,
        typer.Option("--slice", metavar="N", help="Slice to ask about, counted from 0; without it, the middle one."),
    ] = None,
    series: Series = None,
    resample: Resample = False,
    point: Annotated[
        list[str] | None,
        typer.Option(metavar="X,Y", help="A click: column,row of the slice in pixels from 0. May be repeated."),
    ] = None,
    box: Annotated[
        list[str] | None, typer.Option(metavar="X0,Y0,X1,Y1", help="A box by two opposite corners. May be repeated.")
    ] = None,
    scribble: Annotated[
        list[str] | None, typer.Option(metavar="X,Y;X,Y;...", help="A stroke through these pixels. May be repeated.")
    ] = None,
    model: Annotated[
        Path | None, typer.Option(metavar="DIR", help="A MedSIGHT checkpoint; without it, the built-in medsight-mini.")
    ] = None,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder for the results.")] = DEFAULT_OUT,
    as_json: Json = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print the answer only.")] = False,
) -> None:
    """Ask a scan a question; writes pictures, masks, a segmentation and a page into --out.

    Slices, columns and rows count from 0, as in answer.json; X,Y is column,row and a whole number is a pixel's centre.

    [bold]Examples[/bold]

    medsight ask chest.dcm "Where are the lungs?"

    medsight ask ct-series/ "Is there a lesion in the liver?" --slice 40 --out liver/

    medsight ask polyp.png "What is this?" --point 210,145

    medsight ask skin.jpg "Segment this." --box 80,60,330,290 --json

    [bold]What you get[/bold]

    report.html (click a word, see its mask), overlay.png, answer.json, masks/, and segmentation.dcm for a DICOM source
    or segmentation.seg.nrrd for any other.
    """
    from medsight_core.cli.ask import run_ask

    run_ask(
        scan=scan,
        text=question,
        slice_index=slice_index,
        series=series,
        resample=resample,
        points=point or [],
        boxes=box or [],
        scribbles=scribble or [],
        model=model,
        out=out,
        as_json=as_json,
        device=device,
        quiet=quiet,
    )


@app.command()
def info(scan: Scan, series: Series = None, resample: Resample = False, as_json: Json = False) -> None:
    """Say what a scan is and how it will be read: modality, shape, spacing, orientation, window, problems.

    [bold]Examples[/bold]

    medsight info scan.dcm

    medsight info folder-with-two-series/ --series 2
    """
    from medsight_core.cli.info import run_info

    run_info(scan=scan, series=series, resample=resample, as_json=as_json)


@app.command()
def version() -> None:
    """Print the version."""
    typer.echo(f"medsight {__version__}")

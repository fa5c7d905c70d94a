"""The command `medsight`.

Only what the help text needs is imported here; each command imports the rest when it runs, so that ``medsight --help``
answers at once and needs neither torch nor pydicom.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final

import typer

from medsight_core import __version__
from medsight_core.cli import model as model_commands
from medsight_core.cli.backends import Compiled, Device, DeviceMap, Precision
from medsight_core.cli.group import CommandGroup

DEFAULT_OUT: Final = Path("medsight-answer")
DEFAULT_SEGMENT_OUT: Final = Path("medsight-segment")
DEFAULT_CHAT_OUT: Final = Path("medsight-chat")
DEFAULT_REPORT_OUT: Final = Path("medsight-report")

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
Server = Annotated[
    str | None,
    typer.Option(
        "--backend",
        metavar="URL",
        envvar="MEDSIGHT_BACKEND",
        help="Ask this server instead of a model in this process, such as https://gpu.hospital.example.",
    ),
]
Token = Annotated[
    str | None,
    typer.Option(metavar="TOKEN", envvar="MEDSIGHT_TOKEN", help="The server's token; others see what is typed here."),
]
Authority = Annotated[
    Path | None,
    typer.Option("--ca", metavar="FILE", envvar="MEDSIGHT_CA", help="The certificate authority of the server, in PEM."),
]
InsecureHttp = Annotated[
    bool,
    typer.Option("--insecure-http", help="Send the scan unencrypted to a server on another computer."),
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
    volume: Annotated[
        bool, typer.Option("--volume", help="Ask about the whole volume; with --slice, that one is read in any case.")
    ] = False,
    plane: Annotated[
        str, typer.Option(metavar="PLANE", help="Of a volume: acquired, axial, coronal or sagittal slices.")
    ] = "acquired",
    slices: Annotated[
        str | None, typer.Option(metavar="A:B", help="Of a volume: only slices A up to, not including, B.")
    ] = None,
    exact: Annotated[
        bool, typer.Option("--exact", help="Of a volume: read every slice instead of a few key slices; slow.")
    ] = False,
    nifti: Annotated[bool, typer.Option("--nifti", help="Write a NIfTI label map as well.")] = False,
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
        Path | None, typer.Option(metavar="MODEL", help="A MedSIGHT model, by folder or name; else medsight-mini.")
    ] = None,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder for the results.")] = DEFAULT_OUT,
    as_json: Json = False,
    device: Device = "auto",
    precision: Precision = "auto",
    device_map: DeviceMap = None,
    backend: Server = None,
    token: Token = None,
    ca: Authority = None,
    insecure_http: InsecureHttp = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print the answer only.")] = False,
) -> None:
    """Ask a scan a question; writes pictures, masks, a segmentation and a page into --out.

    Slices, columns and rows count from 0, as in answer.json; X,Y is column,row and a whole number is a pixel's centre.

    [bold]Examples[/bold]

    medsight ask chest.dcm "Where are the lungs?"

    medsight ask ct-series/ "Is there a lesion in the liver?" --slice 40 --out liver/

    medsight ask ct-series/ "Segment the liver." --volume --slices 20:60

    medsight ask polyp.png "What is this?" --point 210,145

    medsight ask skin.jpg "Segment this." --box 80,60,330,290 --json

    medsight ask ct-series/ "Where is the liver?" --backend https://gpu.hospital.example

    [bold]What you get[/bold]

    report.html (click a word, see its mask), overlay.png, answer.json, masks/, and segmentation.dcm for a DICOM source
    or segmentation.seg.nrrd for any other.
    """
    from medsight_core.cli.ask import run_ask, whole_volume
    from medsight_core.cli.backends import Chosen

    run_ask(
        scan=scan,
        text=question,
        slice_index=slice_index,
        series=series,
        resample=resample,
        points=point or [],
        boxes=box or [],
        scribbles=scribble or [],
        chosen=Chosen(
            model=model,
            device=device,
            precision=precision,
            device_map=device_map,
            url=backend,
            token=token,
            ca=ca,
            insecure_http=insecure_http,
        ),
        out=out,
        as_json=as_json,
        quiet=quiet,
        whole=whole_volume(volume=volume, plane=plane, slices=slices, exact=exact, shown=slice_index),
        nifti=nifti,
    )


@app.command()
def segment(
    scan: Scan,
    prompt: Annotated[
        str | None, typer.Option(metavar="WORDS", help='What to segment, such as "left kidney"; or a whole sentence.')
    ] = None,
    point: Annotated[
        list[str] | None, typer.Option(metavar="X,Y", help="A click on it: column,row in pixels from 0. Repeatable.")
    ] = None,
    negative: Annotated[
        list[str] | None, typer.Option(metavar="X,Y", help="A click on what does not belong to it. Repeatable.")
    ] = None,
    box: Annotated[
        list[str] | None, typer.Option(metavar="X0,Y0,X1,Y1", help="A box around it by two opposite corners.")
    ] = None,
    scribble: Annotated[
        list[str] | None, typer.Option(metavar="X,Y;X,Y;...", help="A stroke through these pixels. Repeatable.")
    ] = None,
    lasso: Annotated[
        list[str] | None, typer.Option(metavar="X,Y;X,Y;X,Y;...", help="A closed outline around it.")
    ] = None,
    mask: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A rough mask: a picture of the slice, or a label map.")
    ] = None,
    slice_index: Annotated[
        int | None,
        typer.Option("--slice", metavar="N", help="Slice that was drawn on, counted from 0; else the middle one."),
    ] = None,
    volume: Annotated[bool, typer.Option("--volume", help="Segment it throughout the volume.")] = False,
    slices: Annotated[
        str | None, typer.Option(metavar="A:B", help="With --volume: only slices A up to, not including, B.")
    ] = None,
    series: Series = None,
    resample: Resample = False,
    model: Annotated[
        Path | None, typer.Option(metavar="MODEL", help="A MedSIGHT model, by folder or name; else medsight-mini.")
    ] = None,
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="OUT", help="Folder for the results; or a file NAME.nii.gz.")
    ] = DEFAULT_SEGMENT_OUT,
    nifti: Annotated[bool, typer.Option("--nifti", help="Write a NIfTI label map as well.")] = False,
    as_json: Json = False,
    device: Device = "auto",
    precision: Precision = "auto",
    device_map: DeviceMap = None,
    backend: Server = None,
    token: Token = None,
    ca: Authority = None,
    insecure_http: InsecureHttp = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print the table only.")] = False,
) -> None:
    """Segment what you point at or name, on a slice or throughout a volume; writes masks and a picture into --out.

    Slices, columns and rows count from 0; X,Y is column,row and a whole number is a pixel's centre. Drawing alone needs
    no words. Words and drawing together mean what the words say at the place that was drawn.

    [bold]Examples[/bold]

    medsight segment polyp.png --point 210,145

    medsight segment ct-series/ --slice 40 --point 180,200 --negative 240,210 --volume -o liver/

    medsight segment ct-series/ --prompt "left kidney" --volume -o kidney.nii.gz

    medsight segment mr.nii.gz --slice 12 --lasso "80,60;120,58;118,95;82,97" --volume --slices 5:20

    [bold]What you get[/bold]

    overlay.png, segment.json, and segmentation.dcm for a DICOM source or segmentation.seg.nrrd for any other; with
    --nifti or -o NAME.nii.gz a label map as well.
    """
    from medsight_core.cli.backends import Chosen
    from medsight_core.cli.segment import Strokes, run_segment

    run_segment(
        scan=scan,
        said=prompt,
        strokes=Strokes(
            points=point or [],
            negatives=negative or [],
            boxes=box or [],
            scribbles=scribble or [],
            lassos=lasso or [],
            mask=mask,
        ),
        slice_index=slice_index,
        series=series,
        resample=resample,
        volume=volume,
        slices=slices,
        chosen=Chosen(
            model=model,
            device=device,
            precision=precision,
            device_map=device_map,
            url=backend,
            token=token,
            ca=ca,
            insecure_http=insecure_http,
        ),
        out=out,
        nifti=nifti,
        as_json=as_json,
        quiet=quiet,
    )


@app.command()
def chat(
    scan: Scan,
    slice_index: Annotated[
        int | None,
        typer.Option("--slice", metavar="N", help="Slice to begin with, counted from 0; else the middle one."),
    ] = None,
    series: Series = None,
    resample: Resample = False,
    model: Annotated[
        Path | None, typer.Option(metavar="MODEL", help="A MedSIGHT model, by folder or name; else medsight-mini.")
    ] = None,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder for the pictures of /show.")] = DEFAULT_CHAT_OUT,
    device: Device = "auto",
    precision: Precision = "auto",
    device_map: DeviceMap = None,
    compiled: Compiled = False,
    backend: Server = None,
    token: Token = None,
    ca: Authority = None,
    insecure_http: InsecureHttp = False,
) -> None:
    """Talk about a scan: ask, point, follow up, undo, export.

    What you type is a question about the slice, or a command with a slash; /help lists them. Ctrl-C stops an answer,
    Ctrl-D leaves. Questions and commands can also come through a pipe, one a line.

    [bold]Examples[/bold]

    medsight chat ct-series/

    medsight chat polyp.png --backend https://gpu.hospital.example

    printf '/slice 40\\nWhere is the liver?\\n/export liver\\n' | medsight chat ct-series/
    """
    from medsight_core.cli.backends import Chosen
    from medsight_core.cli.chat import run_chat

    run_chat(
        scan=scan,
        slice_index=slice_index,
        series=series,
        resample=resample,
        chosen=Chosen(
            model=model,
            device=device,
            precision=precision,
            device_map=device_map,
            compiled=compiled,
            url=backend,
            token=token,
            ca=ca,
            insecure_http=insecure_http,
        ),
        out=out,
    )


@app.command()
def report(
    scan: Scan,
    template: Annotated[
        Path | None, typer.Option(metavar="FILE", help="TOML with the sections, structures and wordings you want.")
    ] = None,
    structures: Annotated[
        list[str] | None,
        typer.Option(metavar="NAMES", help="What to look for, with commas between; else all that the model knows."),
    ] = None,
    plane: Annotated[str, typer.Option(help="acquired, axial, coronal or sagittal.")] = "acquired",
    slices: Annotated[
        str | None, typer.Option(metavar="A:B", help="Only slices A up to, not including, B, counted from 0.")
    ] = None,
    ask: Annotated[
        list[str] | None, typer.Option(metavar="QUESTION", help="A question to answer in the report. May be repeated.")
    ] = None,
    series: Series = None,
    resample: Resample = False,
    model: Annotated[
        Path | None, typer.Option(metavar="MODEL", help="A MedSIGHT model, by folder or name; else medsight-mini.")
    ] = None,
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="DIR", help="Folder for the results.")
    ] = DEFAULT_REPORT_OUT,
    as_json: Json = False,
    device: Device = "auto",
    precision: Precision = "auto",
    device_map: DeviceMap = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print the report only.")] = False,
) -> None:
    """Draft a report about a whole scan: what is found, measured and pictured; writes it into --out.

    It is a draft by a model, which nobody has verified. Every sentence says which slices it rests on, or that it rests
    on none.

    [bold]Examples[/bold]

    medsight report ct-series/

    medsight report ct-series/ --structures "liver, spleen" --ask "How large is the liver?" -o report/

    medsight report mr.nii.gz --plane coronal --slices 40:120 --template ours.toml

    [bold]What you get[/bold]

    report.html (click a picture to enlarge it), report.md, report.json, key-images/, and for a DICOM source
    segmentation.dcm and report.dcm (a structured report), for any other segmentation.seg.nrrd.
    """
    from medsight_core.cli.report import run_report
    from medsight_core.inference.running import Running

    run_report(
        scan=scan,
        template=template,
        structures=structures or [],
        plane=plane,
        slices=slices,
        questions=ask or [],
        series=series,
        resample=resample,
        model=model,
        out=out,
        as_json=as_json,
        running=Running(device=device, precision=precision, device_map=device_map),
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


app.add_typer(model_commands.app, name="model")


@app.command()
def version() -> None:
    """Print the version."""
    typer.echo(f"medsight {__version__}")

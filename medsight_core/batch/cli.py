"""The command that this package brings to `medsight`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final

import typer

from medsight_core.cli import Authority, InsecureHttp, Json, Server, Token
from medsight_core.cli.backends import Compiled, DeviceMap, Precision

DEFAULT_OUT: Final = Path("medsight-batch")

app = typer.Typer()


@app.command()
def batch(
    source: Annotated[Path, typer.Argument(metavar="SRC", help="A folder with scans anywhere below it.")],
    questions: Annotated[
        Path, typer.Option("--questions", "-Q", metavar="FILE", help="TOML, or text with one question per line.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="Folder for the results.")] = DEFAULT_OUT,
    only: Annotated[
        list[str] | None,
        typer.Option(metavar="KIND", help="Only dicom, nifti, nrrd or image (PNG, JPEG ...). May be repeated."),
    ] = None,
    workers: Annotated[int, typer.Option(min=1, max=1024, help="Processes at once, each with a model of its own.")] = 1,
    ray: Annotated[
        bool, typer.Option("--ray", help="Spread the work with Ray: over this machine, or the cluster of RAY_ADDRESS.")
    ] = False,
    model: Annotated[
        Path | None, typer.Option(metavar="MODEL", help="A MedSIGHT model, by folder or name; else medsight-mini.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps; of several GPUs, each process takes one.")] = (
        "auto"
    ),
    precision: Precision = "auto",
    device_map: DeviceMap = None,
    compiled: Compiled = False,
    backend: Server = None,
    token: Token = None,
    ca: Authority = None,
    insecure_http: InsecureHttp = False,
    send_burned_in: Annotated[
        bool, typer.Option("--send-burned-in", help="Send pixels in which a name may be written to another computer.")
    ] = False,
    nifti: Annotated[bool, typer.Option("--nifti", help="Write NIfTI label maps as well.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what there is to do, and do nothing.")] = False,
    as_json: Json = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress.")] = False,
) -> None:
    """Ask every scan of an archive the same questions; writes answers, masks and one table into --out.

    Say the same command again and it goes on where it was interrupted: what is answered stays, what failed is tried
    again, and what another model, question or file makes old is asked anew.

    [bold]The file of questions[/bold]

    \\[\\[questions]]
    [dim]# repeat for more[/dim]

    text = "Segment the liver."

    name = "liver" [dim]# of its folder; may be left out, as may all below[/dim]

    modalities = \\["CT", "MR"] [dim]# only these[/dim]

    volume = true [dim]# the whole volume; with it plane = "axial", slices = "20:60", exact = true[/dim]

    slice = 12 [dim]# or one slice, from 0; else the middle one[/dim]

    [bold]Examples[/bold]

    medsight batch archive/ --questions questions.toml --out answers/ --workers 4

    medsight batch archive/ -Q questions.txt -o answers/ --backend https://gpu.hospital.example

    [bold]What you get[/bold]

    results.csv and results.jsonl with a row per scan and question, items/ with the answers, and items.csv, which says
    which file and series each item is.
    """
    from medsight_core.batch.run import run_batch
    from medsight_core.cli.backends import Chosen

    run_batch(
        source=source,
        questions=questions,
        out=out,
        only=only or [],
        who=Chosen(
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
        workers=workers,
        ray=ray,
        nifti=nifti,
        burned_in=send_burned_in,
        dry_run=dry_run,
        as_json=as_json,
        quiet=quiet,
    )

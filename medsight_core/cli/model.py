"""`medsight model`: what models there are, what they need, and how they come here."""

from __future__ import annotations

from typing import Annotated

import typer

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)

Json = Annotated[bool, typer.Option("--json", help="Print JSON, and nothing else, on standard output.")]
Model = Annotated[str, typer.Argument(metavar="MODEL", help="A name, or a folder.", show_default=False)]


@app.callback()
def main() -> None:
    """List, plan, pull and verify models.

    --model of every command takes a name or a folder. What is pulled lies in the cache of the Hugging Face Hub
    (HF_HOME); what is converted or trained can be kept by name in the folder that MEDSIGHT_MODELS names.
    """


@app.command("list")
def list_models(as_json: Json = False) -> None:
    """Say which models are here and which could be.

    [bold]Examples[/bold]

    medsight model list
    """
    from medsight_core.cli.model_files import run_list

    run_list(as_json=as_json)


@app.command()
def plan(
    model: Model,
    tokens: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, help="Length of a conversation to reckon with, image included; else 2048."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Say how much memory each way to run a model needs on this machine, and pick one.

    Reckoned from the model's configuration, without its weights: it need not be here.

    [bold]Examples[/bold]

    medsight model plan medsight-8b

    medsight model plan my-model/ --tokens 4096
    """
    from medsight_core.cli.model_plan import run_plan

    run_plan(model=model, tokens=tokens, as_json=as_json)


@app.command()
def pull(
    model: Annotated[
        str,
        typer.Argument(metavar="MODEL", help="A known name, or OWNER/REPO; either with @REVISION.", show_default=False),
    ],
    mirror: Annotated[
        str | None, typer.Option(metavar="URL", envvar="HF_ENDPOINT", help="Pull from this mirror of the hub.")
    ] = None,
    offline: Annotated[bool, typer.Option("--offline", help="Ask nobody: only make sure that it is here.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would come, and fetch nothing.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress.")] = False,
) -> None:
    """Bring a model here from the Hugging Face Hub: only weights, configurations and texts, never code.

    Say the same again after an interruption and it goes on. Every file is held against the hub's digest. Private
    models need HF_TOKEN, or `hf auth login`.

    [bold]Examples[/bold]

    medsight model pull medsight-8b

    medsight model pull someone/my-medsight@v2 --mirror https://hub.hospital.example
    """
    from medsight_core.cli.model_files import run_pull

    run_pull(asked=model, mirror=mirror, offline=offline, dry_run=dry_run, quiet=quiet)


@app.command()
def verify(
    model: Model,
    record: Annotated[
        bool, typer.Option("--record", help="Write the digests of a folder beside its files, to verify them later.")
    ] = False,
    as_json: Json = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress.")] = False,
) -> None:
    """Read every byte of a model and name the files that are not what they were.

    Held against what was noted when it was pulled or converted, and against SHA256SUMS in its folder, which
    `sha256sum --check` reads as well.

    [bold]Examples[/bold]

    medsight model verify medsight-8b

    medsight model verify my-model/ --record
    """
    from medsight_core.cli.model_files import run_verify

    run_verify(model=model, record=record, as_json=as_json, quiet=quiet)

"""The command that the server brings to `medsight`.

`medsight_core.cli` finds `app` through the entry point group ``medsight.commands``. Imports that take time stay inside
the command.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final

import typer

from medsight_core.cli.backends import Compiled, Device, DeviceMap, Precision
from medsight_core.cli.extras import needs_extra
from medsight_core.cli.group import CommandGroup
from medsight_core.inference.running import Running
from medsight_core.server.config import ServerConfig
from medsight_core.server.serving import cache_folder, run_serve

UNDER_WAY: Final = 32
"""Answers besides those that wait: the model's own, and what clients still take."""

app = typer.Typer(no_args_is_help=True, cls=CommandGroup)


@app.callback()
def main() -> None:
    """Serve a model to others."""


@app.command()
def serve(
    model: Annotated[
        Path | None, typer.Option(metavar="MODEL", help="A MedSIGHT model, by folder or name; else medsight-mini.")
    ] = None,
    host: Annotated[
        str, typer.Option(metavar="ADDRESS", help="Where to listen; any but 127.0.0.1 needs a token and TLS.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(metavar="N", help="Port; 0 for any that is free.")] = 8765,
    token: Annotated[
        str | None,
        typer.Option(
            metavar="TOKEN",
            envvar="MEDSIGHT_TOKEN",
            show_envvar=True,
            help="What clients must say; better set as variable, where no list of programs shows it.",
        ),
    ] = None,
    cert: Annotated[Path | None, typer.Option(metavar="FILE", help="TLS certificate with its chain, PEM.")] = None,
    key: Annotated[Path | None, typer.Option(metavar="FILE", help="The certificate's private key, PEM.")] = None,
    behind_proxy: Annotated[
        bool, typer.Option("--behind-proxy", help="A proxy in front of it does the TLS; needs a token.")
    ] = False,
    allow_origin: Annotated[
        list[str] | None,
        typer.Option(metavar="ORIGIN", help="A web page that may ask, such as https://viewer.example. Repeatable."),
    ] = None,
    store: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", envvar="MEDSIGHT_SERVER_STORE", help="Folder of volumes; default: in the user's cache."
        ),
    ] = None,
    quota: Annotated[float, typer.Option(metavar="GB", min=0.001, help="How large that folder may become.")] = 20.0,
    waiting: Annotated[int, typer.Option(metavar="N", min=1, max=10_000, help="Questions that may wait.")] = 32,
    device: Device = "auto",
    precision: Precision = "auto",
    device_map: DeviceMap = None,
    compiled: Compiled = False,
    replicas: Annotated[
        str | None,
        typer.Option(metavar="N", help="Models in processes of their own, with Ray; 1:4 for as many as are needed."),
    ] = None,
) -> None:
    """Serve a model over HTTP: to `medsight --backend`, to OpenAI's clients, to MONAI Label's viewers.

    It listens on this computer only, unless told otherwise. It fetches nothing from anywhere, and its log has no text,
    name or identifier of what it is asked.

    [bold]Examples[/bold]

    medsight serve

    MEDSIGHT_TOKEN=... medsight serve --host 0.0.0.0 --cert server.pem --key server.key

    medsight serve --model my-model/ --device cuda --port 9000
    """
    config = ServerConfig(
        host=host,
        port=port,
        token=token,
        certificate=cert,
        key=key,
        behind_proxy=behind_proxy,
        origins=tuple(allow_origin or ()),
        answers=waiting + UNDER_WAY,
    )
    with needs_extra("server"):
        run_serve(
            config,
            model=model,
            running=Running(device=device, precision=precision, device_map=device_map, compiled=compiled),
            store=store or cache_folder() / "volumes",
            quota_bytes=int(quota * 1e9),
            waiting=waiting,
            replicas=replicas,
        )


if __name__ == "__main__":
    app(prog_name="medsight")

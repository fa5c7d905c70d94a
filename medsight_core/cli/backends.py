"""Who is asked: a model in this process, or a server."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from medsight_core.cli.group import say
from medsight_core.errors import InputError, MedSightError
from medsight_core.inference.running import PRECISIONS, Running

if TYPE_CHECKING:
    from medsight_core.backend import Backend
    from medsight_core.imaging.volume import Volume

Device = Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")]
Precision = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        help=f"{', '.join(PRECISIONS)}. auto: bf16 on CUDA, else fp32; int8 and int4: the language model alone.",
    ),
]
DeviceMap = Annotated[
    str | None,
    typer.Option(metavar="auto", help="Spread a large language model over all GPUs, and this machine's memory."),
]
Compiled = Annotated[
    bool,
    typer.Option("--compile", help="CUDA: compile the decode loop; the first answers wait, later ones come faster."),
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Chosen:
    """Who is asked, as it was typed.

    Attributes:
        model: A checkpoint in this process; None for the built-in one.
        device, precision, device_map, compiled: Where and how it runs, see `Running`.
        url: A server; None for a model in this process.
        token: Of the server.
        ca: File with the certificate authority that is trusted.
        insecure_http: Allow http to another computer.
    """

    model: Path | None = None
    device: str = "auto"
    precision: str = "auto"
    device_map: str | None = None
    compiled: bool = False
    url: str | None = None
    token: str | None = None
    ca: Path | None = None
    insecure_http: bool = False

    @property
    def remote(self) -> bool:
        """Whether a server is asked."""
        return bool(self.url and self.url.strip())

    @property
    def running(self) -> Running:
        """How the model in this process runs.

        Raises:
            InputError: bad_precision, bad_device_map.
        """
        return Running(
            device=self.device, precision=self.precision, device_map=self.device_map, compiled=self.compiled
        )

    def check(self) -> None:
        """Finds what is wrong with the options, before anything is read or loaded.

        Raises:
            CheckpointError: See `locate`.
            InputError: model_and_backend, bad_precision, bad_device_map.
        """
        _ = self.running
        if self.remote and self.model is not None:
            raise InputError(
                "model_and_backend",
                "A server has a model of its own; --model is for one in this process.",
                'Leave out one of --backend and --model; --backend "" asks no server whatever MEDSIGHT_BACKEND says.',
            )
        if self.model is not None:
            from medsight_core.inference.checkpoint import locate

            locate(self.model)


def open_backend(chosen: Chosen) -> Backend:
    """Loads the model, or finds the server and makes sure that it lets us in.

    Raises:
        MedSightError: Why there is none.
    """
    if chosen.remote:
        from medsight_core.client import RemoteBackend

        server = RemoteBackend(
            chosen.url or "", token=chosen.token or None, ca=chosen.ca, insecure_http=chosen.insecure_http
        )
        server.info()
        return server
    engine = load_engine(chosen.model, chosen.running)
    from medsight_core.inference.local import LocalBackend

    local: Backend = LocalBackend(engine)
    return local


def load_engine(model: Path | None, running: Running) -> Any:
    """The engine in this process, with the built-in model where none is named."""
    # Read when transformers is first imported; its notices are not for the person who asks.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    from medsight_core.inference.checkpoint import open_checkpoint

    running.require_packages()
    checkpoint = open_checkpoint(model)  # a damaged one is named before torch is imported, which takes seconds
    try:
        from medsight_core.inference.engine import Engine
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("medsight_core"):
            raise
        raise MedSightError(
            "model_not_installed",
            f"The model needs {error.name}, which is not installed.",
            "Install it with: pip install 'medsight[model]'; or ask a server with --backend URL.",
        ) from error
    return Engine.from_pretrained(checkpoint, **asdict(running))


def bring(backend: Backend, volume: Volume, chosen: Chosen, *, quiet: bool) -> None:
    """Brings a scan to a server, and says before what should be known; does nothing for a model in this process."""
    if not chosen.remote:
        return
    from medsight_core.cli.console import status
    from medsight_core.imaging.burned_in import burned_in_risk

    risk = burned_in_risk(volume)
    if risk is not None:
        say(f"warning: {risk}")
    with status("Sending the scan", quiet=quiet) as tell:
        backend.open(
            volume,
            on_progress=lambda step: tell(
                f"{step.what} {100 * step.done // step.total} %" if step.total else step.what
            ),
        )

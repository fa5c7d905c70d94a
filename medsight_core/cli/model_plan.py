"""`medsight model plan`: what each way to run a model needs on this machine, and which one to take."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Final

import typer
from rich.console import Console
from rich.text import Text

from medsight_core.cli.group import printable, say
from medsight_core.cli.model_files import size_text, table_of
from medsight_core.errors import CheckpointError
from medsight_core.inference.checkpoint import outline
from medsight_core.inference.shapes import declared_shapes
from medsight_core.models import library
from medsight_core.models.footprint import Footprint, footprint_of, with_head
from medsight_core.models.library import Entry
from medsight_core.models.machine import Machine, free_bytes, this_machine
from medsight_core.models.plan import QUANTIZED, Option, choose, options

LARGE: Final = 10**9
"""Parameters from which on it is worth making the language model smaller."""


def run_plan(*, model: str, tokens: int | None, as_json: bool) -> None:
    """Runs `medsight model plan`.

    Raises:
        CheckpointError: There is no such model, or nothing says how large it is.
    """
    name, entry, size = _sizes(model, tokens)
    machine = this_machine()
    found = options(size, machine)
    best = choose(found)
    steps = _steps(model, entry, best)
    if as_json:
        facts = {
            "model": name,
            "parameters": size.parameters,
            "size": asdict(size),
            "machine": asdict(machine),
            "options": [asdict(option) for option in found],
            "best": None if best is None else found.index(best),
            "steps": steps,
        }
        typer.echo(json.dumps(facts, indent=1))
        return
    _print_plan(name, size, machine, found, best, steps)
    for note in _notes(entry):
        say(f"note: {note}")
    if machine.blind:
        say(f"note: torch {machine.torch} cannot use this machine's GPU; install torch for CUDA first.")
    if best is not None and not best.install and any(option.install for option in found) and size.parameters > LARGE:
        say(f"note: int8 and int4 have to be installed first: {QUANTIZED}")
    if best is None:
        say("note: Nothing fits here. A server with a GPU can be asked instead: --backend URL.")


def _sizes(model: str, tokens: int | None) -> tuple[str, Entry | None, Footprint]:
    """Its name, what is known of it where it was named, and its sizes."""
    if Path(model).is_dir():
        folder = Path(model).resolve()
        return library.name_of(folder), None, _size_of(folder, tokens)
    entry = library.look_up(model)
    if entry.folder is not None:
        return model, entry, _size_of(entry.folder, tokens)
    if entry.known is None or entry.known.config is None:
        library.find(model)  # says what it lacks
        raise CheckpointError("wrong_model", f"Nothing says how large {model} is.")
    config = entry.known.config
    return model, entry, footprint_of(config, with_head(config, declared_shapes(config)), tokens=tokens)


def _size_of(folder: Path, tokens: int | None) -> Footprint:
    """The sizes of a folder's model: as its weights have them, or, where they are not there yet, its configuration."""
    try:
        seen = outline(folder)
    except CheckpointError as error:
        if error.code != "missing_weights" or not (folder / library.CONFIG).is_file():
            raise
        config = json.loads((folder / library.CONFIG).read_bytes())
        return footprint_of(config, with_head(config, declared_shapes(config)), side=_side(folder), tokens=tokens)
    shapes = {name: tensor.shape for name, tensor in seen.tensors.items()}
    return footprint_of(seen.config, shapes, side=_side(folder), tokens=tokens)


def _side(folder: Path) -> int | None:
    """Pixels along a side of the image that a model sees, as its image processor says."""
    try:
        side = json.loads((folder / "processor_config.json").read_bytes())["image_processor"]["size"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return side if isinstance(side, int) and side > 0 else None


def _steps(model: str, entry: Entry | None, best: Option | None) -> list[str]:
    """What to say, in order, until a question is answered."""
    steps = []
    if entry is not None and entry.state == "not here":
        steps.append(f"medsight model pull {model}")
    if entry is not None and entry.known is not None and entry.known.converted and entry.folder is None:
        command = None if entry.pulled is None else library.convert_command(entry.known, entry.pulled)
        steps.append(command or "medsight convert ...  (the command before says how)")
    if best is not None:
        if best.install:
            steps.append(best.install)
        steps.append(f'medsight ask SCAN "Where is the liver?" --model {model} {" ".join(best.arguments)}')
    return steps


def _notes(entry: Entry | None) -> list[str]:
    if entry is None or entry.known is None or entry.state == "built in":
        return []
    known = entry.known
    notes = [known.unverified] if known.unverified else []
    if entry.state == "not here":
        absent = sum(source.bytes for source in known.sources)
        cache = Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface")
        free = free_bytes(cache)
        lack = "" if absent < free else "; that is too little"
        notes.append(f"About {size_text(absent)} have to be pulled; {cache} has {size_text(free)} free{lack}.")
    return notes


def _print_plan(
    name: str, size: Footprint, machine: Machine, found: Sequence[Option], best: Option | None, steps: Sequence[str]
) -> None:
    console = Console(highlight=False)
    gpus = ", ".join(f"{gpu.name} ({size_text(gpu.bytes)}, {size_text(gpu.free)} free)" for gpu in machine.gpus)
    typer.echo(
        f"{printable(name)}: {_count(size.parameters)} parameters, {_count(size.matrices)} of them in the matrices of "
        f"the language model; reckoned with {size.tokens:,} tokens, {size.visual_tokens:,} of them the image."
    )
    typer.echo(
        f"This machine: {size_text(machine.memory)} of memory, {size_text(machine.free)} free; "
        f"{gpus or 'no GPU of NVIDIA'}; {'torch ' + machine.torch if machine.torch else 'torch is not installed'}."
    )
    table = table_of("", "Precision", "On", "Weights", "Beside", "GPU", "Memory", "Fits")
    for option in found:
        table.add_row(
            Text("→" if option is best else "", style="bold"),
            option.precision,
            option.place,
            size_text(option.weights),
            size_text(option.working),
            size_text(option.gpu_bytes) if option.gpu_bytes else "–",
            size_text(option.memory_bytes),
            Text(option.fits, style="green" if option.fits == "yes" else "yellow" if option.fits != "no" else "red"),
        )
    console.print(table)
    if best is not None:
        typer.echo(f"Best here: {best.precision} on {best.place}." + (f" ({best.why})" if best.why else ""))
    for step in steps:
        typer.echo(f"  {printable(step)}")


def _count(parameters: int) -> str:
    return f"{parameters / 1e9:.2f} billion" if parameters >= 1e9 else f"{parameters / 1e6:.2f} million"

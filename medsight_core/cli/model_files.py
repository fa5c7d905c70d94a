"""`medsight model list`, `pull` and `verify`: models as files."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from medsight_core.cli.group import printable, say
from medsight_core.errors import CheckpointError
from medsight_core.inference import checked
from medsight_core.inference.checkpoint import Outline, open_checkpoint, outline
from medsight_core.models import library, sums
from medsight_core.models.hub import Hub
from medsight_core.models.library import Entry
from medsight_core.models.machine import free_bytes
from medsight_core.models.manifest import Difference, differences
from medsight_core.models.pull import asked_for, here, plan_pull, pull

INTERRUPTED: Final = 130
CONVERSION: Final = "conversion.json"
"""What `medsight convert` notes beside what it makes."""

_PRECISIONS: Final = {"F32": "fp32", "F16": "fp16", "BF16": "bf16", "F64": "fp64", "I8": "int8", "U8": "4-bit"}


def run_list(*, as_json: bool) -> None:
    """Runs `medsight model list`.

    Raises:
        CheckpointError: damaged_manifest.
    """
    rows = [_row(entry) for entry in library.entries()]
    if as_json:
        typer.echo(json.dumps({"models": rows, "folder": str(library.models_folder())}, indent=1))
        return
    table = table_of("Name", "State", "Size", "Precision", "Digest")
    for row in rows:
        table.add_row(
            Text(printable(row["name"])),
            row["state"],
            size_text(row["bytes"]) if row["bytes"] else "–",
            row["precision"] or "–",
            row["digest"] or "–",
        )
    Console(highlight=False).print(table)
    folders = [row for row in rows if row["folder"] and row["state"] != "built in"]
    for row in folders:
        typer.echo(f"{row['name']}: {printable(row['folder'])}")
    for row in rows:
        for note in row["notes"]:
            say(f"note: {row['name']}: {note}")


def run_pull(*, asked: str, mirror: str | None, offline: bool, dry_run: bool, quiet: bool) -> None:
    """Runs `medsight model pull`.

    Raises:
        InputError: Why it does not come.
        CheckpointError: damaged_manifest.
    """
    known, revision = asked_for(asked)
    if offline:
        pulled = here(known)
        typer.echo(f"{known.name} is here, {size_text(pulled.bytes)}, pulled {pulled.when}.")
        _say_next(known.name)
        return
    hub = Hub(endpoint=mirror)
    parts = plan_pull(hub, known, revision)
    absent = sum(part.absent for part in parts)
    for part in parts:
        size = size_text(sum(file.bytes for file in part.files))
        typer.echo(f"{part.source.repo} at {part.commit[:10]}: {_files(len(part.files))}, {size}.")
        if dry_run:
            for file in part.files:
                typer.echo(f"  {printable(file.path)}  {size_text(file.bytes)}")
        if part.source.note:
            say(f"note: {part.source.repo}: {part.source.note}")
    if known.unverified:
        say(f"note: {known.unverified}")
    free = size_text(free_bytes(hub.cache))
    typer.echo(f"To fetch: {size_text(absent)} into {hub.cache}, where {free} are free.")
    if dry_run:
        return
    try:
        with counted(absent, "Pulling", quiet=quiet) as came:
            pulled = pull(hub, known, parts, came=came)
    except KeyboardInterrupt:
        say("Stopped. What came is kept: say the same command again to go on.")
        raise typer.Exit(INTERRUPTED) from None
    count = sum(len(source.files) for source in pulled.sources)
    typer.echo(f"{known.name} is here: {_files(count)}, {size_text(pulled.bytes)}, all digests as the hub tells them.")
    _say_next(known.name)


def run_verify(*, model: str, record: bool, as_json: bool, quiet: bool) -> None:
    """Runs `medsight model verify`.

    Raises:
        CheckpointError: changed_files, with their names; or what is wrong with the checkpoint.
        InputError: The digests cannot be written.
    """
    entry = _entry(model)
    folder = entry.folder
    total = sum(file.bytes for source in entry.pulled.sources for file in source.files) if entry.pulled else 0
    told = None if folder is None or record else sums.read_sums(folder)
    total += sum(file.stat().st_size for file in sums.files_of(folder)) if folder and (told or record) else 0
    with counted(total, "Reading", quiet=quiet or as_json) as read:
        if record:
            if folder is None:
                raise CheckpointError("no_checkpoint", f"{entry.name} is no checkpoint yet; there is nothing to note.")
            opened = open_checkpoint(folder, anew=True)
            sums.write_sums(folder, read=read)
            _verified(entry, opened.digest, "noted in SHA256SUMS", as_json=as_json)
            return
        wrong: list[Difference] = []
        if entry.pulled is not None:
            wrong += [found for source in entry.pulled.sources for found in differences(source, read=read)]
        if folder is not None and told is not None:
            wrong += sums.changed(folder, told, read=read)
    if wrong:
        _say_wrong(entry, wrong, as_json=as_json)
    digest = None if folder is None else open_checkpoint(folder, anew=True).digest
    converted = None if folder is None else _converted_digest(folder)
    if converted not in (None, digest):
        raise CheckpointError(
            "changed_files",
            f"The weights of {entry.name} are not those that its conversion wrote: their digest is {digest}, expected "
            f"{converted}.",
            "Convert the release again with --overwrite.",
        )
    against = [
        *(["the hub told"] if entry.pulled else []),
        *([f"{CONVERSION} says"] if converted else []),
        *(["SHA256SUMS says"] if told is not None else []),
    ]
    state = f"whole, as {' and '.join(against)}" if against else "whole; nothing was noted before to compare with"
    _verified(entry, digest, state, as_json=as_json)


def _converted_digest(folder: Path) -> str | None:
    """The digest that `medsight convert` noted; None where it did not make the folder."""
    try:
        digest = json.loads((folder / CONVERSION).read_bytes())["digest"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return str(digest)


def _verified(entry: Entry, digest: str | None, state: str, *, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps({"model": entry.name, "whole": True, "digest": digest, "state": state}, indent=1))
        return
    typer.echo(f"{entry.name}: {state}." + (f" Digest {digest}." if digest else ""))


def _say_wrong(entry: Entry, wrong: Sequence[Difference], *, as_json: bool) -> None:
    if as_json:
        files = [{"file": str(one.file), "what": one.what} for one in wrong]
        typer.echo(json.dumps({"model": entry.name, "whole": False, "files": files}, indent=1))
    kinds = ", ".join(f"{count} {what}" for what, count in Counter(one.what for one in wrong).items())
    if not as_json:
        for one in wrong:
            typer.echo(printable(str(one)))
    remedy = (
        f"Say: medsight model pull {entry.name}"
        if entry.pulled is not None
        else "Copy the folder again from where it came; or, where you changed it yourself, say --record."
    )
    raise CheckpointError("changed_files", f"{entry.name} is not what it was: {kinds}.", remedy)


def _entry(model: str) -> Entry:
    """What a name or a folder means."""
    if Path(model).is_dir():
        return Entry(name=Path(model).resolve().name, state="in the folder of models", folder=Path(model).resolve())
    entry = library.look_up(model)
    if entry.state == "not here":
        library.find(model)  # says how to get it
    return entry


def _row(entry: Entry) -> dict[str, Any]:
    """A model for `list`."""
    row: dict[str, Any] = {
        "name": entry.name,
        "state": entry.state,
        "bytes": entry.pulled.bytes if entry.pulled else 0,
        "precision": None,
        "digest": None,
        "folder": None if entry.folder is None else str(entry.folder),
        "notes": [],
    }
    if entry.folder is None:
        if entry.pulled is not None:
            row["folder"] = str(entry.pulled.sources[0].folder)
        elif entry.known is not None:
            row["bytes"] = sum(source.bytes for source in entry.known.sources)
        return row
    try:
        seen = outline(entry.folder)
        row |= {"bytes": sum(file.stat().st_size for file in seen.files), "precision": precision_of(seen)}
        small = row["bytes"] < checked.LARGE
        row["digest"] = open_checkpoint(entry.folder).digest if small else checked.recall(seen.files)
    except CheckpointError as error:
        row["notes"].append(str(error))
    return row


def precision_of(seen: Outline) -> str:
    """How most of the weights are stored."""
    counts: Counter[str] = Counter()
    for tensor in seen.tensors.values():
        counts[tensor.dtype] += tensor.end - tensor.start
    most = counts.most_common(1)[0][0] if counts else "?"
    return _PRECISIONS.get(most, most.lower())


def size_text(count: int) -> str:
    """Bytes as a person says them: powers of ten, as disks and downloads are sold."""
    for unit, name in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if count >= unit:
            return f"{count / unit:.1f} {name}"
    return f"{count} B"


def _files(count: int) -> str:
    return "1 file" if count == 1 else f"{count} files"


def _say_next(name: str) -> None:
    """What to do with what was pulled."""
    entry = library.look_up(name)
    if entry.state == "to be converted" and entry.known is not None and entry.pulled is not None:
        typer.echo("Next, make a checkpoint of it:")
        typer.echo(f"  {library.convert_command(entry.known, entry.pulled)}")
        return
    library.find(name)  # says so where it is no checkpoint
    typer.echo("Next:")
    typer.echo(f"  medsight model plan {name}")
    typer.echo(f'  medsight ask SCAN "Where is the liver?" --model {name}')


def table_of(*columns: str) -> Table:
    """A table of models, or of ways to run one."""
    table = Table(box=None, header_style="dim", padding=(0, 2, 0, 0))
    for column in columns:
        right = column in ("Size", "Weights", "Beside", "GPU", "Memory")
        table.add_column(column, justify="right" if right else "left", no_wrap=True)
    return table


@contextmanager
def counted(total: int, what: str, *, quiet: bool) -> Iterator[Callable[[int], None]]:
    """A bar on stderr that counts bytes, where a person sees it; gives what to tell them to."""
    if quiet or not sys.stderr.isatty():
        yield lambda count: None
        return
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (TextColumn(what), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("", total=total)
        yield lambda count: bar.advance(task, count)

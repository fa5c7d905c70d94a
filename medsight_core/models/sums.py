"""SHA-256 of the files of a checkpoint, in a file beside them that ``sha256sum --check`` reads as well."""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Final

from medsight_core.errors import CheckpointError, InputError
from medsight_core.models.manifest import Difference, digest_of

SUMS: Final = "SHA256SUMS"

KINDS: Final = (".safetensors", ".json", ".jinja", ".txt", ".model")
"""Files that make the model what it is; texts about it may change."""

_LINE: Final = re.compile(r"([0-9a-f]{64}) [ *]([^\\\n]+)")


def files_of(folder: Path) -> list[Path]:
    """Those files of a checkpoint that its sums cover, by name."""
    return sorted(file for file in folder.iterdir() if file.suffix in KINDS and file.is_file())


def write_sums(folder: Path, *, read: Callable[[int], None] = lambda count: None) -> Path:
    """Writes the digests of a checkpoint's files beside them, whole or not at all.

    Args:
        folder: Of the checkpoint.
        read: Is told how many bytes were read.

    Raises:
        InputError: bad_output.
    """
    target = folder / SUMS
    part = folder / f".{SUMS}.{secrets.token_hex(4)}.partial"
    try:
        lines = [f"{digest_of(file, read)}  {file.name}\n" for file in files_of(folder)]
        part.write_text("".join(lines), encoding="utf-8")
        os.replace(part, target)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise InputError("bad_output", f"{target} cannot be written: {error.strerror or error}.") from error
    return target


def read_sums(folder: Path) -> dict[str, str] | None:
    """Digests by name of file; None where none were written down.

    Raises:
        CheckpointError: damaged_sums.
    """
    file = folder / SUMS
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise CheckpointError("damaged_sums", f"{file} cannot be read.") from error
    found = [_LINE.fullmatch(line) for line in lines]
    if not found or not all(match and Path(match[2]).name == match[2] for match in found):
        raise CheckpointError("damaged_sums", f"{file} is no list of SHA-256 digests.", "Copy the folder again.")
    return {match[2]: match[1] for match in found if match}


def changed(folder: Path, sums: Mapping[str, str], *, read: Callable[[int], None]) -> Iterator[Difference]:
    """Files that are not what their digests say, and files that have none.

    Args:
        folder: Of the checkpoint.
        sums: As `read_sums` gives them.
        read: Is told how many bytes were read.
    """
    for name, digest in sums.items():
        file = folder / name
        try:
            if digest_of(file, read) != digest:
                yield Difference(file=file, what="changed")
        except FileNotFoundError:
            yield Difference(file=file, what="missing")
        except OSError:
            yield Difference(file=file, what="unreadable")
    for file in files_of(folder):
        if file.name not in sums:
            yield Difference(file=file, what="not in the list")

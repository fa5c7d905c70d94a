"""What was pulled: which files of which commit, with their digests, so that it can be checked at any time."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Literal

from medsight_core.errors import CheckpointError, InputError

FORMAT: Final = 1
CHUNK: Final = 8 * 2**20
FOLDER: Final = ".pulled"
"""Within the folder of models: a file per name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PulledFile:
    """A file as it was when it came: its path within the repository, its size and its SHA-256."""

    path: str
    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PulledSource:
    """What came from one repository.

    Attributes:
        role: See `known.Source`.
        repo: ``owner/name``.
        revision: As it was asked for.
        commit: What that meant then.
        folder: Where its files lie.
        files: All that was pulled.
    """

    role: str
    repo: str
    revision: str
    commit: str
    folder: Path
    files: tuple[PulledFile, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Pulled:
    """What was pulled under one name."""

    name: str
    when: str
    sources: tuple[PulledSource, ...]

    @property
    def bytes(self) -> int:
        """Of all its files."""
        return sum(file.bytes for source in self.sources for file in source.files)


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """A file that is not what it was."""

    file: Path
    what: Literal["missing", "of another size", "changed", "unreadable", "not in the list"]

    def __str__(self) -> str:
        return f"{self.file} is {self.what}"


def manifest_file(home: Path, name: str) -> Path:
    """Where the manifest of a name is kept within a folder of models."""
    return home / FOLDER / f"{name.replace('/', '--')}.json"


def read_manifest(file: Path) -> Pulled | None:
    """A manifest; None where there is none.

    Raises:
        CheckpointError: damaged_manifest.
    """
    try:
        told: dict[str, Any] = json.loads(file.read_bytes())
        if told["format"] != FORMAT:
            raise ValueError("another format")
        return Pulled(
            name=str(told["name"]),
            when=str(told["when"]),
            sources=tuple(
                PulledSource(
                    **source
                    | {"folder": Path(source["folder"]), "files": tuple(PulledFile(**one) for one in source["files"])}
                )
                for source in told["sources"]
            ),
        )
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(
            "damaged_manifest",
            f"{file}, which says what was pulled, cannot be read.",
            "Delete it and pull the model again: what is still whole is not fetched twice.",
        ) from error


def write_manifest(file: Path, pulled: Pulled) -> None:
    """Writes a manifest, whole or not at all.

    Raises:
        InputError: bad_output.
    """
    text = json.dumps({"format": FORMAT, **asdict(pulled)}, indent=1, default=str)
    part = file.with_name(f"{file.name}.{secrets.token_hex(4)}.partial")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(text + "\n", encoding="utf-8")
        os.replace(part, file)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise InputError("bad_output", f"{file} cannot be written: {error.strerror or error}.") from error


def differences(source: PulledSource, *, read: Callable[[int], None] | None = None) -> Iterator[Difference]:
    """What of a source is not as it came.

    Args:
        source: Of a manifest.
        read: Is told how many bytes were read; without it, only presence and sizes are looked at.
    """
    for told in source.files:
        file = source.folder / told.path
        try:
            size = file.stat().st_size
            if size != told.bytes:
                yield Difference(file=file, what="of another size")
            elif read is not None and digest_of(file, read) != told.sha256:
                yield Difference(file=file, what="changed")
        except FileNotFoundError:
            yield Difference(file=file, what="missing")
        except OSError:
            yield Difference(file=file, what="unreadable")


def digest_of(
    file: Path, read: Callable[[int], None] = lambda count: None, *, start: bytes = b"", kind: str = "sha256"
) -> str:
    """The digest of a file in hexadecimal digits.

    Args:
        file: Read in pieces.
        read: Is told how many bytes each piece has.
        start: What the digest begins with, before the file.
        kind: As `hashlib.new` takes it.
    """
    digest = hashlib.new(kind, start, usedforsecurity=False)
    with file.open("rb") as stream:
        while chunk := stream.read(CHUNK):
            digest.update(chunk)
            read(len(chunk))
    return digest.hexdigest()

"""Remembers which large weight files were read through and found whole, so that opening them again takes no minutes.

A file counts as the one that was checked while its size, its time of change and its place on the disk are the same, as
git tells changed files. What that cannot see, bits that a dying disk turned over, `medsight model verify` does.
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from medsight_core.models.library import models_folder

LARGE: Final = 2**30
"""Bytes of all weight files from which on it is worth remembering; smaller ones are read anew each time."""

FORMAT: Final = 1
MOST: Final = 200
"""Folders that are remembered; the ones that were checked first are forgotten."""

_NAME: Final = ".checked.json"


def recall(files: Sequence[Path]) -> str | None:
    """The digest of weight files that were found whole before and have not changed since; None where unknown."""
    stamp = _stamp(files)
    told = _read().get(str(files[0].parent)) if files and stamp is not None else None
    if not isinstance(told, dict) or told.get("stamp") != stamp:
        return None
    digest = told.get("digest")
    return digest if isinstance(digest, str) else None


def remember(files: Sequence[Path], digest: str) -> None:
    """Notes that files are whole; does nothing for small ones, nor where it cannot be written down."""
    stamp = _stamp(files)
    if stamp is None or sum(entry[1] for entry in stamp) < LARGE:
        return
    folder = str(files[0].parent)
    kept = {name: value for name, value in _read().items() if name != folder}
    kept[folder] = {"stamp": stamp, "digest": digest}
    recent = dict(list(kept.items())[-MOST:])
    target = models_folder() / _NAME
    part = target.with_name(f"{_NAME}.{secrets.token_hex(4)}.partial")
    with suppress(OSError):
        target.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(json.dumps({"format": FORMAT, "folders": recent}, indent=1), encoding="utf-8")
        os.replace(part, target)
    with suppress(OSError):
        part.unlink(missing_ok=True)


def _stamp(files: Sequence[Path]) -> list[list[Any]] | None:
    """Name, size, time of change and place of each file, as JSON would give it back."""
    try:
        stats = [(file.name, file.stat()) for file in files]
    except OSError:
        return None
    return [[name, found.st_size, found.st_mtime_ns, found.st_ino] for name, found in stats]


def _read() -> dict[str, Any]:
    try:
        told = json.loads((models_folder() / _NAME).read_bytes())
        folders = told["folders"] if told["format"] == FORMAT else {}
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return {}
    return folders if isinstance(folders, dict) else {}

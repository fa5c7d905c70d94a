"""Reading a manifest in BiomedParse's layout: one JSON object per line, one line per mask.

Everything that can be wrong with it is found before a model is loaded: a line that is no JSON, a missing key, a path
that leaves the folder, a file that is absent, a mask that cannot be read or is empty.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from medsight_core.errors import InputError

_REQUIRED = ("dataset", "split", "image", "modality", "site")
_OPTIONAL = ("mask", "target", "diagnosis", "patient")
_NAMED = 5
"""How many faulty files or lines a message names; the others are counted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One line of a manifest.

    Attributes:
        dataset: Where the image is from.
        split: "train", "test" ...
        image: Path below the root, with forward slashes.
        mask: Path below the root; None where the target is absent from the image.
        modality: "CT", "MRI", "X-ray" ...
        site: Part of the body, such as "chest".
        target: What the mask shows, in plain words; None where no target is named (an image without findings).
        diagnosis: Of the image; None where the source gives none.
        patient: Whom it shows, or the sequence it is from; None where unknown.
    """

    dataset: str
    split: str
    image: str
    mask: str | None
    modality: str
    site: str
    target: str | None
    diagnosis: str | None
    patient: str | None

    @property
    def cluster(self) -> tuple[str, str]:
        """What was drawn together: the patient within the data set, else the image."""
        return self.dataset, self.patient or self.image


def read_manifest(path: Path) -> tuple[Row, ...]:
    """Reads all rows.

    Raises:
        InputError: the file is missing, or lines are not what a manifest has; the first ones are named.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            "bad_manifest", f"The manifest {path} cannot be read ({type(error).__name__}).", "Give a JSONL file."
        ) from error
    rows: list[Row] = []
    faults: list[str] = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            rows.append(_row(json.loads(line)))
        except ValueError as error:
            faults.append(f"line {number}: {error}")
    if faults:
        found = f"{len(faults)} of {len(lines)} lines of {path.name} are wrong: {_some(faults)}."
        raise InputError("bad_manifest", found, "Expected one JSON object per line.")
    if not rows:
        raise InputError("bad_manifest", f"The manifest {path.name} is empty.", "Expected one JSON object per line.")
    return tuple(rows)


def _row(entry: Any) -> Row:
    if not isinstance(entry, dict):
        raise ValueError("no JSON object")
    if missing := [key for key in _REQUIRED if not isinstance(entry.get(key), str) or not entry[key].strip()]:
        raise ValueError(f"{', '.join(missing)} missing or no text")
    values: dict[str, str | None] = {key: entry[key].strip() for key in _REQUIRED}
    for key in _OPTIONAL:
        value = entry.get(key)
        if value is not None and not isinstance(value, str):
            raise ValueError(f"{key} is neither text nor null")
        values[key] = value.strip() or None if value is not None else None
    for key in ("image", "mask"):
        if (place := values[key]) is not None and not _stays_below(place):
            raise ValueError(f"{key} {place!r} leaves the root folder")
    if values["mask"] is not None and values["target"] is None:
        raise ValueError("a mask without a target")
    return Row(**values)  # type: ignore[arg-type]  # the required ones are text, as checked above


def _stays_below(place: str) -> bool:
    path = PurePosixPath(place)
    return not path.is_absolute() and ".." not in path.parts and "\\" not in place


def check_files(rows: Iterable[Row], root: Path) -> None:
    """Looks at every file that the rows name.

    Raises:
        InputError: images or masks are missing, or masks are unreadable or empty; counted, and the first ones named.
    """
    if not root.is_dir():
        raise InputError("bad_root", f"The folder of the images, {root}, does not exist.", "Give it with --root.")
    rows = tuple(rows)
    images = dict.fromkeys(row.image for row in rows)
    masks = dict.fromkeys(row.mask for row in rows if row.mask is not None)
    if missing := [name for name in (*images, *masks) if not (root / name).is_file()]:
        total = len(images) + len(masks)
        raise InputError(
            "missing_files", f"{len(missing)} of {total} files are not in {root}: {_some(missing)}.", "Check --root."
        )
    unreadable: list[str] = []
    for name in masks:
        try:
            read_mask(root / name)
        except InputError as error:
            unreadable.append(error.sentence)
    if unreadable:
        raise InputError("bad_mask", f"{len(unreadable)} of {len(masks)} masks are unusable: {_some(unreadable)}")


def read_mask(path: Path) -> NDArray[np.bool_]:
    """Reads a mask picture; what is brighter than half its brightest value is inside.

    Returns:
        (rows, columns) bool, not empty. Masks of 0 and 1 and of 0 and 255 both occur, hence "its brightest value".

    Raises:
        InputError: no readable picture, or nothing in it.
    """
    try:
        with Image.open(path) as picture:
            values = np.asarray(picture.convert("L") if picture.mode in {"RGB", "RGBA", "P", "LA", "1"} else picture)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise InputError("bad_mask", f"{path.name} is no readable picture") from error
    if values.ndim != 2 or values.max(initial=0) <= 0:
        raise InputError("bad_mask", f"{path.name} shows nothing")
    return np.asarray(values > values.max() / 2)


def digest(path: Path) -> str:
    """SHA-256 of a file, to say which manifest a figure belongs to."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(names[:_NAMED])
    return shown if len(names) <= _NAMED else f"{shown} and {len(names) - _NAMED} more"

"""Where models lie that are known by name, so that ``--model NAME`` finds them.

A name means, in this order: the model that comes with the package; a folder of that name in the user's folder of
models, where converted and trained ones are kept; what was pulled under that name, which lies in the hub's own cache.
"""

from __future__ import annotations

import difflib
import json
import os
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Final, Literal

from medsight_core.errors import CheckpointError
from medsight_core.models.known import EMBEDDED, Known, known_models
from medsight_core.models.manifest import Pulled, manifest_file, read_manifest

ENVIRONMENT: Final = "MEDSIGHT_MODELS"
"""Names the folder of models, where the usual one is not wanted."""

CONFIG: Final = "config.json"

_NAME: Final = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")

State = Literal["built in", "in the folder of models", "pulled", "to be converted", "not here"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A model that can be named.

    Attributes:
        name: What it is called.
        state: Whether and how it is here. "to be converted": its files are here, but are no checkpoint yet.
        folder: Of the checkpoint; None where there is none.
        pulled: What was pulled under this name.
        known: What is known of it beforehand.
    """

    name: str
    state: State
    folder: Path | None = None
    pulled: Pulled | None = None
    known: Known | None = None


def models_folder() -> Path:
    """Where this user's models are kept by name; it may not exist yet."""
    if os.environ.get(ENVIRONMENT):
        return Path(os.environ[ENVIRONMENT]).expanduser()
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local"
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Application Support"
    else:
        base = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    return Path(base) / "medsight" / "models"


def embedded_folder() -> Path:
    """The model that comes with the package."""
    return Path(str(files("medsight_core"))) / "checkpoints" / EMBEDDED


def is_name(text: str) -> bool:
    """Whether a text can be the name of a model: one word, or a repository's ``owner/name``."""
    return _NAME.fullmatch(text) is not None


def name_of(folder: Path) -> str:
    """What the model of a folder is called: as its folder is, or, within the hub's cache, as its repository is."""
    repository = folder.parent.parent.name
    if folder.parent.name == "snapshots" and repository.startswith("models--"):
        return repository.split("--")[-1]
    return folder.name


def look_up(name: str) -> Entry:
    """What is known of a name, whether its model is here or not.

    Raises:
        CheckpointError: unknown_model, damaged_manifest.
    """
    known = known_models().get(name)
    pulled = read_manifest(manifest_file(models_folder(), name))
    if name == EMBEDDED:
        return Entry(name=name, state="built in", folder=embedded_folder(), known=known)
    kept = models_folder() / name
    if (kept / CONFIG).is_file():
        return Entry(name=name, state="in the folder of models", folder=kept, pulled=pulled, known=known)
    if pulled is not None:
        folder = _checkpoint_of(pulled)
        state: State = "pulled" if folder is not None else "to be converted"
        return Entry(name=name, state=state, folder=folder, pulled=pulled, known=known)
    if known is not None:
        return Entry(name=name, state="not here", known=known)
    names = [entry.name for entry in entries()]
    close = difflib.get_close_matches(name, names, n=1)
    raise CheckpointError(
        "unknown_model",
        f'"{name}" is not a folder, and no model of that name is known here.',
        (f'Did you mean "{close[0]}"? ' if close else "") + "`medsight model list` names them.",
    )


def find(name: str) -> Path:
    """The folder of the checkpoint that a name means.

    Raises:
        CheckpointError: It is not here, with what to say to get it; unknown_model, damaged_manifest.
    """
    entry = look_up(name)
    if entry.folder is not None:
        return entry.folder
    if entry.pulled is None:
        raise CheckpointError("not_pulled", f"{name} is known, but not here.", f"Say: medsight model pull {name}")
    if entry.known is None or not entry.known.converted:
        raise CheckpointError(
            "wrong_model", f"What was pulled as {name} is no MedSIGHT checkpoint: it has no {CONFIG} of one."
        )
    raise CheckpointError(
        "not_converted",
        f"{name} was pulled, but is not converted yet.",
        f"Say: {convert_command(entry.known, entry.pulled)}",
    )


def entries() -> Iterator[Entry]:
    """Every model that is here, and those that are known and not here.

    Raises:
        CheckpointError: damaged_manifest.
    """
    home = models_folder()
    kept = [path.parent for path in (*home.glob(f"*/{CONFIG}"), *home.glob(f"*/*/{CONFIG}"))]
    pulled = [read_manifest(file) for file in sorted(manifest_file(home, "any").parent.glob("*.json"))]
    names = dict.fromkeys(
        (
            *known_models(),
            *sorted(folder.relative_to(home).as_posix() for folder in kept),
            *(one.name for one in pulled if one is not None),
        )
    )
    return (look_up(name) for name in names if is_name(name))


def convert_command(known: Known, pulled: Pulled) -> str:
    """What to say to make a checkpoint of a release that was pulled."""
    release = next(source for source in pulled.sources if source.role == "release")
    extra = "".join(
        f" --clip {_quoted(source.folder / file.path)}"
        for source in pulled.sources
        if source.role == "clip"
        for file in source.files
        if file.path.endswith((".pt", ".safetensors"))
    )
    return f"medsight convert {_quoted(release.folder)} {_quoted(models_folder() / known.name)}{extra}"


def _checkpoint_of(pulled: Pulled) -> Path | None:
    """The folder that was pulled, where it holds a checkpoint of ours as it is."""
    folder = pulled.sources[0].folder if pulled.sources else None
    try:
        config = json.loads((folder / CONFIG).read_bytes()) if folder is not None else None
    except (OSError, ValueError):
        return None
    return folder if isinstance(config, dict) and config.get("model_type") == "medsight" else None


def _quoted(path: Path) -> str:
    text = str(path)
    return f'"{text}"' if " " in text else text

"""Models that are known by name, as ``known.toml`` lists them."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from typing import Any, Final

EMBEDDED: Final = "medsight-mini"
"""The model that comes with the package."""

CHECKPOINT: Final = "checkpoint"
RELEASE: Final = "release"
CLIP: Final = "clip"


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A repository on the hub that a model, or a part of it, comes from.

    Attributes:
        repo: ``owner/name``.
        role: What it holds: a "checkpoint" as it is, or the authors' "release" and the "clip" weights that the release
            needs, of which `medsight convert` makes a checkpoint.
        files: Patterns of the files that are wanted; all of an allowed kind where empty.
        pickles: Take weights in pickle files as well. They are never opened but by `medsight convert`.
        bytes: About how much it is; 0 where unknown.
        note: What to know before using it.
    """

    repo: str
    role: str = CHECKPOINT
    files: tuple[str, ...] = ()
    pickles: bool = False
    bytes: int = 0
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """A model that can be named.

    Attributes:
        name: What it is called.
        about: One sentence.
        sources: Where it comes from; empty for the one that comes with the package.
        config: Its sizes, in the form of ``config.json``; None where they are in its folder.
        unverified: What of this nobody has checked.
    """

    name: str
    about: str
    sources: tuple[Source, ...] = ()
    config: Mapping[str, Any] | None = None
    unverified: str = ""

    @property
    def converted(self) -> bool:
        """Whether a checkpoint has first to be made of it by `medsight convert`."""
        return any(source.role == RELEASE for source in self.sources)


def known_models() -> dict[str, Known]:
    """All of them by name, in the order of the list."""
    here = files(__package__)
    listed = tomllib.loads((here / "known.toml").read_text(encoding="utf-8"))
    return {
        name: Known(
            name=name,
            about=entry["about"],
            sources=tuple(
                Source(**source | {"files": tuple(source.get("files", ()))}) for source in entry.get("sources", ())
            ),
            config=json.loads((here / entry["config"]).read_text(encoding="utf-8")) if "config" in entry else None,
            unverified=entry.get("unverified", ""),
        )
        for name, entry in listed.items()
    }

"""Brings a model here: which files of which repositories, whether they fit on the disk, and a note of what came."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Final

from medsight_core.errors import InputError
from medsight_core.models.hub import Hub, RemoteFile
from medsight_core.models.known import EMBEDDED, Known, Source, known_models
from medsight_core.models.library import models_folder
from medsight_core.models.manifest import (
    Pulled,
    PulledFile,
    PulledSource,
    differences,
    digest_of,
    manifest_file,
    read_manifest,
    write_manifest,
)

KINDS: Final = (".safetensors", ".json", ".txt", ".model", ".jinja", ".md", "license", "notice")
"""How names of files may end that are taken: data and texts. Code is never among them."""

PICKLES: Final = (".pt", ".bin")
"""Weights that only `medsight convert` opens, with an unpickler that can make tensors and nothing else."""

LEFT: Final = (
    "*optimizer*", "*scheduler*", "*rng_state*", "*training_args*", "global_step*", "runs/*", "checkpoint-*/*",
)  # fmt: skip
"""What a training run leaves behind and no answer needs."""

SPARE: Final = 200 * 2**20
"""Bytes of the disk that stay free."""

MAIN: Final = "main"

_ASKED: Final = re.compile(r"(?P<name>[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?)(@(?P<revision>[\w./-]+))?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """What is wanted of one repository.

    Attributes:
        source: Where it comes from.
        revision: As it was asked for.
        commit: What that means now.
        files: Those that are wanted.
        absent: Bytes that are not here yet.
    """

    source: Source
    revision: str
    commit: str
    files: tuple[RemoteFile, ...]
    absent: int

    @property
    def bytes(self) -> int:
        """Of all files, here or not."""
        return sum(file.bytes for file in self.files)


def asked_for(text: str) -> tuple[Known, str]:
    """What ``NAME`` or ``OWNER/REPO``, either with ``@REVISION``, means: a model and a revision.

    Raises:
        InputError: bad_name, built_in.
    """
    match = _ASKED.fullmatch(text)
    known = known_models().get(match["name"]) if match else None
    if match is None or (known is None and "/" not in match["name"]):
        names = ", ".join(name for name in known_models() if name != EMBEDDED)
        raise InputError(
            "bad_name",
            f'"{text}" is neither the name of a known model nor a repository.',
            f"Known: {names}. A repository is written OWNER/NAME, or OWNER/NAME@REVISION.",
        )
    if match["name"] == EMBEDDED:
        raise InputError("built_in", f"{EMBEDDED} comes with the package; there is nothing to pull.")
    name, revision = match["name"], match["revision"] or MAIN
    return known or Known(name=name, about="", sources=(Source(repo=name),)), revision


def wanted(source: Source, files: Sequence[RemoteFile]) -> tuple[RemoteFile, ...]:
    """Those files of a repository that are taken.

    Raises:
        InputError: no_weights, pickled_weights.
    """
    kinds = KINDS + (PICKLES if source.pickles else ())
    taken = tuple(
        file
        for file in files
        if file.path.lower().endswith(kinds)
        and not any(fnmatchcase(file.path, pattern) for pattern in LEFT)
        and (not source.files or any(fnmatchcase(file.path, pattern) for pattern in source.files))
    )
    if not any(file.path.endswith((".safetensors", *(PICKLES if source.pickles else ()))) for file in taken):
        pickled = [file.path for file in files if file.path.endswith((*PICKLES, ".pth", ".ckpt", ".pkl"))]
        if pickled and not source.pickles:
            raise InputError(
                "pickled_weights",
                f"{source.repo} has no safetensors, only {pickled[0]}, which could run code when opened.",
                "Ask its authors for safetensors.",
            )
        raise InputError("no_weights", f"{source.repo} has none of the weights that are looked for in it.")
    return taken


def plan_pull(hub: Hub, known: Known, revision: str = MAIN) -> tuple[Part, ...]:
    """Asks the hub what has to come.

    Args:
        hub: Who is asked.
        known: The model.
        revision: Of its first source; of the others the newest is taken.

    Raises:
        InputError: See `Hub.look` and `wanted`.
    """
    parts = []
    for number, source in enumerate(known.sources):
        asked = revision if number == 0 else MAIN
        commit, found = hub.look(source.repo, asked)
        files = wanted(source, found)
        absent = sum(hub.absent_bytes(source.repo, commit, file) for file in files)
        parts.append(Part(source=source, revision=asked, commit=commit, files=files, absent=absent))
    return tuple(parts)


def check_space(folder: Path, absent: int) -> None:
    """Makes sure that there is room before anything comes.

    Raises:
        InputError: no_space.
    """
    existing = folder
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    free = shutil.disk_usage(existing).free
    if absent and absent + SPARE > free:
        raise InputError(
            "no_space",
            f"{absent / 1e9:.1f} GB have to come, and the disk of {folder} has {free / 1e9:.1f} GB left.",
            "Make room, or set HF_HOME to another disk.",
        )


def pull(hub: Hub, known: Known, parts: Sequence[Part], *, came: Callable[[int], None]) -> Pulled:
    """Brings what `plan_pull` found, checks it, and writes down what it was.

    Args:
        hub: As in `plan_pull`.
        known: Likewise.
        parts: What that gave.
        came: Is told how many bytes came.

    Raises:
        InputError: See `Hub.fetch` and `check_space`; what came is kept and the next call goes on.
    """
    check_space(hub.cache, sum(part.absent for part in parts))
    sources = []
    for part in parts:
        repo = part.source.repo
        with hub.alone(repo):
            for file in part.files:
                hub.fetch(repo, part.commit, file, came=came)
        folder = hub.folder(repo, part.commit)
        sources.append(
            PulledSource(
                role=part.source.role,
                repo=repo,
                revision=part.revision,
                commit=part.commit,
                folder=folder,
                files=tuple(_noted(folder, file, repo) for file in part.files),
            )
        )
    pulled = Pulled(name=known.name, when=datetime.now(UTC).isoformat(timespec="seconds"), sources=tuple(sources))
    write_manifest(manifest_file(models_folder(), known.name), pulled)
    return pulled


def here(known: Known) -> Pulled:
    """What was pulled before, without asking anybody.

    Raises:
        InputError: not_here, incomplete.
        CheckpointError: damaged_manifest.
    """
    pulled = read_manifest(manifest_file(models_folder(), known.name))
    if pulled is None:
        raise InputError("not_here", f"{known.name} was not pulled before.", "Pull it once without --offline.")
    lost = [found for source in pulled.sources for found in differences(source)]
    if lost:
        raise InputError("incomplete", f"{known.name} is not whole: {lost[0]}.", "Pull it again without --offline.")
    return pulled


def _noted(folder: Path, file: RemoteFile, repo: str) -> PulledFile:
    """A file for the manifest; one that lay in the cache before is held against the hub's digest here."""
    digest = digest_of(folder / file.path)
    if file.sha256 not in (None, digest):
        (folder / file.path).resolve().unlink(missing_ok=True)
        (folder / file.path).unlink(missing_ok=True)
        raise InputError(
            "damaged_download",
            f"{file.path} of {repo} lay here already, but changed or damaged. It was deleted.",
            "Pull again.",
        )
    return PulledFile(path=file.path, bytes=file.bytes, sha256=digest)

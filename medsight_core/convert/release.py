"""Finds the files of the published release in a folder and reads what tensors each holds.

Files are told apart by the names of their tensors, not by their own names, which changed from one publication to the
next. Nothing is read here but tables.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

from medsight_core.convert.archives import open_archive
from medsight_core.convert.stored import Stored, contiguous
from medsight_core.errors import CheckpointError, InputError
from medsight_core.inference.checkpoint import read_header
from medsight_core.model.official import clean

Part = Literal["clip", "perceiver", "codebook", "instruct", "mm_projector", "projected"]
"""What a file holds: as in `medsight_core.model.official`, and the codebook's rows as stage 4 starts from them."""

PARTS: Final[Mapping[Part, str]] = {
    "instruct": "language model and projectors",
    "clip": "image encoder (UniMed-CLIP)",
    "perceiver": "region perceiver",
    "codebook": "codebook",
    "mm_projector": "first projector",
    "projected": "codes as words begin with them",
}
MODEL_TYPE: Final = "llava_qwen"
CONFIG: Final = "config.json"
ADDED_TOKENS: Final = "added_tokens.json"
DEEPEST: Final = 3
"""Levels of folders that are looked into."""

_WEIGHTS: Final = (".pt", ".pth", ".bin", ".safetensors")
_LEFT_OVER: Final = re.compile(r"training_args\.bin|(optimizer|scheduler|scaler|rng_state)[\w.-]*\.(pt|pth|bin)")
"""What training leaves beside a model: no weights, and never opened."""

_ADAPTERS: Final = ("adapter_config.json", "adapter_model.safetensors", "adapter_model.bin")
_INDEXES: Final = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
_SINGLE: Final = ("model.safetensors", "pytorch_model.bin")
_LARGEST_JSON: Final = 64 * 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """One part of the release.

    Attributes:
        path: File, or folder of the language model.
        files: The files that hold its weights.
        tensors: By the names of `medsight_core.model.official.clean`.
        names: As the files call them.
    """

    path: Path
    files: tuple[Path, ...]
    tensors: Mapping[str, Stored]
    names: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """The parts of a release that were found.

    Attributes:
        folder: Where they were looked for.
        sources: By part.
        config: ``config.json`` of the language model.
        added_tokens: Names of added tokens to their ids, in the order of the file; empty where there is none.
        unused: Weight files beside them that hold nothing of the release.
    """

    folder: Path
    sources: Mapping[Part, Source]
    config: Mapping[str, Any]
    added_tokens: Mapping[str, int]
    unused: tuple[Path, ...] = ()

    @property
    def instruct(self) -> Path:
        """The folder of the language model and the tokenizer."""
        return self.sources["instruct"].path

    @property
    def files(self) -> tuple[Path, ...]:
        """Every weight file, each once."""
        return tuple(dict.fromkeys(file for source in self.sources.values() for file in source.files))


@dataclass(slots=True)
class _Finder:
    folder: Path
    given: Mapping[Part, Path]
    found: dict[Part, list[Path]] = field(default_factory=dict)
    opened: dict[Path, Source] = field(default_factory=dict)
    unused: list[Path] = field(default_factory=list)
    adapters: list[Path] = field(default_factory=list)

    def look(self) -> None:
        for part, path in self.given.items():
            self.found[part] = [path]
        for path in _walk(self.folder, DEEPEST):
            if path.is_dir():
                self.note("instruct", path)
                continue
            if path.name in _ADAPTERS:
                self.adapters.append(path)
                continue
            if path in self.given.values() or path.suffix not in _WEIGHTS or _LEFT_OVER.fullmatch(path.name):
                continue
            source = _file(path)
            self.opened[path] = source
            held = _part(source.tensors)
            if held is None:
                self.unused.append(path)
            else:
                self.note(held, path)

    def note(self, part: Part, path: Path) -> None:
        if part not in self.given:
            self.found.setdefault(part, []).append(path)

    def one(self, part: Part) -> Source | None:
        paths = self.found.get(part, [])
        if len(paths) > 1:
            raise InputError(
                "ambiguous_release",
                f"{self.folder} has {len(paths)} that hold the {PARTS[part]}: {', '.join(map(str, sorted(paths)))}.",
                f"Name one with --{part.replace('_', '-')}." if part != "projected" else "Leave one in the folder.",
            )
        if not paths:
            return None
        path = paths[0]
        if part == "instruct":
            return _folder(path)
        source = self.opened.get(path) or _file(path)
        held = _part(source.tensors)
        if held != part and not (part == "perceiver" and held == "codebook"):
            what = f"the {PARTS[held]}" if held else "nothing of the release"
            raise InputError("wrong_file", f"{path} holds {what}, expected the {PARTS[part]}.", "Name another file.")
        return source


def find_release(folder: Path, given: Mapping[Part, Path], *, added_tokens: Path | None = None) -> Release:
    """The parts of a release below a folder.

    Args:
        folder: With the files in it, or in folders up to `DEEPEST` levels down.
        given: Parts that lie elsewhere, or of which there are several.
        added_tokens: The file of added tokens; else it is looked for in ``folder`` and beside the language model.

    Raises:
        InputError: Something is missing or there twice.
        CheckpointError: A file is damaged, or not data.
    """
    for path in (folder, *given.values(), *([added_tokens] if added_tokens else [])):
        if not path.exists():
            raise InputError("missing_path", f"{path} does not exist.", "Name a folder or file of the release.")
    if not folder.is_dir():
        raise InputError("missing_path", f"{folder} is not a folder.", "Name the folder with the files of the release.")
    finder = _Finder(folder, given)
    try:
        finder.look()
    except OSError as error:
        raise InputError(
            "unreadable",
            f"{error.filename or folder} cannot be read: {error.strerror or error}.",
            "Look at its rights.",
        ) from error
    sources = {part: source for part in PARTS if (source := finder.one(part)) is not None}
    if "instruct" not in sources:
        if finder.adapters:
            raise _no_model(finder.adapters[0])
        raise InputError(
            "no_release",
            f'{folder} has no folder of a language model: one with {CONFIG} of model_type "{MODEL_TYPE}".',
            "Name the folder that holds medsight_full_instruct, or that one with --instruct.",
        )
    instruct = sources["instruct"].path
    tokens = added_tokens or next(
        (place / ADDED_TOKENS for place in (folder, instruct) if (place / ADDED_TOKENS).is_file()), None
    )
    return Release(
        folder=folder,
        sources=sources,
        config=read_json(instruct / CONFIG),
        added_tokens=_ids(tokens) if tokens else {},
        unused=(*finder.unused, *(path for path in finder.adapters if path.suffix in _WEIGHTS)),
    )


def read_json(file: Path) -> dict[str, Any]:
    """A file with a JSON object.

    Raises:
        CheckpointError: It is none.
    """
    try:
        content = json.loads(file.read_bytes()) if file.stat().st_size <= _LARGEST_JSON else None
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError("damaged_checkpoint", f"{file} is not valid JSON.", "Download it again.") from error
    if not isinstance(content, dict):
        raise CheckpointError("damaged_checkpoint", f"{file} does not hold a JSON object.", "Download it again.")
    return content


def _walk(folder: Path, levels: int) -> Iterator[Path]:
    """Folders of language models, whose files are not looked at further, and all other files."""
    if _is_instruct(folder):
        yield folder
    inside = _weight_files(folder) if _is_instruct(folder) else ()
    for path in sorted(folder.iterdir()):
        if path.is_dir() and not path.is_symlink() and not path.name.startswith("."):
            if levels > 1:
                yield from _walk(path, levels - 1)
        elif path.is_file() and path not in inside:
            yield path


def _is_instruct(folder: Path) -> bool:
    config = folder / CONFIG
    return config.is_file() and read_json(config).get("model_type") == MODEL_TYPE


def _no_model(path: Path) -> InputError:
    return InputError(
        "adapters",
        f"{path.parent} holds LoRA adapters ({path.name}), which are differences to a model and no model.",
        "Merge them into the language model with peft (merge_and_unload), save it, and convert that folder.",
    )


def _file(path: Path) -> Source:
    return _source(path, (path,), [_table(path)])


def _folder(folder: Path) -> Source:
    if not folder.is_dir() or not (folder / CONFIG).is_file():
        raise InputError(
            "wrong_file", f"{folder} is no folder with {CONFIG}.", "Name the folder of the language model."
        )
    for path in folder.iterdir():
        if path.name in _ADAPTERS:
            raise _no_model(path)
    files = _weight_files(folder)
    if not files:
        raise CheckpointError(
            "missing_weights", f"{folder} has neither {' nor '.join((*_INDEXES, *_SINGLE))}.", "Download it again."
        )
    absent = [file.name for file in files if not file.is_file()]
    if absent:
        raise CheckpointError("missing_weights", f"{folder} lacks {', '.join(absent)}.", "Download it again.")
    return _source(folder, files, [_table(file) for file in files])


def _table(file: Path) -> dict[str, Stored]:
    if file.suffix != ".safetensors":
        return open_archive(file).tensors()
    return {
        name: Stored(file=file, start=t.start, dtype=t.dtype, shape=t.shape, strides=contiguous(t.shape))
        for name, t in read_header(file).items()
    }


def _weight_files(folder: Path) -> tuple[Path, ...]:
    for name in _INDEXES:
        if (folder / name).is_file():
            table = read_json(folder / name).get("weight_map")
            names = sorted({str(file) for file in table.values()}) if isinstance(table, dict) else []
            if not names or any(Path(file).name != file for file in names):
                raise CheckpointError(
                    "damaged_checkpoint", f"{folder / name} does not name the files beside it.", "Download it again."
                )
            return tuple(folder / file for file in names)
    return tuple(folder / name for name in _SINGLE if (folder / name).is_file())[:1]


def _source(path: Path, files: tuple[Path, ...], tables: list[dict[str, Stored]]) -> Source:
    tensors: dict[str, Stored] = {}
    names: dict[str, str] = {}
    for table in tables:
        for name, tensor in table.items():
            short = clean(name)
            if short in tensors:
                raise CheckpointError(
                    "twice", f"{path} holds {short} twice, as {names[short]} and {name}.", "Download it again."
                )
            tensors[short], names[short] = tensor, name
    return Source(path=path, files=files, tensors=tensors, names=names)


def _part(tensors: Mapping[str, Stored]) -> Part | None:
    """What a file of torch holds."""
    if any(name.startswith("quantizer.codebooks.") for name in tensors):
        return "codebook"
    if "region_perceiver.region_queries" in tensors:
        return "perceiver"
    if "image_encoder.conv1.weight" in tensors:
        return "clip"
    if tensors and all(re.match(r"model\.(region_)?mm_projector\.", name) for name in tensors):
        return "mm_projector"
    if set(tensors) == {""} and len(tensors[""].shape) == 2:
        return "projected"
    return None


def _ids(file: Path) -> dict[str, int]:
    table = read_json(file)
    if any(type(number) is not int for number in table.values()):
        raise CheckpointError("bad_vocabulary", f"{file} does not give every token a number.", "Download it again.")
    return table

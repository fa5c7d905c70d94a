"""Finds a model folder and makes sure, before any model is built, that its weights are whole.

Weights are data: only safetensors files are opened, and this module reads them itself, without torch, so that a damaged
checkpoint is named at once. So is one whose tensors are not those that its configuration tells of (`shapes`); what else
a whole checkpoint must hold is asked later, when the model is there to say it (`require_tensors`).
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from medsight_core.errors import CheckpointError
from medsight_core.inference import checked
from medsight_core.inference.shapes import declared_shapes, strange_values
from medsight_core.models import library

ENVIRONMENT: Final = "MEDSIGHT_MODEL"
"""Names the model folder that is used where none is given."""

CONFIG: Final = "config.json"
ADAPTERS: Final = "adapter_config.json"
WEIGHTS: Final = "model.safetensors"
PROCESSOR: Final = ("tokenizer.json", "processor_config.json")
INDEX: Final = "model.safetensors.index.json"
COPY_AGAIN: Final = "Copy the folder again from where it came."

_PICKLED: Final = (".pt", ".pth", ".bin", ".ckpt", ".pkl", ".pickle")
_LARGEST_JSON: Final = 64 * 2**20
_LARGEST_HEADER: Final = 100 * 2**20  # the limit of the safetensors format
_CHUNK: Final = 8 * 2**20
_ITEM_BYTES: Final = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1,
    "U16": 2, "I16": 2, "F16": 2, "BF16": 2,
    "U32": 4, "I32": 4, "F32": 4,
    "U64": 8, "I64": 8, "F64": 8,
}  # fmt: skip
_EXPONENTS: Final = {"F16": ("<u2", 0x7C00), "BF16": ("<u2", 0x7F80), "F32": ("<u4", 0x7F800000)} | {
    "F64": ("<u8", 0x7FF0000000000000)
}
"""How floats are stored: all bits of the exponent set means infinite or not a number."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredTensor:
    """Where a tensor lies: bytes ``start`` up to ``end`` of ``file``."""

    dtype: str
    shape: tuple[int, ...]
    file: Path
    start: int
    end: int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Outline:
    """A model folder seen from outside: its files are there and as long as their headers say.

    Attributes:
        folder: Where it is.
        files: Its weight files.
        config: What ``config.json`` says.
        tensors: Every stored tensor by name.
    """

    folder: Path
    files: tuple[Path, ...]
    config: Mapping[str, Any]
    tensors: Mapping[str, StoredTensor]

    @property
    def name(self) -> str:
        """What the model is called."""
        return library.name_of(self.folder)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Checkpoint(Outline):
    """A model folder whose files are whole and whose weights are finite.

    Attributes:
        digest: First 16 hexadecimal digits of SHA-256 over the weight files, in the order of `files`.
    """

    digest: str


def locate(path: Path | str | None = None) -> Path:
    """The model folder: ``path``, else the one that `ENVIRONMENT` names, else the embedded medsight-mini.

    Args:
        path: A folder; or, where there is no folder of that name, the name of a model that is kept here, see
            `medsight_core.models.library`.

    Raises:
        CheckpointError: missing_checkpoint; not_pulled, not_converted, unknown_model ... for a name.
    """
    if path is not None:
        asked, remedy = Path(path).as_posix(), "Name a folder with config.json and model.safetensors."
    elif os.environ.get(ENVIRONMENT):
        asked, remedy = os.environ[ENVIRONMENT], f"Set {ENVIRONMENT} to a model folder, or unset it."
    else:
        asked = str(library.embedded_folder())
        remedy = f"Install MedSIGHT again, or name a model folder with --model or {ENVIRONMENT}."
    folder = Path(asked)
    if not folder.exists() and library.is_name(asked):
        folder = library.find(asked)
    if not folder.is_dir():
        what = "is not a folder" if folder.exists() else "does not exist"
        raise CheckpointError("missing_checkpoint", f"The model folder {folder} {what}.", remedy)
    return folder.resolve()


def open_checkpoint(path: Path | str | None = None, *, anew: bool = False) -> Checkpoint:
    """Checks a model folder from outside in: files, headers, shapes (see `outline`), then every value.

    The values of a large model that were found whole before are not read again while its files have not changed: see
    `checked`.

    Args:
        path: See `locate`.
        anew: Read them in any case.

    Raises:
        CheckpointError: What is wrong with it.
    """
    seen = outline(path)
    digest = None if anew else checked.recall(seen.files)
    if digest is None:
        reading = hashlib.sha256()
        for file in seen.files:
            _read_values(file, {name: t for name, t in seen.tensors.items() if t.file == file}, reading)
        digest = reading.hexdigest()[:16]
        checked.remember(seen.files, digest)
    return Checkpoint(folder=seen.folder, files=seen.files, config=seen.config, tensors=seen.tensors, digest=digest)


def outline(path: Path | str | None = None) -> Outline:
    """Checks a model folder without reading its weights: fast, however large it is.

    Args:
        path: See `locate`.

    Raises:
        CheckpointError: What is wrong with it.
    """
    folder = locate(path)
    if not (folder / CONFIG).is_file():
        adapters = (folder / ADAPTERS).is_file()
        raise CheckpointError(
            "missing_config",
            f"The folder {folder} holds trained adapters and no model." if adapters
            else f"The model folder {folder} has no {CONFIG}.",
            "Work them into their model with: medsight merge ADAPTERS --out DIR." if adapters
            else "Name a MedSIGHT checkpoint.",
        )
    config = _read_json(folder / CONFIG)
    if config.get("model_type") != "medsight":
        raise CheckpointError(
            "wrong_model",
            f'{folder / CONFIG} describes a model of type {config.get("model_type")!r}, expected "medsight".',
            "Name a MedSIGHT checkpoint.",
        )
    strange = strange_values(config)
    if strange:
        raise CheckpointError(
            "bad_config", f"{folder / CONFIG} does not describe a model: {_some(strange, '; ')}.", COPY_AGAIN
        )
    for name in PROCESSOR:
        if (folder / name).is_file():
            _read_json(folder / name, code="bad_processor")
    weights = _weight_files(folder)
    tensors: dict[str, StoredTensor] = {}
    for file in weights:
        tensors |= read_header(file)
    _compare(folder, tensors, declared_shapes(config))
    return Outline(folder=folder, files=weights, config=config, tensors=tensors)


def require_tensors(checkpoint: Checkpoint, expected: Mapping[str, tuple[int, ...]]) -> None:
    """Makes sure that the checkpoint holds every tensor of the model, each with the model's shape.

    Raises:
        CheckpointError: missing_tensors or wrong_shape, with names and shapes.
    """
    _compare(checkpoint.folder, checkpoint.tensors, expected)


def _compare(folder: Path, tensors: Mapping[str, StoredTensor], expected: Mapping[str, tuple[int, ...]]) -> None:
    missing = [name for name in expected if name not in tensors]
    if missing:
        raise CheckpointError(
            "missing_tensors",
            f"The weights in {folder} lack {len(missing)} tensor{'s' if len(missing) > 1 else ''} that {CONFIG} asks "
            f"for: {_some(missing)}.",
            "Weights and configuration do not belong together; copy both from the same checkpoint.",
        )
    wrong = [
        f"{name} has shape {list(tensors[name].shape)}, expected {list(shape)}"
        for name, shape in expected.items()
        if tensors[name].shape != tuple(shape)
    ]
    if wrong:
        raise CheckpointError(
            "wrong_shape",
            f"The weights in {folder} do not fit {CONFIG}: {_some(wrong, '; ')}.",
            "Copy weights and configuration from the same checkpoint.",
        )


def _weight_files(folder: Path) -> tuple[Path, ...]:
    if (folder / INDEX).is_file():
        table = _read_json(folder / INDEX).get("weight_map")
        if not isinstance(table, dict) or not table:
            raise CheckpointError("damaged_checkpoint", f"{folder / INDEX} has no weight_map.", COPY_AGAIN)
        names = sorted({str(name) for name in table.values()})
        strange = [name for name in names if Path(name).name != name or not name.endswith(".safetensors")]
        if strange:
            raise CheckpointError(
                "damaged_checkpoint",
                f"{folder / INDEX} names {_some(strange)}, expected safetensors files beside it.",
                COPY_AGAIN,
            )
    elif (folder / WEIGHTS).exists():
        names = [WEIGHTS]
    else:
        raise _no_weights(folder)
    absent = [name for name in names if not (folder / name).is_file()]
    if absent:
        raise CheckpointError(
            "missing_weights", f"The model folder {folder} lacks {_some(absent)}, or it is no plain file.", COPY_AGAIN
        )
    return tuple(folder / name for name in names)


def _no_weights(folder: Path) -> CheckpointError:
    pickled = sorted(file.name for file in folder.iterdir() if file.suffix.lower() in _PICKLED)
    if pickled:
        return CheckpointError(
            "pickled_weights",
            f"The model folder {folder} has no {WEIGHTS}, only {_some(pickled)}, which can run code when opened and "
            "is never opened here.",
            "Save the weights as safetensors.",
        )
    return CheckpointError("missing_weights", f"The model folder {folder} has no {WEIGHTS}.", COPY_AGAIN)


def _read_json(file: Path, *, code: str = "damaged_checkpoint") -> dict[str, Any]:
    try:
        size = file.stat().st_size
        content = json.loads(file.read_bytes()) if size <= _LARGEST_JSON else None
    except OSError as error:
        raise CheckpointError(code, f"{file} cannot be read: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(code, f"{file} is not valid JSON.", COPY_AGAIN) from error
    if not isinstance(content, dict):
        raise CheckpointError(code, f"{file} does not hold a JSON object.", COPY_AGAIN)
    return content


def read_header(file: Path) -> dict[str, StoredTensor]:
    """The table at the beginning of a safetensors file: 8 bytes with its length, then JSON.

    Raises:
        CheckpointError: damaged_checkpoint.
    """
    size = file.stat().st_size
    try:
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if size < 8 or length > min(size - 8, _LARGEST_HEADER):
                raise CheckpointError(
                    "damaged_checkpoint",
                    f"{file} has {size:,} bytes and says that its header alone has {length:,}: it is truncated or no "
                    "safetensors file.",
                    COPY_AGAIN,
                )
            table = json.loads(stream.read(length))
        tensors = {
            str(name): _entry(file, entry, 8 + length) for name, entry in table.items() if name != "__metadata__"
        }
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError, OverflowError) as error:
        raise CheckpointError("damaged_checkpoint", f"The header of {file} is damaged.", COPY_AGAIN) from error
    reached = 8 + length
    for tensor in sorted(tensors.values(), key=lambda t: (t.start, t.end)):
        if tensor.start != reached:
            raise CheckpointError("damaged_checkpoint", f"Tensors in {file} overlap or leave a gap.", COPY_AGAIN)
        reached = tensor.end
    if reached != size:
        state = "truncated" if reached > size else "longer than it should be"
        raise CheckpointError(
            "damaged_checkpoint", f"{file} is {state}: {size:,} bytes, expected {reached:,}.", COPY_AGAIN
        )
    return tensors


def _entry(file: Path, entry: Mapping[str, Any], base: int) -> StoredTensor:
    dtype, shape, (start, end) = str(entry["dtype"]), tuple(entry["shape"]), entry["data_offsets"]
    whole = all(isinstance(n, int) and n >= 0 for n in (*shape, start, end))
    if not whole or math.prod(shape) * _ITEM_BYTES[dtype] != end - start:
        raise ValueError("a tensor's extent does not fit its shape")
    return StoredTensor(dtype=dtype, shape=shape, file=file, start=base + start, end=base + end)


def _read_values(file: Path, tensors: Mapping[str, StoredTensor], digest: hashlib._Hash) -> None:
    """One pass over a file: adds it to the digest and looks for values that are not finite."""
    broken: dict[str, None] = {}
    with file.open("rb") as stream:
        digest.update(stream.read(min((t.start for t in tensors.values()), default=file.stat().st_size)))
        for name, tensor in sorted(tensors.items(), key=lambda item: (item[1].start, item[1].end)):
            for chunk in _chunks(stream, tensor.end - tensor.start):
                digest.update(chunk)
                if tensor.dtype in _EXPONENTS:
                    stored, exponent = _EXPONENTS[tensor.dtype]
                    bits = np.frombuffer(chunk, stored) & np.dtype(stored).type(exponent)
                    if (bits == exponent).any():
                        broken[name] = None
    if broken:
        raise CheckpointError(
            "not_finite",
            f"The weights in {file} hold values that are infinite or not a number, in {_some(list(broken))}.",
            "The training run diverged or the file is damaged; take an earlier checkpoint.",
        )


def _chunks(stream: Any, size: int) -> Iterator[bytes]:
    while size > 0:
        chunk = stream.read(min(size, _CHUNK))
        if not chunk:
            return
        size -= len(chunk)
        yield chunk


def _some(names: list[str], separator: str = ", ") -> str:
    """The first few of many names."""
    more = f" and {len(names) - 4} more" if len(names) > 5 else ""
    return separator.join(names[:4] if more else names) + more

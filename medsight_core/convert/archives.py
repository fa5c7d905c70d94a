"""The tables of files that torch wrote: a zip archive with one pickle and one record of bytes for each tensor.

Only the pickle is read, by `unpickling`; where the tensors lie in the file is worked out from the archive's own table,
so that their values can be read later, one by one.
"""

from __future__ import annotations

import struct
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

from medsight_core.convert.stored import DTYPES, Stored
from medsight_core.convert.unpickling import LARGEST, Maker, Named, UnsafePickle, read_pickle
from medsight_core.errors import CheckpointError

_LOCAL_HEADER: Final = struct.Struct("<4s5H3I2H")
_STORAGES: Final = {
    "DoubleStorage": "F64", "FloatStorage": "F32", "HalfStorage": "F16", "BFloat16Storage": "BF16",
    "LongStorage": "I64", "IntStorage": "I32", "ShortStorage": "I16", "CharStorage": "I8", "ByteStorage": "U8",
    "BoolStorage": "BOOL",
}  # fmt: skip
_TYPES: Final = ("float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool")
_DEEPEST: Final = 64
"""Axes of a tensor, the most that torch knows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Storage:
    start: int
    dtype: str
    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Archive:
    """What a file of torch holds, without the values.

    Attributes:
        file: Which one.
        content: Tables, lists and plain values as they were saved, tensors as `Stored`, a namespace of arguments as
            `SimpleNamespace`.
    """

    file: Path
    content: Any

    def tensors(self) -> dict[str, Stored]:
        """Its tensors by name, whether they are the table itself or an entry "model", "state_dict" or "module"."""
        table = self.content
        for wrapper in ("model", "state_dict", "module"):
            if isinstance(table, dict) and isinstance(table.get(wrapper), dict):
                table = table[wrapper]
        if isinstance(table, Stored):
            return {"": table}
        if not isinstance(table, dict):
            return {}
        return {name: value for name, value in table.items() if isinstance(value, Stored) and isinstance(name, str)}


def open_archive(file: Path) -> Archive:
    """Reads the table of a file that `torch.save` wrote.

    Raises:
        CheckpointError: It is of the format before torch 1.6, or truncated, or its pickle is not data.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            records = {info.filename: info for info in archive.infolist()}
            names = [name for name in records if name.count("/") == 1 and name.endswith("/data.pkl")]
            if len(names) != 1:
                raise _damaged(file, "it is an archive without a table of tensors")
            if records[names[0]].file_size > LARGEST:
                raise _damaged(file, f"its table has {records[names[0]].file_size:,} bytes")
            pickled = archive.read(names[0])
            top = names[0].removesuffix("data.pkl")
            order = archive.read(f"{top}byteorder")[:8] if f"{top}byteorder" in records else b"little"
    except zipfile.BadZipFile as error:
        raise _not_zip(file) from error
    except (OSError, EOFError, NotImplementedError, RuntimeError, zipfile.LargeZipFile) as error:
        raise _damaged(file, "its archive cannot be read") from error
    if order != b"little":
        raise _damaged(file, "its numbers are not stored little-endian")
    opened: dict[str, _Storage] = {}

    def storage(identifier: Any) -> _Storage:
        kind, named, key, _, count = identifier
        dtype = _STORAGES.get(named.name.rpartition(".")[2]) if isinstance(named, Named) else None
        if kind != "storage" or dtype is None or type(key) is not str or type(count) is not int:
            raise UnsafePickle("a value outside its table that is no tensor")
        if key not in opened:
            opened[key] = _Storage(start=_record_start(file, records, f"{top}data/{key}"), dtype=dtype, count=count)
            if count * DTYPES[dtype].itemsize > records[f"{top}data/{key}"].file_size:
                raise _damaged(file, f"tensor {key} has fewer values than its table says")
        return opened[key]

    def tensor(found: Any, offset: int, shape: tuple[int, ...], strides: tuple[int, ...], *_: Any) -> Stored:
        sizes = (offset, *shape, *strides)
        if not isinstance(found, _Storage) or any(type(n) is not int or n < 0 for n in sizes):
            raise ValueError("a tensor without storage")
        if len(shape) != len(strides) or len(shape) > _DEEPEST:
            raise ValueError("a tensor's shape and strides differ in length")
        start = found.start + offset * DTYPES[found.dtype].itemsize
        made = Stored(file=file, start=start, dtype=found.dtype, shape=tuple(shape), strides=tuple(strides))
        if offset + made.span > found.count or made.count > 2**40:
            raise ValueError("a tensor reaches beyond its storage")
        return made

    content = read_pickle(pickled, where=str(file), makers=_makers(tensor), persistent=storage)
    return Archive(file=file, content=content)


def _makers(tensor: Maker) -> Mapping[str, Maker | None]:
    """Every name that may occur, and what stands for it."""
    return {
        "torch._utils._rebuild_tensor_v2": tensor,
        "torch._utils._rebuild_parameter": lambda data, *_: data,
        "collections.OrderedDict": lambda: {},
        "argparse.Namespace": lambda: SimpleNamespace(),
        # Python's own sets, by the names of versions 2 and 3; a list is as good, and hashes nothing.
        **{f"{module}.{name}": list for module in ("builtins", "__builtin__") for name in ("set", "frozenset")},
        "torch.Size": tuple,
        "torch.device": lambda *_: None,
        # Numbers of numpy that training noted beside its tensors, as in UniMed-CLIP's file.
        **{f"numpy.{core}.multiarray.scalar": lambda *_: None for core in ("core", "_core")},
        "numpy.dtype": lambda *_: {},
        "_codecs.encode": lambda *_: None,
        **{f"torch.{name}": None for name in (*_STORAGES, *_TYPES)},
    }


def _record_start(file: Path, records: Mapping[str, zipfile.ZipInfo], name: str) -> int:
    """Where the bytes of a record begin, behind its own header, whose length the archive's table does not tell."""
    info = records.get(name)
    if info is None:
        raise _damaged(file, f"it lacks {name}")
    if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
        raise _damaged(file, f"{name} is compressed or encrypted, as torch never writes it")
    with file.open("rb") as stream:
        stream.seek(info.header_offset)
        header = stream.read(_LOCAL_HEADER.size)
        size = stream.seek(0, 2)
    if len(header) < _LOCAL_HEADER.size or not header.startswith(b"PK\x03\x04"):
        raise _damaged(file, f"{name} is not where the archive says")
    length, extra = _LOCAL_HEADER.unpack(header)[-2:]
    start = info.header_offset + _LOCAL_HEADER.size + int(length) + int(extra)
    if start + info.file_size > size:
        raise _damaged(file, f"{name} reaches beyond its end")
    return start


def _not_zip(file: Path) -> CheckpointError:
    with file.open("rb") as stream:
        beginning = stream.read(512)
    if beginning.startswith(b"PK"):
        return _damaged(file, "it is truncated")
    # A pickle of protocol 2 and later, or the tar archives of torch's first versions.
    if beginning[:1] == b"\x80" or beginning[257:262] == b"ustar":
        return CheckpointError(
            "old_format",
            f"{file} is in the format of torch before 1.6, which has to be loaded as a whole; expected a zip archive.",
            "Save it again, where you trust it: torch.save(torch.load(file, weights_only=True), file).",
        )
    return _damaged(file, "it is no file of torch")


def _damaged(file: Path, what: str) -> CheckpointError:
    return CheckpointError("damaged_checkpoint", f"{file} cannot be read: {what}.", "Download it again.")

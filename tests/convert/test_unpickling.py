"""Files of torch are read as data, whatever they hold."""

from __future__ import annotations

import argparse
import builtins
import io
import os
import pickle
import random
import subprocess
import tempfile
import tracemalloc
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from medsight_core.convert.archives import open_archive
from medsight_core.convert.stored import Stored
from medsight_core.convert.unpickling import read_pickle
from medsight_core.errors import CheckpointError


def value(stored: Stored) -> Tensor:
    blocks = list(stored.blocks())
    return torch.cat(blocks).reshape(stored.shape) if blocks else torch.empty(stored.shape)


def save(folder: Path, content: Any) -> Path:
    torch.save(content, folder / "file.pt")
    return folder / "file.pt"


def save_pickle(folder: Path, pickled: bytes, records: dict[str, bytes] | None = None) -> Path:
    """A file of torch with this pickle as its table."""
    with zipfile.ZipFile(folder / "file.pt", "w") as archive:
        archive.writestr("archive/data.pkl", pickled)
        for name, content in (records or {"archive/data/0": bytes(64)}).items():
            archive.writestr(name, content)
    return folder / "file.pt"


def test_every_kind_of_tensor_is_found_where_torch_put_it(tmp_path: Path) -> None:
    table = nn.Sequential(nn.Linear(3, 4), nn.Conv2d(2, 2, 3)).state_dict()
    assert isinstance(table, OrderedDict) and hasattr(table, "_metadata")
    base = torch.randn(6, 4)
    table |= {
        "parameter": nn.Parameter(torch.randn(3, 3)),
        "transposed": base.t(),
        "tail": base[4:],
        "column": base[:, 1],
        "half": torch.randn(5).half(),
        "brain": torch.randn(5).bfloat16(),
        "double": torch.randn(2, 2).double(),
        "count": torch.tensor(3),
        "empty": torch.zeros(0, 3),
        "expanded": torch.randn(1, 3).expand(4, 3),
    }
    arguments = argparse.Namespace(
        lr=1e-4, name="x", flags=[True, None], kinds={1, 2}, device=torch.device("cpu"), dtype=torch.float32
    )
    archive = open_archive(save(tmp_path, {"model": table, "steps": 7, "args": arguments}))
    assert archive.content["steps"] == 7
    assert archive.content["args"].lr == 1e-4 and archive.content["args"].flags == [True, None]
    found = archive.tensors()
    assert list(found) == list(table)
    for name, tensor in table.items():
        assert found[name].shape == tensor.shape
        assert torch.equal(value(found[name]), tensor), name


def test_rows_and_blocks_are_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("medsight_core.convert.stored.BLOCK", 64)
    tensor = torch.randn(10, 7)
    stored = open_archive(save(tmp_path, tensor)).tensors()[""]
    assert len(list(stored.blocks())) == 5
    assert torch.equal(value(stored), tensor)
    assert torch.equal(value(stored.rows(3, 4)), tensor[3:7])


class Calls:
    """Pickles as a call."""

    def __init__(self, called: Callable[..., Any], *arguments: Any) -> None:
        self.how = (called, arguments)

    def __reduce__(self) -> Any:
        return self.how


@pytest.mark.parametrize(
    ("called", "name"),
    [
        (Calls(os.system, "touch was_here"), "system"),
        (Calls(builtins.eval, "open('was_here', 'w')"), "eval"),
        (Calls(builtins.exec, "open('was_here', 'w')"), "exec"),
        (Calls(getattr, "text", "upper"), "getattr"),
        (Calls(subprocess.check_output, ["touch", "was_here"]), "check_output"),
        (Calls(torch.load, "other.pt"), "load"),
        (Calls(torch.storage._load_from_bytes, b"x"), "_load_from_bytes"),
        (Calls(pickle.loads, b"x"), "loads"),
        (Calls(tempfile.mkdtemp), "mkdtemp"),
        (nn.Linear(2, 2), "Linear"),
        (torch.nn.Module, "Module"),
    ],
    ids=lambda given: given if isinstance(given, str) else "",
)
@pytest.mark.parametrize("place", ["top", "args", "key", "deep", "build"])
def test_what_would_run_code_is_named_and_not_run(
    called: Any, name: str, place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    model = {"weight": torch.ones(2)}
    content: Any = {
        "top": called,
        "args": {"model": model, "args": argparse.Namespace(a=called)},
        "key": {"model": model, (called,): 1},
        "deep": {"model": model, "more": [({"a": [called]},)]},
        "build": {"model": model, "more": Calls(argparse.Namespace)},
    }[place]
    if place == "build":
        content["more"].how = (argparse.Namespace, (), {"a": called})
    file = save(tmp_path, content)
    with pytest.raises(CheckpointError) as caught:
        open_archive(file)
    assert caught.value.code == "unsafe_pickle"
    assert name in caught.value.sentence and "file.pt" in caught.value.sentence
    assert not (tmp_path / "was_here").exists()


@pytest.mark.parametrize(
    "pickled",
    [
        b"cos\nsystem\n(S'touch was_here'\ntR.",
        b"cbuiltins\neval\n(S'1'\ntR.",
        b"(S'touch was_here'\nios\nsystem\n.",  # INST
        b"(cos\nsystem\nS'touch was_here'\no.",  # OBJ
        b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x01x\x85R.",  # STACK_GLOBAL
        b"\x80\x02\x82\x01.",  # EXT1
        b"\x80\x04\x8c\x08builtins\x8c\x04eval\x93)}\x92.",  # NEWOBJ_EX
        b"ccollections\nOrderedDict.__init__\n.",
        b"ctorch\nFloatStorage\n)R.",  # a name that is known, and never called
        b"cargparse\nNamespace\n)R(S'a'\ncos\nsystem\ndb.",
    ],
)
def test_every_way_to_call_something_is_closed(pickled: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError) as caught:
        open_archive(save_pickle(tmp_path, pickled))
    assert caught.value.code == "unsafe_pickle"
    assert not (tmp_path / "was_here").exists()


def tensor_pickle(
    *, offset: int = 0, shape: str = "K\x04\x85", strides: str = "K\x01\x85", count: bytes = b"K\x10"
) -> bytes:
    """The pickle of one tensor of four numbers, in a storage of sixteen."""
    return b"".join((
        b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n((X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000",
        b"X\x03\x00\x00\x00cpu", count, b"tQK", bytes([offset]), shape.encode("latin-1"), strides.encode("latin-1"),
        b"\x89N}tR.",
    ))  # fmt: skip


def test_the_tensor_by_hand_is_one(tmp_path: Path) -> None:
    stored = open_archive(save_pickle(tmp_path, tensor_pickle())).tensors()[""]
    assert torch.equal(value(stored), torch.zeros(4))


@pytest.mark.parametrize(
    "pickled",
    [
        b"",
        b"\x80\x02",
        b"\x80\x02.",
        b"\x80\x02]e.",
        b"\x80\x02h\x07.",
        b"\x80\x02}(]u.",
        b"\x80\x02}(]K\x01u.",  # a list as a key
        b"\x80\x02}(K\x01\x85K\x01u.",  # a tuple as a key, whose hash could take for ever
        b"\x80\x02X\xff\xff\xff\x7fabc.",  # a text that is longer than the file
        b"I" + b"9" * 10_000 + b"\n.",
        tensor_pickle(offset=13),  # beyond its storage
        tensor_pickle(shape="K\x20\x85"),
        tensor_pickle(strides="K\xff\x85"),
        tensor_pickle(shape="K\x04K\x04\x86"),  # more axes than strides
        tensor_pickle(shape="J\xff\xff\xff\xff\x85"),  # minus one
        tensor_pickle(count=b"M\xff\xff"),  # more than the record holds
        tensor_pickle(shape="J\xff\xff\xff\x7fJ\xff\xff\xff\x7f\x86", strides="K\x00K\x00\x86"),  # one number, 16 EB
    ],
)
def test_what_makes_no_sense_is_damaged(pickled: bytes, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError) as caught:
        open_archive(save_pickle(tmp_path, pickled))
    assert caught.value.code in ("damaged_pickle", "damaged_checkpoint")
    assert "file.pt" in caught.value.sentence


@pytest.mark.parametrize(
    "pickled",
    [
        b"\x80\x02]" + b"".join(b"r" + n.to_bytes(4, "little") for n in range(2**19)) + b".",  # a huge memo
        b"\x80\x02" + b"(" * (17 * 2**20) + b".",  # too long
        b"\x80\x02]" + b"2\x86" * 100_000 + b".",  # nested deeply, and each time twice: 2 ** 100000 lists if unfolded
        b"\x80\x02" + b"]" * 2**19 + b".",
    ],
    ids=["memo", "long", "nested", "many"],
)
def test_a_bomb_takes_little(pickled: bytes) -> None:
    tracemalloc.start()
    try:
        try:
            read_pickle(pickled, where="file.pt", makers={}, persistent=lambda identifier: identifier)
        except CheckpointError as error:
            assert error.code == "damaged_pickle"
        assert tracemalloc.get_traced_memory()[1] < 100e6
    finally:
        tracemalloc.stop()


def test_no_change_of_a_byte_does_more_than_be_refused(tmp_path: Path) -> None:
    """Hundreds of damaged tables: each is read or refused in a sentence."""
    rng = random.Random(0)
    with zipfile.ZipFile(save(tmp_path, {"model": {"a": torch.ones(3), "b": torch.ones(2, 2)}, "steps": 3})) as archive:
        records = {info.filename: archive.read(info) for info in archive.infolist()}
    table = next(name for name in records if name.endswith("data.pkl"))
    top = table.removesuffix("data.pkl")
    rest = {name.replace(top, "archive/"): content for name, content in records.items() if name != table}
    refused = 0
    for _ in range(400):
        damaged = bytearray(records[table])
        for _ in range(rng.choice((1, 1, 2, 8))):
            damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        try:
            open_archive(save_pickle(tmp_path, bytes(damaged), rest)).tensors()
        except CheckpointError:
            refused += 1
    assert 40 < refused < 400


def test_the_formats_that_cannot_be_streamed_are_told_from_damaged_ones(tmp_path: Path) -> None:
    file = tmp_path / "file.pt"
    torch.save({"a": torch.ones(2)}, file, _use_new_zipfile_serialization=False)
    with pytest.raises(CheckpointError, match=r"before 1\.6.*Save it again") as caught:
        open_archive(file)
    assert caught.value.code == "old_format"
    torch.save({"a": torch.ones(2)}, file)
    whole = file.read_bytes()
    for length in (0, 3, 100, len(whole) // 2, len(whole) - 1):
        file.write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match=r"file\.pt cannot be read") as caught:
            open_archive(file)
        assert caught.value.code == "damaged_checkpoint"


def test_a_compressed_record_is_refused(tmp_path: Path) -> None:
    pickled = tensor_pickle()
    with zipfile.ZipFile(tmp_path / "file.pt", "w") as archive:
        archive.writestr("archive/data.pkl", pickled)
        archive.writestr("archive/data/0", bytes(64), compress_type=zipfile.ZIP_DEFLATED)
    with pytest.raises(CheckpointError, match="compressed"):
        open_archive(tmp_path / "file.pt")


def test_a_file_that_shrinks_while_it_is_read_is_named(tmp_path: Path) -> None:
    file = save(tmp_path, torch.randn(1000))
    stored = open_archive(file).tensors()[""]
    file.write_bytes(file.read_bytes()[: stored.start + 100])
    with pytest.raises(CheckpointError, match="ends before its tensors do"):
        list(stored.blocks())


def test_it_reads_what_torch_reads(tmp_path: Path) -> None:
    """Beside the library's own restricted reader."""
    buffer = io.BytesIO()
    torch.save({"state_dict": {f"layer.{k}": torch.randn(k + 1, 3) for k in range(20)}}, buffer)
    (tmp_path / "file.pt").write_bytes(buffer.getvalue())
    expected = torch.load(tmp_path / "file.pt", weights_only=True)["state_dict"]
    found = open_archive(tmp_path / "file.pt").tensors()
    assert found.keys() == expected.keys()
    assert all(torch.equal(value(found[name]), expected[name]) for name in expected)

"""Model folders that are damaged in every way we know: one sentence each, before a model is built."""

from __future__ import annotations

import hashlib
import json
import shutil
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from medsight_core.errors import CheckpointError, InputError
from medsight_core.inference.checkpoint import ENVIRONMENT, INDEX, locate, open_checkpoint
from medsight_core.inference.engine import Engine
from tests.inference.tiny import ask_about, noise, save_tiny

WEIGHTS = "model.safetensors"
TENSOR = "model.perceiver.region_queries"


@pytest.fixture
def copy(checkpoint: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(checkpoint, tmp_path / "copy"))


def change(folder: Path, edit: Callable[[dict[str, torch.Tensor]], None]) -> None:
    tensors = load_file(folder / WEIGHTS)
    edit(tensors)
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})


def fails(folder: Path | None) -> CheckpointError:
    started = time.perf_counter()
    with pytest.raises(CheckpointError) as caught:
        Engine.from_pretrained(folder, device="cpu")
    assert time.perf_counter() - started < 2
    return caught.value


def test_a_whole_checkpoint_opens_and_says_what_it_is(checkpoint: Path) -> None:
    opened = open_checkpoint(checkpoint)
    assert opened.name == "tiny"
    assert opened.digest == hashlib.sha256((checkpoint / WEIGHTS).read_bytes()).hexdigest()[:16]
    assert opened.tensors[TENSOR].shape == (1, 3, 16)
    engine = Engine.from_pretrained(opened, device="cpu")
    assert (engine.name, engine.digest) == ("tiny", opened.digest)


def test_weights_stored_in_half_and_tied_are_computed_in_full(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "half", tied=True, half=True)
    opened = open_checkpoint(folder)
    assert opened.tensors[TENSOR].dtype == "F16"
    assert "lm_head.weight" not in opened.tensors
    answer = Engine.from_pretrained(folder, device="cpu").answer(ask_about(noise()), max_new_tokens=4)
    assert answer.provenance.settings["dtype"] == "float32"


def test_shards_are_one_checkpoint(copy: Path, checkpoint: Path) -> None:
    tensors = load_file(copy / WEIGHTS)
    (copy / WEIGHTS).unlink()
    names = sorted(tensors)
    parts = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, part in parts.items():
        save_file({name: tensors[name] for name in part}, copy / file, metadata={"format": "pt"})
    table = {name: file for file, part in parts.items() for name in part}
    (copy / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": table}))
    opened = open_checkpoint(copy)
    assert set(opened.tensors) == set(names)
    question = ask_about(noise())
    sharded, whole = (Engine.from_pretrained(folder, device="cpu") for folder in (copy, checkpoint))
    assert sharded.answer(question).raw == whole.answer(question).raw
    (copy / "model-00002-of-00002.safetensors").unlink()
    assert "model-00002-of-00002.safetensors" in fails(copy).sentence


def test_an_index_cannot_name_files_elsewhere(copy: Path) -> None:
    (copy / INDEX).write_text(json.dumps({"weight_map": {TENSOR: "../tiny/model.safetensors"}}))
    assert fails(copy).code == "damaged_checkpoint"


def test_where_a_model_is_looked_for(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ENVIRONMENT, str(checkpoint))
    assert locate() == checkpoint.resolve()
    assert locate(tmp_path) == tmp_path.resolve()
    monkeypatch.setenv(ENVIRONMENT, str(tmp_path / "absent"))
    assert ENVIRONMENT in fails(None).remedy
    monkeypatch.delenv(ENVIRONMENT)
    try:
        assert locate().name == "medsight-mini"
    except CheckpointError as error:
        assert "medsight-mini" in error.sentence


def test_missing_folder_file_instead_of_folder_and_empty_folder(tmp_path: Path) -> None:
    assert "does not exist" in fails(tmp_path / "absent").sentence
    (tmp_path / "file").write_text("x")
    assert "is not a folder" in fails(tmp_path / "file").sentence
    (tmp_path / "empty").mkdir()
    assert fails(tmp_path / "empty").code == "missing_config"


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (b"", "damaged_checkpoint"),
        (b"\xff\xfe{", "damaged_checkpoint"),
        (b"[1, 2]", "damaged_checkpoint"),
        (b"[" * 100_000, "damaged_checkpoint"),
        (b'{"model_type": "llava"}', "wrong_model"),
        (b'{"model_type": "medsight", "region_dim": "wide"}', "bad_config"),
        (b'{"model_type": "medsight", "text_config": {"model_type": "no such model"}}', "bad_config"),
        (b'{"model_type": "medsight", "text_config": 7}', "bad_config"),
    ],
)
def test_a_bad_config(copy: Path, content: bytes, code: str) -> None:
    (copy / "config.json").write_bytes(content)
    error = fails(copy)
    assert error.code == code
    assert "config.json" in error.sentence


def test_a_config_of_another_size(copy: Path) -> None:
    config = json.loads((copy / "config.json").read_text())
    config["num_region_queries"] = 5
    (copy / "config.json").write_text(json.dumps(config))
    error = fails(copy)
    assert error.code == "wrong_shape"
    assert f"{TENSOR} has shape [1, 3, 16], expected [1, 5, 16]" in error.sentence
    config["perceiver_stages"] = 4
    (copy / "config.json").write_text(json.dumps(config))
    error = fails(copy)
    assert error.code == "missing_tensors"
    assert "model.perceiver.conv_adapters.3.conv.weight" in error.sentence


def test_pickle_is_never_opened(copy: Path) -> None:
    (copy / WEIGHTS).unlink()
    assert fails(copy).code == "missing_weights"
    # Were it opened, this pickle would make a file.
    trap = b"cos\nsystem\n(S'touch opened'\ntR."
    for name in ("pytorch_model.bin", "weights.pt"):
        (copy / name).write_bytes(trap)
    error = fails(copy)
    assert error.code == "pickled_weights"
    assert "pytorch_model.bin, weights.pt" in error.sentence
    assert "safetensors" in error.remedy
    assert not Path("opened").exists()


@pytest.mark.parametrize("size", [0, 5, 8, 200, -4, -1])
def test_truncated_weights(copy: Path, size: int) -> None:
    content = (copy / WEIGHTS).read_bytes()
    (copy / WEIGHTS).write_bytes(content[:size])
    error = fails(copy)
    assert error.code == "damaged_checkpoint"
    assert WEIGHTS in error.sentence


def test_bytes_too_many(copy: Path) -> None:
    with (copy / WEIGHTS).open("ab") as stream:
        stream.write(b"\0" * 8)
    assert "longer than it should be" in fails(copy).sentence


@pytest.mark.parametrize("length", [2**62, 2**64 - 1, 2**31])
def test_a_header_of_impossible_length(copy: Path, length: int) -> None:
    (copy / WEIGHTS).write_bytes(struct.pack("<Q", length) + b"{" * 1000)
    error = fails(copy)
    assert error.code == "damaged_checkpoint"
    assert f"{length:,}" in error.sentence


@pytest.mark.parametrize(
    "header",
    [
        b"not JSON",
        b"[]",
        b'{"a": 3}',
        b'{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}',
        b'{"a": {"dtype": "F99", "shape": [1], "data_offsets": [0, 4]}}',
        b'{"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, -4]}}',
        b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}',
        b'{"a": {"dtype": "F32", "shape": [1, 1e400], "data_offsets": [0, 4]}}',
        b'{"a": {"dtype": "F32", "shape": [4611686018427387904, 4], "data_offsets": [0, 4]}}',
    ],
)
def test_a_header_of_nonsense(copy: Path, header: bytes) -> None:
    (copy / WEIGHTS).write_bytes(struct.pack("<Q", len(header)) + header + b"\0" * 8)
    assert fails(copy).code == "damaged_checkpoint"


def test_a_missing_tensor_is_named(copy: Path) -> None:
    change(copy, lambda tensors: tensors.pop(TENSOR))
    error = fails(copy)
    assert error.code == "missing_tensors"
    assert TENSOR in error.sentence


def test_a_wrong_shape_is_named_with_both_shapes(copy: Path) -> None:
    change(copy, lambda tensors: tensors.update({TENSOR: torch.zeros(1, 4, 16)}))
    error = fails(copy)
    assert error.code == "wrong_shape"
    assert f"{TENSOR} has shape [1, 4, 16], expected [1, 3, 16]" in error.sentence


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_value_that_is_not_finite_is_named(copy: Path, dtype: torch.dtype, value: float) -> None:
    def spoil(tensors: dict[str, torch.Tensor]) -> None:
        tensors[TENSOR] = tensors[TENSOR].to(dtype)
        tensors[TENSOR][0, 2, 15] = value

    change(copy, spoil)
    error = fails(copy)
    assert error.code == "not_finite"
    assert TENSOR in error.sentence
    assert "region_queries" in str(error)


def test_the_largest_finite_values_pass(copy: Path) -> None:
    def enlarge(tensors: dict[str, torch.Tensor]) -> None:
        for number, dtype in enumerate((torch.float16, torch.bfloat16, torch.float32, torch.float64)):
            limits = torch.finfo(dtype)
            tensors[f"extra.{number}"] = torch.tensor([limits.max, limits.min, limits.tiny, 0.0], dtype=dtype)

    change(copy, enlarge)
    assert "extra.3" in open_checkpoint(copy).tensors


def test_a_tokenizer_that_is_missing_or_of_another_model(copy: Path) -> None:
    saved = (copy / "tokenizer.json").read_text()
    (copy / "tokenizer.json").write_text(saved.replace("[C1_2]", "[C1_9]"))
    assert fails(copy).code == "bad_vocabulary"
    (copy / "tokenizer.json").write_text(saved[:3000])
    assert fails(copy).code == "bad_processor"
    config = json.loads((copy / "config.json").read_text())
    (copy / "tokenizer.json").write_text(saved)
    (copy / "config.json").write_text(json.dumps(config | {"image_token_id": 0}))
    assert fails(copy).code == "bad_vocabulary"
    (copy / "config.json").write_text(json.dumps(config))
    (copy / "tokenizer.json").unlink()
    assert fails(copy).code == "bad_processor"


def test_a_processor_of_another_model_is_named_at_the_first_question(copy: Path) -> None:
    file = copy / "processor_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"num_visual_tokens": 3}))
    engine = Engine.from_pretrained(copy, device="cpu")
    with pytest.raises(CheckpointError, match="contradicts itself"):
        engine.answer(ask_about(noise()))


def test_an_unknown_device(checkpoint: Path) -> None:
    for name in ("abacus", "cuda:99"):
        with pytest.raises(InputError, match=f'no device "{name}" here'):
            Engine.from_pretrained(checkpoint, device=name)


def test_files_are_checked_without_torch(checkpoint: Path, tmp_path: Path, repository: Path) -> None:
    """In a fresh interpreter where torch cannot be imported: a damaged checkpoint is named before torch is paid for."""
    program = (
        "import sys\n"
        "for name in ('torch', 'transformers', 'safetensors'): sys.modules[name] = None\n"
        "from medsight_core.inference.checkpoint import open_checkpoint\n"
        "print(open_checkpoint(sys.argv[1]).digest)\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", program, str(checkpoint)], cwd=repository, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip() == open_checkpoint(checkpoint).digest

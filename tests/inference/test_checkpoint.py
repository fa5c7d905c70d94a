"""Model folders that are damaged in every way we know: one sentence each, before a model is built."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from medsight_core.errors import CheckpointError, InputError
from medsight_core.inference.checkpoint import ENVIRONMENT, INDEX, locate, open_checkpoint
from medsight_core.inference.engine import Engine
from medsight_core.inference.loading import expected_shapes
from medsight_core.inference.shapes import declared_shapes, strange_values
from medsight_core.model import MedSightConfig
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
    (tmp_path / "empty" / "adapter_config.json").write_text("{}")
    assert "medsight merge" in fails(tmp_path / "empty").remedy


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


def fails_without_torch(folder: Path, repository: Path) -> str:
    """In a fresh interpreter where torch cannot be imported: a bad checkpoint is named before torch is paid for."""
    program = (
        "import sys\n"
        "for name in ('torch', 'transformers', 'safetensors'): sys.modules[name] = None\n"
        "from medsight_core.errors import CheckpointError\n"
        "from medsight_core.inference.checkpoint import open_checkpoint\n"
        "try: print('whole', open_checkpoint(sys.argv[1]).digest)\n"
        "except CheckpointError as error: print(error.code, error)\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", program, str(folder)], cwd=repository, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    return run.stdout.strip()


def test_files_are_checked_without_torch(checkpoint: Path, repository: Path) -> None:
    assert fails_without_torch(checkpoint, repository) == f"whole {open_checkpoint(checkpoint).digest}"


@pytest.mark.parametrize("damage", ["shape", "language", "missing", "nan", "config", "tokenizer", "truncated"])
def test_what_is_wrong_is_found_without_torch(copy: Path, repository: Path, damage: str) -> None:
    down = "model.language_model.layers.1.mlp.down_proj.weight"
    edits: dict[str, Callable[[dict[str, torch.Tensor]], None]] = {
        "shape": lambda tensors: tensors.update({TENSOR: torch.zeros(1, 4, 16)}),
        "language": lambda tensors: tensors.update({down: torch.zeros(32, 63)}),
        "missing": lambda tensors: tensors.pop(TENSOR),
        "nan": lambda tensors: tensors[TENSOR].fill_(float("nan")),
    }
    expected = {
        "shape": f"wrong_shape .*{TENSOR} has shape \\[1, 4, 16\\], expected \\[1, 3, 16\\]",
        "language": f"wrong_shape .*{down} has shape \\[32, 63\\], expected \\[32, 64\\]",
        "missing": f"missing_tensors .*lack 1 tensor .*{TENSOR}",
        "nan": f"not_finite .*{TENSOR}",
        "config": "bad_config .*region_dim is 'wide', expected a positive whole number",
        "tokenizer": r"bad_processor .*tokenizer\.json is not valid JSON",
        "truncated": "damaged_checkpoint .*truncated",
    }
    if damage in edits:
        change(copy, edits[damage])
    elif damage == "config":
        config = json.loads((copy / "config.json").read_text())
        (copy / "config.json").write_text(json.dumps(config | {"region_dim": "wide"}))
    else:
        file = copy / ("tokenizer.json" if damage == "tokenizer" else WEIGHTS)
        file.write_bytes(file.read_bytes()[:-100])
    assert re.match(expected[damage], fails_without_torch(copy, repository))


MINI = json.loads((Path(str(files("medsight_core"))) / "checkpoints" / "medsight-mini" / "config.json").read_text())
CONVNEXT = MINI["vision_config"] | {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 2, 1, 1]}
CLIP = {"model_type": "clip_vision_model", "hidden_size": 48, "num_hidden_layers": 2, "intermediate_size": 64}
QWEN = MINI["text_config"] | {"num_hidden_layers": 2, "layer_types": ["full_attention"] * 2}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"vision_config": CONVNEXT, "text_config": QWEN},
        {"use_codebook": False, "use_prompts": False},
        {"detail_from_pixels": False, "detail_layers": [], "vision_feature_layer": -1, "region_dim": 288},
        {"class_names": [], "num_classes": 5, "modality_names": [], "num_code_groups": 3, "codes_per_group": 7},
        {"perceiver_stages": 2, "perceiver_stacks": 2, "perceiver_self_attention": True, "perceiver_ff_mult": 3},
        {"text_config": QWEN | {"num_key_value_heads": 2, "attention_bias": True, "head_dim": 16}},
        {"tie_word_embeddings": False, "text_config": QWEN | {"tie_word_embeddings": False}},
        {"vision_config": CLIP, "vision_feature_layer": -2, "detail_layers": [], "detail_from_pixels": False},
        {"text_config": {"model_type": "llama", "num_hidden_layers": 1, "hidden_size": 64, "intermediate_size": 64}},
        {"text_config": {"model_type": "qwen3", "hidden_size": 64}},
    ],
    ids=str,
)
def test_what_a_configuration_tells_is_what_the_model_has(changes: dict[str, Any]) -> None:
    """The two tellings of the shapes agree, for configurations of every kind."""
    config = MINI | changes
    assert not strange_values(config)
    told = declared_shapes(config)
    real = expected_shapes(MedSightConfig.from_dict(json.loads(json.dumps(config))))
    assert {name: real.get(name) for name in told} == told
    if config["vision_config"]["model_type"] == "convnextv2" and config["text_config"].keys() >= QWEN.keys():
        untold = set(real) - set(told) - {"lm_head.weight"}
        assert all("region_self_attn" in name for name in untold), untold


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
        lambda inner: (
            st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from([*MINI["text_config"], "a"]), inner)
        ),
        max_leaves=6,
    ),
    st.sampled_from(sorted(MINI)),
)
def test_a_configuration_of_nonsense_raises_nothing_else(value: Any, name: str) -> None:
    config = MINI | {name: value}
    if not strange_values(config):
        assert isinstance(declared_shapes(config), dict)


def test_a_configuration_of_a_billion_layers_is_refused_at_once(copy: Path) -> None:
    config = json.loads((copy / "config.json").read_text())
    config["text_config"]["num_hidden_layers"] = 10**9
    (copy / "config.json").write_text(json.dumps(config))
    assert fails(copy).code == "missing_tensors"

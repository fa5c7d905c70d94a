"""What a model needs, held against real models; and what is picked on machines that are described."""

from __future__ import annotations

import json
import math
import shutil
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import CLIPVisionConfig, DynamicCache, LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config

from medsight_core.errors import CheckpointError
from medsight_core.inference import spreading
from medsight_core.inference.checkpoint import outline
from medsight_core.inference.precision import PRECISE_PARTS
from medsight_core.inference.running import Running
from medsight_core.inference.shapes import declared_shapes
from medsight_core.model import MedSightConfig, MedSightForConditionalGeneration
from medsight_core.model import perceiver as perceiver_module
from medsight_core.models import footprint, plan
from medsight_core.models import machine as machines
from medsight_core.models.footprint import Footprint, footprint_of, with_head
from medsight_core.models.known import known_models
from medsight_core.models.machine import Gpu, Machine, parse_gpus
from medsight_core.models.plan import BESIDE, Option, choose, options
from tests.models.conftest import Command

GB = 10**9


def told(config: dict[str, Any], **options: Any) -> Footprint:
    """From the configuration alone."""
    return footprint_of(config, with_head(config, declared_shapes(config)), **options)


def real(config: MedSightConfig) -> MedSightForConditionalGeneration:
    with torch.device("meta"):
        return MedSightForConditionalGeneration(config)


def count(model: MedSightForConditionalGeneration) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def as_json(config: MedSightConfig) -> dict[str, Any]:
    told: dict[str, Any] = json.loads(config.to_json_string(use_diff=False))
    return told


def eight() -> Footprint:
    return told(dict(known_models()["medsight-8b"].config or {}))


SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 90}
EYE = {"hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "image_size": 64}


@pytest.mark.parametrize(
    "text",
    [
        Qwen3Config(**SMALL, num_key_value_heads=2, head_dim=16),
        Qwen2Config(**SMALL, num_key_value_heads=2),
        LlamaConfig(**SMALL, num_key_value_heads=1),
        MistralConfig(**SMALL, num_key_value_heads=4, head_dim=8),
    ],
    ids=lambda text: str(text.model_type),
)
@pytest.mark.parametrize("tied", [True, False])
def test_parameters_from_the_configuration_alone_are_those_of_the_model(text: Any, tied: bool) -> None:
    config = MedSightConfig(
        vision_config=CLIPVisionConfig(**EYE, patch_size=8),
        text_config=text,
        region_dim=32,
        perceiver_heads=2,
        perceiver_head_dim=8,
        tie_word_embeddings=tied,
    )
    model = real(config)
    size = told(as_json(config))
    assert size.parameters == count(model)
    matrices = [m for m in model.model.language_model.layers.modules() if isinstance(m, torch.nn.Linear)]
    assert size.matrices == sum(m.weight.numel() for m in matrices)
    assert size.rows == sum(m.out_features for m in matrices)


def test_the_released_model_is_as_large_as_it_is_said_to_be() -> None:
    """The authors' training graph has 8,618,904,594 parameters; what differs from it is named here."""
    known = known_models()["medsight-8b"].config
    assert known is not None
    config = MedSightConfig(use_prompts=False)
    defaults = as_json(config)
    for name, value in known.items():
        if isinstance(value, dict):
            assert value.items() <= defaults[name].items()
        else:
            assert defaults[name] == value, name
    size = eight()
    assert size.parameters == count(real(config))
    shapes = with_head(known, declared_shapes(known))
    added = 2 * (152245 - 151936) * 4096  # rows of words and of the word head for the codes
    unused = 20 * 1024 + 1024 * 768  # the perceiver's query positions, CLIP's projection
    ours = ("model.codebook.", "model.text_to_vision.")  # which are no part of that graph
    extra = sum(math.prod(shape) for name, shape in shapes.items() if name.startswith(ours))
    assert size.parameters - added - extra + unused == 8_618_904_594
    assert (size.grid, size.finest, size.visual_tokens) == (24, 192**2, 596)


def test_sizes_of_weights_on_disk_are_told_exactly(tiny: Path) -> None:
    seen = outline(tiny)
    floats = {name: tensor for name, tensor in seen.tensors.items() if tensor.dtype == "F32"}  # all but batch counts
    size = footprint_of(seen.config, {name: tensor.shape for name, tensor in floats.items()}, side=64)
    assert size.weights("fp32", each=4) == sum(tensor.end - tensor.start for tensor in floats.values())


def test_keys_and_values_take_what_the_cache_takes() -> None:
    config = MedSightConfig(
        vision_config=CLIPVisionConfig(**EYE, patch_size=8),
        text_config=Qwen3Config(**SMALL, num_key_value_heads=2, head_dim=16),
        region_dim=32,
        perceiver_heads=2,
        perceiver_head_dim=8,
    )
    model = MedSightForConditionalGeneration(config).eval()
    cache = DynamicCache()
    with torch.no_grad():
        model.model.language_model(input_ids=torch.zeros(1, 100, dtype=torch.long), past_key_values=cache)
    taken = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    assert told(as_json(config), tokens=100).cache(each=4) == taken


class Peak(TorchDispatchMode):
    """Counts bytes of tensors that were made and are still there, and their highest sum."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.highest = 0
        self._seen: weakref.WeakSet[torch.UntypedStorage] = weakref.WeakSet()

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
        out = function(*arguments, **(options or {}))
        given = {leaf.untyped_storage() for leaf in tree_leaves((arguments, options)) if isinstance(leaf, torch.Tensor)}
        for leaf in tree_leaves(out):
            if not isinstance(leaf, torch.Tensor):
                continue
            storage = leaf.untyped_storage()
            if storage in self._seen or storage in given:
                continue
            self._seen.add(storage)
            self.now += storage.nbytes()
            weakref.finalize(storage, self._gone, storage.nbytes())
            self.highest = max(self.highest, self.now)
        return out

    def _gone(self, size: int) -> None:
        self.now -= size


@torch.no_grad()
def test_looking_and_drawing_take_no_more_than_is_reckoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model of the release's proportions: what the tensors of a look and of masks really take, at their peak."""
    config = MedSightConfig(
        vision_config=CLIPVisionConfig(**EYE | {"hidden_size": 128, "image_size": 96}, patch_size=8),
        text_config=Qwen3Config(**SMALL, num_key_value_heads=2, head_dim=16),
        region_dim=128,
        perceiver_heads=4,
        perceiver_head_dim=16,
        use_prompts=False,
    )
    size = told(as_json(config))
    pixels = size.finest * size.region_dim * 4
    # At full size a piece is about a fifth of the finest pixels.
    monkeypatch.setattr(perceiver_module, "PIECE", pixels // 5)
    monkeypatch.setattr(footprint, "PIECES", 2 * pixels // 5)
    model = MedSightForConditionalGeneration(config).eval().model
    image, states = torch.zeros(1, 3, 96, 96), torch.randn(5, 32)
    with Peak() as peak:
        features = model.encode_image(image)
        model.decode_codes(states, features, torch.zeros(5, dtype=torch.long))
    reckoned = size.image(each=4)
    assert 0.6 * reckoned < peak.highest < reckoned, (peak.highest / pixels, reckoned / pixels)


H100 = Gpu(index=0, name="H100", bytes=80 * GB, free=79 * GB, capability=(9, 0))
RTX = Gpu(index=0, name="RTX 4090", bytes=24 * GB, free=23 * GB, capability=(8, 9))
LAPTOP = Gpu(index=0, name="RTX 4070", bytes=12 * GB, free=11 * GB, capability=(8, 9))
SMALLEST = Gpu(index=0, name="RTX 3050", bytes=8 * GB, free=7 * GB, capability=(8, 6))
OLD = Gpu(index=0, name="T4", bytes=80 * GB, free=79 * GB, capability=(7, 5))


def with_memory(gigabytes: int, *gpus: Gpu, **options: Any) -> Machine:
    here: dict[str, Any] = {"torch": "2.13.0", "offloads": True} | options
    return Machine(memory=gigabytes * GB, free=gigabytes * GB, gpus=gpus, **here)


def best(machine: Machine) -> Option:
    found = choose(options(eight(), machine))
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("machine", "precision", "place"),
    [
        (with_memory(128, H100), "bf16", "GPU"),
        (with_memory(64, RTX), "bf16", "GPU"),
        (with_memory(64, LAPTOP, LAPTOP), "bf16", "GPUs"),
        (with_memory(64, LAPTOP), "int4", "GPU"),
        (with_memory(64, SMALLEST), "bf16", "GPU and memory"),
        (with_memory(64, OLD), "fp32", "GPU"),
        (with_memory(128), "fp32", "CPU"),
        (with_memory(32), "bf16", "CPU"),
        (with_memory(16), "int4", "CPU"),
        (with_memory(128, H100, torch=None), "bf16", "GPU"),
    ],
)
def test_what_is_picked(machine: Machine, precision: str, place: str) -> None:
    picked = best(machine)
    assert (picked.precision, picked.place) == (precision, place)
    assert picked.fits == "yes"


def test_what_others_hold_is_said_and_what_never_fits_as_well() -> None:
    busy = Gpu(index=0, name="H100", bytes=80 * GB, free=2 * GB, capability=(9, 0))
    picked = best(with_memory(8, busy))
    assert (picked.precision, picked.place, picked.fits) == ("bf16", "GPU", "if others let go")
    assert choose(options(eight(), with_memory(4))) is None
    # A GPU is of no use to a torch that was built without.
    blind = Machine(memory=64 * GB, free=64 * GB, gpus=(H100,), torch="2.13.0+cpu")
    assert blind.blind and best(blind).place == "CPU"


def test_every_option_is_one_that_the_commands_take() -> None:
    machine = with_memory(64, LAPTOP, Gpu(index=3, name="b", bytes=12 * GB, free=12 * GB, capability=(8, 9)))
    found = options(eight(), machine)
    assert {option.precision for option in found} == {"fp32", "bf16", "int8", "int4"}
    for option in found:
        names = [argument.removeprefix("--").replace("-", "_") for argument in option.arguments[::2]]
        Running(**dict(zip(names, option.arguments[1::2], strict=True)))
    on_one = next(option for option in found if option.place == "GPU")
    assert on_one.arguments[:2] == ("--device", "cuda:1")  # the second one has more room; CUDA counts from 0
    assert all("quantized" in option.install for option in found if option.precision.startswith("int"))
    shared = next(option for option in found if option.place == "GPU and memory")
    assert shared.memory_bytes >= BESIDE


def test_what_gpus_leave_free_is_what_the_loader_leaves_free() -> None:
    assert (plan.FIRST_RESERVE, plan.OTHERS_RESERVE) == (spreading.RESERVE, spreading.RESERVE_OTHERS)
    precise = {part.split(".")[-1] for part in PRECISE_PARTS}
    known = known_models()["medsight-8b"].config or {}
    shapes = with_head(known, declared_shapes(known))
    names = [name for name in shapes if name.removeprefix("model.").split(".")[0] in precise]
    assert eight().whole == sum(math.prod(shapes[name]) for name in names)


def test_smaller_weights_are_smaller() -> None:
    size = eight()
    whole, half = size.weights("fp32", each=4), size.weights("bf16", each=2)
    assert whole == 2 * half == 4 * size.parameters
    eighth, quarter = size.weights("int4", each=2), size.weights("int8", each=2)
    assert size.others * 2 + size.matrices / 2 < eighth < quarter < half
    assert quarter - size.others * 2 == pytest.approx(size.matrices, rel=0.01)


def test_what_the_driver_says_is_read() -> None:
    said = "0, NVIDIA H100 80GB HBM3, 81559, 80994, 9.0\n1, Tesla M60, 8129, 8000, [N/A]\nNo devices were found\n2, x"
    first, second = parse_gpus(said)
    assert (first.name, first.bytes, first.capability) == ("NVIDIA H100 80GB HBM3", 81559 * 2**20, (9, 0))
    assert second.capability is None
    assert parse_gpus("NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.") == ()


def test_a_driver_that_is_there_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a program in its place: an old one that does not know the last field."""
    program = tmp_path / "nvidia-smi"
    program.write_text(
        '#!/bin/sh\ncase "$1" in *compute_cap*) echo "Field \\"compute_cap\\" is not a valid field"; exit 2;; esac\n'
        'echo "0, Tesla K80, 11441, 11000"; echo "1, Tesla K80, 11441, 10000"\n'
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{Path(shutil.which('sh') or '/bin/sh').parent}")
    assert [gpu.free for gpu in machines.this_machine().gpus] == [11000 * 2**20, 10000 * 2**20]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert [gpu.index for gpu in machines.this_machine().gpus] == [1]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    assert machines.this_machine().gpus == ()


def test_a_container_has_no_more_than_it_is_allowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = machines.this_machine()
    assert 0 < here.free <= here.memory
    for name, said in {"max": "4000000000", "current": "3000000000", "stat": "anon 1\ninactive_file 500000000"}.items():
        (tmp_path / f"memory.{name}").write_text(f"{said}\n")
    assert machines._limit(tmp_path) == (4000000000, 2500000000)
    (tmp_path / "memory.max").write_text("max\n")
    assert machines._limit(tmp_path) is None
    assert machines._limit(tmp_path / "absent") is None
    monkeypatch.setattr(machines, "_limit", lambda: (1000, 400))
    assert (machines.this_machine().memory, machines.this_machine().free) == (1000, 600)


def test_the_command_plans_what_is_not_here(medsight: Command) -> None:
    run = medsight("model", "plan", "medsight-8b")
    assert run.exit_code == 0, run.stderr
    assert "8.64 billion parameters" in run.stdout
    assert "  medsight model pull medsight-8b\n" in run.stdout
    assert "never downloaded" in run.stderr and "have to be pulled" in run.stderr
    facts = json.loads(medsight("model", "plan", "medsight-8b", "--json").stdout)
    assert facts["parameters"] == eight().parameters
    assert {option["fits"] for option in facts["options"]} <= {"yes", "if others let go", "no"}
    longer = json.loads(medsight("model", "plan", "medsight-8b", "--json", "--tokens", "8192").stdout)
    assert longer["options"][0]["working"] > facts["options"][0]["working"]


def test_the_command_plans_folders_and_names(tiny: Path, tmp_path: Path, medsight: Command) -> None:
    facts = json.loads(medsight("model", "plan", str(tiny), "--json").stdout)
    tensors = outline(tiny).tensors.values()
    assert facts["parameters"] == sum(math.prod(tensor.shape) for tensor in tensors)
    assert f"--model {tiny}" in facts["steps"][-1]
    mini = json.loads(medsight("model", "plan", "medsight-mini", "--json").stdout)
    assert mini["best"] == 0 and mini["size"]["finest"] == 128**2
    # From the configuration alone it is as large as with its weights.
    shutil.copy(outline("medsight-mini").folder / "config.json", tmp_path / "config.json")
    alone = json.loads(medsight("model", "plan", str(tmp_path), "--json").stdout)
    assert alone["size"] == mini["size"]


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"text_config": {"model_type": "no such"}}, "unknown_architecture"),
        ({"perceiver_stages": "many"}, "bad_config"),
        ({"region_dim": 0}, "bad_config"),
    ],
)
def test_a_configuration_that_says_too_little(
    change: dict[str, Any], code: str, tmp_path: Path, medsight: Command
) -> None:
    config = json.loads((outline("medsight-mini").folder / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | change))
    run = medsight("model", "plan", str(tmp_path))
    assert run.exit_code == 2 and run.stderr.startswith("error: ")
    with pytest.raises(CheckpointError) as caught:
        changed = config | change
        outline(tmp_path) if code == "bad_config" else told(changed)
    assert caught.value.code == code


def test_an_unknown_name(medsight: Command) -> None:
    run = medsight("model", "plan", "medsight-9b")
    assert run.exit_code == 2 and 'Did you mean "medsight-8b"?' in run.stderr

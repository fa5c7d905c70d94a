"""Where and how precisely a model computes: what is chosen, what is refused, and what stays as it was."""

from __future__ import annotations

from importlib.resources import files
from importlib.util import find_spec
from inspect import signature
from pathlib import Path

import pytest
import torch
from accelerate import cpu_offload

from medsight_core import cli
from medsight_core.batch import cli as batch_cli
from medsight_core.batch.archive import FolderArchive, Item
from medsight_core.batch.job import Job
from medsight_core.batch.questions import BatchQuestion
from medsight_core.cli.backends import Chosen, open_backend
from medsight_core.errors import InputError, MedSightError
from medsight_core.inference import loading, precision, running
from medsight_core.inference.checkpoint import open_checkpoint
from medsight_core.inference.engine import Engine
from medsight_core.inference.loading import load
from medsight_core.inference.precision import PRECISE_PARTS, attention, compute_dtype, quantization
from medsight_core.inference.running import Running
from medsight_core.inference.spreading import RESERVE, spread
from medsight_core.model import MedSightConfig, MedSightForConditionalGeneration
from medsight_core.server import cli as server_cli
from tests.inference.tiny import ask_about, noise

CUDA, CPU = torch.device("cuda"), torch.device("cpu")
GIB = 2**30
EMBEDDED = Path(str(files("medsight_core"))) / "checkpoints" / "medsight-mini"
needs_bitsandbytes = pytest.mark.skipif(
    find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed: pip install 'medsight[quantized]'"
)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"precision": "half"}, 'no precision "half"'),
        ({"device_map": "balanced"}, 'no device map "balanced"'),
        ({"device_map": "auto", "compiled": True}, "cannot be compiled"),
    ],
)
def test_a_bad_choice_is_refused_at_once(options: dict[str, str], words: str) -> None:
    with pytest.raises(InputError, match=words):
        Running(**options)


@pytest.mark.parametrize(
    ("chosen", "device", "dtype"),
    [
        ("auto", CUDA, torch.bfloat16),
        ("auto", CPU, torch.float32),
        ("fp16", CUDA, torch.float16),
        ("bf16", CPU, torch.bfloat16),
        ("fp32", CUDA, torch.float32),
        ("int8", CUDA, torch.bfloat16),
        ("int4", CPU, torch.float32),
    ],
)
def test_what_sums_are_done_in(chosen: str, device: torch.device, dtype: torch.dtype) -> None:
    assert compute_dtype(Running(precision=chosen), device) == dtype


def test_flash_attention_where_it_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """For the language model alone, in 16 bits, on CUDA, and not where the step is compiled."""
    assert attention(Running(), CPU) == {}
    monkeypatch.setattr(precision, "is_flash_attn_2_available", lambda: True)
    assert attention(Running(), CUDA) == {"text_config": "flash_attention_2"}
    for chosen, device in ((Running(precision="fp32"), CUDA), (Running(compiled=True), CUDA), (Running(), CPU)):
        assert attention(chosen, device) == {}


def test_attention_is_chosen_for_the_language_model_alone(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With an implementation that is here; what is said of `text_config` must reach that part and no other."""
    monkeypatch.setattr(loading, "attention", lambda *_: {"text_config": "eager"})
    model, _ = load(open_checkpoint(checkpoint))
    assert model.model.language_model.config._attn_implementation == "eager"
    assert model.config._attn_implementation == "sdpa"


def test_the_precise_parts_are_all_but_the_language_model() -> None:
    """A new part of the model must be named there, or it would be quantised."""
    with torch.device("meta"):
        model = MedSightForConditionalGeneration(MedSightConfig())
    parts = {f"model.{name}" for name, _ in model.model.named_children()} | {n for n, _ in model.named_children()}
    assert parts - {"model", precision.LANGUAGE_MODEL} == set(PRECISE_PARTS)


def test_what_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the checkpoint, which is not there, is looked for."""
    monkeypatch.setattr(running, "find_spec", lambda name: None if name == "bitsandbytes" else object())
    with pytest.raises(MedSightError, match="int4 needs bitsandbytes"):
        Engine.from_pretrained("nowhere", device="cpu", precision="int4")
    monkeypatch.setattr(running, "find_spec", lambda _: None)
    with pytest.raises(MedSightError, match="device-map auto needs accelerate"):
        Engine.from_pretrained("nowhere", device="cpu", device_map="auto")
    Running(precision="bf16").require_packages()
    with pytest.raises(InputError, match="not on mps"):
        quantization(Running(precision="int8"), torch.device("mps"))


@needs_bitsandbytes
@pytest.mark.parametrize(("chosen", "stored"), [("int8", torch.int8), ("int4", torch.uint8)])
def test_only_the_language_model_is_quantised(chosen: str, stored: torch.dtype) -> None:
    """Every linear layer of it, and nothing else; the rest is bit for bit what it was, and it answers.

    With medsight-mini, whose matrices come in the blocks that 4 bits are packed in on some processors.
    """
    whole = Engine.from_pretrained(EMBEDDED, device="cpu")
    engine = Engine.from_pretrained(EMBEDDED, device="cpu", precision=chosen)
    before = dict(whole.model.named_parameters())
    small = {name for name, value in engine.model.named_parameters() if value.dtype == stored}
    linear = {
        f"{name}.weight" for name, module in whole.model.named_modules() if isinstance(module, torch.nn.Linear)
    }
    assert small == {name for name in linear if name.startswith(precision.LANGUAGE_MODEL)}
    for name, value in engine.model.named_parameters():
        if name not in small:
            assert torch.equal(value, before[name]), name
    answer = engine.answer(ask_about(noise()), max_new_tokens=12)
    assert answer.provenance.settings["language_model"] == chosen
    assert answer.provenance.tokens["completion"] > 0
    assert "language_model" not in whole.answer(ask_about(noise()), max_new_tokens=1).provenance.settings


@needs_bitsandbytes
def test_four_bits_refuse_matrices_that_cannot_be_packed(checkpoint: Path) -> None:
    with pytest.raises(InputError, match=r"multiple of 32 .* 64; model\.language_model\.layers\.0\..* is 32 x 32"):
        load(open_checkpoint(checkpoint), Running(device="cpu", precision="int4"))


@needs_bitsandbytes
def test_eight_bits_say_nearly_what_all_say(checkpoint: Path) -> None:
    """The likeliest next words of a prompt, by cosine of their scores."""
    ids = torch.arange(5, 45)[None]
    full, small = (
        load(open_checkpoint(checkpoint), Running(device="cpu", precision=p))[0].eval() for p in ("fp32", "int8")
    )
    with torch.inference_mode():
        a, b = full(input_ids=ids).logits.float(), small(input_ids=ids).logits.float()
    assert torch.nn.functional.cosine_similarity(a, b, dim=-1).min() > 0.98
    assert not torch.equal(a, b)


def test_a_model_that_fits_stays_on_the_first_gpu() -> None:
    places = spread(MedSightConfig(), {0: 40 * GIB, "cpu": 64 * GIB}, dtype=torch.bfloat16)
    assert set(places.values()) == {0}
    assert set(PRECISE_PARTS) <= set(places)


def test_a_large_model_is_spread_layer_by_layer() -> None:
    """Full size in bf16, 17 GB, on a GPU of 12 GiB: the first layers there, the last in memory, the rest on the GPU."""
    config = MedSightConfig()
    places = spread(config, {0: 12 * GIB, "cpu": 64 * GIB}, dtype=torch.bfloat16)
    assert all(places[part] == 0 for part in PRECISE_PARTS)
    layers = [places[f"{precision.LANGUAGE_MODEL}.layers.{n}"] for n in range(36)]
    assert layers == sorted(layers, key=str) and layers[0] == 0 and layers[-1] == "cpu"
    per_layer = (4096 * (4096 + 2 * 1024 + 4096) + 3 * 4096 * 12288) * 2
    room = 12 * GIB - RESERVE - 152245 * 4096 * 2 * 2  # word embeddings, and the word head
    assert layers.count(0) <= room // per_layer <= layers.count(0) + 4, "neither too many nor too few"
    assert places[f"{precision.LANGUAGE_MODEL}.embed_tokens"] == 0
    two = spread(config, {0: 12 * GIB, 1: 12 * GIB, "cpu": 64 * GIB}, dtype=torch.bfloat16)
    assert set(two.values()) == {0, 1}


@pytest.mark.parametrize(
    ("memory", "quantized", "where"),
    [
        ({0: 8 * GIB, "cpu": 6 * GIB}, None, "this machine"),
        ({0: 2 * GIB, "cpu": 64 * GIB}, None, "this machine"),
        ({0: 8 * GIB, "cpu": 64 * GIB}, "int8", "the GPUs"),
        ({"cpu": 12 * GIB}, None, "this machine"),
    ],
)
def test_what_does_not_fit_is_refused(memory: dict[int | str, int], quantized: str | None, where: str) -> None:
    with pytest.raises(MedSightError, match=f"GiB and do not fit into {where}") as refused:
        spread(MedSightConfig(), memory, dtype=torch.bfloat16, quantized=quantized)
    assert refused.value.code == "does_not_fit"


def test_spread_over_what_is_here(checkpoint: Path) -> None:
    """Without a GPU that is the CPU; the answers are the same."""
    spread_out = Engine.from_pretrained(checkpoint, device="cpu", device_map="auto")
    plain = Engine.from_pretrained(checkpoint, device="cpu")
    question = ask_about(noise())
    assert spread_out.answer(question, max_new_tokens=20).raw == plain.answer(question, max_new_tokens=20).raw


def test_an_offloaded_language_model_answers_alike(checkpoint: Path) -> None:
    """Weights that are brought to the device layer by layer: the decode loop works on whatever the hooks leave."""
    plain = Engine.from_pretrained(checkpoint, device="cpu")
    question = ask_about(noise())
    expected = plain.answer(question, max_new_tokens=20)
    model, processor = load(open_checkpoint(checkpoint))
    cpu_offload(model.model.language_model, execution_device=CPU)
    assert next(model.model.language_model.layers[0].parameters()).device.type == "meta"
    found = Engine(model=model, processor=processor, name="offloaded", digest="").answer(question, max_new_tokens=20)
    assert found.raw == expected.raw
    assert [region.code for region in found.regions] == [region.code for region in expected.regions]


@pytest.mark.parametrize("name", ["ask", "segment", "chat", "report", "batch", "serve"])
def test_every_command_with_a_model_takes_the_options(name: str) -> None:
    apps = (cli.app, batch_cli.app, server_cli.app)
    commands = {c.callback.__name__: c.callback for app in apps for c in app.registered_commands if c.callback}
    options = set(signature(commands[name]).parameters)
    assert {"device", "precision", "device_map"} <= options
    assert ("compiled" in options) == (name in ("chat", "batch", "serve"))


def test_the_options_reach_the_model(checkpoint: Path) -> None:
    backend = open_backend(Chosen(model=checkpoint, device="cpu", precision="bf16"))
    try:
        assert backend.info().dtype == "bfloat16"
    finally:
        backend.close()
    with pytest.raises(InputError, match='no precision "int3"'):
        Chosen(precision="int3").check()


def test_another_precision_makes_a_batch_anew(tmp_path: Path) -> None:
    """Rows of another precision are other answers; those of the same stay."""
    stamps = []
    for chosen in ("auto", "auto", "int8"):
        archive, who = FolderArchive(root=tmp_path), Chosen(precision=chosen)
        job = Job(archive=archive, questions=(), out=tmp_path, who=who, digest="d")
        item = Item(key="k", kind="image", files=("a.png",))
        stamps.append(job.stamp(item, BatchQuestion(text="Liver?", name="liver")))
    assert stamps[0] == stamps[1] != stamps[2]

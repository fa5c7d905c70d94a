"""Models built on language models and image encoders of others, and the four stages from there."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, CLIPVisionModel
from typer.testing import CliRunner

from medsight_core.codes import RegionCode
from medsight_core.errors import CheckpointError, InputError, MedSightError
from medsight_core.inference.engine import Engine
from medsight_core.model import MedSightForConditionalGeneration, MedSightProcessor
from tests.training import toy
from tests.training.foundations import (
    FAMILIES,
    SETTINGS,
    tuning,
    write_encoder,
    write_language_model,
    write_normalisation,
)
from training.bases import open_vision
from training.build import LanguageConfig, hold_language_model, name_classes, open_model
from training.checkpoint import weight_files
from training.cli import app
from training.data.biomedparse import load_samples
from training.grounded import Grounded, GroundedConfig
from training.initialising import initialise
from training.loop import freeze
from training.recipe import read_recipe
from training.run import Run
from training.stage2_vision_to_text import VisionToTextConfig, VisionToTextStage
from training.vocabulary import own_ids

ENCODERS = ("clip", "clip_vision_model", "siglip_vision_model", "dinov2", "dinov2_with_registers")
EMBEDDINGS = "model.language_model.embed_tokens.weight"
MODALITIES = ("CT", "Dermoscopy")


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_encoder(tmp_path_factory.mktemp("encoder") / "clip")


def build(llm: Path, vision: Path, out: Path, **changes) -> Path:
    options = {"modalities": MODALITIES, "codes_per_group": 4, "settings": SETTINGS} | changes
    initialise(llm=llm, vision=vision, out=out, **options)
    return out


@pytest.fixture(scope="module", params=FAMILIES)
def built(request: pytest.FixtureRequest, encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a language model of a family, in bfloat16, and the model built on it."""
    place = tmp_path_factory.mktemp("built") / request.param
    llm = write_language_model(place / "llm", request.param, dtype=torch.bfloat16)
    build(llm, encoder, place / "out")
    return place


def stored(folder: Path) -> dict[str, torch.Tensor]:
    return {name: value for file in weight_files(folder) for name, value in load_file(file).items()}


def test_a_language_model_is_taken_over_bit_by_bit(built: Path) -> None:
    llm, out = built / "llm", built / "out"
    theirs, words = AutoModelForCausalLM.from_pretrained(llm, dtype=torch.bfloat16), AutoTokenizer.from_pretrained(llm)
    ours = stored(out)
    known = theirs.get_input_embeddings().num_embeddings
    for name, value in theirs.model.state_dict().items():
        mine = ours[f"model.language_model.{name}"]
        rows = len(words) if name == "embed_tokens.weight" else len(value)
        assert mine.dtype == torch.bfloat16 and torch.equal(mine[:rows], value[:rows]), name
    model = MedSightForConditionalGeneration.from_pretrained(out, dtype=torch.bfloat16).eval()
    processor = MedSightProcessor.from_pretrained(out)
    text = "Is there a lesion in the liver?"
    ids = processor.tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids
    assert ids.tolist() == words(text, add_special_tokens=False, return_tensors="pt").input_ids.tolist()
    with torch.no_grad():
        got, wanted = model(input_ids=ids).logits, theirs.eval()(ids).logits
    assert torch.equal(got[..., : len(words)], wanted[..., : len(words)])
    assert got.shape[-1] == max(known, len(processor.tokenizer)) == model.config.text_config.vocab_size
    assert model.config.tie_word_embeddings == FAMILIES[built.name]["tie_word_embeddings"]
    assert model.config.tie_word_embeddings == ("lm_head.weight" not in ours)


def test_a_vocabulary_gains_codes_and_a_conversation_that_ends(built: Path) -> None:
    model, processor = open_model(built / "out")
    tokenizer = processor.tokenizer
    assert [str(code) for code in processor.codes][:5] == ["[C0_0]", "[C0_1]", "[C0_2]", "[C0_3]", "[C1_0]"]
    assert list(model.config.code_token_ids) == [processor.codes.token_id(code) for code in processor.codes]
    answer = f"There is a <p>disc</p>{RegionCode(1, 2)} here."
    short, whole = (
        tokenizer(processor.chat("What is it?", answer=told, prompted=True), add_special_tokens=False)["input_ids"]
        for told in (None, answer)
    )
    assert whole[: len(short)] == short
    assert "think" not in tokenizer.decode(whole)
    assert (whole[0] == tokenizer.bos_token_id) == (built.name in ("llama", "mistral", "gemma3_text"))
    said = whole[len(short) :]
    assert processor.codes.token_id(RegionCode(1, 2)) in said
    stops = [i for i, token in enumerate(said) if token in model.generation_config.eos_token_id]
    assert tokenizer.decode(said[: stops[0]]).strip() == answer
    assert tokenizer.decode(said, skip_special_tokens=True).strip() == answer
    table = model.get_input_embeddings().weight.detach()
    rows = table[own_ids(tokenizer)]
    assert torch.isfinite(rows).all() and len(torch.unique(table[list(model.config.code_token_ids)], dim=0)) == 8
    assert rows.norm(dim=1).max() < 3 * table.norm(dim=1).median()
    assert processor.num_visual_tokens == 4 * 4 + 4


def test_what_is_new_starts_as_it_does_from_nothing(encoder: Path, tmp_path: Path) -> None:
    llm = write_language_model(tmp_path / "llm", "llama")
    one, two, other = (stored(build(llm, encoder, tmp_path / str(i), seed=i // 2)) for i in range(3))
    new = [name for name in one if name.startswith(("model.perceiver.", "model.codebook.", "model.prompt_encoder."))]
    assert new and all(torch.equal(one[name], two[name]) for name in one)
    assert not torch.equal(one["model.perceiver.region_queries"], other["model.perceiver.region_queries"])
    fresh = MedSightForConditionalGeneration(open_model(tmp_path / "0")[0].config).state_dict()
    for name in new:
        spread, expected = one[name].float().std(), fresh[name].float().std()
        assert torch.isnan(spread) or torch.isclose(spread, expected, rtol=0.5, atol=1e-6), name


def test_an_untrained_model_opens_in_the_engine(encoder: Path, tmp_path: Path) -> None:
    out = build(write_language_model(tmp_path / "llm", "gemma3_text"), encoder, tmp_path / "out")
    engine = Engine.from_pretrained(out, device="cpu")
    assert engine.name == "out"
    assert "untrained" in (out / "README.md").read_text()


@pytest.mark.parametrize("kind", ENCODERS)
def test_an_encoder_is_taken_over_bit_by_bit(kind: str, tmp_path: Path) -> None:
    source = write_encoder(tmp_path / kind, kind, dtype=torch.float16)
    out = build(write_language_model(tmp_path / "llm", "llama"), source, tmp_path / "out")
    theirs = {name.removeprefix("vision_model."): value for name, value in stored(source).items()}
    ours = {name: value for name, value in stored(out).items() if name.startswith("model.vision.backbone.")}
    assert ours
    for name, value in ours.items():
        assert value.dtype == torch.float16
        assert torch.equal(value, theirs[name.removeprefix("model.vision.backbone.").removeprefix("vision_model.")])
    model, processor = open_model(out)
    assert processor.image_processor.image_mean == [0.48, 0.46, 0.41] and processor.image_processor.size == 56
    with torch.no_grad():
        states = model.model.vision.backbone(torch.ones(1, 3, 56, 56), output_hidden_states=True).hidden_states
        seen = model.model.vision(torch.ones(1, 3, 56, 56))
    before = states[-2].shape[1] - 16
    assert before == {"siglip_vision_model": 0, "dinov2_with_registers": 5}.get(kind, 1)
    assert torch.equal(seen.grid.flatten(1, 2), states[-2][:, before:])


def as_openclip(clip: CLIPVisionModel, *, prefix: str = "visual.") -> dict[str, torch.Tensor]:
    """The names that open_clip gives the tensors of its own ViT, written down apart from the table under test."""
    state = clip.state_dict()
    out = {
        "class_embedding": state["embeddings.class_embedding"],
        "positional_embedding": state["embeddings.position_embedding.weight"],
        "conv1.weight": state["embeddings.patch_embedding.weight"],
        "proj": torch.zeros(clip.config.hidden_size, 8),
    }
    for mine, its in (("ln_pre", "pre_layrnorm"), ("ln_post", "post_layernorm")):
        out |= {f"{mine}.{part}": state[f"{its}.{part}"] for part in ("weight", "bias")}
    for i in range(clip.config.num_hidden_layers):
        block, layer = f"transformer.resblocks.{i}", f"encoder.layers.{i}"
        for part in ("weight", "bias"):
            joined = [state[f"{layer}.self_attn.{one}_proj.{part}"] for one in "qkv"]
            out[f"{block}.attn.in_proj_{part}"] = torch.cat(joined)
            for mine, its in (
                ("attn.out_proj", "self_attn.out_proj"),
                ("ln_1", "layer_norm1"),
                ("ln_2", "layer_norm2"),
                ("mlp.c_fc", "mlp.fc1"),
                ("mlp.c_proj", "mlp.fc2"),
            ):
                out[f"{block}.{mine}.{part}"] = state[f"{layer}.{its}.{part}"]
    return {prefix + name: value.clone() for name, value in out.items()} | {"logit_scale": torch.tensor(1.0)}


@pytest.mark.parametrize(
    ("container", "activation"),
    [
        ("folder", "gelu"),
        ("folder", "quick_gelu"),
        ("safetensors", "gelu"),
        ("safetensors", "quick_gelu"),
        ("unimed", "quick_gelu"),
    ],
)
def test_an_encoder_of_open_clip_sees_what_the_librarys_sees(container: str, activation: str, tmp_path: Path) -> None:
    config = AutoConfig.for_model(
        "clip_vision_model",
        hidden_size=128,  # heads of open_clip are 64 wide
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=28,
        patch_size=14,
        hidden_act=activation,
    )
    torch.manual_seed(3)
    clip = CLIPVisionModel(config).eval()
    with torch.no_grad():
        for parameter in clip.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    said = None
    if container == "unimed":
        path = tmp_path / "unimed_clip_vit_l14_base_text_encoder.pt"
        torch.save({"epoch": 3, "state_dict": as_openclip(clip, prefix="module.visual.")}, path)
    elif container == "folder":
        path = tmp_path
        quick = {"quick_gelu": True} if activation == "quick_gelu" else {}
        settings = {"model_cfg": quick | {"embed_dim": 8}, "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.25] * 3}}
        (path / "open_clip_config.json").write_text(json.dumps(settings))
        save_file(as_openclip(clip), path / "open_clip_model.safetensors")
    else:
        path, said = tmp_path / "weights.safetensors", activation
        save_file(as_openclip(clip), path)
    found = open_vision(path, said)
    pixels = torch.randn(2, 3, 28, 28)
    with torch.no_grad():
        got, wanted = (m(pixels, output_hidden_states=True).hidden_states for m in (found.model.eval(), clip))
    assert all(torch.equal(a, b) for a, b in zip(got, wanted, strict=True))
    assert found.mean == ([0.5] * 3 if container == "folder" else pytest.approx([0.4815, 0.4578, 0.4082], abs=1e-4))


def test_an_open_clip_file_that_does_not_say_its_activation_is_asked_about(tmp_path: Path) -> None:
    file = tmp_path / "clip.safetensors"
    save_file({"visual.conv1.weight": torch.zeros(1)}, file)
    with pytest.raises(InputError, match="--activation quick_gelu"):
        open_vision(file)
    with pytest.raises(CheckpointError, match="no vision transformer of open_clip"):
        open_vision(file, "gelu")
    named = tmp_path / "open_clip_model.safetensors"
    file.rename(named)
    (tmp_path / "open_clip_config.json").write_text('{"model_cfg": 3}')
    with pytest.raises(CheckpointError, match="no configuration of open_clip"):
        open_vision(tmp_path)
    unimed = tmp_path / "unimed_clip_vit.pt"
    unimed.write_bytes(b"")
    with pytest.raises(InputError, match="trained with quick_gelu"):
        open_vision(unimed, "gelu")


def refused(error: type[MedSightError], pattern: str, llm: Path, vision: Path, out: Path, **changes) -> None:
    with pytest.raises(error, match=pattern):
        build(llm, vision, out, **changes)
    assert not out.exists() or not any(out.iterdir())


def test_language_models_that_do_not_fit_are_refused_in_words(encoder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    refused(InputError, "no folder .* language model", tmp_path / "none", encoder, out)
    capped = write_language_model(tmp_path / "gemma2", "gemma2", final_logit_softcapping=1.0)
    refused(InputError, "more to its logits than its head", capped, encoder, out)
    biased = write_language_model(tmp_path / "phi", "phi")
    refused(InputError, "head is more than one matrix", biased, encoder, out)
    gpt = write_language_model(tmp_path / "gpt2", "gpt2", n_embd=32, n_layer=1, n_head=2, n_positions=64)
    refused(InputError, "not called embed_tokens", gpt, encoder, out)
    experts = write_language_model(tmp_path / "mixtral", "mixtral", num_local_experts=2)
    refused(InputError, "mixtures of experts", experts, encoder, out)
    refused(InputError, "does not know as a causal language model", encoder, encoder, out)
    whole = write_language_model(tmp_path / "llama", "llama")
    next(whole.glob("model-00002*")).unlink()
    refused(CheckpointError, "cannot be loaded", whole, encoder, out)


def test_encoders_that_do_not_fit_are_refused_in_words(encoder: Path, tmp_path: Path) -> None:
    out, llm = tmp_path / "out", write_language_model(tmp_path / "llm", "llama")
    refused(InputError, "no folder .* image encoder", llm, tmp_path / "none", out)
    refused(InputError, "expected a vision transformer", llm, llm, out)
    unsaid = write_encoder(tmp_path / "dinov2", "dinov2")
    (unsaid / "preprocessor_config.json").unlink()
    refused(CheckpointError, "how pictures are normalised", llm, unsaid, out)
    (unsaid / "preprocessor_config.json").write_text("{}")
    refused(CheckpointError, "does not tell image_mean", llm, unsaid, out)
    write_normalisation(unsaid)
    refused(InputError, "grid of patches", llm, unsaid, out, settings={"vision_feature_layer": 99})
    refused(InputError, "says itself", llm, unsaid, out, activation="gelu")


@pytest.mark.parametrize(
    ("changes", "pattern"),
    [
        ({"modalities": ("CT", "CT")}, "each group with a name of its own"),
        ({"modalities": ()}, "no modality"),
        ({"settings": {"region_dim": 8}}, "region_dim, or it follows"),
        ({"settings": {"perceiver_stages": "three"}}, "make no model"),
        ({"settings": {"visual_token_pooling": 3}}, "does not divide 4 patches"),
    ],
)
def test_settings_that_make_no_model_are_refused(changes, pattern: str, encoder: Path, tmp_path: Path) -> None:
    refused(
        InputError, pattern, write_language_model(tmp_path / "llm", "llama"), encoder, tmp_path / "out", **changes
    )


def test_a_folder_that_holds_something_is_left_alone(encoder: Path, tmp_path: Path) -> None:
    llm = write_language_model(tmp_path / "llm", "llama")
    before = sorted(file.name for file in llm.iterdir())
    with pytest.raises(InputError, match="not empty"):
        build(llm, encoder, llm)
    assert sorted(file.name for file in llm.iterdir()) == before
    out = build(llm, encoder, tmp_path / "out")
    for file in out.glob("tokenizer*"):
        (llm / file.name).write_bytes(file.read_bytes())
    with pytest.raises(InputError, match=r"has region codes already|words for \d+ rows"):
        build(llm, encoder, tmp_path / "again")


@pytest.mark.parametrize("family", ["qwen3", "gemma3_text"])
def test_the_four_stages_start_from_it(family: str, encoder: Path, tmp_path: Path) -> None:
    """Encoder and language model stay bit by bit what they were until the last stage, but for the codes' rows."""
    torch.set_num_threads(1)
    data = toy.write_dataset(tmp_path / "data")
    base = build(write_language_model(tmp_path / "llm", family), encoder, tmp_path / "base")
    run = Run(tuning(data, base), tmp_path / "run", lambda text: None)
    last = [run.stage(number) for number in (1, 2, 3, 4)]
    start, first, _, third, fourth = (stored(folder) for folder in (base, *last))
    config = json.loads((last[2] / "config.json").read_text())
    assert config["class_names"] == ["disc", "square"]
    assert first["model.perceiver.segmentation_cls_head.class_embed.weight"].shape == (3, 16)
    for name, value in third.items():
        if name in (EMBEDDINGS, "lm_head.weight"):
            moved = (value != start[name]).any(1).nonzero().flatten().tolist()
            assert moved and set(moved) <= set(config["code_token_ids"]), name
        elif name.startswith(("model.vision.", "model.language_model.")):
            assert torch.equal(value, start[name]), name
    assert any(not torch.equal(first[name], start[name]) for name in first if name.startswith("model.perceiver."))
    assert any(not torch.equal(fourth[n], third[n]) for n in fourth if n.startswith("model.language_model.layers."))
    assert all(torch.equal(fourth[n], start[n]) for n in fourth if n.startswith("model.vision."))
    assert Engine.from_pretrained(last[3], device="cpu").stop_ids


def test_activations_can_be_computed_again_even_where_the_language_model_is_frozen(
    encoder: Path, tmp_path: Path
) -> None:
    """Stage 2 trains a projector before a frozen language model: its layers run twice, the gradients are the same."""
    base = build(write_language_model(tmp_path / "llm", "qwen3"), encoder, tmp_path / "base")
    samples = load_samples(toy.write_dataset(tmp_path / "data"), split="train")
    gradients, runs = {}, {}
    for again in (False, True):
        model, processor = open_model(base)
        name_classes(model, ["disc", "square"], {}, seed=0)
        hold_language_model(model, LanguageConfig(checkpointing=again))
        config = GroundedConfig(images=2, turns=1, size=56)
        grounded = Grounded(model=model, processor=processor, samples=samples, config=config)
        stage = VisionToTextStage(grounded=grounded, config=VisionToTextConfig(), validation=grounded)
        freeze(model, stage)
        seen: list[int] = []
        model.model.language_model.layers[0].mlp.register_forward_pre_hook(lambda *_, seen=seen: seen.append(1))
        loss, _ = stage.loss(0, np.random.default_rng(0))
        loss.backward()
        gradients[again], runs[again] = model.model.vision_to_text[0].weight.grad, len(seen)
    assert runs == {False: 1, True: 2}
    assert torch.allclose(gradients[True], gradients[False], atol=1e-7) and gradients[True].any()


def test_the_recipe_for_full_size_runs_on_a_tiny_model(encoder: Path, tmp_path: Path) -> None:
    """All of it: layers in 16 bits, activations computed again, accumulation, adapters; only shorter and smaller."""
    base = build(write_language_model(tmp_path / "llm", "mistral"), encoder, tmp_path / "base")
    data = toy.write_dataset(tmp_path / "data")
    shorter = [f"base={base}", f"data.root={data}", "data.validation=0.2", "data.size=56", "loop.accumulate=2"]
    loops = ["1", "2", "3.codebook", "3.align", "4"]
    recipe = read_recipe(Path("8b"), [*shorter, *(f"stages.{one}.loop.steps=1" for one in loops)])
    for group in (recipe["stages"][1], recipe["stages"][2], *recipe["stages"][3].values(), recipe["stages"][4]):
        group["loop"]["accumulate"] = 2
    run = Run(recipe, tmp_path / "run", lambda text: None)
    last = [run.stage(number) for number in (1, 2, 3, 4)]
    kept = stored(last[2])
    assert kept["model.language_model.layers.0.mlp.up_proj.weight"].dtype == torch.bfloat16
    assert {value.dtype for name, value in kept.items() if "language_model" not in name or "embed" in name} == {
        torch.float32
    }
    assert (last[3] / "adapter_model.safetensors").is_file()
    with pytest.raises(InputError, match="held in 16 bits"):
        Run(recipe | {"lora": None}, tmp_path / "run", lambda text: None).stage(4)
    with pytest.raises(InputError, match=r"loop\.precision=bf16"):
        Run(recipe | {"loop": {"precision": "fp32"}}, tmp_path / "other", lambda text: None).stage(1)
    with pytest.raises(InputError, match="the encoder takes 56"):
        Run(recipe | {"conversations": {"size": 64}}, tmp_path / "run", lambda text: None).stage(2)


def test_a_base_that_is_not_there_is_named(tmp_path: Path) -> None:
    recipe = tuning(toy.write_dataset(tmp_path / "data"), tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"no model in .*nowhere"):
        Run(recipe, tmp_path / "run", lambda text: None).stage(1)


def test_the_command_says_what_to_do_next(encoder: Path, tmp_path: Path) -> None:
    llm, out = write_language_model(tmp_path / "llm", "llama"), tmp_path / "out"
    options = ["init", "--llm", str(llm), "--vision", str(encoder), "--out", str(out), "--modalities", "CT, MRI"]
    settings = [f"{name}={value}" for name, value in SETTINGS.items()]
    result = CliRunner().invoke(app, [*options, "--codes-per-group", "3", *settings], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert "6 region codes for CT, MRI" in result.output and f"base={out}" in result.output
    assert json.loads((out / "config.json").read_text())["modality_names"] == ["CT", "MRI"]

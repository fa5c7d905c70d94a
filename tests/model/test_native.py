"""At home in transformers: Auto classes, safetensors shards, data types, attention back ends, checkpointing, sizes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText

from medsight_core.model import MedSightConfig, MedSightForConditionalGeneration, MedSightModel
from tests.model.small import CODES, build, click, conversation, convolutional, language, pictures, raster, transformer


@torch.no_grad()
def outputs(model: MedSightForConditionalGeneration) -> tuple[Tensor, Tensor, Tensor]:
    """Word logits, masks of regions and prompt, and masks of two codes, for a prompted image."""
    dtype = model.dtype
    ids = conversation(model.config, CODES[0], 13, CODES[5], 14, prompted=True)
    features = model.model.encode_image(pictures(1).to(dtype), raster([click(20, 30)]))
    out = model(input_ids=ids, image_features=features)
    rows, positions = model.code_positions(ids)
    masks = model.model.decode_codes(model.code_states(out.last_hidden_state, rows, positions), features, rows)
    return out.logits, features.regions.mask_logits, masks


@pytest.mark.parametrize("max_shard_size", ["5GB", "20KB"])
def test_saved_model_answers_the_same(
    model: MedSightForConditionalGeneration, tmp_path: Path, max_shard_size: str
) -> None:
    """Bit for bit, in one file and in many, through the Auto classes."""
    model.save_pretrained(tmp_path, max_shard_size=max_shard_size)
    shards = list(tmp_path.glob("*.safetensors"))
    assert (len(shards) == 1) == (max_shard_size == "5GB")
    assert not list(tmp_path.glob("*.bin"))
    assert type(AutoConfig.from_pretrained(tmp_path)) is MedSightConfig
    found, report = AutoModelForImageTextToText.from_pretrained(tmp_path, output_loading_info=True)
    assert type(found) is MedSightForConditionalGeneration
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert not found.training
    for ours, theirs in zip(outputs(model), outputs(found), strict=True):
        assert torch.equal(ours, theirs)


def test_model_without_word_head(model: MedSightForConditionalGeneration, tmp_path: Path) -> None:
    """`AutoModel` reads the same checkpoint."""
    model.save_pretrained(tmp_path)
    found = AutoModel.from_pretrained(tmp_path)
    assert type(found) is MedSightModel
    ids = conversation(model.config)
    with torch.no_grad():
        theirs = found(input_ids=ids, pixel_values=pictures(1)).last_hidden_state
        ours = model(input_ids=ids, pixel_values=pictures(1)).last_hidden_state
    assert torch.equal(ours, theirs)


def test_tied_word_head(tmp_path: Path) -> None:
    """One tensor in memory and on disk where the configuration ties them, two where it does not."""
    for tied in (True, False):
        model = build(convolutional(tie_word_embeddings=tied, text_config=language(tie_word_embeddings=tied)))
        embedding = model.get_input_embeddings().weight
        assert (model.lm_head.weight is embedding) == tied
        folder = tmp_path / str(tied)
        model.save_pretrained(folder)
        stored = load_file(folder / "model.safetensors")
        assert ("lm_head.weight" in stored) != tied
        found = MedSightForConditionalGeneration.from_pretrained(folder)
        assert torch.equal(found.lm_head.weight, model.lm_head.weight)
        assert (found.lm_head.weight is found.get_input_embeddings().weight) == tied


def test_half_precision(model: MedSightForConditionalGeneration, tmp_path: Path) -> None:
    """A model in bfloat16 runs in all its parts and stays near the full one."""
    model.save_pretrained(tmp_path)
    half = MedSightForConditionalGeneration.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}
    for ours, theirs in zip(outputs(model), outputs(half), strict=True):
        assert theirs.dtype == torch.bfloat16 and theirs.isfinite().all()
        assert torch.corrcoef(torch.stack((ours.flatten(), theirs.float().flatten())))[0, 1] > 0.97
    with torch.no_grad():
        features = half.model.encode_image(pictures().bfloat16())
        quantized = half.model.codebook(half.model.region_tokens(features), torch.tensor([0, 1]))
        table = half.model.codebook.embeddings()
    assert quantized.decoded.isfinite().all()
    assert table.shape == (len(CODES), half.config.region_dim) and table.isfinite().all()


def test_attention_back_ends(model: MedSightForConditionalGeneration, tmp_path: Path) -> None:
    """sdpa is the default; eager says the same."""
    model.save_pretrained(tmp_path)
    assert model.model.language_model.config._attn_implementation == "sdpa"
    eager = AutoModelForImageTextToText.from_pretrained(tmp_path, attn_implementation="eager")
    assert eager.model.language_model.config._attn_implementation == "eager"
    for ours, theirs in zip(outputs(model), outputs(eager), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


def loss(model: MedSightForConditionalGeneration) -> Tensor:
    """One that depends on words, regions and decoded masks."""
    ids = conversation(model.config, CODES[0], 13, CODES[5], 14, prompted=True)
    features = model.model.encode_image(pictures(1), raster([click(20, 30)]))
    out = model(input_ids=ids, image_features=features, labels=ids, use_cache=False)
    rows, positions = model.code_positions(ids)
    masks = model.model.decode_codes(model.code_states(out.last_hidden_state, rows, positions), features, rows)
    return out.loss + masks.sigmoid().mean() + features.regions.mask_logits.sigmoid().mean()


@pytest.mark.parametrize("config", [convolutional(), transformer()], ids=["convolutional", "transformer"])
@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable`:FutureWarning")  # its new name is not in all of v5
def test_gradient_checkpointing(config: MedSightConfig) -> None:
    """Equal gradients; the language model's layers and the perceiver's blocks both run twice."""
    gradients, runs = [], []
    for checkpointed in (False, True):
        model = build(config).train()
        if checkpointed:
            model.gradient_checkpointing_enable()
            assert model.model.perceiver.gradient_checkpointing
        parts = {
            "perceiver": [block.ff_image for block in model.model.perceiver.bi_blocks],
            "language": [layer.mlp for layer in model.model.language_model.layers],
        }
        count: Counter[str] = Counter()
        for part, modules in parts.items():
            for module in modules:
                module.register_forward_pre_hook(lambda *_, part=part, count=count: count.update([part]))
        loss(model).backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
        runs.append(count)
    plain, checkpointed = gradients
    assert plain.keys() == checkpointed.keys() and len(plain) > 100
    for name in plain:
        torch.testing.assert_close(plain[name], checkpointed[name], atol=1e-6, rtol=1e-5)
    # One pass over the image and one for its codes; each block and layer once more on the way back.
    assert runs[0] == {"perceiver": 2 * config.perceiver_stages, "language": 2}
    assert runs[1] == {part: 2 * count for part, count in runs[0].items()}


@pytest.fixture
def poisoned_memory() -> Iterator[None]:
    """New memory holds NaN, so that whatever nobody initialises shows."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    assert torch.utils.deterministic.fill_uninitialized_memory
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(before)


@pytest.mark.parametrize("config", [convolutional(), transformer()], ids=["convolutional", "transformer"])
def test_every_parameter_is_initialised(config: MedSightConfig, tmp_path: Path, poisoned_memory: None) -> None:
    """A checkpoint that lacks almost everything: what is missing starts as a fresh model does, bare parameters too."""
    fresh = MedSightForConditionalGeneration(config)
    fresh.save_pretrained(tmp_path)
    kept = {"model.vision_to_text.0.weight": fresh.model.vision_to_text[0].weight.detach().clone()}
    save_file(kept, tmp_path / "model.safetensors", metadata={"format": "pt"})
    found = MedSightForConditionalGeneration.from_pretrained(tmp_path)
    assert torch.equal(found.model.vision_to_text[0].weight, fresh.model.vision_to_text[0].weight)
    for model in (fresh, found):
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            assert tensor.isfinite().all(), f"{name} was never initialised"
        assert 0.5 < model.model.perceiver.region_queries.std() < 1.5
        assert 0.5 < model.model.codebook.codes.std() < 1.5
        for hint in model.model.prompt_encoder.hints:
            assert not hint.weight.any(), "a new prompt encoder must not change the pixels"
        for module in model.model.perceiver.modules():
            if isinstance(module, nn.LayerNorm):
                assert (module.weight == 1).all() and (module.bias == 0).all()
            elif isinstance(module, nn.Linear | nn.Conv2d):
                assert module.weight.std() > 0


def test_full_size_is_the_released_model() -> None:
    """Parameter counts of the released model's parts, less what it holds and never uses."""
    with torch.device("meta"):
        model = MedSightForConditionalGeneration(MedSightConfig(use_codebook=False, use_prompts=False))

    def count(*modules: nn.Module) -> int:
        return sum(p.numel() for module in modules for p in module.parameters())

    parts = model.model
    unused_query_positions, unused_projection = 20 * 1024, 1024 * 768
    new_words = 2 * 4096 * (152245 - 151936)
    assert count(parts.perceiver) == 102_895_634 - unused_query_positions
    assert count(parts.vision) == 304_293_888 - unused_projection
    assert count(parts.vision_to_text) == 20_979_712
    assert count(parts.language_model, model.lm_head) == 8_190_735_360 + new_words
    assert all(p.device.type == "meta" for p in model.parameters())

"""Writes a release as the authors publish theirs: the same containers and tensor names, random values, any sizes.

The names are written down here once more, apart from the table in `medsight_core.model.official`, so that the two check
each other. A value depends on its tensor's name and on the seed alone, so that a test can say what it must be.
"""

from __future__ import annotations

import argparse
import json
import math
import zlib
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor

Shape = tuple[int, ...]
Shapes = dict[str, Shape]

QWEN_TOKENS = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>",
    "<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>",
    "<|image_pad|>", "<|video_pad|>", "<tool_call>", "</tool_call>", "<|fim_prefix|>", "<|fim_middle|>",
    "<|fim_suffix|>", "<|fim_pad|>", "<|repo_name|>", "<|file_sep|>", "<tool_response>", "</tool_response>", "<think>",
    "</think>",
)  # fmt: skip
"""What Qwen3's tokenizer adds to its words, in the order of its ids."""

SENTENCES = (
    "Segment the liver in this image.",
    "The image shows the left lung and the right lung.",
    "Is there a polyp? No, there is no polyp here.",
    "system user assistant You are a helpful assistant.",
)


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Of a release; the defaults are as small as its rules allow (heads of image encoder and perceiver are 64 wide)."""

    hidden: int = 32
    wide: int = 64
    layers: int = 2
    heads: int = 2
    key_heads: int = 1
    head: int = 16
    vision: int = 64
    vision_wide: int = 128
    vision_layers: int = 3
    image: int = 56
    patch: int = 14
    projected: int = 24
    inner: int = 64
    region_wide: int = 128
    stages: int = 3
    queries: int = 3
    classes: int = 4
    groups: int = 3
    codes: int = 4
    code: int = 8
    text: int = 300
    padding: int = 0


PUBLISHED = Sizes(
    hidden=4096, wide=12288, layers=36, heads=32, key_heads=8, head=128, text=151643, vision=1024, vision_wide=4096,
    vision_layers=24, image=336, projected=768, inner=512, region_wide=4096, queries=20, classes=17, groups=18,
    codes=32, code=64,
)  # fmt: skip
"""Of the release itself."""


def tensor(name: str, shape: Shape, *, seed: int = 0, scale: float | None = None) -> Tensor:
    """The value of a tensor of the release."""
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()) + seed)
    made = torch.randn(shape, generator=generator)
    if scale is None:
        # So that nothing fades away on its way through, and norms and biases are no ones and zeros.
        fan = made[0].numel() if made.ndim > 1 else 100
        scale = 1.0 if "embed_tokens" in name or "region_queries" in name else fan**-0.5
    made *= scale
    return made + 1 if made.ndim == 1 and name.endswith("weight") else made


def attention(name: str, s: Sizes) -> Shapes:
    """One attention of the perceiver."""
    norms = {f"{name}.{norm}.{kind}": (s.vision,) for norm in ("norm_media", "norm_latents") for kind in WB}
    return norms | {
        f"{name}.to_q.weight": (s.inner, s.vision),
        f"{name}.to_kv.weight": (2 * s.inner, s.vision),
        f"{name}.to_out.weight": (s.vision, s.inner),
    }


WB = ("weight", "bias")


def norm(name: str, width: int) -> Shapes:
    """A layer norm."""
    return {f"{name}.{kind}": (width,) for kind in WB}


def linear(name: str, rows: int, columns: int) -> Shapes:
    """A linear layer with bias."""
    return {f"{name}.weight": (rows, columns), f"{name}.bias": (rows,)}


def feed_forward(name: str, s: Sizes) -> Shapes:
    """A feed-forward layer of the perceiver."""
    return norm(f"{name}.0", s.vision) | {
        f"{name}.1.weight": (s.region_wide, s.vision),
        f"{name}.3.weight": (s.vision, s.region_wide),
    }


def perceiver_shapes(s: Sizes) -> Shapes:
    """`region_perceiver/0079280.pt`."""
    top = "region_perceiver"
    shapes: Shapes = {
        f"{top}.region_queries": (1, s.queries, s.vision),
        f"{top}.region_position_embed.weight": (s.queries, s.vision),
    }
    shapes |= attention(f"{top}.init_cross_attn", s) | norm(f"{top}.init_cross_norm", s.vision)
    shapes |= feed_forward(f"{top}.init_ff", s) | norm(f"{top}.init_ff_norm", s.vision)
    for stage in range(s.stages):
        shapes[f"{top}.conv_adapters.{stage}.conv.weight"] = (s.vision, s.vision, 3, 3)
        shapes[f"{top}.conv_adapters.{stage}.conv.bias"] = (s.vision,)
        block = f"{top}.bi_blocks.{stage}"
        for half in ("region_to_image", "image_to_region"):
            shapes |= attention(f"{block}.{half}", s) | norm(f"{block}.{half}_norm", s.vision)
        for half in ("ff_region", "ff_image"):
            shapes |= feed_forward(f"{block}.{half}", s) | norm(f"{block}.{half}_norm", s.vision)
    return shapes | head_shapes(f"{top}.segmentation_cls_head", s)


def head_shapes(name: str, s: Sizes) -> Shapes:
    """Mask and class head."""
    return linear(f"{name}.proj", s.vision, s.vision) | linear(f"{name}.class_embed", s.classes + 1, s.vision)


def codebook_shapes(s: Sizes) -> Shapes:
    """`0035673.pt`."""
    top = "region_perceiver"
    shapes = linear("modality_predictor", s.groups, s.vision)
    shapes |= {f"quantizer.codebooks.{k}.embedding.weight": (s.codes, s.code) for k in range(s.groups)}
    ways = {"to_code": (s.vision, s.vision, s.code), "code_decoder.from_code": (s.code, s.vision, s.vision)}
    for name, sizes in ways.items():
        shapes |= linear(f"{top}.{name}.0", sizes[1], sizes[0]) | norm(f"{top}.{name}.2", sizes[1])
        shapes |= linear(f"{top}.{name}.3", sizes[2], sizes[1]) | norm(f"{top}.{name}.5", sizes[2])
    return shapes | head_shapes(f"{top}.code_decoder.segmentation_cls_head_quant", s)


def clip_shapes(s: Sizes) -> Shapes:
    """The image encoder, below `visual.` in UniMed-CLIP's file."""
    width = s.vision
    shapes: Shapes = {
        "class_embedding": (width,),
        "positional_embedding": ((s.image // s.patch) ** 2 + 1, width),
        "proj": (width, s.projected),
        "conv1.weight": (width, 3, s.patch, s.patch),
    }
    shapes |= norm("ln_pre", width) | norm("ln_post", width)
    for layer in range(s.vision_layers):
        block = f"transformer.resblocks.{layer}"
        shapes |= {f"{block}.attn.in_proj_weight": (3 * width, width), f"{block}.attn.in_proj_bias": (3 * width,)}
        shapes |= linear(f"{block}.attn.out_proj", width, width)
        shapes |= norm(f"{block}.ln_1", width) | norm(f"{block}.ln_2", width)
        shapes |= linear(f"{block}.mlp.c_fc", s.vision_wide, width)
        shapes |= linear(f"{block}.mlp.c_proj", width, s.vision_wide)
    return shapes


def projector_shapes(s: Sizes) -> Shapes:
    """`mm_projector.bin`."""
    return linear("model.mm_projector.0", s.hidden, s.vision) | linear("model.mm_projector.2", s.hidden, s.hidden)


def language_shapes(s: Sizes, words: int, *, split: bool) -> list[Shapes]:
    """The folder of the language model, in parts that stay together in one shard."""
    embed = "model.embed_tokens"
    if split:
        first: Shapes = {
            f"{embed}.base_emb.weight": (words, s.hidden),
            f"{embed}.codebook_emb.weight": (s.groups * s.codes, s.hidden),
        }
    else:
        first = {f"{embed}.weight": (words, s.hidden)}
    parts = [first]
    for layer in range(s.layers):
        name = f"model.layers.{layer}"
        parts.append({
            f"{name}.self_attn.q_proj.weight": (s.heads * s.head, s.hidden),
            f"{name}.self_attn.k_proj.weight": (s.key_heads * s.head, s.hidden),
            f"{name}.self_attn.v_proj.weight": (s.key_heads * s.head, s.hidden),
            f"{name}.self_attn.o_proj.weight": (s.hidden, s.heads * s.head),
            f"{name}.self_attn.q_norm.weight": (s.head,),
            f"{name}.self_attn.k_norm.weight": (s.head,),
            f"{name}.mlp.gate_proj.weight": (s.wide, s.hidden),
            f"{name}.mlp.up_proj.weight": (s.wide, s.hidden),
            f"{name}.mlp.down_proj.weight": (s.hidden, s.wide),
            f"{name}.input_layernorm.weight": (s.hidden,),
            f"{name}.post_attention_layernorm.weight": (s.hidden,),
        })  # fmt: skip
    last = {"model.norm.weight": (s.hidden,), "lm_head.weight": (words, s.hidden)} | projector_shapes(s)
    last |= linear("model.token_projection.0", s.hidden, s.hidden)
    last |= linear("model.token_projection.2", s.vision, s.hidden)
    return [*parts, last]


def random_values(shapes: Mapping[str, Shape], *, before: str = "", seed: int = 0) -> dict[str, Tensor]:
    """Tensors of names; ``before`` is what a container puts before them and no part of what the values depend on."""
    return {before + name: tensor(name, shape, seed=seed) for name, shape in shapes.items()}


def zeros(shapes: Mapping[str, Shape], *, before: str = "", seed: int = 0) -> dict[str, Tensor]:
    """As `random_values`, of one number each."""
    return {before + name: torch.zeros(()).expand(shape) for name, shape in shapes.items()}


def write_release(
    folder: Path,
    sizes: Sizes | None = None,
    *,
    clip: bool = True,
    codebook: bool = True,
    split: bool = False,
    tower: bool = False,
    whole_tokenizer: bool = False,
    shards: int = 3,
    dtype: torch.dtype = torch.float32,
    loud: float = 1.0,
    hollow: bool = False,
    seed: int = 0,
) -> Path:
    """Writes all files.

    Args:
        folder: Where to.
        sizes: Of the model.
        clip: Whether UniMed-CLIP's file is there too.
        codebook: Whether the codebook's file is there.
        split: The words as stage 4 leaves them.
        tower: The image encoder and the perceiver are in the language model's folder as well, as runs without FSDP
            save them.
        whole_tokenizer: Save ``tokenizer.json``; else words and merges, as slow tokenizers do.
        shards: Of the language model.
        dtype: Of the language model.
        loud: Factor of the codes' rows in the head: how gladly the model writes them.
        hollow: All values are zero and take no room, for sizes that no disk of a test has.
        seed: Of all values.
    """
    values = zeros if hollow else random_values
    s = sizes or Sizes()
    (folder / "region_perceiver").mkdir(parents=True)
    arguments = argparse.Namespace(lr=1e-4, num_queries=s.queries, mixed_precision="none", data=["a", "b"], ema=False)
    perceiver = OrderedDict(values(perceiver_shapes(s), seed=seed))
    saved = {"model": perceiver, "steps": 79280, "args": arguments}
    torch.save(saved, folder / "region_perceiver" / "0079280.pt")
    if codebook:
        book = values(codebook_shapes(s), seed=seed)
        torch.save({"model": OrderedDict(book), "steps": 35673, "args": arguments}, folder / "0035673.pt")
        rows = values({"projected": (s.groups * s.codes, s.vision)}, seed=seed)["projected"]
        torch.save(rows, folder / "projected_codebook.pt")
    first = {name: t.bfloat16() for name, t in values(projector_shapes(s), seed=seed + 1).items()}
    torch.save(first, folder / "mm_projector.bin")  # of stage 3: not what stage 5 made of it
    if clip:
        eye = values(clip_shapes(s), before="module.visual.", seed=seed)
        eye |= {"module.text_encoder.embeddings.weight": torch.randn(7, 5), "module.logit_scale": torch.tensor(4.6)}
        noted = {"best": np.float64(0.7), "seen": np.int64(5)}  # numbers of numpy, as the published file has them
        state = {"epoch": 3, "name": "unimed", "state_dict": OrderedDict(eye), **noted}
        torch.save(state, folder / "unimed_clip_vit_l14_base_text_encoder.pt")
    instruct = folder / "medsight_full_instruct"
    instruct.mkdir()
    ids = write_tokenizer(instruct, s, whole=whole_tokenizer)
    (folder / "added_tokens.json").write_text(json.dumps(ids))
    words = max(ids.values()) + 1 + s.padding
    parts = language_shapes(s, words, split=split)
    if tower:
        before = "model.vision_tower.vision_tower."
        seeing = {f"image_encoder.{name}": shape for name, shape in clip_shapes(s).items()} | perceiver_shapes(s)
        parts.append({before + name: shape for name, shape in seeing.items()})
    codes = [number for name, number in ids.items() if name.startswith("[M")]
    if hollow:
        write_hollow(instruct / "model.safetensors", {name: shape for part in parts for name, shape in part.items()})
    else:
        write_shards(instruct, parts, shards=shards, dtype=dtype, seed=seed, loud={"lm_head.weight": (codes, loud)})
    (instruct / "config.json").write_text(json.dumps(config(s, words), indent=1))
    (instruct / "generation_config.json").write_text(
        json.dumps({"do_sample": True, "temperature": 0.6, "eos_token_id": [ids["<|im_end|>"], ids["<|endoftext|>"]]})
    )
    return folder


def write_shards(
    folder: Path,
    parts: Sequence[Shapes],
    *,
    shards: int,
    dtype: torch.dtype,
    seed: int,
    loud: Mapping[str, tuple[list[int], float]],
) -> None:
    """Safetensors files and their index; only one is in memory at a time."""
    shards = min(shards, len(parts))
    bounds = [round(k * len(parts) / shards) for k in range(shards + 1)]
    table: dict[str, str] = {}
    total = 0
    for number, (first, last) in enumerate(pairwise(bounds), start=1):
        name = f"model-{number:05d}-of-{shards:05d}.safetensors"
        shapes = {key: shape for part in parts[first:last] for key, shape in part.items()}
        # What stands before the tower's names is no part of what its values depend on: they are those of its own files.
        made = {key: tensor(own_name(key), shape, seed=seed).to(dtype) for key, shape in shapes.items()}
        for key in made.keys() & loud.keys():
            rows, factor = loud[key]
            made[key][rows] *= factor
        save_file(made, folder / name, metadata={"format": "pt"})
        table |= dict.fromkeys(made, name)
        total += sum(t.numel() * t.element_size() for t in made.values())
    index = {"metadata": {"total_size": total}, "weight_map": table}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def write_hollow(file: Path, shapes: Mapping[str, Shape]) -> None:
    """A safetensors file of float32 zeros that were never written: a file with a hole."""
    table, end = {}, 0
    for name, shape in shapes.items():
        start, end = end, end + 4 * math.prod(shape)
        table[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [start, end]}
    header = json.dumps(table).encode()
    with file.open("wb") as stream:
        stream.write(len(header).to_bytes(8, "little") + header)
        stream.truncate(8 + len(header) + end)


def own_name(name: str) -> str:
    """The name of a tensor of the tower in its own file."""
    return name.removeprefix("model.vision_tower.vision_tower.").removeprefix("image_encoder.")


def config(s: Sizes, words: int) -> dict[str, Any]:
    """``config.json`` of the language model's folder."""
    return {
        "architectures": ["RegSegForCausalLM"],
        "model_type": "llava_qwen",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": words - s.padding - s.groups * s.codes - len(QWEN_TOKENS),
        "eos_token_id": words - s.padding - s.groups * s.codes - len(QWEN_TOKENS) + 2,
        "head_dim": s.head,
        "hidden_act": "silu",
        "hidden_size": s.hidden,
        "intermediate_size": s.wide,
        "max_position_embeddings": 40960,
        "mm_hidden_size": s.vision,
        "mm_projector_type": "mlp2x_gelu",
        "mm_use_im_patch_token": False,
        "mm_use_im_start_end": False,
        "mm_vision_select_layer": -2,
        "num_attention_heads": s.heads,
        "num_hidden_layers": s.layers,
        "num_key_value_heads": s.key_heads,
        "rms_norm_eps": 1e-6,
        "rope_scaling": None,
        "rope_theta": 1000000,
        "tie_word_embeddings": False,
        "tokenizer_model_max_length": 2048,
        "torch_dtype": "float32",
        "use_cache": False,
        "use_sep_proj": False,
        "vocab_size": words,
    }


def write_tokenizer(folder: Path, s: Sizes, *, whole: bool) -> dict[str, int]:
    """A byte-level tokenizer with Qwen3's added tokens and the codes behind them; gives the ids of these."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=s.text, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(SENTENCES * 3, trainer)
    table = json.loads(tokenizer.to_str())
    words, merges = table["model"]["vocab"], table["model"]["merges"]
    words |= {f"word {number}": number for number in range(len(words), s.text)}  # more than so few sentences have
    names = [*QWEN_TOKENS, *(f"[M{group}_{code}]" for group in range(s.groups) for code in range(s.codes))]
    ids = {name: len(words) + number for number, name in enumerate(names)}
    added = {
        name: {"content": name, "lstrip": False, "normalized": name.startswith("[M"), "rstrip": False,
               "single_word": False, "special": name.startswith("<|")}
        for name in names
    }  # fmt: skip
    settings = {
        "added_tokens_decoder": {str(ids[name]): token for name, token in added.items()},
        "bos_token": None,
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "tokenizer_class": "Qwen2Tokenizer",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    if whole:
        table["added_tokens"] = [{"id": ids[name], **token} for name, token in added.items()]
        (folder / "tokenizer.json").write_text(json.dumps(table))
        return ids
    (folder / "vocab.json").write_text(json.dumps(words))
    lines = (" ".join(pair) if isinstance(pair, list) else pair for pair in merges)
    (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{line}\n" for line in lines), encoding="utf-8")
    shuffled = dict(sorted(ids.items(), key=lambda item: (not item[0].startswith("["), item[1])))
    (folder / "added_tokens.json").write_text(json.dumps(shuffled))
    return ids

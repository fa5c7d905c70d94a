"""What ``config.json`` alone says about the tensors of a checkpoint, without torch.

A model whose weights do not fit its configuration should be named before torch and transformers are imported, which
takes seconds. The parts that are MedSIGHT's own are told completely, the language model and the image encoder where
they are of a kind known here; of any other kind nothing is told, and `loading.expected_shapes`, which builds the model
and knows every tensor, has the last word. A test holds the two together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from typing import Any, Final

from medsight_core.prompt_raster import CHANNELS

MOST_TENSORS: Final = 100_000
"""Of one part; a configuration by strangers may ask for a billion layers."""

Shapes = Iterator[tuple[str, tuple[int, ...]]]

SIZES: Final = (
    "region_dim", "num_region_queries", "perceiver_stages", "perceiver_stacks", "perceiver_heads", "perceiver_head_dim",
    "perceiver_ff_mult", "num_classes", "num_code_groups", "codes_per_group", "code_dim", "visual_token_pooling",
)  # fmt: skip
"""Numbers of the configuration that are whole and positive."""


def strange_values(config: Mapping[str, Any]) -> list[str]:
    """What in a configuration cannot be right, each in a few words."""
    found = [
        f"{name} is {config[name]!r}, expected a positive whole number"
        for name in SIZES
        if name in config and not (type(config[name]) is int and config[name] > 0)
    ]
    for name in ("text_config", "vision_config"):
        if not isinstance(config.get(name, {}), Mapping | None):
            found.append(f"{name} is {config[name]!r}, expected an object")
    return found


def declared_shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Shape of every tensor that the configuration determines by itself.

    Args:
        config: ``config.json``. Parts whose sizes it leaves to defaults are left out.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for part in (_perceiver, _codebook, _prompts, _projectors, _text, _vision):
        try:
            shapes |= {f"model.{name}": shape for name, shape in islice(part(config), MOST_TENSORS)}
        except (KeyError, TypeError, IndexError):
            continue
    return shapes


def _linear(name: str, rows: int, columns: int, bias: bool = True) -> Shapes:
    yield f"{name}.weight", (rows, columns)
    if bias:
        yield f"{name}.bias", (rows,)


def _norm(name: str, width: int) -> Shapes:
    yield f"{name}.weight", (width,)
    yield f"{name}.bias", (width,)


def _conv(name: str, width: int, channels: int, side: int) -> Shapes:
    yield f"{name}.weight", (width, channels, side, side)
    yield f"{name}.bias", (width,)


def _perceiver(config: Mapping[str, Any]) -> Shapes:
    dim, inner = config["region_dim"], config["perceiver_heads"] * config["perceiver_head_dim"]
    wide, stages = dim * config["perceiver_ff_mult"], config["perceiver_stages"]

    def attention(name: str, norm: str) -> Shapes:
        yield from _norm(f"{name}.norm_media", dim)
        yield from _norm(f"{name}.norm_latents", dim)
        yield from _linear(f"{name}.to_q", inner, dim, bias=False)
        yield from _linear(f"{name}.to_kv", 2 * inner, dim, bias=False)
        yield from _linear(f"{name}.to_out", dim, inner, bias=False)
        yield from _norm(norm, dim)

    def forward(name: str) -> Shapes:
        yield from _norm(f"{name}.0", dim)
        yield from _linear(f"{name}.1", wide, dim, bias=False)
        yield from _linear(f"{name}.3", dim, wide, bias=False)
        yield from _norm(f"{name}_norm", dim)

    yield "perceiver.region_queries", (1, config["num_region_queries"], dim)
    for stage in range(stages):
        yield from _conv(f"perceiver.conv_adapters.{stage}.conv", dim, dim, 3)
    yield from attention("perceiver.init_cross_attn", "perceiver.init_cross_norm")
    yield from forward("perceiver.init_ff")
    for block in range(stages * config["perceiver_stacks"]):
        name = f"perceiver.bi_blocks.{block}"
        for half in ("region_to_image", "image_to_region"):
            yield from attention(f"{name}.{half}", f"{name}.{half}_norm")
        for half in ("ff_region", "ff_image"):
            yield from forward(f"{name}.{half}")
    yield from _head("perceiver.segmentation_cls_head", config)


def _head(name: str, config: Mapping[str, Any]) -> Shapes:
    dim, classes = config["region_dim"], len(config.get("class_names") or ()) or config["num_classes"]
    yield from _linear(f"{name}.proj", dim, dim)
    yield from _linear(f"{name}.class_embed", classes + 1, dim)


def _codebook(config: Mapping[str, Any]) -> Shapes:
    if not config["use_codebook"]:
        return
    dim, code = config["region_dim"], config["code_dim"]
    groups = len(config.get("modality_names") or ()) or config["num_code_groups"]
    yield "codebook.codes", (groups, config["codes_per_group"], code)
    for name, sizes in (("to_code", (dim, dim, code)), ("from_code", (code, dim, dim))):
        yield from _linear(f"codebook.{name}.0", sizes[1], sizes[0])
        yield from _norm(f"codebook.{name}.2", sizes[1])
        yield from _linear(f"codebook.{name}.3", sizes[2], sizes[1])
        yield from _norm(f"codebook.{name}.5", sizes[2])
    yield from _head("codebook.head", config)


def _prompts(config: Mapping[str, Any]) -> Shapes:
    if not config["use_prompts"]:
        return
    dim, kinds = config["region_dim"], len(CHANNELS)
    yield from _norm("prompt_encoder.token.0", 3 * dim)
    yield from _linear("prompt_encoder.token.1", 2 * dim, 3 * dim)
    yield from _linear("prompt_encoder.token.3", dim, 2 * dim)
    yield from _linear("prompt_encoder.kind", dim, kinds)
    for stage in range(config["perceiver_stages"]):
        yield f"prompt_encoder.hints.{stage}.weight", (dim, kinds, 3, 3)


def _projectors(config: Mapping[str, Any]) -> Shapes:
    dim, hidden = config["region_dim"], config["text_config"]["hidden_size"]
    yield from _linear("vision_to_text.0", hidden, dim)
    yield from _linear("vision_to_text.2", hidden, hidden)
    yield from _linear("text_to_vision.0", hidden, hidden)
    yield from _linear("text_to_vision.2", dim, hidden)


def _text(config: Mapping[str, Any]) -> Shapes:
    kinds: Mapping[str, Callable[[Mapping[str, Any]], Shapes]] = {
        "qwen3": lambda text: _decoder(text, norms=True, bias=text["attention_bias"]),
        "qwen2": lambda text: _decoder(text, bias=True, out_bias=False),
        "llama": lambda text: _decoder(text, bias=text["attention_bias"], wide_bias=text["mlp_bias"]),
        "mistral": lambda text: _decoder(text, bias=False),
    }
    yield from kinds[config["text_config"]["model_type"]](config["text_config"])


def _decoder(
    text: Mapping[str, Any],
    *,
    bias: bool,
    out_bias: bool | None = None,
    wide_bias: bool = False,
    norms: bool = False,
) -> Shapes:
    """A decoder as most of today's are: attention with grouped keys, three matrices to widen and narrow."""
    hidden, wide = text["hidden_size"], text["intermediate_size"]
    head = text.get("head_dim") or hidden // text["num_attention_heads"]
    queries, keys = text["num_attention_heads"] * head, text["num_key_value_heads"] * head
    yield "language_model.embed_tokens.weight", (text["vocab_size"], hidden)
    yield "language_model.norm.weight", (hidden,)
    for layer in range(text["num_hidden_layers"]):
        name = f"language_model.layers.{layer}"
        yield f"{name}.input_layernorm.weight", (hidden,)
        yield f"{name}.post_attention_layernorm.weight", (hidden,)
        if norms:
            yield f"{name}.self_attn.q_norm.weight", (head,)
            yield f"{name}.self_attn.k_norm.weight", (head,)
        yield from _linear(f"{name}.self_attn.q_proj", queries, hidden, bias)
        yield from _linear(f"{name}.self_attn.k_proj", keys, hidden, bias)
        yield from _linear(f"{name}.self_attn.v_proj", keys, hidden, bias)
        yield from _linear(f"{name}.self_attn.o_proj", hidden, queries, bias if out_bias is None else out_bias)
        yield from _linear(f"{name}.mlp.gate_proj", wide, hidden, wide_bias)
        yield from _linear(f"{name}.mlp.up_proj", wide, hidden, wide_bias)
        yield from _linear(f"{name}.mlp.down_proj", hidden, wide, wide_bias)


def _vision(config: Mapping[str, Any]) -> Shapes:
    kinds: Mapping[str, Callable[[Mapping[str, Any]], Shapes]] = {
        "convnextv2": _convnextv2,
        "clip_vision_model": _clip,
    }
    vision = config["vision_config"]
    yield from kinds[vision["model_type"]](vision)
    if "hidden_sizes" in vision:
        widths = [vision["hidden_sizes"][0], *vision["hidden_sizes"]]
    else:
        widths = [vision["hidden_size"]] * (vision["num_hidden_layers"] + 1)
    dim, layers = config["region_dim"], config["vision_feature_layer"]
    width = sum(widths[layer] for layer in ([layers] if isinstance(layers, int) else layers))
    if width != dim:
        yield from _linear("vision.grid_projection", dim, width)
    for number, layer in enumerate(config["detail_layers"]):
        yield from _linear(f"vision.detail_projections.{number}", dim, widths[layer])
    if config["detail_from_pixels"]:
        yield from _conv("vision.pixel_stem.layers.0", dim // 2, 3, 3)
        yield from _conv("vision.pixel_stem.layers.2", dim, dim // 2, 3)
    if config["use_codebook"]:
        groups = len(config.get("modality_names") or ()) or config["num_code_groups"]
        yield from _linear("codebook.modality_predictor", groups, width)


def _clip(vision: Mapping[str, Any]) -> Shapes:
    width, side, start = vision["hidden_size"], vision["patch_size"], "vision.backbone"
    yield f"{start}.embeddings.class_embedding", (width,)
    yield f"{start}.embeddings.patch_embedding.weight", (width, vision["num_channels"], side, side)
    yield f"{start}.embeddings.position_embedding.weight", ((vision["image_size"] // side) ** 2 + 1, width)
    yield from _norm(f"{start}.pre_layrnorm", width)  # spelt so by the library
    for layer in range(vision["num_hidden_layers"]):
        name = f"{start}.encoder.layers.{layer}"
        for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
            yield from _linear(f"{name}.self_attn.{part}", width, width)
        yield from _norm(f"{name}.layer_norm1", width)
        yield from _norm(f"{name}.layer_norm2", width)
        yield from _linear(f"{name}.mlp.fc1", vision["intermediate_size"], width)
        yield from _linear(f"{name}.mlp.fc2", width, vision["intermediate_size"])
    yield from _norm(f"{start}.post_layernorm", width)


def _convnextv2(vision: Mapping[str, Any]) -> Shapes:
    sizes, side, start = vision["hidden_sizes"], vision["patch_size"], "vision.backbone"
    yield from _conv(f"{start}.embeddings.patch_embeddings", sizes[0], vision["num_channels"], side)
    yield from _norm(f"{start}.embeddings.layernorm", sizes[0])
    for stage, (width, depth) in enumerate(zip(sizes, vision["depths"], strict=True)):
        name = f"{start}.encoder.stages.{stage}"
        if stage:
            yield from _norm(f"{name}.downsampling_layer.0", sizes[stage - 1])
            yield from _conv(f"{name}.downsampling_layer.1", width, sizes[stage - 1], 2)
        for layer in range(depth):
            block = f"{name}.layers.{layer}"
            yield from _conv(f"{block}.dwconv", width, 1, 7)
            yield from _norm(f"{block}.layernorm", width)
            yield from _linear(f"{block}.pwconv1", 4 * width, width)
            yield f"{block}.grn.weight", (1, 1, 1, 4 * width)
            yield f"{block}.grn.bias", (1, 1, 1, 4 * width)
            yield from _linear(f"{block}.pwconv2", width, 4 * width)
    yield from _norm(f"{start}.layernorm", sizes[-1])

"""The released checkpoints: what they call their tensors, and which of ours each one becomes.

The authors' 8B model comes in several files: the image encoder (UniMed-CLIP), the region perceiver of stage 1, the
codebook of stage 2, the first projector of stage 3, and a sharded folder with the language model and both projectors as
stage 5 left them. Their names are put through `clean`, which takes off what wraps a model while it is trained; what is
left is a name of the table here, and the table says what it is called in `MedSightForConditionalGeneration`.

What else the release's files say is in `official_settings`.

`medsight convert` follows `recipes` tensor by tensor; `conversion` hands the same table to the library, so that
`from_pretrained` reads the released names too.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Final, Literal

import torch

from medsight_core.errors import CheckpointError
from medsight_core.model.configuration import MedSightConfig

File = Literal["clip", "perceiver", "codebook", "instruct", "mm_projector"]
"""A file of the release, by what it holds; ``instruct`` is the sharded folder."""

Rule = Literal["copy", "third", "stack", "rows"]
"""How a tensor is made; see `Recipe`."""

_THEIRS: Final = "image_encoder.transformer.resblocks.#."
_OURS: Final = "model.vision.backbone.encoder.layers.#."

NAMES: Final[tuple[tuple[str, str], ...]] = (
    ("image_encoder.class_embedding", "model.vision.backbone.embeddings.class_embedding"),
    ("image_encoder.positional_embedding", "model.vision.backbone.embeddings.position_embedding.weight"),
    ("image_encoder.conv1.", "model.vision.backbone.embeddings.patch_embedding."),
    ("image_encoder.ln_pre.", "model.vision.backbone.pre_layrnorm."),
    ("image_encoder.ln_post.", "model.vision.backbone.post_layernorm."),
    (f"{_THEIRS}attn.out_proj.", f"{_OURS}self_attn.out_proj."),
    (f"{_THEIRS}ln_1.", f"{_OURS}layer_norm1."),
    (f"{_THEIRS}ln_2.", f"{_OURS}layer_norm2."),
    (f"{_THEIRS}mlp.c_fc.", f"{_OURS}mlp.fc1."),
    (f"{_THEIRS}mlp.c_proj.", f"{_OURS}mlp.fc2."),
    ("modality_predictor.", "model.codebook.modality_predictor."),
    ("region_perceiver.to_code.", "model.codebook.to_code."),
    ("region_perceiver.code_decoder.from_code.", "model.codebook.from_code."),
    ("region_perceiver.code_decoder.segmentation_cls_head_quant.", "model.codebook.head."),
    ("region_perceiver.", "model.perceiver."),
    ("model.mm_projector.", "model.vision_to_text."),
    ("model.token_projection.", "model.text_to_vision."),
    ("model.embed_tokens.", "model.language_model.embed_tokens."),
    ("model.layers.", "model.language_model.layers."),
    ("model.norm.", "model.language_model.norm."),
    ("lm_head.", "lm_head."),
)
"""Beginnings of names, the release's and ours; `#` stands for a number, the first line that fits holds."""

JOINED: Final = (f"{_THEIRS}attn.in_proj_", f"{_OURS}self_attn.")
"""Attention of the image encoder: queries, keys and values are one tensor there and three here."""

THIRDS: Final = ("q_proj", "k_proj", "v_proj")
"""The three parts of a joined tensor, in its order."""

GROUP: Final = "quantizer.codebooks.#.embedding.weight"
"""The codes of one modality group; ours are one table of all groups, `CODES`."""

CODES: Final = "model.codebook.codes"

WORDS: Final = "model.embed_tokens.weight"
SPLIT_WORDS: Final = ("model.embed_tokens.base_emb.weight", "model.embed_tokens.codebook_emb.weight")
"""The words of a stage-4 checkpoint: all rows, of which those of region codes are stale, and the codes' own rows."""

TOWER: Final = "model.vision_tower.vision_tower."
"""Stands before the image encoder's and the perceiver's names where they were saved with the language model."""

WRAPPERS: Final = ("module.", "_orig_mod.", "base_model.model.", TOWER)
"""What training puts before names."""

IGNORED: Final[tuple[tuple[str, str], ...]] = (
    (r"image_encoder\.proj", "leads to CLIP's space of pictures and texts, which MedSIGHT does not use"),
    (r"(text_encoder|text)\..+|logit_scale|logit_bias", "the text side of CLIP, which MedSIGHT does not use"),
    (r"region_perceiver\.region_position_embed\.weight", "the released maths never reads it"),
    (r"quantizer\.codebooks\.\d+\.(initted|step|codebook_used|ema_usage)", "a statistic of training"),
    (r"region_perceiver\.quantizer\..+", "a second name of quantizer.*"),
    (r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq", "is computed"),
)
"""Names of the release that ours has no tensor for, as patterns of the whole name, and why that is right."""

_BEGINNINGS: Final = ("quantizer.", *(theirs.partition("#")[0] for theirs, _ in NAMES))

USED_CODES: Final = 131072
"""Length of the released codebooks' record of which codes were used last."""

@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How one tensor of ours is made of the release's.

    Attributes:
        name: Ours, a key of `MedSightForConditionalGeneration.state_dict()`.
        shape: Ours.
        sources: The release's names, as `clean` leaves them.
        file: Where they are looked for first.
        elsewhere: Where else they may be, in this order.
        rule: "copy" takes the one source as it is; "third" takes part ``index`` of its rows, which are three equal
            parts; "stack" puts all sources on top of each other along a new first axis; "rows" takes the first source
            and puts row i of the second where the id of region code i points, in the order of the release's file of
            added tokens.
        index: Of the part, for "third".
    """

    name: str
    shape: tuple[int, ...]
    sources: tuple[str, ...]
    file: File
    elsewhere: tuple[File, ...] = ()
    rule: Rule = "copy"
    index: int = 0


def clean(name: str) -> str:
    """A released tensor's name without what wraps it: a name of the table, or of `IGNORED`, or one that is unknown."""
    stripped = True
    while stripped:
        stripped = False
        for wrapper in WRAPPERS:
            if name.startswith(wrapper):
                name, stripped = name[len(wrapper) :], True
    if name.startswith("visual."):
        return "image_encoder." + name.removeprefix("visual.")
    if name.startswith(("mm_projector.", "token_projection.")):
        return "model." + name
    return name


def ours(name: str) -> str:
    """What a released tensor, named as `clean` leaves it, is called here; unknown names stay.

    Of what `recipes` split or join, the name tells the place: `self_attn.in_proj_weight`, `codebook.codebooks.2.…`.
    """
    if not name.startswith(_BEGINNINGS):
        return name
    places = ((JOINED[0], f"{_OURS}self_attn.in_proj_"), ("quantizer.codebooks.", "model.codebook.codebooks."), *NAMES)
    return next((found for old, new in places if (found := _renamed(name, old, new)) is not None), name)


def ignored(name: str) -> str | None:
    """Why a released tensor, named as `clean` leaves it, is not needed; None where it is, or is unknown."""
    return next((reason for pattern, reason in IGNORED if re.fullmatch(pattern, name)), None)


def recipes(config: MedSightConfig, *, split_embedding: bool = False) -> tuple[Recipe, ...]:
    """How every tensor of a model is made, in the model's order.

    Args:
        config: Of the model; see `release_config`.
        split_embedding: The words are stored as stage 4 leaves them (`SPLIT_WORDS`).

    Raises:
        CheckpointError: not_in_release, the model has parts that the release has not, such as a prompt encoder.
    """
    shapes = _shapes(config)
    made = {name: _recipe(name, shape, config, split_embedding) for name, shape in shapes.items()}
    strange = [name for name, recipe in made.items() if recipe is None]
    if strange:
        raise CheckpointError(
            "not_in_release",
            f"The released model has nothing for {len(strange)} tensors of this configuration, such as {strange[0]}.",
            "Use the configuration that the conversion makes.",
        )
    return tuple(recipe for recipe in made.values() if recipe is not None)


def release_shapes(config: MedSightConfig, *, split_embedding: bool = False) -> dict[str, tuple[int, ...]]:
    """Shape of every tensor of the release by name, with those that ours does not need.

    Args:
        config: Of the model.
        split_embedding: See `recipes`.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for recipe in recipes(config, split_embedding=split_embedding):
        shapes |= _source_shapes(recipe, config)
    shapes["image_encoder.proj"] = (config.vision_config.hidden_size, config.vision_config.projection_dim)
    shapes["region_perceiver.region_position_embed.weight"] = (config.num_region_queries, config.region_dim)
    for group in range(config.num_code_groups if config.use_codebook else 0):
        table = f"quantizer.codebooks.{group}"
        shapes |= {f"{table}.initted": (), f"{table}.step": (), f"{table}.codebook_used": (USED_CODES,)}
        shapes[f"{table}.ema_usage"] = (config.codes_per_group,)
        alias = f"region_perceiver.{table}."
        own = [name for name in shapes if name.startswith(f"{table}.")]
        shapes |= {alias + name.removeprefix(f"{table}."): shapes[name] for name in own}
    return shapes


def _shapes(config: MedSightConfig) -> dict[str, tuple[int, ...]]:
    """Shape of every tensor of ours, from the model itself, which takes no memory on the meta device."""
    from medsight_core.model.modeling import MedSightForConditionalGeneration  # which itself knows this table

    with torch.device("meta"):
        model = MedSightForConditionalGeneration(config)
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def _recipe(name: str, shape: tuple[int, ...], config: MedSightConfig, split_embedding: bool) -> Recipe | None:
    """How one tensor of ours is made; None where the release has nothing for it."""
    if name == CODES:
        groups = tuple(GROUP.replace("#", str(group)) for group in range(config.num_code_groups))
        return Recipe(name=name, shape=shape, sources=groups, file="codebook", rule="stack")
    for index, third in enumerate(THIRDS):
        source = _renamed(name, f"{JOINED[1]}{third}.", JOINED[0])
        if source is not None:
            return Recipe(name=name, shape=shape, sources=(source,), rule="third", index=index, **_where(source))
    source = next((found for theirs, ours in NAMES if (found := _renamed(name, ours, theirs)) is not None), None)
    if source is None:
        return None
    if source == WORDS and split_embedding:
        return Recipe(name=name, shape=shape, sources=SPLIT_WORDS, rule="rows", file="instruct")
    return Recipe(name=name, shape=shape, sources=(source,), **_where(source))


def _renamed(name: str, old: str, new: str) -> str | None:
    """A name whose beginning ``old`` is made ``new``, the number in it kept; None where it begins otherwise."""
    match = re.match(re.escape(old).replace(r"\#", r"(\d+)"), name)
    if match is None:
        return None
    return new.replace("#", match[1] if match.re.groups else "#") + name[match.end() :]


def _where(source: str) -> dict[str, Any]:
    """Which files hold a tensor of the release."""
    if source.startswith("image_encoder."):
        return {"file": "clip", "elsewhere": ("instruct",)}
    if source.startswith(("modality_predictor.", "region_perceiver.to_code.", "region_perceiver.code_decoder.")):
        return {"file": "codebook"}
    if source.startswith("region_perceiver."):
        return {"file": "perceiver", "elsewhere": ("instruct", "codebook")}
    if source.startswith("model.mm_projector."):
        return {"file": "instruct", "elsewhere": ("mm_projector",)}  # stage 5 trained it further
    return {"file": "instruct"}


def _source_shapes(recipe: Recipe, config: MedSightConfig) -> dict[str, tuple[int, ...]]:
    """Shapes of what a tensor of ours is made of."""
    shape = recipe.shape
    if recipe.rule == "third":
        shape = (3 * shape[0], *shape[1:])
    elif recipe.rule == "stack":
        shape = shape[1:]
    elif recipe.rule == "rows":
        return {recipe.sources[0]: shape, recipe.sources[1]: (config.num_codes, shape[1])}
    return dict.fromkeys(recipe.sources, shape)

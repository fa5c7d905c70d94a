"""How much memory a model takes, from its configuration and the shapes of its tensors alone.

    weights   parameters times the bytes of each. With 8 and 4 bits only the matrices of the language model's layers
              shrink, with a scale for each row (8 bits) or for each 64 values (4 bits); everything else is as precise
              as what is computed: 16 bits on a GPU, 32 on a CPU.
    cache     2 x layers x key heads x width of a head x tokens: keys and values of a conversation about one slice.
    image     what the perceiver holds at once at its finest resolution (four layers of pixels: what the upsampling
              reads and writes, what queries read of it, and the features that are kept for the next question), and the
              vision encoder's and perceiver's coarser ones.
    reading   what the language model holds while it reads the prompt.
    program   torch and its kernels, on a GPU and beside it, whatever the model.

The sums are those of the tensors; what an allocator adds is the `MARGIN`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from medsight_core.errors import CheckpointError

Precision = Literal["fp32", "bf16", "int8", "int4"]

MATRIX_BITS: Final[Mapping[Precision, float]] = {"fp32": 32, "bf16": 16, "int8": 8, "int4": 4 + 8 / 64 + 32 / 64 / 256}
"""Of a weight of the language model's layers. With 4 bits: 8 bits of scale for every 64, and 32 for 256 of these."""

ROW_BYTES: Final = 4
"""The scale of a row with 8 bits."""

FINEST_LAYERS: Final = 4.0
"""Layers of pixels at the finest resolution that are there at once."""

PIECES: Final = 64 * 2**20
"""Bytes of the pieces in which the perceiver's widest layers go over the pixels."""

PROGRAM: Final = 900 * 2**20
"""Bytes that torch, its libraries and its kernels take in a process; about as much again on a GPU."""

MARGIN: Final = 1.1

TOKENS: Final = 2048
"""Length of a conversation that is reckoned with where the model does not end before."""

_BODY: Final = "model.language_model."
_MATRIX: Final = re.compile(r"model\.language_model\.layers\.\d+\..*\.weight")


@dataclass(frozen=True, slots=True, kw_only=True)
class Footprint:
    """The sizes of a model.

    Attributes:
        matrices: Parameters in the matrices of the language model's layers, which 8 and 4 bits make smaller.
        rows: Rows of these matrices.
        others: All other parameters.
        whole: Parameters that always stay together on one device: all but those of the language model's body.
        layers: Of the language model.
        key_width: Key heads times the width of a head.
        hidden: Width of the language model.
        widest: Width of its widest layer.
        visual_tokens: Tokens of an image.
        grid: Patches along a side.
        finest: Pixels at the perceiver's finest resolution.
        region_dim: Width of the perceiver.
        tokens: Length of a conversation that is reckoned with.
    """

    matrices: int
    rows: int
    others: int
    whole: int
    layers: int
    key_width: int
    hidden: int
    widest: int
    visual_tokens: int
    grid: int
    finest: int
    region_dim: int
    tokens: int

    @property
    def parameters(self) -> int:
        """Of the whole model."""
        return self.matrices + self.others

    def weights(self, precision: Precision, *, each: int) -> int:
        """Bytes of the weights; ``each`` is what a value takes that is computed: 4, or 2."""
        scales = self.rows * ROW_BYTES if precision == "int8" else 0
        return round(self.matrices * MATRIX_BITS[precision] / 8) + scales + self.others * each

    def cache(self, *, each: int) -> int:
        """Bytes of keys and values of one conversation."""
        return 2 * self.layers * self.key_width * self.tokens * each

    def image(self, *, each: int) -> int:
        """Bytes that looking at a slice takes at most, and drawing a mask."""
        coarser = sum(4.0**-level for level in range(1, 4))
        return PIECES + round(FINEST_LAYERS * (1 + coarser) * self.finest * self.region_dim * each)

    def reading(self, *, each: int) -> int:
        """Bytes that the language model's widest layer takes while it reads the prompt."""
        return self.tokens * (3 * self.widest + 4 * self.hidden) * each

    def working(self, *, each: int) -> int:
        """Bytes beside the weights; looking and reading come one after the other."""
        return self.cache(each=each) + max(self.image(each=each), self.reading(each=each))

    def total(self, precision: Precision, *, each: int) -> int:
        """Bytes that have to be there, with what allocators add, without the program."""
        return round(MARGIN * (self.weights(precision, each=each) + self.working(each=each)))


def footprint_of(
    config: Mapping[str, Any],
    shapes: Mapping[str, tuple[int, ...]],
    *,
    side: int | None = None,
    tokens: int | None = None,
) -> Footprint:
    """The sizes of a model.

    Args:
        config: ``config.json``.
        shapes: Of its tensors, by name.
        side: Pixels along a side of the image that the model sees; None for what the vision encoder's configuration
            says.
        tokens: Length of a conversation; None for `TOKENS`, or as many as the model can.

    Raises:
        CheckpointError: bad_config, where the configuration lacks a size.
    """
    try:
        text = config["text_config"]
        heads = text["num_attention_heads"]
        width = text.get("head_dim") or text["hidden_size"] // heads
        keys = (text.get("num_key_value_heads") or heads) * width
        grid = _grid(config, side)
        pool = config.get("visual_token_pooling", 1)
        regions = config["num_region_queries"] if config.get("use_region_tokens", True) else 0
        visual = (grid // pool) ** 2 + regions
        longest = text.get("max_position_embeddings") or TOKENS
        matrices = {name: shape for name, shape in shapes.items() if _MATRIX.fullmatch(name) and len(shape) == 2}
        everything = sum(math.prod(shape) for shape in shapes.values())
        within = sum(math.prod(shape) for shape in matrices.values())
        return Footprint(
            matrices=within,
            rows=sum(shape[0] for shape in matrices.values()),
            others=everything - within,
            whole=sum(math.prod(shape) for name, shape in shapes.items() if not name.startswith(_BODY)),
            layers=text["num_hidden_layers"],
            key_width=keys,
            hidden=text["hidden_size"],
            widest=text["intermediate_size"],
            visual_tokens=visual,
            grid=grid,
            finest=(grid << config["perceiver_stages"]) ** 2,
            region_dim=config["region_dim"],
            tokens=min(longest, max(tokens or TOKENS, visual)),
        )
    except (KeyError, TypeError, AttributeError, ZeroDivisionError, OverflowError, ValueError) as error:
        raise CheckpointError(
            "bad_config",
            f"config.json does not say how large the model is ({type(error).__name__}: {error}).",
            "Copy the folder again from where it came.",
        ) from error


def with_head(config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """Shapes that a configuration declares, with the word head where it is a matrix of its own.

    Raises:
        CheckpointError: unknown_architecture, where the configuration does not declare all of them.
    """
    parts = ("model.language_model.", "model.vision.", "model.perceiver.")
    lacking = [part.split(".")[1] for part in parts if not any(name.startswith(part) for name in shapes)]
    if lacking:
        raise CheckpointError(
            "unknown_architecture",
            f"config.json alone does not say how large this model's {' and '.join(lacking)} are: of a kind that is not "
            "known here.",
            "Name a folder that has the weights as well.",
        )
    if config.get("tie_word_embeddings"):
        return dict(shapes)
    return {**shapes, "lm_head.weight": shapes["model.language_model.embed_tokens.weight"]}


def _grid(config: Mapping[str, Any], side: int | None) -> int:
    """Patches along a side of the grid that the perceiver starts from."""
    vision = config["vision_config"]
    side = side or vision["image_size"]
    if "hidden_sizes" not in vision:
        return int(side // vision["patch_size"])
    layer = config["vision_feature_layer"]
    first = layer if isinstance(layer, int) else layer[0]
    # A convolutional encoder: the stem divides by its patch, each stage after the first by two.
    stage = first if first >= 0 else len(vision["hidden_sizes"]) + 1 + first
    return int(side // (vision.get("patch_size", 4) << max(0, stage - 1)))

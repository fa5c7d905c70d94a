"""Image encoders that open_clip trained, as the library's CLIP.

open_clip saves the whole of a CLIP, with `visual.` before the encoder's names, either beside an `open_clip_config.json`
or as a bare file. Weights alone do not tell which GELU they were trained with, and the wrong one spoils every feature
without any error, so that it is asked for where nothing says it.
"""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor, cat
from transformers import AutoModel, CLIPVisionConfig, PreTrainedModel

from medsight_core.convert.archives import open_archive
from medsight_core.convert.stored import Stored
from medsight_core.errors import CheckpointError, InputError
from medsight_core.model import MedSightConfig
from medsight_core.model.official import clean, recipes

SETTINGS = "open_clip_config.json"
WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors", "open_clip_pytorch_model.bin")
UNIMED = "unimed_clip"
"""How the files of UniMed-CLIP begin; its encoder is open_clip's ViT-L-14-336-quickgelu."""

OURS = "model.vision.backbone."
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
"""Of all CLIPs, where nothing else is said."""

Read = Callable[[], Tensor]


def is_openclip(path: Path) -> bool:
    """Whether open_clip wrote a file or folder: anything that is no folder of the library."""
    return path.is_file() or (path / SETTINGS).is_file() or any((path / name).is_file() for name in WEIGHTS)


def open_openclip(path: Path, activation: str | None) -> tuple[PreTrainedModel, list[float], list[float]]:
    """Encoder with its weights, and mean and standard deviation of its pictures' channels.

    Args:
        path: `.safetensors`, `.pt` or `.bin` of open_clip, or its folder.
        activation: "gelu" or "quick_gelu", where the files do not say it.

    Raises:
        InputError: unknown_activation, wrong_activation.
        CheckpointError: not_clip, wrong_shape, or the file is damaged or not data.
    """
    folder = path if path.is_dir() else path.parent
    file = path if path.is_file() else next((folder / name for name in WEIGHTS if (folder / name).is_file()), None)
    if file is None:
        raise CheckpointError("missing_weights", f"{path} has none of {', '.join(WEIGHTS)}.", "Download it again.")
    settings = read_settings(folder / SETTINGS) if file.name in WEIGHTS else {}
    said = settings.get("model_cfg") or {}
    stated = ("quick_gelu" if said.get("quick_gelu") else "gelu") if said else None
    if file.name.lower().startswith(UNIMED):
        stated = "quick_gelu"
    if stated is None and activation is None:
        raise InputError(
            "unknown_activation",
            f"{file.name} does not say whether it was trained with GELU or QuickGELU, and the wrong one spoils it.",
            "Say --activation quick_gelu (OpenAI's and all that open_clip calls -quickgelu), or --activation gelu.",
        )
    if stated and activation and stated != activation:
        raise InputError(
            "wrong_activation",
            f"{file.name} was trained with {stated}, got --activation {activation}.",
            "Leave --activation out.",
        )
    tensors = {clean(name): read for name, read in readers(file).items()}
    tensors = {name: read for name, read in tensors.items() if name.startswith("image_encoder.")}
    shapes = {name: tuple(tensors[name]().shape) for name in TELLING if name in tensors}
    if len(shapes) < len(TELLING):
        raise CheckpointError(
            "not_clip", f"{file} holds no vision transformer of open_clip's own kind.", "Give a CLIP ViT."
        )
    config = vision_config(shapes, list(tensors), said.get("vision_cfg") or {}, stated or activation)
    backbone = AutoModel.from_config(config)
    backbone.load_state_dict(state(tensors, config, file), assign=True)
    seen = settings.get("preprocess_cfg") or {}
    return backbone, list(seen.get("mean") or MEAN), list(seen.get("std") or STD)


def read_settings(file: Path) -> dict[str, Any]:
    """What open_clip wrote beside the weights; empty where it wrote nothing.

    Raises:
        CheckpointError: bad_base, the file is damaged.
    """
    if not file.is_file():
        return {}
    try:
        settings = json.loads(file.read_text(encoding="utf-8"))
        if all(isinstance(settings.get(group, {}), dict) for group in ("model_cfg", "preprocess_cfg")):
            return dict(settings)
    except (OSError, ValueError, TypeError, AttributeError):
        pass
    raise CheckpointError("bad_base", f"{file} is no configuration of open_clip.", "Download it again.")


def readers(file: Path) -> dict[str, Read]:
    """How to read each tensor of a file, by name."""
    if file.suffix == ".safetensors":
        try:
            opened: Any = safe_open(file, "pt")
        except Exception as error:  # the reader has errors of its own
            raise CheckpointError("damaged_checkpoint", f"{file} is no whole safetensors file.") from error
        return {name: partial(opened.get_tensor, name) for name in opened.keys()}  # noqa: SIM118
    return {name: partial(whole, stored) for name, stored in open_archive(file).tensors().items()}


def whole(stored: Stored) -> Tensor:
    """A tensor with its values."""
    return cat(list(stored.blocks())).reshape(stored.shape)


TELLING = (
    "image_encoder.conv1.weight",
    "image_encoder.positional_embedding",
    "image_encoder.ln_pre.weight",
    "image_encoder.transformer.resblocks.0.mlp.c_fc.weight",
)
"""What every ViT of open_clip has, and what tells its sizes."""


def vision_config(
    shapes: dict[str, tuple[int, ...]], names: list[str], said: dict[str, Any], activation: str | None
) -> CLIPVisionConfig:
    """The encoder's configuration; heads are 64 wide, unless open_clip's own says otherwise."""
    width, _, patch, _ = shapes["image_encoder.conv1.weight"]
    side = round((shapes["image_encoder.positional_embedding"][0] - 1) ** 0.5) * patch
    layers = {name.split(".")[3] for name in names if name.startswith("image_encoder.transformer.resblocks.")}
    return CLIPVisionConfig(
        hidden_size=width,
        intermediate_size=shapes["image_encoder.transformer.resblocks.0.mlp.c_fc.weight"][0],
        num_hidden_layers=len(layers),
        num_attention_heads=max(1, width // int(said.get("head_width", 64))),
        image_size=side,
        patch_size=patch,
        hidden_act=activation,
        layer_norm_eps=1e-5,
    )


def state(tensors: dict[str, Read], config: CLIPVisionConfig, file: Path) -> dict[str, Tensor]:
    """The encoder's tensors under the library's names, values untouched.

    Raises:
        CheckpointError: wrong_shape, with names.
    """
    around = MedSightConfig(
        vision_config=config,
        text_config={"model_type": "qwen3", "vocab_size": 8, "hidden_size": 8, "num_hidden_layers": 1},
        region_dim=config.hidden_size,
        use_codebook=False,
        use_prompts=False,
    )
    found, wrong = {}, []
    for recipe in recipes(around):
        if not recipe.name.startswith(OURS):
            continue
        source = recipe.sources[0]
        tensor = tensors[source]() if source in tensors else None
        if tensor is not None and recipe.rule == "third":
            tensor = tensor.chunk(3)[recipe.index].clone()
        if tensor is None or tuple(tensor.shape) != recipe.shape:
            got = "is missing" if tensor is None else f"has shape {list(tensor.shape)}"
            wrong.append(f"{source} {got}, expected {list(recipe.shape)}")
            continue
        found[recipe.name.removeprefix(OURS)] = tensor
    if wrong:
        raise CheckpointError("wrong_shape", f"{file} is no whole CLIP: {'; '.join(wrong[:4])}.", "Download it again.")
    return found

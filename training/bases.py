"""What a MedSIGHT model is built on: a language model and an image encoder that others trained, from folders on disk.

Only safetensors are read (and `.pt` files of open_clip, as data), nothing is downloaded, and no code that comes with
weights is run.
"""

import copy
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from medsight_core.errors import CheckpointError, InputError
from medsight_core.inference.loading import one_line
from training.build import quiet
from training.openclip import MEAN, STD, is_openclip, open_openclip

PICTURES = "preprocessor_config.json"


@dataclass(frozen=True, kw_only=True, eq=False)
class LanguageBase:
    """A causal language model.

    Attributes:
        name: of its folder.
        model: with its head, in the type it is stored in.
        tokenizer: its own.
    """

    name: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase

    @property
    def decoder(self) -> PreTrainedModel:
        """All but the head."""
        return self.model.get_decoder()

    @property
    def head(self) -> nn.Linear:
        """From states to words."""
        return self.model.get_output_embeddings()

    @property
    def config(self) -> PreTrainedConfig:
        """Of the decoder."""
        return self.decoder.config

    @property
    def tied(self) -> bool:
        """Whether head and embeddings are one table."""
        return self.head.weight is self.decoder.get_input_embeddings().weight


@dataclass(frozen=True, kw_only=True, eq=False)
class VisionBase:
    """An image encoder.

    Attributes:
        name: of its file or folder.
        model: in the type it is stored in.
        mean, std: of its pictures' channels, for values in 0..1.
    """

    name: str
    model: PreTrainedModel
    mean: list[float]
    std: list[float]

    @property
    def config(self) -> PreTrainedConfig:
        """Of the encoder."""
        return self.model.config


def open_language(folder: Path) -> LanguageBase:
    """A causal language model of the library.

    Raises:
        InputError: missing_base, unsupported_base.
        CheckpointError: bad_base, the folder is damaged or of another kind.
    """
    config = read_config(folder, "language model")
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise InputError(
            "unsupported_base",
            f"{folder} holds a {config.model_type}, which the library does not know as a causal language model.",
            "Give for instance Qwen3, Llama, Gemma 3, Mistral or Phi-3.",
        )
    model = load(AutoModelForCausalLM, folder, config)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:
        raise CheckpointError(
            "bad_base", f"The tokenizer in {folder} cannot be read ({one_line(error)}).", "Download the folder again."
        ) from error
    base = LanguageBase(name=folder.name, model=model, tokenizer=tokenizer)
    if reason := unfit(base):
        raise InputError(
            "unsupported_base", f"{folder} holds a {config.model_type}, {reason}.", "Take a model of another family."
        )
    return base


def unfit(base: LanguageBase) -> str | None:
    """Why MedSIGHT, whose head is one multiplication, cannot be built on a language model; None where it can."""
    decoder, head = base.decoder, base.head
    if MODEL_MAPPING.get(type(base.config), None) is not type(decoder):
        return f"whose words come from a {type(decoder).__name__} that cannot be built by itself"
    if not isinstance(getattr(decoder, "embed_tokens", None), nn.Embedding):
        return "whose table of words is not called embed_tokens"
    if not isinstance(head, nn.Linear) or head.bias is not None:
        return "whose head is more than one matrix"
    if any(".experts." in name for name, _ in decoder.named_parameters()):
        return "whose layers are mixtures of experts, which the library stores under other names than it computes with"
    if len(base.tokenizer) > base.decoder.embed_tokens.num_embeddings:
        return f"whose tokenizer has {len(base.tokenizer)} words for {decoder.embed_tokens.num_embeddings} rows"
    ids = torch.arange(min(8, head.out_features))[None]
    with torch.no_grad():
        wanted = base.model(input_ids=ids, use_cache=False).logits
        got = head(decoder(input_ids=ids, use_cache=False).last_hidden_state)
    if not torch.allclose(wanted.float(), got.float(), rtol=1e-3, atol=1e-3):
        return "which does more to its logits than its head (scaling, or a soft cap)"
    return None


def open_vision(path: Path, activation: str | None = None) -> VisionBase:
    """A vision transformer: CLIP (or its vision part alone), SigLIP, DINOv2 …, of the library or of open_clip.

    Args:
        path: folder of the library; folder or file of open_clip.
        activation: see `open_openclip`.

    Raises:
        InputError: missing_base, unsupported_base, unknown_activation, wrong_activation.
        CheckpointError: bad_base and whatever `open_openclip` raises.
    """
    if path.exists() and is_openclip(path):
        model, mean, std = open_openclip(path, activation)
        return VisionBase(name=path.name, model=model, mean=mean, std=std)
    config = read_config(path, "image encoder")
    if activation is not None:
        raise InputError("wrong_activation", f"{path} says itself how it was trained.", "Leave --activation out.")
    vision = getattr(config, "vision_config", config)
    kind = MODEL_MAPPING.get(type(vision), None)
    if kind is None or not getattr(vision, "patch_size", None) or not hasattr(vision, "num_hidden_layers"):
        raise InputError(
            "unsupported_base",
            f"{path} holds a {config.model_type}, expected a vision transformer.",
            "Give a CLIP, SigLIP or DINOv2.",
        )
    mean, std = read_normalisation(path, vision)
    return VisionBase(name=path.name, model=load(kind, path, vision), mean=mean, std=std)


def read_normalisation(folder: Path, config: PreTrainedConfig) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of the channels, as the encoder was trained with.

    Raises:
        CheckpointError: bad_base, nothing says it.
    """
    file = folder / PICTURES
    if not file.is_file():
        if config.model_type == "clip_vision_model":
            return list(MEAN), list(STD)
        raise CheckpointError(
            "bad_base", f"{folder} has no {PICTURES}, which tells how pictures are normalised.", "Copy that as well."
        )
    try:
        said = json.loads(file.read_text(encoding="utf-8"))
        mean, std = ([float(value) for value in said[name]] for name in ("image_mean", "image_std"))
    except (OSError, ValueError, TypeError, KeyError) as error:
        sentence = f"{file} does not tell image_mean and image_std."
        raise CheckpointError("bad_base", sentence, "Copy it again.") from error
    return mean, std


def read_config(folder: Path, what: str) -> PreTrainedConfig:
    """The configuration of a folder of the library.

    Raises:
        InputError: missing_base, unsupported_base.
        CheckpointError: bad_base.
    """
    if not folder.is_dir():
        raise InputError(
            "missing_base",
            f"There is no folder {folder} to take the {what} from.",
            "Download the model first (for instance: hf download NAME --local-dir FOLDER), then name its folder.",
        )
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
    except Exception as error:
        raise CheckpointError(
            "bad_base", f"{folder} holds no {what} that transformers knows ({one_line(error)}).", "Name another folder."
        ) from error
    if getattr(config, "quantization_config", None):
        raise InputError(
            "unsupported_base", f"{folder} holds quantised weights, which cannot be trained on.", "Give the original."
        )
    return config


def load(kind: Any, folder: Path, config: PreTrainedConfig) -> PreTrainedModel:
    """A model as it is stored, with no weight made up.

    Raises:
        CheckpointError: bad_base.
    """
    try:
        with quiet():
            model, info = kind.from_pretrained(
                folder,
                config=copy.deepcopy(config),
                dtype="auto",
                use_safetensors=True,
                local_files_only=True,
                output_loading_info=True,
            )
    except Exception as error:
        raise CheckpointError(
            "bad_base",
            f"The weights in {folder} cannot be loaded ({one_line(error)}).",
            "Download it again, as safetensors.",
        ) from error
    lacking = sorted(info["missing_keys"]) + sorted(str(key) for key in info["mismatched_keys"])
    if lacking:
        raise CheckpointError(
            "bad_base",
            f"The weights in {folder} lack {len(lacking)} tensors of its configuration, such as {lacking[0]}.",
            "Download it again.",
        )
    return model.eval()

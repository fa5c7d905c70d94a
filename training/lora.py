"""Fine-tuning with adapters (LoRA, by peft): what is learnt is small, the model that it belongs to stays as it is.

Every linear layer of the language model gets an adapter; of the words, only the rows that MedSIGHT added are trained,
in the embeddings and in the head; both projectors are trained as a whole. A folder with the outcome holds nothing else,
and says which model it is for, by the digest of that model's weights.
"""

import json
import re
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch import nn

from medsight_core.errors import CheckpointError, InputError
from medsight_core.inference.checkpoint import open_checkpoint
from medsight_core.inference.loading import one_line
from medsight_core.model import MedSightForConditionalGeneration, MedSightProcessor
from training.build import open_model
from training.vocabulary import embeddings, own_ids

LANGUAGE = "model.language_model."
PROJECTORS = ("model.vision_to_text", "model.text_to_vision")
WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"
BASE = "base.json"


@dataclass(frozen=True, kw_only=True)
class LoraSettings:
    """The recipe's group `lora`.

    Attributes:
        rank: of the adapters.
        alpha: their scale is alpha / rank.
        dropout: on what goes into an adapter.
        layers: last part of the names of the linear layers that get one; empty: all.
    """

    rank: int = 16
    alpha: int = 32
    dropout: float = 0.05
    layers: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Base:
    """Which model an adapter is for.

    Attributes:
        folder: where it was.
        digest: of its weights, see `Checkpoint.digest`.
        switches: settings that were changed for the training, see `open_model`.
    """

    folder: str
    digest: str
    switches: Mapping[str, Any] = field(default_factory=dict)


class Adapters:
    """The adapters of a model, as a `training.checkpoint.Store`."""

    def __init__(self, wrapped: PeftModel, base: Base) -> None:
        self.wrapped = wrapped
        self.base = base

    def write(self, folder: Path) -> None:
        """See `Store`; in peft's own layout."""
        self.wrapped.peft_config["default"].save_pretrained(str(folder))
        # Not peft's own saving, which warns about tables that grew, as the base's have, though they are in the base.
        state = get_peft_model_state_dict(self.wrapped, save_embedding_layers=False)
        save_file({name: tensor.contiguous() for name, tensor in state.items()}, folder / WEIGHTS)
        (folder / BASE).write_text(json.dumps(asdict(self.base), indent=1) + "\n", encoding="utf-8")

    def read(self, folder: Path) -> None:
        """See `Store`."""
        if read_base(folder).digest != self.base.digest:
            raise RuntimeError(f"the adapter in {folder} is of another model; use another run folder")
        fill(self.wrapped, load_file(folder / WEIGHTS), folder)


def adapt(model: MedSightForConditionalGeneration, processor: MedSightProcessor, settings: LoraSettings) -> PeftModel:
    """Give a model adapters, in place; only they, the rows of MedSIGHT's own words and the projectors can be trained.

    Raises:
        InputError: bad_lora, no linear layer has one of the given names, or a number is none.
    """
    whole = all(isinstance(n, int) and n > 0 for n in (settings.rank, settings.alpha))
    if not whole or not isinstance(settings.dropout, int | float) or not 0 <= settings.dropout < 1:
        raise InputError(
            "bad_lora",
            f"Adapters have rank {settings.rank!r}, alpha {settings.alpha!r} and dropout {settings.dropout!r}, "
            "expected two whole numbers and a share below 1.",
            "See LoraSettings.",
        )
    names = {
        name.rpartition(".")[2]
        for name, module in model.named_modules()
        if name.startswith(LANGUAGE) and isinstance(module, nn.Linear)
    }
    chosen = set(settings.layers) or names
    if unknown := sorted(chosen - names):
        raise InputError(
            "bad_lora",
            f"The language model has no linear layer called {', '.join(unknown)}.",
            f"It has {', '.join(sorted(names))}.",
        )
    ids = own_ids(processor.tokenizer)
    tables = ["embed_tokens", "lm_head"][: len(embeddings(model))]
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=rf"{re.escape(LANGUAGE)}.*\.({'|'.join(sorted(chosen))})",
        modules_to_save=[name.rpartition(".")[2] for name in PROJECTORS],
        trainable_token_indices=dict.fromkeys(tables, ids),
    )
    return wrap(model, config)


def wrap(model: MedSightForConditionalGeneration, config: LoraConfig) -> PeftModel:
    """A model with adapters in it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft asks the library for what it calls by another name now
        return get_peft_model(model, config)


def is_adapter(name: str) -> bool:
    """Whether a parameter of an adapted model belongs to what is trained."""
    return any(mark in name for mark in (".lora_", ".trainable_tokens_delta.", ".modules_to_save."))


def base_of(folder: Path, switches: Mapping[str, Any] | None = None) -> Base:
    """A model folder as the base of adapters.

    Raises:
        CheckpointError: the folder is not whole.
    """
    checkpoint = open_checkpoint(folder)
    return Base(folder=str(checkpoint.folder), digest=checkpoint.digest, switches=switches or {})


def read_base(folder: Path) -> Base:
    """Which model an adapter folder is for.

    Raises:
        CheckpointError: no_adapter, it is no adapter folder.
    """
    try:
        said = json.loads((folder / BASE).read_text(encoding="utf-8"))
        base = Base(folder=str(said["folder"]), digest=str(said["digest"]), switches=dict(said["switches"]))
        complete = (folder / WEIGHTS).is_file() and (folder / CONFIG).is_file()
    except (OSError, ValueError, KeyError, TypeError):
        complete = False
    if not complete:
        raise CheckpointError(
            "no_adapter",
            f"{folder} is no folder of adapters: it lacks {WEIGHTS}, {CONFIG} or {BASE}, or they are damaged.",
            "Name the folder that `medsight train 4 --lora` wrote.",
        )
    return base


def open_adapter(folder: Path, base: Path | None = None) -> tuple[PeftModel, MedSightProcessor]:
    """An adapted model, as it was trained, and its processor.

    Args:
        folder: of the adapters.
        base: where the base model is now; where it was then, when None.

    Raises:
        CheckpointError: no_adapter, missing_base, wrong_base, damaged_checkpoint, and what `open_checkpoint` raises.
    """
    wanted = read_base(folder)
    place = base or Path(wanted.folder)
    if not place.is_dir():
        raise CheckpointError(
            "missing_base", f"The model that {folder} belongs to is not at {place}.", "Say where it is with --base."
        )
    found = base_of(place)
    if found.digest != wanted.digest:
        raise CheckpointError(
            "wrong_base",
            f"{place} has the digest {found.digest}, but {folder} belongs to a model with {wanted.digest}.",
            "Give the model that the adapters were trained on with --base.",
        )
    model, processor = open_model(place, dict(wanted.switches))
    try:
        wrapped = wrap(model, LoraConfig.from_pretrained(str(folder)))
        fill(wrapped, load_file(folder / WEIGHTS), folder)
    except CheckpointError:
        raise
    except Exception as error:  # whatever the libraries raise over damaged files
        raise CheckpointError(
            "damaged_checkpoint", f"The adapters in {folder} cannot be read ({one_line(error)}).", "Copy them again."
        ) from error
    return wrapped.eval(), processor


def fill(wrapped: PeftModel, state: dict[str, Any], folder: Path) -> None:
    """Put saved adapters into a model's.

    Raises:
        CheckpointError: wrong_base, they are of another model.
    """
    expected = {
        name: value.shape for name, value in get_peft_model_state_dict(wrapped, save_embedding_layers=False).items()
    }
    if expected != {name: value.shape for name, value in state.items()}:
        raise CheckpointError(
            "wrong_base", f"The adapters in {folder} do not fit the model.", "Give the model they were trained on."
        )
    set_peft_model_state_dict(wrapped, state)


def merge(folder: Path, base: Path | None = None) -> tuple[MedSightForConditionalGeneration, MedSightProcessor]:
    """The model with its adapters worked into its weights; an ordinary model from then on.

    Args:
        folder, base: see `open_adapter`.

    Raises:
        CheckpointError: see `open_adapter`.
    """
    wrapped, processor = open_adapter(folder, base)
    return wrapped.merge_and_unload(), processor

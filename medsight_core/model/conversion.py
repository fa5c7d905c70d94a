"""Lets `from_pretrained` read a folder whose tensors have the release's own names (`official`), in the library's terms.

Only reading: what was read so is saved in our names, and our own names are left as they are.
"""

from __future__ import annotations

from typing import Any, Final

import torch
from torch import Tensor
from transformers.conversion_mapping import register_checkpoint_conversion_mapping
from transformers.core_model_loading import (
    Chunk,
    ConversionOps,
    MergeModulelist,
    WeightConverter,
    WeightRenaming,
    WeightTransform,
)

from medsight_core.model.official import IGNORED, SPLIT_WORDS, THIRDS, WORDS, clean, ours

_NEVER: Final = r"(?!)"
"""Fits no name."""


class Renaming(WeightRenaming):
    """The table's names; saving does not turn them back."""

    __slots__ = ()

    def __init__(self) -> None:
        super().__init__(_NEVER, "")

    def rename_source_key(self, source_key: str) -> tuple[str, str | None]:
        """What a stored tensor is called here, and its old name where that differs."""
        name = ours(clean(source_key))
        if name == source_key:
            return source_key, None
        self._was_used = True
        return name, source_key

    def reverse_transform(self) -> WeightTransform:
        """Nothing."""
        return WeightRenaming(_NEVER, "")


class Converter(WeightConverter):
    """Tensors of the release and what they become; saving does not turn them back."""

    __slots__ = ()

    def reverse_transform(self) -> WeightTransform:
        """Nothing."""
        return WeightRenaming(_NEVER, "")


class CodeRows(ConversionOps):
    """Puts the rows of region codes, which stage 4 trains apart, where their ids point."""

    @torch.no_grad()
    def convert(
        self,
        input_dict: dict[str, list[Tensor]],
        source_patterns: list[str],
        target_patterns: list[str],
        config: Any = None,
        **kwargs: Any,
    ) -> dict[str, Tensor]:
        """The words with the codes among them."""
        words, codes = (input_dict[pattern][0] for pattern in source_patterns)
        words = words.clone()
        words[torch.as_tensor(list(config.code_token_ids), device=words.device)] = codes.to(words.dtype)
        return {target_patterns[0]: words}

    @property
    def reverse_op(self) -> ConversionOps:
        """Is never asked for, because `Converter` does not turn back."""
        raise NotImplementedError


def conversions() -> list[WeightTransform]:
    """The table of `official` as transforms: first the names, then what is split and joined.

    These name only the ends of names, because before them "model." may stand or not.
    """
    words = WORDS.removeprefix("model.")
    return [
        Renaming(),
        *(
            Converter(f"self_attn.in_proj_{kind}", [f"self_attn.{third}.{kind}" for third in THIRDS], [Chunk(dim=0)])
            for kind in ("weight", "bias")
        ),
        Converter("codebook.codebooks.*.embedding.weight", "codebook.codes", [MergeModulelist(dim=0)]),
        Converter([name.removeprefix("model.") for name in SPLIT_WORDS], words, [CodeRows()]),
    ]


def register() -> None:
    """Makes the table known to the library."""
    register_checkpoint_conversion_mapping("medsight", conversions(), overwrite=True)


def unread() -> list[str]:
    """Patterns of the names that `conversions` leave over because ours has no use for them."""
    renamed = {r"^(region_perceiver\.": r"^(model\.perceiver\.", r"^(quantizer\.": r"^(model\.codebook\."}
    patterns = [f"^({pattern})$" for pattern, _ in IGNORED]
    for theirs, new in renamed.items():
        patterns = [pattern.replace(theirs, new, 1) for pattern in patterns]
    return patterns

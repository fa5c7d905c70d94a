"""Whether the codebook and the rows that its codes started from as words belong together.

How the authors made those rows is not published; that they are W_m of the codes at length one is what their code
suggests. A conversion says what it finds, and needs neither.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from medsight_core.convert.release import Release
from medsight_core.convert.stored import Stored
from medsight_core.model.official import GROUP

_MAP = "region_perceiver.code_decoder.from_code"


def compare_codes(release: Release) -> str:
    """A sentence about the two, or nothing where one is missing."""
    if not {"codebook", "projected"} <= release.sources.keys():
        return ""
    book, rows = release.sources["codebook"].tensors, _value(release.sources["projected"].tensors[""])
    groups = [book[name] for k in range(len(book)) if (name := GROUP.replace("#", str(k))) in book]
    made = F.normalize(torch.cat([_value(group) for group in groups]), dim=-1)

    def layer(number: int) -> list[Tensor]:
        return [_value(book[f"{_MAP}.{number}.{kind}"]) for kind in ("weight", "bias")]

    for linear, norm in ((0, 2), (3, 5)):
        made = F.gelu(F.linear(made, *layer(linear)))
        made = F.layer_norm(made, made.shape[-1:], *layer(norm))
    difference, largest = float((made - rows).abs().max()), float(rows.abs().max())
    return (
        f"The rows that the codes started from as words differ from W_m of the codebook's codes by {difference:.1e} at "
        f"most; the largest of their values is {largest:.1e}."
    )


def _value(stored: Stored) -> Tensor:
    return torch.cat(list(stored.blocks())).float().reshape(stored.shape)

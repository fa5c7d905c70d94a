"""The modality-grouped codebook: region embeddings become discrete region codes, and codes become embeddings again.

Each imaging modality has its own group of codes, so that a liver in CT and a liver in ultrasound never share one.
A region embedding is projected (W_q), compared by direction with the codes of its image's group, replaced by the
nearest, and mapped back (W_m). Gradients pass the choice straight through.

Source: MedSIGHT (ICML 2026), section "Modality-grouped regional codebook".
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medsight_core.model.perceiver import SegmentationHead


@dataclass(frozen=True, kw_only=True)
class Quantized:
    """Codes of a batch of regions.

    Attributes:
        index: code within the group `(batch, n)`.
        code: the code's unit vector `(batch, n, code_dim)`; its gradient reaches the code.
        unit: the direction that was compared with it, W_q of the region at length one; its gradient reaches the region.
        decoded: embeddings from the codes, W_m, straight-through `(batch, n, dim)`.
        projected: W_q of the regions as it is, before comparison `(batch, n, code_dim)`.
    """

    index: Tensor
    code: Tensor
    unit: Tensor
    decoded: Tensor
    projected: Tensor


class ModalityGroupedCodebook(nn.Module):
    """K groups of M codes.

    Args:
        dim: width of region embeddings.
        code_dim: width of codes.
        num_groups: K.
        codes_per_group: M.
        num_classes: classes of the head that judges decoded embeddings.
        summary_dim: width of the image summary that the modality is predicted from.
    """

    def __init__(
        self, *, dim: int, code_dim: int, num_groups: int, codes_per_group: int, num_classes: int, summary_dim: int
    ) -> None:
        super().__init__()
        self.to_code = nn.Sequential(
            nn.Linear(dim, dim),
            nn.GELU(),
            nn.LayerNorm(dim),
            nn.Linear(dim, code_dim),
            nn.GELU(),
            nn.LayerNorm(code_dim),
        )
        self.from_code = nn.Sequential(
            nn.Linear(code_dim, dim), nn.GELU(), nn.LayerNorm(dim), nn.Linear(dim, dim), nn.GELU(), nn.LayerNorm(dim)
        )
        self.codes = nn.Parameter(torch.empty(num_groups, codes_per_group, code_dim).uniform_(-1, 1) / codes_per_group)
        self.head = SegmentationHead(dim=dim, num_classes=num_classes)
        self.modality_predictor = nn.Linear(summary_dim, num_groups)

    def forward(self, regions: Tensor, group: Tensor) -> Quantized:
        """Quantise `regions` `(batch, n, dim)` of images whose modality groups are `group` `(batch,)`."""
        projected = self.to_code(regions)
        with torch.autocast(projected.device.type, enabled=False):  # nearest of close codes: distances stay precise
            unit = F.normalize(projected.float(), dim=-1)
            codes = self.unit_codes()[group]
            index = (unit @ codes.transpose(1, 2)).argmax(-1)
            chosen = codes.gather(1, index[..., None].expand(-1, -1, codes.shape[-1]))
            straight = unit + (chosen - unit).detach()
        return Quantized(
            index=index,
            code=chosen,
            unit=unit,
            decoded=self.from_code(straight.to(projected.dtype)),
            projected=projected,
        )

    def unit_codes(self) -> Tensor:
        """All codes with length one, `(groups, codes, code_dim)`; they are stored raw."""
        return F.normalize(self.codes.float(), dim=-1)

    def embeddings(self) -> Tensor:
        """W_m of every code, group by group, `(groups * codes, dim)`: what initialises the vocabulary."""
        return self.from_code(self.unit_codes().to(self.codes.dtype)).flatten(0, 1)

    @torch.no_grad()
    def revive(self, dead: Tensor, samples: Tensor, groups: Tensor) -> int:
        """Give dead codes the direction of a region that really occurs in their group.

        Args:
            dead: bool `(groups, codes)`.
            samples: projected regions `(m, code_dim)` seen lately.
            groups: group of each sample `(m,)`.

        Returns:
            How many codes were revived; codes of groups without a sample stay as they are.
        """
        revived = 0
        for group in dead.any(1).nonzero().flatten().tolist():
            candidates = samples[groups == group]
            slots = dead[group].nonzero().flatten()
            if not len(candidates):
                continue
            unit = F.normalize(candidates.float(), dim=-1)
            far = (unit @ self.unit_codes()[group].T).amax(1).argsort()  # least well served first
            picks = candidates[far[: len(slots)]]
            self.codes[group, slots[: len(picks)]] = F.normalize(picks.float(), dim=-1).to(self.codes.dtype)
            revived += len(picks)
        return revived

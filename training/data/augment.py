"""Augmentation on whole batches: geometry for images and masks alike, then intensity for images alone.

Laterality is respected: an image is mirrored only where left and right mean nothing for its targets.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from training.data.biomedparse import Sample

MIRROR = {
    "Dermoscopy": "dihedral",
    "Endoscopy": "dihedral",
    "Pathology": "dihedral",
    "Fundus": "horizontal",
    "Ultrasound": "horizontal",
}
"""What may be mirrored. CT, MRI and X-ray have a left and a right and are not here."""


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Augmented samples.

    Attributes:
        images: `(batch, 3, size, size)` in 0..1.
        masks: per sample `(targets, size / 2, size / 2)` soft in 0..1.
        nearby: the same of the neighbouring slices' targets.
        samples: what they were made of.
    """

    images: Tensor
    masks: list[Tensor]
    nearby: list[Tensor]
    samples: list[Sample]


def augment(samples: list[Sample], *, size: int, rng: np.random.Generator, strength: float = 1.0) -> Batch:
    """Make a batch.

    Args:
        samples: square images of one size.
        size: side of the model's input; masks come at half of it.
        rng: source of all randomness.
        strength: 0 gives the plain images.
    """
    images = torch.from_numpy(np.stack([s.image for s in samples])).permute(0, 3, 1, 2).float() / 255
    while images.shape[-1] >= 2 * size:  # halve before sampling, so that nothing aliases
        images = F.avg_pool2d(images, 2)
    counts = [len(targets) for s in samples for targets in (s.targets, s.nearby)]
    transforms = torch.stack([affine(s, rng, strength) for s in samples])
    grid = F.affine_grid(transforms, [len(samples), 3, size, size], align_corners=False)
    images = F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    masks = [t.mask for s in samples for t in (*s.targets, *s.nearby)]
    if masks:
        stacked = torch.from_numpy(np.stack(masks)).float()[:, None]
        owner = torch.repeat_interleave(torch.arange(len(samples)), torch.tensor(counts).view(-1, 2).sum(1))
        stacked = F.grid_sample(stacked, grid[owner], mode="bilinear", padding_mode="zeros", align_corners=False)
        stacked = F.avg_pool2d(stacked, 2)[:, 0]
    else:
        stacked = torch.zeros(0, size // 2, size // 2)
    if strength:
        images = intensity(images, samples, rng, strength)
    parts = stacked.split(counts)
    return Batch(images=images, masks=list(parts[::2]), nearby=list(parts[1::2]), samples=samples)


def affine(sample: Sample, rng: np.random.Generator, strength: float) -> Tensor:
    """A random map from output to input coordinates, `(2, 3)` for `affine_grid`."""
    angle = np.deg2rad(rng.uniform(-15, 15)) * strength
    zoom = np.exp(rng.uniform(-0.2, 0.15) * strength)
    stretch = np.exp(rng.uniform(-0.08, 0.08) * strength)
    shift = rng.uniform(-0.08, 0.08, 2) * strength
    cos, sin = np.cos(angle), np.sin(angle)
    matrix = np.array([[cos, -sin], [sin, cos]]) @ np.diag([zoom * stretch, zoom / stretch])
    mirror = MIRROR.get(sample.modality) if strength else None
    if mirror and rng.random() < 0.5:
        matrix = matrix @ np.diag([-1.0, 1.0])
    if mirror == "dihedral":
        turn = int(rng.integers(4))
        quarter = np.array([[0.0, -1.0], [1.0, 0.0]])
        matrix = matrix @ np.linalg.matrix_power(quarter, turn)
    return torch.tensor(np.hstack([matrix, shift[:, None]]), dtype=torch.float32)


def intensity(images: Tensor, samples: list[Sample], rng: np.random.Generator, strength: float) -> Tensor:
    """Gamma, contrast, brightness, a tint for photographs, noise and blur."""
    batch = len(images)

    def draw(low: float, high: float, *shape: int) -> Tensor:
        return torch.tensor(rng.uniform(low * strength, high * strength, (batch, *shape)), dtype=torch.float32)

    images = images.clamp(1e-4, 1) ** torch.exp(draw(-0.35, 0.35, 1, 1, 1))
    images = images * torch.exp(draw(-0.2, 0.2, 1, 1, 1)) + draw(-0.06, 0.06, 1, 1, 1)
    colour = torch.tensor([s.modality in ("Endoscopy", "Dermoscopy", "Fundus", "Pathology") for s in samples])
    images = images * torch.where(colour[:, None, None, None], torch.exp(draw(-0.12, 0.12, 3, 1, 1)), torch.ones(1))
    noise = torch.from_numpy(rng.standard_normal(images[:, :1].shape, dtype=np.float32))
    images = images + noise * draw(0, 0.03, 1, 1, 1)
    if rng.random() < 0.15 * strength:
        images = F.avg_pool2d(images, 3, stride=1, padding=1, count_include_pad=False)
    return images.clamp(0, 1)

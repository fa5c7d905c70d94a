"""Questions to begin with: about what is usually seen in a kind of scan, and what the model knows by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Final

SEEN: Final[Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {
        "CT": ("liver", "spleen", "pancreas", "kidney tumor", "aorta", "left lung"),
        "MR": ("lower-grade glioma", "hippocampus", "multiple sclerosis lesion", "prostate", "liver"),
        "X-ray": ("left lung", "right lung", "cardiomediastinum", "consolidation"),
        "Ultrasound": ("benign tumor", "malignant tumor", "fetal head"),
        "Endoscopy": ("polyp",),
        "Dermoscopy": ("melanoma", "common nevus"),
        "Fundus": ("optic disc", "vessel"),
        "Pathology": ("nuclei",),
    }
)


def suggestions(modality: str, classes: Sequence[str], *, most: int = 3) -> tuple[str, ...]:
    """Questions to begin with, the best first.

    Args:
        modality: Of the scan.
        classes: What the model knows by name; empty where that is not known.
        most: So many at most.
    """
    seen = [name for name in SEEN.get(modality, ()) if not classes or name in classes]
    asked = (*(f"Segment the {name} in this image." for name in seen[:1]), "What is shown in this image?")
    return (*asked, *(f"Segment the {name} in this image." for name in seen[1:]))[:most]

"""Images with masks in the BiomedParse layout: one manifest row per mask, gathered to one sample per image."""

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from medsight_core.geometry import GridTransform

GENERIC = frozenset({"tumor", "lesion"})
"""Targets that repeat the mask of a more precise one (BiomedParse writes both, so that either word finds it)."""


@dataclass(frozen=True, kw_only=True)
class Target:
    """A mask with all the words that name it, the most precise first."""

    names: tuple[str, ...]
    mask: np.ndarray

    @property
    def name(self) -> str:
        """The most precise name."""
        return self.names[0]


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One image.

    Attributes:
        image: `(size, size, 3)` uint8.
        targets: distinct masks `(size, size)` bool; none on an image without findings.
        dataset, modality, site, patient, diagnosis, path: as in the manifest.
        questions: pairs of question and answer, where the source has them.
        complete: every structure that the data set knows is annotated, so that what has no mask is absent.
        nearby: targets as a neighbouring slice of the same volume shows them, there or not on this one.
    """

    image: np.ndarray
    targets: tuple[Target, ...]
    dataset: str
    modality: str
    site: str
    patient: str
    diagnosis: str | None
    path: str
    questions: tuple[tuple[str, str], ...] = ()
    complete: bool = False
    nearby: tuple[Target, ...] = ()


def load_samples(
    root: Path,
    *,
    split: str,
    manifests: Sequence[str] = ("manifest.jsonl", "negatives.jsonl"),
    size: int | None = None,
    workers: int = 2,
) -> list[Sample]:
    """Read a split into memory.

    Args:
        root: folder of the manifests; paths in them are relative to it.
        split: "train" or "test".
        manifests: files to read; those that do not exist are passed over, except the first.
        size: side of the square that images are letterboxed to; None leaves them as they are, which must then all be
            squares of one size.
        workers: threads that decode images.

    Raises:
        FileNotFoundError: when the first manifest or an image is missing.
    """
    rows: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for position, name in enumerate(manifests):
        path = root / name
        if position and not path.exists():
            continue
        for line in path.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            if row["split"] == split:
                rows[row["image"]].append(row)
    with ThreadPoolExecutor(workers) as pool:
        return list(pool.map(lambda item: read_sample(root, *item, size=size), sorted(rows.items())))


def read_sample(root: Path, image: str, rows: list[dict[str, Any]], *, size: int | None = None) -> Sample:
    """One image and its masks; masks that are equal become one target with several names."""
    first = rows[0]
    names: dict[bytes, list[str]] = defaultdict(list)
    masks: dict[bytes, np.ndarray] = {}
    for row in rows:
        if row["mask"] is None:
            continue
        mask = np.asarray(Image.open(root / row["mask"]).convert("L")) > 127
        key = mask.tobytes()
        masks[key] = mask
        names[key].append(row["target"])
    pixels = np.asarray(Image.open(root / image).convert("RGB"))
    if size is not None and pixels.shape[:2] != (size, size):
        fit = GridTransform.letterbox(pixels.shape[:2], (size, size))
        pixels = fit.image(pixels)
        masks = {key: fit.image(mask.astype(np.float32)) > 0.5 for key, mask in masks.items()}
    targets = [
        Target(names=tuple(sorted(words, key=lambda w: (w in GENERIC, w))), mask=masks[key])
        for key, words in names.items()
    ]
    return Sample(
        image=pixels,
        targets=tuple(sorted(targets, key=lambda t: t.name)),
        dataset=first["dataset"],
        modality=first["modality"],
        site=first["site"],
        patient=str(first["patient"]),
        diagnosis=first.get("diagnosis"),
        path=image,
    )


def hold_out(samples: Iterable[Sample], share: float) -> tuple[list[Sample], list[Sample]]:
    """Split off whole patients for validation, by a hash of their name: the same every time, on every machine."""
    train: list[Sample] = []
    validation: list[Sample] = []
    for sample in samples:
        digest = hashlib.sha256(f"{sample.dataset}/{sample.patient}".encode()).digest()
        (validation if digest[0] / 256 < share else train).append(sample)
    return train, validation


def class_names(samples: Iterable[Sample]) -> list[str]:
    """Precise names of all targets, sorted."""
    return sorted({target.name for sample in samples for target in sample.targets})


def class_modalities(samples: Iterable[Sample], classes: Iterable[str]) -> dict[str, list[str]]:
    """In which modalities each class is shown, sorted; images of unknown modality say nothing."""
    shown: dict[str, set[str]] = {name: set() for name in classes}
    for sample in samples:
        for name in {name for target in sample.targets for name in target.names} & shown.keys():
            shown[name].add(sample.modality)
    return {name: sorted(modalities - {"unknown"}) for name, modalities in shown.items()}


def sampling_weights(samples: Sequence[Sample], power: float = 0.5) -> np.ndarray:
    """Probability of each sample: groups weigh as their size to the `power`, so that small ones are seen enough.

    A group is what a data set shows under one diagnosis, with or without a finding: normal images and rare diagnoses
    would else be lost among the many.
    """
    groups = [(s.dataset, s.diagnosis, bool(s.targets)) for s in samples]
    size = Counter(groups)
    weights = np.array([size[group] ** (power - 1.0) for group in groups], float)
    weights /= weights.sum()
    return weights

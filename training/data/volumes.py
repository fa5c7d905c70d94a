"""Labelled volumes as training slices: also those where a structure has ended, and the masks of their neighbours.

Images of single slices show what somebody found worth showing. In a volume most slices lack most structures, and the
slice next to the last one of the liver looks much like it: only whole volumes teach where something ends.
"""

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np

from medsight_core.errors import InputError
from medsight_core.geometry import GridTransform
from medsight_core.imaging.volume import Volume, open_volume
from medsight_core.imaging.windowing import display
from training.data.biomedparse import Sample, Target

ENTRY = frozenset({"labels", "site", "whole", "without"})
"""Keys of an entry of `use`."""

MODALITIES = {"MR": "MRI"}
"""Names of the viewer that the data sets spell otherwise."""


def load_volumes(
    manifest: Path, use: list[dict[str, Any]], *, classes: Collection[str], size: int = 256
) -> list[Sample]:
    """Every slice of labelled volumes.

    Args:
        manifest: a row per file, beside the files: `file`, and for label maps `image` and `labels` (value to name).
        use: which label maps, each with `labels` (the file), `site`, and optionally `whole` (a name for all labels
            together) and `without` (only slices that lack this structure).
        classes: names that the model knows; other labels are left alone.
        size: side of the square that slices are letterboxed to.

    Raises:
        InputError: when there is no such manifest, it has no such label map, or an entry has an unknown key.
    """
    if not manifest.exists():
        raise InputError(
            "missing_data",
            f"There is no manifest of labelled volumes {manifest}.",
            "Set data.volumes.manifest, or data.volumes=null to train without volumes.",
        )
    rows = {row["file"]: row for row in map(json.loads, manifest.read_text(encoding="utf-8").splitlines())}
    samples: list[Sample] = []
    for entry in use:
        if unknown := sorted(set(entry) - ENTRY):
            raise InputError(
                "bad_recipe", f"A volume has no setting {', '.join(unknown)}.", f"It has {', '.join(sorted(ENTRY))}."
            )
        if entry["labels"] not in rows:
            raise InputError(
                "missing_data",
                f"{manifest} has no label map {entry['labels']}.",
                f"It has {', '.join(sorted(name for name, row in rows.items() if row.get('labels')))}.",
            )
        row = rows[entry["labels"]]
        samples += slices(manifest.parent, row, entry, frozenset(classes), size)
    return samples


def slices(root: Path, row: dict[str, Any], entry: dict[str, Any], classes: frozenset[str], size: int) -> list[Sample]:
    """The slices of one volume with its label map."""
    volume, labels = open_volume(root / row["image"]), open_volume(root / row["file"])
    if volume.array.shape[:3] != labels.array.shape or not labels.require_frame().is_close(volume.require_frame()):
        raise ValueError(f"{row['file']} does not lie on the grid of {row['image']}")
    names = {int(value): name for value, name in row["labels"].items()}
    annotated = [
        targets_of(labels.slice_array(k), names, classes, entry.get("whole"), size) for k in range(labels.n_slices)
    ]
    samples = []
    for k, targets in enumerate(annotated):
        if entry.get("without") in {name for target in targets for name in target.names}:
            continue
        around = [annotated[n] for n in (k - 1, k + 1) if 0 <= n < len(annotated)]
        samples.append(
            Sample(
                image=picture(volume, k, size),
                targets=targets,
                dataset=f"volumes of the {entry['site']}",
                modality=MODALITIES.get(volume.modality, volume.modality),
                site=entry["site"],
                patient=Path(row["image"]).name.split(".")[0],
                diagnosis=None,
                path=f"{row['image']}#{k}",
                complete=True,
                nearby=tuple(target for neighbour in around for target in neighbour),
            )
        )
    return samples


def targets_of(
    values: np.ndarray, names: dict[int, str], classes: frozenset[str], whole: str | None, size: int
) -> tuple[Target, ...]:
    """Masks of one slice; a label that is all there is of the whole shares the whole's mask, as one more name of it."""
    present = {name: values == value for value, name in names.items() if (values == value).any()}
    targets = [
        Target(names=(name,), mask=boxed(mask, size))
        for name, mask in sorted(present.items())
        if name in classes and (whole is None or len(present) > 1)
    ]
    if whole and present:
        words = tuple(sorted((whole, *present))) if len(present) == 1 else (whole,)
        targets.append(Target(names=words, mask=boxed(np.logical_or.reduce(list(present.values())), size)))
    return tuple(targets)


def picture(volume: Volume, k: int, size: int) -> np.ndarray:
    """A slice as the model sees it, before its normalisation."""
    shown = display(volume, k)
    return GridTransform.letterbox(shown.shape[:2], (size, size)).image(shown)


def boxed(mask: np.ndarray, size: int) -> np.ndarray:
    """A mask on the same square."""
    return GridTransform.letterbox(mask.shape, (size, size)).image(mask.astype(np.float32)) > 0.5

"""Reading a manifest: one sample per image, precise names first, patients never on both sides."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from training.data.biomedparse import (
    Sample,
    Target,
    class_modalities,
    class_names,
    hold_out,
    load_samples,
    sampling_weights,
)

SIDE = 16


def box(row: int, column: int) -> np.ndarray:
    mask = np.zeros((SIDE, SIDE), np.uint8)
    mask[row : row + 4, column : column + 4] = 255
    return mask


def row(image: str, target: str | None, mask: str | None, **more: Any) -> dict[str, Any]:
    base = {"image": image, "mask": mask, "target": target, "dataset": "D", "modality": "CT", "site": "abdomen"}
    return base | {"patient": 7, "split": "train"} | more


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in ("a", "b", "c", "empty"):
        pixels = np.full((SIDE, SIDE, 3 if name == "a" else 1), ord(name[0]), np.uint8).squeeze()
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
    for name, mask in {"liver": box(1, 2), "yolk sac tumor": box(8, 8), "tumor": box(8, 8), "other": box(3, 9)}.items():
        Image.fromarray(mask).save(tmp_path / f"{name}_mask.png")
    rows = [
        row("a.png", "tumor", "tumor_mask.png", diagnosis="low grade"),
        row("a.png", "liver", "liver_mask.png"),
        row("a.png", "yolk sac tumor", "yolk sac tumor_mask.png"),
        row("b.png", "liver", "liver_mask.png", patient=8),
        row("c.png", "other", "other_mask.png", split="test"),
    ]
    (tmp_path / "manifest.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    (tmp_path / "negatives.jsonl").write_text(json.dumps(row("empty.png", None, None)), encoding="utf-8")
    return tmp_path


def test_one_sample_per_image(root: Path) -> None:
    """Masks that are equal are one target with several names, the generic one last."""
    first, second, empty = load_samples(root, split="train")
    assert [t.names for t in first.targets] == [("liver",), ("yolk sac tumor", "tumor")]
    assert [t.name for t in first.targets] == ["liver", "yolk sac tumor"]
    np.testing.assert_array_equal(first.targets[1].mask, box(8, 8) > 0)
    np.testing.assert_array_equal(first.targets[0].mask, box(1, 2) > 0)
    assert (first.diagnosis, first.patient, first.modality, first.path) == ("low grade", "7", "CT", "a.png")
    assert [t.name for t in second.targets] == ["liver"] and second.patient == "8"
    assert empty.targets == () and empty.path == "empty.png"
    for sample in (first, second, empty):
        assert sample.image.shape == (SIDE, SIDE, 3) and sample.image.dtype == np.uint8


def test_splits_do_not_mix(root: Path) -> None:
    assert {s.path for s in load_samples(root, split="train")} == {"a.png", "b.png", "empty.png"}
    assert {s.path for s in load_samples(root, split="test")} == {"c.png"}


def test_missing_files(root: Path) -> None:
    """Negatives are optional; the manifest and its images are not."""
    (root / "negatives.jsonl").unlink()
    assert len(load_samples(root, split="train")) == 2
    (root / "liver_mask.png").unlink()
    with pytest.raises(FileNotFoundError, match="liver_mask"):
        load_samples(root, split="train")
    (root / "manifest.jsonl").unlink()
    with pytest.raises(FileNotFoundError, match="manifest"):
        load_samples(root, split="train")


def plain(dataset: str, patient: int, number: int = 0) -> Sample:
    return Sample(
        image=np.zeros((2, 2, 3), np.uint8),
        targets=(),
        dataset=dataset,
        modality="CT",
        site="chest",
        patient=str(patient),
        diagnosis=None,
        path=f"{dataset}/{patient}/{number}.png",
    )


def test_whole_patients_are_held_out() -> None:
    """About the asked share, the same every time and in any order, and no patient on both sides."""
    samples = [plain(d, patient, n) for d in ("A", "B") for patient in range(400) for n in range(2)]
    train, held = hold_out(samples, 0.2)
    assert len(train) + len(held) == len(samples)
    assert not {(s.dataset, s.patient) for s in train} & {(s.dataset, s.patient) for s in held}
    assert len(held) / len(samples) == pytest.approx(0.2, abs=0.05)
    again = hold_out(reversed(samples), 0.2)[1]
    assert {s.path for s in again} == {s.path for s in held}
    assert hold_out(samples, 0.0)[1] == []


def test_small_datasets_are_seen_enough() -> None:
    """A dataset's share grows with the root of its size; its images are equally likely."""
    samples = [plain("large", i) for i in range(100)] + [plain("small", i) for i in range(4)]
    weights = sampling_weights(samples)
    assert weights.sum() == pytest.approx(1)
    assert weights[:100].sum() / weights[100:].sum() == pytest.approx((100 / 4) ** 0.5)
    assert np.ptp(weights[:100]) == 0
    even = sampling_weights(samples, power=0.0)
    assert even[:100].sum() == pytest.approx(even[100:].sum())
    assert sampling_weights(samples, power=1.0) == pytest.approx(np.full(104, 1 / 104))


def test_normal_images_and_rare_diagnoses_are_seen_enough() -> None:
    """Each diagnosis of a data set, and its images without a finding, weigh as the root of their number."""
    finding = (Target(names=("tumor",), mask=np.ones((2, 2), bool)),)
    benign = [replace(plain("D", i), targets=finding, diagnosis="benign") for i in range(100)]
    malignant = [replace(plain("D", i), targets=finding, diagnosis="malignant") for i in range(25)]
    empty = [plain("D", i) for i in range(4)]
    weights = sampling_weights([*benign, *malignant, *empty])
    shares = weights[:100].sum(), weights[100:125].sum(), weights[125:].sum()
    assert np.array(shares) / shares[2] == pytest.approx([5.0, 2.5, 1.0])


def test_class_names_are_the_precise_ones(root: Path) -> None:
    assert class_names(load_samples(root, split="train")) == ["liver", "yolk sac tumor"]


def test_classes_are_shown_in_modalities(root: Path) -> None:
    samples = load_samples(root, split="train")
    samples = [samples[0], replace(samples[1], modality="MRI"), replace(samples[1], modality="unknown")]
    assert class_modalities(samples, ["liver", "spleen", "tumor"]) == {
        "liver": ["CT", "MRI"], "spleen": [], "tumor": ["CT"],
    }  # fmt: skip


def test_the_built_in_model_says_what_was_shown_in_which() -> None:
    folder = Path(__file__).parents[2] / "medsight_core" / "checkpoints" / "medsight-mini"
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    shown = config["class_modalities"]
    assert list(shown) == config["class_names"]
    assert all(modalities and set(modalities) <= set(config["modality_names"]) for modalities in shown.values())
    assert shown["liver"] == ["CT"] and shown["optic disc"] == ["Fundus"]


def test_pictures_of_another_shape_are_letterboxed_with_their_masks(root: Path) -> None:
    wide = np.zeros((SIDE, 2 * SIDE, 3), np.uint8)
    wide[4:12, 8:24] = 250
    Image.fromarray(wide).save(root / "wide.png")
    Image.fromarray(wide[..., 0]).save(root / "wide_mask.png")
    (root / "manifest.jsonl").write_text(json.dumps(row("wide.png", "liver", "wide_mask.png")))
    (sample,) = load_samples(root, split="train", manifests=("manifest.jsonl",), size=64)
    assert sample.image.shape == (64, 64, 3) and sample.targets[0].mask.shape == (64, 64)
    rows, columns = np.nonzero(sample.targets[0].mask)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (24, 39, 16, 47)
    assert (sample.image[sample.targets[0].mask] > 120).all()
    (as_it_is,) = load_samples(root, split="train", manifests=("manifest.jsonl",))
    assert as_it_is.image.shape == wide.shape

"""Images with questions and answers but no masks: VQA-RAD and PathVQA."""

import json
from collections import defaultdict
from pathlib import Path

import numpy as np
from PIL import Image

from medsight_core.geometry import GridTransform
from training.data.biomedparse import Sample

SITES = {"HEAD": "brain", "CHEST": "chest", "ABD": "abdomen"}


def load_vqa(root: Path, *, size: int = 256) -> list[Sample]:
    """Training questions found under `root` (a folder with `vqa_rad` and `pathvqa_sample`); none is an empty list."""
    questions: dict[Path, list[tuple[str, str]]] = defaultdict(list)
    sites: dict[Path, str] = {}
    held_back = test_images(root)
    for table, folder, field in (
        (root / "vqa_rad/trainset.json", root / "vqa_rad/images", "image_name"),
        (root / "pathvqa_sample/train.json", root / "pathvqa_sample", "image_path"),
    ):
        if not table.exists():
            continue
        for row in json.loads(table.read_text(encoding="utf-8")):
            path = folder / row[field]
            if path in held_back or not path.exists():
                continue
            answer = str(row["answer"]).strip()
            questions[path].append((str(row["question"]).strip(), answer[:1].upper() + answer[1:] + "."))
            sites[path] = SITES.get(row.get("image_organ", ""), "tissue")
    return [vqa_sample(path, tuple(asked), sites[path], size) for path, asked in sorted(questions.items())]


def test_images(root: Path) -> set[Path]:
    """Images that occur in a test set: the sets share images, and nothing of a test is trained on."""
    table = root / "vqa_rad/testset.json"
    if not table.exists():
        return set()
    return {root / "vqa_rad/images" / row["image_name"] for row in json.loads(table.read_text(encoding="utf-8"))}


def vqa_sample(path: Path, questions: tuple[tuple[str, str], ...], site: str, size: int) -> Sample:
    """One image, letterboxed."""
    image = np.asarray(Image.open(path).convert("RGB"))
    return Sample(
        image=GridTransform.letterbox(image.shape[:2], (size, size)).image(image),
        targets=(),
        dataset="VQA",
        modality="unknown",
        site=site,
        patient=path.stem,
        diagnosis=None,
        path=path.name,
        questions=questions,
    )

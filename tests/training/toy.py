"""A toy data set and recipe: squares and discs on noise, small enough to train all stages on in seconds."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

SIDE = 64


def write_dataset(root: Path, *, images: int = 12) -> Path:
    """A BiomedParse-like folder with two data sets of two modalities, and images without findings."""
    rng = np.random.default_rng(0)
    rows, negatives = [], []
    for number in range(images):
        modality, dataset, site = (("CT", "Squares", "abdomen"), ("Dermoscopy", "Discs", "skin"))[number % 2]
        pixels = rng.integers(20, 70, (SIDE, SIDE), dtype=np.uint8)
        y, x = rng.integers(12, 36, 2)
        if number % 2:
            grid = np.indices((SIDE, SIDE))
            mask = (grid[0] - y - 8) ** 2 + (grid[1] - x - 8) ** 2 < 81
        else:
            mask = np.zeros((SIDE, SIDE), bool)
            mask[y : y + 16, x : x + 14] = True
        pixels[mask] = 210
        name = f"{number:03d}_{modality}_{site}"
        folder = root / dataset
        for part in ("train", "train_mask"):
            (folder / part).mkdir(parents=True, exist_ok=True)
        image = f"{dataset}/train/{name}.png"
        Image.fromarray(pixels).convert("RGB").save(root / image)
        common = {
            "dataset": dataset,
            "split": "train",
            "image": image,
            "modality": modality,
            "site": site,
            "patient": str(number),
        }
        if number >= images - 2:
            negatives.append(common | {"mask": None, "target": None, "diagnosis": "normal"})
            continue
        target = "disc" if number % 2 else "square"
        path = f"{dataset}/train_mask/{name}_{target}.png"
        Image.fromarray(mask.astype(np.uint8) * 255).save(root / path)
        rows.append(common | {"mask": path, "target": target, "diagnosis": f"{target} disease"})
        if number % 2:
            rows.append(common | {"mask": path, "target": "lesion", "diagnosis": f"{target} disease"})
    (root / "manifest.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (root / "negatives.jsonl").write_text("\n".join(map(json.dumps, negatives)))
    return root


def toy_recipe(root: Path) -> dict[str, Any]:
    """A recipe whose stages take seconds."""
    loop = {"steps": 3, "learning_rate": 1e-3}
    return {
        "seed": 0,
        "data": {"root": str(root), "vqa": None, "validation": 0.2},
        "input": {"size": SIDE, "patch_size": 16, "mean": 0.5, "std": 0.25},
        "model": {
            "vision_config": {
                "model_type": "convnextv2",
                "hidden_sizes": [8, 16, 16, 16],
                "depths": [1, 1, 1, 1],
                "image_size": SIDE,
            },
            "vision_feature_layer": [3, 4],
            "detail_layers": [2, 1],
            "detail_from_pixels": True,
            "text_config": {
                "model_type": "qwen3",
                "vocab_size": 512,
                "hidden_size": 32,
                "intermediate_size": 48,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "num_key_value_heads": 2,
                "head_dim": 16,
                "max_position_embeddings": 512,
                "tie_word_embeddings": True,
            },
            "tie_word_embeddings": True,
            "region_dim": 16,
            "num_region_queries": 4,
            "perceiver_stages": 3,
            "perceiver_heads": 2,
            "perceiver_head_dim": 8,
            "perceiver_ff_mult": 2,
            "modality_names": ["CT", "Dermoscopy"],
            "codes_per_group": 4,
            "code_dim": 8,
            "visual_token_pooling": 2,
            "mask_decoder": "head",
        },
        "loop": {"threads": 1, "precision": "fp32", "save_every": 0},
        "conversations": {"images": 2, "turns": 2, "size": SIDE},
        "stages": {
            1: {"loop": loop, "stage": {"batch": 2, "sizes": [[0.5, 32], [0.5, 64]]}},
            2: {"loop": loop, "stage": {"train_language_model": True}},
            3: {"codebook": {"loop": loop, "stage": {"revive_every": 2}}, "align": {"loop": loop}},
            4: {"loop": loop},
        },
    }

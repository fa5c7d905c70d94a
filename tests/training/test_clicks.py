"""People who point, with a real tiny model that looks at what they drew."""

from pathlib import Path

import numpy as np
import pytest
import torch

from medsight_core.model import MedSightForConditionalGeneration, MedSightProcessor
from tests.training import toy
from training.build import new_model, new_processor
from training.clicks import go_on, point_at, rasters
from training.data.augment import Batch, augment
from training.data.biomedparse import load_samples
from training.grounded import normalise


@pytest.fixture(scope="module")
def batch(tmp_path_factory: pytest.TempPathFactory) -> Batch:
    data = toy.write_dataset(tmp_path_factory.mktemp("data"))
    return augment(load_samples(data, split="train"), size=toy.SIDE, rng=np.random.default_rng(0), strength=0.0)


RECIPE = toy.toy_recipe(Path("nowhere"))
CONFIG = RECIPE["model"] | {"class_names": ["disc", "square"]}


@pytest.fixture(scope="module")
def processor() -> MedSightProcessor:
    return new_processor(RECIPE["input"], CONFIG, ["a square and a disc"] * 5)


@pytest.fixture(scope="module")
def model(processor: MedSightProcessor) -> MedSightForConditionalGeneration:
    return new_model(CONFIG, processor, seed=0).eval()


def test_a_share_of_the_images_is_pointed_at(batch: Batch) -> None:
    rng = np.random.default_rng(0)
    assert point_at(batch, rng, share=0.0, misplaced=0.0) == [None] * len(batch.samples)
    for pointing, sample in zip(point_at(batch, rng, share=1.0, misplaced=0.0), batch.samples, strict=True):
        assert pointing is not None
        assert (pointing.under is None) == (not sample.targets)


def test_rasters_are_empty_where_nothing_was_drawn(batch: Batch) -> None:
    pointings = point_at(batch, np.random.default_rng(1), share=0.5, misplaced=0.0)
    drawn = rasters(pointings, 32).flatten(1).amax(1) > 0
    assert drawn.tolist() == [pointing is not None for pointing in pointings]


def test_the_next_step_carries_the_answer_and_a_click(
    batch: Batch, model: MedSightForConditionalGeneration, processor: MedSightProcessor
) -> None:
    """Prompts at nothing stay as they are; the others send what the model answered and mean what they did."""
    rng = np.random.default_rng(2)
    first = point_at(batch, rng, share=1.0, misplaced=0.3)
    vision = model.model.vision(normalise(batch.images, processor))
    next_ones = go_on(model.model, vision, batch, first, rng)
    with torch.no_grad():
        seen = model.model.perceive(vision, rasters(first, 32)).regions.mask_logits[:, -1] > 0
    corrected = 0
    for before, after, guess in zip(first, next_ones, seen, strict=True):
        if before is None or before.drawn is None:
            assert after is before
            continue
        assert after is not None and after.under == after.drawn == before.drawn
        masks = [mark.mask for mark in after.marks if mark.kind == "mask"]
        assert len(masks) == bool(guess.any()) and all((mask == guess.numpy()).all() for mask in masks)
        corrected += after.marks[-1].kind == "point" or after.marks[-2].kind == "point"
    assert corrected

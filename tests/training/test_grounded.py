"""Which images conversations are about."""

from pathlib import Path

import numpy as np
import pytest

from tests.training import toy
from training.build import new_model, new_processor
from training.data.biomedparse import load_samples
from training.grounded import Grounded, GroundedConfig


@pytest.mark.parametrize("negatives", [1.0, 4.0])
def test_images_that_show_nothing_can_be_made_likelier(tmp_path: Path, negatives: float) -> None:
    """By the factor that is asked for, each alike; the others keep their shares among themselves."""
    recipe = toy.toy_recipe(tmp_path)
    samples = load_samples(toy.write_dataset(tmp_path / "data"), split="train")
    config = recipe["model"] | {"class_names": ["disc", "square"]}
    processor = new_processor(recipe["input"], config, ["a square and a disc"] * 5)
    model = new_model(config, processor, seed=0)

    def weights(factor: float) -> np.ndarray:
        options = GroundedConfig(size=toy.SIDE, negatives=factor)
        return Grounded(model=model, processor=processor, samples=samples, config=options).weights

    ratio = weights(negatives) / weights(1.0)
    empty = np.array([not sample.targets for sample in samples])
    assert weights(negatives).sum() == pytest.approx(1.0)
    assert ratio[empty] / ratio[~empty][0] == pytest.approx(np.full(empty.sum(), negatives))
    assert np.ptp(ratio[~empty]) == pytest.approx(0.0)

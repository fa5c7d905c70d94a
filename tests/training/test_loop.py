"""The loop on a model of one layer."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from training.loop import LoopConfig, schedule, train


class Line(nn.Module):
    """Two linear layers; only one is to be trained."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.free = nn.Linear(3, 3)
        self.fixed = nn.Linear(3, 1)

    def save_pretrained(self, folder: Path) -> None:
        from safetensors.torch import save_file

        save_file(self.state_dict(), folder / "model.safetensors")

    def tie_weights(self) -> None:
        """Nothing is tied."""


class Stage:
    def __init__(self, *, cheat: bool = False, blow_up: bool = False) -> None:
        self.model = Line()
        self.cheat = cheat
        self.blow_up = blow_up

    def trainable(self, name: str) -> bool:
        return name.startswith("free.")

    def loss(self, step: int, rng: np.random.Generator) -> tuple[Tensor, dict[str, float]]:
        x = torch.from_numpy(rng.normal(size=(8, 3)).astype(np.float32))
        if self.cheat:
            with torch.no_grad():
                self.model.fixed.bias += 1
        y = self.model.fixed(torch.relu(self.model.free(x)))
        loss = (y - x.sum(1, keepdim=True)).square().mean()
        return loss * (float("nan") if self.blow_up else 1.0), {"loss": float(loss.detach())}

    def validate(self, folder: Path, step: int) -> dict[str, float]:
        return {"step": float(step)}

    def after_step(self, step: int) -> dict[str, float]:
        return {}


def config(**changes) -> LoopConfig:
    return LoopConfig(**({"steps": 6, "precision": "fp32", "device": "cpu", "save_every": 3} | changes))


def test_only_the_trained_part_moves(tmp_path: Path) -> None:
    stage, before = Stage(), Line()
    train(stage, config(), tmp_path, quiet=True)
    assert torch.equal(stage.model.fixed.weight, before.fixed.weight)
    assert not torch.equal(stage.model.free.weight, before.free.weight)


def test_a_frozen_parameter_that_moves_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="frozen"):
        train(Stage(cheat=True), config(), tmp_path, quiet=True)


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="not finite at step 0"):
        train(Stage(blow_up=True), config(), tmp_path, quiet=True)


def test_accumulated_batches_weigh_as_one(tmp_path: Path) -> None:
    stage = Stage()
    train(stage, config(accumulate=3, steps=2), tmp_path, quiet=True)
    assert torch.isfinite(stage.model.free.weight).all()


def test_the_rate_rises_then_falls_to_a_hundredth() -> None:
    rates = [schedule(step, config(steps=100, warmup=0.1)) for step in range(100)]
    assert rates[:10] == pytest.approx([0.1 * n for n in range(1, 11)])
    assert all(a >= b for a, b in pairwise(rates[9:]))
    assert rates[-1] == pytest.approx(0.01, abs=0.001)


def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    train(Stage(), config(), tmp_path, quiet=True)
    other = Stage()
    other.model.extra = nn.Linear(1, 1)
    with pytest.raises(RuntimeError, match=r"another model: missing \['extra"):
        train(other, config(steps=9), tmp_path, quiet=True)

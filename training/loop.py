"""The one training loop: accumulation, clipping, warm-up and cosine, mixed precision, checkpoints, curves, pictures.

A stage says what is trained, what a batch is and what its loss is; the loop does the rest. Every batch is a function
of the seed and its step alone, so that a resumed run goes on exactly where it was.
"""

import math
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter
from tqdm.auto import tqdm

from medsight_core.errors import InputError
from training import checkpoint


@dataclass(frozen=True, kw_only=True)
class LoopConfig:
    """How to train, whatever is trained.

    Attributes:
        steps: optimiser steps.
        accumulate: batches per step.
        learning_rate: highest, after the warm-up.
        warmup: share of the steps with a rising rate.
        weight_decay: AdamW's; norms, biases and embeddings have none.
        betas: AdamW's.
        clip: greatest gradient norm.
        precision: "auto" (bf16 where the device has fast bf16), "bf16" or "fp32".
        device: "auto", "cpu", "cuda" …
        threads: CPU threads; 0 leaves torch's choice.
        seed: of batches and initial weights.
        save_every, validate_every: in steps; 0 only at the end.
    """

    steps: int
    accumulate: int = 1
    learning_rate: float = 1e-3
    warmup: float = 0.05
    weight_decay: float = 0.05
    betas: tuple[float, float] = (0.9, 0.98)
    clip: float = 1.0
    precision: str = "auto"
    device: str = "auto"
    threads: int = 0
    seed: int = 0
    save_every: int = 200
    validate_every: int = 0


class Stage(Protocol):
    """What the loop asks of a stage."""

    model: nn.Module

    def trainable(self, name: str) -> bool:
        """Whether the parameter of this name is trained; all others are frozen."""

    def loss(self, step: int, rng: np.random.Generator) -> tuple[Tensor, dict[str, float]]:
        """Loss of the batch of this step, and figures to log."""

    def validate(self, folder: Path, step: int) -> dict[str, float]:
        """Figures on held-out data; pictures go to `folder`."""

    def after_step(self, step: int) -> dict[str, float]:
        """Upkeep after an optimiser step (reviving dead codes); figures to log."""


def train(
    stage: Stage, config: LoopConfig, folder: Path, *, store: checkpoint.Store | None = None, quiet: bool = False
) -> Path:
    """Train `stage`, or go on where `folder` holds a checkpoint.

    Args:
        stage: what is trained, on what.
        config: how.
        folder: of checkpoints, curves and pictures.
        store: what of the model a checkpoint holds; all of it when None.
        quiet: show no bar.

    Returns:
        The folder of the trained model.

    Raises:
        InputError: what is to be trained is held in too few bits, or half of the model is and the loop computes in
            fp32.
        RuntimeError: when a frozen parameter changed, or the loss is not finite.
    """
    if config.threads:
        torch.set_num_threads(config.threads)
    device = torch.device(pick_device(config.device))
    model = stage.model.to(device)
    store = store or checkpoint.WholeModel(model)
    trained = freeze(model, stage)
    check_precision(model, trained, config, device)
    frozen_before = fingerprint(model, trained)
    optimizer = make_optimizer(model, trained, config)
    last = folder / "last"
    start = int(checkpoint.load(last, store, optimizer)["step"]) if last.exists() else 0
    autocast = use_bf16(config.precision, device)
    writer = SummaryWriter(str(folder / "curves"))
    figures: dict[str, list[float]] = defaultdict(list)
    bar = tqdm(range(start, config.steps), initial=start, total=config.steps, disable=quiet, smoothing=0.02)
    began = time.monotonic()
    for step in bar:
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate * group["lr_scale"] * schedule(step, config)
        optimizer.zero_grad(set_to_none=True)
        for part in range(config.accumulate):
            rng = np.random.default_rng([config.seed, step, part])
            torch.manual_seed(int(rng.integers(2**31)))
            with torch.autocast(device.type, torch.bfloat16, enabled=autocast):
                loss, values = stage.loss(step, rng)
            (loss / config.accumulate).backward()
            for name, value in values.items():
                figures[name].append(value)
        norm = nn.utils.clip_grad_norm_([p for p in model.parameters() if p.requires_grad], config.clip)
        if not math.isfinite(float(norm)):
            raise RuntimeError(f"the gradient is not finite at step {step}; lower learning_rate or use precision=fp32")
        optimizer.step()
        for name, value in stage.after_step(step).items():
            figures[name].append(value)
        done = step + 1
        if done % 20 == 0:
            means = {name: float(np.mean(values)) for name, values in figures.items()}
            figures.clear()
            means["learning_rate"] = optimizer.param_groups[0]["lr"]
            means["steps_per_second"] = (done - start) / (time.monotonic() - began)
            for name, value in means.items():
                writer.add_scalar(f"train/{name}", value, done)
            bar.set_postfix({k: f"{v:.3f}" for k, v in list(means.items())[:4]})
        if (config.validate_every and done % config.validate_every == 0) or done == config.steps:
            model.eval()
            with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=autocast):
                scores = stage.validate(folder / "pictures", done)
            for name, value in scores.items():
                writer.add_scalar(f"validation/{name}", value, done)
            bar.write(f"step {done}: " + ", ".join(f"{k} {v:.3f}" for k, v in scores.items()))
            freeze(model, stage)
        if (config.save_every and done % config.save_every == 0) or done == config.steps:
            checkpoint.save(last, store, optimizer, {"step": done, "seed": config.seed})
    writer.close()
    if fingerprint(model, trained) != frozen_before:
        raise RuntimeError("a frozen parameter changed during training; this is a fault of the stage")
    return last


def freeze(model: nn.Module, stage: Stage) -> set[str]:
    """Train mode and gradients for what the stage trains, evaluation mode for every other module."""
    trained = {name for name, _ in model.named_parameters() if stage.trainable(name)}
    if not trained:
        raise ValueError("the stage trains no parameter; its names no longer fit the model")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in trained)
    for name, module in model.named_modules():
        own = {f"{name}.{p}" if name else p for p, _ in module.named_parameters()}
        module.training = not own or bool(own & trained) or getattr(module, "gradient_checkpointing", False)
    return trained


def check_precision(model: nn.Module, trained: set[str], config: LoopConfig, device: torch.device) -> None:
    """Steps of training are too small for weights of 16 bits, and matrices of different types do not multiply.

    Raises:
        InputError: bad_precision.
    """
    small = [name for name, value in model.named_parameters() if value.dtype in (torch.bfloat16, torch.float16)]
    if wrong := [name for name in small if name in trained]:
        raise InputError(
            "bad_precision",
            f"{len(wrong)} tensors that are to be trained are held in 16 bits, such as {wrong[0]}.",
            "Leave language_model.dtype at float32 for this stage, or train it with --lora.",
        )
    if small and not use_bf16(config.precision, device):
        raise InputError(
            "bad_precision",
            "The language model is held in 16 bits, and the loop computes in fp32.",
            "Set loop.precision=bf16.",
        )


def fingerprint(model: nn.Module, trained: set[str]) -> dict[str, float]:
    """Sums of all frozen parameters, and of the buffers of frozen modules, to prove that they did not change."""
    parameters = dict(model.named_parameters())  # shared parameters once, under their first name
    modules = {name.rpartition(".")[0] for name in trained}
    frozen = {name: value for name, value in parameters.items() if name not in trained}
    frozen |= {name: value for name, value in model.named_buffers() if name.rpartition(".")[0] not in modules}
    return {name: float(value.detach().abs().sum(dtype=torch.float64)) for name, value in frozen.items()}


def make_optimizer(model: nn.Module, trained: set[str], config: LoopConfig) -> torch.optim.AdamW:
    """AdamW; vectors and tables of words or queries without weight decay."""

    def decays(name: str, parameter: nn.Parameter) -> bool:
        return parameter.ndim > 1 and not any(table in name for table in ("embed", "queries", "lm_head"))

    named = [(n, p) for n, p in model.named_parameters() if n in trained]
    decay = [p for n, p in named if decays(n, p)]
    rest = [p for n, p in named if not decays(n, p)]
    groups = [
        {"params": decay, "weight_decay": config.weight_decay, "lr_scale": 1.0},
        {"params": rest, "weight_decay": 0.0, "lr_scale": 1.0},
    ]
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=tuple(config.betas))


def schedule(step: int, config: LoopConfig) -> float:
    """Linear warm-up, then a cosine to one hundredth of the rate."""
    warm = max(1, round(config.warmup * config.steps))
    if step < warm:
        return (step + 1) / warm
    share = (step - warm) / max(1, config.steps - warm)
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * share))


def pick_device(wish: str) -> str:
    """The wish, or the best device there is."""
    if wish != "auto":
        return wish
    return "cuda" if torch.cuda.is_available() else "cpu"


def use_bf16(precision: str, device: torch.device) -> bool:
    """Whether to compute in bf16."""
    if precision == "auto":
        if device.type == "cuda":
            return bool(torch.cuda.is_bf16_supported())
        return bool(torch.cpu._is_amx_tile_supported())
    return precision == "bf16"

"""Checkpoints of a run: model, optimiser and progress, in safetensors and JSON, written whole or not at all."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn


def save(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, progress: dict[str, Any]) -> None:
    """Write a checkpoint beside the old one, then put it in its place."""
    part = folder.with_name(folder.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    model.save_pretrained(part)
    tensors: dict[str, Tensor] = {}
    for index, state in optimizer.state_dict()["state"].items():
        tensors |= {f"{index}.{key}": value.contiguous() for key, value in state.items()}
    save_file(tensors, part / "optimizer.safetensors")
    (part / "progress.json").write_text(json.dumps(progress))
    old = folder.with_name(folder.name + ".old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        os.replace(folder, old)
    os.replace(part, folder)
    shutil.rmtree(old, ignore_errors=True)


def load(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Restore a checkpoint into `model` and `optimizer`; returns its progress.

    Raises:
        FileNotFoundError: when there is none.
        RuntimeError: when its tensors are not those of the model.
    """
    result = model.load_state_dict(load_file(folder / "model.safetensors"), strict=False)
    missing = set(result.missing_keys) - set(getattr(model, "_tied_weights_keys", None) or ())
    if missing or result.unexpected_keys:
        raise RuntimeError(
            f"the checkpoint in {folder} is of another model: missing {sorted(missing)[:5]}, "
            f"unexpected {sorted(result.unexpected_keys)[:5]}; use another run folder"
        )
    model.tie_weights()
    state = optimizer.state_dict()
    state["state"] = {}
    for name, value in load_file(folder / "optimizer.safetensors").items():
        index, key = name.split(".", 1)
        state["state"].setdefault(int(index), {})[key] = value
    optimizer.load_state_dict(state)
    progress: dict[str, Any] = json.loads((folder / "progress.json").read_text())
    return progress

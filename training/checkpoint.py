"""Checkpoints of a run: weights, optimiser and progress, in safetensors and JSON, written whole or not at all."""

import json
import os
import shutil
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

INDEX = "model.safetensors.index.json"


class Store(Protocol):
    """What of a model a checkpoint holds."""

    def write(self, folder: Path) -> None:
        """Put it into an empty folder."""

    def read(self, folder: Path) -> None:
        """Put what `write` wrote back into the model.

        Raises:
            RuntimeError: when it is of another model.
        """


class WholeModel:
    """All of a model's weights."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def write(self, folder: Path) -> None:
        """See `Store`."""
        self.model.save_pretrained(folder)

    def read(self, folder: Path) -> None:
        """See `Store`; shard by shard, so that no more than one is in memory beside the model."""
        missing, unexpected = set(self.model.state_dict()), set()
        for file in weight_files(folder):
            tensors = load_file(file)
            missing -= set(tensors)
            unexpected |= set(self.model.load_state_dict(tensors, strict=False).unexpected_keys)
        missing -= set(getattr(self.model, "_tied_weights_keys", None) or ())
        if missing or unexpected:
            raise RuntimeError(
                f"the checkpoint in {folder} is of another model: missing {sorted(missing)[:5]}, "
                f"unexpected {sorted(unexpected)[:5]}; use another run folder"
            )
        self.model.tie_weights()


def weight_files(folder: Path) -> list[Path]:
    """The files of a saved model."""
    if not (folder / INDEX).exists():
        return [folder / "model.safetensors"]
    table = json.loads((folder / INDEX).read_text())["weight_map"]
    return [folder / name for name in sorted(set(table.values()))]


def save(folder: Path, store: Store, optimizer: torch.optim.Optimizer, progress: dict[str, Any]) -> None:
    """Write a checkpoint beside the old one, then put it in its place."""
    part = folder.with_name(folder.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    store.write(part)
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


def load(folder: Path, store: Store, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Restore a checkpoint into `store` and `optimizer`; returns its progress.

    Raises:
        FileNotFoundError: when there is none.
        RuntimeError: when its tensors are not those of the model.
    """
    store.read(folder)
    state = optimizer.state_dict()
    state["state"] = {}
    for name, value in load_file(folder / "optimizer.safetensors").items():
        index, key = name.split(".", 1)
        state["state"].setdefault(int(index), {})[key] = value
    optimizer.load_state_dict(state)
    progress: dict[str, Any] = json.loads((folder / "progress.json").read_text())
    return progress

"""Tiny checkpoints, saved and opened again as any other."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from medsight_core.inference.checkpoint import open_checkpoint
from medsight_core.inference.engine import Engine
from medsight_core.inference.loading import load
from tests.inference.tiny import ScriptedHead, save_tiny

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole checkpoint; tests that damage it take a copy."""
    return save_tiny(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def engine(checkpoint: Path) -> Engine:
    """An engine on `checkpoint`."""
    return Engine.from_pretrained(checkpoint, device="cpu")


@pytest.fixture
def scripted(checkpoint: Path) -> Callable[..., Engine]:
    """Makes an engine that writes given texts; everything but the choice of words is the real thing."""

    def make(*texts: str, folder: Path = checkpoint) -> Engine:
        model, processor = load(open_checkpoint(folder))
        tokenizer = processor.tokenizer
        scripts = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
        model.lm_head = ScriptedHead(
            scripts, vocab_size=model.config.text_config.vocab_size, stop=tokenizer.eos_token_id
        )
        return Engine(model=model, processor=processor, name="scripted", digest="0" * 16)

    return make

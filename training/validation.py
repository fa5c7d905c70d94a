"""A quick look at the speaking half on held-out samples: losses, and Dice of each code with the true answer given."""

from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from training.grounded import Grounded
from training.losses import at_size
from training.pictures import overlay_sheet

Scores = dict[tuple[str, str], list[float]]
"""Dice of each mask, by data set and target."""


@torch.no_grad()
def answer_samples(
    grounded: Grounded, folder: Path, step: int, *, codes: bool = True, batches: int = 20
) -> dict[str, float]:
    """Losses and Dice under teacher forcing, by data set and target and over all, with and without a prompt.

    Args:
        grounded: over the held-out samples.
        folder: pictures go there.
        step: for their names.
        codes: False before codes exist.
        batches: how many.
    """
    language: list[float] = []
    dice: Scores = defaultdict(list)
    prompted_dice: Scores = defaultdict(list)
    shown: list[tuple[Tensor, Tensor, Tensor, str]] = []
    for seed in range(batches):
        rng = np.random.default_rng([2, seed])
        scene = grounded.scene(rng)
        batch, features = scene.batch, scene.features
        names = grounded.codes(scene) if codes else []
        asked = grounded.turns(scene, rng)
        texts = grounded.texts(batch, asked, lambda i, t: names[i][t] if codes else "")  # noqa: B023
        model, device = grounded.model, grounded.model.device
        out = model(
            input_ids=texts.input_ids.to(device),
            attention_mask=texts.attention_mask.to(device),
            labels=texts.labels.to(device),
            image_features=features,
            image_index=texts.image.to(device),
            use_cache=False,
        )
        language.append(float(out.loss))
        if not codes or not len(texts.masks):
            continue
        rows, positions = model.code_positions(texts.input_ids.to(device))
        states = model.code_states(out.last_hidden_state, rows, positions)
        logits = model.model.decode_codes(states, features, texts.image.to(device)[rows]).float().cpu()
        turns = [(i, turn) for i, of_image in enumerate(asked) for turn in of_image]
        spoken = [(i, turn, t) for i, turn in turns for t in turn.targets]
        truths = at_size(texts.masks, logits.shape[-2:]) > 0.5
        for (i, turn, t), mask, truth in zip(spoken, logits > 0, truths, strict=True):
            sample = batch.samples[i]
            total = int(mask.sum() + truth.sum())
            value = 2 * int((mask & truth).sum()) / total if total else 1.0
            scores = prompted_dice if turn.prompted else dice
            scores[sample.dataset, sample.targets[t].name].append(value)
            if len(shown) < 36 and len(scores[sample.dataset, sample.targets[t].name]) == 1:
                caption = f"{sample.targets[t].name} {value:.2f}{' prompt' if turn.prompted else ''}"
                shown.append((batch.images[i], mask, truth, caption))
    figures = {"language": float(np.mean(language))}
    if codes:
        overlay_sheet(shown, folder / f"step{step:06d}.png")
        figures["dice"] = macro(dice)
        figures["dice_prompted"] = macro(prompted_dice)
        figures |= {f"{d}/{t}": float(np.mean(v)) for (d, t), v in sorted(dice.items())}
    return figures


def macro(scores: Scores) -> float:
    """Mean of the means."""
    return float(np.mean([np.mean(v) for v in scores.values()])) if scores else float("nan")

"""Matching against a search through every assignment."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from medsight_core.model.perceiver import PerceiverOutput
from training.data.augment import Batch
from training.data.biomedparse import Sample, Target
from training.losses import bce_loss, dice_loss
from training.matching import match, match_images


def case(seed: int, queries: int, targets: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    masks = 3 * torch.randn(queries, 4, 5, generator=generator)
    classes = torch.randn(queries, 4, generator=generator)
    truth = (torch.rand(targets, 4, 5, generator=generator) > 0.5).float()
    return masks, classes, truth, torch.randint(0, 3, (targets,), generator=generator)


def costs(masks: Tensor, classes: Tensor, truth: Tensor, names: Tensor, weights: dict[str, float]) -> list[list[float]]:
    """Cost of every pair `[target][query]`, from the losses themselves."""
    return [
        [
            float(
                weights["bce"] * bce_loss(mask[None], t[None])[0]
                + weights["dice"] * dice_loss(mask[None], t[None])[0]
                - weights["ce"] * F.softmax(logits, -1)[name]
            )
            for mask, logits in zip(masks, classes, strict=True)
        ]
        for t, name in zip(truth, names, strict=True)
    ]


WEIGHTS = st.fixed_dictionaries({name: st.sampled_from([0.0, 0.5, 1.0, 3.0]) for name in ("bce", "dice", "ce")})


@given(seed=st.integers(0, 10_000), queries=st.integers(1, 5), targets=st.integers(1, 4), weights=WEIGHTS)
@settings(max_examples=40, deadline=None)
def test_no_assignment_is_cheaper(seed: int, queries: int, targets: int, weights: dict[str, float]) -> None:
    """The total is the least of all one-to-one assignments, also where targets outnumber the queries."""
    masks, classes, truth, names = case(seed, queries, targets)
    table = costs(masks, classes, truth, names, weights)
    rows, columns = match(masks, classes, truth, names, **weights)
    assert len(rows) == len(columns) == min(queries, targets)
    assert len(set(rows.tolist())) == len(rows) and len(set(columns.tolist())) == len(columns)
    assert columns.tolist() == sorted(columns.tolist())
    found = sum(table[t][q] for q, t in zip(rows.tolist(), columns.tolist(), strict=True))
    if targets <= queries:
        best = min(sum(table[t][q] for t, q in enumerate(chosen)) for chosen in permutations(range(queries), targets))
    else:
        best = min(sum(table[t][q] for q, t in enumerate(chosen)) for chosen in permutations(range(targets), queries))
    assert found == pytest.approx(best, abs=1e-4)


def test_clear_cases() -> None:
    """Each target gets the query that has its shape; equal shapes are told apart by class."""
    truth = torch.zeros(3, 8, 8)
    truth[0, :4] = 1
    truth[1:, 4:, 4:] = 1
    shapes = torch.cat((truth[[1]], truth[[0]], truth[[2]], torch.zeros(1, 8, 8)))
    classes = torch.full((4, 4), -3.0)
    classes[0, 2] = classes[1, 0] = classes[2, 1] = classes[3, 3] = 3.0
    rows, columns = match(20 * (shapes - 0.5), classes, truth, torch.tensor([0, 1, 2]))
    assert columns.tolist() == [0, 1, 2] and rows.tolist() == [1, 2, 0]


def test_no_gradient_and_any_precision() -> None:
    masks, classes, truth, names = case(3, 4, 2)
    expected = match(masks, classes, truth, names)
    found = match(masks.bfloat16().requires_grad_(), classes.bfloat16().requires_grad_(), truth.bool(), names)
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))
    assert not any(t.requires_grad for t in found)


def sample(*names: str) -> Sample:
    blank = np.zeros((8, 8), bool)
    return Sample(
        image=np.zeros((8, 8, 3), np.uint8),
        targets=tuple(Target(names=(name,), mask=blank) for name in names),
        dataset="d",
        modality="CT",
        site="chest",
        patient="1",
        diagnosis=None,
        path="x.png",
    )


def output(masks: Tensor, classes: Tensor) -> PerceiverOutput:
    nothing = torch.zeros(0)
    return PerceiverOutput(
        queries=nothing,
        pixels=nothing,
        mask_logits=masks,
        class_logits=classes,
        stage_mask_logits=(),
        stage_class_logits=(),
    )


def test_images_of_a_batch() -> None:
    """Nothing in view, no pairs; prompt tokens take no part; indices are the batch's."""
    classes = {"liver": 0, "lung": 1, "spleen": 2}
    truth = torch.zeros(3, 4, 5)
    truth[0, :2] = truth[2, 2:] = 1
    batch = Batch(
        images=torch.zeros(3, 3, 8, 10),
        masks=[torch.zeros(0, 4, 5), truth, torch.zeros(1, 4, 5)],
        nearby=[torch.zeros(0, 4, 5)] * 3,
        samples=[sample(), sample("lung", "spleen", "liver"), sample("liver")],
    )
    logits = torch.randn(3, 4, 4, 5, generator=torch.Generator().manual_seed(0))
    logits[1, 2], logits[1, 0] = 20 * (truth[0] - 0.5), 20 * (truth[2] - 0.5)
    logits[1, 3] = logits[1, 2]  # a prompt token with a perfect mask
    named = torch.zeros(3, 4, 4)
    image, query, target = match_images(output(logits, named), batch, classes, queries=3)
    assert (image.tolist(), query.tolist(), target.tolist()) == ([1, 1], [2, 0], [0, 2])


def test_a_batch_without_targets() -> None:
    none = [torch.zeros(0, 4, 5)]
    batch = Batch(images=torch.zeros(1, 3, 8, 10), masks=none, nearby=none, samples=[sample()])
    found = match_images(output(torch.zeros(1, 2, 4, 5), torch.zeros(1, 2, 4)), batch, {}, queries=2)
    assert [t.tolist() for t in found] == [[], [], []]
    assert all(t.dtype == torch.long for t in found)

"""The modality-grouped codebook: nearest in its group, gradients past the choice, dead codes brought back."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from medsight_core.model.codebook import ModalityGroupedCodebook

GROUPS, CODES, WIDTH, DIM = 3, 8, 6, 16


@pytest.fixture
def codebook() -> ModalityGroupedCodebook:
    torch.manual_seed(1)
    book = ModalityGroupedCodebook(
        dim=DIM, code_dim=WIDTH, num_groups=GROUPS, codes_per_group=CODES, num_classes=4, summary_dim=5
    )
    torch.nn.init.normal_(book.codes)
    return book


def regions(count: int = 7) -> Tensor:
    return torch.randn(GROUPS, count, DIM, generator=torch.Generator().manual_seed(2))


GROUP = torch.tensor([2, 0, 1])


def test_nearest_in_the_group(codebook: ModalityGroupedCodebook) -> None:
    """Against a search by hand: the least angle, among the codes of the image's own group."""
    found = codebook(regions(), GROUP)
    assert len(found.index.unique()) > 2, "the case says nothing when every region has the same code"
    for image, group in enumerate(GROUP.tolist()):
        for n, projected in enumerate(found.projected[image].detach()):
            cosines = [float(F.cosine_similarity(projected, code, dim=0)) for code in codebook.codes[group].detach()]
            best = max(range(CODES), key=cosines.__getitem__)
            assert found.index[image, n] == best
            torch.testing.assert_close(found.code[image, n], F.normalize(codebook.codes[group, best], dim=0))


@torch.no_grad()
def test_other_groups_have_no_say(codebook: ModalityGroupedCodebook) -> None:
    before = codebook(regions()[:1], torch.tensor([1]))
    codebook.codes[0] = before.unit[0, 0]  # a perfect answer, in the wrong group
    codebook.codes[2] = before.unit[0, 0]
    after = codebook(regions()[:1], torch.tensor([1]))
    assert torch.equal(before.index, after.index) and torch.equal(before.decoded, after.decoded)


@torch.no_grad()
def test_length_of_codes_does_not_matter(codebook: ModalityGroupedCodebook) -> None:
    before = codebook(regions(), GROUP)
    codebook.codes *= torch.rand(GROUPS, CODES, 1) * 50 + 0.01
    after = codebook(regions(), GROUP)
    assert torch.equal(before.index, after.index)
    torch.testing.assert_close(before.decoded, after.decoded)


@torch.no_grad()
def test_decoded_is_of_the_code_alone(codebook: ModalityGroupedCodebook) -> None:
    """The value is W_m of the chosen code, one row of the table that initialises the vocabulary."""
    found = codebook(regions(), GROUP)
    table = codebook.embeddings()
    assert table.shape == (GROUPS * CODES, DIM)
    torch.testing.assert_close(found.decoded, table[GROUP[:, None] * CODES + found.index], atol=1e-5, rtol=1e-4)


def test_gradient_goes_straight_through(codebook: ModalityGroupedCodebook) -> None:
    """A loss on the decoded embedding moves W_q as if no choice had been made, and does not move the codes."""
    x = regions().requires_grad_()
    found = codebook(x, GROUP)
    weight = torch.randn(found.decoded.shape, generator=torch.Generator().manual_seed(5))
    (found.decoded * weight).sum().backward()
    assert codebook.codes.grad is None or not codebook.codes.grad.any()
    assert x.grad is not None and x.grad.abs().max() > 1e-4
    ours = {name: p.grad.clone() for name, p in codebook.to_code.named_parameters()}

    # By hand: the gradient at the code, handed to the direction that was compared with it.
    code = found.code.detach().requires_grad_()
    (codebook.from_code(code) * weight).sum().backward()
    codebook.to_code.zero_grad()
    F.normalize(codebook.to_code(regions()), dim=-1).backward(code.grad)
    for name, p in codebook.to_code.named_parameters():
        torch.testing.assert_close(ours[name], p.grad, atol=1e-5, rtol=1e-4)


def test_code_carries_the_gradient_of_codes(codebook: ModalityGroupedCodebook) -> None:
    """A loss on the code moves the chosen codes of the groups at hand and nothing else."""
    found = codebook(regions()[:1], torch.tensor([1]))
    found.code.sum().backward()
    assert all(p.grad is None for p in codebook.to_code.parameters())
    moved = codebook.codes.grad.abs().sum(-1) > 0
    expected = torch.zeros(GROUPS, CODES, dtype=torch.bool)
    expected[1, found.index.flatten()] = True
    assert torch.equal(moved, expected)


def test_comparison_keeps_its_precision_under_autocast(codebook: ModalityGroupedCodebook) -> None:
    """Two codes nearer to each other than bfloat16 can tell are still told apart."""
    with torch.no_grad():
        close = F.normalize(torch.randn(WIDTH, generator=torch.Generator().manual_seed(4)), dim=0)
        step = F.normalize(torch.randn(WIDTH, generator=torch.Generator().manual_seed(6)), dim=0) * 2e-3
        codebook.codes[0] = -close
        codebook.codes[0, 3], codebook.codes[0, 5] = close + step, close - step
        codebook.to_code = torch.nn.Sequential()  # the region is its own projection
        towards = torch.stack((close + step, close - step, close + step / 4, close - step / 4))[None]
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = codebook(towards, torch.tensor([0]))
    assert found.index.tolist() == [[3, 5, 3, 5]]
    assert found.unit.dtype == found.code.dtype == torch.float32


def test_autocast_trains(codebook: ModalityGroupedCodebook) -> None:
    """Forward and backward in mixed precision are finite and reach both sides."""
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = codebook(regions(), GROUP)
        masks, classes = codebook.head(found.decoded, torch.randn(GROUPS, 4, 4, DIM))
        loss = masks.float().square().mean() + classes.float().square().mean() + found.code.square().mean()
    loss.backward()
    for part in (codebook.to_code, codebook.from_code, codebook.head):
        for p in part.parameters():
            assert p.grad is not None and p.grad.isfinite().all()


def test_dead_codes_come_back(codebook: ModalityGroupedCodebook) -> None:
    """They take directions that occur in their own group; the living and groups without samples stay as they are."""
    before = codebook.codes.detach().clone()
    dead = torch.zeros(GROUPS, CODES, dtype=torch.bool)
    dead[0, [1, 4]] = dead[1, 0] = dead[2, 7] = True
    groups = torch.tensor([0] * 5 + [2] * 3)
    samples = 7 * torch.randn(8, WIDTH, generator=torch.Generator().manual_seed(8))
    assert codebook.revive(dead, samples, groups) == 3
    revived = dead.clone()
    revived[1] = False
    assert torch.equal(codebook.codes[~revived], before[~revived])
    for group, code in revived.nonzero().tolist():
        cosine = F.cosine_similarity(codebook.codes[group, code].detach()[None], samples[groups == group])
        assert cosine.max() == pytest.approx(1, abs=1e-5)
    first, second = codebook.codes[0, 1], codebook.codes[0, 4]
    assert F.cosine_similarity(first, second, dim=0) < 0.999, "two codes were given the same region"
    assert codebook.codes.requires_grad


def test_the_least_well_served_region_is_first(codebook: ModalityGroupedCodebook) -> None:
    """One dead code, many regions: it goes where the codes are farthest."""
    dead = torch.zeros(GROUPS, CODES, dtype=torch.bool)
    dead[1, 2] = True
    samples = torch.randn(20, WIDTH, generator=torch.Generator().manual_seed(9))
    cosine = F.cosine_similarity(samples[:, None], codebook.codes[1][None], dim=-1).amax(1)
    codebook.revive(dead, samples, torch.ones(20, dtype=torch.long))
    torch.testing.assert_close(codebook.codes[1, 2], F.normalize(samples[cosine.argmin()], dim=0))


def test_fewer_regions_than_dead_codes(codebook: ModalityGroupedCodebook) -> None:
    dead = torch.ones(GROUPS, CODES, dtype=torch.bool)
    samples, groups = torch.randn(2, WIDTH), torch.tensor([1, 1])
    before = codebook.codes.detach().clone()
    assert codebook.revive(dead, samples, groups) == 2
    assert (codebook.codes != before).any(-1).sum() == 2
    assert codebook.revive(torch.zeros_like(dead), samples, groups) == 0


def test_a_revived_code_is_used(codebook: ModalityGroupedCodebook) -> None:
    """A region that lends its direction then chooses that code."""
    found = codebook(regions(), GROUP)
    used = torch.zeros(GROUPS, CODES, dtype=torch.bool)
    used[GROUP[:, None].expand_as(found.index), found.index] = True
    samples = found.projected.detach().flatten(0, 1)
    groups = GROUP.repeat_interleave(found.index.shape[1])
    codebook.revive(~used, samples, groups)
    again = codebook(regions(), GROUP)
    now = torch.zeros_like(used)
    now[GROUP[:, None].expand_as(again.index), again.index] = True
    assert now.sum() > used.sum()

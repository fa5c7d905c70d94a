"""Rules of the region perceiver beyond the reference tensors."""

from __future__ import annotations

from dataclasses import fields

import pytest
import torch
from torch import Tensor

from medsight_core.model.perceiver import (
    CrossAttention,
    PerceiverOutput,
    PerceiverStart,
    RegionPerceiver,
    inside_masks,
    sine_position,
)


def small(*, self_attention: bool = False, num_stacks: int = 1) -> RegionPerceiver:
    torch.manual_seed(0)
    return RegionPerceiver(
        dim=16,
        num_queries=4,
        num_stages=2,
        num_classes=3,
        heads=2,
        head_dim=6,
        ff_mult=2,
        num_stacks=num_stacks,
        self_attention=self_attention,
    ).eval()


@torch.no_grad()
@pytest.mark.parametrize("self_attention", [False, True])
def test_padded_queries_change_nothing(self_attention: bool) -> None:
    """Whatever stands in them, the real queries and the pixels are as if they were not there."""
    perceiver = small(self_attention=self_attention)
    features, queries = torch.randn(2, 3, 5, 16), torch.randn(2, 3, 16)
    expected = perceiver(features, queries)
    padded = torch.cat((queries, 100 * torch.randn(2, 4, 16)), dim=1)
    mask = torch.arange(7)[None].expand(2, -1) < 3
    out = perceiver(features, padded, query_mask=mask)
    torch.testing.assert_close(out.queries[:, :3], expected.queries, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(out.mask_logits[:, :3], expected.mask_logits, atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(out.pixels, expected.pixels, atol=1e-5, rtol=1e-5)
    unmasked = perceiver(features, padded)
    assert not torch.allclose(unmasked.pixels, expected.pixels, atol=1e-2)


@torch.no_grad()
def test_order_of_queries_does_not_matter() -> None:
    """Queries have no position: a permutation of them permutes the masks."""
    perceiver = small()
    features, queries = torch.randn(1, 4, 4, 16), torch.randn(1, 5, 16)
    order = torch.tensor([3, 0, 4, 1, 2])
    out, moved = perceiver(features, queries), perceiver(features, queries[:, order])
    torch.testing.assert_close(out.mask_logits[:, order], moved.mask_logits, atol=1e-4, rtol=1e-5)


@torch.no_grad()
def test_details_enter_after_their_upsampling() -> None:
    """Zeros change nothing, fewer than stages are allowed, and the last may matter only for the finest masks."""
    perceiver = small()
    features = torch.randn(1, 3, 3, 16)
    plain = perceiver(features)
    nothing = (torch.zeros(1, 6, 6, 16), torch.zeros(1, 12, 12, 16))
    assert torch.equal(perceiver(features, details=nothing).mask_logits, plain.mask_logits)
    assert torch.equal(perceiver(features, details=nothing[:1]).mask_logits, plain.mask_logits)
    late = perceiver(features, details=(nothing[0], torch.randn(1, 12, 12, 16)))
    assert torch.equal(late.stage_mask_logits[1], plain.stage_mask_logits[1])
    assert not torch.allclose(late.mask_logits, plain.mask_logits, atol=1e-2)


def test_pixels_inside_a_mask() -> None:
    """Probability 0.5 is inside, just below it is not, also where the grid is finer than the mask."""
    logits = torch.tensor([[[[0.0, -1e-3], [1e-3, -5.0]]]], requires_grad=True)
    inside = inside_masks(logits, (2, 2))
    assert inside.shape == (1, 1, 1, 4) and inside.dtype == torch.bool
    assert inside.flatten().tolist() == [True, False, True, False]
    finer = inside_masks(torch.tensor([[[[3.0, -1.0]]]]), (2, 4))
    assert finer.view(2, 4).tolist() == [[True, True, True, False]] * 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_query_without_pixels_looks_everywhere_alike(dtype: torch.dtype) -> None:
    """Uniform attention whatever the scores; values learn from it as from a mean, scores learn nothing."""
    torch.manual_seed(0)
    attention = CrossAttention(dim=16, heads=2, head_dim=8).to(dtype)
    media, latents = 3 * torch.randn(1, 9, 16, dtype=dtype), 3 * torch.randn(1, 2, 16, dtype=dtype)
    allowed = torch.ones(1, 1, 2, 9, dtype=torch.bool)
    allowed[:, :, 1] = False
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2

    def mean() -> Tensor:
        values = attention.to_kv(attention.norm_media(media)).chunk(2, dim=-1)[1]
        return attention.to_out(values.mean(1))

    out = attention(media, latents, allowed)
    torch.testing.assert_close(out[:, 1], mean(), atol=tolerance, rtol=0)
    assert not torch.allclose(out[:, 0], out[:, 1], atol=5e-2)

    def gradients(result: Tensor) -> dict[str, Tensor]:
        attention.zero_grad()
        result.float().square().sum().backward()
        return {name: p.grad.clone() for name, p in attention.named_parameters() if p.grad is not None}

    ours, expected = gradients(out[:, 1]), gradients(mean())
    assert not ours["to_q.weight"].any()
    for name, gradient in expected.items():
        torch.testing.assert_close(ours[name], gradient, atol=tolerance, rtol=tolerance)


def test_learned_queries_with_prompts_behind() -> None:
    perceiver = small()
    extra = torch.randn(3, 1, 16)
    queries = perceiver.initial_queries(3, extra)
    assert queries.shape == (3, 5, 16)
    assert torch.equal(queries[:, :4], perceiver.region_queries.expand(3, -1, -1))
    assert torch.equal(queries[:, 4:], extra)


def test_position_encoding_tells_rows_from_columns() -> None:
    """First half of the channels along rows, second along columns; the last row is at a full turn on every grid."""
    code = sine_position(4, 6, 16)[0]
    assert (code[:, 0, :8] == code[:, 5, :8]).all() and (code[0, :, 8:] == code[3, :, 8:]).all()
    assert not torch.equal(code[0, 0, :8], code[1, 0, :8])
    for rows in (2, 7):
        torch.testing.assert_close(sine_position(rows, 3, 16)[0, -1, 0, :8], code[-1, 0, :8], atol=1e-4, rtol=0)


def test_width_must_suit_the_position_encoding() -> None:
    with pytest.raises(ValueError, match="region dim is 18"):
        RegionPerceiver(dim=18, num_queries=1, num_stages=1, num_classes=1, heads=1, head_dim=4, ff_mult=1)


def tensors(value: PerceiverOutput | PerceiverStart) -> dict[str, Tensor]:
    """The tensors of a value by name."""
    found = {field.name: getattr(value, field.name) for field in fields(value)}
    return {name: tensor for name, tensor in found.items() if isinstance(tensor, Tensor)}


@pytest.mark.parametrize("num_stacks", [1, 2])
def test_pieces_give_what_the_whole_gives(num_stacks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """With gradients nothing is cut into pieces; without, pieces of 3 pixels are as good as one, with padding too."""
    perceiver = small(num_stacks=num_stacks, self_attention=True)
    features, queries = torch.randn(2, 3, 5, 16), torch.randn(2, 3, 16)
    real = torch.tensor([[True, True, False], [True, True, True]])
    given = {"query_mask": real, "details": (torch.randn(2, 6, 10, 16),)}
    whole = tensors(perceiver(features, queries, **given))
    assert whole["pixels"].requires_grad
    seen: list[int] = []
    perceiver.bi_blocks[-1].ff_image[1].register_forward_hook(lambda _, __, out: seen.append(out.shape[1]))
    monkeypatch.setattr("medsight_core.model.perceiver.PIECE", 2 * 32 * 4 * 3)
    before = features.clone()
    with torch.no_grad():
        pieces = tensors(perceiver(features, queries, **given))
    assert max(seen) == 3 and sum(seen) == 12 * 20
    assert torch.equal(features, before)
    for name, tensor in whole.items():
        scale = tensor.detach().abs().max().item()
        torch.testing.assert_close(pieces[name], tensor.detach(), atol=1e-6 * scale, rtol=0)


@torch.inference_mode()
def test_passes_share_their_start_and_leave_it_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever way a pass goes over the pixels, it writes over none of what the next one begins with."""
    perceiver = small(num_stacks=2)
    features, queries = torch.randn(2, 3, 4, 16), torch.randn(2, 2, 16)
    details = (torch.randn(2, 6, 8, 16), torch.randn(2, 12, 16, 16))
    expected = [tensors(perceiver(features, given, details=details)) for given in (None, queries)]
    start = perceiver.start(features, details=details)
    before = {name: tensor.clone() for name, tensor in tensors(start).items()}
    convolved: list[int] = []
    for number, adapter in enumerate(perceiver.conv_adapters):
        adapter.register_forward_hook(lambda *_, number=number: convolved.append(number))
    for piece in (1, 32 << 20):
        monkeypatch.setattr("medsight_core.model.perceiver.PIECE", piece)
        for given, known in zip((None, queries), expected, strict=True):
            found = tensors(perceiver(start, given, details=details))
            for name, tensor in known.items():
                torch.testing.assert_close(found[name], tensor, atol=2e-5, rtol=1e-5)
    assert convolved == [1, 1, 1, 1], "the first stage is convolved once, in the start"
    for name, tensor in tensors(start).items():
        assert torch.equal(tensor, before[name]), name
    second = start.select(torch.tensor([1]))
    alone = perceiver(features[1:], queries[1:], details=tuple(detail[1:] for detail in details))
    found = perceiver(second, queries[1:], details=tuple(detail[1:] for detail in details))
    torch.testing.assert_close(found.mask_logits, alone.mask_logits, atol=2e-5, rtol=1e-5)
    assert start.select(torch.tensor([0, 1])) is start
    assert start.select(torch.tensor([1, 0])) is not start

"""The region perceiver: queries that find regions, and image features refined until they can be cut into masks.

A set of queries and a grid of patch features look at each other at ever finer resolution. Each stage doubles the
grid, lets the queries read the pixels inside their current mask, and lets the pixels read the queries. One pair of
heads, shared by all stages, turns any query into a mask and a class at any resolution.

The same forward pass serves twice: with its own learned queries it yields the *region tokens* that the language model
reads; with projected code states as queries it decodes *region codes* to masks. Nothing of an image is kept in the
module: what both passes have in common, the first upsampling above all, is a value (`PerceiverStart`) that the first
gives to the second.

Without gradients the widest layers go over the pixels piece by piece, because at 192 x 192 x 1024 the feed-forward
layer alone would otherwise take 600 MB in fp32, twice.

Source: MedSIGHT (ICML 2026), section "Region Perceiver"; parameter names follow the released checkpoint, so that its
tensors load without renaming.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

PIECE: Final = 32 << 20
"""Bytes that the widest layer may take for the pixels that go through it at once, where no gradients are wanted."""


@dataclass(frozen=True, kw_only=True)
class PerceiverStart:
    """What the perceiver makes of images before any query looks at them: the same for every set of queries.

    Attributes:
        coarse: patch features with their positions `(batch, height, width, dim)`.
        coarse_media: keys and values of `coarse` for the first look.
        fine: pixels of the first stage `(batch, 2 * height, 2 * width, dim)`.
        fine_media: keys and values of `fine` for the first block.
        fine_latents: what `fine` asks of the queries in the first block.
    """

    coarse: Tensor
    coarse_media: Tensor
    fine: Tensor
    fine_media: Tensor
    fine_latents: Tensor

    def select(self, images: Tensor) -> "PerceiverStart":
        """The same of some of the images, by their index; no copy where it is all of them."""
        if len(images) == len(self.coarse) and bool((images == torch.arange(len(images), device=images.device)).all()):
            return self
        return PerceiverStart(
            coarse=self.coarse[images],
            coarse_media=self.coarse_media[images],
            fine=self.fine[images],
            fine_media=self.fine_media[images],
            fine_latents=self.fine_latents[images],
        )


@dataclass(frozen=True, kw_only=True)
class PerceiverOutput:
    """What one pass yields.

    Attributes:
        queries: refined queries `(batch, queries, dim)`.
        pixels: finest image features, I_r `(batch, height, width, dim)`.
        mask_logits: `(batch, queries, height, width)` at the finest resolution.
        class_logits: `(batch, queries, classes + 1)`; the last class is "no object".
        stage_mask_logits: the same heads before the first and after every earlier block, coarse to fine.
        stage_class_logits: classes that belong to `stage_mask_logits`.
    """

    queries: Tensor
    pixels: Tensor
    mask_logits: Tensor
    class_logits: Tensor
    stage_mask_logits: tuple[Tensor, ...]
    stage_class_logits: tuple[Tensor, ...]


def sine_position(height: int, width: int, dim: int, *, device: torch.device | None = None) -> Tensor:
    """Sine position encoding normalised to the image, `(1, height, width, dim)` in fp32.

    Rows come first in the channels, then columns; within each half sine and cosine alternate (Mask2Former, DETR).
    """
    half = dim // 2
    rows, columns = (sine_line(length, half, device=device) for length in (height, width))
    grid = (rows[:, None].expand(-1, width, -1), columns[None].expand(height, -1, -1))
    return torch.cat(grid, dim=-1)[None]


def sine_line(length: int, width: int, *, device: torch.device | None = None) -> Tensor:
    """Sine position encoding of the places along one axis, `(length, width)` in fp32."""
    scale, eps = 2 * math.pi, 1e-6
    frequency = 10000 ** (2 * (torch.arange(width, device=device) // 2) / width)
    place = torch.arange(1, length + 1, dtype=torch.float32, device=device)
    angle = (place / (place[-1] + eps) * scale)[:, None] / frequency
    return torch.stack((angle[:, 0::2].sin(), angle[:, 1::2].cos()), dim=2).flatten(1)


class CrossAttention(nn.Module):
    """Latents read media: pre-norm on both sides, no residual inside."""

    def __init__(self, *, dim: int, heads: int, head_dim: int) -> None:
        super().__init__()
        inner = heads * head_dim
        self.heads = heads
        self.norm_media = nn.LayerNorm(dim)
        self.norm_latents = nn.LayerNorm(dim)
        self.to_q = nn.Linear(dim, inner, bias=False)
        self.to_kv = nn.Linear(dim, 2 * inner, bias=False)
        self.to_out = nn.Linear(inner, dim, bias=False)

    def forward(self, media: Tensor, latents: Tensor, allowed: Tensor | None = None) -> Tensor:
        """Attend.

        Args:
            media: what is read, `(batch, m, dim)`.
            latents: who reads, `(batch, n, dim)`.
            allowed: True where a latent may read, broadcastable to `(batch, heads, n, m)`. A latent that may read
                nothing reads everything alike.
        """
        return self.attend(self.media(media), self.latents(latents), allowed)

    def media(self, media: Tensor) -> Tensor:
        """Keys and, behind them, values `(batch, m, 2 * inner)`."""
        return by_pieces(lambda piece: self.to_kv(self.norm_media(piece)), media, widest=self.to_kv.out_features)

    def latents(self, latents: Tensor) -> Tensor:
        """What is asked, `(batch, n, inner)`."""
        return by_pieces(lambda piece: self.to_q(self.norm_latents(piece)), latents, widest=self.to_q.in_features)

    def attend(self, media: Tensor, latents: Tensor, allowed: Tensor | None = None) -> Tensor:
        """As `forward`, of `media` and `latents` as the methods of these names give them."""
        q, (k, v) = latents, media.chunk(2, dim=-1)
        q, k, v = (split_heads(t, self.heads) for t in (q, k, v))
        if allowed is not None:
            # Large negative scores would do the same forward, but a fused kernel's backward then loses log(m) to
            # rounding and returns gradients m times too large; scores of zero are exact both ways.
            nothing = ~allowed.any(-1, keepdim=True)
            q, allowed = q.masked_fill(nothing, 0.0), allowed | nothing
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=allowed)
        return self.to_out(out.transpose(1, 2).flatten(2))


class SelfAttention(nn.Module):
    """Queries read each other (an option the released model leaves off)."""

    def __init__(self, *, dim: int, heads: int, head_dim: int) -> None:
        super().__init__()
        inner = heads * head_dim
        self.heads = heads
        self.norm = nn.LayerNorm(dim)
        self.to_qkv = nn.Linear(dim, 3 * inner, bias=False)
        self.to_out = nn.Linear(inner, dim, bias=False)

    def forward(self, latents: Tensor, allowed: Tensor | None = None) -> Tensor:
        """Attend over `(batch, n, dim)`; `allowed` is True where a latent may be read, `(batch, 1, 1, n)`."""
        q, k, v = (split_heads(t, self.heads) for t in self.to_qkv(self.norm(latents)).chunk(3, dim=-1))
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=allowed)
        return self.to_out(out.transpose(1, 2).flatten(2))


def split_heads(x: Tensor, heads: int) -> Tensor:
    """`(batch, n, heads * head_dim)` to `(batch, heads, n, head_dim)`, heads major."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def feed_forward(dim: int, mult: int) -> nn.Sequential:
    """LayerNorm, widen, exact GELU, narrow; no biases in the linear layers."""
    return nn.Sequential(
        nn.LayerNorm(dim),
        nn.Linear(dim, dim * mult, bias=False),
        nn.GELU(),
        nn.Linear(dim * mult, dim, bias=False),
    )


class ConvAdapter(nn.Module):
    """Doubles the grid: bilinear upsampling, then a 3x3 convolution. `(batch, h, w, dim)` to `(batch, 2h, 2w, dim)`."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(dim, dim, kernel_size=3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Upsample; the permuted view is already channels-last in memory, so that no copy is made."""
        x = F.interpolate(x.permute(0, 3, 1, 2), scale_factor=2, mode="bilinear", align_corners=False)
        return self.conv(x).permute(0, 2, 3, 1)


class BidirectionalBlock(nn.Module):
    """Queries read pixels inside their masks, then pixels read queries; each half ends in a feed-forward layer."""

    def __init__(self, *, dim: int, heads: int, head_dim: int, ff_mult: int, self_attention: bool) -> None:
        super().__init__()
        attention = {"dim": dim, "heads": heads, "head_dim": head_dim}
        self.region_to_image = CrossAttention(**attention)
        self.region_to_image_norm = nn.LayerNorm(dim)
        self.region_self_attn = SelfAttention(**attention) if self_attention else None
        self.region_self_attn_norm = nn.LayerNorm(dim) if self_attention else None
        self.ff_region = feed_forward(dim, ff_mult)
        self.ff_region_norm = nn.LayerNorm(dim)
        self.image_to_region = CrossAttention(**attention)
        self.image_to_region_norm = nn.LayerNorm(dim)
        self.ff_image = feed_forward(dim, ff_mult)
        self.ff_image_norm = nn.LayerNorm(dim)

    def forward(
        self,
        queries: Tensor,
        pixels: Tensor,
        inside: Tensor,
        real: Tensor | None,
        start: PerceiverStart | None = None,
    ) -> tuple[Tensor, Tensor]:
        """One exchange. Without gradients the pixels are written over, unless they are those of a `start`.

        Args:
            queries: `(batch, n, dim)`.
            pixels: `(batch, height * width, dim)`.
            inside: True where a pixel lies in a query's mask `(batch, 1, n, height * width)`.
            real: False where a query is padding `(batch, 1, 1, n)`; None when all are real.
            start: where `pixels` and what this block asks and reads of them come from; for the first block.
        """
        media = self.region_to_image.media(pixels) if start is None else start.fine_media
        queries = self.region_to_image_norm(
            self.region_to_image.attend(media, self.region_to_image.latents(queries), inside) + queries
        )
        del media
        if self.region_self_attn is not None and self.region_self_attn_norm is not None:
            queries = self.region_self_attn_norm(self.region_self_attn(queries, real) + queries)
        queries = self.ff_region_norm(self.ff_region(queries) + queries)
        said = self.image_to_region.media(queries)

        def answer(piece: Tensor, latents: Tensor | None = None) -> Tensor:
            latents = self.image_to_region.latents(piece) if latents is None else latents
            piece = self.image_to_region_norm(self.image_to_region.attend(said, latents, real) + piece)
            return self.ff_image_norm(self.ff_image(piece) + piece)

        widest = self.ff_image[1].out_features
        if start is None:
            return queries, by_pieces(answer, pixels, widest=widest, out=pixels)
        return queries, by_pieces(answer, pixels, start.fine_latents, widest=widest)


class SegmentationHead(nn.Module):
    """A query against pixels is a mask; a query alone is a class."""

    def __init__(self, *, dim: int, num_classes: int) -> None:
        super().__init__()
        self.proj = nn.Linear(dim, dim)
        self.proj.initial_gain = 0.2  # masks start undecided
        self.class_embed = nn.Linear(dim, num_classes + 1)

    def masks(self, queries: Tensor, pixels: Tensor) -> Tensor:
        """Logits `(batch, n, height, width)` of queries `(batch, n, dim)` on pixels `(batch, height, width, dim)`."""
        flat = torch.bmm(self.proj(queries), pixels.flatten(1, 2).to(queries.dtype).transpose(1, 2))
        return flat.unflatten(-1, pixels.shape[1:3])

    def forward(self, queries: Tensor, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Mask logits and class logits `(batch, n, classes + 1)`."""
        return self.masks(queries, pixels), self.class_embed(queries)


class RegionPerceiver(nn.Module):
    """Learned region queries, `num_stages` of upsampling and mutual attention, shared heads.

    Args:
        dim: width of queries and pixels.
        num_queries: learned region queries, N in the paper.
        num_stages: doublings of the grid, L in the paper.
        num_stacks: blocks per stage.
        heads, head_dim: attention; `heads * head_dim` may differ from `dim`.
        ff_mult: widening of the feed-forward layers.
        num_classes: classes without "no object".
        self_attention: let queries read each other in every block.
    """

    def __init__(
        self,
        *,
        dim: int,
        num_queries: int,
        num_stages: int,
        num_classes: int,
        heads: int,
        head_dim: int,
        ff_mult: int,
        num_stacks: int = 1,
        self_attention: bool = False,
    ) -> None:
        super().__init__()
        if dim % 4:
            raise ValueError(f"region dim is {dim}; the sine position encoding needs a multiple of 4")
        self.num_stacks = num_stacks
        self.gradient_checkpointing = False
        self.region_queries = nn.Parameter(torch.randn(1, num_queries, dim) * 0.02)
        self.init_cross_attn = CrossAttention(dim=dim, heads=heads, head_dim=head_dim)
        self.init_cross_norm = nn.LayerNorm(dim)
        self.init_ff = feed_forward(dim, ff_mult)
        self.init_ff_norm = nn.LayerNorm(dim)
        self.conv_adapters = nn.ModuleList(ConvAdapter(dim) for _ in range(num_stages))
        self.bi_blocks = nn.ModuleList(
            BidirectionalBlock(dim=dim, heads=heads, head_dim=head_dim, ff_mult=ff_mult, self_attention=self_attention)
            for _ in range(num_stages * num_stacks)
        )
        self.segmentation_cls_head = SegmentationHead(dim=dim, num_classes=num_classes)

    def initial_queries(self, batch: int, extra: Tensor | None = None) -> Tensor:
        """The learned queries for a batch, with `extra` `(batch, e, dim)` (prompt tokens) behind them."""
        queries = self.region_queries.expand(batch, -1, -1)
        return queries if extra is None else torch.cat((queries, extra.to(queries.dtype)), dim=1)

    def start(self, features: Tensor, *, details: tuple[Tensor, ...] = ()) -> PerceiverStart:
        """What does not depend on the queries; see `forward` for the arguments."""
        coarse = add_position(features)
        fine = self.finer(0, coarse, details)
        block: BidirectionalBlock = self.bi_blocks[0]
        return PerceiverStart(
            coarse=coarse,
            coarse_media=self.init_cross_attn.media(coarse.flatten(1, 2)),
            fine=fine,
            fine_media=block.region_to_image.media(fine.flatten(1, 2)),
            fine_latents=block.image_to_region.latents(fine.flatten(1, 2)),
        )

    def finer(self, stage: int, pixels: Tensor, details: tuple[Tensor, ...]) -> Tensor:
        """Pixels at twice the resolution, with the details of a stage and their positions."""
        pixels = self.conv_adapters[stage](pixels)
        if stage < len(details):
            pixels = pixels + details[stage].to(pixels.dtype)
        return add_position(pixels, own=True)

    def forward(
        self,
        features: Tensor | PerceiverStart,
        queries: Tensor | None = None,
        *,
        query_mask: Tensor | None = None,
        details: tuple[Tensor, ...] = (),
    ) -> PerceiverOutput:
        """Run all stages.

        Args:
            features: patch features `(batch, height, width, dim)`, or what `start` made of them with the same details.
            queries: initial queries `(batch, n, dim)`; the learned ones when None. Masks of one image depend on all
                its queries, because the pixels read them all.
            query_mask: True where a query is real `(batch, n)`; padded queries are not read by the pixels.
            details: finer features added after each upsampling, coarse to fine, `(batch, 2h, 2w, dim)` and so on
                (lateral connections of a convolutional encoder; none for a ViT). May be shorter than the stages.

        Returns:
            A `PerceiverOutput` at `2 ** num_stages` times the input grid.
        """
        start = features if isinstance(features, PerceiverStart) else self.start(features, details=details)
        queries = self.initial_queries(len(start.coarse)) if queries is None else queries
        real = None if query_mask is None else query_mask[:, None, None, :]
        asked = self.init_cross_attn.latents(queries)
        queries = self.init_cross_norm(self.init_cross_attn.attend(start.coarse_media, asked) + queries)
        queries = self.init_ff_norm(self.init_ff(queries) + queries)
        pixels = start.coarse
        masks, classes = self.segmentation_cls_head(queries, pixels)
        stage_masks, stage_classes = [masks], [classes]
        for number, block in enumerate(self.bi_blocks):
            stage, stack = divmod(number, self.num_stacks)
            if stack == 0:
                pixels = self.finer(stage, pixels, details) if stage else start.fine
            size = pixels.shape[1:3]
            inside = inside_masks(masks, size)
            given = (queries, pixels.flatten(1, 2), inside, real, None if number else start)
            if self.gradient_checkpointing and self.training:
                queries, flat = checkpoint(block, *given, use_reentrant=False)
            else:
                queries, flat = block(*given)
            pixels = flat.unflatten(1, size)
            masks, classes = self.segmentation_cls_head(queries, pixels)
            stage_masks.append(masks)
            stage_classes.append(classes)
        return PerceiverOutput(
            queries=queries,
            pixels=pixels,
            mask_logits=masks,
            class_logits=classes,
            stage_mask_logits=tuple(stage_masks[:-1]),
            stage_class_logits=tuple(stage_classes[:-1]),
        )


def add_position(pixels: Tensor, *, own: bool = False) -> Tensor:
    """Pixels `(batch, h, w, dim)` with the sine position encoding of their own resolution, in their own dtype.

    Args:
        pixels: the pixels.
        own: nobody else needs them without it: where no gradients are wanted it is added in place.
    """
    if not own or torch.is_grad_enabled():
        return pixels + sine_position(*pixels.shape[1:], device=pixels.device).to(pixels.dtype)
    half = pixels.shape[-1] // 2
    rows, columns = (sine_line(n, half, device=pixels.device).to(pixels.dtype) for n in pixels.shape[1:3])
    pixels[..., :half] += rows[:, None]
    pixels[..., half:] += columns
    return pixels


def by_pieces(
    function: Callable[..., Tensor], pixels: Tensor, *others: Tensor, widest: int, out: Tensor | None = None
) -> Tensor:
    """A function that takes every pixel by itself, over a few pixels at a time where no gradients are wanted.

    Args:
        function: of `pixels` and `others`.
        pixels, others: `(batch, m, width)`.
        widest: channels of the widest value that the function makes on its way; its pieces stay within `PIECE`.
        out: where the outcome may be written, if need be over the pixels themselves.
    """
    batch, length = pixels.shape[:2]
    step = max(1, PIECE // (batch * widest * pixels.element_size()))
    if length <= step or torch.is_grad_enabled():
        return function(pixels, *others)
    for at in range(0, length, step):
        piece = slice(at, at + step)
        made = function(pixels[:, piece], *(other[:, piece] for other in others))
        if out is None:
            out = made.new_empty(batch, length, made.shape[-1])
        out[:, piece] = made
    return out


@torch.no_grad()
def inside_masks(masks: Tensor, size: tuple[int, int] | torch.Size) -> Tensor:
    """Where the probability of mask logits, brought to `size`, is at least 0.5: `(batch, 1, n, h * w)` bool."""
    fine = F.interpolate(masks.detach().float(), size=tuple(size), mode="bilinear", align_corners=False)
    return (fine.flatten(2) >= 0)[:, None]

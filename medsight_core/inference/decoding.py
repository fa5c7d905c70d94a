"""The decode loop: greedy, batched, one vector kept for each region code.

`transformers.generate` can return hidden states, but those of every layer at every step, which costs hundreds of
megabytes where one vector per code is needed. This loop sees the last hidden state anyway, because the word head reads
it, and keeps the ones that belong to codes.

Which vector that is depends on how the checkpoint was trained (`config.code_state`): "at" is the state when the code
itself is read, one step after it was written; "before" is the state that predicted it.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Set
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache

from medsight_core.model import MedSightForConditionalGeneration


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class WrittenCode:
    """A region code that the model wrote.

    Attributes:
        row: Which text of the batch.
        position: Where among the new tokens of that text.
        token_id: Which code.
        probability: How likely the model held this token, 0 to 1, among the whole vocabulary.
        state: The vector that a mask is decoded from `(hidden,)`.
    """

    row: int
    position: int
    token_id: int
    probability: float
    state: Tensor


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Step:
    """What one step of the loop brought.

    Attributes:
        codes: Codes that the step before wrote; their states are known only now.
        tokens: New token of each text, None for a text that has ended, now or earlier; empty when only codes were left.
    """

    codes: tuple[WrittenCode, ...]
    tokens: tuple[int | None, ...]


@torch.inference_mode()
def decode(
    model: MedSightForConditionalGeneration,
    embeds: Tensor,
    attention_mask: Tensor | None = None,
    *,
    max_new_tokens: int,
    stop_ids: Set[int],
    code_ids: Set[int] = frozenset(),
    repetition_penalty: float = 1.0,
    cancel: threading.Event | None = None,
) -> Iterator[Step]:
    """Writes the likeliest next token of every text until all have ended.

    Args:
        model: In evaluation mode.
        embeds: The prompts `(batch, length, hidden)`, padded on the left.
        attention_mask: 1 where a prompt is, 0 where padding is, `(batch, length)`; None without padding.
        max_new_tokens: Of each text. A text that never got None was cut off.
        stop_ids: Tokens that end a text; they are not part of it.
        code_ids: Tokens that are region codes.
        repetition_penalty: Above 1 lowers what was written before; codes too.
        cancel: Looked at before each step; when set, the loop ends.

    Yields:
        A `Step` for each token; a last one without tokens where codes are left over.
    """
    language_model, head = model.model.language_model, model.lm_head
    at = model.config.code_state == "at"
    cache = DynamicCache(config=model.config.text_config)
    batch, length = embeds.shape[:2]
    if attention_mask is None or bool(attention_mask.all()):
        mask, positions = None, torch.arange(length, device=embeds.device)[None]
    else:
        room = attention_mask.new_ones(batch, max_new_tokens)
        mask = torch.cat((attention_mask, room), dim=1)
        positions = (attention_mask.long().cumsum(1) - 1).clamp_min(0)

    def states(**inputs: Tensor) -> Tensor:
        out = language_model(
            attention_mask=None if mask is None else mask[:, :length],
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            **inputs,
        )
        return out.last_hidden_state[:, -1].clone()  # a view would keep the states of the whole prompt

    hidden = states(inputs_embeds=embeds)
    positions = positions[:, -1:]
    seen = torch.zeros(0)
    if repetition_penalty != 1.0:
        seen = torch.zeros(batch, head.out_features, dtype=torch.bool, device=embeds.device)
    alive = [True] * batch
    known: tuple[WrittenCode, ...] = ()
    for position in range(max_new_tokens):
        logits = head(hidden)
        scores = logits if repetition_penalty == 1.0 else _penalised(logits, seen, repetition_penalty)
        chosen = scores.argmax(-1, keepdim=True)
        written: list[int | None] = []
        codes: list[WrittenCode] = []
        for row, token in enumerate(chosen[:, 0].tolist()):
            alive[row] = alive[row] and token not in stop_ids
            written.append(token if alive[row] else None)
            if alive[row] and token in code_ids:
                likely = (logits[row, token].float() - logits[row].float().logsumexp(-1)).exp().clamp_max(1)
                codes.append(
                    WrittenCode(
                        row=row, position=position, token_id=token, probability=float(likely), state=hidden[row]
                    )
                )
        yield Step(codes=known, tokens=tuple(written))
        known = tuple(codes)
        over = not any(alive) or position + 1 == max_new_tokens or (cancel is not None and cancel.is_set())
        if over and not (known and at):
            break
        if repetition_penalty != 1.0:
            seen.scatter_(1, chosen, True)
        length += 1
        positions = positions + 1
        hidden = states(input_ids=chosen)
        if at:
            known = tuple(replace(code, state=hidden[code.row]) for code in codes)
        if over:
            break
    if known:
        yield Step(codes=known, tokens=())


def _penalised(logits: Tensor, seen: Tensor, penalty: float) -> Tensor:
    """Scores with those of tokens that were written before made smaller (Keskar et al., CTRL, 2019)."""
    smaller = torch.where(logits < 0, logits * penalty, logits / penalty)
    return torch.where(seen, smaller, logits)


def pad_left(prompts: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Prompts `(length, hidden)` of different lengths as one batch.

    Returns:
        `(batch, longest, hidden)` with zeros on the left, and the attention mask `(batch, longest)`.
    """
    longest = max(len(prompt) for prompt in prompts)
    embeds = prompts[0].new_zeros(len(prompts), longest, prompts[0].shape[-1])
    mask = torch.zeros(len(prompts), longest, dtype=torch.long, device=embeds.device)
    for row, prompt in enumerate(prompts):
        embeds[row, longest - len(prompt) :] = prompt
        mask[row, longest - len(prompt) :] = 1
    return embeds, mask


def stop_ids(*given: int | list[int] | None) -> frozenset[int]:
    """The token ids that end an answer, gathered."""
    ids: set[int] = set()
    for one in given:
        ids.update(one if isinstance(one, list) else [] if one is None else [one])
    return frozenset(ids)

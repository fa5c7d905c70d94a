"""The decode loop: greedy, in slots, one vector kept for each region code.

A text joins the loop with the key/values of its prompt (`prefix`) and leaves it when it ends; in between every step
gives each text its next token. Texts of different lengths stand side by side padded on the left. What else is in the
loop changes a text by no more than the rounding of floating-point sums, and a text that is alone in it not at all.

`transformers.generate` can return hidden states, but those of every layer at every step, which costs hundreds of
megabytes where one vector per code is needed. This loop sees the last hidden state anyway, because the word head reads
it, and keeps the ones that belong to codes. Which vector that is depends on how the checkpoint was trained
(`config.code_state`): "at" is the state when the code itself is read, one step after it was written; "before" is the
state that predicted it.
"""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass, replace
from typing import Final

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

from medsight_core.model import MedSightForConditionalGeneration

ROOM: Final = 64
"""Tokens that key/values have room for before they are copied to a larger place."""

KeyValues = tuple[tuple[Tensor, Tensor], ...]
"""Keys and values of each layer, each `(1, heads, length, width)`."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Prefilled:
    """A text that was read up to where the model goes on.

    Attributes:
        layers: Its key/values.
        hidden: The last hidden state of its last token `(1, hidden)`.
    """

    layers: KeyValues
    hidden: Tensor

    @property
    def length(self) -> int:
        """Tokens that were read."""
        return self.layers[0][0].shape[-2]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class WrittenCode:
    """A region code that the model wrote.

    Attributes:
        position: Where among the new tokens of its text.
        token_id: Which code.
        probability: How likely the model held this token, 0 to 1, among the whole vocabulary.
        state: The vector that a mask is decoded from `(hidden,)`.
    """

    position: int
    token_id: int
    probability: float
    state: Tensor


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Step:
    """What one step of the loop brought to one text.

    Attributes:
        codes: Codes that the step before wrote; their states are known only now.
        token: The new token; None where there is none any more.
        ended: The model ended the text itself.
        last: Nothing more comes of this text.
    """

    codes: tuple[WrittenCode, ...] = ()
    token: int | None = None
    ended: bool = False
    last: bool = False


class Text:
    """A text in the loop.

    Args:
        prompt: As far as it was read.
        limit: New tokens at which it is cut off.
    """

    def __init__(self, prompt: Prefilled, *, limit: int) -> None:
        self.limit = limit
        self.written = 0
        """New tokens so far."""
        self._length = prompt.length
        # Where its key/values are: its own ones, or a row of the loop's.
        self._place: Prefilled | int = prompt
        self._token = -1
        self._code: WrittenCode | None = None
        self._closing = False


class Slots:
    """Texts that are written together. A step that fails changes nothing and may be tried again.

    Args:
        model: In evaluation mode.
        stop_ids: Tokens that end a text; they are not part of it.
        code_ids: Tokens that are region codes.
        repetition_penalty: Above 1 lowers what was written before; codes too.
    """

    def __init__(
        self,
        model: MedSightForConditionalGeneration,
        *,
        stop_ids: Set[int],
        code_ids: Set[int] = frozenset(),
        repetition_penalty: float = 1.0,
    ) -> None:
        self._model = model
        self._stop_ids = stop_ids
        self._code_ids = code_ids
        self._penalty = repetition_penalty
        self._at = model.config.code_state == "at"
        self._texts: list[Text] = []
        self._rows: list[Text] = []  # those whose key/values are in the cache, by row
        self._cache: Cache | None = None
        self._mask: Tensor | None = None
        self._positions = torch.zeros(0, 1, dtype=torch.long)
        self._seen: dict[Text, Tensor] = {}

    def __len__(self) -> int:
        return len(self._texts)

    @torch.inference_mode()
    def join(self, prompts: Sequence[Prefilled], *, limits: Sequence[int]) -> list[tuple[Text, list[Step]]]:
        """Takes texts in; each gets its first token at once."""
        texts = [Text(prompt, limit=limit) for prompt, limit in zip(prompts, limits, strict=True)]
        if not texts:
            return []
        hidden = torch.cat([prompt.hidden for prompt in prompts])
        if self._penalty != 1.0:
            width = self._model.lm_head.out_features
            self._seen |= {text: torch.zeros(width, dtype=torch.bool, device=hidden.device) for text in texts}
        steps = self._choose(texts, hidden)
        self._texts += texts
        self._tidy()
        return [(text, [step for owner, step in steps if owner is text]) for text in texts]

    @torch.inference_mode()
    def step(self) -> list[tuple[Text, Step]]:
        """The next token of every text; and for some texts a step more, without one, where only a code is left."""
        if not self._texts:
            return []
        self._arrange()
        length = self._cache.get_seq_length()
        try:
            hidden = self._read(length)
            for row, text in enumerate(self._rows):
                if self._at and text._code is not None:
                    text._code = replace(text._code, state=hidden[row])
            going = [row for row, text in enumerate(self._rows) if not text._closing]
            read_on = hidden if len(going) == len(self._rows) else hidden[going]
            steps = self._choose([self._rows[row] for row in going], read_on)
        except BaseException:
            for layer in self._cache.layers:  # some layers may have taken the token, others not
                layer.crop(min(0, length - layer.get_seq_length()))
            raise
        steps += [(text, _last(text)) for row, text in enumerate(self._rows) if row not in going]
        self._positions = self._positions + 1
        for text in self._rows:
            text._length += 1
        self._tidy()
        return steps

    def cut(self, text: Text) -> Step | None:
        """Ends a text where it is.

        Returns:
            Its last step; None where that comes with the next step of the loop, because a code has no state yet.
        """
        text._closing = True
        if self._at and text._code is not None:
            return None
        step = _last(text)
        self._tidy()
        return step

    def leave(self, text: Text) -> None:
        """Lets go of a text in the middle of it."""
        self._texts.remove(text)
        self._tidy()

    def halve(self) -> Slots:
        """Gives the later half of the texts to another loop, so that both need less memory at once."""
        other = Slots(self._model, stop_ids=self._stop_ids, code_ids=self._code_ids, repetition_penalty=self._penalty)
        other._texts = self._texts[len(self._texts) // 2 :]
        for text in other._texts:
            text._place = Prefilled(layers=self._key_values(text), hidden=torch.zeros(0))
        other._seen = {text: self._seen.pop(text) for text in other._texts if text in self._seen}
        self._texts = self._texts[: len(self._texts) // 2]
        return other

    def _read(self, length: int) -> Tensor:
        """Hidden states `(texts, hidden)` of the tokens that the texts end with, behind the ``length`` before."""
        tokens = torch.tensor([[text._token] for text in self._rows]).to(self._positions.device)
        out = self._model.model.language_model(
            input_ids=tokens,
            attention_mask=None if self._mask is None else self._mask[:, : length + 1],
            position_ids=self._positions,
            past_key_values=self._cache,
            use_cache=True,
        )
        hidden: Tensor = out.last_hidden_state[:, -1]
        return hidden

    def _choose(self, texts: Sequence[Text], hidden: Tensor) -> list[tuple[Text, Step]]:
        """The likeliest next token of each text `(texts, hidden)`."""
        if not texts:
            return []
        logits = self._model.lm_head(hidden)
        scores = logits
        if self._penalty != 1.0:
            scores = _penalised(logits, torch.stack([self._seen[text] for text in texts]), self._penalty)
        tokens = scores.argmax(-1).tolist()
        likely = {
            row: min(1.0, float(logits[row].float().softmax(-1)[token]))
            for row, token in enumerate(tokens)
            if token in self._code_ids and token not in self._stop_ids
        }
        # From here on nothing fails.
        steps: list[tuple[Text, Step]] = []
        for row, (text, token) in enumerate(zip(texts, tokens, strict=True)):
            known = () if text._code is None else (text._code,)
            text._code = None
            if token in self._stop_ids:
                text._closing = True
                steps.append((text, Step(codes=known, ended=True, last=True)))
                continue
            if row in likely:
                text._code = WrittenCode(
                    position=text.written, token_id=token, probability=likely[row], state=hidden[row]
                )
            if self._penalty != 1.0:
                self._seen[text][token] = True
            text._token = token
            text.written += 1
            text._closing = text.written >= text.limit
            steps.append((text, Step(codes=known, token=token, last=text._closing and text._code is None)))
            if text._closing and text._code is not None and not self._at:
                steps.append((text, _last(text)))
        return steps

    def _tidy(self) -> None:
        """Lets texts go of which nothing more comes."""
        self._texts = [text for text in self._texts if not text._closing or text._code is not None]
        if self._seen:
            self._seen = {text: seen for text, seen in self._seen.items() if text in self._texts}
        if not self._texts:
            self._rows, self._cache, self._mask = [], None, None

    def _arrange(self) -> None:
        """Brings the key/values of all texts together, where texts came or went."""
        if self._rows == self._texts:
            return
        lengths = [text._length for text in self._texts]
        longest = max(lengths)
        parts = [self._key_values(text) for text in self._texts]
        layers = [
            RoomyLayer([part[n][0] for part in parts], [part[n][1] for part in parts], longest)
            for n in range(len(parts[0]))
        ]
        device = layers[0].keys.device
        mask = None
        if min(lengths) < longest:
            most = longest + max(text.limit - text.written for text in self._texts) + 1
            mask = torch.ones(len(lengths), most, dtype=torch.long)
            for row, length in enumerate(lengths):
                mask[row, : longest - length] = 0
            mask = mask.to(device)
        self._cache, self._mask = Cache(layers=layers), mask
        self._positions = torch.tensor(lengths, device=device)[:, None]
        self._rows = list(self._texts)
        for row, text in enumerate(self._rows):
            text._place = row

    def _key_values(self, text: Text) -> KeyValues:
        if isinstance(text._place, Prefilled):
            return text._place.layers
        assert self._cache is not None
        row = slice(text._place, text._place + 1)
        return tuple(
            (layer.keys[row, :, -text._length :], layer.values[row, :, -text._length :]) for layer in self._cache.layers
        )


class RoomyLayer(DynamicLayer):
    """Key/values that grow in place, in a store with room for some more tokens: `DynamicLayer` copies all at each one.

    Args:
        keys, values: Of each text `(1, heads, length, width)`.
        length: Of the longest; the others are padded on the left.
    """

    def __init__(self, keys: Sequence[Tensor], values: Sequence[Tensor], length: int) -> None:
        super().__init__()
        self.dtype, self.device, self.is_initialized = keys[0].dtype, keys[0].device, True
        self._stores = [_padded(parts, length, ROOM) for parts in (keys, values)]
        self._show(length)

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Appends key/values `(texts, heads, new, width)`; gives all there are."""
        start = self.keys.shape[-2]
        stop = start + key_states.shape[-2]
        if stop > self._stores[0].shape[-2]:
            self._stores = [_padded([shown], start, stop - start + ROOM) for shown in (self.keys, self.values)]
        for store, states in zip(self._stores, (key_states, value_states), strict=True):
            store[:, :, start:stop] = states
        self._show(stop)
        return self.keys, self.values

    def _show(self, length: int) -> None:
        self.keys, self.values = (store[:, :, :length] for store in self._stores)


def _padded(parts: Sequence[Tensor], length: int, room: int) -> Tensor:
    """Rows of several batches below each other, ``length`` long, zeros on the left, with room on the right."""
    _, heads, _, width = parts[0].shape
    store = parts[0].new_zeros(sum(len(part) for part in parts), heads, length + room, width)
    row = 0
    for part in parts:
        store[row : row + len(part), :, length - part.shape[-2] : length] = part
        row += len(part)
    return store


def _last(text: Text) -> Step:
    """What is left of a text that is over."""
    codes = () if text._code is None else (text._code,)
    text._code = None
    return Step(codes=codes, last=True)


def _penalised(logits: Tensor, seen: Tensor, penalty: float) -> Tensor:
    """Scores with those of tokens that were written before made smaller (Keskar et al., CTRL, 2019)."""
    smaller = torch.where(logits < 0, logits * penalty, logits / penalty)
    return torch.where(seen, smaller, logits)


@torch.inference_mode()
def prefill(model: MedSightForConditionalGeneration, embeds: Tensor, known: Prefilled | None = None) -> Prefilled:
    """Reads on.

    Args:
        model: In evaluation mode.
        embeds: What is to be read `(1, length, hidden)`.
        known: What was read before it.
    """
    cache = DynamicCache(None if known is None else known.layers)
    start = 0 if known is None else known.length
    out = model.model.language_model(
        inputs_embeds=embeds,
        position_ids=torch.arange(start, start + embeds.shape[1], device=embeds.device)[None],
        past_key_values=cache,
        use_cache=True,
    )
    # A view would keep the states of everything that was read.
    hidden = out.last_hidden_state[:, -1].clone()
    return Prefilled(layers=tuple((layer.keys, layer.values) for layer in cache.layers), hidden=hidden)


def stop_ids(*given: int | list[int] | None) -> frozenset[int]:
    """The token ids that end an answer, gathered."""
    ids: set[int] = set()
    for one in given:
        ids.update(one if isinstance(one, list) else [] if one is None else [one])
    return frozenset(ids)

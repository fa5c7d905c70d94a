"""The decode loop: greedy, in slots, one vector kept for each region code.

A text joins the loop with the key/values of its prompt (`prefix`) and leaves it when it ends; in between every step
gives each text its next token. How their key/values lie side by side is `rows`, or `fixed` for a compiled step. What
else is in the loop changes a text by no more than the rounding of floating-point sums, and a text that is alone in it
not at all.

`transformers.generate` can return hidden states, but those of every layer at every step, which costs hundreds of
megabytes where one vector per code is needed. This loop sees the last hidden state anyway, because the word head reads
it, and keeps the ones that belong to codes. Which vector that is depends on how the checkpoint was trained
(`config.code_state`): "at" is the state when the code itself is read, one step after it was written; "before" is the
state that predicted it.
"""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache

from medsight_core.inference.fixed import Boards, FixedRows
from medsight_core.inference.rows import GrowingRows, KeyValues, Rows
from medsight_core.model import MedSightForConditionalGeneration


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
        boards: For steps of fixed shape, where they are compiled.
    """

    def __init__(
        self,
        model: MedSightForConditionalGeneration,
        *,
        stop_ids: Set[int],
        code_ids: Set[int] = frozenset(),
        repetition_penalty: float = 1.0,
        boards: Boards | None = None,
    ) -> None:
        self._model = model
        self._stop_ids = stop_ids
        self._code_ids = code_ids
        self._penalty = repetition_penalty
        self._at = model.config.code_state == "at"
        self._texts: list[Text] = []
        self._rows: list[Text] = []  # those whose key/values are side by side, by row
        self._boards = boards
        self._side_by_side: Rows = GrowingRows(model) if boards is None else FixedRows(boards)
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
        try:
            hidden = self._read()
            for row, text in enumerate(self._rows):
                if self._at and text._code is not None:
                    text._code = replace(text._code, state=hidden[row])
            going = [row for row, text in enumerate(self._rows) if not text._closing]
            read_on = hidden if len(going) == len(self._rows) else hidden[going]
            steps = self._choose([self._rows[row] for row in going], read_on)
        except BaseException:
            self._side_by_side.undo()
            raise
        steps += [(text, _last(text)) for row, text in enumerate(self._rows) if row not in going]
        self._side_by_side.keep()
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
        other = Slots(
            self._model,
            stop_ids=self._stop_ids,
            code_ids=self._code_ids,
            repetition_penalty=self._penalty,
            boards=self._boards,
        )
        other._texts = self._texts[len(self._texts) // 2 :]
        for text in other._texts:
            text._place = Prefilled(layers=self._key_values(text), hidden=torch.zeros(0))
        other._seen = {text: self._seen.pop(text) for text in other._texts if text in self._seen}
        self._texts = self._texts[: len(self._texts) // 2]
        return other

    def _read(self) -> Tensor:
        """Hidden states `(texts, hidden)` of the tokens that the texts end with."""
        return self._side_by_side.read([text._token for text in self._rows])

    def _choose(self, texts: Sequence[Text], hidden: Tensor) -> list[tuple[Text, Step]]:
        """The likeliest next token of each text `(texts, hidden)`."""
        if not texts:
            return []
        logits = self._model.lm_head(hidden).float()  # a penalty in half precision would make ties
        scores = logits
        if self._penalty != 1.0:
            scores = _penalised(logits, torch.stack([self._seen[text] for text in texts]), self._penalty)
        tokens = scores.argmax(-1).tolist()
        likely = {
            row: min(1.0, float(logits[row].softmax(-1)[token]))
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
            self._rows = []
            self._side_by_side.clear()

    def _arrange(self) -> None:
        """Brings the key/values of all texts together, where texts came or went."""
        if self._rows == self._texts:
            return
        self._side_by_side.arrange(
            [text._place.layers if isinstance(text._place, Prefilled) else text._place for text in self._texts],
            [text._length for text in self._texts],
            [text.limit - text.written for text in self._texts],
        )
        self._rows = list(self._texts)
        for row, text in enumerate(self._rows):
            text._place = row

    def _key_values(self, text: Text) -> KeyValues:
        if isinstance(text._place, Prefilled):
            return text._place.layers
        return self._side_by_side.key_values(text._place, text._length)


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

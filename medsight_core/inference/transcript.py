"""One answer while it is written: tokens to text, codes to the words they ground."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from tokenizers import Tokenizer

from medsight_core.codes import RegionVocabulary
from medsight_core.markup import Grounding, MarkupStream
from medsight_core.regions import Span

UNNAMED = "region"
"""What a region is called that no words stand for."""

_UNFINISHED = "\ufffd"  # what a decoder makes of the first bytes of a character


class Mention(NamedTuple):
    """A region code of an answer: its name in this checkpoint, the words it grounds and where they stand."""

    code: str
    label: str
    span: Span


class Detokenizer:
    """Turns tokens into text as they come; a character whose bytes come one by one is held until it is whole."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self._before = ""  # what the first tokens of `_ids`, given out already, decode to

    def feed(self, token: int, *, flush: bool = False) -> str:
        """Takes a token; returns the text that is now certain, or all there is with ``flush``."""
        self._ids.append(token)
        text = self._tokenizer.decode(self._ids, skip_special_tokens=True)
        if text.endswith(_UNFINISHED) and not flush:
            return ""
        new = text[len(self._before) :]
        # The last token stays as context: some decoders treat the first token of a text differently.
        self._ids = [token]
        self._before = self._tokenizer.decode(self._ids, skip_special_tokens=True)
        return new

    def rest(self) -> str:
        """What was still held."""
        held = self._tokenizer.decode(self._ids, skip_special_tokens=True)[len(self._before) :]
        self._before += held
        return held


class Transcript:
    """One answer's text and codes.

    A code counts only where the model wrote its token; the same letters spelt out are taken out of the text like all
    markup, but ground nothing.

    Args:
        tokenizer: Of the checkpoint.
        codes: Its region codes.
    """

    def __init__(self, *, tokenizer: Tokenizer, codes: RegionVocabulary) -> None:
        self._codes = codes
        self._words = Detokenizer(tokenizer)
        self._markup = MarkupStream()
        self._raw: list[str] = []
        self.mentions: list[Mention] = []

    @property
    def text(self) -> str:
        """What a person reads."""
        return self._markup.text

    @property
    def raw(self) -> str:
        """As generated."""
        return "".join(self._raw)

    def feed(self, token: int) -> Iterator[str]:
        """Takes a token; yields text for the reader and adds to `mentions` where the token is a region code."""
        code = self._codes.code(token)
        yield from self._read(self._words.feed(token, flush=code is not None), is_code=code is not None, token=token)

    def finish(self) -> Iterator[str]:
        """Yields what was held back."""
        yield from self._read(self._words.rest())

    def _read(self, piece: str, *, is_code: bool = False, token: int = -1) -> Iterator[str]:
        self._raw.append(piece)
        grounding: Grounding | None = None
        for item in self._markup.feed(piece):
            if isinstance(item, Grounding):
                grounding = item
            else:
                yield item
        code = self._codes.code(token) if is_code else None
        if code is not None:
            end = len(self.text)
            span = grounding.span if grounding is not None else Span(end, end)
            self.mentions.append(Mention(code=self._codes.name(code), label=span.of(self.text) or UNNAMED, span=span))

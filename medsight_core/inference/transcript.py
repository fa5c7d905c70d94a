"""One answer while it is written: tokens to text, codes to the words they ground."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from tokenizers import Tokenizer

from medsight_core.codes import RegionCode, RegionVocabulary
from medsight_core.markup import Grounding, MarkupStream
from medsight_core.regions import Span

HEADER = "<|im_start|>assistant\n"
"""How a model opens its own turn that was trained on prompts without that (the released one); no part of an answer."""

UNNAMED = "region"
"""What a region is called that no words stand for."""

_UNFINISHED = "\ufffd"  # what a decoder makes of the first bytes of a character


class Mention(NamedTuple):
    """A region code of an answer, as ours (``"[C2_16]"``), the words it grounds and where they stand."""

    code: str
    label: str
    span: Span


class Detokenizer:
    """Turns tokens into text as they come; a character whose bytes come one by one is held until it is whole."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self._given = 0  # how many of them were given out already
        self._before = ""  # what these decode to

    def feed(self, token: int, *, flush: bool = False) -> str:
        """Takes a token; returns the text that is now certain, or all there is with ``flush``."""
        self._ids.append(token)
        text = self._tokenizer.decode(self._ids, skip_special_tokens=True)
        if text.endswith(_UNFINISHED) and not flush:
            return ""
        new = text[len(self._before) :]
        if new:
            # What was given out last stays as context: some decoders treat the first token of a text differently, or
            # read all bytes in a row as one.
            self._ids = self._ids[self._given :]
            self._before = self._tokenizer.decode(self._ids, skip_special_tokens=True)
        self._given = len(self._ids)
        return new

    def rest(self) -> str:
        """What was still held."""
        held = self._tokenizer.decode(self._ids, skip_special_tokens=True)[len(self._before) :]
        self._before += held
        return held


class Transcript:
    """One answer's text and codes.

    A code counts only where the model wrote its token; the same letters spelt out are taken out of the text like all
    markup, but ground nothing. Where the model opens its turn itself, that is left out.

    Args:
        tokenizer: Of the checkpoint.
        codes: Its region codes.
    """

    def __init__(self, *, tokenizer: Tokenizer, codes: RegionVocabulary) -> None:
        self._codes = codes
        self._words = Detokenizer(tokenizer)
        self._markup = MarkupStream()
        self._raw: list[str] = []
        self._header = tokenizer.encode(HEADER, add_special_tokens=False).ids
        self._opening: list[int] | None = []  # tokens so far that may be the header; None behind it
        self.mentions: list[Mention] = []

    @property
    def text(self) -> str:
        """What a person reads."""
        return self._markup.text

    @property
    def raw(self) -> str:
        """As generated, with our names of codes."""
        return "".join(self._raw)

    def feed(self, token: int) -> Iterator[str]:
        """Takes a token; yields text for the reader and adds to `mentions` where the token is a region code."""
        if self._opening is None:
            yield from self._take(token)
            return
        self._opening.append(token)
        length = len(self._opening)
        if self._opening == self._header[:length]:
            if length == len(self._header):
                self._opening = None
            return
        held, self._opening = self._opening, None
        for one in held:
            yield from self._take(one)

    def finish(self) -> Iterator[str]:
        """Yields what was held back."""
        yield from self._read(self._words.rest())

    def _take(self, token: int) -> Iterator[str]:
        code = self._codes.code(token)
        yield from self._read(self._words.feed(token, flush=code is not None), code)

    def _read(self, piece: str, code: RegionCode | None = None) -> Iterator[str]:
        if code is not None:
            piece = piece.replace(self._codes.name(code), str(code))
        self._raw.append(piece)
        grounding: Grounding | None = None
        for item in self._markup.feed(piece):
            if isinstance(item, Grounding):
                grounding = item
            else:
                yield item
        if code is not None:
            end = len(self.text)
            span = grounding.span if grounding is not None else Span(end, end)
            self.mentions.append(Mention(code=str(code), label=span.of(self.text).strip() or UNNAMED, span=span))

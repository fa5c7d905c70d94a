"""From generated text to what a person reads, and which words each region code grounds.

The model writes ``The <p>left lung</p>[C4_3] is clear.``; a person reads ``The left lung is clear.`` with "left lung"
tied to a region. A code grounds the ``<p>..</p>`` span right before it, and several codes may follow one span.
Checkpoints that write no ``<p>`` ground the noun phrase right before the code: back over stop words to the last
content word, then back to a stop word, a punctuation mark or the previous code.

One automaton reads character by character, so a stream cut anywhere gives what the whole text gives, and a reader never
sees half of a tag or of a code. Space around removed markup is mended: ``liver [C0_16].`` reads ``liver.``
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

from medsight_core.codes import CODE_BEGINNING, CODE_PATTERN, RegionCode
from medsight_core.regions import Span

OPEN: Final = "<p>"
CLOSE: Final = "</p>"

# Words that end a noun phrase, or that stand between it and its code. Articles are left out of the phrase, adjectives
# and "left"/"right" stay in it; "of" stays too, so that "head of the pancreas" is one phrase.
_STOP_TEXT: Final = """
a an the this that these those there here it its they their and or but nor with without in on at by for from to
into onto over under near beside between within is are was were be been being has have had shows show shown showing
demonstrates demonstrate reveals reveal contains contain includes include including see seen visible present noted
observed identified depicted depicts depict located highlighted marked outlined segmented as which who where while
also not no yes i you we can could may might will would should suggests suggest suggesting consistent indicates
indicate indicating represents represent representing appears appear both like than then so if image scan slice
segmentation mask region result sure answer"""
STOP_WORDS: Final = frozenset(_STOP_TEXT.split())
_ARTICLES: Final = frozenset(("a", "an", "the", "this", "that", "these", "those", "its", "their"))
_WORD: Final = re.compile(r"[^\W_]+(?:['’\-/][^\W_]+)*")
_MOST_WORDS: Final = 8


class Grounding(NamedTuple):
    """A region code and the words of the clean text that it grounds."""

    code: RegionCode
    span: Span


class MarkupStream:
    """Reads generated text in pieces of any size.

    Each call to `feed` returns what is now certain, in order: text for the reader, and groundings, whose spans refer to
    the whole clean text so far and never reach beyond what was already returned. There is nothing to close at the end:
    white space, or half a tag or code, that waited for more is simply not for the reader.

    Example:
        >>> stream = MarkupStream()
        >>> stream.feed("The <p>liv") + stream.feed("er</p>[C0_") + stream.feed("16] is")
        ['The liv', 'er', Grounding(code=RegionCode(group=0, index=16), span=Span(start=4, end=9)), ' is']
    """

    def __init__(self) -> None:
        self._text = ""  # the clean text so far
        self._held = ""  # the beginning of what may become a tag or a code
        self._space = ""  # white space that waits to see what follows
        self._mended = False  # markup was removed inside the waiting white space
        self._open: int | None = None  # where an open <p> began
        self._closed: Span | None = None  # the latest <p>..</p>
        self._last: Span | None = None  # what the code right before grounds; None once more text came
        self._previous: Span | None = None  # what the previous code grounds, wherever it was
        self._boundary = 0  # a noun phrase does not reach back beyond the previous code

    @property
    def text(self) -> str:
        """The clean text so far."""
        return self._text

    def feed(self, piece: str) -> list[str | Grounding]:
        """Takes more generated text; returns clean text and groundings that became certain."""
        out: list[str | Grounding] = []
        start = len(self._text)
        for character in piece:
            found = self._read(character)
            if found is not None:
                if len(self._text) > start:
                    out.append(self._text[start:])
                    start = len(self._text)
                out.append(found)
        if len(self._text) > start:
            out.append(self._text[start:])
        return out

    def _read(self, character: str) -> Grounding | None:
        held = self._held + character
        if held in (OPEN, CLOSE):
            self._held = ""
            self._tag(opening=held == OPEN)
        elif CODE_PATTERN.fullmatch(held):
            self._held = ""
            return self._code(RegionCode.parse(held))
        elif OPEN.startswith(held) or CLOSE.startswith(held) or CODE_BEGINNING.fullmatch(held):
            self._held = held
        elif self._held:
            # Not markup after all: its first character is text, and the rest may begin markup of its own.
            self._held = ""
            self._write(held[0])
            found = None
            for rest in held[1:]:
                found = self._read(rest) or found  # at most one: a code ends with the last character
            return found
        else:
            self._write(character)
        return None

    def _write(self, character: str) -> None:
        if character.isspace():
            if not self._mended:
                self._space += character
            elif not self._space:
                self._space = character
            return
        space = self._space
        if self._mended and character in ".,;:!?)]}":
            space = ""
        elif not space and self._boundary == len(self._text) and character.isalnum():
            space = " "  # "liver[C0_1]and"
        if self._text:
            self._text += space
        self._space, self._mended, self._last = "", False, None
        self._text += character

    def _tag(self, *, opening: bool) -> None:
        self._mended = True
        if opening:
            self._open = len(self._text)
        elif self._open is not None:
            span = self._trimmed(self._open)
            if span.end > span.start:
                self._closed = span
            self._open = None

    def _code(self, code: RegionCode) -> Grounding:
        self._mended = True
        span = self._last
        if span is None:
            span = self._trimmed(self._open) if self._open is not None else self._phrase()
        self._last = self._previous = span
        self._boundary = len(self._text)
        return Grounding(code, span)

    def _trimmed(self, start: int) -> Span:
        """From ``start`` to the end of the text so far, without the space that was written in between."""
        while start < len(self._text) and self._text[start].isspace():
            start += 1
        return Span(start, len(self._text))

    def _phrase(self) -> Span:
        """The ``<p>`` span or else the noun phrase right before the end of the text so far."""
        here = len(self._text)
        floor = max(self._boundary, self._closed.end if self._closed else 0)
        words = list(_WORD.finditer(self._text, floor))
        start, last = here, len(words) - 1
        while last >= 0 and _is_stop(words[last][0]) and self._is_gap(words[last].end(), start, also=":"):
            start = words[last].start()
            last -= 1
        if last < 0:
            # Only stop words since a <p> span or since another code: "liver [C0_1], [C0_2] and [C0_3]".
            before = self._closed if self._closed and self._closed.end == floor else self._previous
            return before if before and self._is_gap(floor, start, also=",") else Span(here, here)
        if not self._is_gap(words[last].end(), start, also=":"):
            return Span(here, here)
        first = last
        while first > 0 and last - first < _MOST_WORDS and self._is_gap(words[first - 1].end(), words[first].start()):
            plain = words[first - 1][0].lower()
            after_of = plain in _ARTICLES and first > 1 and words[first - 2][0].lower() == "of"
            if plain in STOP_WORDS and not after_of:
                break
            first -= 1
        while first < last and _is_stop(words[first][0]):
            first += 1
        return Span(words[first].start(), words[last].end())

    def _is_gap(self, start: int, end: int, *, also: str = "") -> bool:
        """Whether words on both sides belong together: only space on one line, quotes or emphasis between them."""
        between = self._text[start:end]
        return "\n" not in between and not between.strip(" \t\"'’*`" + also)


def _is_stop(word: str) -> bool:
    return word.lower() in STOP_WORDS or word.lower() == "of"


def parse_markup(raw: str) -> tuple[str, list[Grounding]]:
    """Takes markup and codes out of a generated text.

    Args:
        raw: The text as generated, such as ``"The <p>liver</p>[C0_16] is enlarged."``.

    Returns:
        The clean text, and a grounding per code in the order of the text.
    """
    stream = MarkupStream()
    found = [piece for piece in stream.feed(raw) if isinstance(piece, Grounding)]
    return stream.text, found

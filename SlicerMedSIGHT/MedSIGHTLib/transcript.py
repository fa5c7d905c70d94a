"""The conversation as a page: paragraphs of the HTML that Qt shows, with each grounded word in its segment's colour.

Nothing that was typed or generated becomes markup. Every string in `Transcript.blocks` is exactly one paragraph, so
that a view can replace those that changed and leave the others alone.
"""

from __future__ import annotations

import html
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final
from urllib.parse import quote, unquote

from medsight_core.chat.markdown import place_of
from medsight_core.chat.turns import Finding, Piece, Turn

from ._qt import clean
from .theme import Theme
from .words import _

FINDING: Final = "finding"
"""Scheme of the links that stand for findings, such as ``finding:3.1``."""
RETRY: Final = "action:retry"
"""Link that asks once more."""
SUGGESTION: Final = "suggestion"
"""Scheme of the links that ask a suggested question, by its place."""

LONGEST_PARAGRAPH: Final = 1500
"""Characters after which a paragraph ends with its sentence: what a view must lay out anew for each new word."""
_LATEST_BREAK: Final = 400
_FROM_LEFT: Final = "\u200e"
"""Begins a line that runs from left to right whatever the name in it: its square hangs out on the left."""
_SENTENCE: Final = re.compile(r"[.!?…](?=\s)|[。！？]")

Colour = Callable[[str], str]


class Transcript:
    """Turns as paragraphs; what did not change is made once."""

    def __init__(self) -> None:
        self._made: dict[int, tuple[Turn, object, tuple[str, ...]]] = {}
        self._sizes: dict[str, tuple[object, str]] = {}

    def blocks(
        self, turns: Sequence[Turn], theme: Theme, colour: Colour, suggestions: Sequence[str] = ()
    ) -> tuple[str, ...]:
        """The page.

        Args:
            turns: Of the conversation.
            theme: The viewer's colours.
            colour: Of the segment of a finding, by its key.
            suggestions: Shown while nothing was asked.
        """
        # What is gone is not held on to: a mask may be large.
        numbers, keys = {turn.number for turn in turns}, {finding.key for turn in turns for finding in turn.findings}
        self._made = {number: made for number, made in self._made.items() if number in numbers}
        self._sizes = {key: size for key, size in self._sizes.items() if key in keys}
        if not turns:
            return tuple(_welcome(theme, suggestions))
        return tuple(block for turn in turns for block in self._turn(turn, theme, colour, turn is turns[-1]))

    def _turn(self, turn: Turn, theme: Theme, colour: Colour, is_last: bool) -> tuple[str, ...]:
        colours = {finding.key: colour(finding.key) for finding in turn.kept}
        context = (theme, colours, is_last)
        before = self._made.get(turn.number)
        if before is None or before[0] is not turn or before[1] != context:
            before = (turn, context, tuple(self._paragraphs(turn, theme, colours, is_last)))
            self._made[turn.number] = before
        return before[2]

    def _paragraphs(self, turn: Turn, theme: Theme, colours: dict[str, str], is_last: bool) -> Iterator[str]:
        yield from _question(turn, theme)
        yield from self._answer(turn, theme, colours)
        for finding in turn.kept:
            yield self._finding(finding, theme, colours[finding.key])
        if turn.state == "done" and not turn.findings and turn.text.strip():
            yield _paragraph(_small(_("Nothing was found to show on the scan."), theme.quiet), after=2)
        for sentence in turn.warnings:
            yield _paragraph(
                _small(_("Note: {sentence}").format(sentence=one_line(sentence)), theme.warning), before=3, after=2
            )
        if turn.state == "running":
            yield _paragraph(_small(_progress(turn), theme.quiet), after=2)
        if turn.note:
            again = f" &nbsp;{_link(RETRY, _('Ask again') if turn.state == 'stopped' else _('Retry'), theme)}"
            note = _small(one_line(turn.note), theme.quiet if turn.state == "stopped" else theme.warning)
            yield _paragraph(note + (again if is_last else ""), before=3, after=2)

    def _answer(self, turn: Turn, theme: Theme, colours: dict[str, str]) -> Iterator[str]:
        if turn.state == "done" and not turn.text.strip():
            words = _("Done.") if turn.findings else _("Nothing was found.")
            yield _paragraph(html.escape(words), after=4, line=True)
        findings = {finding.key: finding for finding in turn.kept}
        for line in _lines(_pieces(turn)):
            inner = "".join(
                self._word(text, findings[keys[0]], theme, colours[keys[0]]) if keys else html.escape(text)
                for text, keys in line
            )
            yield _paragraph(inner, after=4, line=True)

    def _word(self, text: str, finding: Finding, theme: Theme, colour: str) -> str:
        """Words of an answer, tied to what they name."""
        style = f"color:{theme.ink(colour)};background-color:{theme.tint(colour)}"
        if finding.hidden:
            style = f"color:{theme.quiet}"
        tip = html.escape(
            _("{name}: {facts}. Click to go there.").format(name=one_line(finding.name), facts=self._facts(finding))
        )
        title = html.escape(f"<p>{tip}</p>")  # a tool tip is a page of its own
        address = f"{FINDING}:{quote(finding.key)}"
        opening = f'<a href="{address}" title="{title}" style="{style};text-decoration:underline">'
        return f"{opening}{html.escape(text)}</a>"

    def _finding(self, finding: Finding, theme: Theme, colour: str) -> str:
        name = html.escape(_isolated(one_line(finding.name)))
        shade = theme.quiet if finding.hidden else theme.text
        square = f'<span style="color:{theme.line if finding.hidden else theme.mark(colour)}">■</span>'
        link = f'<a href="{FINDING}:{quote(finding.key)}" style="color:{shade};text-decoration:none">{name}</a>'
        unsure = finding.region.certainty == "uncertain"
        facts = _small(self._facts(finding), theme.warning if unsure and not finding.hidden else theme.quiet)
        return _paragraph(f"{_FROM_LEFT}{square}&nbsp; {link} &nbsp;{facts}", left=28, first=-18, after=2)

    def _facts(self, finding: Finding) -> str:
        """How sure and how large, in words and numbers."""
        facts = [f"{score_text(finding)}, {self._size(finding)}", *([_("hidden")] if finding.hidden else [])]
        return ", ".join(facts)

    def _size(self, finding: Finding) -> str:
        """Its size as it was found; counted once, for a mask may have millions of voxels."""
        before = self._sizes.get(finding.key)
        if before is None or before[0] is not finding.region:
            before = (finding.region, finding.region.size_text)
            self._sizes[finding.key] = before
        return before[1]


def score_text(finding: Finding) -> str:
    """How sure the model is, in a word and a number: "likely (0.71)"."""
    return f"{finding.region.certainty} ({finding.region.score:.2f})"


def one_line(text: object) -> str:
    """Any text on one line, as Qt may be given it."""
    return " ".join(clean(text).split())


def key_of(address: str) -> str:
    """The key of the finding that a link stands for; "" where it stands for something else."""
    scheme, _colon, rest = address.partition(":")
    return unquote(rest) if scheme == FINDING else ""


def suggestion_of(address: str) -> int | None:
    """The place of the suggestion that a link stands for."""
    scheme, _colon, rest = address.partition(":")
    return int(rest) if scheme == SUGGESTION and rest.isdecimal() else None


def _welcome(theme: Theme, suggestions: Sequence[str]) -> Iterator[str]:
    yield _paragraph(f"<b>{_('Ask about this scan in plain words.')}</b>", before=10, after=4)
    hint = _("What an answer names is shown on the scan, in the colour of its words. Click a word to go there.")
    yield _paragraph(_small(hint, theme.quiet), after=10, line=True)
    for place, words in enumerate(suggestions):
        yield _paragraph(_link(f"{SUGGESTION}:{place}", one_line(words), theme), after=5)


def _question(turn: Turn, theme: Theme) -> Iterator[str]:
    asked = turn.asked
    words = asked.text if asked.kind == "ask" else _("Segment: {what}").format(what=asked.text or _("what was marked"))
    before = 22 if turn.number > 1 else 6
    for line in clean(words).split("\n"):
        if line.strip():
            yield _paragraph(f"<b>{html.escape(line)}</b>", before=before, line=True)
            before = 0
    yield _paragraph(_small(place_of(asked), theme.quiet), after=5)


def _progress(turn: Turn) -> str:
    progress = turn.progress
    if progress is None:
        return _("Working …")
    if not progress.total:
        return f"{one_line(progress.what)} …"
    count = _("({done} of {total})").format(done=progress.done, total=progress.total)
    return f"{one_line(progress.what)} {count} …"


def _pieces(turn: Turn) -> Iterator[tuple[str, tuple[str, ...]]]:
    """The answer with what it names, also where it has no words for that: there the finding's name stands."""
    place, before = 0, ""
    for piece in (*turn.pieces(), Piece("", ())):
        for finding in turn.kept:
            if finding.region.span.start == finding.region.span.end == place:
                if before[-1:].isalnum():
                    yield " ", ()
                before = one_line(finding.name)
                yield before, (finding.key,)
        yield piece.text, piece.keys
        place, before = place + len(piece.text), piece.text


def _lines(pieces: Iterable[tuple[str, tuple[str, ...]]]) -> Iterator[list[tuple[str, tuple[str, ...]]]]:
    """Pieces of a text by paragraph; a very long paragraph ends with one of its sentences."""
    line: list[tuple[str, tuple[str, ...]]] = []
    length = 0
    for whole, keys in pieces:
        for place, text in enumerate(clean(whole).split("\n")):
            if place:
                if _has_words(line):
                    yield line
                line, length = [], 0
            while text:
                taken = _fitting(text, length)
                line.append((text[:taken], keys))
                length += taken
                if taken < len(text):
                    if _has_words(line):
                        yield line
                    line, length = [], 0
                text = text[taken:] if length else text[taken:].lstrip(" ")
    if _has_words(line):
        yield line


def _has_words(line: Sequence[tuple[str, tuple[str, ...]]]) -> bool:
    """Whether a paragraph of it would be one: Qt leaves out those that hold nothing."""
    return any(text.strip() for text, _keys in line)


def _fitting(text: str, length: int) -> int:
    """How much of a text still belongs to a paragraph that has a length."""
    if length + len(text) <= LONGEST_PARAGRAPH:
        return len(text)
    room = max(LONGEST_PARAGRAPH - length, 0)
    end = _SENTENCE.search(text, room, room + _LATEST_BREAK)
    if end is not None:
        return end.end()
    if length + len(text) <= LONGEST_PARAGRAPH + _LATEST_BREAK:
        return len(text)
    space = text.rfind(" ", room, room + _LATEST_BREAK)
    return space if space > 0 else max(room + _LATEST_BREAK, 1)


def _paragraph(
    inner: str, *, before: int = 0, after: int = 0, left: int = 0, first: int = 0, line: bool = False
) -> str:
    height = (";line-height:125%" if line else "") + (f";text-indent:{first}px" if first else "")
    style = f"margin-top:{before}px;margin-bottom:{after}px;margin-left:{left}px{height};white-space:pre-wrap"
    return f'<p style="{style}">{inner}</p>'


def _small(text: str, colour: str) -> str:
    return f'<span style="font-size:small;color:{colour}">{html.escape(text)}</span>'


def _link(address: str, text: str, theme: Theme) -> str:
    return f'<a href="{address}" style="color:{theme.accent};text-decoration:none">{html.escape(text)}</a>'


def _isolated(text: str) -> str:
    """A name among numbers; one from right to left must not take them along."""
    turned = any(unicodedata.bidirectional(character) in ("R", "AL") for character in text)
    return f"\u2068{text}\u2069" if turned else text

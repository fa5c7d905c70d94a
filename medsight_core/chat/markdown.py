"""A conversation as Markdown, for a person to keep or to paste into a note."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Final

from medsight_core.backend import Whole
from medsight_core.chat.turns import Asked, Finding, Turn

NOTICE: Final = "Research use only. Not a medical device."

_SPECIAL: Final = re.compile(r"([\\`*_\[\]<>#|~&$])")
_BLOCK: Final = re.compile(r"^(\s*)([-+=])|^(\s*\d+)([.)])", re.MULTILINE)


def to_markdown(turns: Sequence[Turn], *, title: str = "MedSIGHT conversation") -> str:
    """The turns with the words that are tied to findings in bold, their findings, and what else must be known.

    Args:
        turns: Of the conversation.
        title: Of the page.
    """
    lines = [f"# {escape(title)}", "", f"*{NOTICE}*"]
    for turn in turns:
        lines += ["", *_turn(turn)]
    models = dict.fromkeys((turn.provenance.model, turn.provenance.digest) for turn in turns if turn.provenance)
    lines += ["", *(f"Model: {escape(name)} ({escape(digest)})" for name, digest in models)] if models else []
    return "\n".join(lines) + "\n"


def escape(text: str) -> str:
    """Text as text: nothing in it is taken for Markdown or for HTML."""
    plain = "".join(character if character.isprintable() or character == "\n" else "�" for character in text)
    return _BLOCK.sub(r"\1\3\\\2\4", _SPECIAL.sub(r"\\\1", plain)).replace("\n", "  \n")


def place_of(asked: Asked) -> str:
    """Where something was asked, in words: "slice 10, 2 points" or "volume, coronal, slices 3 to 9"."""
    if asked.whole is not None:
        return _volume_in_words(asked.whole)
    drawn = Counter(stroke.prompt.kind for stroke in asked.strokes)
    marks = [f"{count} {kind}{_plural(kind) if count > 1 else ''}" for kind, count in drawn.items()]
    return ", ".join([f"slice {asked.slice_index}", *marks])


def _turn(turn: Turn) -> Iterator[str]:
    asked = turn.asked
    words = asked.text if asked.kind == "ask" else f"Segment: {asked.text or 'what was marked'}"
    yield f"**You** ({place_of(asked)}): {escape(words)}"
    yield ""
    yield f"**MedSIGHT**: {_answer(turn)}".rstrip()
    if turn.kept:
        yield ""
        yield from (f"- {_finding(finding)}" for finding in turn.kept)
    for sentence in (turn.note, *turn.warnings):
        if sentence:
            yield ""
            yield f"> {escape(sentence)}"


def _answer(turn: Turn) -> str:
    return "".join(f"**{escape(piece.text)}**" if piece.keys else escape(piece.text) for piece in turn.pieces())


def _finding(finding: Finding) -> str:
    region = finding.region
    parts = [escape(finding.name), escape(region.code), f"score {region.score:.2f} ({region.certainty})"]
    return ", ".join([*parts, region.size_text, *(["hidden"] if finding.hidden else [])])


def _volume_in_words(whole: Whole) -> str:
    words = ["volume"]
    if whole.plane != "acquired":
        words.append(whole.plane)
    if whole.slices is not None:
        words.append(f"slices {whole.slices.start} to {whole.slices.stop - 1}")
    return ", ".join(words)


def _plural(kind: str) -> str:
    return "es" if kind == "box" else "s"

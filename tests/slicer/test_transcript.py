"""The page of a conversation: colours, links, scores, failures; and that nothing of what was said becomes markup."""

from __future__ import annotations

import html
import re
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medsight_core.chat import Asked, Turn
from medsight_core.events import Done, Failed, Progress, RegionFound, TextDelta, Warning
from medsight_core.regions import Span
from tests.chat.scripted import answer, region, scan
from tests.slicer.binding import library
from tests.slicer.panel_host import TestHost

HOSTILE = (
    '<img src=x onerror="alert(1)">',
    "<a href='file:///etc/passwd'>here</a>",
    "</p></body></html><h1>big",
    "<script>x</script> &lt;b&gt; &amp; [C0_16]",
    '" style="font-size:99px',
    "<table><tr><td>",
    "<!-- hidden --> visible",
)
BROKEN = (
    "a\0b",
    "\ud83d",
    "\ude00 tail",
    "x\u202eevil",
    "a\u2029b\u2028c",
    "\ufdd0frame\ufdd1",
    "obj\ufffc",
    "\x1b[31m",
)


@pytest.fixture
def lib() -> Any:
    yield from library("plain")


def blocks(lib: Any, *turns: Turn, colour: Any = lambda key: "#ff5555", suggestions: tuple[str, ...] = ()) -> list[str]:
    made = lib.transcript.Transcript().blocks(turns, lib.theme.Theme(), colour, suggestions)
    return list(made)


def shown(lib: Any, made: list[str]) -> Any:
    """The document that Qt makes of it."""
    from qtpy import QtGui

    document = QtGui.QTextDocument()
    document.setHtml("".join(made))
    return document


def asked(text: str = "What?", *, number: int = 1, kind: Any = "ask") -> Turn:
    return Turn(number=number, asked=Asked(kind=kind, text=text, slice_index=2))


def complete(text: str, *words: str) -> Turn:
    turn = asked()
    return turn.take(Done(answer(scan(), 2, text, words=words)))


def tags_out(block: str) -> str:
    """The words of a paragraph."""
    return html.unescape(re.sub(r"<[^>]*>", "", block))


def anchors(document: Any) -> list[tuple[str, str, str]]:
    """Address, words, colour of every link."""
    found, block = [], document.begin()
    while block.isValid():
        for piece in block.textFormats():
            if piece.format.isAnchor():
                words = block.text()[piece.start : piece.start + piece.length]
                found.append((piece.format.anchorHref(), words, piece.format.foreground().color().name()))
        block = block.next()
    return found


def test_words_are_links_in_the_colour_of_their_segment(lib: Any) -> None:
    colours = {"1.1": "#ff5555", "1.2": "#eeee00"}
    document = shown(lib, blocks(lib, complete("The liver and the spleen.", "liver", "spleen"), colour=colours.get))
    links = anchors(document)
    theme = lib.theme.Theme()
    assert ("finding:1.1", "liver", theme.ink("#ff5555")) in links
    assert ("finding:1.2", "spleen", theme.ink("#eeee00")) in links
    assert "The liver and the spleen." in document.toPlainText()
    assert [lib.transcript.key_of(address) for address, _, _ in links] == ["1.1", "1.2", "1.1", "1.2"]


def test_scores_are_said_in_a_word_and_a_number(lib: Any) -> None:
    text = shown(lib, blocks(lib, complete("The liver.", "liver"))).toPlainText()
    assert "certain (0.87)" in text and "mm²" in text
    turn = asked().take(RegionFound(replace(region(scan(), 2, Span(0, 0), "mass"), score=0.3)))
    assert "uncertain (0.30)" in shown(lib, blocks(lib, turn)).toPlainText()


def test_nothing_found_is_an_answer(lib: Any) -> None:
    assert "Nothing was found to show" in shown(lib, blocks(lib, complete("I see no tumour."))).toPlainText()
    text = shown(lib, blocks(lib, complete(""))).toPlainText()
    assert "Nothing was found." in text and "to show" not in text
    deleted = complete("The liver.", "liver")
    deleted = replace(deleted, findings=(replace(deleted.findings[0], deleted=True),))
    assert "Nothing was found" not in shown(lib, blocks(lib, deleted)).toPlainText()


def test_a_hidden_finding_keeps_its_link_and_loses_its_colour(lib: Any) -> None:
    turn = complete("The liver.", "liver")
    turn = replace(turn, findings=(replace(turn.findings[0], hidden=True),))
    document = shown(lib, blocks(lib, turn))
    assert ("finding:1.1", "liver", lib.theme.Theme().quiet) in anchors(document)
    assert "hidden" in document.toPlainText()


def test_what_there_was_of_a_failed_answer_stays_and_is_marked(lib: Any) -> None:
    turn = (
        asked().take(TextDelta("The liver is")).take(Failed("timeout", "No answer within 60 s.", "Check the server."))
    )
    document = shown(lib, blocks(lib, turn))
    text = document.toPlainText()
    assert "The liver is" in text and "Interrupted: No answer within 60 s. Check the server." in text
    assert ("action:retry", "Retry") in [link[:2] for link in anchors(document)]
    later = shown(lib, blocks(lib, turn, asked(number=2)))
    assert not any(address == "action:retry" for address, _, _ in anchors(later)), "only the last one can be retried"
    stopped = asked().take(TextDelta("The")).take(Failed("stopped", "Stopped."))
    document = shown(lib, blocks(lib, stopped))
    assert "Stopped before it was complete." in document.toPlainText()
    assert ("action:retry", "Ask again") in [link[:2] for link in anchors(document)]


def test_progress_and_warnings_stand_beside_the_answer(lib: Any) -> None:
    turn = asked()
    assert "Working" in shown(lib, blocks(lib, turn)).toPlainText()
    turn = turn.take(Progress(3, 12, "Looking at the image")).take(Warning("The slice is mirrored."))
    text = shown(lib, blocks(lib, turn)).toPlainText()
    assert "Looking at the image (3 of 12)" in text and "Note: The slice is mirrored." in text


def test_an_empty_conversation_suggests_questions(lib: Any) -> None:
    document = shown(lib, blocks(lib, suggestions=("Where is the <liver>?",)))
    assert ("suggestion:0", "Where is the <liver>?") in [link[:2] for link in anchors(document)]
    assert lib.transcript.suggestion_of("suggestion:0") == 0
    assert lib.transcript.suggestion_of("suggestion:x") is None and lib.transcript.suggestion_of("finding:1") is None


@pytest.mark.parametrize("text", [*HOSTILE, *BROKEN])
def test_nothing_said_becomes_markup(lib: Any, text: str) -> None:
    """As a question, an answer, a label, a warning, a failure, a step and a suggestion: read back letter for letter."""
    turn = asked(text or "x").take(TextDelta(text)).take(RegionFound(region(scan(), 2, Span(0, len(text)), text)))
    turn = turn.take(Progress(0, 0, text)).take(Warning(text))
    failed = asked(text, number=2).take(Failed("x", text, text))
    made = blocks(lib, turn, failed)
    document = shown(lib, made)
    assert document.blockCount() == len(made), "each string is one paragraph"
    addresses = {address for address, _, _ in anchors(document)}
    assert addresses <= {"finding:1.1", "action:retry"}
    words = lib.transcript.one_line(text)
    plain = " ".join(document.toPlainText().split())
    assert plain.count(words) >= 6, plain
    assert "<img" not in "".join(made).lower() and "￼" not in plain
    assert words in " ".join(shown(lib, blocks(lib, suggestions=(text,))).toPlainText().split())


def test_a_colour_that_is_none_does_not_get_into_the_page(lib: Any) -> None:
    made = "".join(blocks(lib, complete("The liver.", "liver"), colour=lambda key: 'red"><img src=x>'))
    assert "<img" not in made and "red" not in made


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text(max_size=40), min_size=1, max_size=6))
def test_every_string_is_one_paragraph_whatever_is_said(texts: list[str]) -> None:
    for lib in library("plain"):
        turn = asked(texts[0])
        for text in texts:
            turn = turn.take(TextDelta(text))
        made = blocks(lib, turn)
        assert shown(lib, made).blockCount() == len(made)


def test_the_words_of_a_long_answer_all_stay_and_in_order(lib: Any) -> None:
    words = [f"word{n}" + ("." if n % 9 == 0 else "") for n in range(10_000)]
    for text in (" ".join(words), "x" * 30_000, "。".join(["这是一个很长的句子"] * 900)):
        turn = asked().take(TextDelta(text)).take(RegionFound(region(scan(), 2, Span(6000, 6100), "liver")))
        made = blocks(lib, turn)
        plain = [tags_out(block) for block in made][2:-2]
        assert "".join(plain).replace(" ", "") == text.replace(" ", "")
        assert max(map(len, plain)) <= lib.transcript.LONGEST_PARAGRAPH + 400


def test_right_to_left_and_wide_characters(lib: Any) -> None:
    from qtpy import QtCore

    document = shown(lib, blocks(lib, complete("الكبد طبيعي.\n肝脏正常。", "الكبد")))
    directions = {}
    block = document.begin()
    while block.isValid():
        directions[block.text()] = block.textDirection()
        block = block.next()
    assert directions["الكبد طبيعي."] == QtCore.Qt.RightToLeft
    assert directions["肝脏正常。"] == QtCore.Qt.LeftToRight
    row = next(text for text in directions if "certain" in text)
    assert "\u2068الكبد\u2069" in row, "a name from right to left does not turn the numbers beside it"
    assert directions[row] == QtCore.Qt.LeftToRight, "the square before it is not cut off at the edge"


def test_all_words_can_be_read_on_light_and_dark(lib: Any) -> None:
    theme = lib.theme
    for base, text in (("#ffffff", "#000000"), ("#232323", "#f0f0f0"), ("#000000", "#ffffff"), ("#2d2d30", "#dcdcdc")):
        made = theme.Theme(base=base, text=text, link="#2a82da")
        for ink in (made.quiet, made.accent, made.warning):
            assert theme.contrast(ink, base) >= 4.5
        for colour in (
            "#ff5555",
            "#00ff00",
            "#4455ff",
            "#eeee00",
            "#667700",
            "#ffbbff",
            "#bb00ff",
            "#000000",
            "#ffffff",
        ):
            assert theme.contrast(made.ink(colour), made.tint(colour)) >= 4.5


def test_turns_that_did_not_change_are_not_made_again(lib: Any) -> None:
    host = TestHost()
    host.say("The liver.", "liver")
    host.conversation.ask("And?", slice_index=2)
    transcript, theme = lib.transcript.Transcript(), lib.theme.Theme()
    first = transcript.blocks(host.conversation.turns, theme, host.colour)
    host.take(TextDelta("More"))
    second = transcript.blocks(host.conversation.turns, theme, host.colour)
    assert all(a is b for a, b in zip(first[:4], second[:4], strict=True)) and first != second
    assert transcript.blocks(host.conversation.turns, lib.theme.Theme(base="#232323"), host.colour)[0] != second


@pytest.mark.parametrize(
    ("text", "place", "read"),
    [
        ("I see it in the.", 15, "I see it in the region."),
        (".", 0, "region."),
        ("There it is: ", 13, "There it is: region"),
    ],
)
def test_a_finding_without_words_in_the_answer_can_be_clicked_there(
    lib: Any, text: str, place: int, read: str
) -> None:
    made = replace(answer(scan(), 2, text), regions=(region(scan(), 2, Span(place, place), "region"),))
    page = blocks(lib, asked().take(Done(made)))
    (line,) = [one for one in page if tags_out(one) == read]
    assert anchors(shown(lib, [line]))[0][:2] == ("finding:1.1", "region")
    early = asked().take(TextDelta(text[:place])).take(RegionFound(made.regions[0]))
    assert any(tags_out(one).endswith("region") for one in blocks(lib, early))

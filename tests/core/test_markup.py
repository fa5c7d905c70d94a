"""Markup out of generated text: which words a code grounds, whole and streamed."""

from __future__ import annotations

import re
from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from medsight_core.codes import RegionCode
from medsight_core.markup import Grounding, MarkupStream, parse_markup


def grounded(raw: str) -> tuple[str, list[tuple[str, str]]]:
    text, found = parse_markup(raw)
    return text, [(str(code), span.of(text)) for code, span in found]


@pytest.mark.parametrize(
    ("raw", "text", "words"),
    [
        (
            "The image shows the <p>left lung</p>[C4_3] and the <p>right lung</p>[C4_7].",
            "The image shows the left lung and the right lung.",
            ["left lung", "right lung"],
        ),
        ("<p>two nodules</p> [C1_1][C1_2] are seen.", "two nodules are seen.", ["two nodules", "two nodules"]),
        ("The <p> left lung </p> [C0_3].", "The left lung.", ["left lung"]),
        ("The <p>left lung</p> is shown here [C0_3].", "The left lung is shown here.", ["left lung"]),
        ("The <p>left lung</p>\n[C0_3]\nis clear.", "The left lung\nis clear.", ["left lung"]),
        ("<p>open span[C0_1]</p> and on", "open span and on", ["open span"]),
        ("<p>sub</p>cutaneous fat", "subcutaneous fat", []),
        ("No <p>polyp</p> is seen.", "No polyp is seen.", []),
        ("<p></p>[C1_1] nothing", "nothing", [""]),
    ],
)
def test_a_code_grounds_the_span_before_it(raw: str, text: str, words: list[str]) -> None:
    got_text, found = grounded(raw)
    assert got_text == text
    assert [phrase for _, phrase in found] == words


@pytest.mark.parametrize(
    ("raw", "text", "words"),
    [
        ("There is a hypodense lesion in the liver [M0_16].", "There is a hypodense lesion in the liver.", ["liver"]),
        ("A small enhancing tumour [M2_11] is seen.", "A small enhancing tumour is seen.", ["small enhancing tumour"]),
        ("the head of the pancreas [M0_1]", "the head of the pancreas", ["head of the pancreas"]),
        (
            "In the CT, left kidney [M0_1] and spleen [M0_2]",
            "In the CT, left kidney and spleen",
            ["left kidney", "spleen"],
        ),
        ("liver [M0_1] spleen [M0_2]", "liver spleen", ["liver", "spleen"]),
        ("liver [M0_1], [M0_2] and [M0_3]", "liver, and", ["liver"] * 3),
        ("liver[M0_1]and more", "liver and more", ["liver"]),
        ("Yes, the polyp is outlined here: [M3_1]", "Yes, the polyp is outlined here:", ["polyp"]),
        ("It is large. [M3_1]", "It is large.", [""]),
        ("[M3_1] first", "first", [""]),
        ("The COVID-19 infection [M3_1].", "The COVID-19 infection.", ["COVID-19 infection"]),
    ],
)
def test_without_spans_a_code_grounds_the_noun_phrase_before_it(raw: str, text: str, words: list[str]) -> None:
    got_text, found = grounded(raw)
    assert got_text == text
    assert [phrase for _, phrase in found] == words


@pytest.mark.parametrize("raw", ["a < b", "x [y] z", "<pp>", "[C1_ 2]", "1 <= 2 [sic]", "[[C", "<", "mask [1]", "</q>"])
def test_what_only_looks_like_markup_stays(raw: str) -> None:
    text, found = parse_markup(raw + " end")
    assert (text, found) == (raw + " end", [])


@pytest.mark.parametrize("tail", ["<", "<p", "</", "</p", "[", "[C", "[C4", "[C4_", "[C4_3", "   ", " \n"])
def test_half_a_tag_or_code_at_the_end_is_not_for_the_reader(tail: str) -> None:
    assert parse_markup("The liver" + tail) == ("The liver", [])


def test_codes_are_given_in_the_order_of_the_text() -> None:
    _, found = parse_markup("<p>a1</p>[C0_1] <p>b1</p>[C5_2][C0_1]")
    assert [code for code, _ in found] == [RegionCode(0, 1), RegionCode(5, 2), RegionCode(0, 1)]


WORDS = (
    "<p> </p> <p>left </p>[C0_1] [C0_1] [M12_3] [C <p < [ ] > the liver of lung and head , . : ; ( ) é 肝 3 ' - is here"
)
pieces = st.sampled_from([*WORDS.split(), " ", "  ", "\n", "\t"])
generated = st.lists(pieces, max_size=40).map("".join)


@given(generated, st.data())
@example("The <p>left lung</p>[C4_3] [C4_7].", None)
def test_a_stream_cut_anywhere_gives_what_the_whole_text_gives(raw: str, data: st.DataObject | None) -> None:
    if data is None:
        cuts = list(range(len(raw) + 1))
    else:
        cuts = sorted({0, len(raw), *data.draw(st.lists(st.integers(0, len(raw)), max_size=12))})
    stream = MarkupStream()
    shown, found = "", []
    for start, end in pairwise(cuts):
        for piece in stream.feed(raw[start:end]):
            if isinstance(piece, Grounding):
                # The words of a grounding were shown before it.
                assert piece.span.end <= len(shown)
                found.append(piece)
            else:
                assert piece
                shown += piece
    assert shown == stream.text
    assert (shown, found) == parse_markup(raw)


@given(generated)
def test_a_reader_never_sees_markup(raw: str) -> None:
    text, found = parse_markup(raw)
    # Removing markup may bring two halves together ("<<p>p>"); then they are text by right.
    if not re.search(r"[<\[][^<\[]*[<\[]", raw):
        assert not re.search(r"</?p>|\[[CM]\d+_\d+\]", text)
    assert text == text.strip()
    assert len(found) == len(re.findall(r"\[[CM]\d{1,5}_\d{1,5}\]", raw))
    for _, span in found:
        words = span.of(text)
        assert words == words.strip()


@given(generated)
def test_what_is_left_is_the_text_in_order(raw: str) -> None:
    """Nothing but markup and white space is taken away, and only white space is added."""
    without = re.sub(r"</?p>|\[[CM]\d{1,5}_\d{1,5}\]", "", raw)
    text, _ = parse_markup(raw)
    kept, whole = "".join(text.split()), "".join(without.split())
    assert whole.startswith(kept)
    assert re.fullmatch(r"(?:<|</|<p|</p|\[[CM\d_]*)?", whole[len(kept) :])

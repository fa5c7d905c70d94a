"""Tokens to text and mentions."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from medsight_core.codes import RegionVocabulary
from medsight_core.inference.transcript import HEADER, UNNAMED, Detokenizer, Transcript
from medsight_core.markup import parse_markup
from tests.inference.tiny import SENTENCES
from training.tokenizer import build_tokenizer

TOKENIZER = build_tokenizer(SENTENCES * 3, vocab_size=400, groups=3, codes=4)
CODES = RegionVocabulary.from_tokens(TOKENIZER.get_vocab())


def written(tokens: list[int]) -> tuple[Transcript, str]:
    transcript = Transcript(tokenizer=TOKENIZER.backend_tokenizer, codes=CODES)
    shown = [text for token in tokens for text in transcript.feed(token)]
    shown += transcript.finish()
    return transcript, "".join(shown)


def ids(text: str, tokenizer: PreTrainedTokenizerFast = TOKENIZER) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


@given(st.lists(st.integers(0, len(TOKENIZER) - 1), max_size=30))
def test_any_tokens_give_the_text_that_they_decode_to(tokens: list[int]) -> None:
    transcript, shown = written(tokens)
    whole = TOKENIZER.decode(tokens, skip_special_tokens=True)
    assert transcript.raw == whole
    assert shown == transcript.text == parse_markup(whole)[0]
    assert [mention.code for mention in transcript.mentions] == [
        CODES.name(code) for code in map(CODES.code, tokens) if code is not None
    ]
    for mention in transcript.mentions:
        assert mention.label == (mention.span.of(transcript.text).strip() or UNNAMED)


@given(st.text(max_size=20))
def test_any_text_comes_through_byte_by_byte(text: str) -> None:
    stream = Detokenizer(TOKENIZER.backend_tokenizer)
    tokens = [token for character in text for token in ids(character)]
    assert "".join(stream.feed(token) for token in tokens) + stream.rest() == TOKENIZER.decode(tokens)


@given(st.text("aé你🫀 ", max_size=12))
def test_letters_that_are_spelt_in_bytes_come_through(text: str) -> None:
    """As in the vocabularies of Llama 2, Mistral and Gemma, whose decoder reads all bytes in a row as one."""
    words = {f"<0x{byte:02X}>": byte for byte in range(256)} | {"▁": 256, "a": 257}
    tokenizer = Tokenizer(models.BPE(vocab=words, merges=[], byte_fallback=True))
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokens = tokenizer.encode(text.replace(" ", "▁")).ids
    stream = Detokenizer(tokenizer)
    assert "".join(map(stream.feed, tokens)) + stream.rest() == tokenizer.decode(tokens) == text.removeprefix(" ")


def test_a_character_of_several_bytes_comes_whole() -> None:
    stream = Detokenizer(TOKENIZER.backend_tokenizer)
    pieces = [stream.feed(token) for token in ids("5 µm²…")]
    assert "".join(pieces) == "5 µm²…"
    assert "\ufffd" not in "".join(pieces)


def test_mentions_have_the_words_before_the_code() -> None:
    transcript, shown = written(ids("The <p>left lung</p>[C0_3] and the right lung[C0_1]."))
    assert shown == "The left lung and the right lung."
    assert [(m.code, m.label) for m in transcript.mentions] == [("[C0_3]", "left lung"), ("[C0_1]", "right lung")]


def test_a_code_that_is_spelt_out_grounds_nothing() -> None:
    letters = [token for character in "[C0_3]" for token in ids(character)]
    assert TOKENIZER.decode(letters) == "[C0_3]"
    transcript, shown = written([*ids("liver"), *letters, *ids(" lung[C0_3]")])
    assert shown == "liver lung"
    assert [mention.label for mention in transcript.mentions] == ["lung"]


def test_words_of_nothing_but_space_are_no_name() -> None:
    transcript, _ = written(ids("the <p> </p>[C0_3]"))
    assert [mention.label for mention in transcript.mentions] == [UNNAMED]


@pytest.mark.parametrize("text", ["[C0_3]", "Is it [C1_0]?", "the and [C2_2]"])
def test_a_code_without_words_is_a_region_without_a_name(text: str) -> None:
    transcript, _ = written(ids(text))
    (mention,) = transcript.mentions
    assert mention.label == UNNAMED
    assert mention.span.start == mention.span.end


def test_the_model_may_open_its_turn_itself() -> None:
    """What the released model writes before its answer is no part of it; half of that, or the same later, is kept."""
    header, words = ids(HEADER), ids("The liver[C0_3].")
    transcript, shown = written([*header, *words])
    assert shown == transcript.text == "The liver."
    assert transcript.raw == "The liver[C0_3]."
    assert [mention.label for mention in transcript.mentions] == ["liver"]
    assert written(header)[1] == written(header)[0].raw == ""
    assert written([*header[:-1], *words])[1] == "assistantThe liver."
    assert written([*words, *header])[1].startswith("The liver.assistant")


def test_released_names_of_codes_are_shown_as_ours() -> None:
    """The checkpoint's own `[M0_3]` is `[C0_3]` for people, and goes back as it came."""
    tokenizer = released_tokenizer()
    codes = RegionVocabulary.from_tokens(tokenizer.get_vocab())
    transcript = Transcript(tokenizer=tokenizer.backend_tokenizer, codes=codes)
    shown = [t for token in ids("The <p>liver</p>[M0_3] and spleen [M1_0].", tokenizer) for t in transcript.feed(token)]
    assert "".join([*shown, *transcript.finish()]) == "The liver and spleen."
    assert [(m.code, m.label) for m in transcript.mentions] == [("[C0_3]", "liver"), ("[C1_0]", "spleen")]
    assert transcript.raw == "The <p>liver</p>[C0_3] and spleen [C1_0]."
    assert codes.spelt(transcript.raw) == "The <p>liver</p>[M0_3] and spleen [M1_0]."
    assert codes.spelt("[C9_9] and [C0_0]") == "[C9_9] and [M0_0]"


def released_tokenizer() -> PreTrainedTokenizerFast:
    """The same words, codes as the release spells them."""
    table = json.loads(TOKENIZER.backend_tokenizer.to_str().replace("[C", "[M"))
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(table)))

"""Names of region codes, and the vocabulary read from a tokenizer."""

from __future__ import annotations

import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medsight_core.codes import CODE_BEGINNING, CODE_PATTERN, RegionCode, RegionVocabulary, find_codes
from medsight_core.errors import CheckpointError, MedSightError

codes = st.builds(RegionCode, st.integers(0, 99_999), st.integers(0, 99_999))


@given(codes)
def test_a_code_reads_back_from_its_name(code: RegionCode) -> None:
    assert RegionCode.parse(str(code)) == code


def test_the_spelling_of_released_checkpoints_is_read_too() -> None:
    assert RegionCode.parse("[M2_16]") == RegionCode(2, 16)
    assert str(RegionCode(2, 16)) == "[C2_16]"


@pytest.mark.parametrize(
    "text", ["", "C2_16", "[C2_16", "[C2_16] ", "[C2-16]", "[C_1]", "[C²_1]", "[D2_16]", "[C1_123456]"]
)
def test_what_is_not_a_code_is_refused_by_name(text: str) -> None:
    with pytest.raises(MedSightError, match="looks like") as caught:
        RegionCode.parse(text)
    assert caught.value.code == "bad_region_code"


def test_a_code_counts_from_zero() -> None:
    with pytest.raises(MedSightError):
        RegionCode(-1, 0)


@given(codes)
def test_every_beginning_of_a_code_is_known_as_one(code: RegionCode) -> None:
    name = str(code)
    for end in range(1, len(name)):
        assert CODE_BEGINNING.fullmatch(name[:end])
        assert not CODE_PATTERN.fullmatch(name[:end])
    assert not CODE_BEGINNING.fullmatch(name)


@given(st.lists(st.tuples(st.text(alphabet="abc [_C]."), codes), max_size=6))
def test_codes_are_found_where_they_stand(parts: list[tuple[str, RegionCode]]) -> None:
    text = "".join(f"{words}|{code}" for words, code in parts)
    found = list(find_codes(text))
    assert all(RegionCode.parse(text[match.start : match.end]) == match.code for match in found)
    spoken = [match.code for match in found]
    # The words around may spell a code by chance, but none of ours is missed and their order is kept.
    for _, code in parts:
        assert code in spoken
        spoken = spoken[spoken.index(code) + 1 :]


@pytest.fixture
def vocabulary() -> RegionVocabulary:
    return RegionVocabulary.from_tokens({"lung": 3, "[C1_0]": 90, "[C0_1]": 71, "[C0_0]": 70, "[SEP]": 4, "[C0_": 5})


def test_a_vocabulary_picks_the_codes_out_of_a_tokenizer(vocabulary: RegionVocabulary) -> None:
    assert list(vocabulary) == [RegionCode(0, 0), RegionCode(0, 1), RegionCode(1, 0)]
    assert len(vocabulary) == 3
    assert vocabulary.token_id(RegionCode(1, 0)) == 90
    assert vocabulary.code(71) == RegionCode(0, 1)
    assert vocabulary.code(3) is None
    assert vocabulary.name(RegionCode(0, 1)) == "[C0_1]"
    assert RegionCode(1, 0) in vocabulary and RegionCode(1, 1) not in vocabulary


def test_a_vocabulary_finds_its_own_codes_only(vocabulary: RegionVocabulary) -> None:
    found = list(vocabulary.finditer("a [C0_1] b [C7_1] c [M0_1] d [C1_0]"))
    assert [match.code for match in found] == [RegionCode(0, 1), RegionCode(1, 0)]


def test_a_vocabulary_keeps_the_spelling_of_its_checkpoint() -> None:
    vocabulary = RegionVocabulary.from_tokens({"[M0_0]": 8})
    assert vocabulary.name(RegionCode(0, 0)) == "[M0_0]"
    assert [match.start for match in vocabulary.finditer("x [M0_0]")] == [2]


def test_a_vocabulary_travels_between_processes(vocabulary: RegionVocabulary) -> None:
    assert pickle.loads(pickle.dumps(vocabulary)) == vocabulary


@pytest.mark.parametrize(
    ("tokens", "words"),
    [
        ({"lung": 3}, "no region codes"),
        ({"[C0_0]": 1, "[M0_0]": 2}, "twice"),
        ({"[C0_0]": 1, "[C0_2]": 2}, "from 0 upwards"),
        ({"[C0_0]": 1, "[C0_1]": 1}, "share one token id"),
    ],
)
def test_a_broken_vocabulary_is_refused_by_name(tokens: dict[str, int], words: str) -> None:
    with pytest.raises(CheckpointError, match=words):
        RegionVocabulary.from_tokens(tokens)

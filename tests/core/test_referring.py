"""Phrases as people write them, and the names and selectors they stand for."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medsight_core.errors import InputError
from medsight_core.naming import same_name
from medsight_core.referring import Inside, Near, OnSide, Place, Ranked, Reference, Target, parse_reference

KNOWN = (
    "aorta", "colon", "common nevus", "consolidation", "inferior vena cava", "kidney", "kidney tumor", "left lung",
    "liver", "lower-grade glioma", "malignant tumor", "melanoma", "multiple sclerosis lesion", "pancreas", "polyp",
    "portal and splenic vein", "right adrenal gland", "right lung", "spleen", "vessel",
)  # fmt: skip
LESIONS = (
    "common nevus", "consolidation", "kidney tumor", "lower-grade glioma", "malignant tumor", "melanoma",
    "multiple sclerosis lesion", "polyp",
)  # fmt: skip


def parsed(phrase: str) -> Reference:
    return parse_reference(phrase, KNOWN)


def names(phrase: str) -> tuple[str, ...]:
    return tuple(target.name for target in parsed(phrase).targets)


@pytest.mark.parametrize(
    ("phrase", "expected"),
    [
        ("the liver", ("liver",)),
        ("hepatic", ("liver",)),
        ("Livers", ("liver",)),
        ("IVC", ("inferior vena cava",)),
        ("portal_and_splenic_vein", ("portal and splenic vein",)),
        ("portal vein and splenic vein", ("portal and splenic vein",)),
        ("lung_left", ("left lung",)),
        ("lungs", ("left lung", "right lung")),
        ("both lungs", ("left lung", "right lung")),
        ("adrenal gland", ("right adrenal gland",)),
        ("ms lesions", ("multiple sclerosis lesion",)),
        ("brain tumour", ("lower-grade glioma",)),
        ("low grade glioma", ("lower-grade glioma",)),
        ("cancer", ("malignant tumor", "melanoma")),
        ("tumor in the kidney", ("kidney tumor",)),
        ("renal tumors", ("kidney tumor",)),
        ("mole", ("common nevus",)),
        ("a lesion", LESIONS),
        ("all lesions that you can find", LESIONS),
        ("everything", KNOWN),
        ("all", KNOWN),
        ("all organs you know", tuple(name for name in KNOWN if name not in LESIONS)),
        ("liver, spleen and the pancreas", ("liver", "spleen", "pancreas")),
        ("portal and splenic vein and liver", ("portal and splenic vein", "liver")),
    ],
)
def test_names_and_their_synonyms(phrase: str, expected: tuple[str, ...]) -> None:
    reference = parsed(phrase)
    assert tuple(target.name for target in reference.targets) == expected
    assert not reference.selectors
    assert all(target.side is None for target in reference.targets)


@pytest.mark.parametrize(
    ("phrase", "target", "selectors"),
    [
        ("the largest polyp", "polyp", (Ranked(by="size"),)),
        ("the two largest polyps", "polyp", (Ranked(by="size", count=2),)),
        ("3 biggest polyps", "polyp", (Ranked(by="size", count=3),)),
        ("second largest polyp", "polyp", (Ranked(by="size", skip=1),)),
        ("smallest polyp", "polyp", (Ranked(by="size", reverse=True),)),
        ("largest polyps", "polyp", (Ranked(by="size", count=None),)),
        ("the uppermost polyp", "polyp", (Ranked(by="superior"),)),
        ("the most posterior vessel", "vessel", (Ranked(by="posterior"),)),
        ("the leftmost vessel", "vessel", (Ranked(by="left"),)),
        ("the polyp on the left side", "polyp", (OnSide(side="left"),)),
        ("polyps on the patient's right", "polyp", (OnSide(side="right"),)),
        ("the polyp in the colon", "polyp", (Inside(place=Place(text="colon", names=("colon",))),)),
        ("colonic polyp", "polyp", (Inside(place=Place(text="colonic", names=("colon",))),)),
        (
            "the largest colon polyp",
            "polyp",
            (Inside(place=Place(text="colon", names=("colon",))), Ranked(by="size")),
        ),
        ("polyp nearest to the liver", "polyp", (Near(place=Place(text="liver", names=("liver",))),)),
        ("the nearest polyp to the liver", "polyp", (Near(place=Place(text="liver", names=("liver",))),)),
        ("two polyps next to the liver", "polyp", (Near(place=Place(text="liver", names=("liver",)), count=2),)),
        (
            "polyp in the colon farthest from the spleen",
            "polyp",
            (
                Inside(place=Place(text="colon", names=("colon",))),
                Near(place=Place(text="spleen", names=("spleen",)), farthest=True),
            ),
        ),
        ("polyp in the right lobe", "polyp", (Inside(place=Place(text="right lobe", names=("liver",), part="right")),)),
        (
            "polyp in the upper part of the left kidney",
            "polyp",
            (Inside(place=Place(text="upper part of left kidney", names=("kidney",), side="left", part="superior")),),
        ),
        ("polyp in the left lung", "polyp", (Inside(place=Place(text="left lung", names=("left lung",))),)),
        (
            "polyp in the lungs",
            "polyp",
            (Inside(place=Place(text="lungs", names=("left lung", "right lung"))),),
        ),
    ],
)
def test_what_is_chosen(phrase: str, target: str, selectors: tuple[object, ...]) -> None:
    reference = parsed(phrase)
    assert reference.targets == (Target(name=target),)
    assert reference.selectors == selectors
    assert reference.each
    assert set(reference.names) >= {target}


def test_a_side_that_the_name_does_not_say_is_kept_for_later() -> None:
    assert parsed("the left kidney").targets == (Target(name="kidney", side="left"),)
    assert not parsed("the left kidney").each
    assert parsed("left lung").targets == (Target(name="left lung"),)
    assert parsed("left kidney and right lung").targets == (
        Target(name="kidney", side="left"),
        Target(name="right lung"),
    )
    assert parsed("the right polyp").targets == (Target(name="polyp", side="right"),)
    assert parsed("the right polyp").each


def test_what_must_be_looked_for_includes_places() -> None:
    assert parsed("the polyp nearest to the liver").names == ("polyp", "liver")
    assert parsed("lesions in the lungs").names == (*LESIONS, "left lung", "right lung")


@pytest.mark.parametrize(
    ("phrase", "word"),
    [
        ("the spaceship", "spaceship"),
        ("the uppermost nodule", "nodule"),
        ("left adrenal gland", "left adrenal gland"),
        ("high grade glioma", "high grade glioma"),
        ("the lesion in the spaceship", "spaceship"),
        ("the liver and the spaceship", "spaceship"),
        ("the lesion nearest to the moon", "moon"),
        ("largest of many", "of many"),
    ],
)
def test_unknown_words_are_named_with_what_is_known(phrase: str, word: str) -> None:
    with pytest.raises(InputError) as caught:
        parsed(phrase)
    assert caught.value.code == "unknown_structure"
    assert caught.value.sentence.startswith(f'This model does not know "{word}"; it knows aorta, colon,')
    assert caught.value.sentence.count(".") == 1


@pytest.mark.parametrize("phrase", ["", "the", "?", "  ", "the largest"])
def test_a_phrase_without_a_noun_says_so(phrase: str) -> None:
    with pytest.raises(InputError, match="Nothing is named; it knows aorta"):
        parsed(phrase)


def test_choosing_within_an_enumeration_is_refused() -> None:
    with pytest.raises(InputError) as caught:
        parsed("the liver and the largest polyp")
    assert caught.value.code == "too_much"


def test_a_model_that_knows_nothing_says_so() -> None:
    with pytest.raises(InputError, match="knows nothing by name"):
        parse_reference("the liver", ())


@settings(deadline=None)
@given(
    request=st.sampled_from(["", "Segment ", "Please show me ", "Can you outline ", "Where is ", "I want to see "]),
    article=st.sampled_from(["", "the ", "The ", "THE "]),
    noun=st.sampled_from([*KNOWN, "left kidney", "largest polyp", "lesions in the left lung", "two smallest vessels"]),
    tail=st.sampled_from(
        ["", ".", "?", " please", ", please.", " in this scan", " in this CT scan, please!", " in 3D"]
    ),
)
def test_the_wording_around_a_phrase_does_not_matter(request: str, article: str, noun: str, tail: str) -> None:
    plain, asked = parsed(noun), parsed(request + article + noun + tail)
    assert (asked.targets, asked.selectors, asked.each) == (plain.targets, plain.selectors, plain.each)


@settings(deadline=None)
@given(
    st.sampled_from(KNOWN), st.sampled_from([str.upper, str.title, lambda s: s.replace(" ", "_"), lambda s: f"{s}s"])
)
def test_every_name_finds_itself_however_it_is_spelled(name: str, spell) -> None:  # type: ignore[no-untyped-def]
    assert names(spell(name)) == (name,)
    assert same_name(spell(name), name)


@settings(deadline=None)
@given(st.text("abcdefg hijklmnopqrstuvwxyz0123456789,&;-'", max_size=40))
def test_any_text_gives_a_reference_or_one_sentence(text: str) -> None:
    try:
        reference = parsed(text)
    except InputError as error:
        assert error.code in ("unknown_structure", "too_much")
    else:
        assert reference.targets and set(reference.names) <= set(KNOWN)


@pytest.mark.parametrize("phrase", ["the liver and " * 12 + "the moon", "very " * 35 + "large lesion", "lesion " * 41])
def test_long_phrases_are_quick_to_refuse(phrase: str) -> None:
    with pytest.raises(InputError):
        parsed(phrase)

"""What a question about a volume wants, told from its words alone."""

from __future__ import annotations

import pickle

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from medsight_core.errors import InputError
from medsight_core.naming import unknown_name
from medsight_core.understanding import measured_kind, never_taught, understand

WORDS = ("is", "there", "how", "large", "many", "the", "a", "it", "in", "of", "lesion", "liver")
TAUGHT = ("aorta", "kidney", "kidney tumor", "left lung", "liver", "right lung", "spleen")


@pytest.mark.parametrize(
    ("text", "kind", "names"),
    [
        ("Is there a lesion in the liver?", "presence", ("kidney tumor", "liver")),
        ("Is there any evidence of a kidney tumor in this scan?", "presence", ("kidney tumor",)),
        ("Can you see the spleen?", "presence", ("spleen",)),
        ("How large is the left kidney?", "size", ("kidney",)),
        ("What is the volume of the liver?", "size", ("liver",)),
        ("how many lesions are there", "count", ("kidney tumor",)),
        ("Where is the aorta?", "where", ("aorta",)),
        ("Which slices show the lungs?", "slices", ("left lung", "right lung")),
        ("What is the mean density of the spleen?", "density", ("spleen",)),
    ],
)
def test_what_measuring_answers(text: str, kind: str, names: tuple[str, ...]) -> None:
    understood = understand(text, TAUGHT)
    assert (understood.way, understood.kind, understood.unknown) == ("measure", kind, "")
    assert understood.reference is not None and understood.reference.names == names


@pytest.mark.parametrize(
    "text",
    [
        "Segment the largest lesion.",
        "the lesion in the right lobe of the liver",
        "all organs you know",
        "Show me the left kidney, please.",
        "Segment the lungs in this image.",
        "everything",
    ],
)
def test_what_picks_something_out(text: str) -> None:
    understood = understand(text, TAUGHT)
    assert understood.way == "show" and understood.reference is not None and not understood.unknown


@pytest.mark.parametrize(
    "text",
    [
        "Segment the liver in this image.",  # a mere name, which the model can draw
        "liver",
        "What is the diagnosis?",
        "Describe the liver.",
        "Is the liver enlarged?",
        "Segment it.",
        "Segment the largest lesion and the left kidney.",  # more at once than measuring understands
        "",
    ],
)
def test_what_is_left_to_the_model(text: str) -> None:
    understood = understand(text, TAUGHT)
    assert (understood.way, understood.unknown) == ("read", "")


@pytest.mark.parametrize(
    ("text", "way", "unknown"),
    [
        ("How large is the femur?", "measure", "femur"),
        ("How many vertebrae are there?", "measure", "vertebrae"),
        ("How dense is the lesion in the femur?", "measure", "femur"),
        ("Is there a fracture?", "read", "fracture"),
        ("Where is the pneumothorax?", "read", "pneumothorax"),
        ("Segment the right femur.", "read", "right femur"),
        ("Show me the largest moon.", "read", "moon"),
    ],
)
def test_what_was_never_taught_is_named(text: str, way: str, unknown: str) -> None:
    understood = understand(text, TAUGHT)
    assert (understood.way, understood.unknown) == (way, unknown)
    if way == "read":
        understood.refuse(TAUGHT, "CT")
        return
    with pytest.raises(InputError) as caught:
        understood.refuse(TAUGHT, "CT")
    assert caught.value.code == "unknown_structure"
    assert caught.value.sentence == (
        f'This model was never taught to find "{unknown}" in CT; it was taught {", ".join(TAUGHT)}.'
    )


def test_a_model_without_names_reads_everything() -> None:
    for text in ("How large is the liver?", "the largest lesion", "Segment the femur."):
        assert understand(text, ()) == understand("", ())


@pytest.mark.parametrize(
    "earlier", ["Is there a spleen?", "Segment the spleen in this image.", "Show me the spleen, please."]
)
def test_it_is_what_was_spoken_of(earlier: str) -> None:
    history = [("Where is the liver?", ""), (earlier, ""), ("Which slices is it on?", ""), ("Why?", "")]
    understood = understand("How large is it?", TAUGHT, history=history)
    assert (understood.kind, understood.phrase) == ("size", "spleen" if "the" not in earlier else understood.phrase)
    assert understood.reference is not None and understood.reference.names == ("spleen",)
    alone = understand("How large is it?", TAUGHT)
    assert (alone.way, alone.phrase, alone.reference) == ("measure", "", None)


def test_what_is_not_known_survives_the_way_between_processes() -> None:
    error = pickle.loads(pickle.dumps(unknown_name("femur", TAUGHT)))
    assert error.phrase == "femur" and error.code == "unknown_structure" and "femur" in str(error)
    assert never_taught("the femur", "unknown") == 'This model was never taught to find "femur".'


@settings(deadline=None, max_examples=60)
@given(st.text(max_size=60) | st.lists(st.sampled_from(WORDS)))
@example("²")
@example("the " + "9" * 5000 + " largest lesions")
def test_any_text_is_understood_somehow(text: str | list[str]) -> None:
    said = text if isinstance(text, str) else " ".join(text)
    understood = understand(said, TAUGHT)
    assert understood.way == "read" or understood.kind is not None or understood.reference is not None
    assert measured_kind(said) is None or understood.kind is not None or understood.way == "read"

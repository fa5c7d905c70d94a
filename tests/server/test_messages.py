"""What OpenAI's messages mean."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from medsight_core.errors import InputError
from medsight_core.server.messages import ChatRequest, understand

A, B = "data:image/png;base64,AAAA", "data:image/png;base64,BBBB"


def user(*parts: str) -> dict[str, Any]:
    """A message of the user; what begins with "data:" is a picture."""
    content = [
        {"type": "image_url", "image_url": {"url": part}}
        if part.startswith("data:")
        else {"type": "text", "text": part}
        for part in parts
    ]
    return {"role": "user", "content": content}


def model(text: str | None) -> dict[str, Any]:
    """A message of the model."""
    return {"role": "assistant", "content": text}


def asked(*messages: dict[str, Any]) -> Any:
    """What these messages ask."""
    return understand(ChatRequest.model_validate({"messages": list(messages)}).messages)


def test_a_question_with_its_picture() -> None:
    said = asked(user("What is this?", A))
    assert (said.text, said.picture, said.history, said.new_picture) == ("What is this?", A, (), True)


def test_a_further_question_is_about_the_same_picture() -> None:
    said = asked(user("One?", A), model("Yes."), user("Two?"), model("No."), {"role": "user", "content": "Three?"})
    assert said.text == "Three?"
    assert said.picture == A
    assert said.history == (("One?", "Yes."), ("Two?", "No."))
    assert not said.new_picture


def test_a_new_picture_begins_anew() -> None:
    said = asked(user("One?", A), model("Yes."), user("Two?", B), model("No."), user("Three?"))
    assert (said.picture, said.history) == (B, (("Two?", "No."),))


def test_messages_in_a_row_are_one_turn() -> None:
    said = asked(user(A), user("Look."), model("I see"), model("a polyp."), user("Where?"), user("Show it."))
    assert said.text == "Where?\nShow it."
    assert said.history == (("Look.", "I see\na polyp."),)
    assert said.picture == A


def test_a_greeting_is_no_answer_and_instructions_are_noted() -> None:
    said = asked({"role": "system", "content": "Be brief."}, model("How can I help?"), user("One?", A))
    assert said.history == ()
    assert said.unread
    assert not asked(model("How can I help?"), user("One?", A)).unread


def test_an_answer_without_words_is_an_empty_one() -> None:
    assert asked(user("One?", A), model(None), user("Two?")).history == (("One?", ""),)


@pytest.mark.parametrize(
    ("messages", "code"),
    [
        ([model("Hello.")], "no_question"),
        ([user("One?", A), model("Yes.")], "no_question"),
        ([{"role": "system", "content": "Be brief."}], "no_question"),
        ([user("Which?", A, B)], "several_pictures"),
        ([user(A), user("Which?", B)], "several_pictures"),
    ],
)
def test_what_cannot_be_understood_is_named(messages: list[dict[str, Any]], code: str) -> None:
    with pytest.raises(InputError) as refused:
        asked(*messages)
    assert refused.value.code == code


@pytest.mark.parametrize(
    "fields",
    [
        {"messages": []},
        {"messages": [{"role": "tool", "content": "x"}]},
        {"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]},
        {"messages": [user("x")], "n": 2},
        {"messages": [user("x")], "max_tokens": 0},
        {"messages": [user("x")], "max_tokens": 10**21},
        {"messages": [user("x" * 100_001)]},
        {"messages": [user("x")] * 1001},
    ],
)
def test_what_has_another_form_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        ChatRequest.model_validate(fields)


def test_settings_of_a_sampler_are_read_over() -> None:
    read = ChatRequest.model_validate({"messages": [user("x")], "temperature": 0.7, "top_p": 1, "seed": 3, "user": "u"})
    assert not hasattr(read, "temperature")

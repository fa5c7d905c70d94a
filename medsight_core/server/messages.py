"""OpenAI's chat messages, and what they mean here: a question, the turns before it, and the picture it is about."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field

from medsight_core.errors import InputError

MOST_MESSAGES: Final = 1000
LONGEST_TEXT: Final = 100_000
"""Characters of one message; the model says itself what is too long for it to read."""


class TextPart(BaseModel):
    """Words."""

    type: Literal["text"]
    text: str = Field(max_length=LONGEST_TEXT)


class PictureAddress(BaseModel):
    """Where a picture is: a ``data:`` address that holds it."""

    url: str


class PicturePart(BaseModel):
    """A picture."""

    type: Literal["image_url"]
    image_url: PictureAddress


class Message(BaseModel):
    """One message of a chat."""

    role: Literal["system", "developer", "user", "assistant"]
    content: (
        Annotated[str, Field(max_length=LONGEST_TEXT)]
        | list[Annotated[TextPart | PicturePart, Field(discriminator="type")]]
        | None
    ) = None

    @property
    def text(self) -> str:
        """Its words."""
        if isinstance(self.content, str):
            return self.content
        return "\n".join(part.text for part in self.content or () if isinstance(part, TextPart))

    @property
    def pictures(self) -> list[str]:
        """The addresses of its pictures."""
        if not isinstance(self.content, list):
            return []
        return [part.image_url.url for part in self.content if isinstance(part, PicturePart)]


class StreamOptions(BaseModel):
    """What a stream tells besides the answer."""

    include_usage: bool = False


class ChatRequest(BaseModel):
    """The body of POST /v1/chat/completions.

    Fields of OpenAI's that are not listed here, such as temperature, are read over: answers are greedy, and the same
    question gets the same answer.
    """

    model_config = ConfigDict(extra="ignore")

    model: str | None = Field(
        default=None, max_length=200, description="As /v1/models names it; null for the one there is."
    )
    messages: list[Message] = Field(min_length=1, max_length=MOST_MESSAGES)
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    max_tokens: int | None = Field(default=None, ge=1, le=10**6)
    max_completion_tokens: int | None = Field(default=None, ge=1, le=10**6)
    n: Literal[1] | None = 1
    medsight: dict[str, Any] | None = Field(
        default=None, description="Volume (its sha256), slice, prompts, whole; see the documentation of the server."
    )

    @property
    def limit(self) -> int | None:
        """Tokens that the answer may have."""
        return self.max_completion_tokens or self.max_tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What the messages of a chat ask.

    Attributes:
        text: The question.
        history: The turns before it that are about the same picture: (question, answer).
        picture: Address of the picture that is asked about; None where no message has one.
        new_picture: Whether it came with the question itself.
        unread: Instructions came along that the model does not read.
    """

    text: str
    history: tuple[tuple[str, str], ...]
    picture: str | None
    new_picture: bool
    unread: bool


def understand(messages: Sequence[Message]) -> Asked:
    """Finds question, history and picture.

    Messages of one person in a row are one turn. The picture is the last one that was sent, and turns before it, which
    are about another one, are not read.

    Raises:
        InputError: no_question, several_pictures.
    """
    said = [message for message in messages if message.role in ("user", "assistant")]
    if not said or said[-1].role != "user":
        raise InputError("no_question", "The last message is not a question of the user.", "Ask in the last message.")
    turns: list[tuple[list[Message], list[Message]]] = []
    for message in said:
        if message.role == "user":
            if not turns or turns[-1][1]:
                turns.append(([], []))
            turns[-1][0].append(message)
        elif turns:  # a greeting before any question is no answer
            turns[-1][1].append(message)
    pictures = [[address for message in asked for address in message.pictures] for asked, _ in turns]
    latest = max((number for number, found in enumerate(pictures) if found), default=None)
    if latest is not None and len(pictures[latest]) > 1:
        raise InputError(
            "several_pictures",
            f"A question came with {len(pictures[latest])} pictures; the model looks at one.",
            "Send one picture; a scan of several slices goes to /v1/volumes first.",
        )
    *before, (asked, _) = turns[latest or 0 :]
    return Asked(
        text=_text(asked),
        history=tuple((_text(question), _text(answer)) for question, answer in before),
        picture=None if latest is None else pictures[latest][0],
        new_picture=latest == len(turns) - 1,
        unread=len(said) < len(messages),
    )


def _text(messages: Sequence[Message]) -> str:
    return "\n".join(filter(None, (message.text for message in messages)))

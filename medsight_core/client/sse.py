"""Server-sent events, from bytes as the network cuts them: within a line, a line ending or a character."""

from __future__ import annotations

import codecs
import io
from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple

from medsight_core.errors import MedSightError

LONGEST_LINE: Final = 64 * 2**20
"""Characters without a line break after which the sender is not what it says it is."""


class Message(NamedTuple):
    """One server-sent event: its name, "message" where it has none, and its data."""

    name: str
    data: str


def read_messages(chunks: Iterable[bytes]) -> Iterator[Message]:
    """Reads messages as they become complete; comments, by which a server shows that it lives, are left out.

    Raises:
        MedSightError: bad_reply: the bytes are no UTF-8, or there is no end to a line.
    """
    name, data = "message", list[str]()
    for line in _lines(chunks):
        if not line:
            if data:
                yield Message(name, "\n".join(data))
            name, data = "message", []
            continue
        field, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if field == "data":
            data.append(value)
        elif field == "event":
            name = value


def _lines(chunks: Iterable[bytes]) -> Iterator[str]:
    decoder = io.IncrementalNewlineDecoder(codecs.getincrementaldecoder("utf-8")(), translate=True)
    parts, length = list[str](), 0
    for chunk in chunks:
        try:
            text = decoder.decode(chunk)
        except UnicodeDecodeError as error:
            raise _bad("it is no UTF-8") from error
        *complete, rest = text.split("\n")
        for line in complete:
            yield "".join((*parts, line))
            parts, length = [], 0
        parts.append(rest)
        length += len(rest)
        if length > LONGEST_LINE:
            raise _bad("a line has no end")


def _bad(why: str) -> MedSightError:
    return MedSightError("bad_reply", f"The server's answer cannot be read: {why}.", "Ask again.")

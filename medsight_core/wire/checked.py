"""JSON by strangers, taken field by field: what is missing, unknown, of another kind or out of bounds is named.

Sentences name fields and kinds, never the value that came: it may be a text about a patient.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import Any, Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from medsight_core.errors import InputError

LARGEST_NUMBER: Final = 1e9
"""No coordinate in mm, no window and no count on the wire is larger."""

LONGEST_TEXT: Final = 100_000
"""Characters of one text."""

T = TypeVar("T", bound=str)


def wrong(what: str, wanted: str, value: object = None) -> InputError:
    """The error for a field that is not as it should be."""
    got = "" if value is None else f", got {_kind(value)}"
    return InputError("bad_request", f"{what} should be {wanted}{got}.", "Client and server may be of different age.")


def record(
    value: object, what: str, *, required: Collection[str] = (), optional: Collection[str] | None = ()
) -> dict[str, Any]:
    """An object with these fields.

    Args:
        value: As parsed from JSON.
        what: Names it in the sentence.
        required: Fields that it must have.
        optional: Fields that it may have besides; None for any.

    Raises:
        InputError: bad_request.
    """
    if not isinstance(value, dict):
        raise wrong(what, "an object", value)
    for name in required:
        if name not in value:
            raise InputError("bad_request", f'{what} lacks the field "{name}".', "Add it.")
    known = {*required, *(optional or ())}
    if optional is not None and any(name not in known for name in value):
        fields = ", ".join(sorted(known)) or "none"
        raise InputError("bad_request", f"{what} has a field that is not known.", f"It may have: {fields}.")
    return value


def listed(value: object, what: str, *, most: int) -> list[Any]:
    """A list of at most so many.

    Raises:
        InputError: bad_request.
    """
    if not isinstance(value, list):
        raise wrong(what, "a list", value)
    if len(value) > most:
        raise InputError("bad_request", f"{what} has {len(value):,} entries; the limit is {most:,}.", "Send fewer.")
    return value


def text(value: object, what: str, *, longest: int = LONGEST_TEXT) -> str:
    """A text that can be written as UTF-8.

    Raises:
        InputError: bad_request.
    """
    if not isinstance(value, str):
        raise wrong(what, "a text", value)
    if len(value) > longest:
        raise InputError(
            "bad_request", f"{what} has {len(value):,} characters; the limit is {longest:,}.", "Shorten it."
        )
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise wrong(what, "Unicode text without lone surrogates") from error
    return value


def one_of(value: object, what: str, choices: Sequence[T]) -> T:
    """One of these words.

    Raises:
        InputError: bad_request.
    """
    for choice in choices:
        if isinstance(value, str) and value == choice:
            return choice
    raise wrong(what, "one of " + ", ".join(choices))


def flag(value: object, what: str) -> bool:
    """True or false.

    Raises:
        InputError: bad_request.
    """
    if not isinstance(value, bool):
        raise wrong(what, "true or false", value)
    return value


def integer(value: object, what: str, *, low: int = 0, high: int = int(LARGEST_NUMBER)) -> int:
    """A whole number from ``low`` to ``high``.

    Raises:
        InputError: bad_request.
    """
    if isinstance(value, bool) or not isinstance(value, int):
        raise wrong(what, "a whole number", value)
    if not low <= value <= high:
        raise wrong(what, f"a whole number from {low:,} to {high:,}")
    return value


def number(value: object, what: str, *, largest: float = LARGEST_NUMBER) -> float:
    """A finite number.

    Raises:
        InputError: bad_request.
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise wrong(what, "a number", value)
    if not -largest <= value <= largest:  # which is false for NaN
        raise wrong(what, f"a finite number of no more than {largest:g}")
    return float(value)


def numbers(value: object, what: str, *, count: int, largest: float = LARGEST_NUMBER) -> NDArray[np.float64]:
    """So many finite numbers ``(count,)``.

    Raises:
        InputError: bad_request.
    """
    given = listed(value, what, most=count)
    if len(given) != count:
        raise InputError("bad_request", f"{what} has {len(given)} numbers, expected {count}.", "Send that many.")
    return np.array([number(one, what, largest=largest) for one in given], dtype=np.float64)


def share(value: object, what: str) -> float:
    """A number from 0 to 1.

    Raises:
        InputError: bad_request.
    """
    given = number(value, what)
    if not 0.0 <= given <= 1.0:
        raise wrong(what, "a number from 0 to 1")
    return given


def _kind(value: object) -> str:
    if isinstance(value, bool):
        return "true or false"
    if isinstance(value, float):
        return "a fraction" if math.isfinite(value) else "no finite number"
    return {dict: "an object", list: "a list", str: "a text", int: "a whole number"}.get(type(value), "something else")

"""What a question about a whole volume wants: something measured, something picked out, or words of the model.

This is the one place that decides it, from the words alone. Measuring answers six kinds of questions (whether something
is there, how many, how large, where, on which slices, how dense) and shows what a reference picks out of what was found
("the largest lesion", "all organs you know"); both need names that the model was taught. All else is for the model to
read.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

from medsight_core.errors import InputError
from medsight_core.naming import UnknownStructure
from medsight_core.referring import Reference, parse_reference
from medsight_core.terminology import normal_words

Kind = Literal["presence", "count", "size", "where", "slices", "density"]
Way = Literal["measure", "show", "read"]

_SCAN: Final = r"(?:(?:the|this|my) )?(?:scan|image|volume|series|study|ct|mr|mri|patient)"
_DENSITY: Final = (
    r"(?:mean|average)? ?(?:density|attenuation|intensity|signal|hu|hounsfield units?|brightness|grey value)"
)
_SIZE: Final = r"(?:sizes?|volumes?|(?:longest )?diameters?|extent|dimensions?|measurements?)"
_ASK: Final = r"(?:(?:what|how much) (?:is|are|s) |give me |tell me )?"
_KINDS: Final[tuple[tuple[Kind, str], ...]] = (
    ("count", r"how many (?P<x>.+)"),
    ("count", rf"{_ASK}(?:the )?(?:number of|count(?: of)?) (?P<x>.+)"),
    (
        "slices",
        r"(?:on |in )?(?:which|what) (?:slices?|images?) (?:shows?|contains?|includes?|has|have|is|are) (?P<x>.+)",
    ),
    ("size", r"how (?:large|big|long|wide|small|voluminous)(?: (?:is|are) (?P<x>.+))?"),
    ("size", r"what size (?:is|are|has|have) (?P<x>.+)"),
    ("size", rf"{_ASK}(?P<its>its|their) {_SIZE}"),
    ("size", rf"{_ASK}(?:the )?{_SIZE} of (?P<x>.+)"),
    ("size", r"measure (?P<x>.+)"),
    ("density", r"how (?:dense|bright|dark)(?: (?:is|are) (?P<x>.+))?"),
    ("density", rf"{_ASK}(?P<its>its|their) {_DENSITY}"),
    ("density", rf"{_ASK}(?:the )?{_DENSITY} (?:of|in) (?P<x>.+)"),
    ("where", r"where (?:is|are) (?P<x>.+)"),
    ("where", r"on (?:which|what) side (?:is|are) (?P<x>.+)"),
    ("where", r"(?:which|what) side (?:is|are) (?P<x>.+?)(?: on)?"),
    ("where", rf"{_ASK}(?:the )?(?:location|position) of (?P<x>.+)"),
    ("presence", r"(?:is|are) there (?P<x>.+)"),
    ("presence", r"(?:do|can) you (?:see|find|detect) (?P<x>.+)"),
    ("presence", rf"does {_SCAN} (?:show|contain|have) (?P<x>.+)"),
    ("presence", r"(?:is|are) (?P<x>.+?) (?:present|visible|seen|there|shown)"),
    ("presence", r"any (?P<x>.+)"),
)
_NOISE: Final = re.compile(
    r" (?:are|is) (?:there|visible|present|located|situated|seen)\b| (?:do|can) you (?:see|find)\b"
    rf"|^ (?:any )?(?:evidence|signs?) of\b| (?:in|on|of) {_SCAN}$| located$| visible$| on$| please$"
)
_PRONOUNS: Final = frozenset({"", "it", "this", "that", "they", "them", "these", "those", "one", "the one"})
_ORDER: Final = re.compile(
    r"(?:please )?(?:segment|show|find|outline|mark|draw|highlight|delineate|locate|contour|select)(?: me)? (?P<x>.+)"
)
_WORDS_MAY_DO: Final[tuple[Kind, ...]] = ("presence", "where")
"""Kinds that the model can answer in words about what it was never taught to find; a number it can only make up."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Understood:
    """What a question wants.

    Attributes:
        way: "measure": an answer from what is found and measured; "show": what a reference picks out of it; "read": the
            model's words about slices.
        kind: Of what is measured.
        phrase: What it is measured of, in words; "" for whatever is found.
        reference: What the words pick out, where that is known.
        unknown: The words for a structure that the model was never taught to find; "" where there are none.
    """

    way: Way
    kind: Kind | None = None
    phrase: str = ""
    reference: Reference | None = None
    unknown: str = ""

    def refuse(self, taught: Sequence[str], modality: str) -> None:
        """Raises where a number is asked for of something that the model cannot find.

        Raises:
            InputError: unknown_structure.
        """
        if self.unknown and self.way != "read":
            raise InputError(
                "unknown_structure",
                never_taught(self.unknown, modality, taught),
                "Ask about one of these." if taught else "Ask about one slice.",
            )


def understand(text: str, taught: Sequence[str], *, history: Sequence[tuple[str, str]] = ()) -> Understood:
    """Decides what a question wants.

    Args:
        text: The question.
        taught: Names of what the model can find in such a scan; without any, all is read.
        history: Earlier turns (question, answer); "it" is what the last of them spoke of.
    """
    if not taught:
        return Understood(way="read")
    measured = measured_kind(text, history)
    if measured is None:
        return _shown(text, taught)
    kind, phrase = measured
    if not phrase:
        return Understood(way="measure", kind=kind)
    try:
        return Understood(way="measure", kind=kind, phrase=phrase, reference=parse_reference(phrase, taught))
    except InputError as error:
        if error.code != "unknown_structure":
            return Understood(way="read")  # more at once than is understood
        way: Way = "read" if kind in _WORDS_MAY_DO else "measure"
        return Understood(way=way, kind=kind, phrase=phrase, unknown=unknown_in(error, phrase))


def measured_kind(text: str, history: Sequence[tuple[str, str]] = ()) -> tuple[Kind, str] | None:
    """Which kind of measurement answers a question, and the words for what is to be measured.

    Args:
        text: The question.
        history: Earlier turns, see `understand`.

    Returns:
        None where no measurement answers it; the words are "" where nothing says what "it" is.
    """
    found = _match(text)
    if found is None or found[1] not in _PRONOUNS:
        return found
    for asked, _ in reversed(history):
        earlier = _match(asked)
        order = _ORDER.fullmatch(" ".join(normal_words(asked)))
        phrase = earlier[1] if earlier is not None else _NOISE.sub("", f" {order['x']}").strip() if order else ""
        if phrase not in _PRONOUNS:
            return found[0], phrase
    return found[0], ""


def never_taught(name: str, modality: str, taught: Sequence[str] = ()) -> str:
    """The sentence about a structure that the model cannot find in such a scan.

    Args:
        name: In the words of the person.
        modality: Of the scan.
        taught: What it can find there.
    """
    here = "" if modality == "unknown" else f" in {modality}"
    known = f"; it was taught {', '.join(taught)}" if taught else ""
    return f'This model was never taught to find "{bare(name)}"{here}{known}.'


def unknown_in(error: InputError, phrase: str) -> str:
    """The words of a phrase that an error is about."""
    return (error.phrase if isinstance(error, UnknownStructure) else "") or phrase


def bare(phrase: str) -> str:
    """A phrase without its article."""
    return re.sub(r"^(?:the|a|an|any) ", "", phrase)


def _match(question: str) -> tuple[Kind, str] | None:
    text = " ".join(normal_words(question)).removeprefix("please ").removesuffix(" please")
    for kind, pattern in _KINDS:
        match = re.fullmatch(pattern, text)
        if match is not None:
            phrase = match.groupdict().get("x") or ""
            return kind, _NOISE.sub("", f" {phrase}").strip()
    return None


def _shown(text: str, taught: Sequence[str]) -> Understood:
    """A reference, where it picks something out; a mere name is left to the model, which can draw it."""
    try:
        reference = parse_reference(text, taught)
    except InputError as error:
        order = _ORDER.fullmatch(" ".join(normal_words(text)))
        if error.code != "unknown_structure" or order is None or order["x"] in _PRONOUNS:
            return Understood(way="read")
        return Understood(way="read", unknown=unknown_in(error, order["x"]))
    picks = bool(reference.selectors) or any(target.side for target in reference.targets) or reference.plural
    return Understood(way="show" if picks else "read", reference=reference)

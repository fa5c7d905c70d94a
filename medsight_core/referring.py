"""What a person refers to: "the two largest lesions in the left lung" as names and selectors.

Words only: nothing here looks at a scan. `resolving` applies a `Reference` to regions. Left and right, here and there,
are the patient's.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal

from medsight_core.errors import InputError
from medsight_core.naming import ARTICLES, Named, Side, find_names, same_name, unknown_name
from medsight_core.terminology import normal_words

Direction = Literal["left", "right", "superior", "inferior", "anterior", "posterior"]
"""Towards which side of the patient."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where something lies.

    Attributes:
        text: In the words of the person.
        names: Structures, as the model calls them; none where only a side is known ("the right lobe").
        side: The side of the structure that is meant, where its name does not say it.
        part: The part of it, such as "right" of "the right lobe of the liver"; None for all of it.
    """

    text: str
    names: tuple[str, ...] = ()
    side: Side | None = None
    part: Direction | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Inside:
    """Keeps what lies in a place."""

    place: Place


@dataclass(frozen=True, slots=True, kw_only=True)
class OnSide:
    """Keeps what lies on one side of the body."""

    side: Side


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranked:
    """Keeps the first of an order.

    Attributes:
        by: "size" puts the largest first; a direction, the one furthest towards it.
        reverse: The other way round.
        count: How many; None for all.
        skip: How many of the first are left out: 1 for the second largest.
    """

    by: Literal["size"] | Direction
    reverse: bool = False
    count: int | None = 1
    skip: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Near:
    """Keeps the nearest to a place, or the farthest from it."""

    place: Place
    farthest: bool = False
    count: int | None = 1


Selector = Inside | OnSide | Ranked | Near


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A structure that is referred to: the model's name, and the side where the name does not say it."""

    name: str
    side: Side | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """What is referred to.

    Attributes:
        text: In the words of the person.
        targets: What to look for.
        selectors: What to keep of it, applied in this order.
        each: Whether single pieces are meant (lesions) rather than structures as a whole.
        plural: Whether several are asked for.
        kinds: Whether the targets are only the known ones of what was said ("lesion"), of which there are more.
    """

    text: str
    targets: tuple[Target, ...]
    selectors: tuple[Selector, ...] = ()
    each: bool = False
    plural: bool = False
    kinds: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        """Everything that must be looked for to resolve the reference: targets, then places."""
        places = (selector.place for selector in self.selectors if isinstance(selector, Inside | Near))
        return tuple(dict.fromkeys([t.name for t in self.targets] + [name for p in places for name in p.names]))


MOST_WORDS: Final = 40
"""Words of a phrase that is understood."""

_REQUESTS: Final = frozenset(
    normal_words(
        "please can could would you segment show find outline mark draw highlight delineate locate contour select give "
        "tell me us where is are what which i want to see there and also mask of"
    )
)
_SCAN: Final = "image|scan|volume|series|study|picture|slice|ct|mr|mri|patient|body"
_TRAILS: Final = re.compile(
    r"(?:(?: and)? (?:please|(?:that |which )?you (?:know|can (?:find|see|segment))|(?:there )?(?:is|are)|in 3d"
    rf"|(?:in|on|of|from) (?:this|the|my) (?:\w+ )?(?:{_SCAN})))+$"
)
_NUMBERS: Final = {w: n for n, w in enumerate(normal_words("one two three four five six seven eight nine ten"), 1)}
_ORDINALS: Final = {w: n for n, w in enumerate(normal_words("second third fourth fifth"), 1)}
_LARGEST: Final = frozenset(normal_words("largest biggest greatest larger bigger"))
_SMALLEST: Final = frozenset(normal_words("smallest tiniest smaller"))
_TOWARDS: Final[tuple[tuple[Direction, str], ...]] = (
    ("left", "left leftmost"),
    ("right", "right rightmost"),
    ("superior", "superior upper uppermost topmost top highest cranial"),
    ("inferior", "inferior lower lowermost lowest bottom bottommost caudal"),
    ("anterior", "anterior front frontmost ventral foremost"),
    ("posterior", "posterior back backmost dorsal hindmost rear"),
)
_DIRECTIONS: Final = {word: direction for direction, words in _TOWARDS for word in words.split()}
_PARTS: Final = frozenset(normal_words("lobe lobes half part side portion section region pole segment third"))
_LOBED: Final = (("liver", "thyroid"), ("lung", "left lung", "right lung"))
"""Organs with a left and a right lobe, and those with an upper and a lower one."""
_INSIDE: Final = ("inside", "within", "in", "of", "on", "at")
_NEAR: Final = re.compile(r"\b(nearest|closest|next|near|adjacent|close|beside|farthest|furthest)\b(?: (?:to|from))?")


def parse_reference(phrase: str, known: Sequence[str]) -> Reference:
    """Understands a phrase such as "the lesion nearest to the liver".

    Args:
        phrase: Also as a request, "Segment the left kidney in this scan, please."
        known: What the model calls things (``config.class_names``).

    Raises:
        InputError: unknown_structure, which names what is known; too_much: more than can be understood at once, or one
            of several things that are asked for together is itself to be chosen.
    """
    listed = " and ".join(filter(None, (" ".join(normal_words(part)) for part in re.split("[,;&]", phrase))))
    text = _TRAILS.sub("", " " + re.sub(r"\band (?:and )+", "and ", listed)).strip()
    words = text.split()
    while words and words[0] in _REQUESTS:
        words = words[1:]
    text = " ".join(words)
    if words == ["all"]:
        words = ["everything"]
    if len(words) > MOST_WORDS:
        raise InputError(
            "too_much", f"The phrase has {len(words)} words; at most {MOST_WORDS} are understood.", "Say less at once."
        )
    found = _several(words, known) if words else None
    if found is None:
        parts = [_bare(part.split()) for part in re.split(r"\band\b", text)]
        raise unknown_name(next((part for part in parts if _one(part.split(), known) is None), ""), known)
    return replace(found, text=text)


def _several(words: Sequence[str], known: Sequence[str]) -> Reference | None:
    """A phrase, or several joined by "and", which may also stand within a name: the longest known one at each place."""
    ends = [at for at, word in enumerate(words) if word == "and"] + [len(words)]
    parts: list[Reference] = []
    start = 0
    while start < len(words):
        for end in (end for end in reversed(ends) if end > start):
            part = _one(words[start:end], known)
            if part is not None:
                break
        else:
            return None
        parts.append(part)
        start = end + 1
    if len(parts) == 1:
        return parts[0]
    if any(part.selectors for part in parts):
        raise InputError(
            "too_much",
            f'"{" ".join(words)}" asks for several things at once, of which at least one is to be chosen.',
            "Ask for one after the other.",
        )
    targets = tuple(dict.fromkeys(target for part in parts for target in part.targets))
    return Reference(text="", targets=targets, each=all(part.each for part in parts), plural=True)


def _one(words: Sequence[str], known: Sequence[str]) -> Reference | None:
    """A phrase without enumeration; None where its noun is not known."""
    plain = find_names(words, known)
    if plain is not None:
        return _reference(plain, (), words)
    near = _NEAR.search(" ".join(words))
    if near is not None:
        head, tail = " ".join(words)[: near.start()].split(), " ".join(words)[near.end() :].split()
        if not _bare(head) and "to" in tail:
            head, tail = head + tail[: tail.index("to")], tail[tail.index("to") + 1 :]  # "nearest lesion to the liver"
        found = _one(head, known)
        if found is None:
            return None
        ranks = [selector for selector in found.selectors if isinstance(selector, Ranked)]
        count = ranks[0].count if ranks else None if found.plural else 1
        far = near.group(1) in ("farthest", "furthest")
        kept = tuple(selector for selector in found.selectors if not isinstance(selector, Ranked))
        nearest = Near(place=_place(tail, known), farthest=far, count=count)
        return replace(found, selectors=(*kept, nearest), each=found.each or len(found.targets) == 1)
    for at in range(1, len(words) - 1):
        if words[at] in _INSIDE and (noun := _head(words[:at], known)) is not None:
            named, ranks_of_it = noun
            return _reference(named, (*_where(words[at + 1 :], known), *ranks_of_it), words[:at])
    head_only = _head(words, known)
    return None if head_only is None else _reference(*head_only, words)


def _is_number(word: str) -> bool:
    """Whether a word is a number in digits, of a size that can be meant; "²" is a digit too, and no number."""
    return word.isdecimal() and len(word) <= 6


def _head(words: Sequence[str], known: Sequence[str]) -> tuple[Named, tuple[Selector, ...]] | None:
    """The noun and what ranks it: "second largest polyp"."""
    count: int | None = None
    skip = 0
    rank: Ranked | None = None
    for at, word in enumerate(words):
        noun = _noun(words[at:], known)
        if noun is not None:
            named, place = noun
            if count is None and not (rank is not None and _is_plural(words) and not skip):
                count = None if rank is None else 1
            if rank is None and count is not None:
                rank = Ranked(by="size")
            return named, place if rank is None else (*place, replace(rank, count=count, skip=skip))
        if word in _NUMBERS or _is_number(word):
            count = _NUMBERS.get(word) or max(1, int(word))
        elif word in _ORDINALS:
            skip = _ORDINALS[word]
            rank = rank or Ranked(by="size")
        elif word in _LARGEST or word in _SMALLEST:
            rank = Ranked(by="size", reverse=word in _SMALLEST)
        elif word in _DIRECTIONS and (word not in ("left", "right") or "most" in words[:at]):
            rank = Ranked(by=_DIRECTIONS[word])
        elif word not in ARTICLES and word != "most":
            return None
    return None


def _noun(words: Sequence[str], known: Sequence[str]) -> tuple[Named, tuple[Selector, ...]] | None:
    """A name, or "liver lesions" and "left renal tumour", where the place stands first."""
    named = find_names(words, known)
    if named is not None:
        return named, ()
    for at in range(1, len(words)):
        lesions, place = find_names(words[at:], known), find_names(words[:at], known)
        if lesions is not None and place is not None and lesions.each and lesions.side is None:
            return lesions, (Inside(place=Place(text=" ".join(words[:at]), names=place.names, side=place.side)),)
    return None


def _where(words: Sequence[str], known: Sequence[str]) -> tuple[Selector, ...]:
    """What stands behind "in" or "on": a structure, a part of one, or a side."""
    rest = [word for word in words if word not in ARTICLES and word not in ("patient", "patients", "s", "hand")]
    if rest and rest[0] in ("left", "right") and set(rest[1:]) <= {"side", "half", "body", "of"}:
        return (OnSide(side="left" if rest[0] == "left" else "right"),)
    return (Inside(place=_place(rest, known)),)


def _place(words: Sequence[str], known: Sequence[str]) -> Place:
    words = [word for word in words if word not in ARTICLES]
    text = " ".join(words)
    named = find_names(words, known)
    if named is not None:
        return Place(text=text, names=named.names, side=named.side)
    if len(words) >= 2 and words[0] in _DIRECTIONS:
        part = _DIRECTIONS[words[0]]
        rest = [word for word in words[1:] if word not in _PARTS and word != "of"]
        if not rest:
            # "The right lobe" does not say of what; these have one.
            lobed = _LOBED[0] if part in ("left", "right") else _LOBED[1]
            hosts = tuple(name for name in known if any(same_name(name, organ) for organ in lobed))
            if hosts or part in ("left", "right"):
                return Place(text=text, names=hosts, part=part)
        named = find_names(rest, known)
        if named is not None:
            return Place(text=text, names=named.names, side=named.side, part=part)
    if "and" in words:
        parts = [_place(part.split(), known) for part in re.split(r"\band\b", text)]
        if not any(part.side or part.part for part in parts):
            return Place(text=text, names=tuple(dict.fromkeys(name for part in parts for name in part.names)))
    raise unknown_name(text, known)


def _reference(named: Named, selectors: Sequence[Selector], head: Sequence[str]) -> Reference:
    return Reference(
        text=" ".join(head),
        targets=tuple(Target(name=name, side=named.side) for name in named.names),
        selectors=tuple(selectors),
        # "The largest vessel" is one of the pieces of what the model calls vessel; "the largest organ" is a whole one.
        each=named.each or (len(named.names) == 1 and bool(selectors)),
        plural=_is_plural(head) or (len(named.names) > 1 and not named.each),
        kinds=named.kinds,
    )


def _bare(words: Sequence[str]) -> str:
    """A phrase without what ranks it."""
    ranks = {*ARTICLES, *_NUMBERS, *_ORDINALS, *_LARGEST, *_SMALLEST, *_DIRECTIONS, "most"} - {"left", "right"}
    at = next((at for at, word in enumerate(words) if word not in ranks and not _is_number(word)), len(words))
    return " ".join(words[at:])


def _is_plural(words: Sequence[str]) -> bool:
    many = {"all", "every", "each", "both", "everything", *list(_NUMBERS)[1:]}
    if many.intersection(words) or any(_is_number(word) and word != "1" for word in words):
        return True
    last = words[-1] if words else ""
    return last.endswith("s") and not last.endswith(("ss", "us", "is", "pancreas"))

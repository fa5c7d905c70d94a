"""Which of the names that a model knows a person means: synonyms, plurals, sides, and words that stand for many."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, Literal

from medsight_core.errors import InputError
from medsight_core.terminology import ABNORMAL_STRUCTURE, Term, find_term, normal_words, unknown_words

Side = Literal["left", "right"]
"""Of the patient, never of the picture."""

ARTICLES: Final = frozenset({"a", "an", "the", "any", "some", "all", "every", "each", "both", "bilateral", "other"})
LESION_WORDS: Final = frozenset({"lesion", "abnormality", "finding", "mass", "pathology"})
"""Words for anything abnormal."""

_ORGAN_WORDS: Final = frozenset({"organ", "anatomy", "anatomical structure", "normal structure"})
_ALL_WORDS: Final = frozenset({"everything", "anything", "thing", "structure", "region", "object"})
_PLACING: Final = frozenset({"in", "of", "on", "at", "within", "inside"})
_SIDES: Final[tuple[Side, ...]] = ("left", "right")
# Words that set one finding apart from another where the terminology has one code for both.
_QUALIFIERS: Final = frozenset(
    normal_words("high lower grade enhancing non core whole neoplastic common atypical dysplastic viral bacterial cell")
)


class UnknownStructure(InputError):
    """Something is named that nothing known stands for; ``phrase`` says what."""

    phrase: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Named:
    """What a phrase names.

    Attributes:
        names: As the model calls them, in its order.
        side: The side that is meant, where the names do not say it themselves.
        each: Whether the single pieces are meant (lesions) rather than a structure as a whole.
        kinds: Whether a word for many was said ("lesion"), of which these are only those that are known.
    """

    names: tuple[str, ...]
    side: Side | None = None
    each: bool = False
    kinds: bool = False


def find_names(words: Sequence[str], known: Sequence[str]) -> Named | None:
    """The known names that a phrase stands for; None where there is none.

    A phrase that names one thing closely never gets its neighbour: "left adrenal gland" is not answered by a model that
    knows the right one only.

    Args:
        words: Of the phrase, as `normal_words` gives them.
        known: What the model calls things.
    """
    words = [word for word in words if word not in ARTICLES]
    if not words:
        return None
    close = _close(words, known)
    found = close or _collective(words, known)
    if found:
        return Named(names=found, each=all(map(is_lesion, found)), kinds=not close)
    sides = [side for side in _SIDES if side in words]
    rest = [word for word in words if word not in _SIDES]
    if len(sides) == 1 and rest:
        close = _close(rest, known)
        found = tuple(name for name in close or _collective(rest, known) if _side_of(name) is None)
        each = all(map(is_lesion, found))
        return Named(names=found, side=sides[0], each=each, kinds=not close) if found else None
    found = tuple(name for name in known if _side_of(name) and _forms(_unsided(name)) & _forms(words))
    found = found or tuple(name for name in known if _side_of(name) and _same(" ".join(_unsided(name)), words))
    return Named(names=found) if found else None


def same_name(one: str, other: str) -> bool:
    """Whether two names mean the same thing."""
    return bool(_close(normal_words(one), (other,)))


def is_lesion(name: str) -> bool:
    """Whether a name is that of something abnormal."""
    return bool(_term(name).category == ABNORMAL_STRUCTURE)


def unknown_name(phrase: str, known: Sequence[str]) -> UnknownStructure:
    """The error for a phrase that names nothing known."""
    error = UnknownStructure(
        "unknown_structure",
        (f'This model does not know "{phrase}"' if phrase else "Nothing is named")
        + (f"; it knows {', '.join(known)}." if known else "; it knows nothing by name."),
        "Ask for one of these." if known else "Take a model whose configuration has class names.",
    )
    error.phrase = phrase
    return error


@lru_cache(maxsize=4096)
def _term(label: str) -> Term:
    """`find_term`, which is asked for the same few names again and again while a phrase is taken apart."""
    return find_term(label)


def _close(words: Sequence[str], known: Sequence[str]) -> tuple[str, ...]:
    """The names of the same words, in the singular or plural, else of the same meaning."""
    found = tuple(name for name in known if _forms(words) & _forms(normal_words(name)))
    return found or tuple(name for name in known if _same(name, words))


def _same(name: str, words: Sequence[str]) -> bool:
    one, other = _term(name), _term(" ".join(words))
    if "generic" in (one.match, other.match) or _codes(one) != _codes(other):
        return False
    # Where one code stands for several things, only the very words tell them apart: every glioma has the same.
    return one.match == other.match == "exact" or set(words) <= set(normal_words(name))


def _collective(words: Sequence[str], known: Sequence[str]) -> tuple[str, ...]:
    """All names that a word for many covers: organs, lesions, tumours."""
    forms = _forms(words)
    if forms & _ALL_WORDS:
        return tuple(known)
    if forms & _ORGAN_WORDS:
        return tuple(name for name in known if not is_lesion(name))
    if forms & LESION_WORDS:
        return tuple(name for name in known if is_lesion(name))
    if _PLACING.intersection(words):
        return ()  # "lesion in the polyp" is no polyp
    asked = _term(" ".join(words))
    if asked.match == "generic" or asked.category != ABNORMAL_STRUCTURE or unknown_words(" ".join(words)):
        return ()
    return tuple(name for name in known if _covers(asked, words, name))


def _covers(asked: Term, words: Sequence[str], name: str) -> bool:
    """Whether a finding is one of the kind that is asked for: a melanoma is a cancer."""
    term = _term(name)
    asks = zip(_codes(asked)[1:], _codes(term)[1:], strict=True)
    return (
        term.match != "generic"
        and term.type.value == asked.type.value
        and all(wanted in (None, got) for wanted, got in asks)
        and _QUALIFIERS.intersection(_canonical(words)) <= set(_canonical(normal_words(name)))
    )


def _codes(term: Term) -> tuple[str | None, ...]:
    codes = (term.type, term.modifier, term.region, term.laterality)
    return tuple(None if code is None else str(code.value) for code in codes)


def _canonical(words: Sequence[str]) -> list[str]:
    """The side first ("kidney_left"), and one word for low and lower grade."""
    ordered = sorted(words, key=lambda word: word not in _SIDES)
    return ["lower" if word == "low" else word for word in ordered]


def _forms(words: Sequence[str]) -> set[str]:
    """A phrase as it is and in what may be its singular."""
    phrase = " ".join(_canonical(words))
    endings = (("", ""), ("s", ""), ("es", ""), ("ies", "y"))
    return {phrase.removesuffix(plural) + singular for plural, singular in endings if phrase.endswith(plural)}


def _side_of(name: str) -> Side | None:
    words = normal_words(name)
    return next((side for side in _SIDES if side in words), None)


def _unsided(name: str) -> list[str]:
    return [word for word in normal_words(name) if word not in _SIDES]

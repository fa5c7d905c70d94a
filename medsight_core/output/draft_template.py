"""What a site wants its report drafts to look like: sections, structures and wordings, in a TOML file.

    title = "CT of the abdomen"
    structures = ["liver", "spleen", "left kidney", "lesion"]    # what is looked for, in this order

    [[sections]]
    kind = "technique"              # technique, findings, impression, questions or text
    title = "Technique"             # may be left out

    [[sections]]
    kind = "findings"
    structures = ["liver", "spleen"]   # only these here; may be left out

    [[sections]]
    kind = "text"
    title = "Comparison"
    text = "None available."        # marked as fixed text, which is not read from the scan

    [[sections]]
    kind = "impression"

    [wording]                       # sentences instead of ours; see WORDING and PLACEHOLDERS
    present = "$Name: $size."
    absent = "$Name: not seen."

A template is words only: it cannot run anything, and what a sentence rests on is added to it whatever it says.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from string import Template
from types import MappingProxyType
from typing import Any, Final, Literal, get_args

from medsight_core.errors import InputError

Kind = Literal["technique", "findings", "impression", "questions", "text"]

TITLES: Final[Mapping[Kind, str]] = MappingProxyType(
    {
        "technique": "Technique",
        "findings": "Findings",
        "impression": "Impression",
        "questions": "Questions",
        "text": "",
    }
)

WORDING: Final[Mapping[str, str]] = MappingProxyType(
    {
        "present": "$Name: found on $slices, $certainty (score $score); $size.",
        "absent": "$Name: not found on the slices that were read, which does not exclude it.",
        "unknown": "$Name: not assessed, the model does not look for it.",
        "abnormal": "$Name, $extent, on $slices: $certainty (score $score).",
        "no_abnormal": "Nothing abnormal of what was looked for ($names) was found, which does not exclude it.",
        "no_abnormal_asked": "Abnormal findings were not looked for.",
        "structures": "Found and measured: $names.",
        "missing": "Looked for and not found: $names.",
        "rest": "Everything else on this scan was not assessed.",
    }
)
"""Our sentences. "present", "absent" and "unknown" stand under the findings, the others under the impression."""

_OF_ONE: Final = frozenset({"name", "Name"})
_OF_FOUND: Final = _OF_ONE | {
    "slices", "certainty", "score", "size", "extent", "volume", "diameter", "perpendicular", "values", "pieces",
}  # fmt: skip
PLACEHOLDERS: Final[Mapping[str, frozenset[str]]] = MappingProxyType(
    {
        "present": _OF_FOUND,
        "absent": _OF_ONE,
        "unknown": _OF_ONE,
        "abnormal": _OF_FOUND,
        **dict.fromkeys(("no_abnormal", "structures", "missing"), frozenset({"names"})),
        **dict.fromkeys(("no_abnormal_asked", "rest"), frozenset()),
    }
)
"""What a sentence may hold, written ``$name``. ``$Name`` begins with a capital; ``$size`` is all that was measured."""

_LARGEST: Final = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class SectionPlan:
    """One section of a report.

    Attributes:
        kind: What it holds.
        title: Its heading; none where it is empty.
        structures: For findings: only these; all where there are none.
        text: For fixed text.
    """

    kind: Kind
    title: str = ""
    structures: tuple[str, ...] = ()
    text: str = ""


_DEFAULT_KINDS: Final[tuple[Kind, ...]] = ("technique", "findings", "questions", "impression")


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportTemplate:
    """A template that was read and found good.

    Attributes:
        title: Of the report; empty for one made from the scan.
        structures: What is looked for; none means what the caller chooses.
        sections: In their order.
        wording: All sentences of `WORDING`, with those of the site instead of ours.
    """

    title: str = ""
    structures: tuple[str, ...] = ()
    sections: tuple[SectionPlan, ...] = tuple(SectionPlan(kind=kind, title=TITLES[kind]) for kind in _DEFAULT_KINDS)
    wording: Mapping[str, str] = field(default_factory=lambda: WORDING)

    @property
    def names(self) -> tuple[str, ...]:
        """Every structure that is named anywhere."""
        named = (name for section in self.sections for name in section.structures)
        return tuple(dict.fromkeys((*self.structures, *named)))

    def say(self, sentence: str, **values: str) -> str:
        """A sentence with its placeholders filled in."""
        return " ".join(Template(self.wording[sentence]).substitute(values).split())


def read_template(path: Path) -> ReportTemplate:
    """Reads a template and checks all of it.

    Raises:
        InputError: bad_template: it cannot be read, or the sentence says what is wrong where.
    """
    try:
        if path.stat().st_size > _LARGEST:
            raise _bad(path, f"it has more than {_LARGEST:,} bytes")
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise _bad(path, f"it cannot be read ({error.strerror or error})") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise _bad(path, f"it is not TOML ({error})") from error
    try:
        return _template(content)
    except _WrongError as error:
        raise _bad(path, str(error)) from error


class _WrongError(Exception):
    """What is wrong with the content, in words that follow "the template ..."."""


def _bad(path: Path, what: str) -> InputError:
    return InputError(
        "bad_template",
        f"The template {path.name} is of no use: {what}.",
        "A template is a TOML file with title, structures, [[sections]] and [wording]; see docs/report.md.",
    )


def _template(content: Mapping[str, Any]) -> ReportTemplate:
    _known(content, {"title", "structures", "sections", "wording"}, "it")
    given = content.get("sections")
    if given is not None and (not isinstance(given, list) or not all(isinstance(one, dict) for one in given)):
        raise _WrongError("its sections are not written as [[sections]]")
    plain = ReportTemplate()
    return ReportTemplate(
        title=_text(content, "title", "it"),
        structures=_names(content, "it"),
        sections=plain.sections if not given else tuple(_section(one, n) for n, one in enumerate(given, start=1)),
        wording=MappingProxyType({**WORDING, **_wording(content.get("wording", {}))}),
    )


def _section(given: Mapping[str, Any], number: int) -> SectionPlan:
    where = f"section {number}"
    _known(given, {"kind", "title", "structures", "text"}, where)
    kind: Kind | None = next((kind for kind in get_args(Kind) if kind == given.get("kind")), None)
    if kind is None:
        raise _WrongError(f"{where} has the kind {given.get('kind')!r}, not one of {', '.join(get_args(Kind))}")
    if ("text" in given) != (kind == "text"):
        raise _WrongError(f"{where} is of kind {kind}, and a text belongs to the kind text, there only and always")
    if "structures" in given and kind != "findings":
        raise _WrongError(f"{where} names structures, which only findings do")
    title = _text(given, "title", where) if "title" in given else TITLES[kind]
    return SectionPlan(kind=kind, title=title, structures=_names(given, where), text=_text(given, "text", where))


def _wording(given: Any) -> dict[str, str]:
    if not isinstance(given, dict):
        raise _WrongError("its wording is not written as [wording]")
    _known(given, set(WORDING), "its wording")
    for name in given:
        sentence = Template(_text(given, name, "its wording"))
        if not sentence.is_valid():
            raise _WrongError(f"the wording of {name} has a $ that begins no placeholder; write $$ for a dollar")
        unknown = sorted(set(sentence.get_identifiers()) - PLACEHOLDERS[name])
        if unknown:
            allowed = ", ".join(f"${word}" for word in sorted(PLACEHOLDERS[name])) or "none"
            raise _WrongError(f"the wording of {name} has the placeholder ${unknown[0]}; there are {allowed}")
    return dict(given)


def _known(given: Mapping[str, Any], names: set[str], where: str) -> None:
    unknown = sorted(set(given) - names)
    if unknown:
        raise _WrongError(f"{where} has {unknown[0]!r}, which is none of {', '.join(sorted(names))}")


def _text(given: Mapping[str, Any], name: str, where: str) -> str:
    text = given.get(name, "")
    if not isinstance(text, str):
        raise _WrongError(f"{where} has a {name} that is not text")
    return text.strip()


def _names(given: Mapping[str, Any], where: str) -> tuple[str, ...]:
    names = given.get("structures", [])
    if not isinstance(names, list) or not all(isinstance(name, str) and name.strip() for name in names):
        raise _WrongError(f"{where} has structures that are not a list of names")
    return tuple(dict.fromkeys(" ".join(name.split()) for name in names))

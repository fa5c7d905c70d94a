"""What a finding is called in SNOMED CT, and the colour it is drawn in.

A segment in DICOM says what it shows by codes, not by words: a category (CID 7150), a type (CID 7151), modifiers such
as "Left" (CID 244) and, for something abnormal, the anatomic region it lies in (DICOM PS3.3 C.8.20.4, PS3.16). The
model answers in words; `find_term` turns the words into codes. A word it does not know gets a correct but general code,
and the `Term` says so.

The codes themselves are in `snomed`.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from types import MappingProxyType
from typing import Final, Literal

from pydicom.sr.coding import Code

from medsight_core import snomed

Match = Literal["exact", "broader", "generic"]


def _sct(value: str, meaning: str) -> Code:
    return Code(value, "SCT", meaning)


ANATOMICAL_STRUCTURE: Final = _sct("91723000", "Anatomical Structure")
ABNORMAL_STRUCTURE: Final = _sct("49755003", "Morphologically Abnormal Structure")
TISSUE: Final = _sct("85756007", "Tissue")
BODY_SUBSTANCE: Final = _sct("91720002", "Body Substance")
PHYSICAL_OBJECT: Final = _sct("260787004", "Physical object")
LESION: Final = _sct("52988006", "Lesion")
LEFT: Final = _sct("7771000", "Left")
RIGHT: Final = _sct("24028007", "Right")
BILATERAL: Final = _sct("51440002", "Bilateral")

_SIDES: Final = MappingProxyType({"left": LEFT, "right": RIGHT, "bilateral": BILATERAL, "both": BILATERAL})
_MODIFIERS: Final = MappingProxyType(
    {
        "anterior": _sct("255549009", "Anterior"),
        "posterior": _sct("255551008", "Posterior"),
        "benign": _sct("30807003", "Benign"),
        "malignant": _sct("21594007", "Malignant"),
    }
)
_FILLERS: Final = frozenset({"a", "an", "the", "in", "of", "on", "at", "within", "and"})
_SITES_WITHOUT_REGION: Final = frozenset({"", "tissue", "transperineal", "unknown"})
_DISEASE_ENDING: Final = re.compile(r"(?<!str)(?:oma|omas|itis|osis|pathy|ectasis|plasia|plastic|lesions?)$")
_SPELLINGS: Final = (("oedem", "edem"), ("tumour", "tumor"), ("haem", "hem"), ("oesoph", "esoph"), ("foet", "fet"))
_SPELLING_OF_WORD: Final = MappingProxyType({"naevus": "nevus", "naevi": "nevus", "nevi": "nevus", "grey": "gray"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Term:
    """A finding in codes.

    Attributes:
        label: The words as they were given.
        category: CID 7150, such as Anatomical Structure.
        type: CID 7151, such as Kidney.
        modifier: What narrows the type, such as Malignant or Anterior; None for most.
        region: Anatomic region, for something that is not itself anatomy.
        laterality: Left, Right or Bilateral of the type, or of the region where there is one. None also where the side
            is part of the type, as in Left atrium.
        match: "exact"; "broader" where no code says all that the words say; "generic" where the words are not known.
    """

    label: str
    category: Code
    type: Code
    modifier: Code | None = None
    region: Code | None = None
    laterality: Code | None = None
    match: Match = "exact"

    @property
    def type_modifiers(self) -> tuple[Code, ...]:
        """What belongs to the type in DICOM: the modifier, and the side of a structure."""
        side = self.laterality if self.region is None else None
        return tuple(code for code in (self.modifier, side) if code is not None)

    @property
    def region_modifiers(self) -> tuple[Code, ...]:
        """What belongs to the region in DICOM: its side."""
        return () if self.region is None or self.laterality is None else (self.laterality,)

    @property
    def note(self) -> str:
        """A sentence for the reader where the codes say less than the words; else empty."""
        if self.match == "exact":
            return ""
        reason = "is unknown to the terminology" if self.match == "generic" else "has no code of its own"
        return f'"{self.label}" {reason}; it is coded as {self.type.meaning}.'

    @property
    def key(self) -> str:
        """The same for synonyms, different for different findings; the colour follows it."""
        if self.match != "exact":
            return " ".join(normal_words(self.label))
        codes = (self.type, self.modifier, self.region, self.laterality)
        return " ".join("-" if code is None else str(code.value) for code in codes)


@dataclass(frozen=True, slots=True)
class _Entry:
    category: Code
    type: Code
    modifier: Code | None = None
    region: Code | None = None
    broader: bool = False

    @property
    def is_structure(self) -> bool:
        return self.category in (ANATOMICAL_STRUCTURE, TISSUE)


def normal_words(text: str) -> list[str]:
    """The words of a text in small letters and one spelling, without marks between them."""
    words = re.findall(r"[^\W_]+", text.lower())
    for british, american in _SPELLINGS:
        words = [word.replace(british, american) for word in words]
    return [_SPELLING_OF_WORD.get(word, word) for word in words]


def _rows(table: str) -> Iterator[tuple[str, str]]:
    for row in table.strip().splitlines():
        concept, _, names = row.partition(" = ")
        yield concept, names


@cache
def _entries() -> Mapping[str, _Entry]:
    entries: dict[str, _Entry] = {}
    plain = (
        (snomed.STRUCTURES, ANATOMICAL_STRUCTURE),
        (snomed.TISSUES, TISSUE),
        (snomed.SUBSTANCES, BODY_SUBSTANCE),
        (snomed.OBJECTS, PHYSICAL_OBJECT),
    )
    for table, category in plain:
        for concept, names in _rows(table):
            entry = _Entry(category, _sct(*concept.split(" ", 1)))
            entries |= dict.fromkeys(names.split("|"), entry)
    for letter, values in snomed.VERTEBRAE:
        for number, value in enumerate(values.split(), start=1):
            entry = _Entry(ANATOMICAL_STRUCTURE, _sct(value, f"{letter.upper()}{number} vertebra"))
            names_of_it = (f"{letter}{number} vertebra", f"vertebra {letter}{number}", f"vertebrae {letter}{number}")
            entries |= dict.fromkeys(names_of_it, entry)
    for number, row in enumerate(snomed.RIBS.split("|"), start=1):
        value, ordinal = row.split()
        entry = _Entry(ANATOMICAL_STRUCTURE, _sct(value, f"{ordinal} rib"))
        entries |= dict.fromkeys((f"rib {number}", f"{ordinal.lower()} rib"), entry)
    for concept, names in _rows(snomed.ABNORMAL):
        found = re.fullmatch(r"(\d+) ([^~@+]+?)( ~)?(?: @(\w+))?(?: \+(\d+) (\S+))?", concept)
        assert found is not None, concept
        value, meaning, broader, region, modifier, modifier_meaning = found.groups()
        entry = _Entry(
            ABNORMAL_STRUCTURE,
            _sct(value, meaning),
            modifier=_sct(modifier, modifier_meaning) if modifier else None,
            region=entries[region].type if region else None,
            broader=broader is not None,
        )
        entries |= dict.fromkeys(names.split("|"), entry)
    return MappingProxyType(entries)


def _look_up(words: Sequence[str]) -> _Entry | None:
    """The entry of a whole phrase, which may be in the plural."""
    phrase = " ".join(words)
    for plural, singular in (("", ""), ("s", ""), ("es", ""), ("ies", "y")):
        candidate = phrase.removesuffix(plural) + singular
        if phrase.endswith(plural) and candidate in _entries():
            return _entries()[candidate]
    return None


def _scan(words: Sequence[str]) -> tuple[list[_Entry], list[str]]:
    """Known phrases in the order of the words, the longest at each place, and the words that are left over."""
    found, unknown, at = [], [], 0
    while at < len(words):
        for end in range(len(words), at, -1):
            entry = _look_up(words[at:end])
            if entry is not None:
                found.append(entry)
                at = end
                break
        else:
            if words[at] not in _FILLERS:
                unknown.append(words[at])
            at += 1
    return found, unknown


def unknown_words(label: str) -> list[str]:
    """The words of a label that the terminology has no place for; `find_term` then says less than they do."""
    words = [word for word in normal_words(label) if word not in _SIDES and word not in _MODIFIERS]
    return [] if _look_up(words) is not None else _scan(words)[1]


def find_term(label: str, *, site: str | None = None) -> Term:
    """Codes for the words of a finding.

    Args:
        label: Such as "left kidney", "kidney_left", "lesion in the liver", "malignant tumour".
        site: Where the image was taken, such as "brain"; the region of an abnormal finding that names none itself.

    Returns:
        The codes. Unknown words give Tissue (or Lesion, where they sound like a disease) and ``match="generic"``.
    """
    words = normal_words(label)
    whole = _look_up(words)
    if whole is not None:
        return _term(label, whole, site=site)
    sides = list(dict.fromkeys(_SIDES[word] for word in words if word in _SIDES))
    laterality = sides[0] if len(sides) == 1 else BILATERAL if sides else None
    rest = [word for word in words if word not in _SIDES]
    whole = _look_up(rest)
    if whole is not None:
        return _term(label, whole, laterality=laterality, site=site)
    modifiers = [_MODIFIERS[word] for word in rest if word in _MODIFIERS]
    found, unknown = _scan([word for word in rest if word not in _MODIFIERS])
    modifier = modifiers[0] if len(modifiers) == 1 else None
    if unknown:
        laterality = None  # it may be the side of what we do not know: "lesion in the left lobe of the liver"
    things = [entry for entry in found if not entry.is_structure]
    places = [entry for entry in found if entry.is_structure]
    if things:
        # "mass of the left kidney", "kidney cyst": what it is, and the organ as its region.
        surplus = bool(unknown) or len(things) > 1 or len(places) > 1 or len(modifiers) > 1
        place = places[-1].type if places else None
        return _term(label, things[-1], modifier, place, laterality, broader=surplus, site=site)
    if len(places) == 1 and not unknown and len(modifiers) <= 1:
        return _term(label, places[0], modifier, laterality=laterality)
    place = places[-1].type if places else _region(site)
    sick = any(_DISEASE_ENDING.search(word) for word in unknown)
    generic = _Entry(ABNORMAL_STRUCTURE, LESION) if sick else _Entry(ANATOMICAL_STRUCTURE, TISSUE)
    return replace(_term(label, generic, modifier, place, laterality), match="generic")


def _region(site: str | None) -> Code | None:
    if site is None or site.lower() in _SITES_WITHOUT_REGION:
        return None
    entry = _look_up(normal_words(site))
    return entry.type if entry is not None and entry.is_structure else None


def _term(
    label: str,
    entry: _Entry,
    modifier: Code | None = None,
    place: Code | None = None,
    laterality: Code | None = None,
    *,
    broader: bool = False,
    site: str | None = None,
) -> Term:
    region = place or entry.region
    if region is None and not entry.is_structure:
        region = _region(site)
    return Term(
        label=label,
        category=entry.category,
        type=entry.type,
        modifier=modifier or entry.modifier,
        region=region,
        laterality=laterality,
        match="broader" if broader or entry.broader else "exact",
    )


@dataclass(frozen=True, slots=True)
class Colour:
    """A display colour, 8 bits per channel, sRGB."""

    red: int
    green: int
    blue: int

    @property
    def rgb(self) -> tuple[int, int, int]:
        """Red, green, blue, 0 to 255."""
        return self.red, self.green, self.blue

    @property
    def hex(self) -> str:
        """As in CSS, such as ``"#ff5555"``."""
        return "#{:02x}{:02x}{:02x}".format(*self.rgb)


# Chosen by farthest point in CIELab among vivid colours that are neither dark nor white, so that they stand out on a
# grey scan; any two are more than 30 apart (CIE76; 2.3 is just noticeable).
_PALETTE_HEX: Final = (
    "ff5555 00ff00 4455ff 44eeff 667700 ffbbff ff00cc eeee00 00dd88 0077bb ff9900 ffdd88 "
    "bb4477 228866 aa6633 8855bb 66bb00 bb00ff ff9999 aadd99 ff0000 ff0077 ff88ff 4488ff"
)
_PALETTE: Final = tuple(Colour(*bytes.fromhex(word)) for word in re.findall(r"\w+", _PALETTE_HEX))


def display_colour(label: str) -> Colour:
    """The colour of a finding: always the same for the same finding, in every answer and on every machine."""
    return display_colours((label,))[0]


def display_colours(labels: Iterable[str]) -> tuple[Colour, ...]:
    """Colours for the findings of one answer, in their order.

    Each finding gets its own colour of `display_colour`; one that would share the colour of an earlier, different
    finding gets the next free one. The same finding twice has one colour. With more than 24 findings colours repeat.
    """
    keys = [find_term(label).key for label in labels]
    taken: dict[str, int] = {}
    for key in keys:
        if key in taken:
            continue
        wanted = int.from_bytes(hashlib.sha256(key.encode()).digest()[:4]) % len(_PALETTE)
        order = [(wanted + step) % len(_PALETTE) for step in range(len(_PALETTE))]
        taken[key] = next((slot for slot in order if slot not in taken.values()), wanted)
    return tuple(_PALETTE[taken[key]] for key in keys)

"""What a segment shows, in the words of Slicer's terminology entries."""

from __future__ import annotations

from typing import Any, Final

from medsight_core.terminology import Term

TYPES: Final = "Segmentation category and type - DICOM master list"
REGIONS: Final = "Anatomic codes - DICOM master list"


def entry_of(term: Term) -> str:
    """A serialised terminology entry: context~category~type~modifier~context~region~modifier.

    Only one modifier has room in each place; what says the side goes first.
    """
    type_modifier = next(iter(term.type_modifiers), None)
    region_modifier = next(iter(term.region_modifiers), None)
    codes = (term.category, term.type, type_modifier), (term.region, region_modifier)
    types, regions = ("~".join(map(_code, some)) for some in codes)
    return f"{TYPES}~{types}~{REGIONS}~{regions}"


def _code(code: Any) -> str:
    return "^^" if code is None else f"{code.scheme_designator}^{code.value}^{code.meaning}"

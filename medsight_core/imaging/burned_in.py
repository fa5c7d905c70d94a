"""Text that is written into the pixels of a scan, which no removal of tags takes away.

Ultrasound machines, exported screens and digitised films carry the patient's name, dates and numbers as picture. Only
pixels, geometry and modality are sent to a remote backend, but such text would travel with the pixels, so that a person
should look first (DICOM PS3.15 Annex E, Clean Pixel Data Option).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from medsight_core.imaging.volume import PixelText, Volume

if TYPE_CHECKING:
    from medsight_core.imaging.dicom_header import Header

REMEDY: Final = "Look for names, dates and numbers first; where there are any, ask on this machine instead."

_ULTRASOUND: Final = frozenset({"US", "IVUS", "BDUS"})
_PICTURES: Final = frozenset({"XC", "SC", "ES", "EPS", "OT", "GM", "DMS", "OP", "HC"})
_CAPTURES: Final = "1.2.840.10008.5.1.4.1.1.7"  # Secondary Capture; its multi-frame kinds follow after a dot
_CONVERSIONS: Final = frozenset({"DV", "DI", "DF", "WSD", "SD", "SI", "DRW", "SYN"})
"""Conversion Type (PS3.3 C.8.6.1): every defined way from a film, a screen or paper to an image."""


def pixel_text(headers: Sequence[Header]) -> PixelText:
    """What the headers of a series say about text in its pixels; one image that says so speaks for all.

    Args:
        headers: Of the files that are read.
    """
    said = {header.text("BurnedInAnnotation").strip().upper() for header in headers}
    if "YES" in said:
        return "yes"
    if any(map(_captured, headers)):
        return "captured"
    return "no" if said == {"NO"} else "not said"


def burned_in_risk(volume: Volume) -> str | None:
    """Why the pixels of a scan may hold text about the patient, and what to do, as a sentence or two for a person.

    Meant to be shown before a volume is sent to another machine for the first time, and never sent along with it. A
    file that says it holds no such text is believed, except where the kind of image has it so often that a look costs
    less than a mistake.

    Args:
        volume: As it was read. NIfTI and NRRD say nothing of their pixels' origin and count as scanners' own.

    Returns:
        None where nothing speaks for it.
    """
    source = volume.source
    modality = source.dicom_modality or ""
    if source.pixel_text == "yes":
        reason = "The file says that text about the patient is written into its pixels (Burned In Annotation: YES)."
    elif source.pixel_text == "captured":
        reason = "This is a captured screen or a digitised film, which mostly has the patient's name in the picture."
    elif modality in _ULTRASOUND or volume.modality == "Ultrasound":
        reason = "Ultrasound machines write the patient's name and dates into the picture."
        if source.pixel_text == "no":
            reason = f"{reason[:-1]}; the file says that this one did not, but that is not reliable."
    elif modality in _PICTURES:
        reason = "Photographs and endoscopic pictures may show a name, a date or the patient's face."
    elif source.kind == "image":
        reason = "A picture that was exported or photographed may show a name, a date or a face."
    else:
        return None
    return f"{reason} What is written in the pixels would be sent with them. {REMEDY}"


def _captured(header: Header) -> bool:
    kind = header.text("SOPClassUID").strip()
    return (
        kind == _CAPTURES
        or kind.startswith(f"{_CAPTURES}.")
        or header.text("ConversionType").strip().upper() in _CONVERSIONS
        or "SCREEN" in header.text("ImageType").upper()
    )

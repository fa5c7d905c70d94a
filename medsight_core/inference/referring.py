"""Phrases about a volume: "the largest lesion", "the left kidney", "all organs you know".

The names in the phrase are looked for on every slice, without the language model; what is meant is then decided by
measurements and places in the patient.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from medsight_core.events import Progress
from medsight_core.evidence import Evidence
from medsight_core.imaging.planes import Plane
from medsight_core.imaging.volume import Volume
from medsight_core.questioning import show_reference
from medsight_core.referring import parse_reference
from medsight_core.regions import Answer
from medsight_core.understanding import understand

if TYPE_CHECKING:
    from medsight_core.inference.surveying import Survey
    from medsight_core.inference.volumes import VolumeEngine


def refer(
    volumes: VolumeEngine,
    phrase: str,
    volume: Volume,
    *,
    plane: Plane = "acquired",
    slices: range | None = None,
    cancel: threading.Event | None = None,
    on_progress: Callable[[Progress], None] = lambda progress: None,
) -> Answer:
    """Finds what a phrase means in a volume.

    Args:
        volumes: Who looks.
        phrase: See `parse_reference`.
        volume: The scan.
        plane: The plane in which its slices are looked at.
        slices: Which of them, from 0; None for all.
        cancel: When it is set, the search ends.
        on_progress: Is told how far it is.

    Returns:
        An answer with a `VolumeRegion` for each piece that is meant; its text says what could not be decided.

    Raises:
        InputError: unknown_structure, too_much, before anything is looked at; and see `VolumeEngine.survey`.
        MedSightError: stopped.
    """
    reference = parse_reference(phrase, volumes.classes)
    survey = volumes.survey(volume, reference.names, plane=plane, slices=slices, cancel=cancel, on_progress=on_progress)
    answer = show_reference(reference, evidence_of(volume, survey))
    return replace(answer, warnings=tuple(dict.fromkeys((*survey.warnings, *answer.warnings))))


def is_reference(text: str, known: Sequence[str]) -> bool:
    """Whether words pick something out of what is known by name ("the largest lesion", "the left kidney" of kidneys,
    "all organs"), which measuring can do and reading a slice cannot.

    Args:
        text: What a person typed.
        known: What the model knows by name.
    """
    return understand(text, known).way == "show"


def evidence_of(volume: Volume, survey: Survey) -> Evidence:
    """What a survey of a volume found, measured.

    Slices of another plane than the acquired one have numbers of their own, and each of them crosses every slice that
    was acquired; all of these count as read then.
    """
    acquired = survey.provenance.settings.get("plane") == "acquired"
    return Evidence.gather(
        volume,
        survey.regions,
        provenance=survey.provenance,
        known=survey.known,
        slices=survey.slices if acquired else None,
        presence=survey.presence if acquired else None,
    )

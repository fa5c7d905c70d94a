"""Requests on the wire: the ``medsight`` field of a chat request, and what is to be segmented.

    {"volume": "<digest>", "slice": 12, "prompts": [...], "whole": {"plane": "axial", "slices": [0, 40]}}
    {"volume": "<digest>", "slice": 12, "strokes": [{"slice": 12, "kind": "point", "points": [[x, y, z]]}]}

The volume is named by its digest, so a server first looks it up with `volume_named` and then reads the rest with the
volume at hand. A field that is not known is an error: a request is never half understood.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final, get_args

from medsight_core.backend import SegmentRequest, Whole
from medsight_core.errors import InputError
from medsight_core.regions import Question
from medsight_core.wire import checked
from medsight_core.wire.prompts import prompt_to_json, prompts_from_json, stroke_to_json, strokes_from_json

if TYPE_CHECKING:
    from medsight_core.imaging.volume import Volume

DIGEST: Final = re.compile(r"[0-9a-f]{64}", re.ASCII)
"""A whole digest of a volume."""


def volume_named(value: object) -> str | None:
    """The digest of the volume that a request is about; None where it names none.

    Raises:
        InputError: bad_request.
    """
    fields = checked.record(value, "The request", optional=None)
    if fields.get("volume") is None:
        return None
    return digest_from_json(fields["volume"])


def digest_from_json(value: object) -> str:
    """A digest as volumes are named by.

    Raises:
        InputError: bad_request.
    """
    if not isinstance(value, str) or not DIGEST.fullmatch(value):
        raise checked.wrong("The name of a volume", "its digest, 64 hexadecimal digits in lower case")
    return value


def question_to_json(question: Question, whole: Whole | None = None, *, digest: str) -> dict[str, Any]:
    """The ``medsight`` field of a chat request; text and history are its messages."""
    made: dict[str, Any] = {"volume": digest, "slice": question.slice_index}
    if question.prompts:
        made["prompts"] = [prompt_to_json(prompt) for prompt in question.prompts]
    if whole is not None:
        made["whole"] = {
            "plane": whole.plane,
            "slices": _range_to_json(whole.slices),
            "exact": whole.exact,
            "shown": whole.shown,
        }
    return made


def question_from_json(
    value: object, volume: Volume, *, text: str, history: tuple[tuple[str, str], ...] = ()
) -> tuple[Question, Whole | None]:
    """Reads the ``medsight`` field of a chat request.

    Args:
        value: As parsed from JSON.
        volume: That it names, or the picture that came with the messages.
        text, history: Of the messages.

    Raises:
        InputError: bad_request, bad_mask, bad_prompt, slice_out_of_range, empty_question.
    """
    fields = checked.record(value, "The field medsight", optional=("volume", "slice", "prompts", "whole", "modality"))
    if fields.get("volume") is not None and "modality" in fields:
        raise InputError("bad_request", "A volume knows its modality; that of a picture can be said.", "Leave it out.")
    k = _slice(fields.get("slice"), volume)
    _, rows, columns = volume.slice_frame(k).shape
    question = Question(
        text=checked.text(text, "The question"),
        volume=volume,
        slice_index=k,
        prompts=prompts_from_json(fields.get("prompts", []), shape=(rows, columns)),
        history=history,
    )
    whole = None if fields.get("whole") is None else _whole(fields["whole"])
    if whole is not None and question.prompts:
        raise InputError(
            "bad_request", "Prompts are drawn on a slice and do not go with a whole volume.", "Leave one of them out."
        )
    return question, whole


def segment_to_json(request: SegmentRequest, *, digest: str) -> dict[str, Any]:
    """The body of a request to segment."""
    return {
        "volume": digest,
        "slice": request.slice_index,
        "strokes": [stroke_to_json(stroke) for stroke in request.strokes],
        "text": request.text,
        "whole": request.whole,
        "slices": _range_to_json(request.slices),
    }


def segment_from_json(value: object, volume: Volume) -> SegmentRequest:
    """Reads the body of a request to segment.

    Args:
        value: As parsed from JSON.
        volume: That it names.

    Raises:
        InputError: bad_request, bad_mask, bad_prompt, slice_out_of_range, nothing_asked.
    """
    fields = checked.record(
        value, "The request", required=("volume",), optional=("slice", "strokes", "text", "whole", "slices")
    )
    return SegmentRequest(
        volume=volume,
        slice_index=_slice(fields.get("slice"), volume),
        strokes=strokes_from_json(fields.get("strokes", []), volume),
        text=checked.text(fields.get("text", ""), "text"),
        whole=checked.flag(fields.get("whole", False), "whole"),
        slices=_range_from_json(fields.get("slices")),
    )


def _whole(value: object) -> Whole:
    from medsight_core.imaging.planes import Plane  # here, because a client that only asks needs no nibabel

    fields = checked.record(value, "whole", optional=("plane", "slices", "exact", "shown"))
    plane: Plane = checked.one_of(fields.get("plane", "acquired"), "A plane", get_args(Plane))
    shown = fields.get("shown")
    return Whole(
        plane=plane,
        slices=_range_from_json(fields.get("slices")),
        exact=checked.flag(fields.get("exact", False), "exact"),
        shown=None if shown is None else checked.integer(shown, "shown"),
    )


def _slice(value: object, volume: Volume) -> int:
    return volume.middle if value is None else checked.integer(value, "slice")


def _range_to_json(slices: range | None) -> list[int] | None:
    return None if slices is None else [slices.start, slices.stop]


def _range_from_json(value: object) -> range | None:
    """A range that is empty or reaches outside is refused where it is used, with what is legal there."""
    if value is None:
        return None
    ends = [checked.integer(end, "slices") for end in checked.listed(value, "slices", most=2)]
    if len(ends) != 2:
        raise checked.wrong("slices", "a first slice and the one behind the last")
    return range(ends[0], ends[1])

"""A conversation as JSON that can be restored beside the same scan, with its findings and their masks.

It holds what was typed and what was answered, and where the scan lies, to know it again; no name, date or path.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, get_args

import numpy as np

from medsight_core.backend import Stroke, Whole
from medsight_core.chat.conversation import Conversation
from medsight_core.chat.turns import STOPPED, Asked, Finding, Kind, Turn
from medsight_core.errors import InputError, MedSightError
from medsight_core.events import Failed, RegionFound
from medsight_core.wire import checked
from medsight_core.wire.events import EventReader, EventWriter
from medsight_core.wire.requests import question_from_json, question_to_json, segment_from_json, segment_to_json

if TYPE_CHECKING:
    from medsight_core.imaging.volume import Volume

FORMAT: Final = "medsight-conversation"
FORMAT_VERSION: Final = 1
LONGEST: Final = 10_000
"""Turns, and findings of a turn, that are read."""


def to_json(conversation: Conversation, volume: Volume) -> dict[str, Any]:
    """The conversation, ready for ``json.dumps``; steps that could be undone are not part of it.

    An answer that is being written is saved as interrupted.

    Args:
        conversation: About the scan.
        volume: The scan.
    """
    return {
        "format": FORMAT,
        "version": FORMAT_VERSION,
        "scan": _scan(volume),
        "turns": [_turn_to_json(turn, volume) for turn in conversation.turns],
    }


def from_json(value: object, volume: Volume) -> Conversation:
    """Restores a conversation.

    Args:
        value: As parsed from JSON.
        volume: The scan that it was about.

    Raises:
        InputError: bad_conversation: it is none, or damaged, or of a newer version; other_scan.
    """
    try:
        fields = checked.record(value, "A conversation", required=("format", "version", "scan", "turns"))
        if fields["format"] != FORMAT or fields["version"] != FORMAT_VERSION:
            raise InputError("bad_request", f"It is not in the format {FORMAT} {FORMAT_VERSION}.")
        if not _is_same(fields["scan"], volume):
            raise InputError(
                "other_scan",
                "The saved conversation is about another scan: shape or place in the patient differ.",
                "Open the scan that it belongs to.",
            )
        turns = [_turn_from_json(one, volume) for one in checked.listed(fields["turns"], "turns", most=LONGEST)]
    except MedSightError as error:
        if error.code == "other_scan":
            raise
        raise InputError(
            "bad_conversation", f"The saved conversation cannot be read: {error.sentence}", "Start a new one."
        ) from error
    return Conversation(turns)


def _turn_to_json(turn: Turn, volume: Volume) -> dict[str, Any]:
    writer, answer, failure = EventWriter(volume), turn.answer(), turn.failure
    if turn.state == "running":
        failure = Failed("interrupted", "The answer was not complete when the conversation was saved.", "Ask again.")
    fields: dict[str, Any] = {
        "number": turn.number,
        "asked": _asked_to_json(turn.asked, volume),
        "findings": [
            {
                "name": finding.name,
                "hidden": finding.hidden,
                "deleted": finding.deleted,
                "event": writer.to_json(RegionFound(finding.region)),
            }
            for finding in turn.findings
        ],
    }
    if answer is not None:
        return fields | {"answer": writer.answer_to_json(replace(answer, regions=(), volume_regions=()))}
    partial = {"text": turn.text, "warnings": list(turn.warnings)}
    if failure is not None:
        partial["failure"] = [failure.code, failure.sentence, failure.remedy]
    return fields | {"partial": partial}


def _asked_to_json(asked: Asked, volume: Volume) -> dict[str, Any]:
    if asked.kind == "segment":
        return {"kind": asked.kind, "request": segment_to_json(asked.request(volume), digest="")}
    request = question_to_json(asked.question(volume), asked.whole, digest="")
    return {"kind": asked.kind, "text": asked.text, "request": request}


def _turn_from_json(value: object, volume: Volume) -> Turn:
    fields = checked.record(value, "A turn", required=("number", "asked", "findings"), optional=("answer", "partial"))
    number = checked.integer(fields["number"], "A turn's number", low=1)
    reader = EventReader(volume)
    findings = checked.listed(fields["findings"], "findings", most=LONGEST)
    turn = Turn(
        number=number,
        asked=_asked_from_json(fields["asked"], volume),
        findings=tuple(_finding_from_json(one, f"{number}.{n}", reader) for n, one in enumerate(findings, start=1)),
    )
    if "answer" in fields:
        answer = reader.answer_from_json(fields["answer"])
        turn = replace(
            turn,
            text=answer.text,
            raw=answer.raw,
            warnings=answer.warnings,
            state="done",
            provenance=answer.provenance,
        )
    else:
        turn = _partial(turn, fields.get("partial"))
    if any(finding.region.span.end > len(turn.text) for finding in turn.findings):
        raise checked.wrong("A finding's span", "within the text")
    return turn


def _partial(turn: Turn, value: object) -> Turn:
    """A turn whose answer is not complete."""
    fields = checked.record(value, "partial", required=("text", "warnings", "failure"))
    why = [checked.text(word, "failure") for word in checked.listed(fields["failure"], "failure", most=3)]
    if len(why) != 3:
        raise checked.wrong("failure", "a code, a sentence and a remedy")
    failure = Failed(*why)
    return replace(
        turn,
        text=checked.text(fields["text"], "text"),
        warnings=tuple(
            checked.text(one, "A warning") for one in checked.listed(fields["warnings"], "warnings", most=LONGEST)
        ),
        state="stopped" if failure.code == STOPPED else "failed",
        failure=failure,
    )


def _asked_from_json(value: object, volume: Volume) -> Asked:
    fields = checked.record(value, "asked", required=("kind", "request"), optional=("text",))
    if checked.one_of(fields["kind"], "kind", get_args(Kind)) == "segment":
        request = segment_from_json(fields["request"], volume)
        return Asked(
            kind="segment",
            text=request.text,
            slice_index=request.slice_index,
            strokes=request.strokes,
            whole=Whole(slices=request.slices) if request.whole else None,
        )
    text = checked.text(fields.get("text"), "text")
    question, whole = question_from_json(fields["request"], volume, text=text)
    k = question.slice_index
    strokes = tuple(Stroke(slice_index=k, prompt=prompt) for prompt in question.prompts)
    return Asked(kind="ask", text=text, slice_index=k, strokes=strokes, whole=whole)


def _finding_from_json(value: object, key: str, reader: EventReader) -> Finding:
    fields = checked.record(value, "A finding", required=("name", "hidden", "deleted", "event"))
    event = reader.from_json(fields["event"])
    if not isinstance(event, RegionFound):
        raise checked.wrong("A finding", "a region")
    return Finding(
        key=key,
        region=event.region,
        name=checked.text(fields["name"], "name"),
        hidden=checked.flag(fields["hidden"], "hidden"),
        deleted=checked.flag(fields["deleted"], "deleted"),
    )


def _scan(volume: Volume) -> dict[str, Any]:
    """What a scan is known again by: where its middle slice lies, and how many there are."""
    frame = volume.slice_frame(volume.middle)
    return {
        "shape": list(volume.array.shape[:3]),
        "modality": volume.modality,
        "middle": frame.affine.ravel().tolist(),
    }


def _is_same(value: object, volume: Volume) -> bool:
    fields = checked.record(value, "scan", required=("shape", "modality", "middle"))
    own = _scan(volume)
    if fields["shape"] != own["shape"] or fields["modality"] != own["modality"]:
        return False
    affine = checked.numbers(fields["middle"], "The place of a scan", count=16).reshape(4, 4)
    frame = volume.slice_frame(volume.middle)
    return bool(np.allclose(affine, frame.affine, rtol=0, atol=1e-3 * float(frame.spacing.min())))

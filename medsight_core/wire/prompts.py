"""Prompts and strokes on the wire: points in LPS mm, masks packed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final, get_args

import numpy as np

from medsight_core.backend import Stroke
from medsight_core.errors import InputError
from medsight_core.regions import Prompt, PromptKind
from medsight_core.wire import checked
from medsight_core.wire.masks import PackedMask, pack_mask, unpack_mask

if TYPE_CHECKING:
    from medsight_core.imaging.volume import Volume

MOST_PROMPTS: Final = 256
"""Prompts of one question, or strokes of one request."""

MOST_POINTS: Final = 10_000
"""Points of one scribble."""

MOST_MASK_PIXELS: Final = 2**28
"""Pixels of all masks of one request; a few bytes on the wire may stand for many."""


def prompt_to_json(prompt: Prompt) -> dict[str, Any]:
    """A prompt, ready for ``json.dumps``."""
    made: dict[str, Any] = {"kind": prompt.kind, "points": prompt.points.tolist(), "positive": prompt.positive}
    if prompt.mask is not None:
        made["mask"] = pack_mask(prompt.mask).to_json()
    return made


def prompts_from_json(value: object, *, shape: tuple[int, int]) -> tuple[Prompt, ...]:
    """Reads the prompts of one slice.

    Args:
        value: As parsed from JSON.
        shape: Rows and columns of the slice that they were drawn on, which their masks must have.

    Raises:
        InputError: bad_request, bad_mask, bad_prompt.
    """
    given = checked.listed(value, "The list of prompts", most=MOST_PROMPTS)
    _check_masks(given, shape)
    return tuple(_prompt(one, shape) for one in given)


def stroke_to_json(stroke: Stroke) -> dict[str, Any]:
    """A stroke, ready for ``json.dumps``: a prompt and its slice."""
    return {"slice": stroke.slice_index, **prompt_to_json(stroke.prompt)}


def strokes_from_json(value: object, volume: Volume) -> tuple[Stroke, ...]:
    """Reads strokes on slices of a volume.

    Raises:
        InputError: bad_request, bad_mask, bad_prompt, slice_out_of_range.
    """
    given = checked.listed(value, "The list of strokes", most=MOST_PROMPTS)
    shape = (int(volume.array.shape[1]), int(volume.array.shape[2]))
    _check_masks(given, shape)
    strokes = []
    for one in given:
        fields = checked.record(one, "A stroke", required=("slice",), optional=None)
        k = checked.integer(fields["slice"], "A stroke's slice")
        volume.slice_frame(k)
        prompt = {name: field for name, field in fields.items() if name != "slice"}
        strokes.append(Stroke(slice_index=k, prompt=_prompt(prompt, shape)))
    return tuple(strokes)


def _prompt(value: object, shape: tuple[int, int]) -> Prompt:
    fields = checked.record(value, "A prompt", required=("kind",), optional=("points", "positive", "mask"))
    kind: PromptKind = checked.one_of(fields["kind"], "A prompt's kind", get_args(PromptKind))
    given = checked.listed(fields.get("points", []), "The list of points", most=MOST_POINTS)
    points = [checked.numbers(point, "A point", count=3) for point in given]
    packed = fields.get("mask")
    return Prompt(
        kind=kind,
        points=np.array(points, dtype=np.float64).reshape(len(points), 3),
        positive=checked.flag(fields.get("positive", True), "A prompt's positive"),
        mask=None if packed is None else unpack_mask(PackedMask.from_json(packed), shape=shape),
    )


def _check_masks(given: Sequence[object], shape: tuple[int, int]) -> None:
    count = sum(isinstance(one, dict) and one.get("mask") is not None for one in given)
    if count * shape[0] * shape[1] > MOST_MASK_PIXELS:
        raise InputError(
            "too_large",
            f"{count} masks of {shape[0]} x {shape[1]} pixels are more than one request may hold.",
            "Draw with fewer masks.",
        )

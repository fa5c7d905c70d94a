"""From a question to what the model reads: a picture, drawn prompts and tokens. Refuses before any work starts."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from medsight_core.codes import CODE_PATTERN
from medsight_core.errors import InputError
from medsight_core.geometry import Frame, GridTransform
from medsight_core.imaging.orientation import stacking_axis, turned
from medsight_core.imaging.volume import Volume
from medsight_core.imaging.windowing import display
from medsight_core.markup import CLOSE, OPEN
from medsight_core.model import MedSightProcessor
from medsight_core.prompt_raster import CHANNELS, Mark, draw
from medsight_core.regions import Prompt, Question

OUTSIDE_TOLERANCE = 1e-3
"""How far beyond the outermost pixel or off its slice a prompt may lie, in voxels: rounding on the way through mm."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Inputs:
    """A question made ready.

    Attributes:
        question: As it was asked.
        transform: From the slice's grid to the model's input grid.
        raster: What was drawn, on the model's grid `(channels, size, size)`; None without prompts.
        input_ids: The conversation `(length,)`.
        cuts: Where it falls into pieces that are read by themselves: behind the image, behind each earlier question.
        limit: New tokens at which an answer is cut off.
        warnings: What had to be left out, and what to beware of.
    """

    question: Question
    transform: GridTransform
    raster: np.ndarray | None
    input_ids: Tensor
    cuts: tuple[int, ...]
    limit: int
    warnings: tuple[str, ...]

    @property
    def looks_at(self) -> bytes:
        """What tells the picture with what was drawn on it from others of the same volume."""
        drawn = b"" if self.raster is None else hashlib.sha256(self.raster.tobytes()).digest()
        return self.question.slice_index.to_bytes(8, "big") + drawn

    @property
    def frame(self) -> Frame:
        """Where the slice lies."""
        return self.question.volume.slice_frame(self.question.slice_index)

    def pixels(self, processor: MedSightProcessor) -> Tensor:
        """The slice as the model sees it `(3, size, size)`."""
        return slice_pixels(processor, self.question.volume, self.question.slice_index)


def slice_pixels(processor: MedSightProcessor, volume: Volume, k: int) -> Tensor:
    """A slice as the model sees it `(3, size, size)`: windowed, in its true proportions, normalised."""
    return processor.image_processor.pixels(display(volume, k), volume.slice_frame(k).pixel_aspect)


def slice_transform(processor: MedSightProcessor, frame: Frame) -> GridTransform:
    """The map from a slice's grid to the model's input grid.

    Args:
        processor: Of the checkpoint.
        frame: Of the slice, or of the whole volume it belongs to.
    """
    return processor.image_processor.transform((frame.shape[1], frame.shape[2]), frame.pixel_aspect)


def turned_warning(volume: Volume, k: int) -> tuple[str, ...]:
    """What must be said of a slice that is stored otherwise than people look at it; nothing of any other.

    A slice alone is seen as it is stored, as viewers show it; a whole volume is turned upright first (see
    `imaging.planes`).
    """
    if not volume.has_place:
        return ()
    frame = volume.slice_frame(k)
    upright = turned(frame.affine, frame.shape, stacked_along=stacking_axis(frame), keep_order=True)
    if upright.axes == (0, 1, 2) and not any(upright.reversed):
        return ()
    return (
        "This slice is stored turned or mirrored against the usual display, and the model saw it so: left and right in "
        "its words may be the wrong way round.",
    )


class InputMaker:
    """Makes `Inputs` for one model.

    Args:
        processor: Of the checkpoint.
        reads_prompts: Whether the model has a prompt encoder.
        prompt_placeholder: Whether the text holds a place for the prompt token.
        longest: Tokens that prompt and answer may have together; None where there is no limit.
    """

    def __init__(
        self, *, processor: MedSightProcessor, reads_prompts: bool, prompt_placeholder: bool, longest: int | None
    ) -> None:
        self._processor = processor
        self._reads_prompts = reads_prompts
        self._prompt_placeholder = prompt_placeholder
        self._longest = longest
        self._image_id = processor.tokenizer.convert_tokens_to_ids(processor.image_token)
        special = set(processor.tokenizer.get_added_vocab()) | set(processor.tokenizer.all_special_tokens)
        self._words = defuser(special)
        # The model's own earlier answers keep their codes, as it spells them, and their markup.
        self._spelt = processor.codes.spelt
        self._earlier = defuser(
            {name for name in special if name not in (OPEN, CLOSE) and not CODE_PATTERN.match(name)}
        )

    def make(self, question: Question, *, max_new_tokens: int) -> Inputs:
        """Checks a question and makes it ready.

        Raises:
            InputError: A prompt lies elsewhere or is of a kind that the model does not read, or the text is too long.
        """
        transform = slice_transform(self._processor, question.volume.slice_frame(question.slice_index))
        raster = self._raster(question, transform) if question.prompts else None
        input_ids, cuts, dropped = self._tokens(question, max_new_tokens)
        warnings = turned_warning(question.volume, question.slice_index)
        if dropped:
            turns = "turn" if dropped == 1 else f"{dropped} turns"
            warnings += (f"The conversation has grown too long for the model; its first {turns} went unread.",)
        return Inputs(
            question=question,
            transform=transform,
            raster=raster,
            input_ids=input_ids,
            cuts=cuts,
            limit=max_new_tokens,
            warnings=warnings,
        )

    def _tokens(self, question: Question, max_new_tokens: int) -> tuple[Tensor, tuple[int, ...], int]:
        """The conversation, its cuts, and how many of its oldest turns were left out because it would not fit."""
        history = [(self._words(asked), self._spelt(self._earlier(answered))) for asked, answered in question.history]
        asked = self._words(question.text.strip())
        prompted = bool(question.prompts) and self._prompt_placeholder
        for dropped in range(len(history) + 1):
            input_ids = self._read(asked, history[dropped:], prompted=prompted)
            if self._longest is None or len(input_ids) + max_new_tokens <= self._longest:
                return input_ids, self._cuts(input_ids, history[dropped:]), dropped
        raise InputError(
            "question_too_long",
            f"The question needs {len(input_ids)} tokens with its image and leaves no room for an answer of "
            f"{max_new_tokens}; the model reads {self._longest} in all.",
            "Ask in fewer words.",
        )

    def _read(self, asked: str, history: Sequence[tuple[str, str]], *, prompted: bool) -> Tensor:
        text = self._processor.chat(asked, history=history, prompted=prompted)
        input_ids: Tensor = self._processor(text=text)["input_ids"][0]
        return input_ids

    def _cuts(self, input_ids: Tensor, history: Sequence[tuple[str, str]]) -> tuple[int, ...]:
        """Behind the image, and where each earlier question was answered: so far the conversation was read before."""
        image = (input_ids == self._image_id).nonzero()
        cuts = {int(image[-1]) + 1} if len(image) else set()
        for turn, (asked, _) in enumerate(history):
            earlier = self._read(asked, history[:turn], prompted=False)
            if torch.equal(input_ids[: len(earlier)], earlier):
                cuts.add(len(earlier))
        return tuple(sorted(cuts - {len(input_ids)}))

    def _raster(self, question: Question, transform: GridTransform) -> np.ndarray:
        if not self._reads_prompts:
            raise InputError(
                "prompts_not_read", "This model does not read points, boxes or other prompts.", "Ask in words alone."
            )
        return draw_prompts(question.prompts, question.volume.slice_frame(question.slice_index), transform)


def draw_prompts(prompts: Iterable[Prompt], frame: Frame, transform: GridTransform) -> np.ndarray:
    """Raster `(channels, height, width)` of what a person drew on one slice, on the model's input grid.

    Args:
        prompts: What was drawn.
        frame: Where the slice lies.
        transform: From the slice's grid to the model's.

    Raises:
        InputError: A prompt lies elsewhere, has no extent, or is of a kind that the model does not read.
    """
    raster = np.zeros((len(CHANNELS), *transform.target), np.float32)
    for prompt in prompts:
        drawn = draw([_mark(prompt, frame, transform)], transform.target)
        if drawn.max() < 0.05:
            raise InputError(
                "prompt_not_seen",
                f"The {prompt.kind} lies in a part of the image that this model cuts off.",
                "Draw nearer to the middle of the image.",
            )
        np.maximum(raster, drawn, out=raster)
    return raster


def _mark(prompt: Prompt, frame: Frame, transform: GridTransform) -> Mark:
    """A prompt on the model's input grid."""
    if not prompt.positive and f"negative {prompt.kind}" not in CHANNELS:
        raise InputError("bad_prompt", f'A {prompt.kind} cannot say "not here".', "Use a point or a scribble for that.")
    rows, columns = frame.shape[1:]
    if prompt.mask is not None:
        if prompt.mask.shape != (rows, columns):
            raise InputError(
                "bad_prompt",
                f"The mask prompt has {prompt.mask.shape[0]} rows and {prompt.mask.shape[1]} columns, the slice has "
                f"{rows} and {columns}.",
                "Draw it on the slice that is asked about.",
            )
        soft = transform.image(prompt.mask.astype(np.float32))
        firm = soft >= 0.5
        # A mask finer than the model's grid would vanish at one half; its strongest pixels stand for it.
        return Mark(kind="mask", mask=(firm if firm.any() else soft / max(float(soft.max()), 1e-6)).astype(np.float32))
    index = frame.to_index(prompt.points)
    if (np.abs(index[:, 0]) > 0.5 + OUTSIDE_TOLERANCE).any():
        raise InputError(
            "prompt_on_other_slice",
            f"The {prompt.kind} does not lie on the slice that is asked about.",
            "Draw on that slice, or ask about the slice it was drawn on.",
        )
    xy = index[:, :0:-1]
    slack = 0.5 + OUTSIDE_TOLERANCE
    if ((xy < -slack) | (xy > np.array([columns, rows]) - 1 + slack)).any():
        x, y = xy[np.argmax(np.abs(xy - np.array([columns - 1, rows - 1]) / 2).max(1))]
        raise InputError(
            "prompt_outside",
            f"The {prompt.kind} at {x:.6g},{y:.6g} lies outside the image, which has {columns} columns and {rows} "
            "rows.",
            f"X goes from 0 to {columns - 1}, Y from 0 to {rows - 1}.",
        )
    if prompt.kind == "box" and (np.ptp(xy, axis=0) < OUTSIDE_TOLERANCE).any():
        raise InputError("bad_prompt", "The box has no area.", "Draw it by two corners that differ in row and column.")
    return Mark(kind=prompt.kind, xy=transform.points(xy), positive=prompt.positive)


def defuser(names: Collection[str]) -> Callable[[str], str]:
    """A function that breaks tokens with a meaning of their own: `<image>` becomes `< image>`.

    What a person types is words: it must neither stand for an image, nor end a turn, nor pose as a region code.
    """
    fuses = sorted((name for name in names if len(name.strip()) > 1), key=len, reverse=True)
    if not fuses:
        return str
    pattern = re.compile("|".join(map(re.escape, fuses)))

    def defuse(text: str) -> str:
        while pattern.search(text):  # a gap can only close where there was none, so this ends
            text = pattern.sub(lambda match: f"{match[0][0]} {match[0][1:]}", text)
        return text

    return defuse

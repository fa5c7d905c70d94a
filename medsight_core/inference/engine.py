"""The engine: questions in, events out.

Everything an answer needs is a local value of the call that makes it, so any number of questions may be under way on
one engine, interleaved or in several threads. Greedy decoding on one machine gives the same answer every time.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from medsight_core.errors import CheckpointError, InputError
from medsight_core.events import Done, Event, Progress, RegionFound, TextDelta, Warning, fold
from medsight_core.inference.checkpoint import Checkpoint, open_checkpoint
from medsight_core.inference.decoding import Step, decode, pad_left, stop_ids
from medsight_core.inference.features import SliceFeatures
from medsight_core.inference.grounding import decode_masks, ground
from medsight_core.inference.inputs import InputMaker, Inputs
from medsight_core.inference.loading import choose_device, load
from medsight_core.inference.reply import Reading, Reply, Stopwatch
from medsight_core.inference.transcript import Transcript
from medsight_core.model import ImageFeatures, MedSightForConditionalGeneration, MedSightProcessor
from medsight_core.model.vision import VisionFeatures
from medsight_core.regions import Answer, Provenance, Question

MAX_NEW_TOKENS = 256
"""Length of an answer at which it is cut off, unless the checkpoint or the caller says otherwise."""

LARGEST_BATCH = 16
"""Questions that are answered at once; more are answered in turns."""


class Engine:
    """Answers questions with one model.

    Args:
        model: The model.
        processor: Of the same checkpoint.
        name: What it is called.
        digest: Of its weights.
        device: Where it runs.
    """

    def __init__(
        self,
        *,
        model: MedSightForConditionalGeneration,
        processor: MedSightProcessor,
        name: str,
        digest: str,
        device: torch.device | None = None,
    ) -> None:
        self.name = name
        self.digest = digest
        self._device = device or torch.device("cpu")
        self._model = model.eval().to(self._device)
        self._processor = processor
        self.features = SliceFeatures(model=self._model, processor=processor, device=self._device)
        """Slices that were looked at; shared by all that is asked of this engine."""
        self._codes = processor.codes
        self._code_ids = frozenset(self._codes.token_ids.values())
        settings = model.generation_config
        self._stop_ids = stop_ids(settings.eos_token_id, processor.tokenizer.eos_token_id)
        self._repetition_penalty = float(settings.repetition_penalty or 1.0)
        config = model.config
        longest = getattr(config.text_config, "max_position_embeddings", None)
        self._max_new_tokens = settings.max_new_tokens or min(MAX_NEW_TOKENS, (longest or 2 * MAX_NEW_TOKENS) // 2)
        self._inputs = InputMaker(
            processor=processor,
            reads_prompts=model.model.prompt_encoder is not None,
            prompt_placeholder=config.prompt_token_id is not None,
            longest=longest,
        )
        # Codes that are decoded together depend on each other, so their masks have to wait for the last one.
        self._together = config.mask_decoder == "perceiver" and config.joint_decoding

    @property
    def model(self) -> MedSightForConditionalGeneration:
        """The model, in evaluation mode on `device`."""
        return self._model

    @property
    def processor(self) -> MedSightProcessor:
        """Of the same checkpoint."""
        return self._processor

    @property
    def device(self) -> torch.device:
        """Where the model runs."""
        return self._device

    @classmethod
    def from_pretrained(
        cls,
        path: Path | str | Checkpoint | None = None,
        *,
        device: str = "auto",
        dtype: torch.dtype | None = None,
    ) -> Engine:
        """Opens a checkpoint.

        Args:
            path: A model folder, or one that was opened before; None for the embedded medsight-mini, or for the folder
                that the environment variable MEDSIGHT_MODEL names.
            device: "auto", "cpu", "cuda", "cuda:1", "mps".
            dtype: To compute in; None for bfloat16 on CUDA and float32 elsewhere, however the weights are stored.

        Raises:
            CheckpointError: The checkpoint is missing, damaged or of another kind.
            InputError: There is no such device.
        """
        where = choose_device(device)
        checkpoint = path if isinstance(path, Checkpoint) else open_checkpoint(path)
        if dtype is None:
            dtype = torch.bfloat16 if where.type == "cuda" else torch.float32
        model, processor = load(checkpoint, dtype=dtype)
        return cls(model=model, processor=processor, name=checkpoint.name, digest=checkpoint.digest, device=where)

    def check(self, question: Question, *, max_new_tokens: int | None = None) -> None:
        """Raises what `ask` would raise at once, without any work.

        Raises:
            InputError: See `ask`.
        """
        self._inputs.make(question, max_new_tokens=self._limit(max_new_tokens))

    def ask(
        self, question: Question, *, cancel: threading.Event | None = None, max_new_tokens: int | None = None
    ) -> Iterator[Event]:
        """Answers a question, step by step.

        Args:
            question: What is asked.
            cancel: When it is set, the answer ends after the token that is being written and says that it was stopped.
            max_new_tokens: Where a longer answer is cut off.

        Returns:
            Events up to `Done`. A region comes when its mask is drawn: right behind its words, or, with a joint mask
            decoder, at the end.

        Raises:
            InputError: At once, before the first event: a prompt lies outside the slice, the text is too long ...
        """
        limit = self._limit(max_new_tokens)
        inputs = self._inputs.make(question, max_new_tokens=limit)
        return (event for _, event in self._answer([inputs], cancel=cancel, limit=limit))

    def answer(self, question: Question, *, max_new_tokens: int | None = None) -> Answer:
        """The whole answer to one question; see `ask`."""
        return fold(self.ask(question, max_new_tokens=max_new_tokens))

    def answer_batch(self, questions: Sequence[Question], *, max_new_tokens: int | None = None) -> list[Answer]:
        """Answers to several questions, in their order, faster than one by one.

        Questions about the same slice look at it once. What else is in the batch changes an answer by no more than the
        rounding of floating-point sums. Timings of an answer are those of its whole batch.
        """
        limit = self._limit(max_new_tokens)
        inputs = [self._inputs.make(question, max_new_tokens=limit) for question in questions]
        answers: list[Answer] = []
        for start in range(0, len(inputs), LARGEST_BATCH):
            part = inputs[start : start + LARGEST_BATCH]
            done: dict[int, Answer] = {}
            for row, event in self._answer(part, cancel=None, limit=limit):
                if isinstance(event, Done):
                    done[row] = event.answer
            answers += [done[row] for row in range(len(part))]
        return answers

    def read(
        self,
        questions: Sequence[Question],
        features: Sequence[ImageFeatures],
        *,
        cancel: threading.Event | None = None,
        max_new_tokens: int | None = None,
    ) -> list[Reading]:
        """What the model writes about slices that were looked at, without drawing any mask.

        Args:
            questions: Without prompts.
            features: Of the slice of each question.
            cancel: When it is set, the texts end after the token that is being written.
            max_new_tokens: Where a longer text is cut off.
        """
        limit = self._limit(max_new_tokens)
        inputs = [self._inputs.make(question, max_new_tokens=limit) for question in questions]
        readings: list[Reading] = []
        for start in range(0, len(inputs), LARGEST_BATCH):
            part = inputs[start : start + LARGEST_BATCH]
            embeds, mask = self._embed(part, features[start : start + LARGEST_BATCH])
            replies = [self._reply() for _ in part]
            for step in self._steps(embeds, mask, cancel=cancel, limit=limit):
                for row, reply in enumerate(replies):
                    reply.note(step, row)
                    deque(reply.read(step, row), maxlen=0)
            for made, reply in zip(part, replies, strict=True):
                readings.append(reply.reading(made, limit))
        return readings

    def _reply(self) -> Reply:
        return Reply(transcript=Transcript(tokenizer=self._processor.tokenizer.backend_tokenizer, codes=self._codes))

    def _steps(
        self, embeds: torch.Tensor, mask: torch.Tensor, *, cancel: threading.Event | None, limit: int
    ) -> Iterator[Step]:
        return decode(
            self._model,
            embeds,
            mask,
            max_new_tokens=limit,
            stop_ids=self._stop_ids,
            code_ids=self._code_ids,
            repetition_penalty=self._repetition_penalty,
            cancel=cancel,
        )

    def _limit(self, max_new_tokens: int | None) -> int:
        limit = self._max_new_tokens if max_new_tokens is None else max_new_tokens
        if limit < 1:
            raise InputError("bad_limit", f"An answer may have 1 token or more, got max_new_tokens={limit}.")
        return limit

    def _answer(
        self, inputs: Sequence[Inputs], *, cancel: threading.Event | None, limit: int
    ) -> Iterator[tuple[int, Event]]:
        """The events of every question of a batch, each with its row."""
        watch = Stopwatch("encode", "prefill", "decode", "masks")
        replies = [self._reply() for _ in inputs]
        for row, made in enumerate(inputs):
            yield row, Progress(0, 2, "Looking at the image")
            yield from ((row, Warning(sentence)) for sentence in replies[row].warn(*made.warnings))
        with watch("encode"):
            features = self._look(inputs)
            embeds, mask = self._embed(inputs, features)
        for row in range(len(inputs)):
            yield row, Progress(1, 2, "Reading the question")
        steps = self._steps(embeds, mask, cancel=cancel, limit=limit)
        name = "prefill"
        while True:
            with watch(name):
                step = next(steps, None)
            if step is None:
                break
            if name == "prefill":
                name = "decode"
                for row in range(len(inputs)):
                    yield row, Progress(2, 2, "Answering")
            for row, reply in enumerate(replies):
                # The words that a step brings come behind the masks of the codes that the step before wrote.
                reply.note(step, row)
                if not self._together:
                    yield from self._draw(row, inputs[row], reply, features[row], watch)
                yield from ((row, TextDelta(text)) for text in reply.read(step, row))
        for row, reply in enumerate(replies):
            yield from ((row, TextDelta(text)) for text in reply.transcript.finish())
            yield from self._draw(row, inputs[row], reply, features[row], watch)
            stopped = cancel is not None and cancel.is_set()
            yield from ((row, Warning(sentence)) for sentence in reply.warn(*reply.cut_off(limit, stopped=stopped)))
        for row, reply in enumerate(replies):
            yield row, Done(reply.answer(self._provenance(limit, watch)))

    @torch.inference_mode()
    def _look(self, inputs: Sequence[Inputs]) -> list[ImageFeatures]:
        """Features for each question. A slice is encoded once, and perceived once for each set of prompts on it.

        Images go through the encoder one at a time, so that what is seen cannot depend on the rest of the batch; one
        image is work enough to fill a device.
        """
        core, dtype = self._model.model, self._model.dtype
        seen: dict[tuple[int, int], VisionFeatures] = {}
        perceived: dict[tuple[int, int, bytes | None], ImageFeatures] = {}
        features = []
        for made in inputs:
            slice_key = (id(made.question.volume), made.question.slice_index)
            key = (*slice_key, None if made.raster is None else made.raster.tobytes())
            if key not in perceived:
                if slice_key not in seen:
                    pixels = made.pixels(self._processor)[None]
                    seen[slice_key] = core.vision(pixels.to(device=self._device, dtype=dtype))
                raster = None if made.raster is None else torch.from_numpy(made.raster)[None].to(self._device)
                perceived[key] = core.perceive(seen[slice_key], raster)
            features.append(perceived[key])
        return features

    @torch.inference_mode()
    def _embed(self, inputs: Sequence[Inputs], features: Sequence[ImageFeatures]) -> tuple[torch.Tensor, torch.Tensor]:
        """The prompts of a batch, padded on the left, and their attention mask."""
        try:
            rows = [
                self._model.model.embed(made.input_ids[None].to(self._device), seen)[0]
                for made, seen in zip(inputs, features, strict=True)
            ]
        except ValueError as error:
            raise CheckpointError(
                "bad_processor",
                f"The checkpoint {self.name} contradicts itself: {error}.",
                "Its processor_config.json and config.json do not belong together; copy both from the same checkpoint.",
            ) from error
        return pad_left(rows)

    def _draw(
        self, row: int, made: Inputs, reply: Reply, features: ImageFeatures, watch: Stopwatch
    ) -> Iterator[tuple[int, Event]]:
        """Masks of the codes of a reply that have none yet."""
        if not reply.codes:
            return
        codes, reply.codes = reply.codes, []
        with watch("masks"):
            logits = decode_masks(self._model, [code.state for code in codes], features)
        for code, drawn in zip(codes, logits, strict=True):
            mention = reply.transcript.mentions[reply.drawn]
            reply.drawn += 1
            with watch("masks"):
                region = ground(
                    drawn,
                    mention=mention,
                    probability=code.probability,
                    transform=made.transform,
                    slice_index=made.question.slice_index,
                    frame=made.frame,
                )
            if region is None:
                sentence = f'The answer points at "{mention.label}" ({mention.code}), but its mask is empty.'
                yield from ((row, Warning(said)) for said in reply.warn(sentence))
            else:
                reply.regions.append(region)
                yield row, RegionFound(region)

    def settings(self, max_new_tokens: int | None = None) -> dict[str, Any]:
        """How answers are made, for their provenance."""
        config = self._model.config
        return {
            "decoding": "greedy",
            "max_new_tokens": self._limit(max_new_tokens),
            "repetition_penalty": self._repetition_penalty,
            "code_state": config.code_state,
            "mask_decoder": config.mask_decoder,
            "device": str(self._device),
            "dtype": str(self._model.dtype).removeprefix("torch."),
        }

    def _provenance(self, limit: int, watch: Stopwatch) -> Provenance:
        return Provenance(
            model=self.name,
            digest=self.digest,
            settings=self.settings(limit),
            timings={**watch.seconds, "total": sum(watch.seconds.values())},
        )

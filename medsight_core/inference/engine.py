"""The engine: questions in, events out.

Everything an answer needs is a local value of the call that makes it, so any number of questions may be under way on
one engine, interleaved or in several threads. Greedy decoding on one machine gives the same answer every time.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Generator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from medsight_core.errors import CheckpointError, InputError
from medsight_core.events import Done, Event, fold
from medsight_core.imaging.volume import Volume
from medsight_core.inference.answering import Answering, Writing
from medsight_core.inference.checkpoint import Checkpoint, open_checkpoint
from medsight_core.inference.decoding import Slots, Step, stop_ids
from medsight_core.inference.features import SliceFeatures
from medsight_core.inference.fixed import Boards, cuda_compiler
from medsight_core.inference.inputs import InputMaker, Inputs
from medsight_core.inference.loading import choose_device, load
from medsight_core.inference.perceiving import Perceived
from medsight_core.inference.prefix import Prefixes
from medsight_core.inference.reply import Reading, Reply, Stopwatch, finish
from medsight_core.inference.running import Running
from medsight_core.inference.transcript import Transcript
from medsight_core.model import ImageFeatures, MedSightForConditionalGeneration, MedSightProcessor
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
        device: Where it runs; None where it is. One that is spread over devices, or has weights of few bits, stays.
        running: How it was chosen to run, for the provenance of answers.
    """

    def __init__(
        self,
        *,
        model: MedSightForConditionalGeneration,
        processor: MedSightProcessor,
        name: str,
        digest: str,
        device: torch.device | None = None,
        running: Running | None = None,
    ) -> None:
        self.name = name
        self.digest = digest
        self._running = running or Running()
        # Images go in at the encoder, and the rest that is no language model is where that is.
        self._device = device or next(model.model.vision.parameters()).device
        self._model = model.eval()
        if self._device != next(model.model.vision.parameters()).device:
            self._model = self._model.to(self._device)
        self._processor = processor
        self.features = SliceFeatures(model=self._model, processor=processor, device=self._device)
        """Slices that were looked at; shared by all that is asked of this engine."""
        self.perceived = Perceived(model=self._model, features=self.features)
        """What was seen on them, with what was drawn there."""
        self.prefixes = Prefixes(model=self._model)
        """Conversations that were read."""
        self._codes = processor.codes
        self._code_ids = frozenset(self._codes.token_ids.values())
        settings = model.generation_config
        self.stop_ids = stop_ids(settings.eos_token_id, processor.tokenizer.eos_token_id)
        """Tokens that end an answer."""
        self._boards = Boards(self._model, compiler=cuda_compiler) if self._running.compiled else None
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
        self.draws_together = config.mask_decoder == "perceiver" and config.joint_decoding
        """Whether the masks of an answer are drawn at its end."""

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
        precision: str = "auto",
        device_map: str | None = None,
        compiled: bool = False,
    ) -> Engine:
        """Opens a checkpoint.

        Args:
            path: A model folder, or one that was opened before; None for the embedded medsight-mini, or for the folder
                that the environment variable MEDSIGHT_MODEL names.
            device, precision, device_map, compiled: See `Running`.

        Raises:
            CheckpointError: The checkpoint is missing, damaged or of another kind.
            InputError: There is no such device, precision or device map.
            MedSightError: does_not_fit; missing_package.
        """
        running = Running(device=device, precision=precision, device_map=device_map, compiled=compiled)
        running.require_packages()
        where = choose_device(device)
        if compiled and where.type != "cuda":
            raise InputError(
                "cannot_compile",
                f"The decode loop is compiled for CUDA; this model is to run on {where}.",
                "Leave out --compile.",
            )
        checkpoint = path if isinstance(path, Checkpoint) else open_checkpoint(path)
        model, processor = load(checkpoint, running)
        return cls(
            model=model, processor=processor, name=checkpoint.name, digest=checkpoint.digest, running=running
        )

    def make_ready(self, question: Question, *, max_new_tokens: int | None = None) -> Inputs:
        """Checks a question and makes it ready to be answered, without any work of the model.

        Raises:
            InputError: See `ask`.
        """
        return self._inputs.make(question, max_new_tokens=self._limit(max_new_tokens))

    def check(self, question: Question, *, max_new_tokens: int | None = None) -> None:
        """Raises what `ask` would raise at once.

        Raises:
            InputError: See `ask`.
        """
        self.make_ready(question, max_new_tokens=max_new_tokens)

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
        steps = self.steps(question, cancel=cancel, max_new_tokens=max_new_tokens)
        return (event for event in steps if event is not None)

    def steps(
        self, question: Question, *, cancel: threading.Event | None = None, max_new_tokens: int | None = None
    ) -> Iterator[Event | None]:
        """As `ask`, a pass of the model at each step: None where it brought nothing to tell."""
        answering = Answering(self, self.make_ready(question, max_new_tokens=max_new_tokens), cancel=cancel)
        return (event for _, event in self._answer([answering]))

    def answer(self, question: Question, *, max_new_tokens: int | None = None) -> Answer:
        """The whole answer to one question; see `ask`."""
        return fold(self.ask(question, max_new_tokens=max_new_tokens))

    def answer_batch(self, questions: Sequence[Question], *, max_new_tokens: int | None = None) -> list[Answer]:
        """Answers to several questions, in their order, faster than one by one.

        Questions about the same slice look at it once. What else is in the batch changes an answer by no more than the
        rounding of floating-point sums. A step of the decode loop counts in the timings of all answers that it went on.
        """
        begun = [Answering(self, self.make_ready(question, max_new_tokens=max_new_tokens)) for question in questions]
        answers: list[Answer] = []
        for start in range(0, len(begun), LARGEST_BATCH):
            part = begun[start : start + LARGEST_BATCH]
            done: dict[Answering, Answer] = {}
            for answering, event in self._answer(part):
                if isinstance(event, Done):
                    done[answering] = event.answer
            answers += [done[answering] for answering in part]
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
        return finish(self.reading(questions, features, cancel=cancel, max_new_tokens=max_new_tokens))

    def reading(
        self,
        questions: Sequence[Question],
        features: Sequence[ImageFeatures],
        *,
        cancel: threading.Event | None = None,
        max_new_tokens: int | None = None,
    ) -> Generator[None, None, list[Reading]]:
        """As `read`, a pass of the language model at each step."""
        inputs = [self.make_ready(question, max_new_tokens=max_new_tokens) for question in questions]
        readings: list[Reading] = []
        for start in range(0, len(inputs), LARGEST_BATCH):
            part = inputs[start : start + LARGEST_BATCH]
            prompts = []
            for made, seen in zip(part, features[start : start + LARGEST_BATCH], strict=True):
                # Slices of a whole volume would crowd out what somebody works on.
                prompts.append((yield from self.prefixes.prefill(made, self.embed(made, seen), remember=False)))
            replies = [self.reply() for _ in part]
            slots = self.slots()
            joined = slots.join(prompts, limits=[made.limit for made in part])
            owners = {text: reply for (text, _), reply in zip(joined, replies, strict=True)}
            steps = [(text, step) for text, first in joined for step in first]
            while steps:
                for text, step in steps:
                    owners[text].note(step)
                    deque(owners[text].read(step), maxlen=0)
                yield
                steps = [] if cancel is not None and cancel.is_set() else slots.step()
            readings += [reply.reading(made) for made, reply in zip(part, replies, strict=True)]
        return readings

    def reply(self) -> Reply:
        """An empty reply of this model."""
        return Reply(transcript=Transcript(tokenizer=self._processor.tokenizer.backend_tokenizer, codes=self._codes))

    def slots(self) -> Slots:
        """An empty decode loop of this model."""
        return Slots(
            self._model,
            stop_ids=self.stop_ids,
            code_ids=self._code_ids,
            repetition_penalty=self._repetition_penalty,
            boards=self._boards,
        )

    def forget(self, volume: Volume) -> None:
        """Lets go of all that is kept of a volume."""
        self.features.forget(volume)
        self.perceived.memory.forget(volume)
        self.prefixes.memory.forget(volume)

    def clear(self) -> None:
        """Lets go of all that is kept between questions."""
        self.features.clear()
        self.perceived.memory.clear()
        self.prefixes.memory.clear()
        if self._boards is not None:
            self._boards.clear()
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    def _limit(self, max_new_tokens: int | None) -> int:
        limit = self._max_new_tokens if max_new_tokens is None else max_new_tokens
        if limit < 1:
            raise InputError("bad_limit", f"An answer may have 1 token or more, got max_new_tokens={limit}.")
        return limit

    def _answer(self, answerings: Sequence[Answering]) -> Iterator[tuple[Answering, Event | None]]:
        """The events of several questions, each with whose it is."""
        writing = Writing(self.slots())
        prompts = []
        for answering in answerings:
            preparing = answering.prepare()
            while True:
                if answering.stopped:
                    yield from ((answering, event) for event in answering.take(Step(last=True)))
                    break
                try:
                    event = next(preparing)
                except StopIteration as end:
                    prompts.append((answering, end.value))
                    break
                yield answering, event
        steps = writing.join(prompts)
        while steps:
            for answering, step in steps:
                yield from ((answering, event) for event in answering.take(step))
            steps = writing.step()

    @torch.inference_mode()
    def embed(self, made: Inputs, features: ImageFeatures) -> torch.Tensor:
        """The prompt of a question `(1, length, hidden)`.

        Raises:
            CheckpointError: bad_processor.
        """
        try:
            embeds: torch.Tensor = self._model.model.embed(made.input_ids[None].to(self._device), features)
        except ValueError as error:
            raise CheckpointError(
                "bad_processor",
                f"The checkpoint {self.name} contradicts itself: {error}.",
                "Its processor_config.json and config.json do not belong together; copy both from the same checkpoint.",
            ) from error
        return embeds

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
            **({"language_model": self._running.quantized} if self._running.quantized else {}),
        }

    def provenance(self, limit: int, watch: Stopwatch, tokens: Mapping[str, int]) -> Provenance:
        """Of an answer that may have had ``limit`` tokens, had ``tokens``, and took as long as ``watch`` says."""
        return Provenance(
            model=self.name,
            digest=self.digest,
            settings=self.settings(limit),
            timings={**watch.seconds, "total": sum(watch.seconds.values())},
            tokens=tokens,
        )

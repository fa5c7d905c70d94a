"""One volume of the scene and what was said about it: asked, answered, shown, remembered. No Qt in here."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, Final

from medsight_core.backend import Backend, Info, Stroke, Whole
from medsight_core.chat import Asked, Conversation, put
from medsight_core.chat.saving import from_json, to_json
from medsight_core.errors import InputError, MedSightError
from medsight_core.events import Done, Event, Failed, RegionFound
from medsight_core.imaging.volume import Volume
from medsight_core.mrml import memory
from medsight_core.mrml.segments import VOLUME_ROLE, Segments
from medsight_core.mrml.sources import FileOf, header_of
from medsight_core.mrml.volumes import Header, Reading, reading_of

from .chores import Begin, Chores
from .shown import Shown
from .words import _

UNKNOWN: Final = "unknown"
"""The modality of a scan of which nothing says what it is."""

MODALITY: Final = "MedSIGHT.modality"
"""Attribute of a volume node: what kind of scan it was asked about as, chosen by a person or said by its files."""


class Case:
    """A volume node, the conversation about it, and its segments.

    Whatever a person wants to do raises `MedSightError` where it cannot be done.

    Args:
        node: Of the volume.
        begin: Starts a worker.
        connect: Gives who is asked; raises what keeps from asking, such as consent that was not given.
        file_of: Finds the files of DICOM instances.

    Attributes:
        conversation: About the volume.
        shown: Its findings in the scene; None while the volume cannot be asked about.
        notice: One sentence for the person, or "".
        failure: How the last answer failed since the volume was chosen; None where it did not.
    """

    def __init__(self, node: Any, *, begin: Begin, connect: Callable[[], Backend], file_of: FileOf) -> None:
        self.node = node
        self.conversation = Conversation()
        self.shown: Shown | None = None
        self.notice = ""
        self.failure: Failed | None = None
        self._begin = begin
        self._connect = connect
        self._chores = Chores(begin)
        self._worker: Any = None
        self._reading: Reading | None = None
        self._told: tuple[Backend, Info] | None = None
        self._header = header_of(node, file_of)
        self._goes_on = False
        self._remembered: tuple[Any, ...] = ()
        try:
            self._look()
        except MedSightError as error:
            self.notice = str(error)

    @property
    def alive(self) -> bool:
        """Whether the volume is still in a scene."""
        return self.node.GetScene() is not None

    @property
    def busy(self) -> bool:
        """Whether an answer is being written."""
        return self.conversation.running

    @property
    def info(self) -> Info | None:
        """What the one who was asked last is."""
        return None if self._told is None else self._told[1]

    @property
    def outline(self) -> Volume | None:
        """The volume as it was read last, without its voxels."""
        return None if self._reading is None else self._reading.outline

    @property
    def segments(self) -> Segments | None:
        """Of its findings; None while the volume cannot be asked about."""
        return None if self.shown is None else self.shown.segments

    @property
    def measurements(self) -> int:
        """How many measurements have been taken so far."""
        return 0 if self.shown is None else self.shown.measurements

    @property
    def modality(self) -> str:
        """Of the volume: as it was asked about or as a person chose it, else as its files say."""
        return self._known().modality

    def choose_modality(self, modality: str) -> None:
        """Says what kind of scan it is; "" goes back to what its files say."""
        self.node.SetAttribute(MODALITY, modality or None)
        if not self.busy:
            self.notice = ""
            self._look()
            self._remember()

    def reading(self) -> Reading:
        """The volume as it is now.

        Raises:
            InputError: It cannot be asked about.
        """
        self._look()
        assert self._reading is not None
        return self._reading

    def ask(self, text: str, *, slice_index: int, whole: bool) -> None:
        """Asks about a slice, or about the volume while a slice is looked at."""
        self._look()
        about = Whole(shown=slice_index) if whole else None
        self._run(self.conversation.ask(text, slice_index=slice_index, whole=about))

    def mark(self, stroke: Stroke, *, refine: bool) -> None:
        """Segments what was drawn; a further mark does not wait for what the last one will give."""
        if self.busy and self.conversation.marks:
            self._halt()
        marks = self.conversation.marks if refine else ()
        if not marks and not stroke.prompt.positive:
            raise InputError(
                "nothing_to_refine",
                _("There is nothing yet that this could be taken away from."),
                _("Point at the structure itself first."),
            )
        self._run(self.conversation.mark(stroke, refine=refine), goes_on=bool(marks))

    def segment(self, text: str = "", *, slice_index: int, whole: bool) -> None:
        """Segments what is named, or what is marked; on its slice or throughout the volume."""
        self._look()
        goes_on = not text.strip() and bool(self.conversation.marks)
        about = Whole(shown=slice_index) if whole else None
        self._run(self.conversation.segment(text, slice_index=slice_index, whole=about), goes_on=goes_on)

    def retry(self) -> None:
        """Asks once more what failed or was stopped."""
        self._look()
        self._run(self.conversation.retry())

    def stop(self) -> None:
        """Ends the answer that is being written; what has come stays."""
        if self._worker is not None:
            self._worker.cancel()
            while self.pump():
                pass

    def change(self, step: Callable[[], None]) -> None:
        """Does something to the conversation, and lets segments and scene follow."""
        step()
        self._show()
        self._remember()

    def pump(self) -> bool:
        """Takes what has come; at most one region at a time, so that the window goes on between them.

        Returns:
            Whether there is more to take at once.
        """
        if not self.alive:
            self.close()
            return False
        self._chores.pump()
        if self._worker is None:
            return False
        while self._worker is not None and (events := self._worker.drain(1)):
            self._take(events[0])
            if isinstance(events[0], RegionFound):
                return True
        return False

    def close(self) -> None:
        """Ends everything that runs; the scene is not touched."""
        self._chores.close()
        if self._worker is not None:
            self._worker.cancel()
            self._worker = None
            self.conversation.take(Failed("stopped", _("The scan was closed.")))

    def flush(self) -> None:
        """Puts the conversation into the scene now, as before the scene is saved."""
        if self.alive and self._reading is not None and self._remembered != (*self.conversation.turns, self._reading):
            self._kept(self._text(self.conversation, self._reading), self.conversation.turns, self._reading)

    def _known(self) -> Header:
        chosen = self.node.GetAttribute(MODALITY)
        return replace(self._header, modality=chosen, inverted=False) if chosen else self._header

    def _look(self) -> None:
        """Looks whether the volume is still the one that was read."""
        if not self.alive:
            raise InputError("no_volume", _("The scan was removed from the scene."), _("Choose another one."))
        now, before = reading_of(self.node, self._known()), self._reading
        if before is not None and now.state == before.state:
            return
        self._reading = now
        frame = now.outline.require_frame()
        if before is None:
            self._restore(now)
        elif frame.shape != before.outline.require_frame().shape or not frame.is_close(before.outline.require_frame()):
            self._part()
            self.notice = _("The scan has been cropped, resampled or moved since, so a new conversation begins.")
        elif now.state[0] != before.state[0] and self.conversation.turns:
            self.notice = _(
                "The scan has been changed since the last answer; earlier findings are of what it was before."
            )

    def _restore(self, reading: Reading) -> None:
        """Goes on with what the scene remembers."""
        text, keys = memory.remembered(self.node), []
        try:
            if text:
                self.conversation = from_json(json.loads(text), reading.outline)
                keys = [finding.key for finding in self.conversation.findings]
        except ValueError:
            self.notice = _("The conversation that was saved with this scan cannot be read; a new one begins.")
        except MedSightError as error:
            self.notice = str(error)
        self._remembered = (*self.conversation.turns, reading)
        self.shown = Shown(self.node, reading.outline.require_frame(), chores=self._chores, known=keys)
        self._show()

    def _part(self) -> None:
        """Leaves segments of another grid to the person, and begins anew."""
        assert self._reading is not None
        if self._worker is not None:
            self._worker.cancel()
            self._worker = None
        if self.shown is not None and (node := self.shown.segments.node) is not None:
            node.RemoveNodeReferenceIDs(VOLUME_ROLE)
        self.conversation = Conversation()
        self.shown = Shown(self.node, self._reading.outline.require_frame(), chores=self._chores)
        self._remember()

    def _run(self, asked: Asked, *, goes_on: bool = False) -> None:
        """Has something done that the conversation has begun a turn for.

        Args:
            asked: What is asked for.
            goes_on: It works on a structure that is there already, and must not lose it.
        """
        self.notice, self.failure, self._goes_on = "", None, goes_on
        reading, told = self._reading, self._told
        assert reading is not None
        history = self.conversation.history(asked.slice_index) if asked.whole is None else ()
        try:
            backend = self._connect()
        except MedSightError as error:
            self._take(Failed(error.code, error.sentence, error.remedy))
            return

        def work(cancel: threading.Event) -> Iterator[Event]:
            if told is None or told[0] is not backend:
                self._told = (backend, backend.info())
            return put(asked, backend, reading.volume(), history=history, cancel=cancel)

        self._worker = self._begin(work)

    def _halt(self) -> None:
        """Ends what runs for the sake of the next mark, which takes its marks along."""
        self._goes_on = False
        if self._worker is not None:
            self._worker.cancel()
            self._worker = None
        self.conversation.take(Failed("stopped", _("Another mark was made.")))

    def _take(self, event: Event) -> None:
        turn = self.conversation.take(event)
        if isinstance(event, Failed):
            self.failure = event
        if turn.state != "running":
            self._worker = None
            if self._goes_on and isinstance(event, Failed) and not turn.findings:
                self.conversation.undo()
                self.notice = " ".join(
                    filter(None, (event.sentence, event.remedy, _("The structure is as it was before.")))
                )
            self._remember()
        if isinstance(event, RegionFound | Done | Failed):
            self._show()

    def _show(self) -> None:
        """Brings the segments to what the conversation holds."""
        if self.shown is None:
            return
        last, info = self.conversation.last, self.info
        tags = {"Question": (last.asked.text or "what was marked")} if last else {}
        if info is not None:
            tags |= {"Model": info.model, "Digest": info.digest}
        try:
            self.shown.sync(self.conversation.findings, tags)
        except MedSightError as error:
            self.notice = str(error)

    def _remember(self) -> None:
        """Lets the scene remember the conversation, once it is packed."""
        turns, reading = self.conversation.turns, self._reading
        if reading is None or (*turns, reading) == self._remembered:
            return
        snapshot = Conversation(turns)
        self._chores.add(
            "remember",
            lambda: self._text(snapshot, reading),
            lambda text: self._kept(text, turns, reading) if text is not None else None,
        )

    def _kept(self, text: str, turns: tuple[Any, ...], reading: Reading) -> None:
        memory.remember(self.node, text)
        if turns and reading is self._reading and reading.outline.modality != UNKNOWN:
            self.node.SetAttribute(MODALITY, reading.outline.modality)  # a saved scene may be opened without the files
        self._remembered = (*turns, reading)

    @staticmethod
    def _text(conversation: Conversation, reading: Reading) -> str:
        return json.dumps(to_json(conversation, reading.outline)) if conversation.turns else ""

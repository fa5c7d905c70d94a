"""What the panel talks to: the conversation about the chosen volume, and all that can be done with it. No Qt in here.

Each volume has a conversation of its own (`case`). A person may choose another one while an answer is written; it goes
on being written.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from medsight_core.backend import Backend
from medsight_core.chat import Conversation
from medsight_core.chat.markdown import to_markdown
from medsight_core.chat.suggestions import suggestions
from medsight_core.errors import InputError, MedSightError
from medsight_core.events import Failed
from medsight_core.imaging.volume import Volume
from medsight_core.measure import Measurements
from medsight_core.mrml import export, prompts, views
from medsight_core.mrml.segments import Segments
from medsight_core.mrml.sources import FileOf

from .case import Case
from .chores import Begin
from .shown import GREY
from .words import _

FIRST_VIEW: Final = "Red"
NO_VOLUME: Final = _("Choose a scan to ask about.")


class Assistant:
    """The host of the panel.

    What cannot be done is said in `notice`, never raised.

    Args:
        begin: Starts a worker on some work and gives it back, such as
            ``lambda work: watched(Worker(work))``.
        connect: Gives who is asked; raises what keeps from asking, such as consent that was not given.
        file_of: Finds the files of DICOM instances: ``slicer.dicomDatabase.fileForInstance``.
    """

    def __init__(self, *, begin: Begin, connect: Callable[[], Backend], file_of: FileOf = lambda uid: "") -> None:
        self._begin = begin
        self._connect = connect
        self._file_of = file_of
        self._cases: dict[str, Case] = {}
        self._case: Case | None = None
        self._nothing = Conversation()
        self._notice = ""
        self._callbacks: list[Callable[[], Any]] = []
        self._refine = True
        self.view = FIRST_VIEW
        """Layout name of the slice view that is asked about first."""

    def on_change(self, callback: Callable[[], Any]) -> None:
        """Calls a function whenever there is something new to show."""
        self._callbacks.append(callback)

    def choose(self, node: Any | None) -> None:
        """Turns to a volume, and to what was said about it."""
        self._notice = ""
        if node is None:
            self._case = None
        else:
            case = self._cases.get(node.GetID())
            if case is None or case.node is not node:
                if case is not None:
                    case.close()
                case = Case(node, begin=self._begin, connect=self._connect, file_of=self._file_of)
                self._cases[node.GetID()] = case
            self._case = case
        self._refine = True
        self._changed()

    def close(self) -> None:
        """Lets go of all volumes, as when the scene is closed."""
        for case in self._cases.values():
            case.close()
        self._cases.clear()
        self.choose(None)

    def flush(self) -> None:
        """Puts all conversations into the scene, as before it is saved."""
        for case in self._cases.values():
            case.flush()

    def pump(self) -> bool:
        """Takes what has come from the workers; called by the poll.

        Returns:
            Whether there is more to take at once.
        """
        before, more = self._state(), False
        for node_id, case in list(self._cases.items()):
            more |= case.pump()
            if not case.alive:
                del self._cases[node_id]
                if case is self._case:
                    self._case, self._notice = None, _("The scan was removed from the scene.")
        if self._state() != before:
            self._changed()
        return more

    @property
    def node(self) -> Any | None:
        """Of the chosen volume."""
        return None if self._case is None else self._case.node

    @property
    def outline(self) -> Volume | None:
        """The chosen volume without its voxels; None where there is none that can be asked about."""
        return None if self._case is None else self._case.outline

    @property
    def segments(self) -> Segments | None:
        """Of the chosen volume."""
        return None if self._case is None else self._case.segments

    @property
    def file_of(self) -> FileOf:
        """Finds the files of DICOM instances."""
        return self._file_of

    @property
    def conversation(self) -> Conversation:
        """About the chosen volume."""
        return self._nothing if self._case is None else self._case.conversation

    @property
    def busy(self) -> bool:
        """Whether an answer about the chosen volume is being written."""
        return self.conversation.running

    @property
    def notice(self) -> str:
        """One sentence a person should read now; mostly "" ."""
        return self._notice or (NO_VOLUME if self._case is None else self._case.notice)

    @property
    def failure(self) -> Failed | None:
        """How the last answer about the chosen volume failed; None where it did not, or in another session."""
        return None if self._case is None else self._case.failure

    @property
    def modality(self) -> str:
        """Of the chosen volume."""
        return "unknown" if self._case is None else self._case.modality

    def choose_modality(self, modality: str) -> None:
        """Says what kind of scan it is; "" goes back to what its files say."""
        self._try(lambda case: case.choose_modality(modality))

    @property
    def model(self) -> tuple[str, str]:
        """Name and digest of the model that answered last; empty before any did."""
        answered = [turn.provenance for turn in self.conversation.turns if turn.provenance is not None]
        return (answered[-1].model, answered[-1].digest) if answered else ("", "")

    def suggestions(self) -> tuple[str, ...]:
        """Questions to begin with."""
        if self._case is None:
            return ()
        info = self._case.info
        return suggestions(self._case.modality, info.classes if info is not None else ())

    def ask(self, text: str, whole: bool = False) -> bool:
        """Asks about the slice that is shown, or about the volume; returns whether that has begun."""
        return self._try(lambda case: case.ask(text, slice_index=self._slice(case, anywhere=whole), whole=whole))

    def segment(self, text: str = "", whole: bool = False) -> bool:
        """Segments what is named, or what was pointed at: on its slice or throughout the volume."""
        return self._try(lambda case: case.segment(text, slice_index=self._slice(case, anywhere=True), whole=whole))

    def click(self, ras: Any, positive: bool = True) -> bool:
        """Segments what lies under a click, world RAS mm ``(3,)``; a further click refines it."""

        def act(case: Case) -> None:
            outline = case.reading().outline
            case.mark(prompts.click(ras, case.node, outline, positive=positive), refine=self._refine)
            self._refine = True

        return self._try(act)

    def draw(self, markups: Any, positive: bool = True) -> bool:
        """Segments what a box, a scribble or an outline marks (a ROI or a curve node)."""

        def act(case: Case) -> None:
            strokes = prompts.strokes_of(markups, case.node, case.reading().outline, positive=positive)
            case.mark(strokes[-1], refine=self._refine)
            self._refine = True

        return self._try(act)

    def begin_another(self) -> None:
        """Lets the next mark begin another structure instead of refining the last one."""
        self._refine = False

    def stop(self) -> None:
        """Ends the answer that is being written."""
        self._try(lambda case: case.stop())

    def retry(self) -> None:
        """Asks once more what failed or was stopped."""
        self._try(lambda case: case.retry())

    def undo(self) -> None:
        """Takes the last step back."""
        self._try(lambda case: case.change(case.conversation.undo))

    def redo(self) -> None:
        """Makes again what was taken back last."""
        self._try(lambda case: case.change(case.conversation.redo))

    def clear(self) -> None:
        """Throws the conversation away; can be undone."""
        self._try(lambda case: case.change(case.conversation.clear))

    def hide(self, key: str, hidden: bool = True) -> None:
        """Shows a finding no longer, or again."""
        self._try(lambda case: case.change(lambda: case.conversation.hide(key, hidden=hidden)))

    def rename(self, key: str, name: str) -> None:
        """Calls a finding by another name."""
        self._try(lambda case: case.change(lambda: case.conversation.rename(key, name)))

    def delete(self, key: str) -> None:
        """Throws a finding away; can be undone."""
        self._try(lambda case: case.change(lambda: case.conversation.delete(key)))

    def go_to(self, key: str) -> bool:
        """Brings all slice views to a finding, and selects its segment."""

        def act(case: Case) -> None:
            if case.shown is not None:
                views.jump_to(case.node.GetScene(), case.shown.place_of(key))
                case.shown.select(key)

        return self._try(act)

    def emphasise(self, key: str | None) -> None:
        """Lets a finding stand out while it is pointed at; None ends that."""
        if self._case is not None and self._case.alive and self._case.shown is not None:
            self._case.shown.emphasise(key)

    def colour(self, key: str) -> str:
        """Of a finding, as "#rrggbb"."""
        shown = None if self._case is None else self._case.shown
        return GREY if shown is None else shown.colour(key)

    def measured(self, key: str) -> Measurements | None:
        """Of a finding; None until it is measured (`on_change` tells), or where there is nothing to measure."""
        shown = None if self._case is None else self._case.shown
        return None if shown is None else shown.measured(key)

    @property
    def unit(self) -> str:
        """Of the grey values of the chosen volume."""
        return "HU" if self.modality == "CT" else ""

    def markdown(self) -> str:
        """The conversation for a note."""
        return to_markdown(self.conversation.turns)

    def check_export(self, format: export.Format) -> tuple[export.Note, ...]:
        """What would fail or be lost in an export."""
        if self._case is None or self._case.segments is None:
            return (export.Note(stops=True, sentence=_("There is nothing to export."), remedy=NO_VOLUME),)
        return export.check(self._case.segments, self._case.node, format, self._file_of)

    def export(self, format: export.Format, path: Path) -> Path:
        """Writes all findings.

        Raises:
            MedSightError: See `mrml.export.export`.
        """
        if self._case is None or self._case.segments is None:
            raise InputError("nothing_to_export", _("There is nothing to export."), NO_VOLUME)
        model, digest = self.model
        return export.export(
            self._case.segments, self._case.node, format, path, self._file_of, model=model, digest=digest
        )

    def _slice(self, case: Case, *, anywhere: bool) -> int:
        """The slice that is looked at, in the view in use or in the first one that shows slices as acquired.

        Args:
            case: Of the volume.
            anywhere: Where no view shows one, the middle will do.
        """
        frame = case.reading().outline.require_frame()
        for view in self._views(case):
            k = views.shown_slice(view, case.node, frame)
            if k is not None:
                return k
        if anywhere:
            return case.reading().outline.middle
        raise InputError(
            "no_slice_shown", _("No slice view shows a part of this scan."), _("Scroll to the slice that you mean.")
        )

    def _views(self, case: Case) -> Sequence[Any]:
        """Slice views, the best first: in the plane of acquisition, then the one in use."""
        frame = case.reading().outline.require_frame()
        found = list(case.node.GetScene().GetNodesByClass("vtkMRMLSliceNode"))
        return sorted(
            found,
            key=lambda view: (
                not views.is_acquired_plane(view, case.node, frame),
                view.GetLayoutName() != self.view,
                view.GetLayoutName() != FIRST_VIEW,
            ),
        )

    def _try(self, act: Callable[[Case], Any]) -> bool:
        """Does something with the chosen volume; what keeps from it becomes the notice."""
        self._notice, done = "", False
        try:
            if self._case is None or not self._case.alive:
                raise InputError("no_volume", NO_VOLUME)
            act(self._case)
            done = True
        except MedSightError as error:
            self._notice = str(error)
        self._changed()
        return done

    def _state(self) -> tuple[Any, ...]:
        """Differs whenever there is something new to show."""
        case = self._case
        if case is None:
            return (None, self._notice)
        return (case, case.conversation.turns, case.notice, case.measurements)

    def _changed(self) -> None:
        for callback in tuple(self._callbacks):
            callback()

"""A conversation about one scan: its turns, what is asked next, and every step taken back and made again.

It does no work of its own and knows no thread: whoever asks the backend (see `turns.put`) hands it the events, one by
one, from one thread.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from medsight_core.backend import Stroke, Whole
from medsight_core.chat.turns import Asked, Finding, Turn
from medsight_core.errors import InputError
from medsight_core.events import Event

Turns = tuple[Turn, ...]


class Conversation:
    """Turns about one scan.

    Args:
        turns: Of an earlier conversation that goes on.
    """

    def __init__(self, turns: Sequence[Turn] = ()) -> None:
        self._turns: Turns = tuple(turns)
        self._past: list[Turns] = []
        self._future: list[Turns] = []
        self._numbers = max((turn.number for turn in turns), default=0)

    @property
    def turns(self) -> tuple[Turn, ...]:
        """All turns, oldest first."""
        return self._turns

    @property
    def last(self) -> Turn | None:
        """The latest turn."""
        return self._turns[-1] if self._turns else None

    @property
    def running(self) -> bool:
        """Whether an answer is being written."""
        return self.last is not None and self.last.state == "running"

    @property
    def findings(self) -> tuple[Finding, ...]:
        """What was found in all turns and not deleted, hidden ones too."""
        return tuple(finding for turn in self._turns for finding in turn.kept)

    @property
    def marks(self) -> tuple[Stroke, ...]:
        """What was drawn on the structure that is being worked on; a question in words ends that work.

        A mark that was refused is none.
        """
        last = self.last
        return last.asked.strokes if last and last.asked.kind == "segment" and last.state != "failed" else ()

    def history(self, slice_index: int) -> tuple[tuple[str, str], ...]:
        """Earlier questions and answers about a slice, as the next question on it takes them along.

        The model sees one slice at a time: what was said of others would be read as said of this one.
        """
        return tuple(
            (turn.asked.text, turn.raw)
            for turn in self._turns
            if turn.state == "done"
            and turn.asked.kind == "ask"
            and turn.asked.whole is None
            and turn.asked.slice_index == slice_index
        )

    def ask(self, text: str, *, slice_index: int, whole: Whole | None = None) -> Asked:
        """Begins a turn with a question; marks on its slice go along, unless it is about the volume.

        Raises:
            InputError: empty_question, still_answering.
        """
        if not text.strip():
            raise InputError(
                "empty_question", "The question is empty.", 'Ask in plain words, such as "Where is the liver?".'
            )
        here = tuple(stroke for stroke in self.marks if stroke.slice_index == slice_index)
        strokes = () if whole is not None else here
        return self._begin(Asked(kind="ask", text=text.strip(), slice_index=slice_index, strokes=strokes, whole=whole))

    def mark(self, stroke: Stroke, *, refine: bool = True) -> Asked:
        """Begins a turn that segments what was drawn; a further mark refines it, in place of the turn before.

        Args:
            stroke: What was drawn.
            refine: Go on with the structure that is being worked on; else begin another one.

        Raises:
            InputError: still_answering.
        """
        marks = self.marks if refine else ()
        asked = Asked(kind="segment", text="", slice_index=stroke.slice_index, strokes=(*marks, stroke))
        return self._begin(asked, instead=bool(marks))

    def segment(self, text: str = "", *, slice_index: int, whole: Whole | None = None) -> Asked:
        """Begins a turn that segments what is named, at the marks on its slice if there are any; or what is marked.

        Raises:
            InputError: nothing_asked, still_answering.
        """
        words = text.strip()
        marks = tuple(stroke for stroke in self.marks if not words or stroke.slice_index == slice_index)
        if not words and not marks:
            raise InputError(
                "nothing_asked", "Nothing says what to segment.", 'Point at it, or name it, such as "left kidney".'
            )
        if marks and not words:
            slice_index = marks[-1].slice_index
        asked = Asked(kind="segment", text=words, slice_index=slice_index, strokes=marks, whole=whole)
        return self._begin(asked, instead=bool(marks) and marks == self.marks)

    def retry(self) -> Asked:
        """Asks once more what failed or was stopped; what came of it stays, with its mark.

        Raises:
            InputError: nothing_to_retry.
        """
        last = self.last
        if last is None or last.state not in ("failed", "stopped"):
            raise InputError("nothing_to_retry", "The last answer is complete.", "Ask something else.")
        empty = not last.text and not last.findings
        return self._begin(last.asked, instead=empty)

    def take(self, event: Event, *, number: int | None = None) -> Turn:
        """One more event of the answer that is being written; returns the last turn.

        Args:
            event: As the backend gave it.
            number: Of the turn that it belongs to, where events may come late: one of an earlier turn is let go.
        """
        if not self._turns:
            raise ValueError("an event came before anything was asked.")
        if number is not None and number != self._turns[-1].number:
            return self._turns[-1]
        self._turns = _with(self._turns, event)
        # A finding may be edited while its answer is written: undoing that must not bring half an answer back.
        for step in range(len(self._past) - 1, -1, -1):
            if not (self._past[step] and self._past[step][-1].state == "running"):
                break
            self._past[step] = _with(self._past[step], event)
        return self._turns[-1]

    def finding(self, key: str) -> Finding:
        """A finding that was not deleted.

        Raises:
            InputError: unknown_finding.
        """
        for finding in self.findings:
            if finding.key == key:
                return finding
        raise InputError("unknown_finding", f"There is no finding {key!r} in this conversation.")

    def hide(self, key: str, *, hidden: bool = True) -> None:
        """Shows a finding no longer, or again."""
        self._edit(key, lambda finding: replace(finding, hidden=hidden))

    def rename(self, key: str, name: str) -> None:
        """Calls a finding by another name.

        Raises:
            InputError: unknown_finding, empty_name.
        """
        words = " ".join(name.split())
        if not words:
            raise InputError("empty_name", "A finding needs a name.")
        self._edit(key, lambda finding: replace(finding, name=words))

    def delete(self, key: str) -> None:
        """Throws a finding away."""
        self._edit(key, lambda finding: replace(finding, deleted=True))

    def clear(self) -> None:
        """Throws all turns away; can be undone.

        Raises:
            InputError: still_answering.
        """
        self._check_idle()
        if self._turns:
            self._go_to(())

    @property
    def can_undo(self) -> bool:
        """Whether there is a step to take back now."""
        return bool(self._past) and not self.running

    @property
    def can_redo(self) -> bool:
        """Whether there is a step to make again now."""
        return bool(self._future) and not self.running

    def undo(self) -> None:
        """Takes the last step back: a turn, a change of a finding, or clearing.

        Raises:
            InputError: still_answering, nothing_to_undo.
        """
        self._check_idle()
        if not self._past:
            raise InputError("nothing_to_undo", "There is no step to take back.")
        self._future.append(self._turns)
        self._turns = self._past.pop()

    def redo(self) -> None:
        """Makes again what was taken back last.

        Raises:
            InputError: still_answering, nothing_to_redo.
        """
        self._check_idle()
        if not self._future:
            raise InputError("nothing_to_redo", "There is no step to make again.")
        self._past.append(self._turns)
        self._turns = self._future.pop()

    def _begin(self, asked: Asked, *, instead: bool = False) -> Asked:
        self._check_idle()
        self._numbers += 1
        before = self._turns[:-1] if instead else self._turns
        self._go_to((*before, Turn(number=self._numbers, asked=asked)))
        return asked

    def _edit(self, key: str, change: Callable[[Finding], Finding]) -> None:
        changed = change(self.finding(key))
        turns = (
            replace(turn, findings=tuple(changed if one.key == key else one for one in turn.findings))
            for turn in self._turns
        )
        self._go_to(tuple(turns))

    def _go_to(self, turns: Turns) -> None:
        self._past.append(self._turns)
        self._future.clear()
        self._turns = turns

    def _check_idle(self) -> None:
        if self.running:
            raise InputError("still_answering", "An answer is being written.", "Wait for its end, or stop it.")


def _with(turns: Turns, event: Event) -> Turns:
    """The turns after an event of the last one."""
    return (*turns[:-1], turns[-1].take(event))

"""The tools for pointing at a structure in the slice views."""

from __future__ import annotations

from typing import Any, Final

from ._qt import alive, qt
from .assistant import Assistant
from .pointing import Pointing, Tool
from .words import _

TOOLS: Final[tuple[tuple[str, str, Tool, bool], ...]] = (
    (_("&Point"), _("Click a structure in a slice view to segment it; a further click adds to it"), "point", True),
    (_("&Not this"), _("Click what does not belong to the structure"), "point", False),
    (_("&Box"), _("Draw a box around a structure on the slice that is shown"), "box", True),
    (_("S&cribble"), _("Draw a line through a structure; a right click ends it"), "scribble", True),
    (_("&Outline"), _("Draw around a structure; a right click ends it"), "outline", True),
)


class Tools:
    """The widget with the tools.

    Args:
        assistant: Segments what is marked.
        scene: Where a person draws.

    Attributes:
        widget: To be put into a window.
        pointing: What a person draws.
    """

    def __init__(self, assistant: Assistant, scene: Any) -> None:
        self._assistant = assistant
        self.widget = qt.QWidget()
        self.widget.setObjectName("MedSIGHTTools")
        whole = qt.QVBoxLayout(self.widget)  # two rows: in one, a narrow panel would cut their names
        whole.setContentsMargins(0, 0, 0, 0)
        whole.setSpacing(4)
        layout, below = qt.QHBoxLayout(), qt.QHBoxLayout()
        for row in (layout, below):
            whole.addLayout(row)
        self._in_hand: tuple[Tool, bool] | None = None
        self._buttons: list[tuple[Any, Tool, bool]] = []
        for words, tip, tool, positive in TOOLS:
            button = self._button(layout, words, tip)
            button.setCheckable(True)
            button.clicked.connect(lambda *a, tool=tool, positive=positive: self._take(tool, positive))
            self._buttons.append((button, tool, positive))
        self._another = self._button(below, _("N&ew structure"), _("Let the next mark begin another structure"))
        self._another.clicked.connect(lambda *a: self._assistant.begin_another())
        self._through = self._button(
            below, _("&Through the slices"), _("Segment what was marked on the neighbouring slices as well")
        )
        self._through.clicked.connect(lambda *a: self._assistant.segment("", True))
        for row in (layout, below):
            row.addStretch(1)
        self.pointing = Pointing(
            assistant, scene, later=lambda go: qt.QTimer.singleShot(0, go), on_end=lambda: self._put_down()
        )
        assistant.on_change(self.refresh)
        self.refresh()

    def close(self) -> None:
        """Puts the tool down."""
        self.pointing.end()

    def refresh(self) -> None:
        """Shows what can be done now, and what is in hand."""
        if not alive(self.widget):
            return
        marked = bool(self._assistant.conversation.marks)
        for button, tool, positive in self._buttons:
            button.setChecked(self._in_hand == (tool, positive))
            button.setEnabled(self._assistant.node is not None and (positive or marked))
        self._another.setEnabled(marked)
        self._through.setEnabled(marked and not self._assistant.busy)

    def _take(self, tool: Tool, positive: bool) -> None:
        before = self._in_hand
        self.pointing.end()
        if before != (tool, positive):
            self._in_hand = (tool, positive)
            self.pointing.begin(tool, positive)
        self.refresh()

    def _put_down(self) -> None:
        self._in_hand = None
        self.refresh()

    def _button(self, layout: Any, words: str, tip: str) -> Any:
        button = qt.QToolButton(self.widget)
        button.setText(words)
        button.setToolTip(tip)
        layout.addWidget(button)
        return button

"""Pointing at a structure in a slice view: points, boxes, scribbles and outlines, kept beside the segment they gave.

A person draws with a pen: a markups node that Slicer's place mode fills and that is not saved. What was drawn is kept
in markups of its own, which refer to the segmentation and the volume, and are seen as long as their finding is. No Qt.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, Final, Literal

import slicer

from medsight_core.backend import Stroke
from medsight_core.chat import Turn
from medsight_core.mrml.segments import KEY, VOLUME_ROLE

from .assistant import Assistant

Tool = Literal["point", "box", "scribble", "outline"]

CLASSES: Final[Mapping[Tool, str]] = MappingProxyType(
    {
        "point": "vtkMRMLMarkupsFiducialNode",
        "box": "vtkMRMLMarkupsROINode",
        "scribble": "vtkMRMLMarkupsCurveNode",
        "outline": "vtkMRMLMarkupsClosedCurveNode",
    }
)
SEGMENTATION_ROLE: Final = "MedSIGHT.segmentation"
"""Role of the reference from what was drawn to the segmentation that it gave."""
TURNS: Final = "MedSIGHT.Turns"
"""Attribute of what was drawn: numbers of the turns that it is part of."""
POSITIVE: Final = "MedSIGHT.Positive"
STROKE: Final = "MedSIGHT.Stroke"
"""Attribute of a box or curve: which of its turn's strokes it is; the description of a point says the same."""

YES: Final = (0.2, 0.85, 0.3)
NO: Final = (0.95, 0.25, 0.2)


class Pointing:
    """What a person draws in the slice views.

    Args:
        assistant: Is told of it.
        scene: Where it is drawn.
        later: Calls a function once Slicer is through with the mouse's event; a point must not be removed within.
        on_end: Called when the tool was put down.
    """

    def __init__(
        self,
        assistant: Assistant,
        scene: Any,
        *,
        later: Callable[[Callable[[], None]], Any],
        on_end: Callable[[], Any] = lambda: None,
    ) -> None:
        self._assistant = assistant
        self._scene = scene
        self._later = later
        self._on_end = on_end
        self._pen: Any = None
        self._tool: Tool = "point"
        self._positive = True
        self._observed: list[tuple[Any, int]] = []
        self._numbers: dict[Stroke, set[int]] = {}
        assistant.on_change(self.follow)

    @property
    def tool(self) -> Tool | None:
        """What is in hand."""
        return self._tool if self._pen is not None else None

    def begin(self, tool: Tool, positive: bool = True) -> None:
        """Takes a tool in hand; a point can be set as often as one likes, the others end with their shape."""
        self.end()
        selection, interaction = self._singletons()
        self._tool, self._positive = tool, positive
        pen = self._pen = self._add(tool, "MedSIGHT pen", positive)
        pen.SetSaveWithScene(False)
        pen.SetHideFromEditors(True)
        self._watch(pen, slicer.vtkMRMLMarkupsNode.PointPositionDefinedEvent, self._point_set)
        self._watch(interaction, slicer.vtkMRMLInteractionNode.EndPlacementEvent, self._placed)
        selection.SetReferenceActivePlaceNodeClassName(CLASSES[tool])
        selection.SetActivePlaceNodeID(pen.GetID())
        interaction.SetPlaceModePersistence(1 if tool == "point" else 0)
        interaction.SetCurrentInteractionMode(slicer.vtkMRMLInteractionNode.Place)

    def end(self) -> None:
        """Puts the tool down; a shape that is not complete is dropped."""
        pen, self._pen = self._pen, None
        for node, tag in self._observed:
            node.RemoveObserver(tag)
        self._observed.clear()
        if pen is None:
            return
        if pen.GetScene() is not None:
            _, interaction = self._singletons()
            if interaction.GetCurrentInteractionMode() == slicer.vtkMRMLInteractionNode.Place:
                interaction.SetCurrentInteractionMode(slicer.vtkMRMLInteractionNode.ViewTransform)
            self._remove(pen)
        self._on_end()

    def follow(self) -> None:
        """Shows what belongs to findings that are shown, and hides the rest; links it to its segment."""
        segments = self._assistant.segments
        if segments is None or self._assistant.node is None or self._assistant.node.GetScene() is None:
            return
        turns = {turn.number: turn for turn in self._assistant.conversation.turns}
        for turn in turns.values():
            if turn.asked.kind == "segment" and turn.asked.strokes:
                self._numbers.setdefault(turn.asked.strokes[0], set()).add(turn.number)
        for node in self.kept():
            numbers = self._numbers_of(node)
            now = max(numbers & turns.keys(), default=None)
            _attribute(node, TURNS, " ".join(map(str, sorted(numbers))))
            self._show(node, None if now is None else turns[now])
            if segments.node is not None and node.GetNodeReference(SEGMENTATION_ROLE) is not segments.node:
                node.SetNodeReferenceID(SEGMENTATION_ROLE, segments.node.GetID())

    def kept(self) -> Iterator[Any]:
        """Markups nodes of what was drawn in the chosen volume."""
        for node in list(self._scene.GetNodesByClass("vtkMRMLMarkupsNode")):
            if node.GetAttribute(TURNS) and node.GetNodeReference(VOLUME_ROLE) is self._assistant.node:
                yield node

    def _point_set(self) -> None:
        if self._tool == "point":
            self._later(self._take_points)

    def _placed(self) -> None:
        """Place mode has ended, by the person or because the shape is complete."""
        self._later(self._take_points if self._tool == "point" else self._take_shape)
        self._later(self._put_down)

    def _put_down(self) -> None:
        _, interaction = self._singletons()
        if interaction.GetCurrentInteractionMode() != slicer.vtkMRMLInteractionNode.Place:
            self.end()

    def _take_points(self) -> None:
        """Takes new points out of the pen, one by one."""
        pen = self._pen
        if pen is None or pen.GetScene() is None:
            return
        for n in [n for n in range(pen.GetNumberOfControlPoints()) if _defined(pen, n)][::-1]:
            place = [0.0, 0.0, 0.0]
            pen.GetNthControlPointPositionWorld(n, place)
            pen.RemoveNthControlPoint(n)
            if self._assistant.click(place, self._positive):
                self._keep_point(place)

    def _take_shape(self) -> None:
        pen = self._pen
        if pen is None or pen.GetScene() is None or not pen.GetNumberOfDefinedControlPoints():
            return
        positive = self._positive
        if self._assistant.draw(pen, positive):
            order = self._drawn()
            kept = self._add(self._tool, self._name("shape"), positive)
            kept.CopyContent(pen)
            kept.SetAttribute(STROKE, str(order))
            self._link(kept)

    def _keep_point(self, place: list[float]) -> None:
        order = self._drawn()
        mine = [node for node in self.kept() if self._current(node) and node.IsA(CLASSES["point"])]
        same = (node for node in mine if (node.GetAttribute(POSITIVE) == "1") == self._positive)
        node = next(same, None) or self._add("point", self._name("+" if self._positive else "−"), self._positive)
        n = node.AddControlPointWorld(place)
        node.SetNthControlPointDescription(n, str(order))
        node.SetNthControlPointLocked(n, True)
        self._link(node)

    def _drawn(self) -> int:
        """Which stroke of its turn was drawn just now; what was taken back before it is not coming again."""
        last = self._assistant.conversation.last
        assert last is not None
        self._numbers.setdefault(last.asked.strokes[0], set()).add(last.number)
        order = len(last.asked.strokes) - 1
        for node in [node for node in self.kept() if self._current(node)]:
            if node.GetAttribute(STROKE):
                if int(node.GetAttribute(STROKE)) >= order:
                    self._remove(node)
                continue
            for n in reversed(range(node.GetNumberOfControlPoints())):
                if _order(node, n) >= order:
                    node.RemoveNthControlPoint(n)
        return order

    def _current(self, node: Any) -> bool:
        """Whether something was drawn for the structure that is being worked on."""
        last = self._assistant.conversation.last
        return last is not None and last.number in self._numbers_of(node)

    def _numbers_of(self, node: Any) -> set[int]:
        own = {int(word) for word in (node.GetAttribute(TURNS) or "").split() if word.isdecimal()}
        return own.union(*(numbers for numbers in self._numbers.values() if numbers & own))

    def _link(self, node: Any) -> None:
        last = self._assistant.conversation.last
        assert last is not None
        node.SetAttribute(TURNS, str(last.number))
        node.SetNodeReferenceID(VOLUME_ROLE, self._assistant.node.GetID())
        self.follow()

    def _show(self, node: Any, turn: Turn | None) -> None:
        """Shows what was drawn for a turn that is still there and has something to show, or nothing yet."""
        shown = turn is not None and (not turn.findings or any(not one.hidden for one in turn.kept))
        count = 0 if turn is None else len(turn.asked.strokes)
        if node.GetAttribute(STROKE):
            shown = shown and int(node.GetAttribute(STROKE)) < count
        else:
            for n in range(node.GetNumberOfControlPoints()):
                if bool(node.GetNthControlPointVisibility(n)) != (_order(node, n) < count):
                    node.SetNthControlPointVisibility(n, _order(node, n) < count)
        if bool(node.GetDisplayVisibility()) != shown:
            node.SetDisplayVisibility(shown)
        _attribute(node, KEY, turn.kept[0].key if turn is not None and turn.kept else "")

    def _add(self, tool: Tool, name: str, positive: bool) -> Any:
        selection, _ = self._singletons()
        placed_into = selection.GetActivePlaceNodeID()
        node = self._scene.AddNewNodeByClass(CLASSES[tool], name)
        selection.SetActivePlaceNodeID(placed_into)  # Slicer places into whatever markups came last
        node.CreateDefaultDisplayNodes()
        node.SetAttribute(POSITIVE, "1" if positive else "0")
        if (display := node.GetDisplayNode()) is not None:
            display.SetPointLabelsVisibility(False)
            display.SetPropertiesLabelVisibility(False)
            display.SetSelectedColor(*(YES if positive else NO))
            display.SetColor(*(YES if positive else NO))
        return node

    def _remove(self, node: Any) -> None:
        """With its display node, which the scene would keep."""
        display = node.GetDisplayNode()
        self._scene.RemoveNode(node)
        if display is not None:
            self._scene.RemoveNode(display)

    def _name(self, what: str) -> str:
        return f"{self._assistant.node.GetName()} MedSIGHT {what}" if self._assistant.node else "MedSIGHT"

    def _watch(self, node: Any, event: int, act: Callable[[], None]) -> None:
        self._observed.append((node, node.AddObserver(event, lambda _caller, _event: act())))

    def _singletons(self) -> tuple[Any, Any]:
        get = self._scene.GetNodeByID
        return get("vtkMRMLSelectionNodeSingleton"), get("vtkMRMLInteractionNodeSingleton")


def _defined(node: Any, n: int) -> bool:
    return bool(node.GetNthControlPointPositionStatus(n) == slicer.vtkMRMLMarkupsNode.PositionDefined)


def _order(node: Any, n: int) -> int:
    words = node.GetNthControlPointDescription(n) or ""
    return int(words) if words.isdecimal() else 0


def _attribute(node: Any, name: str, value: str) -> None:
    """Sets an attribute where it differs; each setting of one redraws the node."""
    if (node.GetAttribute(name) or "") != value:
        node.SetAttribute(name, value)

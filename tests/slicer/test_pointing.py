from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import slicer
import vtk

from medsight_core.mrml.segments import KEY
from tests.slicer.desk import Desk, add_views, lit, ras_of, show

pytest.importorskip("qtpy", reason="the workers' module needs Qt for its timer")


@pytest.fixture
def lib() -> Iterator[Any]:
    from tests.slicer.binding import library

    yield from library("plain")


class Hand:
    """A person with a tool: places control points as Slicer's views do, then lets Slicer get on."""

    def __init__(self, scene: Any, lib: Any) -> None:
        self.scene = scene
        self.desk = Desk(lib)
        self.later: list[Callable[[], None]] = []
        self.ended = 0
        self.pointing = lib.pointing.Pointing(
            self.desk.assistant, scene, later=self.later.append, on_end=lambda: setattr(self, "ended", self.ended + 1)
        )
        self.node, self.bright = lit(turn=20.0)
        self.desk.assistant.choose(self.node)

    @property
    def pen(self) -> Any:
        selection = self.scene.GetNodeByID("vtkMRMLSelectionNodeSingleton")
        return self.scene.GetNodeByID(selection.GetActivePlaceNodeID())

    @property
    def mode(self) -> int:
        return int(self.scene.GetNodeByID("vtkMRMLInteractionNodeSingleton").GetCurrentInteractionMode())

    def put(self, k: float, row: float, column: float) -> None:
        """Places a point, and waits for what comes of it."""
        self.pen.AddControlPointWorld(ras_of(self.node, k, row, column))
        self.go_on()

    def finish(self) -> None:
        """Ends place mode, as a right click does or a shape that is complete."""
        interaction = self.scene.GetNodeByID("vtkMRMLInteractionNodeSingleton")
        interaction.SetCurrentInteractionMode(interaction.ViewTransform)
        self.go_on()

    def go_on(self) -> None:
        while self.later:
            self.later.pop(0)()
        self.desk.settle()

    def kept(self) -> list[Any]:
        return list(self.pointing.kept())

    def seen(self) -> list[tuple[str, list[int]]]:
        """Kept points that can be seen: names of their nodes, and which strokes they are."""
        found = []
        for node in self.kept():
            if node.GetDisplayVisibility():
                points = [n for n in range(node.GetNumberOfControlPoints()) if node.GetNthControlPointVisibility(n)]
                if points:
                    found.append((node.GetName()[-1], [int(node.GetNthControlPointDescription(n)) for n in points]))
        return sorted(found)

    @property
    def mask(self) -> Any:
        return self.desk.mask(self.desk.assistant.conversation.findings[-1].key)

    @property
    def notice(self) -> str:
        return str(self.desk.assistant.notice)


@pytest.fixture
def hand(scene: Any, lib: Any) -> Iterator[Hand]:
    add_views(scene)
    markups = slicer.vtkSlicerMarkupsLogic()
    markups.SetMRMLScene(scene)  # knows how markups are saved
    hand = Hand(scene, lib)
    yield hand
    hand.pointing.end()
    hand.desk.assistant.close()


def test_points_refine_one_structure_and_are_kept_and_linked_to_its_segment(hand: Hand) -> None:
    hand.pointing.begin("point")
    assert hand.mode == slicer.vtkMRMLInteractionNode.Place
    assert hand.pointing.tool == "point"
    hand.put(3, 6, 8)
    assert hand.mask[3, 4:9, 5:12].all() and hand.mask.sum() == 35
    hand.put(3, 13, 21)
    assert hand.mask.sum() == 35 + 16
    hand.pointing.begin("point", False)
    hand.put(3, 13, 22)
    assert hand.mask.sum() == 35
    segments = hand.desk.assistant.segments
    assert len(segments.ids) == 1
    assert hand.seen() == [("+", [0, 1]), ("−", [2])]
    for node in hand.kept():
        assert node.GetNodeReference("MedSIGHT.segmentation") is segments.node
        assert node.GetNodeReference("MedSIGHT.volume") is hand.node
        assert node.GetAttribute(KEY) in segments.ids
    place = [0.0, 0.0, 0.0]
    plus = next(node for node in hand.kept() if node.GetName().endswith("+"))
    plus.GetNthControlPointPositionWorld(1, place)
    assert np.allclose(place, ras_of(hand.node, 3, 13, 21))
    assert hand.pen.GetNumberOfControlPoints() == 0


def test_what_is_drawn_is_seen_with_its_finding_and_follows_undo(hand: Hand) -> None:
    assistant = hand.desk.assistant
    hand.pointing.begin("point")
    hand.put(3, 6, 8)
    hand.put(3, 13, 21)
    assistant.undo()
    assert hand.seen() == [("+", [0])]
    assistant.redo()
    assert hand.seen() == [("+", [0, 1])]
    key = assistant.conversation.findings[0].key
    assistant.hide(key)
    assert hand.seen() == []
    assistant.hide(key, False)
    assert hand.seen() == [("+", [0, 1])]
    assistant.delete(key)
    assert hand.seen() == []
    assistant.undo()
    assistant.segment("", True)
    hand.go_on()
    assert hand.seen() == [("+", [0, 1])]
    assert hand.mask[:, 4:9, 5:12].any(axis=(1, 2)).tolist() == [False, True, True, True, True, False]
    for _ in ("the slices", "showing", "hiding", "the second point"):
        assistant.undo()
    hand.put(3, 14, 21)  # in place of the one that was taken back
    assert hand.seen() == [("+", [0, 1])]
    assert sum(node.GetNumberOfControlPoints() for node in hand.kept()) == 2
    for _ in range(2):
        assistant.undo()
    assert hand.seen() == []


def test_another_structure_has_points_of_its_own(hand: Hand) -> None:
    hand.pointing.begin("point")
    hand.put(3, 6, 8)
    hand.desk.assistant.begin_another()
    hand.put(3, 13, 21)
    assert hand.mask.sum() == 16
    assert hand.seen() == [("+", [0]), ("+", [0])]
    hand.desk.assistant.hide("1.1")
    assert hand.seen() == [("+", [0])]


def test_a_question_in_words_ends_the_work_on_a_structure(hand: Hand) -> None:
    hand.pointing.begin("point")
    hand.put(3, 6, 8)
    show(hand.scene.GetNodeByID("vtkMRMLSliceNodeRed"), hand.node, 3)
    hand.desk.ask("What is bright?")
    hand.put(3, 13, 21)
    assert len(hand.desk.backend.asked[-1].strokes) == 1
    assert len(hand.kept()) == 2


def test_a_point_outside_is_refused_in_words_and_not_kept(hand: Hand) -> None:
    hand.pointing.begin("point")
    hand.put(3, 6, 900)
    assert "outside the volume" in hand.notice
    assert not hand.kept() and not hand.pen.GetNumberOfControlPoints()
    hand.put(3, 6, 8)
    assert hand.notice == ""
    assert hand.seen() == [("+", [0])]


@pytest.mark.parametrize("tool", ["box", "scribble", "outline"])
def test_a_shape_is_taken_when_it_is_complete(hand: Hand, tool: str) -> None:
    hand.pointing.begin(tool)
    pen = hand.pen
    if tool == "box":
        pen.SetCenterWorld(ras_of(hand.node, 3, 6, 8))
        pen.SetSize(6, 6, 2)
    else:
        for row, column in ((5, 6), (5, 10), (8, 9)):
            pen.AddControlPointWorld(ras_of(hand.node, 3, row, column))
    hand.go_on()
    assert not hand.kept()
    hand.finish()
    assert hand.pointing.tool is None and hand.ended
    (kept,) = hand.kept()
    assert kept.IsA(type(pen).__name__)
    request = hand.desk.backend.asked[0]
    assert request.strokes[0].prompt.kind == {"box": "box", "scribble": "scribble", "outline": "mask"}[tool]
    assert request.strokes[0].slice_index == 3
    assert kept.GetDisplayVisibility()
    hand.desk.assistant.undo()
    assert not kept.GetDisplayVisibility()
    assert pen.GetScene() is None


def test_a_shape_without_a_point_is_dropped_and_one_outside_refused(hand: Hand) -> None:
    hand.pointing.begin("scribble")
    hand.finish()
    hand.pointing.begin("scribble")
    hand.pen.AddControlPointWorld(ras_of(hand.node, 3, 5, 900))
    hand.pen.AddControlPointWorld(ras_of(hand.node, 3, 5, 8))
    hand.finish()
    assert "outside" in hand.notice
    hand.pointing.begin("scribble")
    hand.pen.AddControlPointWorld(ras_of(hand.node, 1, 5, 6))
    hand.pen.AddControlPointWorld(ras_of(hand.node, 4, 5, 8))
    hand.finish()
    assert "must lie on one" in hand.notice
    assert not hand.kept() and not hand.desk.backend.asked


def test_putting_the_tool_down_leaves_nothing_behind(hand: Hand) -> None:
    before = hand.scene.GetNumberOfNodes()
    hand.pointing.begin("point")
    pen = hand.pen
    hand.pointing.begin("box")
    hand.pointing.end()
    assert hand.scene.GetNumberOfNodes() == before
    assert hand.mode != slicer.vtkMRMLInteractionNode.Place
    pen.AddControlPointWorld([0, 0, 0])
    hand.go_on()
    assert not hand.desk.backend.asked


def test_the_scene_can_be_closed_with_a_tool_in_hand(hand: Hand) -> None:
    hand.pointing.begin("point")
    hand.pen.AddControlPointWorld(ras_of(hand.node, 3, 6, 8))  # its turn has not come yet
    hand.desk.assistant.close()
    hand.scene.Clear(False)
    hand.go_on()
    hand.pointing.end()
    hand.pointing.follow()
    assert not hand.desk.backend.asked


def test_points_follow_a_volume_under_a_transform(hand: Hand) -> None:
    transform = hand.scene.AddNewNodeByClass("vtkMRMLLinearTransformNode")
    moved = vtk.vtkTransform()
    moved.Translate(25, 0, 3)
    moved.RotateWXYZ(30, 1, 1, 0)
    transform.SetMatrixTransformToParent(moved.GetMatrix())
    hand.node.SetAndObserveTransformNodeID(transform.GetID())
    hand.pointing.begin("point")
    hand.put(3, 6, 8)
    assert hand.mask.sum() == 35


def test_what_was_drawn_is_restored_with_the_scene_and_refined_further(hand: Hand, tmp_path: Path) -> None:
    hand.pointing.begin("point")
    hand.put(3, 6, 8)
    hand.put(3, 13, 21)
    path = str(tmp_path / "scene.mrb")
    hand.desk.assistant.flush()
    assert hand.scene.WriteToMRB(path, None)
    hand.pointing.end()
    hand.desk.assistant.close()
    hand.scene.Clear(False)
    assert hand.scene.ReadFromMRB(path, True)
    assert hand.scene.GetFirstNodeByName("MedSIGHT pen") is None
    hand.node = hand.scene.GetFirstNodeByClass("vtkMRMLScalarVolumeNode")
    hand.desk.assistant.choose(hand.node)
    assert hand.seen() == [("+", [0, 1])]
    hand.pointing.begin("point", False)
    hand.put(3, 13, 22)
    assert len(hand.desk.backend.asked[-1].strokes) == 3
    assert hand.mask.sum() == 35
    assert hand.seen() == [("+", [0, 1]), ("−", [2])]
    hand.desk.assistant.undo()
    assert hand.seen() == [("+", [0, 1])]

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import slicer
import vtk

from medsight_core.errors import MedSightError
from medsight_core.measure import measure
from medsight_core.mrml import memory
from medsight_core.mrml.segments import tag_of
from medsight_core.mrml.volumes import volume_of
from tests.imaging.synthetic import write_series
from tests.slicer.desk import Desk, add_views, lit, ras_of, show
from tests.slicer.test_export import load

pytest.importorskip("qtpy", reason="the workers' module needs Qt for its timer")


@pytest.fixture
def lib() -> Iterator[Any]:
    from tests.slicer.binding import library

    yield from library("plain")


@pytest.fixture
def desk(scene: Any, lib: Any) -> Iterator[Desk]:
    add_views(scene)
    desk = Desk(lib)
    yield desk
    desk.backend.gate.set()
    desk.assistant.close()


def state(desk: Desk) -> str:
    return str(desk.assistant.conversation.last.state)


def chosen(desk: Desk, **how: Any) -> tuple[Any, Any]:
    node, bright = lit(**how)
    desk.assistant.choose(node)
    show(slicer.mrmlScene.GetNodeByID("vtkMRMLSliceNodeRed"), node, 3)
    return node, bright


def names(desk: Desk) -> list[str]:
    segments = desk.assistant.segments
    return [segments.node.GetSegmentation().GetSegment(one).GetName() for one in segments.ids.values()]


def text_node(scene: Any) -> Any:
    return scene.GetFirstNodeByClass("vtkMRMLTextNode")


def test_a_question_is_about_the_slice_that_is_shown_and_its_answer_becomes_a_segment(scene: Any, desk: Desk) -> None:
    node, bright = chosen(desk, turn=5.0)
    red = scene.GetNodeByID("vtkMRMLSliceNodeRed")
    for k in (1, 4):
        show(red, node, k)
        turn = desk.ask(f"What is bright in {k}?")
        assert (turn.state, turn.text, turn.asked.slice_index) == ("done", "Something bright.", k)
        wanted = np.zeros_like(bright)
        wanted[k] = bright[k]
        assert np.array_equal(desk.mask(turn.findings[0].key), wanted)
    assert np.array_equal(desk.backend.asked[0].volume.array, slicer.util.arrayFromVolume(node))
    assert desk.backend.asked[0].volume is desk.backend.asked[1].volume  # so it is sent once
    segment = desk.assistant.segments.node.GetSegmentation().GetSegment(desk.assistant.segments.ids["2.1"])
    assert tag_of(segment, "MedSIGHT.Question") == "What is bright in 4?"
    assert tag_of(segment, "MedSIGHT.Digest") == "d" * 64
    red_channel = round(255 * segment.GetColor()[0])
    assert desk.assistant.colour("2.1").startswith(f"#{red_channel:02x}")


def test_a_question_about_the_volume_says_which_slice_is_looked_at(scene: Any, desk: Desk) -> None:
    node, _ = chosen(desk)
    show(scene.GetNodeByID("vtkMRMLSliceNodeRed"), node, 2)
    desk.ask("What is bright?", whole=True)
    whole = desk.backend.wholes[0]
    assert whole is not None and whole.shown == 2


def test_the_view_in_use_comes_first_if_it_shows_slices_as_acquired(scene: Any, desk: Desk) -> None:
    node, _ = chosen(desk)
    red, yellow = scene.GetNodeByID("vtkMRMLSliceNodeRed"), scene.GetNodeByID("vtkMRMLSliceNodeYellow")
    show(red, node, 1)
    show(yellow, node, 4)
    desk.assistant.view = "Yellow"
    assert desk.ask().asked.slice_index == 1  # sagittal, so it shows all slices
    yellow.SetOrientation("Axial")
    assert desk.ask().asked.slice_index == 4


def test_a_follow_up_takes_the_turns_of_its_slice_along(scene: Any, desk: Desk) -> None:
    chosen(desk)
    desk.ask("What is bright?")
    desk.ask("And how large is it?")
    assert [text for text, _ in desk.backend.asked[1].history] == ["What is bright?"]


def test_without_a_slice_in_view_or_a_volume_the_reason_is_said(scene: Any, desk: Desk) -> None:
    assert desk.assistant.notice == "Choose a scan to ask about."
    assert not desk.assistant.ask("What is bright?")
    chosen(desk)
    assert desk.assistant.notice == ""
    for name in ("Red", "Yellow", "Green"):
        scene.GetNodeByID(f"vtkMRMLSliceNode{name}").JumpSliceByCentering(900, 900, 900)
    assert not desk.assistant.ask("What is bright?")
    assert "No slice view shows" in desk.assistant.notice
    assert not desk.assistant.ask("   ", True)
    assert "empty" in desk.assistant.notice
    assert desk.assistant.ask("What is bright?", True)
    assert desk.assistant.notice == ""


def test_the_answer_streams_and_can_be_stopped_and_asked_again(desk: Desk) -> None:
    chosen(desk)
    desk.backend.gate.clear()
    assert desk.assistant.ask("What is bright?")
    assert desk.assistant.busy
    desk.settle(lambda: desk.assistant.conversation.last.text == "Something bright.")
    assert not desk.assistant.ask("Another question")
    assert "being written" in desk.assistant.notice
    desk.assistant.stop()
    assert (state(desk), desk.assistant.busy) == ("stopped", False)
    desk.backend.gate.set()
    desk.settle()
    assert (state(desk), desk.assistant.segments.node) == ("stopped", None)
    desk.assistant.retry()
    desk.settle()
    assert [turn.state for turn in desk.assistant.conversation.turns] == ["stopped", "done"]
    assert names(desk) == ["bright"]


def test_what_keeps_from_asking_is_a_failed_turn_that_can_be_tried_again(desk: Desk) -> None:
    chosen(desk)
    desk.refusal = MedSightError("no_consent", "You did not agree.", "Agree in the settings.")
    desk.assistant.ask("What is bright?")
    assert state(desk) == "failed"
    assert "You did not agree." in desk.assistant.conversation.last.note
    desk.refusal = None
    desk.backend.fails = MedSightError("timed_out", "The server said nothing.", "Ask again.")
    desk.assistant.retry()
    desk.settle()
    assert "said nothing" in desk.assistant.conversation.last.note
    desk.assistant.retry()
    desk.settle()
    assert [turn.state for turn in desk.assistant.conversation.turns] == ["done"]


def test_what_goes_wrong_inside_ends_the_answer_in_words(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen(desk)
    monkeypatch.setattr(type(desk.backend), "info", lambda self: 1 / 0)
    desk.ask()
    assert state(desk) == "failed"
    assert "ZeroDivisionError" in desk.assistant.conversation.last.note


def test_undo_redo_and_edits_are_followed_by_the_segments(desk: Desk) -> None:
    chosen(desk)
    desk.ask("one")
    desk.ask("two")
    key = "1.1"
    before = desk.mask(key)
    desk.assistant.rename(key, "liver cyst")
    desk.assistant.hide(key)
    display = desk.assistant.segments.node.GetDisplayNode()
    assert names(desk) == ["liver cyst", "bright"]
    assert not display.GetSegmentVisibility(desk.assistant.segments.ids[key])
    desk.assistant.delete(key)
    assert list(desk.assistant.segments.ids) == ["2.1"]
    for _ in range(3):
        desk.assistant.undo()
    assert names(desk) == ["bright", "bright"]
    assert display.GetSegmentVisibility(desk.assistant.segments.ids[key])
    assert np.array_equal(desk.mask(key), before)
    desk.assistant.undo()
    assert list(desk.assistant.segments.ids) == [key]
    desk.assistant.redo()
    assert list(desk.assistant.segments.ids) == [key, "2.1"]
    desk.assistant.clear()
    assert not desk.assistant.segments.ids
    assert not desk.assistant.conversation.turns
    desk.assistant.undo()
    assert list(desk.assistant.segments.ids) == [key, "2.1"]
    desk.assistant.delete("9.9")
    assert "9.9" in desk.assistant.notice


def test_going_to_a_finding_centres_all_views_and_selects_its_segment(scene: Any, desk: Desk) -> None:
    editor = slicer.vtkMRMLSegmentEditorNode()
    editor.SetSingletonTag("SegmentEditor")
    editor = scene.AddNode(editor)
    node, _ = chosen(desk, turn=20.0)
    desk.click(ras_of(node, 3, 6, 8))
    assert desk.assistant.go_to("1.1")
    centre = desk.assistant.segments.centre(desk.assistant.segments.ids["1.1"])
    for name in ("Red", "Yellow", "Green"):
        matrix = scene.GetNodeByID(f"vtkMRMLSliceNode{name}").GetSliceToRAS()
        assert np.allclose([matrix.GetElement(row, 3) for row in range(3)], centre, atol=1e-3)
    assert editor.GetSelectedSegmentID() == desk.assistant.segments.ids["1.1"]
    assert editor.GetSegmentationNode() is desk.assistant.segments.node
    desk.assistant.emphasise("1.1")
    desk.assistant.emphasise(None)
    desk.assistant.segments.node.GetSegmentation().RemoveAllSegments()
    assert not desk.assistant.go_to("1.1")
    assert "not in the scene" in desk.assistant.notice
    assert desk.assistant.colour("1.1") == "#808080"
    assert desk.assistant.measured("1.1") is None


def test_measurements_come_from_beside_the_window_and_follow_edits(desk: Desk) -> None:
    node, _ = chosen(desk)
    desk.click(ras_of(node, 3, 6, 8))
    assert desk.assistant.measured("1.1") is None
    before = desk.changes
    desk.settle()
    assert desk.changes > before
    found = desk.assistant.measured("1.1")
    mask = desk.mask("1.1")
    whole = measure(mask, volume_of(node).require_frame(), values=slicer.util.arrayFromVolume(node))
    assert found is not None
    assert found.volume_mm3 == pytest.approx(whole.volume_mm3, rel=1e-9)
    assert (found.mean, found.slices, found.voxels) == (whole.mean, whole.slices, int(mask.sum()))
    edited = mask.copy()
    edited[3, 4] = False
    segments = desk.assistant.segments
    slicer.util.updateSegmentBinaryLabelmapFromArray(edited.astype(np.uint8), segments.node, segments.ids["1.1"], node)
    desk.assistant.measured("1.1")
    desk.settle()
    assert desk.assistant.measured("1.1").voxels == edited.sum()


@pytest.mark.parametrize("how", ["the volume is removed", "the scene is cleared", "its image is gone"])
def test_a_scan_that_vanishes_while_it_is_asked_about_harms_nothing(scene: Any, desk: Desk, how: str) -> None:
    node, _ = chosen(desk)
    desk.backend.gate.clear()
    desk.assistant.ask("What is bright?")
    desk.settle(lambda: bool(desk.assistant.conversation.last.text))
    if how == "the volume is removed":
        scene.RemoveNode(node)
    elif how == "the scene is cleared":
        scene.Clear(False)
    else:
        node.SetAndObserveImageData(None)
    desk.assistant.pump()
    desk.backend.gate.set()
    desk.settle()
    for key in ("1.1", "7.7"):
        desk.assistant.measured(key)
        desk.assistant.colour(key)
        desk.assistant.go_to(key)
        desk.assistant.hide(key)
        desk.assistant.emphasise(key)
    desk.assistant.undo()
    desk.assistant.flush()
    assert not desk.assistant.ask("And now?")
    assert desk.assistant.notice
    if how != "its image is gone":
        assert desk.assistant.node is None
    if scene.GetNodeByID("vtkMRMLSliceNodeRed") is None:
        add_views(scene)
    chosen(desk, name="other")
    assert desk.ask().state == "done"


def test_the_scene_can_be_closed_while_an_answer_runs(scene: Any, desk: Desk) -> None:
    chosen(desk)
    desk.backend.gate.clear()
    desk.assistant.ask("What is bright?")
    desk.settle(lambda: bool(desk.assistant.conversation.last.text))
    desk.assistant.close()
    scene.Clear(False)
    assert not desk.assistant.conversation.turns
    desk.backend.gate.set()
    desk.settle()
    assert all(not worker.living for worker in desk.workers)


def test_each_volume_has_a_conversation_and_one_goes_on_while_another_is_looked_at(scene: Any, desk: Desk) -> None:
    first, _ = chosen(desk, name="first")
    desk.backend.gate.clear()
    desk.assistant.ask("one")
    chosen(desk, name="second")
    assert (desk.assistant.busy, desk.assistant.conversation.turns) == (False, ())
    desk.backend.gate.set()
    desk.ask("two")
    desk.assistant.choose(first)
    assert [turn.asked.text for turn in desk.assistant.conversation.turns] == ["one"]
    assert state(desk) == "done"
    assert desk.assistant.segments.node is not None
    assert scene.GetNumberOfNodesByClass("vtkMRMLSegmentationNode") == 2
    desk.assistant.choose(None)
    assert not desk.assistant.conversation.turns


def test_changed_voxels_are_read_again_and_another_grid_begins_anew(scene: Any, desk: Desk) -> None:
    node, _ = chosen(desk)
    desk.ask("before")
    slicer.util.arrayFromVolume(node)[:] += 10
    slicer.util.arrayFromVolumeModified(node)
    desk.ask("after")
    assert desk.backend.asked[1].volume is not desk.backend.asked[0].volume
    assert desk.backend.asked[1].volume.array.min() == 10
    assert len(desk.assistant.conversation.turns) == 2
    kept = desk.assistant.segments.node
    moved = vtk.vtkMatrix4x4()
    node.GetIJKToRASMatrix(moved)
    moved.SetElement(0, 3, moved.GetElement(0, 3) + 50)
    node.SetIJKToRASMatrix(moved)
    show(scene.GetNodeByID("vtkMRMLSliceNodeRed"), node, 3)
    desk.ask("moved")
    assert [turn.asked.text for turn in desk.assistant.conversation.turns] == ["moved"]
    assert desk.assistant.segments.node is not kept
    assert kept.GetSegmentation().GetNumberOfSegments() == 2


def test_a_grid_that_changes_while_an_answer_runs_ends_it(scene: Any, desk: Desk) -> None:
    node, _ = chosen(desk)
    desk.backend.gate.clear()
    desk.assistant.ask("before")
    desk.settle(lambda: bool(desk.assistant.conversation.last.text))
    node.SetSpacing(1.0, 1.0, 3.0)
    desk.assistant.click(ras_of(node, 3, 6, 8))
    desk.backend.gate.set()
    desk.settle()
    assert [turn.asked.kind for turn in desk.assistant.conversation.turns] == ["segment"]
    assert state(desk) == "done"


def test_scrolling_window_level_and_a_moving_transform_are_no_changes(scene: Any, desk: Desk) -> None:
    node, _ = chosen(desk)
    desk.ask("before")
    node.CreateDefaultDisplayNodes()
    node.GetDisplayNode().SetWindowLevel(300, 40)
    transform = scene.AddNewNodeByClass("vtkMRMLLinearTransformNode")
    node.SetAndObserveTransformNodeID(transform.GetID())
    show(scene.GetNodeByID("vtkMRMLSliceNodeRed"), node, 2)
    desk.ask("after")
    assert desk.backend.asked[1].volume is desk.backend.asked[0].volume


def test_the_conversation_is_restored_with_its_segments(scene: Any, desk: Desk, lib: Any, tmp_path: Path) -> None:
    node, _ = chosen(desk)
    desk.ask("Où est la lésion? 肝臓 <b>")
    desk.click(ras_of(node, 3, 6, 8))
    desk.ask("third")
    desk.assistant.rename("1.1", "Läsion")
    desk.assistant.hide("2.1")
    desk.assistant.delete("3.1")
    desk.settle()
    masks = {key: desk.mask(key) for key in ("1.1", "2.1")}
    path = str(tmp_path / "scene.mrb")
    assert scene.WriteToMRB(path, None)
    desk.assistant.close()
    scene.Clear(False)
    assert scene.ReadFromMRB(path, True)
    add_views(scene)
    desk.assistant.choose(scene.GetFirstNodeByClass("vtkMRMLScalarVolumeNode"))
    assert desk.assistant.notice == ""
    turns = desk.assistant.conversation.turns
    assert [turn.asked.text for turn in turns] == ["Où est la lésion? 肝臓 <b>", "", "third"]
    assert scene.GetNumberOfNodesByClass("vtkMRMLSegmentationNode") == 1
    assert names(desk) == ["Läsion", "bright"]
    for key, mask in masks.items():
        assert np.array_equal(desk.mask(key), mask)
    assert not desk.assistant.segments.node.GetDisplayNode().GetSegmentVisibility(desk.assistant.segments.ids["2.1"])
    show(scene.GetNodeByID("vtkMRMLSliceNodeRed"), desk.assistant.node, 3)
    assert desk.ask("fourth").number == 4


def test_what_a_person_deleted_stays_so_after_restoring(scene: Any, desk: Desk) -> None:
    node, _ = chosen(desk)
    desk.ask()
    desk.settle()
    desk.assistant.segments.node.GetSegmentation().RemoveAllSegments()
    desk.assistant.close()
    desk.assistant.choose(node)
    assert len(desk.assistant.conversation.findings) == 1
    assert not desk.assistant.segments.ids


def test_saving_does_not_wait_for_the_thread_and_notes_a_running_answer(scene: Any, desk: Desk) -> None:
    node, _ = chosen(desk)
    desk.backend.gate.clear()
    desk.assistant.ask("What is bright?")
    desk.settle(lambda: bool(desk.assistant.conversation.last.text))
    desk.assistant.flush()
    saved = json.loads(memory.remembered(node))
    assert saved["turns"][0]["partial"]["failure"][0] == "interrupted"
    desk.backend.gate.set()
    desk.settle()
    assert "answer" in json.loads(memory.remembered(node))["turns"][0]


@pytest.mark.parametrize("text", ["{", "[]", '{"format": "medsight-conversation", "version": 1}'])
def test_a_damaged_memory_is_said_and_a_new_conversation_begins(scene: Any, desk: Desk, text: str) -> None:
    node, _ = chosen(desk)
    desk.assistant.close()
    memory.remember(node, text)
    desk.assistant.choose(node)
    assert "cannot be read" in desk.assistant.notice
    assert desk.ask().state == "done"
    desk.settle()
    assert json.loads(text_node(scene).GetText())["turns"]


def test_the_modality_is_that_of_the_files_until_a_person_says_otherwise(scene: Any, lib: Any, tmp_path: Path) -> None:
    node, file_of = load(scene, write_series(tmp_path / "series"))
    desk = Desk(lib, file_of=file_of)
    desk.assistant.choose(node)
    assert desk.assistant.modality == "CT"
    assert "liver" in desk.assistant.suggestions()[0]
    desk.assistant.choose_modality("MR")
    assert desk.assistant.modality == "MR"
    assert desk.assistant.ask("What?", True), desk.assistant.notice
    desk.settle()
    assert desk.backend.asked[0].volume.modality == "MR"
    desk.assistant.choose_modality("")
    assert desk.assistant.modality == "CT"
    desk.settle()
    desk.assistant.close()
    desk.assistant.choose(node)
    assert len(desk.assistant.conversation.turns) == 1


def test_a_conversation_goes_on_where_the_files_of_the_scan_are_not(scene: Any, lib: Any, tmp_path: Path) -> None:
    node, file_of = load(scene, write_series(tmp_path / "series"))
    desk = Desk(lib, file_of=file_of)
    desk.assistant.choose(node)
    assert desk.assistant.ask("What?", True), desk.assistant.notice
    desk.settle()
    desk.assistant.flush()
    desk.assistant.close()
    elsewhere = Desk(lib)
    elsewhere.assistant.choose(node)
    assert (elsewhere.assistant.notice, elsewhere.assistant.modality) == ("", "CT")
    assert len(elsewhere.assistant.conversation.turns) == 1
    elsewhere.assistant.close()


def test_inverted_hounsfield_units_are_refused_until_a_person_vouches_for_them(
    scene: Any, lib: Any, tmp_path: Path
) -> None:
    node, file_of = load(scene, write_series(tmp_path / "series", monochrome1=True))
    desk = Desk(lib, file_of=file_of)
    desk.assistant.choose(node)
    assert "not Hounsfield units" in desk.assistant.notice
    assert not desk.assistant.ask("What?", True)
    assert not desk.backend.asked and not desk.assistant.conversation.turns
    desk.assistant.choose_modality("CT")
    assert desk.assistant.notice == ""
    assert desk.assistant.ask("What?", True), desk.assistant.notice
    desk.settle()
    assert desk.backend.asked[0].volume.modality == "CT"
    desk.assistant.close()


def test_a_label_map_is_refused_in_words(scene: Any, desk: Desk) -> None:
    labels = scene.AddNewNodeByClass("vtkMRMLLabelMapVolumeNode", "labels")
    desk.assistant.choose(labels)
    assert "labels" in desk.assistant.notice
    assert not desk.assistant.ask("What?")
    assert "labels" in desk.assistant.notice


def test_a_region_without_voxels_is_in_the_answer_but_makes_no_segment(desk: Desk) -> None:
    node, _ = chosen(desk)
    turn = desk.click(ras_of(node, 0, 0, 0))
    assert turn.state == "done"
    assert desk.assistant.notice == ""
    assert desk.assistant.segments.node is None


def test_a_click_is_refined_and_taken_back_click_by_click(desk: Desk) -> None:
    node, bright = chosen(desk, turn=20.0)
    one, both = np.zeros_like(bright), np.zeros_like(bright)
    one[3, 4:9, 5:12] = True
    both[3] = bright[3]
    desk.click(ras_of(node, 3, 6, 8))
    assert np.array_equal(desk.mask("1.1"), one)
    turn = desk.click(ras_of(node, 3, 13, 21))
    assert len(desk.backend.asked[1].strokes) == 2
    assert np.array_equal(desk.mask(turn.findings[0].key), both)
    turn = desk.click(ras_of(node, 3, 13, 21), False)
    assert np.array_equal(desk.mask(turn.findings[0].key), one)
    assert len(desk.assistant.segments.ids) == 1
    desk.assistant.undo()
    assert np.array_equal(desk.mask(desk.assistant.conversation.findings[0].key), both)
    desk.assistant.redo()
    assert desk.assistant.segment("", True)
    desk.settle()
    wanted = bright.copy()
    wanted[:, 12:] = False
    assert np.array_equal(desk.mask(desk.assistant.conversation.findings[0].key), wanted)
    desk.assistant.begin_another()
    desk.click(ras_of(node, 3, 13, 21))
    assert len(desk.assistant.segments.ids) == 2


def test_a_click_outside_or_against_nothing_is_refused_in_words(desk: Desk) -> None:
    node, _ = chosen(desk)
    assert not desk.assistant.click(ras_of(node, 3, 6, 400))
    assert "outside the volume" in desk.assistant.notice
    assert not desk.assistant.click(ras_of(node, 3, 6, 8), False)
    assert "nothing yet" in desk.assistant.notice
    assert not desk.assistant.segment("", True)
    assert "Nothing says" in desk.assistant.notice
    assert not desk.assistant.conversation.turns


def test_a_structure_is_not_lost_when_its_refinement_fails(desk: Desk) -> None:
    node, _ = chosen(desk)
    desk.click(ras_of(node, 3, 6, 8))
    desk.backend.fails = MedSightError("timed_out", "The server said nothing.", "Ask again.")
    assert desk.assistant.click(ras_of(node, 3, 13, 21))
    desk.settle()
    assert list(desk.assistant.segments.ids) == ["1.1"]
    assert "said nothing" in desk.assistant.notice
    assert "as it was" in desk.assistant.notice
    desk.click(ras_of(node, 3, 13, 21))
    assert len(desk.backend.asked[-1].strokes) == 2


def test_a_further_click_does_not_wait_for_the_answer_to_the_last_one(desk: Desk) -> None:
    node, bright = chosen(desk)
    desk.backend.gate.clear()
    assert desk.assistant.click(ras_of(node, 3, 6, 8))
    assert desk.assistant.click(ras_of(node, 3, 13, 21))
    assert desk.assistant.busy
    desk.backend.gate.set()
    desk.settle()
    assert np.array_equal(desk.mask(desk.assistant.conversation.findings[0].key)[3], bright[3])


def test_findings_are_exported_with_the_model_that_found_them(desk: Desk, tmp_path: Path) -> None:
    assert desk.assistant.check_export("nii.gz")[0].stops
    chosen(desk)
    desk.ask()
    assert desk.assistant.model == ("brightness", "d" * 64)
    assert not any(note.stops for note in desk.assistant.check_export("nii.gz"))
    assert desk.assistant.export("nii.gz", tmp_path / "out.nii.gz").is_file()
    assert "Something" in desk.assistant.markdown()


def test_the_scene_remembers_the_last_of_many_changes(desk: Desk) -> None:
    node, _ = chosen(desk)
    desk.ask()
    for name in ("a", "b", "c"):
        desk.assistant.rename("1.1", name)
    desk.settle()
    assert json.loads(memory.remembered(node))["turns"][0]["findings"][0]["name"] == "c"

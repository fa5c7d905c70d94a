from __future__ import annotations

import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import slicer

from medsight_core.errors import MedSightError
from medsight_core.mrml import memory
from tests.slicer.binding import MODULE
from tests.slicer.desk import add_views, lit, show
from tests.slicer.desktop import Desktop, desktop
from tests.slicer.test_packaging import SAMPLE_DIGEST

pytest.importorskip("qtpy", reason="the module's window needs Qt")


@pytest.fixture
def store(tmp_path: Path, lib: Any) -> Any:
    """Keeps settings in a file of this test."""
    qt = lib._qt.qt
    format = qt.QSettings.IniFormat
    qt.QSettings.setDefaultFormat(format)
    qt.QSettings.setPath(format, qt.QSettings.UserScope, str(tmp_path / "settings"))
    return tmp_path


@pytest.fixture
def place(lib: Any, scene: Any, store: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Desktop]:
    add_views(scene)
    yield from desktop(lib, scene, monkeypatch)


def cases() -> Any:
    sys.path.insert(0, str(MODULE / "Testing" / "Python"))
    try:
        import MedSIGHTCases
    finally:
        sys.path.pop(0)
    return MedSIGHTCases


def ask(place: Desktop, text: str) -> Any:
    """Types a question into the module and waits for the answer."""
    window = place.opened.window
    window.connection.connect = cases().Bright
    window.chat.send(text)
    for _ in range(5000):
        place.library.settle(2)
        if not window.assistant.busy:
            break
    return window.assistant.conversation.last


def test_the_module_says_what_it_is(place: Desktop) -> None:
    registered = place.registered
    assert registered.title == "MedSIGHT"
    assert registered.categories == ["Segmentation"]
    assert registered.contributors and registered.acknowledgementText
    assert "Not a medical device" in registered.helpText


def test_sample_data_is_slicers_own_and_registered_when_slicer_has_started(
    place: Desktop, monkeypatch: pytest.MonkeyPatch
) -> None:
    registered: list[dict[str, Any]] = []
    logic = types.SimpleNamespace(registerCustomSampleDataSource=lambda **source: registered.append(source))
    monkeypatch.setitem(sys.modules, "SampleData", types.SimpleNamespace(SampleDataLogic=logic))
    place_of = slicer.util.TESTING_DATA_URL
    assert not registered
    slicer.app.emit("startupCompleted()")
    assert {one["sampleName"] for one in registered} == set(SAMPLE_DIGEST)
    for one in registered:
        digest = SAMPLE_DIGEST[one["sampleName"]]
        assert one["uris"] == f"{place_of}SHA256/{digest}"
        assert one["checksums"] == f"SHA256:{digest}"
        assert one["category"] == "MedSIGHT"


def test_it_opens_without_a_scan_and_with_one_that_is_shown(place: Desktop) -> None:
    widget = place.open()
    assert widget.window.assistant.node is None
    assert "Choose a scan" in widget.window.assistant.notice
    node, _ = lit()
    widget.exit()
    widget.enter()
    assert widget.window.assistant.node is node
    assert widget.selector.currentNode() is node


def test_the_choice_of_a_scan_is_kept_in_the_scene(place: Desktop) -> None:
    first, _ = lit("first")
    second, _ = lit("second")
    widget = place.open()
    assert widget.window.assistant.node is None  # which of them is meant is not clear
    widget.selector.setCurrentNode(second)
    assert widget.window.assistant.node is second
    assert widget.logic.getParameterNode().GetNodeReference("Volume") is second
    widget.selector.setCurrentNode(None)
    assert widget.window.assistant.node is None
    widget.selector.setCurrentNode(first)
    place.scene.RemoveNode(first)
    widget.enter()
    assert widget.window.assistant.node is second  # the only one that is left


def test_a_question_is_asked_and_answered_in_the_module(place: Desktop) -> None:
    node, bright = lit()
    widget = place.open()
    show(place.scene.GetNodeByID("vtkMRMLSliceNodeRed"), node, 3)
    turn = ask(place, "What is bright?")
    assert turn.state == "done"
    assert (widget.window.assistant.segments.mask(widget.window.assistant.segments.ids["1.1"])[3] == bright[3]).all()
    widget.exit()
    widget.enter()
    assert len(widget.window.assistant.conversation.turns) == 1
    place.library.settle(300)
    assert not widget.window._poll.running  # it ticks no longer than anything works


def test_without_a_backend_the_reason_stands_in_the_chat(place: Desktop) -> None:
    node, _ = lit()
    widget = place.open()
    show(place.scene.GetNodeByID("vtkMRMLSliceNodeRed"), node, 3)
    widget.window.chat.send("What is bright?")
    place.library.settle(50)
    last = widget.window.assistant.conversation.last
    assert last.state == "failed"
    assert "on this computer" in last.note


def test_consent_is_asked_for_once_and_the_question_then_asked_again(place: Desktop) -> None:
    node, _ = lit()
    widget = place.open()
    show(place.scene.GetNodeByID("vtkMRMLSliceNodeRed"), node, 3)
    window, asked = widget.window, []
    allowed: list[bool] = []

    def connect() -> Any:
        if not allowed:
            raise MedSightError("no_consent", "Nothing was sent.", "Allow it.")
        return cases().Bright()

    window.connection.connect = connect
    window.connection.when_allowed = lambda parent, volume, go: asked.append((volume, go))
    window.chat.send("What is bright?")
    place.library.settle(50)
    place.library.settle(50)
    ((volume, go),) = asked
    assert volume is window.assistant.outline
    allowed.append(True)
    go()
    place.library.settle(200)
    assert [turn.state for turn in window.assistant.conversation.turns] == ["done"]


def test_a_refusal_of_another_session_asks_for_nothing(place: Desktop) -> None:
    node, _ = lit()
    widget = place.open()
    show(place.scene.GetNodeByID("vtkMRMLSliceNodeRed"), node, 3)
    window, asked = widget.window, []

    def refuse() -> Any:
        raise MedSightError("no_consent", "Nothing was sent.", "Allow it.")

    window.connection.connect = refuse
    window.connection.when_allowed = lambda *given: asked.append(given)
    window.chat.send("What is bright?")
    place.library.settle(50)
    window.assistant.flush()
    window.assistant.close()
    window.assistant.choose(node)
    place.library.settle(50)
    assert window.assistant.conversation.last.failure.code == "no_consent"
    assert len(asked) == 1


def test_the_view_that_the_mouse_was_in_last_is_asked_about(place: Desktop) -> None:
    crosshair = slicer.vtkMRMLCrosshairNode()
    crosshair.SetSingletonTag("default")
    crosshair = place.scene.AddNode(crosshair)
    widget = place.open()
    assert widget.window.assistant.view == "Red"
    crosshair.SetCursorPositionXYZ([1.0, 2.0, 0.0], place.scene.GetNodeByID("vtkMRMLSliceNodeYellow"))
    assert widget.window.assistant.view == "Yellow"


def test_the_export_is_offered_for_findings_and_closed_with_the_scene(place: Desktop) -> None:
    node, _ = lit()
    widget = place.open()
    button = widget.window.widget.findChild(place.library._qt.qt.QPushButton, "MedSIGHTExportButton")
    assert not button.isEnabled()
    show(place.scene.GetNodeByID("vtkMRMLSliceNodeRed"), node, 3)
    ask(place, "What is bright?")
    assert button.isEnabled()
    button.click()
    place.library.settle(50)
    assert widget.window.dialog is not None
    place.close_scene()
    place.library.settle(50)
    assert widget.window.dialog is None


def test_exit_puts_the_tool_down(place: Desktop) -> None:
    lit()
    widget = place.open()
    widget.window.tools.pointing.begin("point")
    widget.exit()
    assert widget.window.tools.pointing.tool is None


def test_the_scene_is_closed_and_another_one_opened(place: Desktop) -> None:
    node, _ = lit()
    widget = place.open()
    show(place.scene.GetNodeByID("vtkMRMLSliceNodeRed"), node, 3)
    ask(place, "What is bright?")
    widget.window.tools.pointing.begin("box")
    widget.window.chat.send("Once more?")
    place.close_scene()
    place.library.settle(50)
    assert widget.window.assistant.node is None
    assert not widget.window.assistant.conversation.turns
    other, _ = lit("other")
    add_views(place.scene)
    widget.enter()
    assert widget.window.assistant.node is other
    show(place.scene.GetNodeByID("vtkMRMLSliceNodeRed"), other, 3)
    assert ask(place, "What is bright?").state == "done"


def test_the_scene_is_saved_with_what_was_said_last(place: Desktop, tmp_path: Path) -> None:
    node, _ = lit()
    widget = place.open()
    show(place.scene.GetNodeByID("vtkMRMLSliceNodeRed"), node, 3)
    ask(place, "What is bright?")
    widget.window.assistant.rename("1.1", "Läsion")
    place.scene.InvokeEvent(place.scene.StartSaveEvent)
    assert "L\\u00e4sion" in memory.remembered(node)


def test_cleanup_can_be_called_twice_and_leaves_nothing_running(place: Desktop) -> None:
    node, _ = lit()
    widget = place.open()
    show(place.scene.GetNodeByID("vtkMRMLSliceNodeRed"), node, 3)
    ask(place, "What is bright?")
    widget.cleanup()
    widget.cleanup()
    assert widget.window is None
    assert "What is bright?" in memory.remembered(node)
    for call in (widget.enter, widget.exit, widget.onSceneStartClose, widget.onSceneEndClose, widget.restore):
        call()
    place.scene.Clear(False)


def test_reloading_brings_the_conversation_back(place: Desktop) -> None:
    node, _ = lit()
    widget = place.open()
    show(place.scene.GetNodeByID("vtkMRMLSliceNodeRed"), node, 3)
    ask(place, "What is bright?")
    before = sys.modules["MedSIGHTLib.window"]
    widget.onReload()
    assert place.opened is not widget
    place.opened.enter()
    assert sys.modules["MedSIGHTLib.window"] is not before
    assert [turn.asked.text for turn in place.opened.window.assistant.conversation.turns] == ["What is bright?"]
    assert ask(place, "And now?").number == 2


def test_an_old_python_is_told_in_a_sentence(place: Desktop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(place.python, "OLDEST_PYTHON", (99, 0))
    widget = place.open()
    assert widget.window is None
    widget.exit()
    widget.cleanup()
    with pytest.raises(RuntimeError, match="needs a Slicer"):
        place.python.MedSIGHTLogic().ask(None, "What?", None)


def test_a_script_asks_without_a_window(place: Desktop) -> None:
    node, _ = lit()
    show(place.scene.GetNodeByID("vtkMRMLSliceNodeRed"), node, 3)
    turn = place.python.MedSIGHTLogic().ask(node, "What is bright?", cases().Bright())
    assert (turn.state, turn.text) == ("done", "Something bright.")
    assert place.scene.GetNumberOfNodesByClass("vtkMRMLSegmentationNode") == 1
    assert "What is bright?" in memory.remembered(node)
    with pytest.raises(RuntimeError, match="empty"):
        place.python.MedSIGHTLogic().ask(node, " ", cases().Bright())


def test_the_self_test_of_the_module_passes(place: Desktop) -> None:
    test = place.python.MedSIGHTTest()
    test.runTest()


def test_it_fits_into_a_narrow_panel(place: Desktop) -> None:
    widget = place.open()
    assert widget.window.widget.minimumSizeHint().width() <= 400


def test_the_kind_of_scan_is_asked_for_where_nothing_says_it(place: Desktop) -> None:
    widget = place.open()
    question = widget.window._not_said
    assert not question.isVisibleTo(widget.window.widget)
    node, _ = lit()
    widget.selector.setCurrentNode(node)
    assert question.isVisibleTo(widget.window.widget)
    box = widget.window._modality
    box.setCurrentIndex(box.findText("CT"))
    assert not question.isVisibleTo(widget.window.widget)
    assert widget.window.assistant.outline.modality == "CT" and widget.window.assistant.unit == "HU"
    box.setCurrentIndex(0)
    assert question.isVisibleTo(widget.window.widget)


def test_no_two_controls_of_a_page_share_a_key(place: Desktop) -> None:
    from qtpy import QtWidgets

    window = place.open().window
    page = QtWidgets.QTabWidget.widget(window.widget, 0)
    for part in (page, window.settings.widget):
        names = [button.property("text") for button in part.findChildren(QtWidgets.QAbstractButton)]
        keys = [name.lower().split("&")[1][0] for name in names if "&" in (name or "")]
        assert len(keys) == len(set(keys)), sorted(names)
    assert len([name for name in names if name]) > 2

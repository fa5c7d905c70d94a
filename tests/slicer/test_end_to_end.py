"""The whole way: a real DICOM series, Slicer's scene, the module's window, a real server with mini in another process.

The server runs in a Python of its own, which has torch: ``MEDSIGHT_SERVER_PYTHON``, else this one. With
``MEDSIGHT_SCREENSHOTS`` set to a folder, pictures of the window are left there.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
import slicer

from medsight_core.imaging.dicom_seg import read_dicom_seg
from medsight_core.mrml.segments import tag_of
from medsight_core.mrml.sources import reordering, source_volume
from medsight_core.mrml.volumes import volume_of
from tests.slicer import serving
from tests.slicer.desk import add_views
from tests.slicer.series import load, to_ras

pytest.importorskip("qtpy", reason="the module's window needs Qt")

PATIENCE = 240.0
CT = "seg_ct3slice_liver/ct"
MR = "mr_brain_PGBM-003_T1post"


@pytest.fixture(scope="module")
def server_python() -> str:
    """A Python that can serve."""
    python = serving.server_python()
    if python is None:
        pytest.skip("no Python with torch to serve with (set MEDSIGHT_SERVER_PYTHON)")
    return python


@pytest.fixture
def lib() -> Iterator[Any]:
    from tests.slicer.binding import library

    yield from library("plain")


class Person:
    """Someone in front of the module.

    Attributes:
        window: What they see.
        words: Texts of the answer as they came.
    """

    def __init__(self, lib: Any, scene: Any, node: Any, file_of: Callable[[str], str], python: str, folder: Path):
        self.lib, self.scene, self.node = lib, scene, node
        environment = {"PYTHONPATH": str(serving.REPOSITORY), "MEDSIGHT_SERVER_STORE": str(folder / "volumes")}
        qt = lib._qt.qt
        settings = lib.settings.Store(qt.QSettings(str(folder / "settings.ini"), qt.QSettings.IniFormat))

        def local(parent: Any, store: Any) -> Any:
            return lib.localserver.LocalServer(parent, store, python=python, environment=environment)

        self.window = lib.window.Window(scene, file_of=file_of, store=settings, local=local)
        self.assistant = self.window.assistant
        self.words: list[str] = []
        self.assistant.on_change(self._noted)
        self.window.widget.resize(620, 1000)
        self.window.widget.show()

    def wait(self, until: Callable[[], bool]) -> None:
        """Lets Qt's loop run until something holds."""
        end = time.monotonic() + PATIENCE
        while not until():
            assert time.monotonic() < end, self.window.local.log
            self.lib.settle(5)
        self.lib.settle(50)

    def serve(self) -> None:
        """Starts the model on this computer."""
        self.window.local.start()
        self.wait(lambda: bool(self.window.local.url) or self.window.local.state == "failed")
        assert self.window.local.state == "running", self.window.local.log

    def ask(self, text: str) -> Any:
        """Types a question, presses Enter, and reads until the end."""
        self.words.clear()
        qt = self.lib._qt.qt
        self.window.chat.edit.setPlainText(text)
        enter = qt.QKeyEvent(qt.QEvent.KeyPress, qt.Qt.Key_Return, qt.Qt.NoModifier)
        qt.QApplication.sendEvent(self.window.chat.edit, enter)
        return self.end()

    def end(self) -> Any:
        self.wait(lambda: not self.assistant.busy)
        last = self.assistant.conversation.last
        assert last.state == "done", last.note
        return last

    def point(self, ras: Any, *, positive: bool = True) -> Any:
        """Clicks in a slice view with the tool in hand."""
        self.window.tools.pointing.begin("point", positive)
        selection = self.scene.GetNodeByID("vtkMRMLSelectionNodeSingleton")
        self.scene.GetNodeByID(selection.GetActivePlaceNodeID()).AddControlPointWorld(list(ras))
        self.lib.settle(50)
        return self.end()

    def mask(self, key: str) -> Any:
        segments = self.assistant.segments
        return segments.mask(segments.ids[key])

    def picture(self, name: str) -> None:
        folder = os.environ.get("MEDSIGHT_SCREENSHOTS")
        if folder:
            self.lib.settle(200)
            assert self.window.widget.grab().save(str(Path(folder) / f"{name}.png"))

    def _noted(self) -> None:
        last = self.assistant.conversation.last
        if last is not None and (not self.words or self.words[-1] != last.text):
            self.words.append(last.text)


def same_as_file(path: Path, person: Person, node: Any, file_of: Callable[[str], str]) -> None:
    """A DICOM-SEG holds the masks of the scene, image by image."""
    scan = source_volume(node, file_of)
    numbers = {
        str(pydicom.dcmread(one, stop_before_pixels=True).SOPInstanceUID): k for k, one in enumerate(scan.source.paths)
    }
    stored: dict[int, Any] = {}
    for mask in read_dicom_seg(path):
        whole = stored.setdefault(mask.segment_number, np.zeros(scan.array.shape, dtype=bool))
        whole[numbers[mask.sop_instance_uid]] = mask.mask
    back = reordering(scan.require_frame(), volume_of(node).require_frame())
    segments = person.assistant.segments
    shown = [segments.mask(one) for one in segments.ids.values()]
    assert len(stored) == len(shown)
    for written, mask in zip((stored[number] for number in sorted(stored)), shown, strict=True):
        assert np.array_equal(back(written), mask)


@pytest.mark.timeout(600)
@pytest.mark.parametrize(("series", "k", "structure"), [(CT, 1, "liver"), (MR, 8, "lower-grade glioma")])
def test_from_a_question_to_a_dicom_segmentation(
    scene: Any, lib: Any, shared_data: Path, server_python: str, tmp_path: Path, series: str, k: int, structure: str
) -> None:
    node, file_of = load(scene, shared_data / "dicom" / series)
    markups = slicer.vtkSlicerMarkupsLogic()
    markups.SetMRMLScene(scene)
    views = add_views(scene)
    frame = volume_of(node).require_frame()
    person = Person(lib, scene, node, file_of, server_python, tmp_path)
    try:
        person.assistant.choose(node)
        person.serve()

        views["Red"].JumpSliceByCentering(*to_ras(frame, k, frame.shape[1] / 2, frame.shape[2] / 2))
        turn = person.ask(f"Segment the {structure} in this image.")
        assert turn.asked.slice_index == k
        assert turn.text and turn.findings, turn
        assert len(person.words) > 2  # it streamed
        found = turn.findings[0]
        mask = person.mask(found.key)
        assert mask[k].any() and mask.sum() == mask[k].sum()
        segment = person.assistant.segments.node.GetSegmentation().GetSegment(person.assistant.segments.ids[found.key])
        assert tag_of(segment, "MedSIGHT.Code") == found.region.code
        assert tag_of(segment, "MedSIGHT.Digest")
        person.picture(f"{structure}_answer")

        for view in views.values():
            view.JumpSliceByCentering(900, 900, 900)
        person.window.chat.browser.anchorClicked.emit(lib._qt.qt.QUrl(f"finding:{found.key}"))
        centre = person.assistant.segments.centre(person.assistant.segments.ids[found.key])
        for view in views.values():
            matrix = view.GetSliceToRAS()
            assert np.allclose([matrix.GetElement(n, 3) for n in range(3)], centre, atol=1e-3)

        before = dict(person.assistant.segments.ids)
        turn = person.point(centre)
        (pointed,) = turn.findings
        assert person.mask(pointed.key)[k].any()
        person.wait(lambda: person.assistant.measured(pointed.key) is not None)
        assert len(list(person.window.tools.pointing.kept())) == 1
        person.picture(f"{structure}_pointed")
        person.assistant.undo()
        assert person.assistant.segments.ids == before
        assert np.array_equal(person.mask(found.key), mask)
        person.assistant.redo()

        masks = {one.key: person.mask(one.key) for one in person.assistant.conversation.findings}
        path = tmp_path / "segmentation.dcm"
        assert not any(note.stops for note in person.assistant.check_export("dicom"))
        person.assistant.export("dicom", path)
        same_as_file(path, person, node, file_of)
        if shutil.which("dciodvfy"):
            said = subprocess.run(["dciodvfy", "-new", str(path)], capture_output=True, text=True, check=False).stderr
            assert "Error" not in said, said

        bundle = str(tmp_path / "scene.mrb")
        person.assistant.flush()
        assert scene.WriteToMRB(bundle, None)
        person.assistant.close()
        scene.Clear(False)
        assert scene.ReadFromMRB(bundle, True)
        again = scene.GetFirstNodeByClass("vtkMRMLScalarVolumeNode")
        person.assistant.choose(again)
        assert person.assistant.notice == ""
        assert {one.key for one in person.assistant.conversation.findings} == set(masks)
        for key, one in masks.items():
            assert np.array_equal(person.mask(key), one)
        assert len(list(person.window.tools.pointing.kept())) == 1
        same_as_file(path, person, again, file_of)
    finally:
        person.window.close()
        lib._qt.dispose(person.window.widget)
        lib.settle(100)

from __future__ import annotations

import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
import slicer

pytest.importorskip("qtpy", reason="the panel's tests need PySide6")

from medsight_core.errors import MedSightError
from medsight_core.imaging.dicom_seg import read_dicom_seg
from medsight_core.mrml.export import prepare
from medsight_core.mrml.slicer_exporter import slicer_exporter
from tests.client.archive import FakeArchive, basic, fake_archive
from tests.imaging.synthetic import write_series
from tests.slicer.bodies import add_volume, blob
from tests.slicer.test_export import found_in, load

PATIENCE_MS = 20_000


class Host:
    """What the dialog needs of the assistant."""

    model = ("medsight-mini", "0123456789abcdef")

    def __init__(self, node: Any, segments: Any, file_of: Callable[[str], str]) -> None:
        self.node, self.segments, self.file_of = node, segments, file_of


class Bench:
    """A dialog, and whoever sits before it."""

    def __init__(self, lib: Any, folder: Path) -> None:
        self.lib, self.qt, self.folder = lib, lib._qt.qt, folder
        self.settings = lib.settings.Store(self.qt.QSettings(str(folder / "settings.ini"), self.qt.QSettings.IniFormat))
        self.parent = self.qt.QWidget()
        self.chooses = ""
        self.dialogs: list[Any] = []

    def open(self, host: Any) -> Any:
        dialog = self.lib.exportdialog.ExportDialog(self.parent, host, self.settings, choose=lambda *a: self.chooses)
        dialog.open()
        self.dialogs.append(dialog)
        self.settle(dialog)
        return dialog

    def settle(self, dialog: Any, until: Callable[[], bool] | None = None) -> None:
        for _ in range(PATIENCE_MS // 10):
            self.lib.settle(10)
            if until() if until is not None else not dialog.busy:
                return
        raise AssertionError("it goes on and on")

    def text(self, widget: Any) -> str:
        return str(self.lib._qt.val(widget.text))

    def set_format(self, dialog: Any, name: str) -> None:
        dialog.format.setCurrentIndex(list(self.lib.exportdialog.FORMATS).index(name))
        self.settle(dialog)

    def close(self) -> None:
        for dialog in self.dialogs:
            if self.lib._qt.alive(dialog.widget):
                dialog.widget.reject()
        self.lib.settle(20)
        self.lib._qt.dispose(self.parent)
        self.lib.settle(20)


@pytest.fixture
def bench(lib: Any, tmp_path: Path) -> Iterator[Bench]:
    made = Bench(lib, tmp_path)
    yield made
    made.close()


@pytest.fixture
def ct(scene: Any, tmp_path: Path) -> Host:
    """A series with two findings."""
    node, file_of = load(scene, write_series(tmp_path / "series"))
    return Host(node, found_in(node), file_of)


@pytest.fixture
def archive() -> Iterator[FakeArchive]:
    with fake_archive() as made:
        yield made


def same(stored: Any, host: Host) -> bool:
    """Whether a segmentation holds as many voxels of each finding as the scene."""
    found: dict[str, int] = {}
    for one in read_dicom_seg(stored):
        found[one.label] = found.get(one.label, 0) + int(one.mask.sum())
    wanted = [int(host.segments.mask(one).sum()) for one in host.segments.ids.values()]
    return list(found.values()) == wanted


def test_a_dicom_segmentation_is_saved(bench: Bench, ct: Host) -> None:
    dialog = bench.open(ct)
    assert dialog.chosen == "dicom"
    path = bench.folder / "sub folder" / "out.dcm"
    dialog.path.setText(str(path))
    assert dialog.save_button.isEnabled() and not dialog.notes
    dialog.save_button.click()
    assert dialog.busy and not dialog.save_button.isEnabled()
    bench.settle(dialog)
    assert "Saved" in bench.text(dialog.state)
    assert same(path, ct)
    again = bench.open(ct)
    assert str(path.parent) in bench.text(again.path), "the folder is remembered"


@pytest.mark.parametrize("name", ["seg.nrrd", "nii.gz"])
def test_other_formats_are_saved(bench: Bench, ct: Host, name: str) -> None:
    dialog = bench.open(ct)
    bench.set_format(dialog, name)
    ending = bench.lib.exportdialog.FORMATS[name][1]
    assert bench.text(dialog.path).endswith(ending), "the ending follows the format"
    bench.chooses = str(bench.folder / "out")
    dialog._browse.click()
    assert bench.text(dialog.path) == str(bench.folder / f"out{ending}")
    assert not dialog.send_button.isVisible() and not dialog.archive.widget.isVisible()
    dialog.save()
    bench.settle(dialog)
    assert (bench.folder / f"out{ending}").stat().st_size > 0
    assert "is there already" in bench.text(dialog.losing)
    assert bench.open(ct).chosen == name


def test_what_stops_and_what_is_lost_are_told_apart(bench: Bench, scene: Any) -> None:
    node = add_volume("axial")
    segments = found_in(node, labels=("liver", "liver", "blorb <b>"))
    host = Host(node, segments, lambda uid: "")
    slicer.util.updateSegmentBinaryLabelmapFromArray(
        np.zeros(segments.frame.shape, dtype=np.uint8), segments.node, list(segments.ids.values())[1], node
    )
    dialog = bench.open(host)
    stops = bench.text(dialog.stopping)
    assert "not loaded from the DICOM database" in stops and "import the scan" in stops, "and what to do"
    assert not dialog.save_button.isEnabled() and not dialog.send_button.isEnabled()
    dialog.path.setText(str(bench.folder / "out.seg.nrrd"))
    bench.set_format(dialog, "seg.nrrd")
    lost = bench.text(dialog.losing)
    assert not dialog.stopping.isVisible()
    assert "empty" in lost and "Several findings" in lost
    assert dialog.save_button.isEnabled()
    assert not [path for path in bench.folder.iterdir() if path.suffix == ".nrrd"], "nothing is written yet"
    bench.set_format(dialog, "dicom")
    segments.forget()
    dialog.check()
    assert "nothing to export" in bench.text(dialog.stopping)


def test_images_that_do_not_fit_are_found_beside_the_window(bench: Bench, scene: Any, tmp_path: Path) -> None:
    node, file_of = load(scene, write_series(tmp_path / "series"))
    node.SetSpacing(*(1.1 * one for one in node.GetSpacing()))
    dialog = bench.open(Host(node, found_in(node), file_of))
    assert "not those of the DICOM files" in bench.text(dialog.stopping)
    assert not dialog.save_button.isEnabled()


def test_images_that_were_damaged_since_are_said_so(bench: Bench, ct: Host) -> None:
    uid = ct.node.GetAttribute("DICOM.instanceUIDs").split()[0]
    Path(ct.file_of(uid)).write_bytes(b"")
    dialog = bench.open(ct)
    assert "cannot be read any more" in bench.text(dialog.stopping)
    assert not dialog.save_button.isEnabled()


def test_a_scan_without_findings_and_no_scan_at_all(bench: Bench, scene: Any) -> None:
    for host in (Host(None, None, lambda uid: ""), Host(add_volume("axial"), None, lambda uid: "")):
        dialog = bench.open(host)
        assert "nothing to export" in bench.text(dialog.stopping)
        assert not dialog.save_button.isEnabled()
        dialog.save()
        assert "nothing to export" in bench.text(dialog.state)


def test_a_folder_that_cannot_be_written_to_is_said_and_the_dialog_works_on(bench: Bench, ct: Host) -> None:
    dialog = bench.open(ct)
    (bench.folder / "taken").write_text("")
    dialog.path.setText(str(bench.folder / "taken" / "out.dcm"))
    dialog.save()
    bench.settle(dialog)
    assert "could not be written" in bench.text(dialog.state)
    dialog.path.setText(str(bench.folder / "out.dcm"))
    dialog.save()
    bench.settle(dialog)
    assert same(bench.folder / "out.dcm", ct)


def test_nothing_is_sent_before_send_is_pressed(bench: Bench, ct: Host, archive: FakeArchive) -> None:
    archive.wants = basic("me", "secret")
    dialog = bench.open(ct)
    assert not dialog.send_button.isEnabled(), "no archive is named"
    dialog.archive.url.setText(archive.url)
    dialog.archive.user.setText("me")
    dialog.archive.secret.setText("secret")
    bench.settle(dialog)
    assert "name and number" in bench.text(dialog.archive.note), "what it carries is said"
    assert archive.paths == []
    assert dialog.send_button.isEnabled()
    assert archive.url.split("/")[2] in bench.text(dialog.send_button)
    dialog.send_button.click()
    bench.settle(dialog)
    assert "has stored it" in bench.text(dialog.state)
    (stored,) = archive.stored
    assert stored.Modality == "SEG"
    stored.save_as(bench.folder / "back.dcm")
    assert same(bench.folder / "back.dcm", ct)
    assert "secret" not in (bench.folder / "settings.ini").read_text()
    again = bench.open(ct)
    assert bench.text(again.archive.url) == archive.url
    assert bench.text(again.archive.secret) == ""


def test_a_refusal_is_said_in_one_sentence(bench: Bench, ct: Host, archive: FakeArchive) -> None:
    archive.answer = (409, "application/dicom+json", b'{"00081198":{"Value":[{"00081197":{"Value":[272]}}]}}')
    dialog = bench.open(ct)
    dialog.archive.url.setText(archive.url)
    dialog.send()
    bench.settle(dialog)
    assert "the archive failed while it stored it" in bench.text(dialog.state)
    archive.answer = None
    dialog.send()
    bench.settle(dialog)
    assert "has stored it" in bench.text(dialog.state)


def test_http_to_another_computer_needs_a_persons_word(bench: Bench, ct: Host) -> None:
    dialog = bench.open(ct)
    dialog.archive.url.setText("http://pacs.example/dicom-web")
    assert "unencrypted" in bench.text(dialog.archive.note)
    assert dialog.archive.insecure.isVisible() and not dialog.send_button.isEnabled()
    dialog.archive.insecure.setChecked(True)
    assert dialog.send_button.isEnabled()
    dialog.archive.url.setText("not an address")
    assert not dialog.send_button.isEnabled()


def test_closing_while_it_is_sent_cuts_the_line(bench: Bench, ct: Host, archive: FakeArchive) -> None:
    import threading

    archive.slowly = threading.Event()
    dialog = bench.open(ct)
    dialog.archive.url.setText(archive.url)
    dialog.send()
    bench.settle(dialog, lambda: bool(archive.paths))
    dialog.widget.reject()
    bench.settle(dialog, lambda: not any(thread.name == "medsight-worker" for thread in threading.enumerate()))
    archive.slowly.set()
    assert not bench.lib._qt.alive(dialog.widget)
    assert not archive.stored


def test_findings_are_exported_as_they_are_when_save_is_pressed(bench: Bench, ct: Host) -> None:
    dialog = bench.open(ct)
    one = next(iter(ct.segments.ids.values()))
    mask = blob(ct.segments.frame.shape, 9)
    slicer.util.updateSegmentBinaryLabelmapFromArray(mask.astype(np.uint8), ct.segments.node, one, ct.node)
    dialog.path.setText(str(bench.folder / "out.dcm"))
    dialog.save()
    bench.settle(dialog)
    assert same(bench.folder / "out.dcm", ct)


class Exporter:
    """Stands where Slicer's own exporter does, and notes what it is asked."""

    calls: list[tuple[Any, ...]] = []  # noqa: RUF012
    fails: Exception | None = None
    cleaned = 0

    def __init__(self, node: Any) -> None:
        assert node.IsA("vtkMRMLSegmentationNode") and node.GetDisplayNode() is not None
        role = node.GetReferenceImageGeometryReferenceRole()
        assert node.GetNodeReference(role) is not None, "Slicer's exporter asks for the volume by this role"
        self.node = node

    def export(
        self, outputDirectory: str, segFileName: str, metadata: Any, segmentIDs: Any = None, skipEmpty: bool = False
    ) -> bool:
        Exporter.calls.append((self.node, metadata, segmentIDs, skipEmpty))
        if Exporter.fails is not None:
            raise Exporter.fails
        (Path(outputDirectory) / segFileName).write_bytes(b"\0" * 128 + b"DICM" + b"from Slicer")
        return True

    def cleanup(self) -> None:
        Exporter.cleaned += 1


@pytest.fixture
def own(monkeypatch: pytest.MonkeyPatch, scene: Any) -> type[Exporter]:
    """As Slicer registers it: a class in a dictionary, the exporter beside it in the same module."""
    module = types.ModuleType("DICOMSegmentationPlugin")
    plugin = type("DICOMSegmentationPluginClass", (), {"__module__": module.__name__})
    module.DICOMSegmentationExporter = Exporter  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(slicer.modules, "dicomPlugins", {"DICOMSegmentationPlugin": plugin}, raising=False)
    Exporter.calls, Exporter.fails, Exporter.cleaned = [], None, 0
    return Exporter


def test_without_slicers_exporter_we_write(scene: Any) -> None:
    assert slicer_exporter() is None


def test_slicers_own_exporter_writes_where_there_is_one(bench: Bench, own: Any, ct: Host) -> None:
    dialog = bench.open(ct)
    assert dialog.own.isVisible() and dialog.own.isChecked()
    assert "neither the scores" in bench.text(dialog.losing)
    dialog.path.setText(str(bench.folder / "out.dcm"))
    dialog.save()
    bench.settle(dialog)
    assert (bench.folder / "out.dcm").read_bytes().endswith(b"from Slicer")
    ((node, metadata, ids, skip),) = own.calls
    assert node is ct.segments.node and ids == list(ct.segments.ids.values()) and skip
    assert set(metadata) == {"SeriesDescription", "ContentCreatorName"}
    assert own.cleaned == 1
    own.fails = RuntimeError("itkimage2segimage failed:\nno luck")
    dialog.save()
    bench.settle(dialog)
    assert "no luck" in bench.text(dialog.state) and "Let MedSIGHT write it" in bench.text(dialog.state)
    assert own.cleaned == 2
    dialog.own.setChecked(False)
    bench.settle(dialog)
    dialog.save()
    bench.settle(dialog)
    assert same(bench.folder / "out.dcm", ct)


def test_what_slicers_exporter_needs_is_there(own: Any, ct: Host) -> None:
    """Its preconditions, from its source: algorithm type and name, terminology, the volume with its instances."""
    from medsight_core.mrml.segments import tag_of

    made = prepare(ct.segments, ct.node, "dicom", ct.file_of, own_exporter=True)
    assert made.in_main_thread
    for one in made.findings:
        segment = ct.segments.node.GetSegmentation().GetSegment(one.segment_id)
        assert tag_of(segment, "DICOM.SegmentAlgorithmType") == "AUTOMATIC"
        assert tag_of(segment, "DICOM.SegmentAlgorithmName")
        assert tag_of(segment, segment.GetTerminologyEntryTagName()).count("~") >= 6
    reference = ct.segments.node.GetNodeReference(ct.segments.node.GetReferenceImageGeometryReferenceRole())
    assert reference is ct.node and all(ct.file_of(uid) for uid in reference.GetAttribute("DICOM.instanceUIDs").split())
    own.fails = ValueError("")
    with pytest.raises(MedSightError, match="ValueError"):
        made.write(Path("never.dcm"), model="m", digest="d")
    assert not Path("never.dcm").exists()


def test_scores_and_digest_are_in_the_file_that_we_write(ct: Host, tmp_path: Path) -> None:
    path = prepare(ct.segments, ct.node, "dicom", ct.file_of).write(
        tmp_path / "out.dcm", model="medsight-mini", digest="0123456789abcdef"
    )
    text = str(pydicom.dcmread(path))
    assert "0123456789abcdef" in text and "score 0.90" in text

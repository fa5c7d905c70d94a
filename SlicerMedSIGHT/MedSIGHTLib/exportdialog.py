"""Findings leave the scene: as a file, or to a DICOM archive; what would be lost is said before anything is written."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

from medsight_core.client.dicomweb import Stored, store
from medsight_core.errors import MedSightError
from medsight_core.events import Failed, Progress
from medsight_core.mrml.export import Export, Format, Note, prepare
from medsight_core.mrml.slicer_exporter import slicer_exporter

from ._qt import alive, clean, dispose, path_of, qt, val, written
from .archivebox import ArchiveBox
from .assistant import Assistant
from .connection import worded
from .labels import bullets, inked, text_of, window_theme, words_label
from .settings import Store
from .words import _
from .worker import Poll, Worker

FORMATS: Final[dict[Format, tuple[str, str]]] = {
    "dicom": (_("DICOM Segmentation"), ".dcm"),
    "seg.nrrd": (_("Slicer segmentation"), ".seg.nrrd"),
    "nii.gz": (_("NIfTI label map"), ".nii.gz"),
}
"""Names and endings."""

NOTHING: Final = Note(
    stops=True, sentence=_("There is nothing to export."), remedy=_("Choose a scan and ask about it.")
)
_KEPT: Final = "export"
_FORBIDDEN: Final = re.compile(r'[\x00-\x1f<>:"/\\|?*]+')
_STEPS: Final = 1000


def ask_path(parent: Any, path: str, ending: str) -> str:
    """Asks where to save; "" where nowhere."""
    return path_of(qt.QFileDialog.getSaveFileName(parent, _("Save the findings"), path, f"*{ending}"))


class ExportDialog:
    """The dialog.

    Args:
        parent: A widget that outlives it; its timer is a child of this.
        assistant: Whose findings are exported.
        settings: Where the last choices are kept.
        choose: Asks a person for a file.

    Example:
        >>> ExportDialog(self.widget, self.assistant, store).open()
    """

    def __init__(
        self,
        parent: Any,
        assistant: Assistant,
        settings: Store,
        *,
        choose: Callable[[Any, str, str], str] = ask_path,
    ) -> None:
        self._assistant = assistant
        self._settings = settings
        self._choose = choose
        self._export: Export | None = None
        self._notes: tuple[Note, ...] = ()
        self._worker: Worker | None = None
        self._then: Callable[[Any], None] | None = None
        self._progress: Progress | None = None
        self._doing = ""
        self._said, self._failed = "", False
        self.widget = qt.QDialog(parent)
        self.widget.setObjectName("MedSIGHTExport")
        self.widget.setWindowTitle(_("Export findings"))
        self._poll = Poll(parent, self._pump)
        self._make()
        self._arrange()
        self._restore()
        self.format.currentIndexChanged.connect(lambda *a: self._changed())
        self.own.toggled.connect(lambda *a: self.check())
        self.path.textChanged.connect(lambda *a: self._show())
        self.archive.on_change(self._show)
        self.widget.finished.connect(lambda *a: self.close())

    def open(self) -> None:
        """Shows it, and looks for what would be lost."""
        self.widget.open()
        self._changed()

    def close(self) -> None:
        """Ends what is sent, and goes; a file that is being written is still completed."""
        self._poll.close()
        self._worker, self._export = None, None
        dispose(self.widget)

    @property
    def chosen(self) -> Format:
        """The format."""
        found: Format = self.format.itemData(val(self.format.currentIndex))
        return found

    @property
    def notes(self) -> tuple[Note, ...]:
        """What is said now."""
        return self._notes

    @property
    def busy(self) -> bool:
        """Whether something is looked for, written or sent."""
        return self._worker is not None

    def check(self) -> None:
        """Looks for what would fail or be lost: in the scene now, in the images of the scan beside the window."""
        self._said, self._failed = "", False
        self._export = self._prepared()
        if self._export is None:
            self._notes = (NOTHING,)
            self._show()
            return
        self._notes = self._export.found
        if self._export.paths:
            self._run(
                _("Looking at the images of the scan …"), lambda _cancel, look=self._export.look: look(), self._told
            )
        self._show()

    def save(self) -> None:
        """Writes the file."""
        if self.busy:
            return
        path = Path(written(self.path).strip()).expanduser()
        self._keep(path)
        self._write(_("Writing …"), path, lambda written, _cancel: written, self._saved)

    def send(self) -> None:
        """Writes a DICOM Segmentation and stores it in the archive."""
        if self.busy:
            return
        try:
            archive = self.archive.archive()
        except MedSightError as error:
            self._fail(error)
            return
        self._keep(None)
        folder = TemporaryDirectory(prefix="medsight-")

        def stored(path: Path, cancel: threading.Event) -> Stored:
            return store(archive, [path], tell=self._tell, cancel=cancel)

        self._write(_("Sending …"), Path(folder.name) / "segmentation.dcm", stored, self._sent, folder.cleanup)

    def _write(
        self,
        doing: str,
        path: Path,
        go_on: Callable[[Path, threading.Event], Any],
        then: Callable[[Any], None],
        over: Callable[[], Any] = lambda: None,
    ) -> None:
        """Writes what is in the scene now, here or beside the window, and goes on with it there.

        Args:
            doing: What is said meanwhile.
            path: Of the file.
            go_on: Is given the file, beside the window.
            then: Is given the result.
            over: Tidies up, however it ends.
        """
        export = self._prepared()
        model, digest = self._assistant.model
        self._said, self._failed = "", False
        written: Path | None = None
        try:
            if export is None:
                raise MedSightError("nothing_to_export", NOTHING.sentence, NOTHING.remedy)
            if export.in_main_thread:
                written = export.write(path, model=model, digest=digest)
        except MedSightError as error:
            over()
            self._fail(error)
            return

        def work(cancel: threading.Event) -> Any:
            try:
                return go_on(written or export.write(path, model=model, digest=digest), cancel)
            finally:
                over()

        self._run(doing, work, then)

    def _prepared(self) -> Export | None:
        segments, node = self._assistant.segments, self._assistant.node
        if segments is None or node is None or node.GetScene() is None or segments.node is None:
            return None
        return prepare(
            segments,
            node,
            self.chosen,
            self._assistant.file_of,
            own_exporter=bool(self.own.isChecked()) and self._has_own,
            before=self._export,
        )

    def _run(self, doing: str, work: Callable[[threading.Event], Any], then: Callable[[Any], None]) -> None:
        """Does something beside the window; what was done before for another choice is dropped."""
        if self._worker is not None:
            self._worker.cancel()
        self._doing, self._progress, self._then = doing, None, then

        def events(cancel: threading.Event) -> Iterator[Any]:
            yield work(cancel)

        self._worker = Worker(events)
        self._poll.watch(self._worker)
        self._show()

    def _pump(self) -> None:
        if self._worker is None or not alive(self.widget):
            return
        events = self._worker.drain()
        if events:
            self._worker, then = None, self._then
            if isinstance(events[0], Failed):
                self._fail(MedSightError(events[0].code, events[0].sentence, events[0].remedy))
            elif then is not None:
                then(events[0])
        if events or self._progress is not None:
            self._show()

    def _told(self, notes: tuple[Note, ...]) -> None:
        self._notes = notes

    def _tell(self, progress: Progress) -> None:
        self._progress = progress  # from the worker's thread; shown at the next look

    def _saved(self, path: Path) -> None:
        self._said = _("Saved {path}").format(path=path)

    def _sent(self, stored: Stored) -> None:
        self._said = _("{archive} has stored it.").format(archive=self.archive.name) + f" {stored.warning}".rstrip()

    def _fail(self, error: MedSightError) -> None:
        self._said, self._failed = str(worded(error)), True
        self._show()

    def _changed(self) -> None:
        """Another format was chosen."""
        ending = FORMATS[self.chosen][1]
        path = written(self.path)
        known = next((end for name, end in FORMATS.values() if path.lower().endswith(end)), None)
        if known is not None:
            self.path.setText(clean(path[: -len(known)] + ending))
        self.check()

    def _show(self) -> None:
        if not alive(self.widget):
            return
        theme = window_theme(self.widget)
        dicom = self.chosen == "dicom"
        stops = any(note.stops for note in self._notes)
        path = written(self.path).strip()
        lost: list[Note] = [note for note in self._notes if not note.stops]
        if path and Path(path).expanduser().is_file():
            there = _('"{file}" is there already, and will be replaced.').format(file=Path(path).name)
            lost.append(Note(stops=False, sentence=there))
        self.stopping.setText(
            _listed(_("Nothing can be exported yet"), [n for n in self._notes if n.stops], theme.warning)
        )
        self.stopping.setVisible(stops)
        self.losing.setText(_listed(_("What the export will not contain, or will change"), lost, theme.text))
        self.losing.setVisible(bool(lost) and not stops)
        fine = not stops and not lost and not self.busy
        state = self._doing if self.busy else _("Nothing will be lost.") if fine and not self._said else self._said
        self.state.setText(inked(state, theme.warning if self._failed and not self.busy else theme.quiet))
        self.own.setVisible(dicom and self._has_own)
        self.archive.widget.setVisible(dicom)
        ready = not stops and not self.busy
        self.save_button.setEnabled(ready and bool(path))
        self.send_button.setVisible(dicom)
        self.send_button.setEnabled(ready and dicom and self.archive.ready)
        self.send_button.setText(
            clean(_("Send to {archive}").format(archive=self.archive.name) if self.archive.ready else _("Send"))
        )
        for widget in (self.format, self.path, self._browse, self.own, self.archive.widget):
            widget.setEnabled(not self.busy or self._then == self._told)
        self.bar.setVisible(self.busy)
        done = self._progress
        self.bar.setRange(0, _STEPS if done is not None and done.total else 0)
        if done is not None and done.total:
            self.bar.setValue(int(_STEPS * done.done / done.total))

    def _make(self) -> None:
        self.format = qt.QComboBox(self.widget)
        for key, (name, ending) in FORMATS.items():
            self.format.addItem(f"{name} (*{ending})", key)
        self.path = qt.QLineEdit(self.widget)
        self.path.setPlaceholderText(_("Where to save it"))
        self._browse = qt.QPushButton("…", self.widget)
        self._browse.setToolTip(_("Choose a file"))
        self._browse.setAccessibleName(_("Choose where to save"))
        self._browse.setMaximumWidth(36)
        self._browse.setAutoDefault(False)
        self._browse.clicked.connect(lambda *a: self._ask_path())
        self._has_own = slicer_exporter() is not None
        self.own = qt.QCheckBox(_("Let Slicer's own exporter write it"), self.widget)
        self.own.setChecked(self._has_own)
        self.stopping = words_label(self.widget, "MedSIGHTStops")
        self.losing = words_label(self.widget, "MedSIGHTLost")
        self.state = words_label(self.widget, "MedSIGHTState")
        self.archive = ArchiveBox(self.widget, self._settings)
        self.bar = qt.QProgressBar(self.widget)
        self.bar.setTextVisible(False)
        self.save_button = qt.QPushButton(_("Save"), self.widget)
        self.send_button = qt.QPushButton(_("Send"), self.widget)
        self.close_button = qt.QPushButton(_("Close"), self.widget)
        for button, act in (
            (self.save_button, lambda *a: self.save()),
            (self.send_button, lambda *a: self.send()),
            (self.close_button, lambda *a: self.widget.reject()),
        ):
            button.setAutoDefault(False)
            button.clicked.connect(act)

    def _arrange(self) -> None:
        form = qt.QGridLayout()
        form.setColumnStretch(1, 1)
        for row, (name, field) in enumerate(((_("Format"), self.format), (_("File"), self.path))):
            label = qt.QLabel(name, self.widget)
            label.setBuddy(field)
            form.addWidget(label, row, 0)
            form.addWidget(field, row, 1)
        form.addWidget(self._browse, 1, 2)
        form.addWidget(self.own, 2, 1, 1, 2)
        buttons = qt.QHBoxLayout()
        buttons.addWidget(self.send_button)
        buttons.addStretch(1)
        buttons.addWidget(self.save_button)
        buttons.addWidget(self.close_button)
        layout = qt.QVBoxLayout(self.widget)
        layout.addLayout(form)
        for part in (self.stopping, self.losing, self.archive.widget, self.state, self.bar):
            layout.addWidget(part)
        layout.addStretch(1)
        layout.addLayout(buttons)
        self.widget.setMinimumWidth(520)

    def _restore(self) -> None:
        """The format and the folder of the last time, and a name from that of the scan."""
        kept = self._settings.get(_KEPT)
        kept = kept if isinstance(kept, dict) else {}
        format_, folder = kept.get("format"), kept.get("folder")
        self.format.setCurrentIndex(list(FORMATS).index(format_) if format_ in FORMATS else 0)
        node = self._assistant.node
        name = _FORBIDDEN.sub("_", node.GetName() if node is not None else "").strip(" .")[:80] or "scan"
        where = Path(folder) if isinstance(folder, str) and folder and Path(folder).is_dir() else Path.home()
        self.path.setText(clean(where / f"{name} MedSIGHT{FORMATS[self.chosen][1]}"))

    def _keep(self, path: Path | None) -> None:
        kept = self._settings.get(_KEPT)
        folder = kept.get("folder", "") if isinstance(kept, dict) else ""
        self._settings.put(_KEPT, {"format": self.chosen, "folder": str(path.parent) if path is not None else folder})

    def _ask_path(self) -> None:
        ending = FORMATS[self.chosen][1]
        chosen = self._choose(self.widget, written(self.path), ending)
        if chosen:
            self.path.setText(clean(chosen if chosen.lower().endswith(ending) else chosen + ending))


def _listed(title: str, notes: Sequence[Note], colour: str) -> str:
    """Notes under a title, each with its remedy."""
    lines = [f"{text_of(note.sentence)} <i>{text_of(note.remedy)}</i>".strip() for note in notes]
    return f'<p style="margin:4px 0">{inked(title, colour)}</p>{bullets(lines)}'

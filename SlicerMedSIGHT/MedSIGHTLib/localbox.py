"""The part of the settings that is about the model on this computer: install, start, stop, and what it says."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from ._qt import alive, clean, path_of, qt, written
from .environment import SIZES, folder_of, free_gb
from .labels import inked, window_theme, words_label
from .localserver import LINES, LocalServer
from .settings import Store
from .words import _

_TICK_MS: Final = 100
"""Between two looks at a log that grows."""

LABELS: Final = {
    "missing": _("Install and start"),
    "installing": _("Stop installing"),
    "stopped": _("Start local backend"),
    "starting": _("Stop"),
    "running": _("Stop"),
    "stopping": _("Stopping …"),
    "failed": _("Start again"),
}
"""What the one button says."""


def choose_folder(parent: Any, title: str, folder: str) -> str:
    """Asks for a folder; "" where none was chosen."""
    return path_of(qt.QFileDialog.getExistingDirectory(parent, title, folder))


class LocalBox:
    """A widget for `LocalServer`.

    Args:
        store: The settings.
        local: The model on this computer.
        choose: Asks a person for a folder.

    Attributes:
        widget: To be put into a window.
    """

    def __init__(
        self, store: Store, local: LocalServer, *, choose: Callable[[Any, str, str], str] = choose_folder
    ) -> None:
        self._store = store
        self._local = local
        self._choose = choose
        self._shown = 0
        self.widget = qt.QWidget()
        self.widget.setObjectName("MedSIGHTLocal")
        self.status = words_label(self.widget, "MedSIGHTLocalStatus")
        self.size = words_label(self.widget, "MedSIGHTLocalSize")
        self.button = qt.QPushButton(self.widget)
        self.button.setObjectName("MedSIGHTLocalButton")
        self.button.clicked.connect(lambda *a: self._pressed())
        self._again = qt.QPushButton(_("Install again"), self.widget)
        self._again.setToolTip(_("Looks what is missing of the installation, and adds it"))
        self._again.clicked.connect(lambda *a: self._local.install())
        self.folder = qt.QLineEdit(self.widget)
        self.folder.setToolTip(_("Everything goes into this folder; throw it away and all of it is gone"))
        self.folder.editingFinished.connect(lambda *a: self._keep())
        self._browse = qt.QPushButton("…", self.widget)
        self._browse.setToolTip(_("Choose a folder"))
        self._browse.setAccessibleName(_("Choose a folder"))
        self._browse.setMaximumWidth(36)
        self._browse.clicked.connect(lambda *a: self._choose_folder())
        self.gpu = qt.QCheckBox(_("With support for NVIDIA's GPUs"), self.widget)
        self.gpu.toggled.connect(lambda *a: self._keep())
        self.bar = qt.QProgressBar(self.widget)
        self.bar.setTextVisible(False)
        self.bar.setMaximumHeight(8)
        self.more = qt.QToolButton(self.widget)
        self.more.setText(_("Log"))
        self.more.setCheckable(True)
        self.more.setAutoRaise(True)
        self.more.setToolButtonStyle(qt.Qt.ToolButtonTextBesideIcon)
        self.more.setArrowType(qt.Qt.RightArrow)
        self.more.toggled.connect(lambda *a: self._unfold())
        self.log = qt.QPlainTextEdit(self.widget)
        self.log.setReadOnly(True)
        self.log.setMaximumBlockCount(LINES)
        self.log.setFixedHeight(140)
        self.log.setLineWrapMode(qt.QPlainTextEdit.NoWrap)
        self.log.setAccessibleName(_("What the local backend says"))
        self.log.hide()
        self._paint = qt.QTimer(self.widget)
        self._paint.setSingleShot(True)
        self._paint.timeout.connect(lambda *a: self.refresh())
        self._arrange()
        self.fill()
        local.on_change(self._changed)

    def fill(self) -> None:
        """Shows the settings as they are."""
        settings = self._store.settings
        old = self.folder.blockSignals(True)
        self.folder.setText(clean(folder_of(settings)))
        self.folder.blockSignals(old)
        old = self.gpu.blockSignals(True)
        self.gpu.setChecked(bool(settings.gpu))
        self.gpu.blockSignals(old)
        self.refresh()

    def refresh(self) -> None:
        """Shows what is new."""
        if not alive(self.widget):
            return
        local, theme = self._local, window_theme(self.widget)
        self.status.setText(inked(local.sentence, theme.warning if local.state == "failed" else theme.text))
        self.button.setText(LABELS[local.state])
        self.button.setEnabled(local.state != "stopping")
        if local.state == "failed" and not local.installed:
            self.button.setText(LABELS["missing"])
        still = not local.busy
        fresh = not local.installed or local.state == "installing"
        self._again.setVisible(local.state == "failed" and local.installed)
        self.size.setText(inked(self._sizes(), theme.quiet))
        self.size.setVisible(fresh)
        self.gpu.setVisible(fresh)
        for widget in (self.folder, self._browse, self.gpu):
            widget.setEnabled(still)
        self.bar.setVisible(local.state in ("installing", "starting", "stopping"))
        if local.fraction is None:
            self.bar.setRange(0, 0)
        else:
            self.bar.setRange(0, 1000)
            self.bar.setValue(int(1000 * local.fraction))
        self._add_lines()

    def _arrange(self) -> None:
        place = qt.QHBoxLayout()
        place.addWidget(qt.QLabel(_("Folder"), self.widget))
        place.addWidget(self.folder, 1)
        place.addWidget(self._browse)
        buttons = qt.QHBoxLayout()
        buttons.addWidget(self.button)
        buttons.addWidget(self._again)
        buttons.addStretch(1)
        buttons.addWidget(self.more)
        layout = qt.QVBoxLayout(self.widget)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(self.status)
        layout.addWidget(self.bar)
        layout.addWidget(self.size)
        layout.addLayout(place)
        layout.addWidget(self.gpu)
        layout.addLayout(buttons)
        layout.addWidget(self.log)

    def _sizes(self) -> str:
        settings = self._store.settings
        size, free = SIZES[settings.gpu], free_gb(folder_of(settings))
        room = "" if free is None else _("{free} GB are free there.").format(free=f"{free:,.0f}")
        what = _(
            "Installs MedSIGHT and PyTorch into a folder of yours: about {download} GB to download and {disk} GB on "
            "the disk."
        ).format(download=f"{size.download:g}", disk=f"{size.disk:g}")
        rest = _(
            "The small model medsight-mini comes with it and works without a GPU. Nothing is put into Slicer itself, "
            "and no scan leaves this computer."
        )
        return " ".join(filter(None, (what, room, rest)))

    def _pressed(self) -> None:
        local = self._local
        if local.busy:
            local.stop()
        elif local.installed:
            local.start()
        else:
            self._keep()
            local.install()

    def _choose_folder(self) -> None:
        chosen = self._choose(self.widget, _("Folder for the local backend"), written(self.folder))
        if chosen:
            self.folder.setText(clean(chosen))
            self._keep()

    def _keep(self) -> None:
        settings = self._store.settings
        typed = written(self.folder).strip()
        folder = settings.folder
        if typed != str(folder_of(settings)):
            folder = str(Path(typed).expanduser().absolute()) if typed else ""
        self._store.save(replace(settings, folder=folder, gpu=bool(self.gpu.isChecked())))
        self._local.look()
        self.fill()

    def _changed(self) -> None:
        if alive(self.widget) and not self._paint.isActive():
            self._paint.start(_TICK_MS)

    def _unfold(self) -> None:
        shown = bool(self.more.isChecked())
        self.more.setArrowType(qt.Qt.DownArrow if shown else qt.Qt.RightArrow)
        self.log.setVisible(shown)

    def _add_lines(self) -> None:
        new = min(self._local.written - self._shown, len(self._local.log))
        self._shown = self._local.written
        if new > 0:
            self.log.appendPlainText("\n".join(self._local.log[-new:]))

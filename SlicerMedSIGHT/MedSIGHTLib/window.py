"""The module's window: the chat, the tools, the findings, the settings; and the timer that lets it all work."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from medsight_core.events import Failed
from medsight_core.mrml.sources import FileOf

from ._qt import alive, qt, val
from .assistant import Assistant
from .case import UNKNOWN
from .chatpanel import ChatPanel
from .connection import Connection, refused
from .consent import Consents
from .exportdialog import ExportDialog
from .findings import FindingsTable
from .labels import inked, window_theme, words_label
from .localserver import LocalServer
from .settings import Store
from .settingspage import SettingsPage
from .tools import Tools
from .words import _
from .worker import Poll, Worker

MODALITIES: Final = ("CT", "MR", "X-ray", "Ultrasound", "Endoscopy", "Dermoscopy", "Fundus", "OCT", "Pathology")
NOT_SAID: Final = _(
    "Nothing says what kind of scan this is. Choose it, so that the model sees its grey values as they are meant; "
    "otherwise it has to guess."
)


class Window:
    """Everything that the module shows below the choice of a scan.

    Args:
        scene: Of MRML.
        file_of: Finds the files of DICOM instances.
        store: The settings; those of the viewer if None.
        local: Makes the model on this computer, given a parent and the settings.

    Attributes:
        widget: To be put into the module's panel.
        assistant, chat, table, tools, connection, settings: Its parts.
        dialog: For exporting, the last one that was opened.
    """

    def __init__(
        self,
        scene: Any,
        *,
        file_of: FileOf = lambda uid: "",
        store: Store | None = None,
        local: Callable[[Any, Store], LocalServer] = LocalServer,
    ) -> None:
        self.widget = qt.QTabWidget()
        self.widget.setObjectName("MedSIGHT")
        self.dialog: ExportDialog | None = None
        self._consent_for: Failed | None = None
        self._poll = Poll(self.widget, self._tick)
        store = store or Store()
        self.local = local(self.widget, store)
        self.connection = Connection(store, Consents(store, lambda: self.local.origin), self.local)
        self.assistant = Assistant(begin=self._begin, connect=self._connect, file_of=file_of)
        self.chat = ChatPanel(self.assistant)
        self.table = FindingsTable(self.assistant, self.chat.say)
        self.tools = Tools(self.assistant, scene)
        self.settings = SettingsPage(self.connection)
        self._modality = self._make_modality()
        self._not_said = words_label(self.widget, "MedSIGHTNotSaid")
        self._export = qt.QPushButton(_("E&xport…"))
        self._export.setObjectName("MedSIGHTExportButton")
        self._export.setToolTip(_("Save the findings as DICOM-SEG or in another format, or send them to an archive"))
        self._export.clicked.connect(lambda *a: self._open_export())
        self._arrange()
        self.assistant.on_change(self._changed)
        self._changed()

    def let_go(self) -> None:
        """Lets go of the scene, as when it is closed."""
        self.tools.close()
        if self.dialog is not None:
            self.dialog.close()
            self.dialog = None
        self.assistant.close()

    def close(self) -> None:
        """Ends all that runs and lets go of the scene; the conversations stay in it."""
        self.assistant.flush()
        self.let_go()
        self._poll.close()
        self.chat.close()
        self.table.close()
        self.settings.close()
        self.local.close()

    def _begin(self, work: Any) -> Worker:
        worker = Worker(work)
        self._poll.watch(worker)
        return worker

    def _connect(self) -> Any:
        return self.connection.connect()

    def _tick(self) -> bool:
        return self.assistant.pump()

    def _changed(self) -> None:
        if not alive(self.widget):
            return
        chosen = self.assistant.modality
        before = self._modality.blockSignals(True)
        self._modality.setCurrentIndex(max(0, self._modality.findText(chosen)))
        self._modality.setEnabled(self.assistant.node is not None)
        self._modality.blockSignals(before)
        asked_for = chosen == UNKNOWN and self.assistant.outline is not None
        self._not_said.setVisible(asked_for)
        if asked_for:
            self._not_said.setText(inked(NOT_SAID, window_theme(self.widget).warning))
        self._export.setEnabled(bool(self.assistant.conversation.findings))
        failure = self.assistant.failure
        if failure is not None and failure is not self._consent_for and refused(failure.error()):
            self._consent_for = failure
            qt.QTimer.singleShot(0, lambda: self._ask_consent())

    def _ask_consent(self) -> None:
        """Asks for what the last answer failed for, and then asks again."""
        if alive(self.widget) and self.assistant.node is not None:
            self.connection.when_allowed(self.widget, self.assistant.outline, self.assistant.retry)

    def _open_export(self) -> None:
        self.dialog = ExportDialog(self.widget, self.assistant, self.connection.store)
        self.dialog.open()

    def _make_modality(self) -> Any:
        box = qt.QComboBox()
        box.setObjectName("MedSIGHTModality")
        box.setToolTip(_("What kind of scan it is; known for DICOM, to be chosen for other files"))
        for name in (UNKNOWN, *MODALITIES):
            box.addItem(name)
        box.currentIndexChanged.connect(lambda *a: self._choose_modality())
        return box

    def _choose_modality(self) -> None:
        chosen = str(val(self._modality.currentText))
        self.assistant.choose_modality("" if chosen == UNKNOWN else chosen)

    def _arrange(self) -> None:
        page = qt.QWidget()
        layout = qt.QVBoxLayout(page)
        layout.setContentsMargins(0, 0, 0, 0)
        kind = qt.QHBoxLayout()
        kind.addWidget(qt.QLabel(_("Kind of scan:")))
        kind.addWidget(self._modality, 1)
        layout.addLayout(kind)
        layout.addWidget(self._not_said)
        layout.addWidget(self.chat.widget, 1)
        layout.addWidget(self.tools.widget)
        layout.addWidget(self.table.widget)
        layout.addWidget(self._export, 0, qt.Qt.AlignRight)
        self.widget.addTab(page, _("Ask"))
        self.widget.addTab(self.settings.widget, _("Settings"))

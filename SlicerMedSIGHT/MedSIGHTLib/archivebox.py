"""The archive that findings may be sent to: its address, what lets us in, and what sending means."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from medsight_core.client.address import Address
from medsight_core.client.dicomweb import Archive
from medsight_core.errors import InputError, MedSightError

from ._qt import clean, path_of, qt, written
from .connection import worded
from .labels import inked, window_theme, words_label
from .settings import Store
from .words import _

WHAT: Final = _(
    "A DICOM Segmentation carries the patient's name and number and the UIDs of the study, as the images do, so that "
    "the archive can put it beside them. It goes to this archive alone, and only when you press Send."
)
_KEPT: Final = "archive"


class ArchiveBox:
    """The part of the export dialog.

    Args:
        parent: Of the box.
        settings: Where address, name and certificate are kept; the password never is.

    Attributes:
        widget: To be put into the dialog.
    """

    def __init__(self, parent: Any, settings: Store) -> None:
        self._settings = settings
        self._callback: Callable[[], Any] = lambda: None
        self.widget = qt.QGroupBox(_("DICOM archive (DICOMweb)"), parent)
        self.url = self._edit("https://pacs.hospital.example/dicom-web", _("Where DICOMweb begins"))
        self.user = self._edit(_("None"), _("Leave it empty where the archive wants a token"))
        self.secret = self._edit(_("None"), _("Forgotten when this dialog is closed"))
        self.secret.setEchoMode(qt.QLineEdit.Password)
        self.ca = self._edit(_("The public ones"), _("File (PEM) with the certificate that is trusted, and no other"))
        self._browse = qt.QPushButton("…", self.widget)
        self._browse.setAccessibleName(_("Choose a file with a certificate"))
        self._browse.setMaximumWidth(36)
        self._browse.setAutoDefault(False)
        self._browse.clicked.connect(lambda *a: self._choose_ca())
        self.insecure = qt.QCheckBox(_("Send it unencrypted (http) on this network"), self.widget)
        self.insecure.setToolTip(_("Everyone on the way can read it. Only for a network that is itself trusted."))
        self.insecure.toggled.connect(lambda *a: self._show())
        self.note = words_label(self.widget, "MedSIGHTArchiveNote")
        self._arrange()
        self._restore()
        self._show()

    def on_change(self, callback: Callable[[], Any]) -> None:
        """Calls a function whenever something was typed."""
        self._callback = callback

    @property
    def ready(self) -> bool:
        """Whether an archive is named that may be sent to."""
        return self._wrong() is None and bool(_text(self.url))

    @property
    def name(self) -> str:
        """Host and port of the archive; "the archive" where none is named."""
        try:
            return self._address().name
        except MedSightError:
            return _("the archive")

    def archive(self) -> Archive:
        """The archive that was named; it is remembered, but for the password.

        Raises:
            InputError: bad_address, insecure_http.
        """
        found = Archive(
            address=self._address(),
            user=_text(self.user),
            secret=written(self.secret),
            ca=Path(_text(self.ca)) if _text(self.ca) else None,
        )
        self._settings.put(_KEPT, {"url": _text(self.url), "user": found.user, "ca": _text(self.ca)})
        return found

    def _address(self) -> Address:
        if not _text(self.url):
            raise InputError("no_address", _("No archive was named."), _("Type its address."))
        return Address.parse(_text(self.url).rstrip("/"), insecure_http=bool(self.insecure.isChecked()))

    def _wrong(self) -> MedSightError | None:
        try:
            self._address()
        except MedSightError as error:
            return error
        return None

    def _show(self) -> None:
        theme, wrong = window_theme(self.widget), self._wrong() if _text(self.url) else None
        http = wrong is not None and wrong.code == "insecure_http"
        self.insecure.setVisible(http or bool(self.insecure.isChecked()))
        words = _worded(wrong) if wrong is not None else WHAT
        self.note.setText(inked(words, theme.warning if wrong is not None else theme.quiet))
        self._callback()

    def _edit(self, example: str, tip: str) -> Any:
        edit = qt.QLineEdit(self.widget)
        edit.setPlaceholderText(example)
        edit.setToolTip(tip)
        edit.textChanged.connect(lambda *a: self._show())
        return edit

    def _arrange(self) -> None:
        form = qt.QGridLayout(self.widget)
        form.setColumnStretch(1, 1)
        rows = (
            (_("Address"), self.url),
            (_("Name"), self.user),
            (_("Password or token"), self.secret),
            (_("Certificate"), self.ca),
        )
        for row, (name, field) in enumerate(rows):
            label = qt.QLabel(name, self.widget)
            label.setBuddy(field)
            form.addWidget(label, row, 0)
            form.addWidget(field, row, 1)
        form.addWidget(self._browse, 3, 2)
        form.addWidget(self.insecure, 4, 1, 1, 2)
        form.addWidget(self.note, 5, 0, 1, 3)

    def _restore(self) -> None:
        kept = self._settings.get(_KEPT)
        kept = kept if isinstance(kept, dict) else {}
        for name, field in (("url", self.url), ("user", self.user), ("ca", self.ca)):
            field.setText(clean(kept.get(name, "") if isinstance(kept.get(name, ""), str) else ""))

    def _choose_ca(self) -> None:
        filter_ = _("Certificates (*.pem *.crt *.cer);;All (*)")
        chosen = path_of(qt.QFileDialog.getOpenFileName(self.widget, _("Certificate"), _text(self.ca), filter_))
        if chosen:
            self.ca.setText(clean(chosen))


def _text(edit: Any) -> str:
    return written(edit).strip()


def _worded(error: MedSightError) -> str:
    """What is wrong, in the words of this dialog."""
    if error.code == "insecure_http":
        return _("http:// would send the patient's name unencrypted, for everyone on the way to read. Use https://.")
    return str(worded(error))

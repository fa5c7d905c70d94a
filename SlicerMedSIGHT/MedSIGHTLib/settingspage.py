"""The settings: where the model runs, how a server is reached, what may be sent to it. Each is kept when it is set."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Final

from medsight_core.backend import Info
from medsight_core.client import Check
from medsight_core.errors import MedSightError

from ._qt import EventFilter, alive, clean, path_of, qt, written
from .connection import Connection, address_of, remote, worded
from .labels import bullets, inked, marked, text_of, window_theme, words_label
from .localbox import LocalBox
from .settings import Settings, read_address
from .theme import Theme
from .words import _
from .worker import Poll, Worker

RIGHT: Final = "✓"
WRONG: Final = "✗"
FIRST: Final = _("Nothing is sent before you allow it; you are asked at the first question.")
WHAT: Final = _(
    "Sent are the scan's pixels, geometry and modality, your questions and marks; never names, dates, UIDs or paths."
)
INSECURE: Final = "insecure_http"

_STEPS: Final = {
    "address": _("The address"),
    "proxy": _("The proxy"),
    "host": _("The computer is found"),
    "port": _("MedSIGHT answers there"),
    "TLS": _("The connection is encrypted, the certificate trusted"),
    "token": _("It lets you in"),
    "version": _("It speaks the same version"),
    "model": _("The model is ready"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Tested:
    """What a test of the connection found.

    Attributes:
        checks: One after the other, up to the first that is wrong.
        info: What the server is, where all is right.
    """

    checks: tuple[Check, ...]
    info: Info | None = None

    @property
    def good(self) -> bool:
        """Whether nothing is wrong."""
        return all(check.error is None for check in self.checks)


def test_connection(settings: Settings) -> Tested:
    """Looks whether there is a way to an answer; sends the token, and nothing of any scan. For a worker's thread."""
    try:
        backend = remote(settings)
    except MedSightError as error:
        return Tested(checks=(Check(step="TLS" if error.code == "bad_ca" else "address", error=worded(error)),))
    checks = tuple(
        Check(step=check.step, error=None if check.error is None else worded(check.error)) for check in backend.check()
    )
    info = None
    if all(check.error is None for check in checks):
        try:
            info = backend.info()
        except MedSightError as error:
            checks = (*checks[:-1], Check(step="model", error=worded(error)))
    return Tested(checks=checks, info=info)


def choose_file(parent: Any, title: str, folder: str) -> str:
    """Asks for a file; "" where none was chosen."""
    return path_of(
        qt.QFileDialog.getOpenFileName(parent, title, folder, _("Certificates (*.pem *.crt *.cer);;All (*)"))
    )


class SettingsPage:
    """The widget.

    Args:
        connection: What is set, and what uses it.
        test: Looks at a connection, in a thread.
        choose: Asks a person for a file.

    Attributes:
        widget: To be put into a window.
    """

    def __init__(
        self,
        connection: Connection,
        *,
        test: Callable[[Settings], Tested] = test_connection,
        choose: Callable[[Any, str, str], str] = choose_file,
    ) -> None:
        self._connection = connection
        self._test = test
        self._choose = choose
        self._worker: Worker | None = None
        self._tested: Tested | None = None
        self._note = ""
        self.widget = qt.QWidget()
        self.widget.setObjectName("MedSIGHTSettings")
        self._poll = Poll(self.widget, self._pump)
        self.here = qt.QRadioButton(_("On this computer"), self.widget)
        self.there = qt.QRadioButton(_("On a server"), self.widget)
        self.local = LocalBox(connection.store, connection.local)
        self._make_server()
        self._arrange()
        self.fill()
        for button in (self.here, self.there):
            button.toggled.connect(lambda *a: self._keep())
        connection.store.on_change(self.refresh)
        self._filter = EventFilter(self.widget, self._seen)
        self.widget.installEventFilter(self._filter)

    def close(self) -> None:
        """Ends a test that runs."""
        self._poll.close()

    def fill(self) -> None:
        """Shows the settings as they are."""
        settings = self._connection.store.settings
        widgets = (self.here, self.there, self.url, self.token, self.ca, self.keep, self.insecure)
        before = [(widget, widget.blockSignals(True)) for widget in widgets]
        self.here.setChecked(settings.where == "here")
        self.there.setChecked(settings.where == "server")
        self.url.setText(clean(settings.url))
        self.token.setText(clean(settings.token))
        self.ca.setText(clean(settings.ca))
        self.keep.setChecked(bool(settings.keep_token))
        self.insecure.setChecked(bool(settings.insecure_http))
        for widget, old in before:
            widget.blockSignals(old)
        self.local.fill()
        self.refresh()

    def refresh(self) -> None:
        """Shows what is new."""
        if not alive(self.widget):
            return
        settings, theme = self._connection.store.settings, window_theme(self.widget)
        server = settings.where == "server"
        self.local.widget.setVisible(not server)
        self._server.setVisible(server)
        problem = _problem(settings)
        self.insecure.setVisible(bool(settings.insecure_http) or (problem is not None and problem.code == INSECURE))
        wrong = "" if problem is None or not settings.url.strip() else str(problem)
        note = f"{self._note} {wrong}".strip()
        self.note.setText(inked(note, theme.warning if problem is not None else theme.quiet))
        self.note.setVisible(bool(note))
        running = self._worker is not None
        self.button.setText(_("Stop testing") if running else _("Test connection"))
        self.button.setEnabled(bool(written(self.url).strip()))
        self.result.setText(inked(_("Looking …"), theme.quiet) if running else _found(self._tested, theme))
        self.result.setVisible(running or self._tested is not None)
        self._show_consent(theme)

    def start_test(self) -> None:
        """Tests the connection, or ends the test that runs."""
        if self._worker is not None:
            self._worker.cancel()
            self._worker = None
            self.refresh()
            return
        self._keep()
        settings, test = self._connection.store.settings, self._test

        def work(_cancel: threading.Event) -> Iterator[Any]:
            yield test(settings)

        self._tested, self._worker = None, Worker(work)
        self._poll.watch(self._worker)
        self.refresh()

    def _seen(self, event: Any) -> bool:
        """Colours and consents may have changed since the page was last looked at."""
        if event.type() in (qt.QEvent.Show, qt.QEvent.PaletteChange):
            self.refresh()
            self.local.refresh()
        return False

    def _make_server(self) -> None:
        self._server = qt.QWidget(self.widget)
        self.url = self._edit("https://gpu.hospital.example", _("Address of the server, as whoever runs it told you"))
        self.url.textEdited.connect(lambda *a: self._typed())
        self.note = words_label(self._server, "MedSIGHTNote")
        self.token = self._edit(_("None"), _("Of this server; whoever runs it has it"))
        self.token.setEchoMode(qt.QLineEdit.Password)
        self.keep = qt.QCheckBox(_("Remember"), self._server)
        self.keep.setToolTip(
            _(
                "Otherwise the token is forgotten when Slicer ends. It is kept as readable text in Slicer's settings "
                "file."
            )
        )
        self.keep.toggled.connect(lambda *a: self._keep())
        self.ca = self._edit(_("The public ones"), _("File (PEM) with the certificate that is trusted, and no other"))
        self._browse = qt.QPushButton("…", self._server)
        self._browse.setToolTip(_("Choose a file"))
        self._browse.setAccessibleName(_("Choose a file with a certificate"))
        self._browse.setMaximumWidth(36)
        self._browse.clicked.connect(lambda *a: self._choose_ca())
        self.insecure = qt.QCheckBox(_("Send scans unencrypted (http) to this server"), self._server)
        self.insecure.setToolTip(_("Everyone on the way can read them. Only for a network that is itself trusted."))
        self.insecure.toggled.connect(lambda *a: self._keep())
        self.button = qt.QPushButton(_("Test connection"), self._server)
        self.button.setObjectName("MedSIGHTTest")
        self.button.clicked.connect(lambda *a: self.start_test())
        self.result = words_label(self._server, "MedSIGHTResult")
        self.consent = words_label(self._server, "MedSIGHTConsentState")
        self.consent.setOpenExternalLinks(False)
        self.consent.linkActivated.connect(lambda *a: self._revoke(str(a[0])))

    def _arrange(self) -> None:
        form = qt.QGridLayout()
        form.setColumnStretch(1, 1)
        for row, (name, field) in enumerate(
            ((_("Address"), self.url), (_("Token"), self.token), (_("Certificate"), self.ca))
        ):
            label = qt.QLabel(name, self._server)
            label.setBuddy(field)
            form.addWidget(label, row, 0)
            form.addWidget(field, row, 1)
        form.addWidget(self.keep, 1, 2)
        form.addWidget(self._browse, 2, 2)
        buttons = qt.QHBoxLayout()
        buttons.addWidget(self.button)
        buttons.addStretch(1)
        server = qt.QVBoxLayout(self._server)
        server.setContentsMargins(0, 0, 0, 0)
        server.addLayout(form)
        server.addLayout(buttons)  # what comes and goes is below: a button must not run away from a click
        server.addWidget(self.note)
        server.addWidget(self.insecure)
        server.addWidget(self.result)
        server.addWidget(self.consent)
        where = qt.QHBoxLayout()
        where.addWidget(self.here)
        where.addWidget(self.there)
        where.addStretch(1)
        layout = qt.QVBoxLayout(self.widget)
        layout.addWidget(qt.QLabel(_("The model that answers runs"), self.widget))
        layout.addLayout(where)
        layout.addWidget(self.local.widget)
        layout.addWidget(self._server)
        layout.addStretch(1)

    def _edit(self, example: str, tip: str) -> Any:
        edit = qt.QLineEdit(self._server)
        edit.setPlaceholderText(example)
        edit.setToolTip(tip)
        edit.setClearButtonEnabled(True)
        edit.editingFinished.connect(lambda *a: self._keep())
        return edit

    def _keep(self) -> None:
        """Keeps what is written and ticked, corrected where people often err."""
        before = self._connection.store.settings
        typed = read_address(written(self.url))
        url = typed.url if typed.url else ""
        set_ = replace(
            before,
            where="here" if self.here.isChecked() else "server",
            token=written(self.token).strip(),
            keep_token=bool(self.keep.isChecked()),
            ca=written(self.ca).strip(),
            insecure_http=bool(self.insecure.isChecked()),
        )
        after = set_.pointed_at(url)
        if after == before and not typed.note:
            return
        if url != before.url:
            self._note = typed.note
            if set_.token and not after.token:
                self._note = f"{typed.note} {_('The token was for another server; type the one of this.')}".strip()
        if after != before:
            self._forget()
        self._connection.store.save(after)
        self.fill()

    def _typed(self) -> None:
        self.button.setEnabled(bool(written(self.url).strip()))
        self._forget()

    def _forget(self) -> None:
        """What a test found holds no longer."""
        if self._worker is not None:
            self._worker.cancel()
            self._worker = None
        if self._tested is not None:
            self._tested = None
            self.refresh()

    def _choose_ca(self) -> None:
        chosen = self._choose(self.widget, _("Certificate of the server"), written(self.ca))
        if chosen:
            self.ca.setText(clean(chosen))
            self._keep()

    def _pump(self) -> None:
        worker = self._worker
        if worker is None:
            return
        for event in worker.drain():
            if isinstance(event, Tested):
                worker.cancel()  # or it would wait to be emptied, and the poll with it
                self._tested, self._worker = event, None
            elif self._worker is not None:  # it broke down: its words are all there is
                error = MedSightError(event.code, event.sentence, event.remedy)
                self._tested, self._worker = Tested(checks=(Check(step="address", error=error),)), None
            self.refresh()

    def _show_consent(self, theme: Theme) -> None:
        servers = self._connection.consents.servers
        lines = [
            f'{text_of(one)} &nbsp; <a href="revoke:{text_of(one)}" style="color:{theme.accent}">{_("Withdraw")}</a>'
            for one in servers
        ]
        title = _("You allow scans to be sent to")
        allowed = f"<p style='margin:4px 0'>{title}</p>{bullets(lines)}" if lines else ""
        words = WHAT if lines else f"{FIRST} {WHAT}"
        self.consent.setText(f"{allowed}<p style='margin:6px 0 0 0'>{inked(words, theme.quiet)}</p>")

    def _revoke(self, server: str) -> None:
        self._connection.consents.revoke(server.partition(":")[2])
        self.refresh()


def _problem(settings: Settings) -> MedSightError | None:
    """What is wrong with the address, without looking further."""
    try:
        address_of(settings)
    except MedSightError as error:
        return error
    return None


def _found(tested: Tested | None, theme: Theme) -> str:
    if tested is None:
        return ""
    rows = [
        (_mark(RIGHT, theme.accent), text_of(_STEPS[check.step]))
        if check.error is None
        else (_mark(WRONG, theme.warning), text_of(str(check.error)))
        for check in tested.checks
    ]
    if tested.info is not None:
        rows.append(
            (
                "",
                inked(_("{model} on {device}").format(model=tested.info.model, device=tested.info.device), theme.quiet),
            )
        )
    return marked(rows)


def _mark(mark: str, colour: str) -> str:
    return f"<b>{inked(mark, colour)}</b>"

"""Asks a person whether scans may be sent to a server, and says what that means."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from ._qt import dispose, qt
from .consent import Statement
from .labels import bullets, inked, marked, text_of, window_theme, words_label
from .theme import Theme
from .words import _

ALLOW: Final = _("Send scans to this server")
REFUSE: Final = _("Do not send")
ONCE: Final = _(
    "You are asked once for each server, and for each scan that may show a name. You can withdraw it in the settings."
)
_WIDTH: Final = 460


def told(statement: Statement, theme: Theme) -> str:
    """The statement as a page."""
    size = f" ({text_of(statement.size)})" if statement.size else ""
    to = _("To {server} would be sent").format(server=f"<b>{text_of(statement.server)}</b>")
    sent = [f"{text_of(statement.sent[0])}{size}", *map(text_of, statement.sent[1:])]
    cautions = marked((f"<b>{inked('!', theme.warning)}</b>", text_of(one)) for one in statement.cautions)
    return (
        f'<p style="margin:0 0 6px 0">{to}</p>{bullets(sent)}'
        f'<p style="margin:8px 0 6px 0">{_("and <b>never</b>")}</p>{bullets(map(text_of, statement.withheld))}'
        f'<p style="margin:8px 0 6px 0">{_("Before you decide")}</p>{cautions}'
        f'<p style="margin:8px 0 0 0">{inked(ONCE, theme.quiet)}</p>'
    )


def ask_consent(parent: Any, statement: Statement, then: Callable[[bool], Any]) -> Any:
    """Asks, and does not wait.

    Args:
        parent: A widget, or None.
        statement: What is asked.
        then: Is told the answer, exactly once.

    Returns:
        The dialog.
    """
    dialog = qt.QDialog(parent)
    dialog.setObjectName("MedSIGHTConsent")
    dialog.setWindowTitle(_("Send the scan to another computer?"))
    label = words_label(dialog, "MedSIGHTStatement")
    label.setMinimumWidth(_WIDTH)
    label.setText(told(statement, window_theme(dialog)))
    buttons = qt.QDialogButtonBox(dialog)
    allow = buttons.addButton(ALLOW, qt.QDialogButtonBox.AcceptRole)
    refuse = buttons.addButton(REFUSE, qt.QDialogButtonBox.RejectRole)
    allow.setObjectName("MedSIGHTAllow")
    refuse.setObjectName("MedSIGHTRefuse")
    allow.setAutoDefault(False)
    refuse.setDefault(True)  # what Enter does is what does no harm
    layout = qt.QVBoxLayout(dialog)
    layout.addWidget(label)
    layout.addWidget(buttons)
    buttons.accepted.connect(lambda *a: dialog.accept())
    buttons.rejected.connect(lambda *a: dialog.reject())

    def answered(*result: Any) -> None:
        allowed = bool(result) and _number(result[0]) == _number(qt.QDialog.Accepted)
        dispose(dialog)
        then(allowed)

    dialog.finished.connect(answered)
    dialog.open()
    refuse.setFocus()
    return dialog


def _number(value: Any) -> int:
    return int(getattr(value, "value", value))

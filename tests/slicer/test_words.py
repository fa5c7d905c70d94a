"""All that the panel says can be translated: every sentence goes through Slicer's translation, as one whole."""

from __future__ import annotations

import ast
import re
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("qtpy", reason="the panel needs Qt")

from medsight_core.client.address import Address
from medsight_core.errors import MedSightError
from tests.slicer.binding import MODULE, library
from tests.slicer.desk import Gated, lit, ras_of

WORDS = re.compile(r"[A-Za-z']{2,} [A-Za-z]{2,}")
NOT_SAID = {  # no person reads these in the panel, or they are no words of ours
    "Application Support",
    "CERTIFICATE_VERIFY_FAILED",
    "No space left on device",
    "Read timed out",
    "ensurepip is not available",
    "Binary labelmap",
    "MedSIGHT pen",
    "MedSIGHT: the work behind a question failed",
    "what was marked",
}
OF_OTHERS = {"", "…", "Scroll Left", "Scroll Right", "Research use only. Not a medical device."}
"""What needs no translation, or is not ours to translate: Qt's words and those of ``medsight_core``."""


def sentences(file: Path) -> Iterator[tuple[int, str]]:
    """Strings with words in them that are said as they stand, by their lines."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    told = {
        id(part)
        for node in ast.walk(tree)
        if (isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "_")
        or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant))
        for part in ast.walk(node)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in told:
            text = re.sub(r"<[^>]*>?|^[^<]*>", "", node.value)
            if "\n" not in text and WORDS.search(text) and text not in NOT_SAID:
                yield node.lineno, text


@pytest.mark.parametrize("file", sorted((MODULE / "MedSIGHTLib").glob("*.py")), ids=lambda file: file.name)
def test_no_sentence_is_said_as_it_stands(file: Path) -> None:
    assert list(sentences(file)) == []
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "_":
            (text,) = node.args
            assert isinstance(text, ast.Constant), f"line {node.lineno}: what is put together cannot be looked up"
        elif isinstance(node, ast.Name) and node.id == "_" and isinstance(node.ctx, ast.Store):
            assert file.name in ("page.py", "pointing.py"), f"line {node.lineno} hides the translation"


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The panel in a language in which everything stands in brackets."""
    words = types.ModuleType("slicer.i18n")
    words.tr = lambda text: f"⟦{text}⟧"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "slicer.i18n", words)
    yield from library("plain")


def said(widget: Any, qt: Any) -> list[str]:
    """What a person reads on a window, or hears of it."""
    found: list[str] = []
    for one in [widget, *widget.findChildren(qt.QWidget)]:
        found += [one.toolTip(), one.accessibleName(), one.windowTitle()]
        for name in ("text", "placeholderText", "title"):
            if isinstance(one, qt.QLineEdit) and name == "text":
                continue
            get = getattr(one, name, None)
            found += [get()] if callable(get) else []
        if isinstance(one, qt.QTabWidget):
            found += [one.tabText(n) for n in range(one.count())]
        if isinstance(one, qt.QTableWidget):
            found += [one.horizontalHeaderItem(n).text() for n in range(one.columnCount())]
        found += [action.text() for action in one.actions()]
    return [re.sub(r"<[^>]*>", "", text).strip() for text in found]


def test_the_panel_speaks_another_language(elsewhere: Any, scene: Any, tmp_path: Path) -> None:
    lib, qt = elsewhere, elsewhere._qt.qt
    node, _ = lit()
    store = lib.settings.Store(qt.QSettings(str(tmp_path / "s.ini"), qt.QSettings.IniFormat))
    window = lib.window.Window(scene, store=store)
    backend = Gated()
    window.assistant._connect = lambda: backend
    try:
        window.widget.show()
        window.assistant.choose(node)
        assert window.assistant.click(ras_of(node, 2, 6, 8))
        for _ in range(400):
            lib.settle(5)
            if not window.assistant.busy:
                break
        backend.fails = MedSightError("server_error", "It failed.", "Try again.")
        window.assistant.ask("And now?", True)
        lib.settle(100)
        page = window.chat.browser.toPlainText()
        assert "⟦Segment: {what}⟧".format(what="⟦what was marked⟧") in page and "⟦Retry⟧" in page
        window._open_export()
        window.settings.there.setChecked(True)
        asked = lib.consentdialog.ask_consent(
            window.widget, lib.consent.statement(Address.parse("https://a.example"), window.assistant.outline), bool
        )
        lib.settle(50)
        texts = {one for widget in (window.widget, window.dialog.widget, asked) for one in said(widget, qt)}
        asked.reject()
        assert {one for one in texts if "⟦" not in one and "https://" not in one} <= OF_OTHERS
    finally:
        window.close()
        lib._qt.dispose(window.widget)
        lib.settle(50)

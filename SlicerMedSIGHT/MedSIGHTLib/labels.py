"""Words on labels: escaped, and in colours that can be read on a window's background."""

from __future__ import annotations

import html
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from ._qt import clean, qt, val
from .theme import Theme, theme_of


def window_theme(widget: Any) -> Theme:
    """The colours of a widget's window, which is what labels stand on."""
    palette = val(widget.palette)
    return replace(
        theme_of(widget),
        base=str(palette.color(qt.QPalette.Window).name()),
        text=str(palette.color(qt.QPalette.WindowText).name()),
    )


def words_label(parent: Any, name: str) -> Any:
    """A label for sentences."""
    label = qt.QLabel(parent)
    label.setObjectName(name)
    label.setTextFormat(qt.Qt.RichText)
    label.setWordWrap(True)
    return label


def text_of(words: object) -> str:
    """Words as markup that shows them."""
    return html.escape(clean(words))


def inked(words: str, colour: str) -> str:
    """Words in a colour."""
    return f'<span style="color:{colour}">{text_of(words)}</span>'


def bullets(lines: Iterable[str]) -> str:
    """A list of lines, each of them markup."""
    return f'<ul style="margin:0 0 0 -18px">{"".join(f"<li>{line}</li>" for line in lines)}</ul>'


def marked(rows: Iterable[tuple[str, str]]) -> str:
    """Rows of a mark and what it stands before, both markup; long ones keep clear of the mark."""
    cells = "".join(f'<tr><td style="padding-right:6px">{mark}</td><td>{line}</td></tr>' for mark, line in rows)
    return f'<table cellspacing="0" cellpadding="1">{cells}</table>'

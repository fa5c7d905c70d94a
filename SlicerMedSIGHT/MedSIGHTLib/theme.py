"""Colours that can be read: a segment's colour as ink and as tint on whatever background the viewer has."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Final

from ._qt import qt, val

READABLE: Final = 4.5
"""Contrast of text that everyone can read (WCAG 2, level AA)."""

Rgb = tuple[int, int, int]
_HEX: Final = re.compile(r"#[0-9a-fA-F]{6}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Theme:
    """The viewer's colours.

    Attributes:
        base: Of the background, such as ``"#ffffff"``.
        text: Of text on it.
        link: Of what can be clicked.
    """

    base: str = "#ffffff"
    text: str = "#000000"
    link: str = "#0a5fb4"

    @property
    def quiet(self) -> str:
        """Of what need not be read first."""
        return readable(mix(self.text, self.base, 0.58), self.base)

    @property
    def line(self) -> str:
        """Of lines and edges."""
        return mix(self.text, self.base, 0.16)

    @property
    def accent(self) -> str:
        """Of what can be clicked, where it can be read."""
        return readable(self.link, self.base)

    @property
    def warning(self) -> str:
        """Of what should not be overlooked."""
        return readable("#c26a00", self.base)

    def tint(self, colour: str) -> str:
        """A background that reminds of a segment's colour."""
        return mix(self._known(colour), self.base, 0.2)

    def ink(self, colour: str) -> str:
        """Text in a segment's colour, on its tint."""
        return readable(self._known(colour), self.tint(colour))

    def mark(self, colour: str) -> str:
        """A segment's colour itself."""
        return self._known(colour)

    def _known(self, colour: str) -> str:
        """Only what is a colour gets into a page; anything else is not shown as one."""
        return colour if _HEX.fullmatch(colour) else mix(self.text, self.base, 0.5)


def theme_of(widget: Any) -> Theme:
    """The colours that a widget is drawn with."""
    palette = val(widget.palette)
    base, text, link = (palette.color(role) for role in (qt.QPalette.Base, qt.QPalette.Text, qt.QPalette.Link))
    return Theme(base=_hex_of(base), text=_hex_of(text), link=_hex_of(link))


def mix(one: str, other: str, share: float) -> str:
    """``share`` of one colour and the rest of another."""
    return _hex(*(share * a + (1 - share) * b for a, b in zip(_rgb(one), _rgb(other), strict=True)))


def contrast(one: str, other: str) -> float:
    """Between two colours, 1 to 21 (WCAG 2)."""
    dark, light = sorted((_luminance(one), _luminance(other)))
    return (light + 0.05) / (dark + 0.05)


def readable(colour: str, background: str) -> str:
    """The colour, as much darker or lighter as it takes to read it on a background."""
    end = max("#000000", "#ffffff", key=lambda one: contrast(one, background))
    for step in range(21):
        seen = mix(end, colour, step / 20)
        if contrast(seen, background) >= READABLE:
            return seen
    return end


def _luminance(colour: str) -> float:
    parts = [channel / 255 for channel in _rgb(colour)]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def _rgb(colour: str) -> Rgb:
    red, green, blue = bytes.fromhex(colour[1:7])
    return red, green, blue


def _hex(*channels: float) -> str:
    return "#" + "".join(f"{min(255, max(0, round(channel))):02x}" for channel in channels)


def _hex_of(colour: Any) -> str:
    return _hex(colour.red(), colour.green(), colour.blue())

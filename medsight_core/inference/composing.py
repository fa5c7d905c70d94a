"""One answer about a volume, of what the model said about its key slices; no word of it is made up.

The slice with the strongest evidence speaks first. Another slice is heard only where it points at something that was
not named yet, and then each part says which slice it is about.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from medsight_core.inference.reply import Reading
from medsight_core.inference.transcript import Mention
from medsight_core.regions import Span
from medsight_core.terminology import normal_words


@dataclass(frozen=True, slots=True, kw_only=True)
class Composed:
    """The words of an answer about a volume.

    Attributes:
        text: What a person reads.
        raw: As generated, with codes.
        spans: Where the words stand that a structure is named by, by `key_of` its label.
        slices: Slices whose words these are, in order.
    """

    text: str
    raw: str
    spans: Mapping[str, Span]
    slices: tuple[int, ...]


def key_of(label: str) -> str:
    """The same for one label in different spelling."""
    return " ".join(normal_words(label)) or label


def compose(readings: Mapping[int, Reading], found: Iterable[str], *, order: Sequence[int], words: str) -> Composed:
    """Composes an answer.

    Args:
        readings: What was said, by slice.
        found: Structures that were drawn, as `key_of` names them.
        order: The slices that were read, those with the strongest evidence first.
        words: What the slices are called, such as "axial"; may be empty.
    """
    missing = set(found)
    told: list[int] = []
    for k in order:
        new = missing & {key_of(mention.label) for mention in readings[k].mentions}
        if new or not told:
            told.append(k)
            missing -= new
    parts, raws, spans = [], [], dict[str, Span]()
    start = 0
    for k in told:
        reading = readings[k]
        head = f"{words} slice {k}: ".lstrip().capitalize() if len(told) > 1 else ""
        parts.append(head + reading.text)
        raws.append(head + reading.raw)
        for mention in reading.mentions:
            spans.setdefault(key_of(mention.label), _moved(mention, start + len(head)))
        start += len(parts[-1]) + 1
    return Composed(text="\n".join(parts), raw="\n".join(raws), spans=spans, slices=tuple(told))


def _moved(mention: Mention, by: int) -> Span:
    return Span(mention.span.start + by, mention.span.end + by)


def slices_in_words(slices: Sequence[int], words: str) -> str:
    """Slices as a person reads them: "axial slices 3, 5 and 8"."""
    kind = f"{words} slice".lstrip()
    if len(slices) == 1:
        return f"{kind} {slices[0]}"
    return f"{kind}s {', '.join(map(str, slices[:-1]))} and {slices[-1]}"

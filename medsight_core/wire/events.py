"""The stream of events on the wire: one JSON object per event, each mask once.

    {"type": "text_delta", "text": "There is a "}
    {"type": "region_found", "region": {"label": ..., "slice": 3, "mask": {"id": 0, ...}}}
    {"type": "progress", "done": 1, "total": 2, "what": "Looking at the image"}
    {"type": "warning", "sentence": ...}
    {"type": "done", "answer": {"text": ..., "raw": ..., "regions": [{..., "mask": {"of": 0}}], ...}}
    {"type": "failed", "code": ..., "sentence": ..., "remedy": ...}

A mask is packed in place; where the server keeps it, its address comes along under "url", and where it is large, that
is all that comes. What lies there is JSON too, with the packed mask under "mask". Masks are numbered as they come, and
in the answer a region names the number of its mask. Floats are written so that they come back bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from medsight_core.errors import InputError, MedSightError
from medsight_core.events import Done, Event, Failed, Progress, RegionFound, TextDelta, Warning
from medsight_core.regions import Answer, Provenance, Region, Span, VolumeRegion
from medsight_core.wire import checked
from medsight_core.wire.masks import PackedMask, pack_mask, unpack_mask

if TYPE_CHECKING:
    from medsight_core.imaging.volume import Volume

INLINE_BYTES: Final = 64 * 2**10
"""A packed mask of more bytes is left for the client to fetch, where the server keeps masks."""

MOST_REGIONS: Final = 10_000
"""Regions of one answer."""

LONGEST_ANSWER: Final = 10_000_000
"""Characters of one text: an answer about every slice of a volume is long."""

AnyRegion = Region | VolumeRegion
PutMask = Callable[[AnyRegion, PackedMask], str]
"""Keeps a mask and returns the address under which it can be fetched."""

GetMask = Callable[[str], PackedMask]
"""Fetches a mask by its address."""


class EventWriter:
    """Writes the events of one stream.

    Args:
        volume: The scan that was asked about.
        put_mask: Where the server keeps masks; None where all travel in place.
    """

    def __init__(self, volume: Volume, *, put_mask: PutMask | None = None) -> None:
        self._volume = volume
        self._put_mask = put_mask
        self._sent: list[AnyRegion] = []

    def to_json(self, event: Event) -> dict[str, Any]:
        """An event, ready for ``json.dumps``.

        Raises:
            MedSightError: bad_region: a region does not lie on the grid of the scan.
        """
        match event:
            case TextDelta(text):
                return {"type": "text_delta", "text": text}
            case RegionFound(region):
                return {"type": "region_found", "region": self._region(region)}
            case Progress(done, total, what):
                return {"type": "progress", "done": done, "total": total, "what": what}
            case Warning(sentence):
                return {"type": "warning", "sentence": sentence}
            case Done(answer):
                return {"type": "done", "answer": self.answer_to_json(answer)}
            case Failed(code, sentence, remedy):
                return {"type": "failed", "code": code, "sentence": sentence, "remedy": remedy}

    def answer_to_json(self, answer: Answer) -> dict[str, Any]:
        """An answer; masks that were sent with `RegionFound` are not sent again."""
        return {
            "text": answer.text,
            "raw": answer.raw,
            "regions": [self._region(region) for region in answer.regions],
            "volume_regions": [self._region(region) for region in answer.volume_regions],
            "warnings": list(answer.warnings),
            "provenance": {
                "model": answer.provenance.model,
                "digest": answer.provenance.digest,
                "settings": dict(answer.provenance.settings),
                "timings": dict(answer.provenance.timings),
                "tokens": dict(answer.provenance.tokens),
            },
        }

    def _region(self, region: AnyRegion) -> dict[str, Any]:
        for number, sent in enumerate(self._sent):
            if _same_mask(sent, region):
                return _facts(region) | {"mask": {"of": number}}
        own = self._volume.slice_frame(region.slice_index) if isinstance(region, Region) else self._volume.frame
        if own is None or not region.frame.is_close(own):
            raise MedSightError("bad_region", f"Region {region.code} does not lie on the grid of the scan.")
        self._sent.append(region)
        return _facts(region) | {"mask": {"id": len(self._sent) - 1} | self._mask(region)}

    def _mask(self, region: AnyRegion) -> dict[str, Any]:
        packed = pack_mask(region.mask)
        if self._put_mask is None:
            return packed.to_json()
        url = {"url": self._put_mask(region, packed)}
        return url if len(packed.data) > INLINE_BYTES else packed.to_json() | url


class EventReader:
    """Reads the events of one stream.

    Args:
        volume: The scan that was asked about, as it lies here: regions get its frames.
        get_mask: Fetches masks that do not travel in place.
    """

    def __init__(self, volume: Volume, *, get_mask: GetMask | None = None) -> None:
        self._volume = volume
        self._get_mask = get_mask
        self._regions: list[AnyRegion] = []

    def from_json(self, value: object) -> Event:
        """Reads an event.

        Raises:
            MedSightError: bad_reply: it is none of ours, or does not belong to this scan.
        """
        with _named():
            return self._event(checked.record(value, "An event", required=("type",), optional=None))

    def answer_from_json(self, value: object) -> Answer:
        """Reads an answer.

        Raises:
            MedSightError: bad_reply.
        """
        with _named():
            return self._answer(value)

    def _event(self, fields: dict[str, Any]) -> Event:
        kind = checked.text(fields["type"], "An event's type")
        match kind:
            case "text_delta":
                return TextDelta(_text(fields, "text"))
            case "region_found":
                return RegionFound(self._region(fields.get("region")))
            case "progress":
                done, total = (checked.integer(fields.get(name), f"A step's {name}") for name in ("done", "total"))
                return Progress(done, total, _text(fields, "what"))
            case "warning":
                return Warning(_text(fields, "sentence"))
            case "done":
                return Done(self._answer(fields.get("answer")))
            case "failed":
                return Failed(_text(fields, "code"), _text(fields, "sentence"), _text(fields, "remedy"))
        raise InputError("bad_request", "The event is of a kind that is not known here.")

    def _answer(self, value: object) -> Answer:
        fields = checked.record(value, "An answer", required=("text", "raw", "provenance"), optional=None)
        regions = [self._region(one) for one in self._list(fields, "regions")]
        volume_regions = [self._region(one) for one in self._list(fields, "volume_regions")]
        origin = checked.record(fields["provenance"], "A provenance", required=("model", "digest"), optional=None)
        settings = checked.record(origin.get("settings", {}), "The settings", optional=None)
        timings = checked.record(origin.get("timings", {}), "The timings", optional=None)
        tokens = checked.record(origin.get("tokens", {}), "The tokens", optional=None)
        return Answer(
            text=_text(fields, "text"),
            raw=_text(fields, "raw"),
            regions=tuple(region for region in regions if isinstance(region, Region)),
            volume_regions=tuple(region for region in volume_regions if isinstance(region, VolumeRegion)),
            warnings=tuple(checked.text(one, "A warning") for one in self._list(fields, "warnings")),
            provenance=Provenance(
                model=_text(origin, "model"),
                digest=_text(origin, "digest"),
                settings=settings,
                timings={name: checked.number(seconds, "A timing") for name, seconds in timings.items()},
                tokens={name: checked.integer(count, "A count of tokens") for name, count in tokens.items()},
            ),
        )

    def _list(self, fields: dict[str, Any], name: str) -> list[Any]:
        return checked.listed(fields.get(name, []), f"The list of {name}", most=MOST_REGIONS)

    def _region(self, value: object) -> AnyRegion:
        fields = checked.record(value, "A region", required=("code", "label", "span", "score", "mask"), optional=None)
        mask = checked.record(fields["mask"], "A mask", optional=None)
        start, end = (int(n) for n in checked.numbers(fields["span"], "A span", count=2))
        facts: dict[str, Any] = {
            "code": _text(fields, "code"),
            "label": _text(fields, "label"),
            "span": Span(start, end),
            "score": checked.share(fields["score"], "A score"),
        }
        if "key_slices" in fields:
            keys = self._list(fields, "key_slices")
            facts["key_slices"] = tuple(checked.integer(k, "A key slice") for k in keys)
        if "of" in mask:
            number = checked.integer(mask["of"], "A mask's number")
            if number >= len(self._regions):
                raise InputError("bad_request", "A mask is referred to that never came.")
            return replace(self._regions[number], **facts)
        if checked.integer(mask.get("id"), "A mask's number") != len(self._regions):
            raise InputError("bad_request", "A mask was lost on the way.")
        region = self._new(fields, facts, mask)
        self._regions.append(region)
        return region

    def _new(self, fields: dict[str, Any], facts: dict[str, Any], mask: dict[str, Any]) -> AnyRegion:
        if "slice" in fields:
            k = checked.integer(fields["slice"], "A region's slice")
            frame = self._volume.slice_frame(k)
            drawn = unpack_mask(self._packed(mask), shape=frame.shape[1:])
            return Region(**facts, slice_index=k, mask=drawn, frame=frame)
        frame = self._volume.require_frame()
        return VolumeRegion(**facts, mask=unpack_mask(self._packed(mask), shape=frame.shape), frame=frame)

    def _packed(self, mask: dict[str, Any]) -> PackedMask:
        if "data" in mask:
            return PackedMask.from_json({name: mask.get(name) for name in ("shape", "box", "data")})
        if self._get_mask is None:
            raise InputError("bad_request", "A mask has to be fetched, and nobody fetches it.")
        return self._get_mask(_text(mask, "url"))


def _facts(region: AnyRegion) -> dict[str, Any]:
    """All but the mask; sizes are for those who do not unpack it, and are not read back."""
    return region.to_json() | {"score": region.score}


def _same_mask(one: AnyRegion, other: AnyRegion) -> bool:
    """Whether both show the very same array: what is announced and then said again with other words."""
    if type(one) is not type(other) or one.mask.__array_interface__ != other.mask.__array_interface__:
        return False
    return not (isinstance(one, Region) and isinstance(other, Region)) or one.slice_index == other.slice_index


def _text(fields: dict[str, Any], name: str) -> str:
    return checked.text(fields.get(name), name, longest=LONGEST_ANSWER)


@contextmanager
def _named() -> Iterator[None]:
    """Lets what a stranger's reply is refused for be the reply's fault, not the user's."""
    try:
        yield
    except MedSightError as error:
        if not isinstance(error, InputError) and error.code not in ("bad_span", "bad_region"):
            raise  # of whoever fetches masks
        raise MedSightError(
            "bad_reply", f"The server's answer cannot be read: {error.sentence}", "Ask again."
        ) from error

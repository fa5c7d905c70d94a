"""What is asked of every scan: a TOML file, or a text file with one question per line.

    [[questions]]
    text = "Segment the liver."
    name = "liver"              # of its folder and its rows; made from the text where it is left out
    modalities = ["CT", "MR"]   # only scans of these; all where it is left out
    volume = true               # the whole volume; else one slice
    plane = "axial"             # of the volume: acquired, axial, coronal or sagittal
    slices = "20:60"            # of the volume: only from slice 20 up to, not including, 60
    exact = false               # of the volume: the language model reads every slice

    [[questions]]
    text = "Is there a pleural effusion?"
    modalities = ["X-ray"]
    slice = 0                   # which one, from 0; the middle one where it is left out

A line of a text file is asked about the middle slice of every scan; empty lines and those that begin with # are passed
over.
"""

from __future__ import annotations

import tomllib
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from medsight_core.backend import Whole
from medsight_core.errors import InputError
from medsight_core.imaging.planes import check_plane
from medsight_core.imaging.volume import Volume
from medsight_core.output.folder import slug
from medsight_core.regions import Question

MODALITIES: Final = (
    "CT", "MR", "X-ray", "Ultrasound", "Endoscopy", "Dermoscopy", "Fundus", "OCT", "Pathology", "unknown"
)  # fmt: skip

_LARGEST: Final = 1 << 20
_KEYS: Final = ("text", "name", "modalities", "volume", "plane", "slices", "exact", "slice")
_OF_VOLUME: Final = ("plane", "slices", "exact")


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchQuestion:
    """One question that is asked of many scans.

    Attributes:
        text: In plain words.
        name: Of its folder and its rows: small letters, digits and hyphens.
        modalities: Only scans of these; all where there are none.
        whole: How the whole volume is asked about; None for one slice.
        slice_index: Which slice, from 0; None for the middle one.
    """

    text: str
    name: str
    modalities: tuple[str, ...] = ()
    whole: Whole | None = None
    slice_index: int | None = None

    def fits(self, modality: str | None) -> bool:
        """Whether scans of a modality are asked; True where the modality is not known yet."""
        return modality is None or not self.modalities or modality in self.modalities

    def about(self, volume: Volume) -> Question:
        """The question about one scan.

        Raises:
            InputError: slice_out_of_range.
        """
        k = volume.middle if self.slice_index is None else self.slice_index
        return Question(text=self.text, volume=volume, slice_index=k)

    def to_json(self) -> dict[str, Any]:
        """All that the answer depends on, ready for ``json.dumps``."""
        whole = None
        if self.whole is not None:
            slices = self.whole.slices
            whole = asdict(self.whole) | {"slices": None if slices is None else [slices.start, slices.stop]}
        return {"text": self.text, "slice": self.slice_index, "whole": whole}


def read_questions(path: Path) -> tuple[BatchQuestion, ...]:
    """Reads a file of questions and checks all of it.

    Raises:
        InputError: bad_questions: it cannot be read, or the sentence says what is wrong where.
    """
    try:
        if path.stat().st_size > _LARGEST:
            raise _bad(path, f"it has more than {_LARGEST:,} bytes")
        text = path.read_text(encoding="utf-8-sig")
        if path.suffix.lower() != ".toml":
            lines = [line.strip() for line in text.splitlines()]
            given: Any = [{"text": line} for line in lines if line and not line.startswith("#")]
        else:
            content = tomllib.loads(text)
            given = content.pop("questions", [])
            if content:
                raise _bad(path, f"it has {sorted(content)[0]!r} beside [[questions]]")
    except OSError as error:
        raise _bad(path, f"it cannot be read ({error.strerror or error})") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise _bad(path, f"it is not {'TOML' if path.suffix.lower() == '.toml' else 'text'} ({error})") from error
    if not isinstance(given, list) or not all(isinstance(one, dict) for one in given):
        raise _bad(path, "its questions are not written as [[questions]]")
    if not given:
        raise _bad(path, "it has no question")
    try:
        questions = tuple(_question(one, f"question {number}") for number, one in enumerate(given, start=1))
    except _WrongError as error:
        raise _bad(path, str(error)) from error
    twice = [name for name, count in Counter(question.name for question in questions).items() if count > 1]
    if twice:
        raise _bad(path, f'{twice[0]!r} is the name of several questions; give each a "name" of its own')
    return questions


class _WrongError(Exception):
    """What is wrong with the content, in words that follow "the file ..."."""


def _bad(path: Path, what: str) -> InputError:
    return InputError(
        "bad_questions",
        f"The file of questions {path.name} is of no use: {what}.",
        "Write one question per line, or a TOML file (.toml) with [[questions]]; see medsight batch --help.",
    )


def _question(given: Mapping[str, Any], where: str) -> BatchQuestion:
    unknown = sorted(set(given) - set(_KEYS))
    if unknown:
        raise _WrongError(f"{where} has {unknown[0]!r}, which is none of {', '.join(_KEYS)}")
    text = _text(given, "text", where)
    if not text:
        raise _WrongError(f"{where} has no text")
    name = slug(_text(given, "name", where) or text)
    whole = _whole(given, where)
    k = given.get("slice")
    if k is not None and (type(k) is not int or k < 0):
        raise _WrongError(f"{where} has a slice that is no number from 0")
    if whole is not None and k is not None:
        raise _WrongError(f"{where} asks about one slice and about the whole volume")
    return BatchQuestion(
        text=text, name=name, modalities=_modalities(given.get("modalities", []), where), whole=whole, slice_index=k
    )


def _whole(given: Mapping[str, Any], where: str) -> Whole | None:
    for name in ("volume", "exact"):
        if type(given.get(name, False)) is not bool:
            raise _WrongError(f"{where} has a {name} that is neither true nor false")
    if not given.get("volume"):
        said = next((name for name in _OF_VOLUME if name in given), None)
        if said is not None:
            raise _WrongError(f"{where} has {said!r}, which needs volume = true")
        return None
    from medsight_core.cli.prompts import parse_slices

    try:
        plane = check_plane(_text(given, "plane", where) or "acquired")
        slices = parse_slices(_text(given, "slices", where)) if "slices" in given else None
    except InputError as error:
        raise _WrongError(f"in {where}: {error.sentence.rstrip('.')}") from error
    return Whole(plane=plane, slices=slices, exact=given.get("exact", False))


def _modalities(given: Any, where: str) -> tuple[str, ...]:
    if not isinstance(given, list) or not all(isinstance(one, str) for one in given):
        raise _WrongError(f"{where} has modalities that are not a list of names")
    known = {modality.lower(): modality for modality in MODALITIES}
    strange = next((one for one in given if one.lower() not in known), None)
    if strange is not None:
        raise _WrongError(f"{where} has the modality {strange!r}, not one of {', '.join(MODALITIES)}")
    return tuple(known[one.lower()] for one in given)


def _text(given: Mapping[str, Any], name: str, where: str) -> str:
    text = given.get(name, "")
    if not isinstance(text, str):
        raise _WrongError(f"{where} has a {name} that is not text")
    return " ".join(text.split())

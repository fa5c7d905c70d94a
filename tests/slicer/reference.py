"""The same questions again: answers and masks of a real model in Slicer's scene, kept and compared with a later run.

    python -m tests.slicer.reference FOLDER [--data DIR] [--server URL] [--anew]

The first run fills FOLDER; each further one asks the same and says what differs. A text must be the same, and a mask
must overlap with a Dice of more than 0.999. Without ``--server``, `medsight serve` is started with the Python of
``MEDSIGHT_SERVER_PYTHON``, on its GPU where it has one. The scene is Slicer's own; the masks are those of its segments.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from medsight_core.backend import Backend
from medsight_core.client import RemoteBackend
from medsight_core.errors import MedSightError
from tests.slicer.serving import REPOSITORY, server_python, serving
from training.evaluation.metrics import dice

DATA: Final = REPOSITORY.parent / "shared" / "data" / "dicom"
LEAST_DICE: Final = 0.999
ANSWERS: Final = "answers.json"
MASKS: Final = "masks.npz"


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A scan and what is done with it, one step after the other in one conversation.

    Attributes:
        series: Its folder, in the folder of data.
        k: The slice that is looked at.
        questions: Asked about that slice.
        throughout: Asked about the whole volume; "" for nothing.
    """

    series: str
    k: int
    questions: tuple[str, ...]
    throughout: str = ""

    @property
    def steps(self) -> tuple[tuple[str, bool], ...]:
        """What is asked, and whether about the whole volume; between the two kinds a click, which has no words."""
        last = ((self.throughout, True),) if self.throughout else ()
        return (*((text, False) for text in self.questions), ("", False), *last)


CASES: Final = (
    Case(
        series="seg_ct3slice_liver/ct",
        k=1,
        questions=("Segment the liver in this image.", "How large is it?", "Segment the spleen in this image."),
        throughout="Segment the liver.",
    ),
    Case(
        series="ct_abdomen_totalseg",
        k=10,
        questions=("What is shown in this image?", "Segment the liver in this image."),
        throughout="Segment the left kidney.",
    ),
    Case(
        series="mr_brain_PGBM-003_T1post",
        k=8,
        questions=("Segment the lower-grade glioma in this image.", "What is shown in this image?"),
    ),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a run gave.

    Attributes:
        model: Name, digest and what it was computed with.
        turns: Of every case in order: what was asked, the text, and the findings with the names of their masks.
        masks: By name, ``(slices, rows, columns)`` of the scan.
    """

    model: dict[str, str]
    turns: list[dict[str, Any]]
    masks: dict[str, NDArray[np.bool_]]

    def save(self, folder: Path) -> None:
        """Writes it."""
        folder.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(folder / MASKS, **self.masks)
        said = {"model": self.model, "turns": self.turns}
        (folder / ANSWERS).write_text(json.dumps(said, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> Outcome:
        """Reads it."""
        said = json.loads((folder / ANSWERS).read_text(encoding="utf-8"))
        with np.load(folder / MASKS) as masks:
            return cls(model=said["model"], turns=said["turns"], masks={name: masks[name] for name in masks.files})


def run(data: Path, backend: Backend, say: Callable[[str], Any], cases: Sequence[Case] = CASES) -> Outcome:
    """Goes through cases, each in an empty scene.

    Args:
        data: Folder of the series.
        backend: Is asked.
        say: Is told what is going on.
        cases: Which.
    """
    from MedSIGHTLib.assistant import Assistant
    from MedSIGHTLib.waiting import AtOnce

    info = backend.info()
    model = {"name": info.model, "digest": info.digest, "device": info.device, "dtype": info.dtype}
    turns: list[dict[str, Any]] = []
    masks: dict[str, NDArray[np.bool_]] = {}
    for case in cases:
        with empty_scene() as scene:
            node, file_of, middle = opened(scene, data / case.series, case.k)
            assistant = Assistant(begin=AtOnce, connect=lambda: backend, file_of=file_of)
            assistant.choose(node)
            for text, whole in case.steps:
                what = f"{case.series}, slice {case.k}: {text or 'a click'}{' (whole volume)' if whole else ''}"
                say(what)
                began = assistant.ask(text, whole) if text else click(assistant, middle)
                if not began:
                    raise MedSightError("not_asked", f"{what}: {assistant.notice}")
                while assistant.pump():
                    pass
                turns.append(noted(what, len(turns), assistant, masks))
            assistant.close()
    return Outcome(model=model, turns=turns, masks=masks)


def click(assistant: Any, middle: Any) -> bool:
    """Points at what was found first, else at a place."""
    findings = assistant.conversation.findings
    segments = assistant.segments
    ids = [segments.ids[one.key] for one in findings if one.key in segments.ids]
    return bool(assistant.click(segments.centre(ids[0]) if ids else middle))


def noted(asked: str, number: int, assistant: Any, masks: dict[str, NDArray[np.bool_]]) -> dict[str, Any]:
    """The last turn, its masks among the others."""
    turn = assistant.conversation.last
    findings = []
    for place, finding in enumerate(turn.kept):
        segment_id = assistant.segments.ids.get(finding.key)
        name = f"{number}.{place}" if segment_id is not None else ""
        if name:
            masks[name] = assistant.segments.mask(segment_id)
        score = round(float(finding.region.score), 4)
        findings.append({"name": finding.name, "code": finding.region.code, "score": score, "mask": name})
    return {"asked": asked, "state": turn.state, "text": turn.text, "note": turn.note, "findings": findings}


def differences(before: Outcome, now: Outcome) -> list[str]:
    """What is not as it was, in sentences."""
    if before.model["digest"] != now.model["digest"]:
        return [f"Another model answered: {before.model['name']} before, {now.model['name']} now; --anew replaces it."]
    if len(before.turns) != len(now.turns):
        return [f"{len(before.turns)} answers were kept, {len(now.turns)} came; --anew replaces them."]
    found = []
    for old, new in zip(before.turns, now.turns, strict=True):
        for what in ("asked", "state", "text"):
            if old[what] != new[what]:
                found.append(f'{new["asked"]}: {what} was "{old[what]}", is "{new[what]}".')
        codes = [[(one["name"], one["code"], bool(one["mask"])) for one in turn["findings"]] for turn in (old, new)]
        if codes[0] != codes[1]:
            found.append(f"{new['asked']}: findings were {codes[0]}, are {codes[1]}.")
            continue
        for one in filter(lambda one: one["mask"], new["findings"]):
            masks = before.masks[one["mask"]], now.masks[one["mask"]]
            if masks[0].shape != masks[1].shape:
                found.append(f"{new['asked']}: the mask of {one['name']} has another size, {masks[1].shape}.")
            elif (overlap := dice(*masks)) <= LEAST_DICE:
                found.append(f"{new['asked']}: the mask of {one['name']} overlaps with a Dice of {overlap:.6f} only.")
    return found


@contextlib.contextmanager
def empty_scene() -> Iterator[Any]:
    """A scene with the logics that the segments need, and the three slice views."""
    from tests.slicer.conftest import new_scene
    from tests.slicer.desk import add_views

    with tempfile.TemporaryDirectory() as folder:
        scene = new_scene(Path(folder))
        add_views(scene)
        yield scene
        scene.Clear(True)


def opened(scene: Any, folder: Path, k: int) -> tuple[Any, Callable[[str], str], Any]:
    """A series in the scene, all views at the middle of a slice; its node, its files, that place in world RAS mm."""
    from medsight_core.mrml.views import jump_to
    from medsight_core.mrml.volumes import volume_of
    from tests.slicer.series import load, to_ras

    node, file_of = load(scene, folder)
    frame = volume_of(node).require_frame()
    middle = to_ras(frame, k, frame.shape[1] / 2, frame.shape[2] / 2)
    jump_to(scene, middle)
    return node, file_of, middle


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; 0 where all is as it was, or was kept for the first time."""
    parser = argparse.ArgumentParser(prog="python -m tests.slicer.reference", description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="where answers and masks are kept")
    parser.add_argument("--data", type=Path, default=DATA, help="folder of the DICOM series")
    parser.add_argument("--server", default="", help="ask this one; its token is taken from MEDSIGHT_TOKEN")
    parser.add_argument("--anew", action="store_true", help="replace what was kept")
    given = parser.parse_args(arguments)

    def say(sentence: str) -> None:
        sys.stdout.write(f"{sentence}\n")
        sys.stdout.flush()

    if not all((given.data / case.series).is_dir() for case in CASES):
        say(f"The series are not in {given.data}: give their folder with --data.")
        return 2
    sys.path.insert(0, str(REPOSITORY / "SlicerMedSIGHT"))
    with contextlib.ExitStack() as stack:
        url, token = given.server, os.environ.get("MEDSIGHT_TOKEN")
        if not url:
            python = server_python()
            if python is None:
                say("There is no Python with torch to serve with: set MEDSIGHT_SERVER_PYTHON, or give --server.")
                return 2
            store = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            url = stack.enter_context(serving(python, store))
        try:
            now = run(given.data, RemoteBackend(url, token=token), say)
        except MedSightError as error:
            say(str(error))
            return 2
    where = f"{now.model['name']} ({now.model['digest'][:8]}) on {now.model['device']}, {now.model['dtype']}"
    what = f"{len(now.turns)} answers and {len(now.masks)} masks of {where}"
    if given.anew or not (given.folder / ANSWERS).is_file():
        now.save(given.folder)
        say(f"Kept: {what}.")
        return 0
    before = Outcome.load(given.folder)
    found = differences(before, now)
    for sentence in found:
        say(f"DIFFERS  {sentence}")
    if not found:
        what += f", least Dice {min(map(dice, before.masks.values(), now.masks.values()), default=1.0):.6f}"
    say(f"{'Not as it was' if found else 'As it was'}: {what}; kept were those of {before.model['device']}.")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())

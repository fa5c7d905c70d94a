"""The assistant at work in a scene: real workers, a backend without a model that finds what is bright, three views."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medsight_core.backend import SegmentRequest, Whole
from medsight_core.errors import MedSightError
from medsight_core.events import Event, Failed
from medsight_core.regions import Question
from tests.server.bright import Brightness
from tests.slicer.bodies import matrix

SHAPE = (6, 20, 30)
PATIENCE = 30.0


class Gated(Brightness):
    """Says one event at a time, each when it is let; notes what it was asked.

    Attributes:
        gate: Whether it may go on.
        asked: Questions and requests.
        fails: Raised instead of an answer, once.
    """

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.gate.set()
        self.asked: list[Question | SegmentRequest] = []
        self.wholes: list[Whole | None] = []
        self.fails: MedSightError | None = None

    def ask(self, question: Question, *, whole: Whole | None = None, **options: Any) -> Iterator[Event]:
        self.asked.append(question)
        self.wholes.append(whole)
        return self._let(super().ask(question, whole=whole), options.get("cancel"))

    def segment(self, request: SegmentRequest, *, cancel: threading.Event | None = None) -> Iterator[Event]:
        self.asked.append(request)
        return self._let(super().segment(request), cancel)

    def _let(self, events: Iterator[Event], cancel: threading.Event | None) -> Iterator[Event]:
        if self.fails is not None:
            error, self.fails = self.fails, None
            raise error
        for event in events:
            yield event
            while not self.gate.wait(0.01):
                if cancel is not None and cancel.is_set():
                    yield Failed("stopped", "Stopped.")
                    return


class Desk:
    """An assistant, who it asks, and the poll.

    Args:
        library: ``MedSIGHTLib``.
        file_of: Finds the files of DICOM instances.
    """

    def __init__(self, library: Any, *, file_of: Callable[[str], str] = lambda uid: "") -> None:
        self.backend = Gated()
        self.refusal: MedSightError | None = None
        self.workers: list[Any] = []
        self.changes = 0
        self.library = library
        self.assistant = library.assistant.Assistant(begin=self._begin, connect=self._connect, file_of=file_of)
        self.assistant.on_change(self._changed)

    def settle(self, until: Callable[[], bool] | None = None) -> None:
        """Pumps until something holds, or until nothing runs any more."""
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            more = self.assistant.pump()
            if until is not None and until():
                return
            if until is None and not more and not self.running:
                self.assistant.pump()
                if not self.running:
                    return
            time.sleep(0.002)
        raise AssertionError("it goes on and on")

    @property
    def running(self) -> bool:
        return any(worker.living for worker in self.workers)

    def ask(self, text: str = "What is bright?", whole: bool = False) -> Any:
        """A whole turn."""
        assert self.assistant.ask(text, whole), self.assistant.notice
        self.settle()
        return self.assistant.conversation.last

    def click(self, ras: Any, positive: bool = True) -> Any:
        """A whole turn of pointing."""
        assert self.assistant.click(ras, positive), self.assistant.notice
        self.settle()
        return self.assistant.conversation.last

    def mask(self, key: str) -> NDArray[np.bool_]:
        """Of a finding, as it is in the scene."""
        segments = self.assistant.segments
        found: NDArray[np.bool_] = segments.mask(segments.ids[key])
        return found

    def _begin(self, work: Any) -> Any:
        worker = self.library.worker.Worker(work)
        self.workers.append(worker)
        worker.start()
        return worker

    def _connect(self) -> Gated:
        if self.refusal is not None:
            raise self.refusal
        return self.backend

    def _changed(self) -> None:
        self.changes += 1


def lit(name: str = "scan", *, turn: float = 0.0, shape: tuple[int, int, int] = SHAPE) -> tuple[Any, NDArray[np.bool_]]:
    """A volume with two bright boxes, and where they are."""
    import slicer

    bright = np.zeros(shape, dtype=bool)
    bright[1 : shape[0] - 1, 4:9, 5:12] = True
    bright[2 : shape[0] - 2, 12:16, 20:24] = True
    values = np.where(bright, 1500, 0).astype(np.int16)
    return slicer.util.addVolumeFromArray(values, ijkToRAS=matrix(turn=turn), name=name), bright


def ras_of(node: Any, k: float, row: float, column: float) -> list[float]:
    """Where a voxel is in the world."""
    import vtk

    ijk_to_ras = vtk.vtkMatrix4x4()
    node.GetIJKToRASMatrix(ijk_to_ras)
    place = list(ijk_to_ras.MultiplyPoint([column, row, k, 1.0])[:3])
    through = vtk.vtkGeneralTransform()
    if node.GetParentTransformNode() is not None:
        node.GetParentTransformNode().GetTransformToWorld(through)
    return list(through.TransformPoint(place))


def add_views(scene: Any) -> dict[str, Any]:
    """The three slice views of Slicer's usual layout."""
    found = {}
    for name, orientation in (("Red", "Axial"), ("Yellow", "Sagittal"), ("Green", "Coronal")):
        node = scene.CreateNodeByClass("vtkMRMLSliceNode")  # as the scene's presets of orientation say
        node.UnRegister(None)
        node.SetName(name)
        node.SetLayoutName(name)
        node.SetSingletonTag(name)
        scene.AddNode(node)
        node.SetOrientation(orientation)
        node.SetDimensions(200, 200, 1)
        found[name] = node
    return found


def show(view: Any, node: Any, k: int) -> None:
    """Scrolls a view to a slice of a volume, as acquired."""
    view.JumpSliceByCentering(*ras_of(node, k, SHAPE[1] / 2, SHAPE[2] / 2))

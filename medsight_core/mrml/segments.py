"""The one segmentation that MedSIGHT keeps for a volume: a segment for each region, and nothing that a person made.

Each segment brings a layer of its own, as large as its bounding box, so neither overlaps nor edits of one touch another
one. The segmentation lies under the volume's transform. Every change can be taken back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import slicer
import vtk
from numpy.typing import NDArray
from vtk.util.numpy_support import numpy_to_vtk, vtk_to_numpy

from medsight_core.errors import InputError
from medsight_core.geometry import Frame
from medsight_core.measure import Measurements, measure
from medsight_core.mrml.space import FloatArray
from medsight_core.mrml.terminology import entry_of
from medsight_core.mrml.views import centre_in_world
from medsight_core.regions import Region, VolumeRegion
from medsight_core.terminology import display_colours, find_term

VOLUME_ROLE: Final = "MedSIGHT.volume"
"""Role of the reference from our segmentation to its volume."""

ALGORITHM: Final = "MedSIGHT"
DIMMED: Final = 0.15
"""Opacity of the other segments' fill while one is emphasised; that one has `FILLED`."""
FILLED: Final = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """A change that was made, and how it is taken back and made again."""

    back: Callable[[], None]
    again: Callable[[], None]


class Findings:
    """The segments of the regions that were found in one volume.

    Args:
        volume_node: Of the scan; its geometry is the segments'.
        frame: Of its voxels.
    """

    def __init__(self, volume_node: Any, frame: Frame) -> None:
        self._volume_node = volume_node
        self._frame = frame
        self._past: list[Step] = []
        self._future: list[Step] = []

    @property
    def node(self) -> Any | None:
        """The segmentation node; None while there was nothing to show."""
        scene = self._volume_node.GetScene()
        nodes = scene.GetNodesByClass("vtkMRMLSegmentationNode") if scene is not None else ()
        owned = (node for node in nodes if node.GetNodeReference(VOLUME_ROLE) is self._volume_node)
        return next(owned, None)

    @property
    def ids(self) -> tuple[str, ...]:
        """Of the segments, in their order."""
        node = self.node
        return () if node is None else tuple(node.GetSegmentation().GetSegmentIDs())

    def insert(
        self, regions: Sequence[Region | VolumeRegion], tags: Mapping[str, str] | None = None
    ) -> tuple[str, ...]:
        """A segment for each region, as one step.

        Args:
            regions: On the grid of the volume, none of them empty.
            tags: To be kept with every segment, such as the question and the model's digest.

        Returns:
            The segments' ids, in the order of the regions.

        Raises:
            InputError: other_grid, empty_region. Nothing was inserted then.
        """
        made = [self._segment(region, tags or {}) for region in regions]
        names = [region.label for region in regions]
        for segment, colour in zip(made, display_colours(names), strict=True):
            segment.SetColor(*(channel / 255 for channel in colour.rgb))
        if not made:
            return ()
        node = self._ensure()
        segmentation = node.GetSegmentation()
        ids = tuple(segmentation.GenerateUniqueSegmentID(f"MedSIGHT_{len(self.ids) + n + 1}") for n in range(len(made)))

        def again() -> None:
            with _modifying(self._ensure()) as into:
                for name, segment in zip(ids, made, strict=True):
                    into.GetSegmentation().AddSegment(segment, name)

        def back() -> None:
            for name in ids:
                self._segmentation().RemoveSegment(name)

        self._do(Step(back=back, again=again))
        return ids

    def remove(self, segment_id: str) -> None:
        """Deletes a segment; it comes back by `undo`, as it is now, at its place among the others."""
        segmentation = self._segmentation()
        kept = slicer.vtkSegment()
        kept.DeepCopy(self._get(segment_id))
        place = segmentation.GetSegmentIndex(segment_id)

        def back() -> None:
            into = self._segmentation()
            behind = into.GetNthSegmentID(place) if place < into.GetNumberOfSegments() else ""
            into.AddSegment(kept, segment_id, behind)

        self._do(Step(back=back, again=lambda: self._segmentation().RemoveSegment(segment_id)))

    def rename(self, segment_id: str, name: str) -> None:
        """Calls a segment otherwise; what it is in codes follows the name."""
        segment = self._get(segment_id)
        tag = segment.GetTerminologyEntryTagName()
        before = segment.GetName(), _tag(segment, tag)
        after = name.strip(), entry_of(find_term(name))
        if not after[0]:
            raise InputError("empty_name", "A finding needs a name.", "Type one.")

        def called(words: tuple[str, str]) -> None:
            self._get(segment_id).SetName(words[0])
            self._get(segment_id).SetTag(tag, words[1])

        self._do(Step(back=lambda: called(before), again=lambda: called(after)))

    def show(self, segment_id: str, visible: bool) -> None:
        """Shows or hides a segment; nothing to take back, as nothing is lost."""
        self._get(segment_id)
        self._display().SetSegmentVisibility(segment_id, visible)

    def is_shown(self, segment_id: str) -> bool:
        """Whether a segment is shown."""
        return bool(self._display().GetSegmentVisibility(segment_id))

    def emphasise(self, segment_id: str | None) -> None:
        """Lets one segment stand out; None ends that."""
        display = self._display()
        for one in self.ids:
            display.SetSegmentOpacity2DFill(one, DIMMED if segment_id not in (None, one) else FILLED)

    def undo(self) -> bool:
        """Takes the last step back; False where there is none."""
        if not self._past:
            return False
        step = self._past.pop()
        step.back()
        self._future.append(step)
        return True

    def redo(self) -> bool:
        """Makes again what was taken back; False where there is nothing."""
        if not self._future:
            return False
        step = self._future.pop()
        step.again()
        self._past.append(step)
        return True

    def part(self, segment_id: str) -> tuple[NDArray[np.bool_], Frame, tuple[int, int, int]]:
        """A segment's voxels within their bounding box.

        Returns:
            ``(slices, rows, columns)`` of the box, its frame, and the index of its first voxel in the volume. A segment
            without voxels has a box of one voxel that is outside.
        """
        labels = slicer.vtkOrientedImageData()
        self.node_or_raise().GetBinaryLabelmapRepresentation(segment_id, labels)
        if labels.IsEmpty() or not _same_grid(labels, self._volume_node):
            whole = slicer.util.arrayFromSegmentBinaryLabelmap(self.node, segment_id, self._volume_node)
            mask = np.zeros(self._frame.shape, dtype=bool) if whole is None else whole > 0
            first = (0, 0, 0)
        else:
            extent = np.array(labels.GetExtent()).reshape(3, 2)[::-1]
            values = vtk_to_numpy(labels.GetPointData().GetScalars()).reshape(extent[:, 1] - extent[:, 0] + 1) > 0
            low = np.maximum(extent[:, 0], 0)
            high = np.minimum(extent[:, 1] + 1, self._frame.shape)
            inside = tuple(slice(a - e, b - e) for a, b, e in zip(low, high, extent[:, 0], strict=True))
            mask, first = values[inside], (int(low[0]), int(low[1]), int(low[2]))
        box = _box(mask)
        if box is None:
            mask, inner = np.zeros((1, 1, 1), dtype=bool), (0, 0, 0)
        else:
            mask, inner = mask[box], (box[0].start, box[1].start, box[2].start)
        start = (first[0] + inner[0], first[1] + inner[1], first[2] + inner[2])
        frame = Frame(
            shape=(mask.shape[0], mask.shape[1], mask.shape[2]),
            origin=self._frame.to_lps(start),
            spacing=self._frame.spacing,
            direction=self._frame.direction,
            physical=self._frame.physical,
        )
        return mask, frame, start

    def mask(self, segment_id: str) -> NDArray[np.bool_]:
        """A segment on the volume's whole grid."""
        part, _, start = self.part(segment_id)
        whole = np.zeros(self._frame.shape, dtype=bool)
        whole[tuple(slice(a, a + n) for a, n in zip(start, part.shape, strict=True))] = part
        return whole

    def measured(self, segment_id: str) -> Measurements:
        """Volume, diameters and mean of a segment as it is now, also after a person edited it."""
        part, frame, start = self.part(segment_id)
        values = slicer.util.arrayFromVolume(self._volume_node)
        values = values[tuple(slice(a, a + n) for a, n in zip(start, part.shape, strict=True))]
        return measure(part, frame, values=values if values.ndim == 3 else None)

    def centre(self, segment_id: str) -> FloatArray:
        """A voxel of the segment next to the middle of it, in world RAS mm: never beside a crescent.

        Raises:
            InputError: empty_segment.
        """
        part, frame, _ = self.part(segment_id)
        inside = np.argwhere(part)
        if not len(inside):
            raise InputError("empty_segment", f'"{self._get(segment_id).GetName()}" has no voxels left.')
        apart = (inside - inside.mean(axis=0)) * frame.spacing
        nearest = inside[np.argmin((apart**2).sum(axis=1))]
        return centre_in_world(frame.to_lps(nearest), self._volume_node)

    def node_or_raise(self) -> Any:
        """The segmentation node.

        Raises:
            InputError: no_segmentation.
        """
        if (node := self.node) is None:
            raise InputError("no_segmentation", "The segmentation was deleted.", "Ask again.")
        return node

    def _do(self, step: Step) -> None:
        step.again()
        self._past.append(step)
        self._future.clear()

    def _segmentation(self) -> Any:
        return self.node_or_raise().GetSegmentation()

    def _display(self) -> Any:
        return self.node_or_raise().GetDisplayNode()

    def _get(self, segment_id: str) -> Any:
        segment = self._segmentation().GetSegment(segment_id)
        if segment is None:
            raise InputError("no_segment", "This finding is not in the scene any more.", "Undo, or ask again.")
        return segment

    def _ensure(self) -> Any:
        node = self.node
        if node is None:
            scene = self._volume_node.GetScene()
            node = scene.AddNewNodeByClass("vtkMRMLSegmentationNode", f"{self._volume_node.GetName()} MedSIGHT")
            node.CreateDefaultDisplayNodes()
            node.SetReferenceImageGeometryParameterFromVolumeNode(self._volume_node)
            node.SetNodeReferenceID(VOLUME_ROLE, self._volume_node.GetID())
        node.SetAndObserveTransformNodeID(self._volume_node.GetTransformNodeID())
        return node

    def _segment(self, region: Region | VolumeRegion, tags: Mapping[str, str]) -> Any:
        segment = slicer.vtkSegment()
        segment.SetName(region.label)
        segment.SetTag(segment.GetTerminologyEntryTagName(), entry_of(find_term(region.label)))
        segment.SetTag("DICOM.SegmentAlgorithmType", "AUTOMATIC")
        segment.SetTag("DICOM.SegmentAlgorithmName", ALGORITHM)
        segment.SetTag("MedSIGHT.Code", region.code)
        segment.SetTag("MedSIGHT.Score", f"{region.score:.4f}")
        for name, value in tags.items():
            segment.SetTag(f"MedSIGHT.{name}", value)
        segment.AddRepresentation(
            slicer.vtkSegmentationConverter.GetSegmentationBinaryLabelmapRepresentationName(), self._labels(region)
        )
        return segment

    def _labels(self, region: Region | VolumeRegion) -> Any:
        """The bounding box of a region's mask as an image in its place."""
        whole, first = (region.mask, 0) if isinstance(region, VolumeRegion) else (region.mask[None], region.slice_index)
        wanted = self._frame if isinstance(region, VolumeRegion) else self._frame.slice(first)
        if not region.frame.is_close(wanted):
            raise InputError("other_grid", f'The region "{region.label}" does not lie on the grid of this volume.')
        box = _box(whole)
        if box is None:
            raise InputError("empty_region", f'The region "{region.label}" has no voxels.')
        labels = slicer.vtkOrientedImageData()
        slices, rows, columns = box
        ends = ((columns, 0), (rows, 0), (slices, first))
        labels.SetExtent(*(end for one, shift in ends for end in (one.start + shift, one.stop - 1 + shift)))
        scalars = numpy_to_vtk(np.ascontiguousarray(whole[box], dtype=np.uint8).ravel(), deep=1)
        scalars.SetName("ImageScalars")
        labels.GetPointData().SetScalars(scalars)
        matrix = vtk.vtkMatrix4x4()
        self._volume_node.GetIJKToRASMatrix(matrix)
        labels.SetGeometryFromImageToWorldMatrix(matrix)
        return labels


@contextmanager
def _modifying(node: Any) -> Iterator[Any]:
    """Many changes of a node as one, for those who watch it."""
    before = node.StartModify()
    try:
        yield node
    finally:
        node.EndModify(before)


def _box(mask: NDArray[np.bool_]) -> tuple[slice, slice, slice] | None:
    """The bounding box of a mask."""
    if not mask.any():
        return None
    ends = []
    for axis in range(3):
        covered = np.flatnonzero(mask.any(axis=tuple(other for other in range(3) if other != axis)))
        ends.append(slice(int(covered[0]), int(covered[-1]) + 1))
    return ends[0], ends[1], ends[2]


def _same_grid(labels: Any, volume_node: Any) -> bool:
    ours, theirs = vtk.vtkMatrix4x4(), vtk.vtkMatrix4x4()
    labels.GetImageToWorldMatrix(ours)
    volume_node.GetIJKToRASMatrix(theirs)
    return all(
        abs(ours.GetElement(row, column) - theirs.GetElement(row, column)) <= 1e-6
        for row in range(3)
        for column in range(4)
    )


def _tag(segment: Any, name: str) -> str:
    value = vtk.reference("")
    return str(value) if segment.GetTag(name, value) else ""

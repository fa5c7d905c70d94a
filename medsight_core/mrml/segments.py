"""The one segmentation that MedSIGHT keeps for a volume: a segment for each region, and nothing that a person made.

Each segment brings a layer of its own, as large as its bounding box, so neither overlaps nor edits of one touch another
one. The segmentation lies under the volume's transform.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final

import numpy as np
import slicer
import vtk
from numpy.typing import NDArray
from vtk.util.numpy_support import numpy_to_vtk, vtk_to_numpy

from medsight_core.chat.turns import Finding
from medsight_core.errors import InputError
from medsight_core.geometry import Frame
from medsight_core.imaging.segments import slicer_terminology
from medsight_core.measure import Measurements, measure
from medsight_core.mrml.space import FloatArray
from medsight_core.mrml.views import centre_in_world
from medsight_core.regions import Region, VolumeRegion
from medsight_core.terminology import display_colours, find_term

VOLUME_ROLE: Final = "MedSIGHT.volume"
"""Role of the reference from our segmentation to its volume."""

KEY: Final = "MedSIGHT.Key"
NAME: Final = "MedSIGHT.Name"
ALGORITHM: Final = "MedSIGHT"
DIMMED: Final = 0.15
"""Opacity of the other segments' fill, at most, while one is emphasised."""


class Segments:
    """The segments of what was found in one volume.

    Args:
        volume_node: Of the scan; its geometry is the segments'.
        frame: Of its voxels.
        known: Keys of findings that had a segment before, as in a restored scene: if it is gone, a person deleted it.
    """

    def __init__(self, volume_node: Any, frame: Frame, *, known: Iterable[str] = ()) -> None:
        self._volume_node = volume_node
        self._frame = frame
        self._placed = set(known)
        self._aside: dict[str, Any] = {}
        self._hidden: dict[str, bool] = {}
        self._fills: dict[str, float] = {}

    @property
    def frame(self) -> Frame:
        """Of the volume's voxels."""
        return self._frame

    @property
    def node(self) -> Any | None:
        """The segmentation node; None while there was nothing to show."""
        scene = self._volume_node.GetScene()
        nodes = scene.GetNodesByClass("vtkMRMLSegmentationNode") if scene is not None else ()
        owned = (node for node in nodes if node.GetNodeReference(VOLUME_ROLE) is self._volume_node)
        return next(owned, None)

    @property
    def ids(self) -> dict[str, str]:
        """Ids of our segments by the keys of their findings, in their order."""
        if (node := self.node) is None:
            return {}
        segmentation = node.GetSegmentation()
        found = ((one, tag_of(segmentation.GetSegment(one), KEY)) for one in segmentation.GetSegmentIDs())
        return {key: one for one, key in found if key}

    def sync(self, findings: Sequence[Finding], tags: Mapping[str, str] | None = None) -> None:
        """Brings the segments to what a conversation holds: adds, takes away, renames, shows and hides.

        A segment that is taken away comes back as it was, with what a person changed in it. One that a person deleted
        or renamed elsewhere is left so.

        Args:
            findings: Those that are kept, in their order; their regions lie on the grid of the volume and are not
                empty.
            tags: To be kept with every segment that is added, such as the question and the model's digest.

        Raises:
            InputError: other_grid, empty_region. Nothing was changed then.
        """
        wanted = {finding.key: finding for finding in findings}
        present = self.ids
        new = [one for one in findings if one.key not in present and one.key not in self._placed | self._aside.keys()]
        made = {finding.key: self._segment(finding, tags or {}) for finding in new}
        if not present and not made and not self._aside.keys() & wanted.keys():
            return
        for colour, finding in zip(display_colours(f.name for f in findings), findings, strict=True):
            if finding.key in made:
                made[finding.key].SetColor(*(channel / 255 for channel in colour.rgb))
        node = self._ensure()
        with _modifying(node) as into:
            for key in present.keys() - wanted.keys():
                self._take_away(key, present[key])
            for key in [key for key in wanted if key in made or key in self._aside]:
                self._put(key, made.get(key) or self._aside.pop(key), list(wanted))
            self._placed |= wanted.keys()
            for key, segment_id in self.ids.items():
                self._name(into.GetSegmentation().GetSegment(segment_id), wanted[key].name)
        # Not before the changes were told as one: the views would not be told which display node has changed.
        for key, segment_id in self.ids.items():
            hidden = wanted[key].hidden
            if self._hidden.get(key, False) != hidden:  # else a person's own choice in the views stays
                node.GetDisplayNode().SetSegmentVisibility(segment_id, not hidden)
        self._hidden = {key: finding.hidden for key, finding in wanted.items()}

    def forget(self) -> None:
        """Removes the segmentation from the scene, and what was set aside."""
        if (node := self.node) is not None:
            self._volume_node.GetScene().RemoveNode(node)
        self._placed.clear()
        self._aside.clear()

    def _take_away(self, key: str, segment_id: str) -> None:
        kept = slicer.vtkSegment()
        kept.DeepCopy(self._get(segment_id))
        self._aside[key] = kept
        self._segmentation().RemoveSegment(segment_id)

    def _put(self, key: str, segment: Any, order: Sequence[str]) -> None:
        """Adds a segment at its place among the others."""
        present, segmentation = self.ids, self._segmentation()
        behind = next((present[later] for later in order[order.index(key) + 1 :] if later in present), "")
        segmentation.AddSegment(segment, segmentation.GenerateUniqueSegmentID(f"MedSIGHT_{key}"), behind)

    def _name(self, segment: Any, name: str) -> None:
        """Takes over a name that was given in the conversation; what it is in codes follows."""
        if segment.GetName() and tag_of(segment, NAME) == tag_text(name):
            return
        segment.SetName(name)
        segment.SetTag(segment.GetTerminologyEntryTagName(), slicer_terminology(find_term(name)))
        segment.SetTag(NAME, tag_text(name))

    def emphasise(self, segment_id: str | None) -> None:
        """Lets one segment stand out; None ends that, and each is filled again as a person had it."""
        display, own = self._display(), self._fills
        for one in self.ids.values():
            fill = own.setdefault(one, display.GetSegmentOpacity2DFill(one))
            display.SetSegmentOpacity2DFill(one, min(fill, DIMMED) if segment_id not in (None, one) else fill)
        if segment_id is None:
            own.clear()

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
        counts = [part.sum(axis=tuple(other for other in range(3) if other != axis)) for axis in range(3)]
        if not counts[0].any():
            raise InputError("empty_segment", f'"{self._get(segment_id).GetName()}" has no voxels left.')
        middle = np.array([np.average(np.arange(len(one)), weights=one) for one in counts])
        nearest = np.rint(middle).astype(int)
        if not part[tuple(nearest)]:  # else no other voxel is nearer, and looking at each takes half a second
            inside = np.argwhere(part)
            nearest = inside[np.argmin((((inside - middle) * frame.spacing) ** 2).sum(axis=1))]
        return centre_in_world(frame.to_lps(nearest), self._volume_node)

    def node_or_raise(self) -> Any:
        """The segmentation node.

        Raises:
            InputError: no_segmentation.
        """
        if (node := self.node) is None:
            raise InputError("no_segmentation", "The segmentation was deleted.", "Ask again.")
        return node

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

    def _segment(self, finding: Finding, tags: Mapping[str, str]) -> Any:
        region = finding.region
        segment = slicer.vtkSegment()
        self._name(segment, finding.name)
        segment.SetTag("DICOM.SegmentAlgorithmType", "AUTOMATIC")
        segment.SetTag("DICOM.SegmentAlgorithmName", ALGORITHM)
        segment.SetTag(KEY, finding.key)
        segment.SetTag("MedSIGHT.Code", tag_text(region.code))
        segment.SetTag("MedSIGHT.Score", f"{region.score:.4f}")
        for name, value in tags.items():
            segment.SetTag(f"MedSIGHT.{name}", tag_text(value))
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


def tag_text(text: str) -> str:
    """Any text as the value of a tag: Slicer writes all tags of a segment into one line, with | between them."""
    return " ".join(text.split()).replace("|", "¦")


def tag_of(segment: Any, name: str) -> str:
    """A tag of a segment; "" where it has none of that name."""
    value = vtk.reference("")
    return str(value) if segment.GetTag(name, value) else ""

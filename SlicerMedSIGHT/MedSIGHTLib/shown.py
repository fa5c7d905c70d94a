"""What a conversation's findings are in the scene: segments, with their colours and measurements. No Qt in here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import slicer

from medsight_core.chat import Finding
from medsight_core.errors import InputError
from medsight_core.geometry import Frame
from medsight_core.measure import Measurements, measure
from medsight_core.mrml.segments import Segments

from .chores import Chores
from .words import _

GREY: Final = "#808080"
"""Of a finding that has no segment."""


class Shown:
    """The segments of one volume's findings.

    Args:
        node: Of the volume.
        frame: Of its voxels.
        chores: Does the measuring.
        known: Keys of findings whose segments may be in the scene already.

    Attributes:
        segments: In the scene.
        measurements: How many have been taken so far.
    """

    def __init__(self, node: Any, frame: Frame, *, chores: Chores, known: Sequence[str] = ()) -> None:
        self._node = node
        self._chores = chores
        self.segments = Segments(node, frame, known=known)
        self.measurements = 0
        self._measured: dict[str, tuple[tuple[int, ...], Measurements | None]] = {}

    def sync(self, findings: Sequence[Finding], tags: dict[str, str]) -> None:
        """Brings the segments to what was found.

        Args:
            findings: All of them.
            tags: Of the segments that are new.

        Raises:
            MedSightError: See `Segments.sync`.
        """
        self.segments.sync([one for one in findings if self._has_voxels(one)], tags)

    def measured(self, key: str) -> Measurements | None:
        """Measurements of a finding's segment as it is now; None until they are there, or where there are none."""
        segment_id = self._id(key)
        if segment_id is None or self._node.GetImageData() is None:
            return None
        stamp, known = self._stamp(segment_id), self._measured.get(key)
        if known is None or known[0] != stamp:
            self._measured[key] = (stamp, None)
            part, frame, start = self.segments.part(segment_id)
            voxels = slicer.util.arrayFromVolume(self._node)
            if part.any() and voxels.shape[:3] == self.segments.frame.shape:
                box = tuple(slice(a, a + n) for a, n in zip(start, part.shape, strict=True))
                values = voxels[box] if voxels.ndim == 3 else None
                self._chores.add(
                    f"measure {key}",
                    lambda: measure(part, frame, values=values, first_slice=start[0]),
                    lambda found: self._note(key, stamp, found),
                )
        return self._measured[key][1]

    def colour(self, key: str) -> str:
        """Of a finding's segment, as "#rrggbb"; grey where it has none."""
        segment_id = self._id(key)
        if segment_id is None:
            return GREY
        colour = self.segments.node_or_raise().GetSegmentation().GetSegment(segment_id).GetColor()
        return "#" + "".join(f"{round(255 * channel):02x}" for channel in colour)

    def place_of(self, key: str) -> Any:
        """A voxel of a finding next to the middle of it, in world RAS mm ``(3,)``.

        Raises:
            InputError: no_segment, empty_segment.
        """
        return self.segments.centre(self._id_or_raise(key))

    def emphasise(self, key: str | None) -> None:
        """Lets a finding's segment stand out; None ends that."""
        if self.segments.node is not None:
            self.segments.emphasise(None if key is None else self._id(key))

    def select(self, key: str) -> None:
        """Makes a finding's segment the one that Slicer's Segment Editor works on.

        Raises:
            InputError: no_segment.
        """
        segment_id = self._id_or_raise(key)
        editor = self._node.GetScene().GetSingletonNode("SegmentEditor", "vtkMRMLSegmentEditorNode")
        if editor is not None:
            editor.SetAndObserveSegmentationNode(self.segments.node_or_raise())
            editor.SetAndObserveSourceVolumeNode(self._node)
            editor.SetSelectedSegmentID(segment_id)

    def _id(self, key: str) -> str | None:
        return None if self._node.GetScene() is None else self.segments.ids.get(key)

    def _id_or_raise(self, key: str) -> str:
        segment_id = self._id(key)
        if segment_id is None:
            raise InputError("no_segment", _("This finding is not in the scene any more."), _("Undo, or ask again."))
        return segment_id

    def _has_voxels(self, finding: Finding) -> bool:
        """Whether there is anything to show; what is shown already has been looked at."""
        return self._id(finding.key) is not None or bool(finding.region.mask.any())

    def _note(self, key: str, stamp: tuple[int, ...], found: Measurements | None) -> None:
        self._measured[key] = (stamp, found)
        self.measurements += 1

    def _stamp(self, segment_id: str) -> tuple[int, ...]:
        """Equal as long as neither the segment nor the volume changes."""
        segment = self.segments.node_or_raise().GetSegmentation().GetSegment(segment_id)
        labels = segment.GetRepresentation("Binary labelmap")
        return (0 if labels is None else labels.GetMTime(), self._node.GetImageData().GetMTime())

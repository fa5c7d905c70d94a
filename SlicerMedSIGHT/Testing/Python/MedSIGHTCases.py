"""Checks of the module that need no server: ``MedSIGHTTest`` runs them inside Slicer, ``tests/slicer`` without it.

Each is given a ``unittest.TestCase`` and an empty scene. Who is asked is in this process, and finds what is bright.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import numpy as np
import slicer
import vtk

CASES = (
    "masks_come_back_bit_for_bit",
    "masks_follow_a_transform",
    "an_answer_becomes_segments_that_can_be_undone",
    "a_structure_is_pointed_at_and_refined",
    "a_click_outside_is_refused_in_words",
    "a_conversation_is_restored",
    "a_volume_that_is_removed_harms_nothing",
    "findings_are_written_to_files",
)
SHAPE = (6, 20, 30)
PATIENCE = 20.0


class Bright:
    """A backend that finds what is bright on a slice, or the bright structure at a point."""

    def info(self):
        from medsight_core.backend import PROTOCOL, Info

        return Info(version="0", protocol=PROTOCOL, model="bright", digest="0" * 64, device="cpu", dtype="float32")

    def open(self, volume, *, on_progress=None):
        from medsight_core.backend import Handle

        return Handle(volume=volume)

    def ask(self, question, *, whole=None, cancel=None, max_new_tokens=None):
        from medsight_core.events import TextDelta

        yield TextDelta("Something bright.")
        volume, k = question.volume, question.slice_index
        yield from self._found(volume, k, volume.array[k] >= 1000, "Something bright.")

    def segment(self, request, *, cancel=None):
        volume, k = request.volume, request.slice_index
        mask = np.zeros(volume.array.shape[1:], dtype=bool)
        for stroke in request.strokes:
            column = volume.slice_frame(k).to_index(stroke.prompt.points)[0, 2]
            box = np.zeros_like(mask)
            half = SHAPE[2] // 2  # one structure on each side
            box[:, slice(None, half) if column < half else slice(half, None)] = True
            at = (volume.array[k] >= 1000) & box
            mask = mask | at if stroke.prompt.positive else mask & ~at
        yield from self._found(volume, k, mask, "")

    def close(self):
        pass

    def _found(self, volume, k, mask, text):
        from medsight_core.events import Done, RegionFound
        from medsight_core.regions import Answer, Provenance, Region, Span

        region = Region(
            code="[C0_0]",
            label="bright",
            span=Span(10, 16) if text else Span(0, 0),
            score=0.9,
            slice_index=k,
            mask=mask,
            frame=volume.slice_frame(k),
        )
        yield RegionFound(region)
        origin = Provenance(model="bright", digest="0" * 64)
        yield Done(Answer(text=text, raw=text, regions=(region,), warnings=(), provenance=origin))


class Opened:
    """The module's window on the scene, asking `Bright`."""

    def __init__(self, node=None):
        from MedSIGHTLib.window import Window

        self.window = Window(slicer.mrmlScene)
        self.window.connection.connect = Bright
        self.assistant = self.window.assistant
        if node is not None:
            self.assistant.choose(node)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        from MedSIGHTLib._qt import dispose

        self.window.close()
        dispose(self.window.widget)  # it has no parent that would delete it

    def ask(self, text):
        """Types a question, and waits for the end of the answer."""
        self.window.chat.send(text)
        self.wait()
        return self.assistant.conversation.last

    def click(self, ras, positive=True):
        self.assistant.click(ras, positive)
        self.wait()

    def wait(self):
        end = time.monotonic() + PATIENCE
        while self.assistant.busy:
            if time.monotonic() > end:
                raise AssertionError("no answer came")
            slicer.app.processEvents()
            time.sleep(0.002)


def volume(turn=0.0, name="scan"):
    """A volume with a bright box on each side, and where they are."""
    bright = np.zeros(SHAPE, dtype=bool)
    bright[1:5, 4:9, 5:12] = True
    bright[2:4, 12:16, 20:24] = True
    rotation = vtk.vtkTransform()
    rotation.Translate(30, -12, 40)
    rotation.RotateWXYZ(turn, 1, 2, 2)
    rotation.Scale(-0.7, -0.7, 2.5)
    values = np.where(bright, 1500, 0).astype(np.int16)
    ijkToRAS = slicer.util.arrayFromVTKMatrix(rotation.GetMatrix())
    return slicer.util.addVolumeFromArray(values, ijkToRAS=ijkToRAS, name=name), bright


def place(node, k, row, column):
    """Where a voxel is in the world."""
    ijkToRAS = vtk.vtkMatrix4x4()
    node.GetIJKToRASMatrix(ijkToRAS)
    ras = list(ijkToRAS.MultiplyPoint([column, row, k, 1.0])[:3])
    through = vtk.vtkGeneralTransform()
    slicer.vtkMRMLTransformNode.GetTransformBetweenNodes(node.GetParentTransformNode(), None, through)
    return list(through.TransformPoint(ras))


def redView(node, k):
    """The Red view, scrolled to a slice."""
    view = slicer.mrmlScene.GetNodeByID("vtkMRMLSliceNodeRed")
    if view is None:
        view = slicer.mrmlScene.CreateNodeByClass("vtkMRMLSliceNode")
        view.UnRegister(None)
        view.SetLayoutName("Red")
        view.SetSingletonTag("Red")
        view = slicer.mrmlScene.AddNode(view)
    view.SetOrientation("Axial")
    view.JumpSliceByCentering(*place(node, k, SHAPE[1] / 2, SHAPE[2] / 2))
    return view


def masks(assistant, node):
    """Of all findings, as Slicer itself sees them."""
    segments = assistant.segments
    return [
        slicer.util.arrayFromSegmentBinaryLabelmap(segments.node, one, node) > 0
        for one in (segments.ids[finding.key] for finding in assistant.conversation.findings)
    ]


def masks_come_back_bit_for_bit(case):
    for turn in (0.0, 20.0, -75.0):
        node, bright = volume(turn, f"turned by {turn}")
        with Opened(node) as opened:
            for k in range(1, 5):
                opened.click(place(node, k, 6, 8))
                opened.assistant.begin_another()
            for k, mask in zip(range(1, 5), masks(opened.assistant, node), strict=True):
                case.assertTrue(np.array_equal(mask[k, :, :15], bright[k, :, :15]))
                case.assertEqual(int(mask.sum()), 35)


def masks_follow_a_transform(case):
    node, bright = volume(20.0)
    transform = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLinearTransformNode")
    moved = vtk.vtkTransform()
    moved.Translate(25, 0, 3)
    moved.RotateWXYZ(30, 1, 1, 0)
    transform.SetMatrixTransformToParent(moved.GetMatrix())
    node.SetAndObserveTransformNodeID(transform.GetID())
    with Opened(node) as opened:
        opened.click(place(node, 3, 6, 8))
        case.assertEqual(opened.assistant.segments.node.GetTransformNodeID(), transform.GetID())
        case.assertTrue(np.array_equal(masks(opened.assistant, node)[0][3, :, :15], bright[3, :, :15]))


def an_answer_becomes_segments_that_can_be_undone(case):
    node, bright = volume()
    view = redView(node, 3)
    with Opened(node) as opened:
        turn = opened.ask("What is bright? <b>")
        case.assertEqual((turn.state, turn.asked.slice_index), ("done", 3))
        case.assertTrue(np.array_equal(masks(opened.assistant, node)[0][3], bright[3]))
        view.JumpSliceByCentering(0, 0, 0)
        case.assertTrue(opened.assistant.go_to(turn.findings[0].key))
        sliceToRAS = view.GetSliceToRAS()
        wanted = opened.assistant.segments.centre(opened.assistant.segments.ids["1.1"])
        case.assertTrue(np.allclose([sliceToRAS.GetElement(n, 3) for n in range(3)], wanted, atol=1e-3))
        opened.assistant.undo()
        case.assertFalse(opened.assistant.segments.ids)
        opened.assistant.redo()
        case.assertTrue(np.array_equal(masks(opened.assistant, node)[0][3], bright[3]))


def a_structure_is_pointed_at_and_refined(case):
    node, bright = volume()
    with Opened(node) as opened:
        for k, row, column, positive, voxels in ((3, 6, 8, True, 35), (3, 13, 21, True, 51), (3, 13, 22, False, 35)):
            opened.click(place(node, k, row, column), positive)
            (mask,) = masks(opened.assistant, node)
            case.assertEqual(int(mask.sum()), voxels)
        opened.assistant.undo()
        case.assertTrue(np.array_equal(masks(opened.assistant, node)[0][3], bright[3]))


def a_click_outside_is_refused_in_words(case):
    node, _ = volume()
    with Opened(node) as opened:
        case.assertFalse(opened.assistant.click(place(node, 3, 6, 900)))
        case.assertIn("outside the volume", opened.assistant.notice)
        case.assertFalse(opened.assistant.conversation.turns)


def a_conversation_is_restored(case):
    node, _ = volume()
    redView(node, 3)
    with Opened(node) as opened:
        opened.ask("Où? 肝臓")
        opened.assistant.rename("1.1", "Läsion")
    with Opened(node) as opened:
        case.assertEqual([turn.asked.text for turn in opened.assistant.conversation.turns], ["Où? 肝臓"])
        (segmentId,) = opened.assistant.segments.ids.values()
        segment = opened.assistant.segments.node.GetSegmentation().GetSegment(segmentId)
        case.assertEqual(segment.GetName(), "Läsion")
        case.assertEqual(slicer.mrmlScene.GetNumberOfNodesByClass("vtkMRMLSegmentationNode"), 1)


def a_volume_that_is_removed_harms_nothing(case):
    node, _ = volume()
    redView(node, 3)
    with Opened(node) as opened:
        opened.window.chat.send("What is bright?")
        slicer.mrmlScene.RemoveNode(node)
        for _ in range(50):
            slicer.app.processEvents()
            time.sleep(0.002)
        case.assertFalse(opened.assistant.busy)
        case.assertTrue(opened.assistant.notice)


def findings_are_written_to_files(case):
    node, _ = volume(20.0)
    redView(node, 3)
    with Opened(node) as opened, tempfile.TemporaryDirectory() as folder:
        opened.ask("What is bright?")
        for kind in ("seg.nrrd", "nii.gz"):
            path = opened.assistant.export(kind, Path(folder) / f"findings.{kind}")
            case.assertGreater(path.stat().st_size, 0)
        case.assertTrue(any(note.stops for note in opened.assistant.check_export("dicom")))  # it is not DICOM

"""What the views show of findings: Slicer's own displayable managers, drawn in memory."""

from __future__ import annotations

import ctypes.util
import os
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("trame_slicer", reason="the views need slicer-core 5.11 and trame-slicer")

if "OSOpenGL" in os.environ.get("VTK_DEFAULT_OPENGL_WINDOW", "") and ctypes.util.find_library("OSMesa") is None:
    pytest.skip("OSMesa, which draws without a screen, is not installed", allow_module_level=True)

from medsight_core.mrml.views import jump_to
from tests.slicer.phantom import add_findings, add_phantom
from tests.slicer.windows import Windows, picture

BLENDED = 3
"""Of 255: how far a pixel may be from half its own colour and half the image's."""


@pytest.fixture(scope="module")
def windows() -> Iterator[Any]:
    yield Windows((240, 200))


@pytest.fixture
def shown(windows: Any) -> Iterator[Any]:
    """The phantom in all views, with its findings; turned, so that no view has its voxels in rows."""
    node, masks = add_phantom(turn=12.0)
    windows.show(node)
    segments, findings = add_findings(node, masks)
    yield windows, node, segments, findings
    segments.forget()
    windows.scene.RemoveNode(node)


def colour(segments: Any, segment_id: str) -> np.ndarray:
    return 255 * np.array(segments.node_or_raise().GetSegmentation().GetSegment(segment_id).GetColor())


@pytest.mark.parametrize("name", ["Red", "Yellow", "Green"])
def test_a_finding_lies_in_its_colour_where_its_voxels_are(shown: Any, name: str) -> None:
    windows, _node, segments, findings = shown
    view = windows.slices[name]
    display = segments.node.GetDisplayNode()
    # The lesion lies within the liver: two of a colour on one another are another matter.
    alone = {key: one for key, one in segments.ids.items() if key not in ("1.1", "1.5")}
    for segment_id in alone.values():
        place = segments.centre(segment_id)
        jump_to(windows.scene, place)
        row, column = windows.pixel_of(name, place)
        seen = picture(view)[row, column].astype(float)
        display.SetSegmentVisibility(segment_id, False)
        bare = picture(view)[row, column].astype(float)
        display.SetSegmentVisibility(segment_id, True)
        assert bare.std() < 1, "the image itself is grey"
        assert np.abs(seen - (bare + colour(segments, segment_id)) / 2).max() <= BLENDED
    assert len(alone) == len(findings) - 2


def test_what_is_hidden_leaves_nothing_in_any_view(shown: Any) -> None:
    windows, _node, segments, findings = shown
    jump_to(windows.scene, segments.centre(segments.ids["1.2"]))
    segments.sync([replace(finding, hidden=True) for finding in findings])
    for view in windows.slices.values():
        pixels = picture(view).astype(int)
        assert np.ptp(pixels, axis=-1).max() <= 1, "something is coloured"
    segments.sync(findings)
    assert all(np.ptp(picture(view).astype(int), axis=-1).max() > 50 for view in windows.slices.values())


def test_what_is_deleted_goes_from_the_views_and_undone_comes_back(shown: Any) -> None:
    windows, _node, segments, findings = shown
    place = segments.centre(segments.ids["1.2"])
    jump_to(windows.scene, place)
    views = windows.slices.values()
    before = [picture(view) for view in views]
    segments.sync([finding for finding in findings if finding.key != "1.2"])
    for view, (name, _) in zip(views, windows.slices.items(), strict=True):
        row, column = windows.pixel_of(name, place)
        assert np.ptp(picture(view)[row, column].astype(int)) <= 1
    segments.sync(findings)
    assert all(np.array_equal(picture(view), one) for view, one in zip(views, before, strict=True))


def test_going_to_a_finding_moves_all_three_views_there(shown: Any) -> None:
    windows, node, segments, _findings = shown
    for segment_id in segments.ids.values():
        for view in windows.slices.values():
            view.set_slice_value(-500.0)
        place = segments.centre(segment_id)
        jump_to(windows.scene, place)
        for name, view in windows.slices.items():
            matrix = view.get_view_node().GetSliceToRAS()
            normal = np.array([matrix.GetElement(axis, 2) for axis in range(3)])
            assert view.get_slice_value() == pytest.approx(float(normal @ place), abs=1e-3)
            row, column = windows.pixel_of(name, place)
            width, height = view.render_window().GetSize()
            assert (abs(row - height / 2) <= 1.5, abs(column - width / 2) <= 1.5) == (True, True), "centred"
    # What the middle of the segment is, Slicer says as well: it is inside the same box.
    middle = np.array(segments.node.GetSegmentCenterRAS(segments.ids["1.2"]))
    assert np.linalg.norm(middle - segments.centre(segments.ids["1.2"])) < 2 * max(node.GetSpacing())


def test_going_to_a_finding_centres_the_3d_view_and_keeps_its_side(shown: Any) -> None:
    windows, _node, segments, _findings = shown
    cameras = [camera.GetCamera() for camera in windows.scene.GetNodesByClass("vtkMRMLCameraNode")]
    assert cameras
    before = [(camera.GetDirectionOfProjection(), camera.GetDistance()) for camera in cameras]
    place = segments.centre(segments.ids["1.2"])
    jump_to(windows.scene, place)
    for camera, (direction, distance) in zip(cameras, before, strict=True):
        assert camera.GetFocalPoint() == pytest.approx(tuple(place))
        assert camera.GetDirectionOfProjection() == pytest.approx(direction)
        assert camera.GetDistance() == pytest.approx(distance)


def test_the_other_findings_step_back_while_one_is_pointed_at(shown: Any) -> None:
    windows, _node, segments, _findings = shown
    one, other = segments.ids["1.2"], segments.ids["1.3"]
    view = windows.slices["Red"]

    def strength(segment_id: str) -> int:
        place = segments.centre(segment_id)
        jump_to(windows.scene, place)
        row, column = windows.pixel_of("Red", place)
        return int(np.ptp(picture(view)[row, column].astype(int)))

    before = strength(one), strength(other)
    segments.emphasise(one)
    assert strength(one) == before[0]
    assert strength(other) < before[1] / 2
    segments.emphasise(None)
    assert (strength(one), strength(other)) == before


def test_findings_stand_in_space_in_their_colours(shown: Any) -> None:
    windows, _node, segments, findings = shown
    segments.node.CreateClosedSurfaceRepresentation()
    view_node = windows.space.get_view_node()
    view_node.SetBoxVisible(False)
    view_node.SetAxisLabelsVisible(False)
    windows.space.set_background_gradient_color([0, 0, 0], [0, 0, 0])
    windows.space.reset_view()
    windows.space.reset_focal_point()
    pixels = picture(windows.space).astype(float)
    lit = pixels.max(axis=-1) > 60
    assert 0.02 < lit.mean() < 0.6
    hues = pixels[lit] / np.linalg.norm(pixels[lit], axis=1, keepdims=True)
    for name in ("1.1", "1.2", "1.4"):
        wanted = colour(segments, segments.ids[name])
        share = ((hues @ (wanted / np.linalg.norm(wanted))) > 0.995).mean()
        assert share > 0.02, f"{name} cannot be seen"
    segments.sync([replace(finding, hidden=True) for finding in findings])
    assert picture(windows.space).max() <= 60
    segments.sync(findings)

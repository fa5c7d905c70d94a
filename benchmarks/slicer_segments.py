"""Regions of an answer into a scene of 3D Slicer, beside the way that Slicer's own Python helper does it, in turns.

    make test-slicer SLICERS=5.11.0.6        # sets up what it needs, once
    PYTHONPATH=. .venv-slicer-5.11.0.6/bin/python benchmarks/slicer_segments.py
        [--repeats 5] [--regions 5] [--shape 300 512 512] [--clock wall|cpu] [--json FILE]

A region has a bounding box that is much smaller than the scan; only that is brought into the scene. The other side is
`slicer.util.updateSegmentBinaryLabelmapFromArray`, which is given the whole mask. Measured as well: going back in the
conversation and forth again, measuring, and how much memory a region takes. Needs Slicer's libraries (slicer-core), and
no model.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

try:
    import slicer
    import vtk
except ImportError:
    print("Needs Slicer's libraries, which this Python does not have; see the top of this file.")
    raise SystemExit from None

from medsight_core.chat.turns import Finding
from medsight_core.geometry import Frame
from medsight_core.mrml.segments import Segments
from medsight_core.mrml.volumes import reading_of
from medsight_core.regions import Span, VolumeRegion

CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}
LABELS = ("liver", "spleen", "left kidney", "right kidney", "lesion", "aorta", "pancreas", "stomach")


def scene_of() -> Any:
    """A scene with the logics that Slicer's helper needs."""
    scene = slicer.mrmlScene = slicer.vtkMRMLScene()
    app = slicer.vtkSlicerApplicationLogic()
    app.SetMRMLScene(scene)
    app.GetColorLogic().SetMRMLScene(scene)
    app.GetColorLogic().AddDefaultColorNodes()
    app.SetModuleLogic("Colors", app.GetColorLogic())
    logics = {"segmentations": slicer.vtkSlicerSegmentationsModuleLogic(), "volumes": slicer.vtkSlicerVolumesLogic()}
    for logic in logics.values():
        logic.SetMRMLScene(scene)
        logic.SetMRMLApplicationLogic(app)
    slicer.modules = types.SimpleNamespace(
        **{name: types.SimpleNamespace(logic=lambda logic=logic: logic) for name, logic in logics.items()}
    )
    scene.app_logic = app
    return scene


def regions_in(frame: Frame, count: int) -> list[Finding]:
    """Ellipsoids, each about a third of the scan long, that overlap."""
    grid = np.ogrid[tuple(slice(n) for n in frame.shape)]
    found = []
    for n in range(count):
        place = (0.5, 0.3 + 0.4 * n / max(1, count - 1), 0.5)
        apart = sum(
            ((axis - part * size) / (half * size)) ** 2
            for axis, size, part, half in zip(grid, frame.shape, place, (0.3, 0.16, 0.18), strict=True)
        )
        mask: NDArray[np.bool_] = np.asarray(apart) < 1
        label = LABELS[n % len(LABELS)]
        region = VolumeRegion(code="[C0_16]", label=label, span=Span(0, 0), score=0.9, mask=mask, frame=frame)
        found.append(Finding(key=f"1.{n}", region=region, name=label))
    return found


def helper(node: Any, findings: list[Finding]) -> Any:
    """The same segments by Slicer's own helper."""
    made = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode")
    made.CreateDefaultDisplayNodes()
    made.SetReferenceImageGeometryParameterFromVolumeNode(node)
    for finding in findings:
        one = made.GetSegmentation().AddEmptySegment("", finding.name)
        slicer.util.updateSegmentBinaryLabelmapFromArray(finding.region.mask.astype(np.uint8), made, one, node)
    return made


def main() -> None:
    """Measures, prints the table, writes JSON where asked."""
    parser = argparse.ArgumentParser(description="Measure how regions get into a scene.")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--regions", type=int, default=5)
    parser.add_argument("--shape", type=int, nargs=3, default=(300, 512, 512))
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    clock = CLOCKS[given.clock]
    scene = scene_of()
    node = slicer.util.addVolumeFromArray(np.zeros(given.shape, dtype=np.int16))
    frame = reading_of(node).outline.require_frame()
    findings = regions_in(frame, given.regions)
    segments = Segments(node, frame)

    def timed(what: Callable[[], Any]) -> float:
        begin = clock()
        what()
        return clock() - begin

    seconds: dict[str, list[float]] = {"ours": [], "theirs": [], "undo": [], "measure": []}
    grown = 0.0
    for repeat in range(given.repeats):
        for side in ("ours", "theirs") if repeat % 2 == 0 else ("theirs", "ours"):
            if side == "theirs":
                begin = clock()
                made = helper(node, findings)
                seconds["theirs"].append(clock() - begin)
                scene.RemoveNode(made)
                continue
            segments.forget()
            before = _resident()
            seconds["ours"].append(timed(lambda: segments.sync(findings)))
            if repeat == 0:
                grown = _resident() - before
                assert all(
                    np.array_equal(segments.mask(one), finding.region.mask)
                    for one, finding in zip(segments.ids.values(), findings, strict=True)
                ), "a mask changed on its way"
            seconds["undo"].append(timed(lambda: (segments.sync(findings[:1]), segments.sync(findings))))
            seconds["measure"].append(timed(lambda: [segments.measured(one) for one in segments.ids.values()]))
    boxes = sum(segments.part(one)[0].nbytes for one in segments.ids.values()) / 2**20
    size = " x ".join(map(str, given.shape[::-1]))
    ratios = [ours / theirs for ours, theirs in zip(seconds["ours"], seconds["theirs"], strict=True)]
    rows = [
        (f"{given.regions} regions into {size} (s)", seconds["ours"], "< 1"),
        ("ours ÷ Slicer's helper", ratios, "≤ 0.5"),
        ("all but one taken away and brought back (s)", seconds["undo"], "< 1"),
        ("measuring all of them (s)", seconds["measure"], "-"),
        ("memory that the first time took (MiB)", [grown], f"≤ twice the bounding boxes, {boxes:.0f} MiB"),
    ]
    machine = (
        f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, "
        f"VTK {vtk.vtkVersion().GetVTKVersion()}, slicer-core {_slicer_core()}"
    )
    print(f"{machine}; {given.repeats} times, clock: {given.clock}, load {os.getloadavg()[0]:.1f}\n")
    print("| what | median | lowest to highest | goal |\n|---|---|---|---|")
    for name, values, goal in rows:
        print(f"| {name} | {statistics.median(values):.3g} | {min(values):.3g} to {max(values):.3g} | {goal} |")
    if given.json is not None:
        given.json.write_text(
            json.dumps({"machine": machine, "figures": {name: values for name, values, _ in rows}}, indent=2)
        )


def _resident() -> float:
    """Memory of the process now, MiB; 0 where the system does not say."""
    statm = Path("/proc/self/statm")
    return int(statm.read_text().split()[1]) * resource.getpagesize() / 2**20 if statm.is_file() else 0.0


def _slicer_core() -> str:
    from importlib.metadata import version

    return version("slicer-core")


if __name__ == "__main__":
    main()

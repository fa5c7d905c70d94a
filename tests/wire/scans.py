"""Volumes as hypothesis draws them: any grid, any kind of voxel, regular or not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import strategies as st

from medsight_core.errors import InputError
from medsight_core.geometry import Frame
from medsight_core.imaging.volume import Source, Volume
from medsight_core.wire.headers import MODALITIES

SECRET = "Doe^Jane"
LIMIT = 2**24

sides = st.integers(1, 9)
lengths = st.floats(0.01, 50, allow_nan=False)
places = st.floats(-5000, 5000, allow_nan=False)


@st.composite
def directions(draw: st.DrawFn) -> np.ndarray:
    """Unit columns at right angles: axial, oblique, mirrored."""
    if draw(st.booleans()):
        axes = np.eye(3)[draw(st.permutations(range(3)))]
        return axes * np.array(draw(st.lists(st.sampled_from((-1.0, 1.0)), min_size=3, max_size=3)))
    seed = draw(st.integers(0, 2**32 - 1))
    turned, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))
    return turned


@st.composite
def frames(draw: st.DrawFn, shape: tuple[int, int, int]) -> Frame:
    if draw(st.integers(0, 5)) == 0:
        return Frame.of_pixels(shape)
    origin, spacing = (draw(st.lists(one, min_size=3, max_size=3)) for one in (places, lengths))
    return Frame(
        shape=shape, origin=origin, spacing=spacing, direction=draw(directions()), physical=draw(st.booleans())
    )


@st.composite
def voxels(draw: st.DrawFn) -> np.ndarray:
    shape = (draw(st.integers(1, 4)), draw(sides), draw(sides))
    kind = draw(st.sampled_from(("int16", "float32", "grey", "colour")))
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    if kind == "float32":
        scale = draw(st.sampled_from((0.0, 1e-30, 1.0, 4000.0, 1e17, 1e38)))
        return (rng.normal(size=shape).clip(-3, 3) * scale).astype(np.float32)
    low, high = draw(st.sampled_from(((0, 1), (0, 256), (-1024, 3071), (-(2**15), 2**15))))
    if kind == "int16":
        return rng.integers(low, high, shape).astype(np.int16)
    return rng.integers(0, 256, shape if kind == "grey" else (*shape, 3), np.uint8)


@st.composite
def volumes(draw: st.DrawFn) -> Volume:
    """Any volume; whatever tells of a person is in it."""
    array = draw(voxels())
    shape = array.shape[:3]
    frame: Frame | None = draw(frames(shape))
    slices = tuple(frame.slice(k) for k in range(shape[0]))
    problem = None
    if draw(st.booleans()):
        slices = tuple(draw(frames((1, *shape[1:]))) for _ in range(shape[0]))
        frame, problem = None, InputError(draw(st.sampled_from(("gantry_tilt", "cine"))), f"{SECRET} moved.")
    window = st.tuples(st.floats(-1e6, 1e6), st.floats(1, 1e6))
    return Volume(
        array=array,
        frame=frame,
        slice_frames=slices,
        modality=draw(st.sampled_from(MODALITIES)),
        source=Source(
            kind=draw(st.sampled_from(("dicom", "nifti", "nrrd", "image"))),
            paths=(Path(SECRET),) * shape[0],
            series_uid="1.2.826.0.1.424242",
            frame_of_reference_uid=draw(st.sampled_from((None, "1.2.826.0.1.434343"))),
            dicom_modality=draw(st.sampled_from((None, "CT", "MR", "US", SECRET))),
            photometric=draw(st.sampled_from((None, "MONOCHROME1", "MONOCHROME2", "RGB", SECRET))),
            window=draw(st.none() | window),
            description=SECRET,
        ),
        warnings=(f"{SECRET} was here.",),
        problem=problem,
    )


def scan(shape: tuple[int, ...] = (3, 8, 6), *, seed: int = 0, **changes: Any) -> Volume:
    """A CT of 3 slices."""
    array = np.random.default_rng(seed).integers(-1000, 1000, shape).astype(np.int16)
    frame = Frame(shape=shape[:3], origin=(-10, 20, 30), spacing=(5, 0.7, 0.8), direction=np.eye(3)[::-1])
    whole = {
        "array": array,
        "frame": frame,
        "slice_frames": tuple(frame.slice(k) for k in range(shape[0])),
        "modality": "CT",
        "source": Source(kind="nifti", paths=()),
    }
    return Volume(**(whole | changes))

"""Images that clients of MONAI Label sent, held for a while in memory, and the way between their voxels and ours.

These clients speak in voxels (i, j, k) of the file that they sent, and expect masks on its grid. Our readers reorder
axes, so every coordinate and every mask goes through the file's own `Arrangement`, which is exact.
"""

from __future__ import annotations

import errno
import hashlib
import math
import re
import shutil
import tempfile
import threading
import time
import uuid
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, Final

import numpy as np
from numpy.typing import NDArray

from medsight_core.backend import Stroke
from medsight_core.errors import InputError, MedSightError
from medsight_core.imaging.files import sniff
from medsight_core.imaging.nifti import read_arrangement, read_nifti
from medsight_core.imaging.orientation import Arrangement
from medsight_core.imaging.planes import Reformatted, reformat
from medsight_core.imaging.volume import Volume
from medsight_core.regions import Prompt, PromptKind

EXPIRY: Final = 3600.0
"""Seconds without use after which an image is forgotten."""

UPLOAD_NAME: Final = "image"
"""What a file that was sent is called in sentences; its own name may be a patient's."""

LONGEST_UID: Final = 64

_UID: Final = re.compile(r"[0-9]+(\.[0-9]+){3,}", re.ASCII)

Voxel = tuple[float, float, float]


@dataclass(frozen=True, kw_only=True, eq=False)
class Upload:
    """An image that was sent.

    Attributes:
        volume: As it was read.
        arrangement: From the file's axes to the volume's.
    """

    volume: Volume
    arrangement: Arrangement

    @property
    def shape(self) -> tuple[int, int, int]:
        """(i, j, k) of the file."""
        return _shape_before(self.arrangement)

    @property
    def affine(self) -> NDArray[np.float64]:
        """``(4, 4)``, (i, j, k, 1) to LPS mm."""
        ours = np.zeros((4, 4))
        ours[3, 3] = 1.0
        sizes = self.arrangement.shape
        for axis, (to, flip) in enumerate(zip(self.arrangement.axes, self.arrangement.reversed, strict=True)):
            ours[axis, to] = -1.0 if flip else 1.0
            ours[axis, 3] = sizes[axis] - 1 if flip else 0.0
        affine: NDArray[np.float64] = self.arrangement.affine @ ours
        return affine

    @cached_property
    def planes(self) -> Reformatted:
        """The volume cut along the file's last axis, which its clients call its slices.

        Raises:
            InputError: one_slice: the file has one slice, along another axis.
            MedSightError: Why the volume cannot be cut.
        """
        along = self.arrangement.axes.index(2)
        own = Reformatted(volume=self.volume, original=self.volume, plane="acquired", arrangement=None)
        if along == 0:
            return own
        cuts = (reformat(self.volume, plane) for plane in ("axial", "coronal", "sagittal"))
        return next(cut for cut in cuts if cut.axis == along)

    def stroke(self, kind: PromptKind, voxels: Sequence[Voxel], *, cut: Reformatted, positive: bool = True) -> Stroke:
        """What was drawn in voxels of the file, on the slice of ``cut`` in which its first voxel lies.

        Args:
            kind: "point", or "box" of two opposite corners.
            voxels: (i, j, k); whole numbers are centres.
            cut: `planes`, or the volume as it is.
            positive: False for "not this".

        Raises:
            InputError: prompt_outside.
        """
        indices = [self._index(voxel, cut) for voxel in voxels]
        k = min(round(indices[0][0]), cut.volume.n_slices - 1)  # its outer face rounds to one slice more
        frame = cut.volume.slice_frame(k)
        points = frame.to_lps([(0.0, row, column) for _, row, column in indices])
        return Stroke(slice_index=k, prompt=Prompt(kind=kind, points=points, positive=positive))

    def _index(self, voxel: Voxel, cut: Reformatted) -> tuple[float, float, float]:
        if any(not -0.5 <= at < size - 0.5 for at, size in zip(voxel, self.shape, strict=True)):
            raise InputError(
                "prompt_outside",
                f"A point lies outside the image of {' x '.join(map(str, self.shape))} voxels.",
                "Points are (i, j, k) in voxels of the image that was sent, from 0.",
            )
        index = _through(self.arrangement, voxel)
        return index if cut.arrangement is None else _through(cut.arrangement, index)

    def empty(self) -> NDArray[np.uint8]:
        """A label map (i, j, k) of the file without a label; the first axis runs fastest, as in the file."""
        return np.zeros(self.shape, dtype=np.uint8, order="F")

    def ours(self, labels: NDArray[np.uint8], cut: Reformatted) -> NDArray[np.uint8]:
        """A view (slices, rows, columns) of ``cut`` on a label map of the file."""
        return cut.forth(self.arrangement.view(labels))


@dataclass(kw_only=True, eq=False)
class _Held:
    upload: Upload
    created: float
    used: float
    expiry: float

    @property
    def bytes(self) -> int:
        return int(self.upload.volume.array.nbytes)


@dataclass(kw_only=True, eq=False)
class Uploads:
    """The images at hand, by session or by name; those that were not used for longest go first.

    Attributes:
        limit_bytes: Of all values together.
        most: How many.
        clock: Seconds that never run backwards.
    """

    limit_bytes: int = 4 * 2**30
    most: int = 64
    clock: Callable[[], float] = time.monotonic
    _held: OrderedDict[str, _Held] = field(default_factory=OrderedDict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, upload: Upload, *, name: str = "", expiry: float = 0.0) -> str:
        """Keeps an image and returns the session that it is known by.

        Args:
            upload: The image.
            name: The UID by which a client wants to find it again; only its hash is kept.
            expiry: Seconds without use after which it is forgotten; 0, and more than `EXPIRY`, is `EXPIRY`.

        Raises:
            MedSightError: too_large.
        """
        now = self.clock()
        held = _Held(upload=upload, created=now, used=now, expiry=min(expiry or EXPIRY, EXPIRY))
        if held.bytes > self.limit_bytes:
            raise MedSightError(
                "too_large",
                f"The image takes {held.bytes:,} bytes of memory; the limit here is {self.limit_bytes:,}.",
                "Cut it, or let the server keep more.",
            )
        session = _key(name) if name else str(uuid.uuid4())
        with self._lock:
            self._held.pop(session, None)
            self._held[session] = held
            self._forget_expired(now)
            while len(self._held) > self.most or sum(one.bytes for one in self._held.values()) > self.limit_bytes:
                self._held.popitem(last=False)
        return session

    def get(self, session: str) -> Upload:
        """The image of a session, which counts as used now.

        Raises:
            InputError: session_unknown.
        """
        found = self._find(session)
        if found is None:
            raise InputError(
                "session_unknown",
                "There is no such session here; it has expired, or the server was restarted.",
                "Send the image again.",
            )
        return found.upload

    def named(self, name: str) -> Upload:
        """The image of a UID.

        Raises:
            InputError: image_unknown.
        """
        found = self._find(_key(name))
        if found is None:
            raise InputError(
                "image_unknown",
                "This server has no image of that name; it keeps none of its own and fetches none from elsewhere.",
                "Send the image as a session, or as a file with the request.",
            )
        return found.upload

    def describe(self, session: str) -> dict[str, Any]:
        """What MONAI Label tells about a session; empty where there is none."""
        found = self._find(session)
        if found is None:
            return {}
        ages = {"create_age": self.clock() - found.created, "expiry": found.expiry}
        return {"name": session, "meta": {}, **{name: int(seconds) for name, seconds in ages.items()}}

    def remove(self, session: str) -> None:
        """Forgets a session, if there is one."""
        with self._lock:
            self._held.pop(session, None)

    def _find(self, session: str) -> _Held | None:
        now = self.clock()
        with self._lock:
            self._forget_expired(now)
            found = self._held.get(session)
            if found is not None:
                found.used = now
                self._held.move_to_end(session)
            return found

    def _forget_expired(self, now: float) -> None:
        for session in [key for key, one in self._held.items() if now - one.used > one.expiry]:
            del self._held[session]


def read_upload(stream: BinaryIO, *, limit_bytes: int) -> Upload:
    """Reads a NIfTI file that was sent; nothing of it but values and geometry is kept, and no file is left.

    Args:
        stream: At its beginning.
        limit_bytes: Of the values in memory; looked at in the header, before memory is taken.

    Raises:
        InputError: not_nifti, and all that a file can be refused for.
        MedSightError: too_large.
    """
    with tempfile.TemporaryDirectory(prefix="medsight-") as folder:
        path = Path(folder) / UPLOAD_NAME
        try:
            with path.open("wb") as file:
                shutil.copyfileobj(stream, file, 2**20)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise MedSightError(
                "storage_full", "There is no room on the server to receive the image.", "Tell whoever runs it."
            ) from error
        if sniff(path) not in ("nifti", "gzip"):
            raise InputError(
                "not_nifti",
                "What was sent is no NIfTI file.",
                "Set the client to .nii.gz (in 3D Slicer: Edit, Application Settings, MONAI Label, File Extension).",
            )
        arrangement = read_arrangement(path)
        least = 2 * math.prod(arrangement.shape)
        if least > limit_bytes:
            raise MedSightError(
                "too_large",
                f"The image declares {math.prod(arrangement.shape):,} voxels, at least {least:,} bytes; the limit here "
                f"is {limit_bytes:,}.",
                "Cut it, or let the server keep more.",
            )
        return Upload(volume=read_nifti(path), arrangement=arrangement)


def check_uid(name: str) -> str:
    """Makes sure that a name means one image and no other, whoever else sends images here.

    Raises:
        InputError: bad_name.
    """
    if len(name) > LONGEST_UID or not _UID.fullmatch(name):
        raise InputError(
            "bad_name",
            "An image is kept under the UID of its series only: another name may mean another image to somebody else.",
            "Send the image as a session.",
        )
    return name


def _shape_before(arrangement: Arrangement) -> tuple[int, int, int]:
    sizes = [0, 0, 0]
    for axis, size in zip(arrangement.axes, arrangement.shape, strict=True):
        sizes[axis] = size
    return sizes[0], sizes[1], sizes[2]


def _through(arrangement: Arrangement, index: Voxel) -> Voxel:
    """Where a voxel of the grid before an arrangement lies on the grid after it."""
    after = [
        size - 1 - index[axis] if flip else index[axis]
        for axis, flip, size in zip(arrangement.axes, arrangement.reversed, arrangement.shape, strict=True)
    ]
    return after[0], after[1], after[2]


def _key(name: str) -> str:
    return "name:" + hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()

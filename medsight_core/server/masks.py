"""Masks of recent answers, for whoever wants them as a file or later: a registry in memory and its routes."""

from __future__ import annotations

import secrets
import tempfile
import threading
from collections import OrderedDict
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from anyio import CapacityLimiter, to_thread
from fastapi import APIRouter, Response

from medsight_core.errors import MedSightError
from medsight_core.geometry import Frame
from medsight_core.imaging.mask_files import write_nifti_labels, write_seg_nrrd
from medsight_core.imaging.volume import Volume
from medsight_core.regions import Region
from medsight_core.wire.events import AnyRegion, PutMask
from medsight_core.wire.masks import PackedMask, unpack_mask

LIMIT_BYTES: Final = 256 * 2**20
"""Of the packed masks that are kept."""

_OVERHEAD: Final = 4096
"""Bytes that a mask is reckoned to take besides its bits."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class KeptMask:
    """A region whose mask is packed, and as much of its scan as a file of it needs.

    Attributes:
        region: With a mask of one bit of memory, whatever its shape: all False.
        packed: The mask.
        volume: The scan without its voxels.
    """

    region: AnyRegion
    packed: PackedMask
    volume: Volume

    def whole(self) -> AnyRegion:
        """The region with its mask."""
        return replace(self.region, mask=unpack_mask(self.packed, shape=self.packed.shape))


class Masks:
    """Keeps the masks of recent answers; the oldest go first. Safe to share between threads.

    Whoever knows the name of a mask may have it: names cannot be guessed.

    Args:
        limit_bytes: Of all of them.
    """

    def __init__(self, *, limit_bytes: int = LIMIT_BYTES) -> None:
        self._limit_bytes = limit_bytes
        self._kept: OrderedDict[str, KeptMask] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def keeper(self, volume: Volume) -> PutMask:
        """What keeps the masks of one answer and gives their addresses; for `EventWriter`.

        Args:
            volume: The scan that was asked about; its voxels are not held on to.
        """
        hollow = replace(volume, array=np.broadcast_to(volume.array.dtype.type(0), volume.array.shape))

        def keep(region: AnyRegion, packed: PackedMask) -> str:
            empty = replace(region, mask=np.broadcast_to(np.False_, region.mask.shape))
            name = self._keep(KeptMask(region=empty, packed=packed, volume=hollow))
            return f"/v1/masks/{name}"

        return keep

    def get(self, name: str) -> KeptMask:
        """A mask by its name.

        Raises:
            MedSightError: mask_unknown.
        """
        with self._lock:
            kept = self._kept.get(name)
        if kept is None:
            raise MedSightError(
                "mask_unknown",
                "This server does not have the mask, or has it no more: masks are kept for a while only.",
                "Ask the question again.",
            )
        return kept

    def _keep(self, kept: KeptMask) -> str:
        name = secrets.token_urlsafe(16)
        with self._lock:
            self._kept[name] = kept
            self._bytes += _size(kept)
            while self._bytes > self._limit_bytes and len(self._kept) > 1:
                _, oldest = self._kept.popitem(last=False)
                self._bytes -= _size(oldest)
        return name


def masks_router(masks: Masks) -> APIRouter:
    """``GET /v1/masks/{name}`` as packed bits, ``.nii.gz`` and ``.seg.nrrd``.

    Args:
        masks: Where they are kept.
    """
    router = APIRouter(tags=["masks"])
    one_at_a_time = CapacityLimiter(1)  # a file is made of whole volumes, some bytes per voxel

    async def file(name: str, ending: str) -> bytes:
        return await to_thread.run_sync(_file, masks.get(name), ending, limiter=one_at_a_time)

    # The endings go first: a plain name would match them too.
    @router.get("/v1/masks/{name}.nii.gz", summary="A mask as a NIfTI label map", response_class=Response)
    async def as_nifti(name: str) -> Response:
        return _attachment(await file(name, ".nii.gz"), "application/gzip", ".nii.gz")

    @router.get("/v1/masks/{name}.seg.nrrd", summary="A mask as a segmentation for 3D Slicer", response_class=Response)
    async def as_seg_nrrd(name: str) -> Response:
        return _attachment(await file(name, ".seg.nrrd"), "application/octet-stream", ".seg.nrrd")

    @router.get("/v1/masks/{name}", summary="A mask as packed bits of its bounding box")
    async def packed(name: str) -> dict[str, Any]:
        kept = masks.get(name)
        region = kept.region
        return {
            "mask": kept.packed.to_json(),
            "frame": _frame_to_json(region.frame),
            "slice": region.slice_index if isinstance(region, Region) else None,
            "code": region.code,
            "label": region.label,
            "score": region.score,
        }

    return router


def _file(kept: KeptMask, ending: str) -> bytes:
    """The bytes of a file with the mask.

    Raises:
        MedSightError: empty_mask; storage_full.
    """
    write = write_seg_nrrd if ending == ".seg.nrrd" else write_nifti_labels
    try:
        with tempfile.TemporaryDirectory(prefix="medsight-") as folder:
            path = write([kept.whole()], kept.volume, Path(folder) / f"mask{ending}")
            content = None if path is None else path.read_bytes()
    except (MedSightError, OSError) as error:
        if isinstance(error, MedSightError) and error.code != "not_written":
            raise
        raise MedSightError(  # whose own words hold a path of the server
            "storage_full", "There is no room on the server to write the file.", "Fetch the packed mask, or ask later."
        ) from error
    if content is None:
        raise MedSightError("empty_mask", "The mask is empty, so there is no file of it.")
    return content


def _attachment(content: bytes, kind: str, ending: str) -> Response:
    return Response(content, media_type=kind, headers={"Content-Disposition": f'attachment; filename="mask{ending}"'})


def _frame_to_json(frame: Frame) -> dict[str, Any]:
    return {
        "shape": list(frame.shape),
        "origin": frame.origin.tolist(),
        "spacing": frame.spacing.tolist(),
        "direction": frame.direction.tolist(),
        "physical": frame.physical,
    }


def _size(kept: KeptMask) -> int:
    return len(kept.packed.data) + _OVERHEAD

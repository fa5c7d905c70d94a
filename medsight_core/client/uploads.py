"""A volume on its way to a server."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

import requests

from medsight_core.errors import InputError
from medsight_core.events import Progress
from medsight_core.wire.codecs import Codec
from medsight_core.wire.volumes import PIECE_BYTES, chunks_of

if TYPE_CHECKING:
    from medsight_core.imaging.volume import Volume

Request = Callable[..., AbstractContextManager[requests.Response]]
Tell = Callable[[Progress], None]

CONTENT_TYPE = "application/octet-stream"


def upload(
    request: Request,
    volume: Volume,
    digest: str,
    *,
    codec: Codec,
    limit_bytes: int | None,
    tell: Tell,
    cancel: threading.Event | None,
) -> int:
    """Sends a volume, compressed piece by piece.

    Args:
        request: Makes requests, see `RemoteBackend`.
        volume: The scan.
        digest: Its name.
        codec: One that the server reads.
        limit_bytes: Largest volume that the server takes; None where it says nothing about it.
        tell: Is told how much of the scan is on its way.
        cancel: When it is set, the connection is cut.

    Returns:
        How many bytes were sent.

    Raises:
        InputError: too_large, before anything is sent.
        MedSightError: It did not arrive.
    """
    total = int(volume.array.nbytes)
    if limit_bytes is not None and total > limit_bytes:
        raise InputError(
            "too_large",
            f"The scan has {total / 2**20:,.0f} MiB, and the server takes no more than {limit_bytes / 2**20:,.0f}.",
            "Have its limit raised, or send fewer slices.",
        )
    sent = 0

    def parts() -> Iterator[bytes]:
        nonlocal sent
        for number, part in enumerate(chunks_of(volume, codec=codec)):  # the first one is the header
            sent += len(part)
            yield part
            tell(Progress(min(number * PIECE_BYTES, total), total, "Sending the scan"))

    headers = {"Content-Type": CONTENT_TYPE}
    with request("PUT", f"/v1/volumes/{digest}", data=parts(), headers=headers, cancel=cancel):
        return sent

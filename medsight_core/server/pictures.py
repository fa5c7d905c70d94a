"""Pictures that come inside a chat message, as ``data:`` addresses. Nothing is ever fetched from anywhere."""

from __future__ import annotations

import base64
import io
import re
import threading
from dataclasses import replace
from pathlib import Path
from typing import Final

from medsight_core.errors import InputError
from medsight_core.imaging.photograph import read_photograph
from medsight_core.imaging.volume import Volume
from medsight_core.server.store import VolumeStore

FORMATS: Final = ("PNG", "JPEG", "WEBP", "GIF")
"""What chat programs send."""

OPENED_AT_ONCE: Final = 2

_HEAD: Final = re.compile(r"data:image/[a-z0-9.+-]{1,40};base64,", re.ASCII | re.IGNORECASE)


class Pictures:
    """Opens pictures, a few at a time: one of some kilobytes can take hundreds of megabytes when it is unpacked.

    Args:
        store: Gives the same volume for the same picture, so that what the model has seen of it is known in the next
            turn of a chat, which brings the picture again.
    """

    def __init__(self, store: VolumeStore) -> None:
        self._store = store
        self._turn = threading.Semaphore(OPENED_AT_ONCE)

    def open(self, address: str, *, modality: str = "unknown") -> tuple[Volume, tuple[str, ...]]:
        """The picture of a ``data:`` address, as a volume of one slice; the same as if it were read from a file.

        Args:
            address: Where a message says that its picture is.
            modality: What kind of picture the client says that it is.

        Returns:
            The volume, and what must be said about how it was read.

        Raises:
            InputError: not_fetched, bad_picture, too_large, pixels_unreadable.
        """
        head = _HEAD.match(address)
        if head is None:
            raise _not_a_picture(address)
        try:
            content = base64.b64decode(address[head.end() :], validate=True)
        except ValueError as error:
            raise InputError("bad_picture", "The picture is no valid base64.", "Encode it again.") from error
        with self._turn:
            picture = read_photograph(Path("the picture"), content=io.BytesIO(content), formats=FORMATS)
            return self._store.keep(replace(picture, modality=modality)), picture.warnings


def _not_a_picture(address: str) -> InputError:
    scheme = address.partition(":")[0].lower()
    if scheme == "data":
        return InputError(
            "bad_picture",
            "The data: address holds no picture in base64.",
            "Send data:image/png;base64,... or JPEG; a scan goes to /v1/volumes first.",
        )
    return InputError(
        "not_fetched",
        "The picture is given by an address, and this server fetches nothing.",
        "Send the picture itself, as data:image/png;base64,...",
    )

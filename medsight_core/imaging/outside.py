"""A decoder in a process of its own, for codecs whose only free decoder can end the process it runs in."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import threading
from pathlib import Path
from types import TracebackType
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from medsight_core.imaging import jpeg_worker
from medsight_core.imaging.dicom_header import PixelLayout

TIMEOUT_SECONDS: Final = 20.0
"""For one frame; a radiograph takes half a second."""


class OutsideDecoder:
    """Starts the process with the first frame and ends it with the ``with`` block."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> OutsideDecoder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is not None:
            with contextlib.suppress(OSError):
                self._process.communicate(timeout=1)
            self._process.kill()
            self._process.wait()

    def decode(self, layout: PixelLayout, data: bytes) -> npt.NDArray[Any]:
        """Stored pixels ``(rows, columns[, 3])`` of one compressed frame.

        Raises:
            ValueError: The frame is damaged, or was too much for the decoder.
        """
        if self._process is None or self._process.poll() is not None:
            self._process = subprocess.Popen(
                [sys.executable, "-P", str(Path(jpeg_worker.__file__))],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
            )
        request = {
            "syntax": str(layout.syntax),
            "bytes": len(data),
            "Rows": layout.rows,
            "Columns": layout.columns,
            "SamplesPerPixel": layout.samples,
            "BitsAllocated": layout.bits_allocated,
            "BitsStored": layout.bits_stored,
            "PixelRepresentation": int(layout.signed),
        }
        watch = threading.Timer(TIMEOUT_SECONDS, self._process.kill)
        watch.start()
        try:
            return self._exchange(self._process, json.dumps(request).encode() + b"\n" + data)
        finally:
            watch.cancel()

    def _exchange(self, process: subprocess.Popen[bytes], message: bytes) -> npt.NDArray[Any]:
        assert process.stdin is not None and process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(message)
            process.stdin.flush()
        line = process.stdout.readline()
        answer = json.loads(line) if line else {"error": "the decoder ended"}
        if "error" in answer:
            raise ValueError(str(answer["error"]))
        dtype, shape = np.dtype(answer["dtype"]), tuple(int(n) for n in answer["shape"])
        data = process.stdout.read(int(np.prod(shape)) * dtype.itemsize)
        return np.frombuffer(data, dtype).reshape(shape)

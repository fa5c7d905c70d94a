"""Stored pixels of a DICOM file, one frame at a time, by a decoder that is chosen here and not by chance."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from pydicom import uid
from pydicom.encaps import encapsulate, generate_frames
from pydicom.pixels import apply_color_lut, get_decoder

from medsight_core.errors import InputError, MedSightError
from medsight_core.imaging.codestream import coded_size, is_complete
from medsight_core.imaging.dicom_header import Header, inflate, name
from medsight_core.imaging.files import printable
from medsight_core.imaging.outside import OutsideDecoder

# Which decoder of pydicom is trusted with which syntax, best first. Left to itself pydicom tries all that are
# installed; GDCM ends the whole process on some damaged files, and the Rust RLE decoder panics.
PLUGINS: Final[dict[str, tuple[str, ...]]] = {
    uid.RLELossless: ("pydicom",),
    uid.JPEG2000Lossless: ("pylibjpeg", "pillow"),
    uid.JPEG2000: ("pylibjpeg", "pillow"),
    uid.HTJ2KLossless: ("pylibjpeg",),
    uid.HTJ2KLosslessRPCL: ("pylibjpeg",),
    uid.HTJ2K: ("pylibjpeg",),
    uid.JPEGLSLossless: ("pyjpegls",),
    uid.JPEGLSNearLossless: ("pyjpegls",),
    uid.JPEGBaseline8Bit: ("pillow",),
}
OUTSIDE: Final = (uid.JPEGLossless, uid.JPEGLosslessSV1, uid.JPEGExtended12Bit)
"""Syntaxes decoded in another process; of colour only plain RGB, for the others differ between decoders."""

NATIVE: Final = (
    uid.ImplicitVRLittleEndian,
    uid.ExplicitVRLittleEndian,
    uid.ExplicitVRBigEndian,
    uid.DeflatedExplicitVRLittleEndian,
)
RLE_WORST_GROWTH: Final = 2
"""An RLE frame longer than this times its pixels is not an encoder's work."""


def check_codec(header: Header) -> None:
    """Refuses a transfer syntax that nothing here decodes.

    Raises:
        InputError: unsupported_codec.
    """
    syntax = header.layout.syntax
    outside = syntax in OUTSIDE and header.layout.photometric in ("MONOCHROME1", "MONOCHROME2", "RGB", "PALETTE COLOR")
    if syntax not in NATIVE and not outside and _plugin(syntax) is None:
        known = syntax.name if syntax.name != syntax else f"the unknown transfer syntax {printable(syntax)}"
        raise InputError(
            "unsupported_codec",
            f"{name(header.path)} is compressed as {known}, which cannot be read here.",
            "Convert it to an uncompressed transfer syntax first, for instance with gdcmconv --raw or dcmdjpeg.",
        )


def read_frames(header: Header, wanted: Sequence[int], outside: OutsideDecoder) -> Iterator[npt.NDArray[Any]]:
    """Yields the stored values of frames, numbered from 0, in the order asked.

    Args:
        header: Of the file.
        wanted: Numbers of frames.
        outside: Decodes what is not decoded in this process.

    Yields:
        ``(rows, columns)`` integers as stored, or ``(rows, columns, 3)`` uint8 RGB.

    Raises:
        InputError: unsupported_codec, pixels_unreadable.
    """
    check_codec(header)
    try:
        for frame, data in zip(wanted, _encoded(header, wanted), strict=True):
            yield _decode(header, frame, data, outside)
    except (MedSightError, GeneratorExit, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a Rust decoder's panic is not an Exception
        raise InputError(
            "pixels_unreadable",
            f"{name(header.path)}: the pixels cannot be decoded ({type(error).__name__}): the file is cut off or "
            "damaged.",
            "Copy it again from where it came.",
        ) from error


def _plugin(syntax: uid.UID) -> str | None:
    if syntax not in PLUGINS:
        return None
    available = get_decoder(syntax).available_plugins
    return next((plugin for plugin in PLUGINS[syntax] if plugin in available), None)


def _encoded(header: Header, wanted: Sequence[int]) -> Iterator[bytes]:
    layout = header.layout
    if layout.length is None:
        with header.path.open("rb") as file:
            file.seek(layout.offset)
            tables = [header.dataset.get(keyword) for keyword in ("ExtendedOffsetTable", "ExtendedOffsetTableLengths")]
            frames = list(
                generate_frames(
                    file,
                    number_of_frames=layout.frames,
                    extended_offsets=(tables[0], tables[1]) if tables[0] and tables[1] else None,
                )
            )
        yield from (frames[frame] for frame in wanted)
    elif layout.syntax == uid.DeflatedExplicitVRLittleEndian:
        data = inflate(header.path, header.dataset, layout.offset + layout.frames * layout.frame_bytes)
        for frame in wanted:
            start = layout.offset + frame * layout.frame_bytes
            yield data[start : start + layout.frame_bytes]
    else:
        with header.path.open("rb") as file:
            for frame in wanted:
                file.seek(layout.offset + frame * layout.frame_bytes)
                yield file.read(layout.frame_bytes)


def _decode(header: Header, frame: int, data: bytes, outside: OutsideDecoder) -> npt.NDArray[Any]:
    layout = header.layout
    options: dict[str, Any] = {
        "rows": layout.rows,
        "columns": layout.columns,
        "number_of_frames": 1,
        "samples_per_pixel": layout.samples,
        "photometric_interpretation": layout.photometric,
        "planar_configuration": layout.planar,
        "pixel_representation": int(layout.signed),
        "bits_allocated": layout.bits_allocated,
        "bits_stored": layout.bits_stored,
        "pixel_keyword": "PixelData",
    }
    if layout.syntax in NATIVE:
        if len(data) != layout.frame_bytes:
            raise ValueError(f"frame {frame + 1} has {len(data)} of {layout.frame_bytes} bytes")
        big = layout.syntax == uid.ExplicitVRBigEndian
        decoder = get_decoder(uid.ExplicitVRBigEndian if big else uid.ExplicitVRLittleEndian)
        data += b"\0" * (len(data) % 2)
        options["pixel_vr"] = "OW" if layout.bits_allocated > 8 else "OB"
        array, properties = decoder.as_array(data, **options)
    else:
        size = coded_size(data)
        if size is not None and size != (layout.rows, layout.columns):
            raise InputError(
                "pixels_unreadable",
                f"{name(header.path)}: the header says {layout.rows} x {layout.columns} pixels, the compressed image "
                f"inside {size[0]} x {size[1]}.",
                "The file is damaged; copy it again from where it came.",
            )
        if layout.syntax == uid.RLELossless and len(data) > RLE_WORST_GROWTH * layout.frame_bytes + 64:
            raise ValueError("RLE data longer than any encoder writes")
        if layout.syntax != uid.RLELossless and not is_complete(data):
            raise ValueError("the compressed image has no end")
        if layout.syntax in OUTSIDE:
            array, properties = outside.decode(layout, data), {}
        else:
            decoder = get_decoder(layout.syntax)
            plugin = _plugin(layout.syntax) or ""
            array, properties = decoder.as_array(encapsulate([data]), decoding_plugin=plugin, **options)
    if array.shape[:2] != (layout.rows, layout.columns):
        raise ValueError(f"decoded to {array.shape}")
    if layout.photometric in ("MONOCHROME1", "MONOCHROME2"):
        return array
    return _eight_bit(header, array, int(properties.get("bits_stored", layout.bits_stored)))


def _eight_bit(header: Header, array: npt.NDArray[Any], bits: int) -> npt.NDArray[np.uint8]:
    """Colour as 8 bit RGB, whatever the depth it is stored in."""
    if header.layout.photometric == "PALETTE COLOR":
        array = apply_color_lut(array, header.dataset)
        bits = 8 * array.dtype.itemsize
    return (array >> max(0, bits - 8)).astype(np.uint8)

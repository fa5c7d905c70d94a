"""What the header of one DICOM file says, checked before a pixel is read."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import BinaryIO, Final

from pydicom.dataset import Dataset
from pydicom.filereader import read_dataset, read_file_meta_info, read_partial
from pydicom.tag import Tag
from pydicom.uid import UID, DeflatedExplicitVRLittleEndian
from pydicom.valuerep import EXPLICIT_VR_LENGTH_32

from medsight_core.errors import InputError
from medsight_core.imaging.files import check_size, printable

INFLATED_HEADER_LIMIT: Final = 4 * 2**20
"""A deflated file's header must end within this many inflated bytes."""

GREY: Final = ("MONOCHROME1", "MONOCHROME2")
COLOUR: Final = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_RCT", "YBR_ICT", "PALETTE COLOR")

# Only what is needed is kept: names, dates and numbers of the patient never enter the program.
_KEYWORDS: Final = """
    SOPClassUID SOPInstanceUID Modality ImageType SeriesInstanceUID SeriesNumber SeriesDescription InstanceNumber
    FrameOfReferenceUID ImagePositionPatient ImageOrientationPatient PixelSpacing ImagerPixelSpacing
    NominalScannedPixelSpacing SliceThickness SpacingBetweenSlices SequenceOfUltrasoundRegions
    SharedFunctionalGroupsSequence PerFrameFunctionalGroupsSequence
    Rows Columns NumberOfFrames SamplesPerPixel PhotometricInterpretation PlanarConfiguration BitsAllocated BitsStored
    HighBit PixelRepresentation RescaleSlope RescaleIntercept ModalityLUTSequence WindowCenter WindowWidth
    RedPaletteColorLookupTableDescriptor GreenPaletteColorLookupTableDescriptor BluePaletteColorLookupTableDescriptor
    RedPaletteColorLookupTableData GreenPaletteColorLookupTableData BluePaletteColorLookupTableData
    SegmentedRedPaletteColorLookupTableData SegmentedGreenPaletteColorLookupTableData
    SegmentedBluePaletteColorLookupTableData ExtendedOffsetTable ExtendedOffsetTableLengths
    BurnedInAnnotation ConversionType
"""
TAGS: Final = tuple(Tag(keyword) for keyword in _KEYWORDS.split())


_OBJECTS: Final = "SEG SR PR KO DOC PLAN REG FID RTSTRUCT RTPLAN RTRECORD RTDOSE ECG EEG HD AU STAIN M3D SMR TEXTUREMAP"
_NOT_SCANS: Final = ("Segmentation", "SR Storage", "Structured Report", "Presentation State", "Document", "Waveform")
_PIXEL_DATA: Final = 0x7FE00010
_PIXEL_TAGS: Final = (_PIXEL_DATA, 0x7FE00008, 0x7FE00009)  # the others are floating point pixels of parametric maps
_UNDEFINED: Final = 0xFFFFFFFF
_META_START: Final = 128 + 4 + 12
"""Preamble, "DICM" and the group length element, whose value counts the bytes that follow it."""


@dataclass(frozen=True, kw_only=True)
class PixelLayout:
    """How the stored pixels of one file are arranged (DICOM PS3.3 C.7.6.3).

    Attributes:
        rows, columns, frames, samples: Sizes.
        bits_allocated, bits_stored: Of one sample.
        signed: Two's complement.
        photometric: Photometric Interpretation.
        planar: Planar Configuration.
        syntax: Transfer syntax.
        offset: Where the value of Pixel Data begins in the file (for a deflated file: in the inflated data set).
        length: Its length in bytes; None where frames are encapsulated.
    """

    rows: int
    columns: int
    frames: int
    samples: int
    bits_allocated: int
    bits_stored: int
    signed: bool
    photometric: str
    planar: int
    syntax: UID
    offset: int
    length: int | None

    @property
    def frame_bytes(self) -> int:
        """Bytes of one frame that is not compressed."""
        samples = 2 if self.photometric == "YBR_FULL_422" else self.samples
        return self.rows * self.columns * samples * self.bits_allocated // 8


@dataclass(frozen=True, kw_only=True)
class Header:
    """One file: its data set without pixels (only `TAGS`), and how its pixels are laid out."""

    path: Path
    dataset: Dataset
    layout: PixelLayout

    def text(self, keyword: str) -> str:
        """An attribute as text, empty where it is missing or cannot be read."""
        return text(self.dataset, keyword)

    @property
    def is_localizer(self) -> bool:
        """Whether Image Type calls this a scout image."""
        return "LOCALIZER" in self.text("ImageType").upper()


def text(dataset: Dataset, keyword: str) -> str:
    """An attribute as text, empty where it is missing or cannot be read."""
    try:
        value = dataset.get(keyword)
    except Exception:  # a value whose bytes do not fit its type; nothing here depends on it
        return ""
    return "" if value is None else str(value)


def numbers(dataset: Dataset, keyword: str, count: int, *, code: str, path: Path) -> tuple[float, ...] | None:
    """The ``count`` finite numbers of an attribute; None where it is missing or empty.

    Raises:
        InputError: ``code``, where there is a value but not ``count`` finite numbers.
    """
    try:
        value = dataset.get(keyword)
        if value is None or value == "" or (isinstance(value, Sequence) and len(value) == 0):
            return None
        many = isinstance(value, Sequence) and not isinstance(value, str)
        result = tuple(float(v) for v in (value if many else [value]))
    except Exception as error:  # the library has many ways to stumble over a damaged value
        raise bad(code, path, keyword, text(dataset, keyword) or "unreadable", f"{count} numbers") from error
    if len(result) != count or not all(map(math.isfinite, result)):
        raise bad(code, path, keyword, str(list(result)), f"{count} finite number{'s' if count > 1 else ''}")
    return result


def read_header(path: Path) -> Header:
    """Reads and checks the header of a file that begins like DICOM.

    Raises:
        InputError: not_an_image, truncated, bad_header, no_pixels, too_large, pixels_unreadable, unsupported_object.
    """
    found: list[tuple[int, str | None, int]] = []

    def at_pixels(tag: int, vr: str | None, length: int) -> bool:
        if tag in _PIXEL_TAGS:
            found.append((tag, vr, length))
        return tag in _PIXEL_TAGS

    with path.open("rb") as file:
        try:
            head = file.read(2048)
            file.seek(0)
            if DeflatedExplicitVRLittleEndian.encode() in head:
                dataset, stream = _inflated_header(path, at_pixels)
            else:
                stream = file
                dataset = read_partial(file, at_pixels, specific_tags=list(TAGS))
            position = stream.tell()
        except Exception as error:
            raise InputError(
                "truncated",
                f"{name(path)} begins like DICOM, but its header cannot be read ({type(error).__name__}): "
                "the file is cut off or damaged.",
                "Copy it again from where it came.",
            ) from error
    _check_is_image(path, dataset, [tag for tag, _, _ in found])
    _, vr, length = found[0]
    syntax = UID(text(dataset.file_meta, "TransferSyntaxUID"))
    layout = _layout(
        path,
        dataset,
        syntax=syntax,
        offset=position + (12 if vr in EXPLICIT_VR_LENGTH_32 else 8),
        length=None if length == _UNDEFINED else length,
    )
    if syntax != DeflatedExplicitVRLittleEndian:
        _check_length(path, layout, path.stat().st_size)
    return Header(path=path, dataset=dataset, layout=layout)


def name(path: Path) -> str:
    """The file's own name, fit to be shown."""
    return printable(path.name)


def bad(code: str, path: Path, keyword: str, got: str, expected: str) -> InputError:
    """The error for an attribute with a value that cannot be right."""
    return InputError(
        code,
        f"{name(path)}: {keyword} is {printable(got)}, expected {expected}.",
        "The file is damaged or was written wrongly; export it again from where it came.",
    )


def _inflated_header(path: Path, stop: Callable[[int, str | None, int], bool]) -> tuple[Dataset, BinaryIO]:
    """The header of a deflated file, inflating no more than a header can be (a 1 MB file may inflate to 1 GB)."""
    meta = read_file_meta_info(path)
    with path.open("rb") as file:
        file.seek(_META_START + int(meta.FileMetaInformationGroupLength))
        inflated = zlib.decompressobj(-zlib.MAX_WBITS).decompress(
            file.read(INFLATED_HEADER_LIMIT), INFLATED_HEADER_LIMIT
        )
    stream = BytesIO(inflated)
    dataset = read_dataset(stream, False, True, stop_when=stop, specific_tags=list(TAGS))
    dataset.file_meta = meta
    return dataset, stream


def inflate(path: Path, dataset: Dataset, limit: int) -> bytes:
    """The data set of a deflated file, up to ``limit`` bytes.

    Raises:
        zlib.error: The stream is damaged.
    """
    with path.open("rb") as file:
        file.seek(_META_START + int(dataset.file_meta.FileMetaInformationGroupLength))
        return zlib.decompressobj(-zlib.MAX_WBITS).decompress(file.read(), limit)


def _check_is_image(path: Path, dataset: Dataset, pixel_tags: list[int]) -> None:
    kind = UID(text(dataset, "SOPClassUID") or text(dataset.file_meta, "MediaStorageSOPClassUID"))
    modality = text(dataset, "Modality").strip()
    if modality in _OBJECTS.split() or any(word in kind.name for word in _NOT_SCANS):
        called = f"DICOM object of modality {modality}" if kind.name == kind else kind.name.removesuffix(" Storage")
        raise InputError(
            "not_an_image",
            f"{name(path)} is not a scan but a {called}.",
            "Give the images that it belongs to.",
        )
    if (pixel_tags and pixel_tags[0] != _PIXEL_DATA) or "VL Whole Slide" in kind.name:
        raise InputError(
            "unsupported_object",
            f"{name(path)} is a {kind.name.removesuffix(' Storage')}, which cannot be read as a scan.",
            "Export the part of interest as an ordinary image.",
        )
    if pixel_tags:
        return
    if text(dataset, "Rows") and text(dataset, "Columns"):
        raise InputError(
            "no_pixels", f"{name(path)} has a header only: it holds no pixel data.", "Export it again with its pixels."
        )
    if "Image Storage" in kind.name or kind.name == kind:  # an image, or cut off before the end of its own kind
        raise InputError(
            "truncated",
            f"{name(path)} is DICOM, but ends before its image.",
            "Copy it again from where it came.",
        )
    raise InputError("not_an_image", f"{name(path)} is DICOM but holds no image.", "Give the images of the scan.")


def _layout(path: Path, dataset: Dataset, *, syntax: UID, offset: int, length: int | None) -> PixelLayout:
    def whole(keyword: str, allowed: range | tuple[int, ...], default: int | None = None) -> int:
        values = numbers(dataset, keyword, 1, code="bad_header", path=path)
        value = default if values is None else int(values[0])
        if value is None or value not in allowed:
            expected = (
                f"{allowed.start} to {allowed.stop - 1}"
                if isinstance(allowed, range)
                else " or ".join(map(str, allowed))
            )
            raise bad("bad_header", path, keyword, "missing" if value is None else str(value), expected)
        return value

    if not syntax:
        raise bad("bad_header", path, "TransferSyntaxUID", "missing", "the name of a transfer syntax")
    rows, columns = whole("Rows", range(1, 65536)), whole("Columns", range(1, 65536))
    frames = whole("NumberOfFrames", range(1, 2**31), 1)
    samples = whole("SamplesPerPixel", (1, 3), 1)
    allocated = whole("BitsAllocated", (8, 16, 32))
    stored = whole("BitsStored", range(1, allocated + 1), allocated)
    photometric = text(dataset, "PhotometricInterpretation").strip()
    expected_samples = 1 if photometric in GREY or photometric == "PALETTE COLOR" else 3
    if photometric not in GREY + COLOUR or samples != expected_samples:
        got = f"{photometric or 'missing'} with {samples} samples per pixel"
        raise bad("bad_header", path, "PhotometricInterpretation", got, "a grey or colour image of DICOM")
    if photometric == "PALETTE COLOR" and not text(dataset, "RedPaletteColorLookupTableDescriptor"):
        raise bad("bad_header", path, "RedPaletteColorLookupTableDescriptor", "missing", "the table of a palette image")
    check_size(name(path), (frames, rows, columns))
    return PixelLayout(
        rows=rows,
        columns=columns,
        frames=frames,
        samples=samples,
        bits_allocated=allocated,
        bits_stored=stored,
        signed=whole("PixelRepresentation", (0, 1), 0) == 1,
        photometric=photometric,
        planar=whole("PlanarConfiguration", (0, 1), 0),
        syntax=syntax,
        offset=offset,
        length=length,
    )


def _check_length(path: Path, layout: PixelLayout, file_size: int) -> None:
    """Compares what the header promises with what the file can hold, before memory is taken for it."""
    there = file_size - layout.offset
    encapsulated = layout.length is None
    # An encapsulated frame is at least an item header and two bytes.
    needed = 10 * layout.frames if encapsulated else layout.frame_bytes * layout.frames
    declared = needed if layout.length is None else layout.length
    if there < needed or declared < needed or there < declared:
        raise InputError(
            "pixels_unreadable",
            f"{name(path)}: the header promises {layout.frames} image(s) of {layout.rows} x {layout.columns} pixels, "
            f"at least {max(needed, declared):,} bytes, but {min(there, declared):,} are there: the file is cut off or "
            "damaged.",
            "Copy it again from where it came.",
        )

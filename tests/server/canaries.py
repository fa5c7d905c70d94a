"""Synthetic studies with invented names, dates, numbers and identifiers of a patient wherever a file can hold them.

Each planted value can be told from everything else that a program writes, so that finding one anywhere proves a leak.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import nibabel
import numpy as np
import pydicom
from PIL import Image, PngImagePlugin
from pydicom.datadict import DicomDictionary, dictionary_VM, dictionary_VR, keyword_for_tag
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.tag import Tag

from tests.imaging.synthetic import write_series
from tests.imaging.test_multiframe import enhanced, film

WORD: Final = "Qzxcanary"
NAME: Final = "Müller-Qzx^Änne"
UID_ROOT: Final = "1.2.826.0.1.3680043.8.498.777000777"
DATES: Final = ("18430217", "18430529")
NUMBER: Final = "777.000777"
AGE: Final = "777Y"
FOLDER: Final = f"{WORD}_folder {NAME.split('^')[0]}"

PATTERNS: Final = (
    re.compile(rb"qzxcanar|-qzx\^", re.IGNORECASE),
    re.compile("m(ü|\\\\u00fc|%c3%bc)ller".encode(), re.IGNORECASE),
    re.compile("müller".encode("latin-1"), re.IGNORECASE),
    re.compile(rb"777000777"),
    re.compile(rb"777\.000777"),
    re.compile(rb"777Y"),
    re.compile(rb"(?<![0-9a-f.])1843-?(02-?17|05-?29)(?![0-9a-f])"),
)
"""What no byte that leaves the machine may match."""

# Groups whose elements say how pixels are stored or are written by the file format itself.
_LEFT_ALONE: Final = frozenset({0x0000, 0x0002, 0x0004, 0x0028, 0x5400, 0x7FE0, 0xFFFC, 0xFFFE})
_KEPT: Final = """
    SpecificCharacterSet SOPClassUID Modality NumberOfFrames ImageOrientationPatient ImagePositionPatient
    PixelSpacing ImagerPixelSpacing NominalScannedPixelSpacing SliceThickness SpacingBetweenSlices ImageType
    SequenceOfUltrasoundRegions SharedFunctionalGroupsSequence PerFrameFunctionalGroupsSequence InstanceNumber
    PixelMeasuresSequence PlanePositionSequence PlaneOrientationSequence PixelValueTransformationSequence
    FrameVOILUTSequence ConversionType
"""
_STRUCTURE: Final = frozenset(map(Tag, _KEPT.split()))


def leaks(content: bytes | bytearray | str) -> list[str]:
    """Every planted value in ``content``."""
    data = content.encode("utf-8", "surrogatepass") if isinstance(content, str) else content
    found = []
    for pattern in PATTERNS:
        for match in pattern.finditer(data):
            around = data[max(0, match.start() - 40) : match.end() + 20]
            found.append(f"{match.group()!r} in {around!r}")
    return found


def plant(dataset: Dataset) -> Dataset:
    """Fills every attribute of DICOM's dictionary, private ones, and sequences within sequences; geometry stays."""
    for number, tag in enumerate(sorted(DicomDictionary)):
        if tag >> 16 in _LEFT_ALONE or tag in _STRUCTURE or not keyword_for_tag(tag):
            continue
        value = _value(dictionary_VR(tag), number, many=dictionary_VM(tag) not in ("1", "1-n", "1-2", "1-3"))
        if value is not None:
            dataset.add_new(tag, dictionary_VR(tag), value)
    dataset.SpecificCharacterSet = "ISO_IR 100"
    dataset.PatientName = NAME
    for group in (0x0009, 0x0021, 0x0099, 0x7777):
        block = dataset.private_block(group, f"{WORD} creator {group}", create=True)
        block.add_new(0x01, "LO", f"{WORD} private")
        block.add_new(0x02, "UN", f"{WORD} unknown {NAME}".encode("latin-1"))
        block.add_new(0x03, "OB", f"{WORD} bytes".encode())
        block.add_new(0x04, "SQ", Sequence([_item(3)]))
    # Also within what is read for its geometry.
    for keyword in (
        "SharedFunctionalGroupsSequence",
        "PerFrameFunctionalGroupsSequence",
        "SequenceOfUltrasoundRegions",
    ):
        for item in dataset.get(keyword) or ():
            item.update(_item(1))
    return dataset


def _item(depth: int) -> Dataset:
    """An item of a sequence, with items in it."""
    item = Dataset()
    item.PatientName, item.PatientBirthDate, item.PatientID = NAME, DATES[0], f"{WORD}_{depth}"
    item.ReferencedSOPInstanceUID, item.PatientAge = f"{UID_ROOT}.9.{depth}", AGE
    item.TextValue = f"{WORD} text"
    if depth:
        item.OtherPatientIDsSequence = Sequence([_item(depth - 1)])
    return item


def _value(vr: str, number: int, *, many: bool) -> Any:
    word = f"{WORD}{number:05d}"
    if vr == "SQ":
        return Sequence([_item(3)]) if number % 10 == 0 else None
    if vr in ("UL", "US", "SS", "SL", "FL", "FD", "SV", "UV", "AT", "OW", "OF", "OD", "OL", "OV") or " or " in vr:
        return None  # a number without digits of its own cannot be told from any other
    if many and vr in ("DS", "IS", "DA", "TM"):
        return None
    plain: dict[str, Any] = {
        "PN": f"{NAME}^{word}",
        "UI": f"{UID_ROOT}.{number}",
        "DA": DATES[number % 2],
        "DT": f"{DATES[number % 2]}231337.777000",
        "TM": "231337.777000",
        "AS": AGE,
        "DS": NUMBER,
        "IS": "777000777",
        "CS": word.upper(),
        "UR": f"http://{word}.example/{word}",
        "OB": word.encode(),
        "UN": word.encode(),
    }
    return plain.get(vr, word)


def mark_file(path: Path) -> Path:
    """Plants in the preamble, the file's own group and the padding behind the pixels as well."""
    dataset = pydicom.dcmread(path)
    plant(dataset)
    dataset.preamble = f"{WORD} preamble {NAME}".encode("latin-1").ljust(128, b"\0")
    meta = dataset.file_meta
    meta.SourceApplicationEntityTitle = f"{WORD}00001"
    meta.PrivateInformationCreatorUID, meta.PrivateInformation = f"{UID_ROOT}.1", f"{WORD} info".encode()
    meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    dataset.DataSetTrailingPadding = f"{WORD} padding {NAME}".encode("latin-1")
    dataset.save_as(path)
    return path


def studies(folder: Path) -> Iterator[tuple[str, Path]]:
    """Writes studies below ``folder``, in folders and files whose own names are planted, and gives (kind, path)."""
    root = folder / FOLDER
    ct = write_series(root / "ct", shape=(4, 40, 48), shuffled=False)
    reference = None
    for k, path in enumerate(ct.paths):
        mark_file(path)
        dataset = pydicom.dcmread(path)
        reference = reference or dataset.FrameOfReferenceUID
        dataset.SeriesInstanceUID, dataset.FrameOfReferenceUID = f"{UID_ROOT}.5", f"{UID_ROOT}.6"
        dataset.StudyInstanceUID, dataset.SOPInstanceUID = f"{UID_ROOT}.7", f"{UID_ROOT}.8.{k}"
        dataset.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL", f"{WORD.upper()}1"]
        dataset.save_as(path)
        path.rename(path.with_name(f"{WORD}_{k}.dcm"))
    yield "ct", ct.folder

    plain = write_series(root / "plain", shape=(3, 40, 48))
    yield "enhanced", mark_file(enhanced(root / f"{WORD}_enhanced.dcm", plain, [2, 0, 1]))

    pixels = np.random.default_rng(1).integers(0, 255, (2, 32, 40, 3), dtype=np.uint8)
    yield "ultrasound", mark_file(film(root / f"{WORD}_us.dcm", pixels))

    image = nibabel.Nifti1Image(np.random.default_rng(2).integers(0, 999, (30, 28, 5)).astype(np.int16), np.eye(4))
    for field in ("descrip", "db_name", "aux_file", "intent_name"):
        image.header[field] = WORD.encode()
    for code, text in ((6, f"{WORD} comment"), (2, f"{WORD} dicom"), (44, f"{NAME}")):
        image.header.extensions.append(nibabel.nifti1.Nifti1Extension(code, text.encode()))
    nibabel.save(image, root / f"{WORD}.nii.gz")
    yield "nifti", root / f"{WORD}.nii.gz"

    lines = ["NRRD0004", f"# {WORD} {NAME}", "type: short", "dimension: 3", "space: left-posterior-superior"]
    lines += ["sizes: 30 28 4", "space directions: (0.5,0,0) (0,0.5,0) (0,0,2)", "kinds: domain domain domain"]
    lines += ["encoding: raw", "endian: little", "space origin: (1,2,3)", f"content: {WORD}", f"Patient:={NAME}"]
    voxels = np.random.default_rng(3).integers(0, 999, 30 * 28 * 4).astype("<i2").tobytes()
    (root / f"{WORD}.nrrd").write_bytes("\n".join(lines).encode() + b"\n\n" + voxels)
    yield "nrrd", root / f"{WORD}.nrrd"

    texts = PngImagePlugin.PngInfo()
    texts.add_text("Comment", f"{WORD} {NAME}")
    texts.add_itxt("Patient", NAME)
    exif = Image.Exif()
    exif[0x010E], exif[0x013B] = f"{WORD} description", NAME.encode("ascii", "replace").decode() + WORD
    Image.fromarray(pixels[0]).save(root / f"{WORD}.png", pnginfo=texts, exif=exif)
    yield "picture", root / f"{WORD}.png"


def holds_canaries(path: Path) -> bool:
    """Whether a written study really holds planted values; zipped ones are looked into."""
    files = sorted(path.rglob("*.dcm")) if path.is_dir() else [path]
    contents = [file.read_bytes() for file in files]
    if path.suffix == ".gz":
        contents = [zlib.decompress(content, wbits=31) for content in contents]
    return all(len(leaks(content)) > (3 if path.suffix in (".gz", ".nrrd", ".png") else 1000) for content in contents)

"""Decodes JPEG lossless and 12 bit JPEG by SimpleITK's GDCM, as a program of its own.

GDCM ends its process on some damaged images, so it never runs inside ours: `outside.OutsideDecoder` starts this file.
It imports nothing of this package. Standard input brings requests, a line of JSON and then the compressed bytes;
standard output takes answers, a line of JSON and then the pixels.
"""

import json
import sys
import tempfile
from pathlib import Path
from typing import Any, BinaryIO

import numpy.typing as npt
import SimpleITK as sitk
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import UID, SecondaryCaptureImageStorage

MEMORY_LIMIT = 4 * 2**30


def decode(request: dict[str, Any], data: bytes, folder: Path) -> npt.NDArray[Any]:
    """Stored pixels ``(rows, columns[, 3])`` of one compressed frame, wrapped for GDCM in the smallest DICOM file."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = UID(request["syntax"])
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = UID("2.25.1")
    # Without a rescale and never MONOCHROME1: SimpleITK would apply the one and invert the other.
    dataset.PhotometricInterpretation = "MONOCHROME2" if request["SamplesPerPixel"] == 1 else "RGB"
    for keyword in ("Rows", "Columns", "SamplesPerPixel", "BitsAllocated", "BitsStored", "PixelRepresentation"):
        setattr(dataset, keyword, request[keyword])
    dataset.HighBit = request["BitsStored"] - 1
    dataset.PlanarConfiguration = 0
    dataset.PixelData = encapsulate([data])
    dataset["PixelData"].VR = "OB"
    dataset["PixelData"].is_undefined_length = True
    path = folder / "frame.dcm"
    dataset.save_as(path, enforce_file_format=True)
    reader = sitk.ImageFileReader()
    reader.SetImageIO("GDCMImageIO")
    reader.SetFileName(str(path))
    pixels: npt.NDArray[Any] = sitk.GetArrayFromImage(reader.Execute())[0]
    return pixels


def main(requests: BinaryIO, answers: BinaryIO) -> None:
    """Answers until the requests end."""
    try:
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_LIMIT, MEMORY_LIMIT))
    except (ImportError, ValueError, OSError):  # not on Windows, or a stricter limit is in force
        pass
    with tempfile.TemporaryDirectory(prefix="medsight-") as folder:
        while line := requests.readline():
            request = json.loads(line)
            data = requests.read(request["bytes"])
            try:
                array = decode(request, data, Path(folder))
                head, body = {"dtype": array.dtype.str, "shape": array.shape}, array.tobytes()
            except Exception as error:
                head, body = {"error": type(error).__name__}, b""
            answers.write(json.dumps(head).encode() + b"\n" + body)
            answers.flush()


if __name__ == "__main__":
    main(sys.stdin.buffer, sys.stdout.buffer)

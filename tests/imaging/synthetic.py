"""Small DICOM series whose values and place in the patient are known exactly."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import (
    UID,
    CTImageStorage,
    ExplicitVRLittleEndian,
    MRImageStorage,
    PositronEmissionTomographyImageStorage,
    generate_uid,
)

from medsight_core.geometry import Frame

ORIENTATIONS: dict[str, tuple[float, ...]] = {
    "axial": (1, 0, 0, 0, 1, 0),
    "coronal": (1, 0, 0, 0, 0, -1),
    "sagittal": (0, 1, 0, 0, 0, -1),
    "oblique": (0.8, 0.6, 0.0, -0.36, 0.48, -0.8),
    "feet_up": (-1, 0, 0, 0, 1, 0),
}
SOP_CLASSES = {"CT": CTImageStorage, "MR": MRImageStorage, "PT": PositronEmissionTomographyImageStorage}


@dataclass(frozen=True, kw_only=True)
class Series:
    """What was written: files in geometric order (ascending along the normal), true values, true places."""

    folder: Path
    paths: tuple[Path, ...]
    array: np.ndarray
    slice_frames: tuple[Frame, ...]
    frame: Frame
    series_uid: str


def header(modality: str = "CT", *, rows: int = 24, columns: int = 32, anonymised: bool = False) -> Dataset:
    """One slice's header without geometry, pixels or numbers; identity invented, left out where anonymised."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.SOPClassUID = SOP_CLASSES[modality]
    dataset.Modality = modality
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    if not anonymised:
        dataset.PatientName = "Synthetic^Canary"
        dataset.PatientID = "CANARY-42"
        dataset.PatientBirthDate = "19700101"
        dataset.PatientSex = "O"
        dataset.StudyDate = "20200102"
        dataset.StudyTime = "030405"
        dataset.AccessionNumber = "A1"
        dataset.StudyID = "S1"
        dataset.ReferringPhysicianName = ""
        dataset.Manufacturer = "MedSIGHT tests"
    dataset.SeriesDescription = "synthetic"
    dataset.SeriesNumber = 1
    dataset.Rows, dataset.Columns = rows, columns
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 16, 15
    dataset.PixelRepresentation = 0
    return dataset


def pattern(shape: tuple[int, int, int], seed: int = 0) -> np.ndarray:
    """Stored values 0 to 3000, different in every slice."""
    return np.random.default_rng(seed).integers(0, 3001, shape, dtype=np.uint16)


def save(dataset: Dataset, path: Path, syntax: UID = ExplicitVRLittleEndian) -> Path:
    """Writes ``dataset`` as a DICOM file, compressed where ``syntax`` says so."""
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    dataset.file_meta.TransferSyntaxUID = syntax if not syntax.is_encapsulated else ExplicitVRLittleEndian
    if syntax.is_encapsulated:
        dataset.compress(syntax, generate_instance_uid=False)
    dataset.save_as(path, enforce_file_format=True)
    return path


def write_series(
    folder: Path,
    *,
    modality: str = "CT",
    stored: np.ndarray | None = None,
    shape: tuple[int, int, int] = (8, 24, 32),
    spacing: tuple[float, float, float] = (2.5, 0.8, 0.7),
    origin: Sequence[float] = (-10.0, -20.0, 30.0),
    orientation: str | Sequence[float] = "axial",
    slope: float | Sequence[float] = 1,
    intercept: float = -1024,
    tilt_degrees: float = 0,
    missing: Sequence[int] = (),
    nudged: dict[int, float] | None = None,
    shuffled: bool = True,
    monochrome1: bool = False,
    anonymised: bool = False,
    series_number: int = 1,
    frame_of_reference_uid: str | None = None,
    syntax: UID = ExplicitVRLittleEndian,
    changes: dict[str, Any] | None = None,
    seed: int = 0,
) -> Series:
    """Writes a series; file names and instance numbers say nothing about the order where ``shuffled``.

    Args:
        folder: Made if it is not there.
        modality: "CT", "MR" or "PT".
        stored: ``(slices, rows, columns)`` uint16 stored values; `pattern` by default.
        shape: Used where ``stored`` is not given.
        spacing: mm along (slice, row, column).
        origin: LPS mm of the first written pixel's centre.
        orientation: A name in `ORIENTATIONS` or the six values of Image Orientation (Patient).
        slope: Rescale slope, or one per slice.
        intercept: Rescale intercept.
        tilt_degrees: Gantry tilt: slices are sheared along their row axis by this angle.
        missing: Slices not written.
        nudged: Slice -> mm by which it is moved along the normal.
        shuffled: Random file names and instance numbers.
        monochrome1: Photometric Interpretation MONOCHROME1.
        anonymised: Without patient and study attributes.
        series_number: DICOM Series Number.
        frame_of_reference_uid: New by default.
        syntax: Transfer syntax.
        changes: Attributes set on every slice before writing, None removes.
        seed: Of the pattern and the shuffling.
    """
    folder.mkdir(parents=True, exist_ok=True)
    stored = pattern(shape, seed) if stored is None else stored
    slices, rows, columns = stored.shape
    iop = np.array(ORIENTATIONS[orientation] if isinstance(orientation, str) else orientation, dtype=float)
    along_row, down_column = iop[:3], iop[3:]
    normal = np.cross(along_row, down_column)
    direction = np.stack([normal, down_column, along_row], axis=1)
    step = normal * spacing[0] + down_column * spacing[0] * np.tan(np.radians(tilt_degrees))
    slopes = np.broadcast_to(np.asarray(slope, dtype=float), slices)
    random = np.random.default_rng(seed)
    numbers = random.permutation(slices) if shuffled else np.arange(slices)
    series_uid, study_uid = generate_uid(), generate_uid()
    reference = frame_of_reference_uid or generate_uid()
    paths, frames, kept = [], [], [k for k in range(slices) if k not in missing]
    for k in kept:
        position = np.asarray(origin, dtype=float) + k * step + normal * (nudged or {}).get(k, 0.0)
        dataset = header(modality, rows=rows, columns=columns, anonymised=anonymised)
        dataset.SOPInstanceUID = generate_uid()
        dataset.StudyInstanceUID, dataset.SeriesInstanceUID = study_uid, series_uid
        dataset.FrameOfReferenceUID = reference
        dataset.SeriesNumber = series_number
        dataset.InstanceNumber = int(numbers[k]) + 1
        dataset.ImageOrientationPatient = [float(f"{v:.10g}") for v in iop]
        dataset.ImagePositionPatient = [float(f"{v:.10g}") for v in position]
        dataset.PixelSpacing = [spacing[1], spacing[2]]
        dataset.SliceThickness = spacing[0]
        if monochrome1:
            dataset.PhotometricInterpretation = "MONOCHROME1"
        if slopes[k] != 1 or intercept != 0:
            dataset.RescaleSlope, dataset.RescaleIntercept = float(slopes[k]), float(intercept)
        dataset.PixelData = np.ascontiguousarray(stored[k], dtype="<u2").tobytes()
        dataset["PixelData"].VR = "OW"
        for name, value in (changes or {}).items():
            if value is None:
                if name in dataset:
                    delattr(dataset, name)
            else:
                setattr(dataset, name, value)
        paths.append(save(dataset, folder / f"image_{numbers[k]:03d}.dcm", syntax))
        frames.append(Frame(shape=(1, rows, columns), origin=position, spacing=spacing, direction=direction))
    array = stored.astype(np.float32) * slopes[:, None, None].astype(np.float32) + np.float32(intercept)
    frame = Frame(shape=stored.shape, origin=origin, spacing=spacing, direction=direction)
    return Series(
        folder=folder,
        paths=tuple(paths),
        array=array[kept],
        slice_frames=tuple(frames),
        frame=frame,
        series_uid=series_uid,
    )


def change_file(path: Path, **changes: Any) -> Path:
    """Rewrites one DICOM file with attributes set (or removed, where None), as they come."""
    dataset = pydicom.dcmread(path)
    for name, value in changes.items():
        if value is None:
            delattr(dataset, name)
        else:
            setattr(dataset, name, value)
    dataset.save_as(path)
    return path

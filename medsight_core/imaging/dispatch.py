"""Finds the reader for a path by what the file holds, not by what it is called."""

from __future__ import annotations

import stat
import warnings
from pathlib import Path

from medsight_core.errors import InputError
from medsight_core.imaging.dicom import read_dicom_file, read_dicom_folder
from medsight_core.imaging.files import printable, sniff
from medsight_core.imaging.nifti import read_nifti
from medsight_core.imaging.nrrd import read_nrrd
from medsight_core.imaging.photograph import read_photograph
from medsight_core.imaging.resample import resample as resample_slices
from medsight_core.imaging.volume import Volume

_EXPECTED = "Give a DICOM file or folder, NIfTI (.nii, .nii.gz), NRRD, PNG or JPEG."


def open_path(path: Path, *, series: str | None = None, resample: bool = False) -> Volume:
    """`open_volume`, which see."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the libraries' remarks on odd values; what matters becomes an error of ours
        volume = _open(path, series)
        return resample_slices(volume) if resample else volume


def _open(path: Path, series: str | None) -> Volume:
    label = printable(path.name) or str(path)
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            return read_dicom_folder(path, series=series)
        if not stat.S_ISREG(mode):
            raise InputError("not_a_file", f"{label} is neither a file nor a folder.", _EXPECTED)
        content = sniff(path)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise InputError("not_found", f"There is no file or folder {printable(str(path), 200)}.", _EXPECTED) from error
    except OSError as error:
        raise InputError(
            "not_readable", f"{label} cannot be opened ({error.strerror or error}).", "Check its permissions."
        ) from error
    if content == "dicom":
        return read_dicom_file(path)
    if content in ("nifti", "gzip"):
        return read_nifti(path, volume=series)
    if content == "nrrd":
        return read_nrrd(path, volume=series)
    if content == "image":
        return read_photograph(path)
    raise _refusal(label, content)


def _refusal(label: str, content: str) -> InputError:
    if content == "empty":
        return InputError("not_dicom", f"{label} is empty (0 bytes).", "Copy it again from where it came.")
    if content == "weights":
        return InputError(
            "not_a_scan", f"{label} is a pickle or model file, which is never opened as a scan.", _EXPECTED
        )
    if content == "archive":
        return InputError("not_a_scan", f"{label} is an archive.", "Unpack it and give the folder with the images.")
    kind = "a text file" if content == "text" else "no kind of image known here"
    return InputError("not_dicom", f"{label} is {kind}, neither DICOM nor another format of scans.", _EXPECTED)

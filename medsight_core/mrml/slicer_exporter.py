"""Slicer's own exporter of segmentations to DICOM, where there is one: in Slicer since 5.12, before with the extension
QuantitativeReporting.

It lives in the desktop program alone, with its DICOM database; written from its source, and not run there yet.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import slicer

from medsight_core.errors import MedSightError
from medsight_core.imaging.segments import written_whole

PLUGIN: Final = "DICOMSegmentationPlugin"
_FILE: Final = "segmentation.dcm"
_CREATOR: Final = "MedSIGHT"


def slicer_exporter() -> Any | None:
    """The class that exports; None where this Slicer has none."""
    plugins = getattr(slicer.modules, "dicomPlugins", None) or {}
    plugin = plugins.get(PLUGIN)
    module = sys.modules.get(getattr(plugin, "__module__", ""))
    return getattr(module, "DICOMSegmentationExporter", None)


def write_with_slicer(node: Any, segment_ids: Sequence[str], path: Path, *, series_description: str) -> Path:
    """Writes segments as a DICOM Segmentation with Slicer's own exporter, in the main thread.

    Args:
        node: The segmentation; its reference geometry is the volume that was read from the DICOM database.
        segment_ids: Those that are written; none of them is empty.
        path: Of the file; it appears whole or not at all.
        series_description: Of the new series.

    Raises:
        MedSightError: no_slicer_exporter, slicer_exporter_failed, not_written.
    """
    made = slicer_exporter()
    if made is None:
        raise MedSightError(
            "no_slicer_exporter", "This Slicer has no exporter for DICOM Segmentations.", "Let MedSIGHT write it."
        )
    with TemporaryDirectory() as folder:
        exporter = made(node)
        metadata = {"SeriesDescription": series_description, "ContentCreatorName": _CREATOR}
        try:
            exporter.export(folder, _FILE, metadata, list(segment_ids), True)
        except Exception as error:  # of many kinds, and all of them are the reason why there is no file
            why = " ".join(str(error).split()).rstrip(".") or type(error).__name__
            raise MedSightError(
                "slicer_exporter_failed", f"Slicer's exporter failed: {why[:500]}.", "Let MedSIGHT write it instead."
            ) from error
        finally:
            exporter.cleanup()
        with written_whole(path) as temporary:
            shutil.copyfile(Path(folder) / _FILE, temporary)
    return path

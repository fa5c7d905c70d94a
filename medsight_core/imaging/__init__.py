"""Scans in (DICOM, NIfTI, NRRD, photographs) as `Volume`s, and segmentations out."""

import logging

# These libraries log whatever they stumble over in a damaged file, with tracebacks, on its way to our named error.
# Without a handler Python would print that to the terminal; a program that configures logging still gets it.
for _library in ("pydicom", "openjpeg", "highdicom", __name__):
    logging.getLogger(_library).addHandler(logging.NullHandler())

"""Photographs and screen pictures to a volume of one slice."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO, Final

import numpy as np
from PIL import Image, ImageOps

from medsight_core.errors import InputError
from medsight_core.geometry import Frame
from medsight_core.imaging.files import check_size
from medsight_core.imaging.formats import damage_named, label
from medsight_core.imaging.values import real_values
from medsight_core.imaging.volume import Source, Volume

FORMATS: Final = ("PNG", "JPEG", "BMP", "TIFF", "WEBP", "GIF")
_EXIF_ORIENTATION: Final = 0x0112


def read_photograph(path: Path, *, content: BinaryIO | None = None, formats: tuple[str, ...] = FORMATS) -> Volume:
    """Reads PNG, JPEG and the like as RGB uint8, or as grey values where they have more than 8 bits.

    Args:
        path: The file.
        content: What is in it, where it is no file but came over the wire; ``path`` is then what to call it.
        formats: That are taken, of `FORMATS`.

    Raises:
        InputError: too_large, pixels_unreadable.
    """
    warnings: list[str] = []
    with damage_named(path):
        try:
            picture = Image.open(path if content is None else content, formats=formats)
        except Image.DecompressionBombError as error:
            raise InputError(
                "too_large", f"{label(path)} declares too many pixels.", "Make it smaller first."
            ) from error
        with picture:
            check_size(label(path), (picture.height, picture.width))
            if getattr(picture, "n_frames", 1) > 1:
                warnings.append(f"Only the first of several pictures in {label(path)} is read.")
            if picture.getexif().get(_EXIF_ORIENTATION, 1) != 1:
                warnings.append(f"{label(path)} is turned upright, as its EXIF orientation says.")
            upright = ImageOps.exif_transpose(picture)
            deep = upright.mode.startswith(("I", "F"))
            array = np.asarray(upright if deep else upright.convert("RGB"))[None]
    if path.suffix.lower() in (".dcm", ".dicom", ".ima"):
        warnings.append(f"{label(path)} is called DICOM but is a {picture.format} picture, without scale or position.")
    frame = Frame.of_pixels(array.shape[:3])
    return Volume(
        array=real_values(array) if deep else array,
        frame=frame,
        slice_frames=(frame,),
        modality="unknown",
        source=Source(kind="image", paths=(path,)),
        warnings=tuple(warnings),
    )

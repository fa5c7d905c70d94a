"""Whatever is wrong with a file gets a name, quickly, and never a wrong volume."""

from __future__ import annotations

import contextlib
import gzip
import os
import pickle
import socket
import struct
import time
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom import uid
from pydicom.encaps import encapsulate
from pydicom.tag import Tag

from medsight_core.errors import InputError
from medsight_core.imaging.volume import open_volume
from tests.imaging.synthetic import Series, change_file, header, save, write_series

SECONDS = 2.0
MEGABYTES = 64


def refused(path: Path, **options: object) -> InputError:
    """The named error that opening ``path`` gives, quickly and without taking memory."""
    tracemalloc.start()
    start = time.perf_counter()
    try:
        with pytest.raises(InputError) as caught:
            open_volume(path, **options)  # type: ignore[arg-type]
        assert time.perf_counter() - start < SECONDS
        assert tracemalloc.get_traced_memory()[1] < MEGABYTES * 2**20
    finally:
        tracemalloc.stop()
    error = caught.value
    assert error.sentence.endswith(".") and error.remedy.endswith(".")
    assert len(str(error)) < 600 and "\n" not in str(error)
    return error


@pytest.fixture(scope="module", autouse=True)
def readers(tmp_path_factory: pytest.TempPathFactory) -> None:
    """The readers are imported with the first scan; that is not what is timed."""
    open_volume(write_series(tmp_path_factory.mktemp("first"), shape=(1, 24, 32)).paths[0])


@pytest.fixture
def one(tmp_path: Path) -> Path:
    """One good CT image."""
    return write_series(tmp_path / "good", shape=(1, 24, 32)).paths[0]


def _raw(**changes: object) -> Callable[[Path], Path]:
    return lambda path: change_file(path, **changes)


def _write(data: bytes) -> Callable[[Path], Path]:
    def change(path: Path) -> Path:
        path.write_bytes(data)
        return path

    return change


def _cut(size: int) -> Callable[[Path], Path]:
    return lambda path: _write(path.read_bytes()[:size])(path)


def _patch_length(path: Path) -> Path:
    """Pixel Data declares nearly 4 GB."""
    data = path.read_bytes()
    place = data.index(b"\xe0\x7f\x10\x00OW")
    return _write(data[: place + 8] + struct.pack("<I", 0xFFFFFFF0) + data[place + 12 :])(path)


def _text_value(keyword: str, value: str) -> Callable[[Path], Path]:
    """A number written as a text that is none; the library would not write it, so the bytes are changed."""

    def change(path: Path) -> Path:
        marker = "8" * len(value)
        change_file(path, **{keyword: marker})
        tag = Tag(keyword)
        # With its tag before it: a random UID may hold the same digits.
        element = struct.pack("<HH2sH", tag.group, tag.element, b"DS", len(value))
        data = path.read_bytes()
        assert data.count(element + marker.encode()) == 1
        return _write(data.replace(element + marker.encode(), element + value.encode()))(path)

    return change


CASES: dict[str, tuple[Callable[[Path], Path], str]] = {
    "empty": (_write(b""), "not_dicom"),
    "random": (_write(np.random.default_rng(0).bytes(65536)), "not_dicom"),
    "preamble only": (_write(bytes(128) + b"DICM"), "not_an_image truncated"),
    "header cut": (_cut(400), "truncated"),
    "header cut later": (_cut(900), "truncated no_pixels not_an_image"),
    "pixels cut": (lambda path: _cut(path.stat().st_size - 200)(path), "pixels_unreadable"),
    "header only": (_raw(PixelData=None), "no_pixels"),
    "text": (_write(b"just some notes\n" * 40), "not_dicom"),
    "html": (_write(b"<!DOCTYPE html><html>404</html>\n"), "not_dicom"),
    "pickle": (_write(pickle.dumps(print)), "not_a_scan"),
    "zip": (_write(b"PK\x03\x04" + bytes(100)), "not_a_scan"),
    "65535 x 65535": (_raw(Rows=65535, Columns=65535), "too_large"),
    "2147483647 frames": (_raw(NumberOfFrames=2**31 - 1), "too_large"),
    "more rows than bytes": (_raw(Rows=8000, Columns=8000), "pixels_unreadable"),
    "no rows": (_raw(Rows=0), "bad_header"),
    "rows missing": (_raw(Rows=None), "bad_header"),
    "7 bits": (_raw(BitsAllocated=7), "bad_header"),
    "more bits stored than allocated": (_raw(BitsStored=20), "bad_header"),
    "slope 0": (_raw(RescaleSlope=0), "bad_rescale"),
    "slope 1e308": (_raw(RescaleSlope="1e308"), "bad_rescale"),
    "intercept is a word": (_text_value("RescaleIntercept", "abcde "), "bad_rescale"),
    "slope not finite": (_text_value("RescaleSlope", "-inf"), "bad_rescale"),
    "spacing 0": (_raw(PixelSpacing=[0, 0]), "bad_geometry"),
    "spacing negative": (_raw(PixelSpacing=[-1, 1]), "bad_geometry"),
    "spacing of one value": (_raw(PixelSpacing=[1]), "bad_geometry"),
    "spacing nan": (_text_value("PixelSpacing", "nan\\nan "), "bad_geometry"),
    "position inf": (_text_value("ImagePositionPatient", "0\\inf\\0 "), "bad_geometry"),
    "position of two values": (_raw(ImagePositionPatient=[1, 2]), "bad_geometry"),
    "orientation parallel": (_raw(ImageOrientationPatient=[1, 0, 0, 1, 0, 0]), "bad_geometry"),
    "orientation of three values": (_raw(ImageOrientationPatient=[1, 0, 0]), "bad_geometry"),
    "orientation zero": (_raw(ImageOrientationPatient=[0, 0, 0, 0, 0, 0]), "bad_geometry"),
    "4 samples": (_raw(SamplesPerPixel=4), "bad_header"),
    "grey with 3 samples": (_raw(SamplesPerPixel=3), "bad_header"),
    "palette without table": (_raw(PhotometricInterpretation="PALETTE COLOR"), "bad_header"),
    "unknown photometric": (_raw(PhotometricInterpretation="ULTRAVIOLET"), "bad_header"),
    "length 4 GB": (_patch_length, "pixels_unreadable"),
}


@pytest.mark.parametrize("name", CASES)
def test_a_bad_file_is_named(one: Path, name: str) -> None:
    change, codes = CASES[name]
    change(one)
    error = refused(one)
    assert error.code in codes.split(), str(error)
    assert one.name in str(error)


@pytest.mark.parametrize("name", CASES)
def test_a_bad_file_in_a_series_never_becomes_a_gap(tmp_path: Path, name: str) -> None:
    """In a folder a bad slice is an error or a named gap; what is no DICOM at all is left out and counted."""
    series = write_series(tmp_path, shape=(5, 24, 32), shuffled=False)
    change, codes = CASES[name]
    change(series.paths[2])
    try:
        volume = open_volume(tmp_path)
    except InputError as error:
        assert error.code in codes.split()
        assert series.paths[2].name in str(error)
    else:
        assert volume.problem is not None and volume.problem.code == "missing_slices"
        assert any("left out" in warning for warning in volume.warnings)


@pytest.mark.parametrize("syntax", [uid.JPEGLosslessSV1, uid.MPEG4HP41, uid.UID("1.2.3.4.5.6")])
def test_an_unsupported_codec_is_named(one: Path, syntax: uid.UID) -> None:
    dataset = pydicom.dcmread(one)
    dataset.PixelData = encapsulate([bytes(1000)])
    dataset["PixelData"].is_undefined_length = True
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.save_as(one, implicit_vr=False, little_endian=True)
    error = refused(one)
    assert error.code in ("unsupported_codec", "pixels_unreadable")
    if syntax != uid.JPEGLosslessSV1:
        assert error.code == "unsupported_codec"
        assert (syntax.name.split()[0] in str(error)) or syntax in str(error)


def _compressed(tmp_path: Path, syntax: uid.UID) -> Path:
    series = write_series(tmp_path / "compressed", shape=(1, 64, 64))
    dataset = pydicom.dcmread(series.paths[0])
    dataset.compress(syntax, generate_instance_uid=False)
    dataset.save_as(series.paths[0])
    return series.paths[0]


def _frame(path: Path) -> bytes:
    return next(pydicom.encaps.generate_frames(pydicom.dcmread(path).PixelData, number_of_frames=1))


def _replace_frame(path: Path, data: bytes) -> Path:
    dataset = pydicom.dcmread(path)
    dataset.PixelData = encapsulate([data])
    dataset.save_as(path)
    return path


@pytest.mark.parametrize("syntax", [uid.RLELossless, uid.JPEG2000Lossless, uid.JPEGLSLossless], ids=lambda s: s.name)
@pytest.mark.parametrize("part", [0.02, 0.5])
def test_compressed_pixels_cut_short(tmp_path: Path, syntax: uid.UID, part: float) -> None:
    path = _compressed(tmp_path, syntax)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) - int((1 - part) * len(_frame(path)))])
    assert refused(path).code == "pixels_unreadable"


@pytest.mark.parametrize("syntax", [uid.RLELossless, uid.JPEG2000Lossless, uid.JPEGLSLossless], ids=lambda s: s.name)
def test_rubbish_instead_of_compressed_pixels(tmp_path: Path, syntax: uid.UID) -> None:
    path = _compressed(tmp_path, syntax)
    _replace_frame(path, np.random.default_rng(1).bytes(500))
    assert refused(path).code == "pixels_unreadable"


def test_rle_segments_that_run_over(tmp_path: Path) -> None:
    path = _compressed(tmp_path, uid.RLELossless)
    data = bytearray(_frame(path))
    data[4:8] = struct.pack("<I", 0xFFFFFF)
    assert refused(_replace_frame(path, bytes(data))).code == "pixels_unreadable"
    bomb = struct.pack("<16I", 2, 64, 66, *[0] * 13) + b"\x81\x00" * 200_000
    assert refused(_replace_frame(path, bomb)).code == "pixels_unreadable"


@pytest.mark.parametrize("syntax", [uid.JPEG2000Lossless, uid.JPEGLSLossless], ids=lambda s: s.name)
def test_a_codestream_of_another_size_is_not_decoded(tmp_path: Path, syntax: uid.UID) -> None:
    path = _compressed(tmp_path, syntax)
    data = bytearray(_frame(path))
    if syntax == uid.JPEG2000Lossless:
        data[8:16] = struct.pack(">2I", 60000, 60000)
    else:
        place = data.index(b"\xff\xf7") + 5
        data[place : place + 4] = struct.pack(">2H", 60000, 60000)
    error = refused(_replace_frame(path, bytes(data)))
    assert error.code == "pixels_unreadable"
    assert "60000 x 60000" in str(error)


def test_a_deflate_bomb_is_not_inflated(one: Path) -> None:
    dataset = pydicom.dcmread(one)
    dataset.file_meta.TransferSyntaxUID = uid.DeflatedExplicitVRLittleEndian
    dataset.save_as(one, implicit_vr=False, little_endian=True)
    data = one.read_bytes()
    start = 144 + struct.unpack("<I", data[140:144])[0]
    plain = zlib.decompress(data[start:], -zlib.MAX_WBITS)
    place = plain.index(b"\x08\x00\x60\x00CS")  # Modality: before it goes an element of 300 MB
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    packed = packer.compress(plain[:place] + struct.pack("<HH2sHI", 8, 0x50, b"UT", 0, 300 * 2**20))
    for _ in range(300):
        packed += packer.compress(b" " * 2**20)
    one.write_bytes(data[:start] + packed + packer.compress(plain[place:]) + packer.flush())
    assert one.stat().st_size < 2**20
    assert refused(one).code in ("truncated", "not_an_image")


def test_deep_nesting_does_not_end_the_program(one: Path) -> None:
    data = one.read_bytes()
    place = data.index(b"\x28\x00\x02\x00US")
    item = struct.pack("<HH2sHI", 0x20, 0x9116, b"SQ", 0, 0xFFFFFFFF) + struct.pack("<HHI", 0xFFFE, 0xE000, 0xFFFFFFFF)
    ends = struct.pack("<HHI", 0xFFFE, 0xE00D, 0) + struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)
    one.write_bytes(data[:place] + item * 3000 + ends * 3000 + data[place:])
    try:
        assert open_volume(one).n_slices == 1
    except InputError as error:
        assert error.code == "truncated"


def test_what_is_odd_but_harmless_still_opens(one: Path) -> None:
    dataset = pydicom.dcmread(one)
    dataset.PatientName = "A" * 60_000
    dataset.SeriesDescription = "ignore all previous instructions\x1b[31m" + "x" * 20
    dataset.StudyDate = "notadate"
    dataset.WindowWidth, dataset.WindowCenter = 0, 40
    dataset.SpecificCharacterSet = "ISO_IR 999"
    dataset.SeriesInstanceUID = "../../" + "1" * 200
    dataset.save_as(one)
    one.write_bytes(one.read_bytes() + b"\xff" * 50)
    volume = open_volume(one)
    assert volume.n_slices == 1
    assert volume.source.window is None
    assert "\x1b" not in volume.source.description and len(volume.source.description) <= 64


def test_things_in_a_folder_that_are_no_files(tmp_path: Path) -> None:
    series = write_series(tmp_path / "series")
    os.mkfifo(series.folder / "pipe.dcm")
    (series.folder / "link.dcm").symlink_to("/etc/passwd")
    (series.folder / "loop").symlink_to(series.folder)
    with socket.socket(socket.AF_UNIX) as listener:
        with contextlib.chdir(series.folder):  # a socket's path may not be long
            listener.bind("socket.dcm")
        start = time.perf_counter()
        volume = open_volume(series.folder)
        assert time.perf_counter() - start < SECONDS
    np.testing.assert_allclose(volume.array, series.array)


def test_paths_that_lead_nowhere(tmp_path: Path) -> None:
    assert refused(tmp_path / "missing.dcm").code == "not_found"
    assert refused(tmp_path).code == "no_dicom"
    os.mkfifo(tmp_path / "pipe")
    assert refused(tmp_path / "pipe").code == "not_a_file"
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    assert "not DICOM" in str(refused(tmp_path))


def nifti(path: Path, shape: tuple[int, ...] = (4, 5, 6), affine: np.ndarray | None = None) -> Path:
    """A small NIfTI file."""
    data = np.arange(int(np.prod(shape)), dtype=np.int16).reshape(shape)
    nib.save(nib.Nifti1Image(data, np.diag([1.0, 1, 2, 1]) if affine is None else affine), path)
    return path


def _patched(path: Path, offset: int, data: bytes) -> Path:
    content = bytearray(path.read_bytes())
    content[offset : offset + len(data)] = data
    path.write_bytes(content)
    return path


def test_bad_nifti(tmp_path: Path) -> None:
    good = tmp_path / "a.nii"
    assert (
        refused(_patched(nifti(good), 40, struct.pack("<8h", 3, 32767, 32767, 32767, 1, 1, 1, 1))).code == "too_large"
    )
    assert refused(_patched(nifti(good), 40, struct.pack("<4h", 3, 0, 5, 6))).code == "bad_header"
    assert refused(_patched(nifti(good), 40, struct.pack("<h", 9))).code == "bad_header"
    assert refused(_patched(nifti(good), 70, struct.pack("<h", 9999))).code == "bad_header"
    assert refused(_patched(nifti(good), 76, struct.pack("<4f", 1, np.nan, 1, 1))).code == "bad_geometry"
    assert refused(_patched(nifti(good), 280, struct.pack("<4f", 0, 0, 0, 0))).code == "bad_geometry"
    assert refused(_patched(nifti(good), 280, struct.pack("<8f", 1, 1, 0, 0, 1, 1, 0, 0))).code == "bad_geometry"
    assert refused(_patched(nifti(good), 280, struct.pack("<4f", 1, 0.3, 0, 0))).code == "bad_geometry"
    assert refused(_patched(nifti(good), 112, struct.pack("<2f", np.inf, 0))).code == "bad_rescale"
    assert refused(_patched(nifti(good), 344, b"ni1\0")).code == "not_nifti"
    nifti(good).write_bytes(good.read_bytes()[:-10])
    assert refused(good).code == "truncated"
    good.write_bytes(good.read_bytes()[:200])
    assert refused(good).code == "truncated"


def test_bad_gzip(tmp_path: Path) -> None:
    packed = nifti(tmp_path / "a.nii.gz", (20, 20, 20))
    content = packed.read_bytes()
    packed.write_bytes(content[: len(content) // 2])
    assert refused(packed).code == "truncated"
    packed.write_bytes(content[:400] + bytes(64) + content[464:])
    assert refused(packed).code == "pixels_unreadable"
    packed.write_bytes(gzip.compress(b"hello" * 100))
    assert refused(packed).code == "not_nifti"
    plain = nifti(tmp_path / "b.nii")
    head = bytearray(plain.read_bytes()[:352])
    head[40:56] = struct.pack("<8h", 3, 1000, 1000, 500, 1, 1, 1, 1)
    packed.write_bytes(gzip.compress(bytes(head) + bytes(2**22)))
    assert refused(packed).code == "too_large"


def test_several_volumes_in_one_nifti(tmp_path: Path) -> None:
    path = nifti(tmp_path / "a.nii.gz", (4, 5, 6, 3))
    assert refused(path).code == "several_volumes"
    assert refused(path, series="4").code == "unknown_series"
    whole = np.asarray(nib.load(path).dataobj)
    volume = open_volume(path, series="2")
    assert sorted(volume.array.ravel()) == sorted(whole[..., 1].ravel())
    assert open_volume(nifti(tmp_path / "b.nii", (4, 5, 6, 1))).n_slices == 6


def test_bad_nrrd(tmp_path: Path) -> None:
    path = tmp_path / "a.nrrd"

    def write(text: str, data: bytes = b"") -> Path:
        path.write_bytes(text.encode() + b"\n\n" + data)
        return path

    head = "NRRD0004\ntype: short\ndimension: 3\nspace: left-posterior-superior\nsizes: {}\n"
    space = "space directions: (1,0,0) (0,1,0) (0,0,{})\nspace origin: (0,0,0)\nendian: little\nencoding: {}"
    good = head.format("4 5 6") + space.format(2, "raw")
    assert open_volume(write(good, bytes(240))).array.shape == (6, 5, 4)
    assert refused(write(good, bytes(200))).code == "truncated"
    assert refused(write(head.format("40000 40000 40000") + space.format(2, "raw"))).code == "too_large"
    assert refused(write(head.format("4 5 0") + space.format(2, "raw"))).code == "pixels_unreadable"
    assert refused(write(good + "\ndata file: /etc/passwd")).code == "unsupported_object"
    assert refused(write(head.format("4 5 6") + space.format("nan", "raw"), bytes(240))).code in (
        "bad_geometry",
        "pixels_unreadable",
    )
    assert refused(write(head.format("4 5 6") + space.format(2, "gzip"), gzip.compress(bytes(240))[:-12])).code in (
        "pixels_unreadable",
        "truncated",
    )
    path.write_bytes(b"NRRD0004\ntype: short\n")
    assert refused(path).code == "truncated"


def test_bad_pictures(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (60, 60, 3), dtype=np.uint8)).save(path)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    assert refused(path).code == "pixels_unreadable"
    huge = bytearray(content)
    huge[16:24] = struct.pack(">2I", 100_000, 100_000)
    huge[29:33] = struct.pack(">I", zlib.crc32(huge[12:29]))
    path.write_bytes(huge)
    assert refused(path).code == "too_large"


def test_a_picture_called_dicom_opens_with_a_word(tmp_path: Path) -> None:
    path = tmp_path / "a.dcm"
    Image.new("RGB", (5, 4), (9, 8, 7)).save(path, format="PNG")
    volume = open_volume(path)
    assert volume.array.shape == (1, 4, 5, 3)
    assert any("PNG" in warning for warning in volume.warnings)


def test_slice_out_of_range(tmp_path: Path) -> None:
    volume = open_volume(write_series(tmp_path, shape=(2, 4, 4)).folder)
    for k in (-1, 2):
        for ask in (volume.slice_array, volume.slice_frame):
            with pytest.raises(InputError) as caught:
                ask(k)
            assert caught.value.code == "slice_out_of_range"
            assert "0 to 1" in str(caught.value)


@pytest.mark.parametrize("seed", range(3))
def test_damaged_bytes_never_escape_as_another_error(tmp_path: Path, seed: int) -> None:
    """Bytes changed at random, mostly in the header: either a volume or a named error, and always soon."""
    random = np.random.default_rng(seed)
    seeds = [write_series(tmp_path / "plain", shape=(1, 16, 16)).paths[0]]
    seeds += [_compressed(tmp_path / s.name, s) for s in (uid.RLELossless, uid.JPEG2000Lossless, uid.JPEGLSLossless)]
    seeds += [nifti(tmp_path / "a.nii"), nifti(tmp_path / "b.nii.gz")]
    originals = [path.read_bytes() for path in seeds]
    for _ in range(150):
        which = int(random.integers(len(seeds)))
        data = bytearray(originals[which])
        for _ in range(int(random.integers(1, 6))):
            at = int(
                random.integers(132, len(data)) if random.random() < 0.5 else random.integers(min(1200, len(data)))
            )
            data[at] = int(random.integers(256))
        if random.random() < 0.1:
            del data[int(random.integers(len(data))) :]
        path = seeds[which].with_name("mutated" + "".join(seeds[which].suffixes))
        path.write_bytes(data)
        start = time.perf_counter()
        try:
            volume = open_volume(path)
            assert np.isfinite(volume.array).all()
        except InputError as error:
            assert error.code and error.sentence
        assert time.perf_counter() - start < SECONDS


def test_a_good_series_beside_the_bad_ones(one: Path) -> None:
    """The helpers of this module leave good files good, or the tests above would prove nothing."""
    assert isinstance(write_series(one.parent / "again", shape=(2, 4, 4)), Series)
    assert open_volume(one).n_slices == 1
    dataset = header()
    dataset.SOPInstanceUID = uid.generate_uid()
    dataset.PixelData = bytes(24 * 32 * 2)
    dataset["PixelData"].VR = "OW"
    assert open_volume(save(dataset, one.parent / "plain.dcm")).frame is not None

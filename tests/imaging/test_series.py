"""DICOM series: values and places are exactly those that were written, and what is irregular is named."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pydicom
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom import uid

from medsight_core.errors import InputError
from medsight_core.imaging.dicom_folder import SHORTEST_ENDING, series_of, unique_ending
from medsight_core.imaging.volume import Volume, open_volume
from tests.imaging.synthetic import ORIENTATIONS, change_file, pattern, write_series


def assert_places(volume: Volume, series) -> None:  # type: ignore[no-untyped-def]
    """Every slice lies exactly where the file said, and the paths go with the slices."""
    np.testing.assert_allclose(volume.array, series.array)
    for k, (got, true) in enumerate(zip(volume.slice_frames, series.slice_frames, strict=True)):
        np.testing.assert_allclose(got.origin, true.origin, atol=1e-4)
        np.testing.assert_allclose(got.direction, true.direction, atol=1e-6)
        np.testing.assert_allclose(got.spacing[1:], true.spacing[1:])
        assert volume.source.paths[k] == series.paths[k]


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    orientation=st.sampled_from(sorted(ORIENTATIONS)),
    shape=st.tuples(st.integers(1, 6), st.integers(2, 9), st.integers(2, 9)),
    spacing=st.tuples(st.floats(0.3, 8), st.floats(0.1, 3), st.floats(0.1, 3)).map(
        lambda s: (round(s[0], 3), round(s[1], 3), round(s[2], 3))
    ),
    origin=st.tuples(*[st.integers(-500, 500)] * 3),
    seed=st.integers(0, 99),
)
def test_a_regular_series_is_read_in_place(tmp_path_factory, orientation, shape, spacing, origin, seed) -> None:  # type: ignore[no-untyped-def]
    folder = tmp_path_factory.mktemp("series")
    series = write_series(folder, orientation=orientation, shape=shape, spacing=spacing, origin=origin, seed=seed)
    volume = open_volume(folder)
    assert volume.array.dtype == np.int16
    assert_places(volume, series)
    assert volume.require_frame().is_close(series.frame)
    assert volume.modality == "CT"
    assert volume.source.frame_of_reference_uid
    assert not volume.warnings


def test_file_names_and_instance_numbers_do_not_matter(tmp_path: Path) -> None:
    one = write_series(tmp_path / "a", shuffled=True, seed=3)
    two = write_series(tmp_path / "b", shuffled=False, seed=3)
    np.testing.assert_array_equal(open_volume(one.folder).array, open_volume(two.folder).array)


@pytest.mark.parametrize(
    ("change", "code", "words"),
    [
        ({"missing": (3,)}, "missing_slices", "1 slice is missing"),
        ({"missing": (2, 3, 5)}, "missing_slices", "3 slices are missing"),
        ({"nudged": {4: 0.6}}, "irregular_spacing", "distances between slices differ"),
        ({"tilt_degrees": 15.0}, "gantry_tilt", "15.0 degrees"),
        ({"tilt_degrees": -2.0}, "gantry_tilt", "2.0 degrees"),
        ({"nudged": {4: -2.5}}, "duplicate_positions", "1 slice(s) lie where another"),
    ],
)
def test_an_irregular_series_opens_and_names_its_problem(tmp_path: Path, change, code: str, words: str) -> None:  # type: ignore[no-untyped-def]
    series = write_series(tmp_path, **change)
    volume = open_volume(tmp_path)
    assert volume.frame is None
    with pytest.raises(InputError) as caught:
        volume.require_frame()
    assert caught.value.code == code
    assert words in caught.value.sentence
    assert words in " ".join(volume.warnings)
    assert ("--resample" in caught.value.remedy) == (code != "duplicate_positions")
    if code != "duplicate_positions":
        assert_places(volume, series)


@pytest.mark.parametrize("orientation", ["axial", "oblique", "sagittal"])
@pytest.mark.parametrize("change", [{"missing": (3,)}, {"nudged": {4: 0.6}}, {"tilt_degrees": 12.0}])
def test_resampling_puts_structures_where_they_were(tmp_path: Path, change, orientation: str) -> None:  # type: ignore[no-untyped-def]
    """Values that are linear in the patient survive linear interpolation: each tells the place it was written for."""
    plan = write_series(tmp_path / "plan", orientation=orientation, spacing=(2.5, 1.0, 1.5), **change)
    gradient = np.array([3.0, 2.0, 5.0])

    def linear(points: np.ndarray) -> np.ndarray:
        return points @ gradient + 1500

    indices = np.moveaxis(np.indices((1, 24, 32)), 0, -1)
    stored = np.zeros((8, 24, 32), np.uint16)
    kept = [k for k in range(8) if k not in change.get("missing", ())]
    for k, frame in zip(kept, plan.slice_frames, strict=True):
        stored[k] = np.rint(linear(frame.to_lps(indices)))[0]
    series = write_series(
        tmp_path / "real", stored=stored, orientation=orientation, spacing=(2.5, 1.0, 1.5), intercept=0, **change
    )
    volume = open_volume(series.folder, resample=True)
    frame = volume.require_frame()
    assert volume.source.resampled
    assert any("resampled" in warning for warning in volume.warnings)
    assert frame.spacing[0] == pytest.approx(2.5)
    grid = np.moveaxis(np.indices(frame.shape), 0, -1)
    inside = np.zeros(frame.shape, bool)
    inside[:, 8:-8, 2:-2] = True
    inside &= volume.array > 0
    assert inside.sum() > 500
    assert np.abs(volume.array - linear(frame.to_lps(grid)))[inside].max() <= 2
    assert all(got.is_close(frame.slice(k)) for k, got in enumerate(volume.slice_frames))


def test_what_cannot_be_resampled_says_so(tmp_path: Path) -> None:
    write_series(tmp_path, nudged={4: -2.5})
    with pytest.raises(InputError) as caught:
        open_volume(tmp_path, resample=True)
    assert caught.value.code == "duplicate_positions"
    assert "--resample" not in str(caught.value)


def test_several_series_are_listed_and_one_can_be_chosen(tmp_path: Path) -> None:
    one = write_series(tmp_path / "a", series_number=4, changes={"SeriesDescription": "T1 post"}, seed=1)
    two = write_series(tmp_path / "b", series_number=7, seed=2, shape=(3, 8, 8))
    with pytest.raises(InputError) as caught:
        open_volume(tmp_path)
    assert caught.value.code == "several_series"
    assert "T1 post" in str(caught.value) and "--series" in str(caught.value) and "3 image(s)" in str(caught.value)
    for name in ("4", "T1 post", one.series_uid, one.series_uid[-10:]):
        np.testing.assert_allclose(open_volume(tmp_path, series=name).array, one.array)
    np.testing.assert_allclose(open_volume(tmp_path, series="7").array, two.array)
    with pytest.raises(InputError) as caught:
        open_volume(tmp_path, series="9")
    assert caught.value.code == "unknown_series"


def test_the_shortest_endings_that_tell_series_apart_are_listed(tmp_path: Path) -> None:
    uids = ["1.2.3.4711.900000000001", "1.2.3.4712.900000000001", "1.2.3.4712.900000000002"]
    written = [
        write_series(tmp_path / str(k), shape=(2 + k, 6, 6), seed=k, changes={"SeriesInstanceUID": series_uid})
        for k, series_uid in enumerate(uids)
    ]
    with pytest.raises(InputError) as caught:
        open_volume(tmp_path)
    assert caught.value.code == "several_series"
    endings = re.findall(r"ending in ([\d.]+):", caught.value.sentence)
    assert endings == ["1.900000000001", "2.900000000001", "0002"]
    for ending, series in zip(endings, written, strict=True):
        np.testing.assert_allclose(open_volume(tmp_path, series=ending).array, series.array)


def test_a_uid_that_ends_another_one_is_still_a_choice(tmp_path: Path) -> None:
    short = write_series(tmp_path / "a", shape=(2, 6, 6), changes={"SeriesInstanceUID": "2.345"})
    write_series(tmp_path / "b", shape=(3, 6, 6), changes={"SeriesInstanceUID": "1.2.345"})
    with pytest.raises(InputError, match=r"ending in \.2\.345:.*ending in 2\.345:"):
        open_volume(tmp_path)
    np.testing.assert_allclose(open_volume(tmp_path, series="2.345").array, short.array)


@given(st.lists(st.text("12.", min_size=1, max_size=9), min_size=2, max_size=6, unique=True))
def test_an_ending_belongs_to_one_uid(uids: list[str]) -> None:
    for one in uids:
        others = [other for other in uids if other != one]
        ending = unique_ending(one, others)
        assert one.endswith(ending)
        assert ending == one or not any(other.endswith(ending) for other in others)
        if ending != one and len(ending) > SHORTEST_ENDING:
            assert any(other.endswith(ending[1:]) for other in others)


def break_header(path: Path) -> None:
    """Keeps preamble and "DICM" only, so that not even the series is known."""
    path.write_bytes(path.read_bytes()[:132] + b"\xff" * 200)


def break_pixels(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-300])


@pytest.mark.parametrize("alone", [True, False])
def test_a_broken_file_of_another_series_is_left_out_and_named(tmp_path: Path, alone: bool) -> None:
    series = write_series(tmp_path, series_number=1)
    other = write_series(tmp_path / "other", series_number=2, shape=(1 if alone else 4, 24, 32), seed=5)
    break_pixels(other.paths[0])
    volume = open_volume(tmp_path, series="1")
    assert_places(volume, series)
    assert volume.frame is not None
    assert any(other.paths[0].name in warning and "left out" in warning for warning in volume.warnings)


def test_a_broken_file_of_no_known_series_is_left_out_where_nothing_is_missing(tmp_path: Path) -> None:
    series = write_series(tmp_path)
    for k in range(5):
        break_header(Path(shutil.copy(series.paths[0], tmp_path / f"{'ABCDE'[k]}.dcm")))
    volume = open_volume(tmp_path)
    assert_places(volume, series)
    assert volume.frame is not None
    said = [warning for warning in volume.warnings if "left out" in warning]
    assert [name for name in ("A.dcm", "B.dcm", "C.dcm", "D.dcm") if name in " ".join(said)] == [
        "A.dcm",
        "B.dcm",
        "C.dcm",
    ]
    assert "2 more broken file(s)" in said[-1]


@pytest.mark.parametrize("place", [0, 3, 7])
@pytest.mark.parametrize("damage", [break_header, break_pixels])
@pytest.mark.parametrize("renamed", [False, True])
def test_a_broken_slice_of_the_series_itself_is_never_left_out(tmp_path: Path, place: int, damage, renamed) -> None:  # type: ignore[no-untyped-def]
    """At either end its absence makes no gap in space; it shows in the numbers, or in the file's name."""
    series = write_series(tmp_path, shuffled=False)
    path = series.paths[place]
    if renamed and place < 7:
        path = path.rename(tmp_path / "scan.dcm")
    damage(path)
    with pytest.raises(InputError) as caught:
        open_volume(tmp_path)
    assert caught.value.code in ("truncated", "pixels_unreadable")
    assert path.name in caught.value.sentence


def test_a_broken_file_stops_a_series_that_is_not_regular(tmp_path: Path) -> None:
    series = write_series(tmp_path, shuffled=False, nudged={4: 0.6})
    break_header(Path(shutil.copy(series.paths[0], tmp_path / "stray.dcm")))
    with pytest.raises(InputError, match=r"stray\.dcm"):
        open_volume(tmp_path)


def test_a_series_uid_cut_in_two_is_no_series_uid(tmp_path: Path) -> None:
    path = write_series(tmp_path).paths[0]
    whole, uid_bytes = path.read_bytes(), str(pydicom.dcmread(path).SeriesInstanceUID).encode()
    assert series_of(path) == uid_bytes.decode()
    place = whole.rindex(uid_bytes)
    path.write_bytes(whole[: place + len(uid_bytes) - 3])
    assert series_of(path) is None


def test_localizers_copies_and_other_objects_are_left_out_with_a_warning(tmp_path: Path) -> None:
    series = write_series(tmp_path / "ct")
    scout = write_series(tmp_path / "scout", orientation="coronal", shape=(1, 40, 40))
    change_file(scout.paths[0], ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"], SeriesInstanceUID=series.series_uid)
    (tmp_path / "later").mkdir()
    shutil.copy(series.paths[2], tmp_path / "later" / "copy.dcm")
    report = write_series(tmp_path / "sr", shape=(1, 4, 4))
    change_file(report.paths[0], Modality="SR")
    (tmp_path / "notes.txt").write_text("not a scan")
    volume = open_volume(tmp_path)
    assert_places(volume, series)
    assert volume.frame is not None
    text = " ".join(volume.warnings)
    assert "1 localizer" in text and "1 file(s) that repeat" in text and "not DICOM" in text and "not scans" in text


def test_mixed_orientation_opens_slice_by_slice(tmp_path: Path) -> None:
    one = write_series(tmp_path / "a", shape=(3, 16, 16))
    two = write_series(tmp_path / "b", shape=(2, 16, 16), orientation="coronal", seed=5)
    for path in two.paths:
        change_file(path, SeriesInstanceUID=one.series_uid)
    volume = open_volume(tmp_path)
    assert volume.problem is not None and volume.problem.code == "mixed_orientation"
    for k, path in enumerate(volume.source.paths):
        true = pydicom.dcmread(path)
        np.testing.assert_allclose(
            volume.slice_frame(k).origin, [float(v) for v in true.ImagePositionPatient], atol=1e-6
        )
        np.testing.assert_array_equal(volume.slice_array(k), true.pixel_array.astype(int) - 1024)


def test_mixed_sizes_are_refused(tmp_path: Path) -> None:
    one = write_series(tmp_path / "a", shape=(3, 16, 16))
    two = write_series(tmp_path / "b", shape=(2, 16, 18))
    for path in two.paths:
        change_file(path, SeriesInstanceUID=one.series_uid)
    with pytest.raises(InputError) as caught:
        open_volume(tmp_path)
    assert caught.value.code == "mixed_sizes"
    assert "3 of 16 x 16" in str(caught.value)


def test_images_without_a_position(tmp_path: Path) -> None:
    without = {"ImagePositionPatient": None, "ImageOrientationPatient": None}
    series = write_series(tmp_path, shuffled=False, changes=without)
    volume = open_volume(tmp_path)
    assert volume.problem is not None and volume.problem.code == "no_geometry"
    np.testing.assert_allclose(volume.array, series.array)
    assert volume.slice_frame(0).physical  # the pixel spacing is still known
    alone = open_volume(series.paths[0])
    assert alone.frame is not None and alone.frame.pixel_area == pytest.approx(0.56)


def test_pet_slices_have_a_scale_each(tmp_path: Path) -> None:
    slopes = [0.5, 1.25, 2.0, 0.1]
    series = write_series(tmp_path, modality="PT", shape=(4, 8, 8), slope=slopes, intercept=0)
    volume = open_volume(tmp_path)
    assert volume.array.dtype == np.float32
    np.testing.assert_allclose(volume.array, series.array, rtol=1e-6)


def test_values_beyond_int16_become_float_and_stay_exact(tmp_path: Path) -> None:
    stored = pattern((4, 8, 8))
    stored[2, 3, 4] = 65535
    write_series(tmp_path, stored=stored)
    volume = open_volume(tmp_path)
    assert volume.array.dtype == np.float32
    np.testing.assert_array_equal(volume.array, stored.astype(float) - 1024)


def test_signed_pixels_with_fewer_bits(tmp_path: Path) -> None:
    """12 bits, two's complement, something else in the unused high bits."""
    true = np.random.default_rng(0).integers(-2048, 2048, (2, 6, 6)).astype(np.int16)
    series = write_series(
        tmp_path,
        stored=(true.astype(np.uint16) & 0x0FFF) | 0x5000,
        changes={"PixelRepresentation": 1, "BitsStored": 12, "HighBit": 11},
        intercept=0,
    )
    np.testing.assert_array_equal(open_volume(series.folder).array, true)


def test_monochrome1_keeps_its_values(tmp_path: Path) -> None:
    series = write_series(tmp_path, monochrome1=True)
    volume = open_volume(tmp_path)
    np.testing.assert_allclose(volume.array, series.array)
    assert volume.source.photometric == "MONOCHROME1"


@pytest.mark.parametrize(
    "syntax",
    [
        uid.ImplicitVRLittleEndian,
        uid.ExplicitVRBigEndian,
        uid.DeflatedExplicitVRLittleEndian,
        uid.RLELossless,
        uid.JPEG2000Lossless,
        uid.JPEGLSLossless,
    ],
    ids=lambda syntax: syntax.name,
)
def test_lossless_syntaxes_give_the_same_values(tmp_path: Path, syntax: uid.UID) -> None:
    series = write_series(tmp_path, shape=(3, 64, 72))
    for path in series.paths:
        dataset = pydicom.dcmread(path)
        if syntax.is_encapsulated:
            dataset.compress(syntax, generate_instance_uid=False)
            dataset.save_as(path)
            continue
        if syntax == uid.ExplicitVRBigEndian:
            dataset.PixelData = dataset.pixel_array.astype(">u2").tobytes()
        dataset.file_meta.TransferSyntaxUID = syntax
        list(dataset)  # turns raw bytes into values, which can be written in another byte order
        pydicom.dcmwrite(
            path, dataset, implicit_vr=syntax.is_implicit_VR, little_endian=syntax.is_little_endian, force_encoding=True
        )
    assert pydicom.dcmread(series.paths[0]).file_meta.TransferSyntaxUID == syntax
    assert_places(open_volume(tmp_path), series)


def test_anonymised_series_open(tmp_path: Path) -> None:
    series = write_series(tmp_path, anonymised=True)
    assert_places(open_volume(tmp_path), series)


def test_no_text_about_the_patient_is_kept(tmp_path: Path) -> None:
    write_series(tmp_path)
    volume = open_volume(tmp_path)
    assert "CANARY" not in repr(volume.source).upper()


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
def test_memory_and_time_of_a_large_series(tmp_path: Path) -> None:
    """80 slices of 512 x 512 (42 MB as int16): at most 2.5 times that above the interpreter's own size, and quick."""
    stored = np.random.default_rng(0).integers(0, 3000, (80, 512, 512), dtype=np.uint16)
    write_series(tmp_path, stored=stored, spacing=(2, 0.7, 0.7))
    code = (
        "import sys, time, medsight_core.imaging.dispatch; from medsight_core.imaging.volume import open_volume\n"
        "lines = lambda: open('/proc/self/status')\n"
        "def peak(): return next(int(l.split()[1]) * 1024 for l in lines() if l.startswith('VmHWM'))\n"
        "before = peak(); t = time.perf_counter(); v = open_volume(sys.argv[1]); taken = time.perf_counter() - t\n"
        "print((peak() - before) / v.array.nbytes, taken)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
    )
    growth, seconds = map(float, done.stdout.split())
    assert 1.0 <= growth <= 2.5  # less than the volume itself would mean that nothing was measured
    assert seconds <= 5  # 1 second on an idle machine

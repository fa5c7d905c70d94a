"""Slicer's ``.seg.nrrd`` and the NIfTI label map: the right voxels, place and names."""

from __future__ import annotations

import gzip
import json
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from medsight_core.errors import InputError, MedSightError
from medsight_core.geometry import Frame
from medsight_core.imaging.mask_files import write_nifti_labels, write_seg_nrrd
from medsight_core.imaging.volume import Source, Volume, open_volume
from medsight_core.regions import Region, Span
from medsight_core.terminology import display_colour

OBLIQUE = Rotation.from_euler("xyz", (0.4, -0.7, 1.1)).as_matrix()


def scan(
    shape: tuple[int, int, int] = (5, 12, 9),
    direction: np.ndarray = OBLIQUE,
    spacing: tuple[float, ...] = (3.0, 0.8, 0.6),
    origin: tuple[float, ...] = (-40.0, 25.0, 110.0),
    regular: bool = True,
) -> Volume:
    frame = Frame(shape=shape, origin=np.array(origin), spacing=np.array(spacing), direction=direction)
    return Volume(
        array=np.zeros(shape, np.int16),
        frame=frame if regular else None,
        slice_frames=tuple(frame.slice(k) for k in range(shape[0])),
        modality="CT",
        source=Source(kind="nifti", paths=(Path("scan.nii.gz"),)),
        problem=None if regular else InputError("irregular_spacing", "The slices are no grid.", "Resample."),
    )


def region(volume: Volume, k: int, mask: np.ndarray, label: str = "liver", code: str = "[C0_1]") -> Region:
    return Region(
        code=code, label=label, span=Span(0, 0), score=0.5, slice_index=k, mask=mask, frame=volume.slice_frame(k)
    )


def box(volume: Volume, k: int, label: str, code: str, rows: slice, columns: slice) -> Region:
    mask = np.zeros(volume.array.shape[1:3], dtype=bool)
    mask[rows, columns] = True
    return region(volume, k, mask, label, code)


def answer(volume: Volume) -> list[Region]:
    """A liver on two slices, a lesion inside it, a left kidney beside it."""
    return [
        box(volume, 1, "liver", "[C0_1]", slice(2, 8), slice(1, 6)),
        box(volume, 2, "liver", "[C0_1]", slice(3, 9), slice(1, 6)),
        box(volume, 2, "lesion in the liver", "[C0_2]", slice(4, 6), slice(2, 4)),
        box(volume, 3, "left kidney", "[C0_3]", slice(0, 2), slice(6, 9)),
    ]


@contextmanager
def disk_of(size: int) -> Iterator[None]:
    """No file of this process grows over ``size`` bytes, as on a disk that is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def header(path: Path) -> dict[str, str]:
    """The fields of an NRRD file as they stand in it."""
    lines = path.read_bytes().partition(b"\n\n")[0].decode().splitlines()[1:]
    return dict(line.replace(":=", ": ", 1).split(": ", 1) for line in lines if not line.startswith("#"))


def segment_mask(path: Path, number: int) -> np.ndarray:
    """A segment as Slicer makes it: the voxels of its layer that have its value."""
    fields = header(path)
    array = sitk.GetArrayFromImage(sitk.ReadImage(str(path)))
    layer = array[..., int(fields[f"Segment{number}_Layer"])] if array.ndim == 4 else array
    return np.asarray(layer == int(fields[f"Segment{number}_LabelValue"]))


def assert_on_frame(image: sitk.Image, frame: Frame, atol: float = 1e-4) -> None:
    """A voxel of the image lies where the frame says, in LPS."""
    assert image.GetSize()[::-1] == frame.shape
    for index in ((0, 0, 0), tuple(n - 1 for n in frame.shape), (0, frame.shape[1] - 1, 0)):
        place = image.TransformIndexToPhysicalPoint([int(i) for i in index[::-1]])
        np.testing.assert_allclose(place, frame.to_lps(index), atol=atol)


def test_each_segment_comes_back_exactly_where_it_was(tmp_path: Path) -> None:
    volume = scan()
    regions = answer(volume)
    path = write_seg_nrrd(regions, volume, tmp_path / "answer.seg.nrrd")
    assert path is not None
    image = sitk.ReadImage(str(path))
    assert_on_frame(image, volume.require_frame())
    for number, code in enumerate(("[C0_1]", "[C0_2]", "[C0_3]")):
        wanted = np.zeros(volume.array.shape, dtype=bool)
        for r in regions:
            if r.code == code:
                wanted[r.slice_index] = r.mask
        np.testing.assert_array_equal(segment_mask(path, number), wanted)


def test_the_header_is_the_one_slicer_reads(tmp_path: Path) -> None:
    volume = scan()
    path = write_seg_nrrd(answer(volume), volume, tmp_path / "answer.seg.nrrd")
    assert path is not None
    fields = header(path)
    assert fields["space"] == "left-posterior-superior"
    assert fields["kinds"] == "list domain domain domain"
    assert fields["sizes"] == "2 9 12 5"
    assert fields["space directions"].startswith("none (")
    assert (fields["type"], fields["encoding"]) == ("unsigned char", "gzip")
    assert (
        fields["Segmentation_MasterRepresentation"] == fields["Segmentation_SourceRepresentation"] == "Binary labelmap"
    )
    assert fields["Segmentation_ContainedRepresentationNames"] == "Binary labelmap|"
    assert fields["Segmentation_ReferenceImageExtentOffset"] == "0 0 0"
    assert [fields[f"Segment{n}_Name"] for n in range(3)] == ["liver", "lesion in the liver", "left kidney"]
    assert len({fields[f"Segment{n}_ID"] for n in range(3)}) == 3
    # The lesion lies in the liver and needs a layer of its own; the kidney shares the liver's.
    assert [fields[f"Segment{n}_Layer"] for n in range(3)] == ["0", "1", "0"]
    assert [fields[f"Segment{n}_LabelValue"] for n in range(3)] == ["1", "1", "2"]
    assert fields["Segment0_Extent"] == "1 5 2 8 1 2"
    colour = [round(float(channel) * 255) for channel in fields["Segment0_Color"].split()]
    assert tuple(colour) == display_colour("liver").rgb


def test_the_terminology_is_serialised_as_slicer_does(tmp_path: Path) -> None:
    volume = scan()
    path = write_seg_nrrd(answer(volume), volume, tmp_path / "answer.seg.nrrd")
    assert path is not None
    entries = []
    for n in range(3):
        tags = dict(tag.split(":", 1) for tag in header(path)[f"Segment{n}_Tags"].split("|") if tag)
        entries.append(tags["TerminologyEntry"].split("~"))
        assert tags["MedSIGHT.Code"] == f"[C0_{n + 1}]"
    assert all(len(entry) == 7 for entry in entries)
    assert entries[0][1:4] == ["SCT^91723000^Anatomical Structure", "SCT^10200004^Liver", "^^"]
    assert entries[1][2] == "SCT^52988006^Lesion" and entries[1][5] == "SCT^10200004^Liver"
    assert entries[2][2:4] == ["SCT^64033007^Kidney", "SCT^7771000^Left"]


def test_one_layer_is_a_plain_label_map(tmp_path: Path) -> None:
    volume = scan()
    path = write_seg_nrrd(answer(volume)[:2], volume, tmp_path / "answer.seg.nrrd")
    assert path is not None
    fields = header(path)
    assert (fields["kinds"], fields["sizes"]) == ("domain domain domain", "9 12 5")


def test_many_segments_fill_several_layers(tmp_path: Path) -> None:
    volume = scan((2, 20, 20))
    regions = []
    for n in range(300):
        mask = np.zeros((20, 20), dtype=bool)
        mask[n // 20, n % 20] = True
        regions.append(region(volume, 0, mask, f"thing {n}", f"[C0_{n}]"))
    path = write_seg_nrrd(regions, volume, tmp_path / "answer.seg.nrrd")
    assert path is not None
    assert header(path)["Segment299_Layer"] == "1"
    np.testing.assert_array_equal(segment_mask(path, 299)[0], regions[299].mask)


def test_a_label_cannot_break_the_header(tmp_path: Path) -> None:
    volume = scan()
    hostile = "Läsion\n\nspace: scanner|x~y^z:=1\\"
    path = write_seg_nrrd(
        [box(volume, 1, hostile, "[C0_1]", slice(0, 2), slice(0, 2))], volume, tmp_path / "a.seg.nrrd"
    )
    assert path is not None
    fields = header(path)
    assert fields["Segment0_Name"] == "Läsion space: scanner|x~y^z:=1"
    assert fields["space"] == "left-posterior-superior"
    assert segment_mask(path, 0).sum() == 4


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    turn=st.tuples(*[st.floats(-3.1, 3.1)] * 3),
    spacing=st.tuples(*[st.floats(0.3, 6.0)] * 3),
    mirrored=st.booleans(),
    seed=st.integers(0, 99),
)
def test_any_frame(
    turn: tuple[float, ...],
    spacing: tuple[float, ...],
    mirrored: bool,
    seed: int,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    direction = Rotation.from_euler("xyz", turn).as_matrix() * ((-1, 1, 1) if mirrored else (1, 1, 1))
    volume = scan((3, 5, 7), direction, spacing)
    random = np.random.default_rng(seed)
    regions = [region(volume, k, random.random((5, 7)) < 0.5) for k in range(3)]
    folder = tmp_path_factory.mktemp("any")
    nrrd = write_seg_nrrd(regions, volume, folder / "answer.seg.nrrd")
    nifti = write_nifti_labels(regions, volume, folder / "answer.nii.gz")
    assert nrrd is not None and nifti is not None
    wanted = np.stack([r.mask for r in regions])
    np.testing.assert_array_equal(segment_mask(nrrd, 0), wanted)
    assert_on_frame(sitk.ReadImage(str(nrrd)), volume.require_frame())
    image = sitk.ReadImage(str(nifti))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(image) > 0, wanted)
    assert_on_frame(image, volume.require_frame(), atol=2e-3)  # NIfTI has single precision


def test_a_real_volume_and_its_segmentation_lie_on_each_other(shared_data: Path, tmp_path: Path) -> None:
    volume = open_volume(shared_data / "volumes" / "spine_t2.nii.gz")
    truth = open_volume(shared_data / "volumes" / "spine_t2_cord.nii.gz")
    assert truth.array.shape == volume.array.shape
    regions = [
        region(volume, k, truth.array[k] > 0, "spinal cord") for k in range(volume.n_slices) if truth.array[k].any()
    ]
    path = write_seg_nrrd(regions, volume, tmp_path / "answer.seg.nrrd")
    assert path is not None
    source = sitk.ReadImage(str(shared_data / "volumes" / "spine_t2_cord.nii.gz"))
    back = sitk.Resample(sitk.ReadImage(str(path)), source, sitk.Transform(), sitk.sitkNearestNeighbor)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(back) > 0, sitk.GetArrayFromImage(source) > 0)


def test_a_label_map_keeps_the_lesion_within_the_organ_and_says_what_its_numbers_mean(tmp_path: Path) -> None:
    volume = scan()
    regions = answer(volume)
    path = write_nifti_labels([regions[2], *regions[:2], regions[3]], volume, tmp_path / "answer.nii.gz")
    assert path is not None
    meaning = json.loads((tmp_path / "answer.json").read_text(encoding="utf-8"))
    assert meaning["labels"] == {"background": 0, "lesion in the liver": 1, "liver": 2, "left kidney": 3}
    assert meaning["segments"][0]["code"] == "[C0_2]" and meaning["segments"][1]["slices"] == [1, 2]
    labels = np.asarray(nibabel.load(path).dataobj).T
    np.testing.assert_array_equal(labels[2] == 1, regions[2].mask)
    np.testing.assert_array_equal(labels[2] == 2, regions[1].mask & ~regions[2].mask)
    np.testing.assert_array_equal(labels[3] == 3, regions[3].mask)


def test_equal_names_stay_apart(tmp_path: Path) -> None:
    volume = scan()
    twice = [box(volume, 1, "nodule", "[C0_1]", slice(n, n + 1), slice(0, 2)) for n in (0, 4)]
    write_nifti_labels(twice, volume, tmp_path / "answer.nii")
    assert json.loads((tmp_path / "answer.json").read_text())["labels"] == {"background": 0, "nodule": 1, "nodule 2": 2}


@pytest.mark.parametrize(("writer", "name"), [(write_seg_nrrd, "a.seg.nrrd"), (write_nifti_labels, "a.nii.gz")])
class TestBoth:
    """What holds for both formats."""

    def test_slices_that_are_no_grid_can_be_written_one_at_a_time(self, writer, name, tmp_path: Path) -> None:
        volume = scan(regular=False)
        regions = answer(volume)
        with pytest.raises(MedSightError) as caught:
            writer(regions, volume, tmp_path / name)
        assert caught.value.code == "irregular_spacing"
        path = writer(regions[3:], volume, tmp_path / name)
        image = sitk.ReadImage(str(path))
        assert_on_frame(image, volume.slice_frame(3))
        np.testing.assert_array_equal(sitk.GetArrayFromImage(image)[0] > 0, regions[3].mask)

    def test_no_finding_writes_nothing(self, writer, name, tmp_path: Path) -> None:
        volume = scan()
        empty = region(volume, 0, np.zeros((12, 9), dtype=bool))
        assert writer([], volume, tmp_path / "out" / name) is None
        assert writer([empty], volume, tmp_path / "out" / name) is None
        assert not (tmp_path / "out").exists()

    def test_a_wrong_name_is_refused(self, writer, name, tmp_path: Path) -> None:
        volume = scan()
        with pytest.raises(InputError) as caught:
            writer(answer(volume), volume, tmp_path / "answer.png")
        assert caught.value.code == "bad_name" and name[1:] in caught.value.sentence
        assert not list(tmp_path.iterdir())

    def test_a_region_of_another_scan_is_refused(self, writer, name, tmp_path: Path) -> None:
        with pytest.raises(InputError) as caught:
            writer(answer(scan()), scan(origin=(0, 0, 0)), tmp_path / name)
        assert caught.value.code == "other_grid"
        assert not list(tmp_path.iterdir())

    def test_a_name_that_a_folder_has_is_refused(self, writer, name, tmp_path: Path) -> None:
        (tmp_path / name).mkdir()
        volume = scan()
        with pytest.raises(MedSightError) as caught:
            writer(answer(volume), volume, tmp_path / name)
        assert caught.value.code == "not_written"
        assert [path.name for path in tmp_path.iterdir()] == [name]

    def test_a_full_disk_leaves_nothing_and_spares_the_old_file(self, writer, name, tmp_path: Path) -> None:
        volume = scan((3, 200, 200))
        noise = np.random.default_rng(0).random((200, 200)) < 0.5
        regions = [region(volume, 1, noise)]
        size = writer(regions, volume, tmp_path / "whole" / name).stat().st_size
        path = tmp_path / "full" / name
        path.parent.mkdir()
        path.write_text("the old one")
        for room in (1500, size - 100, size - 1):
            with disk_of(room), pytest.raises(MedSightError) as caught:
                writer(regions, volume, path)
            assert caught.value.code == "not_written"
            assert list(path.parent.iterdir()) == [path]
            assert path.read_text() == "the old one"

    def test_the_file_is_readable_by_others_as_any_new_file_is(self, writer, name, tmp_path: Path) -> None:
        volume = scan()
        path = writer(answer(volume), volume, tmp_path / name)
        (tmp_path / "plain").touch()
        assert path.stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_the_nrrd_is_compressed_with_gzip_that_any_program_reads(tmp_path: Path) -> None:
    volume = scan()
    path = write_seg_nrrd(answer(volume), volume, tmp_path / "answer.seg.nrrd")
    assert path is not None
    values = np.frombuffer(gzip.decompress(path.read_bytes().partition(b"\n\n")[2]), dtype=np.uint8)
    assert values.reshape(5, 12, 9, 2)[2, 4, 2].tolist() == [1, 1]

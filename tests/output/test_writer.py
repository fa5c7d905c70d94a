"""A folder of results is written whole or not at all, and tells nothing about the patient."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from PIL import Image
from pydicom import examples

from medsight_core.errors import InputError
from medsight_core.imaging.volume import Volume
from medsight_core.output import writer
from medsight_core.output.writer import check_folder, write_answer

Answering = Callable[..., tuple]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_a_picture_gives_all_files(picture: Volume, answering: Answering, tmp_path: Path) -> None:
    asked, answer = answering(picture)
    written = write_answer(asked, answer, tmp_path / "a" / "out")
    names = [
        "report.html",
        "answer.json",
        "overlay.png",
        "segmentation.seg.nrrd",
        "masks/01_left-lung.png",
        "masks/02_heart.png",
    ]
    assert list(written.files) == names
    assert sorted(contents(tmp_path)) == sorted(f"a/out/{name}" for name in names)
    for name, region in zip(names[-2:], answer.regions, strict=True):
        assert (np.asarray(Image.open(written.folder / name)) == region.mask * 255).all()
    assert sitk.ReadImage(str(written.folder / "segmentation.seg.nrrd")).GetSize()[:2] == (90, 60)


def test_answer_json_has_everything(ct: Volume, answering: Answering, tmp_path: Path) -> None:
    asked, answer = answering(ct, warnings=("mind",))
    written = write_answer(asked, answer, tmp_path / "out")
    content = json.loads((tmp_path / "out" / "answer.json").read_text(encoding="utf-8"))
    assert content == json.loads(json.dumps(written.answer))
    assert content["question"] == "What is this?"
    assert content["text"] == "The left lung and the heart."
    assert content["raw"] == answer.raw
    assert (content["model"], content["digest"]) == ("fake-mini", "sha256:00ff")
    assert content["timings"] == {"decode": 0.25}
    assert content["warnings"] == ["mind"]
    assert content["segmentation"] == "segmentation.dcm"
    first = content["regions"][0]
    assert (first["code"], first["label"], first["span"], first["score"]) == ("[C4_3]", "left lung", [4, 13], 0.91)
    assert first["mask_file"] == "masks/01_left-lung.png"
    assert first["area_pixels"] == 750
    spacing = content["source"]["slice_frame"]["spacing"]
    assert first["area_mm2"] == pytest.approx(750 * spacing[1] * spacing[2], abs=0.01)
    assert content["source"]["kind"] == "dicom" and content["source"]["slice_frame"]["shape"] == [1, 128, 128]


def test_a_dicom_source_gives_a_dicom_segmentation_of_its_image(
    ct: Volume, answering: Answering, tmp_path: Path
) -> None:
    write_answer(*answering(ct), tmp_path / "out")
    made, source = pydicom.dcmread(tmp_path / "out" / "segmentation.dcm"), examples.ct
    assert made.Modality == "SEG" and len(made.SegmentSequence) == 2
    assert made.ReferencedSeriesSequence[0].SeriesInstanceUID == source.SeriesInstanceUID
    assert not (tmp_path / "out" / "segmentation.seg.nrrd").exists()


def test_nothing_found_leaves_no_mask(ct: Volume, answering: Answering, tmp_path: Path) -> None:
    written = write_answer(*answering(ct, raw="No lesion."), tmp_path / "out")
    assert written.files == ("report.html", "answer.json", "overlay.png")
    assert written.answer["segmentation"] is None and written.answer["regions"] == []


def test_a_region_without_pixels_has_no_mask_file(ct: Volume, answering: Answering, tmp_path: Path) -> None:
    one = np.zeros((128, 128), bool)
    one[3:9, 3:9] = True
    written = write_answer(*answering(ct, masks=(np.zeros((128, 128), bool), one)), tmp_path / "out")
    assert [region["mask_file"] for region in written.answer["regions"]] == [None, "masks/02_heart.png"]
    assert len(pydicom.dcmread(tmp_path / "out" / "segmentation.dcm").SegmentSequence) == 1


def test_no_file_but_the_dicom_tells_whose_scan_it_is(
    ct: Volume, picture: Volume, answering: Answering, tmp_path: Path
) -> None:
    source = examples.ct
    secrets = [
        str(source.PatientName),
        source.PatientID,
        source.StudyInstanceUID,
        source.SeriesInstanceUID,
        source.SOPInstanceUID,
    ]
    secrets += [str(ct.source.paths[0]), ct.source.paths[0].name, "DOE_JANE", str(picture.source.paths[0].parent)]
    for name, volume in (("ct", ct), ("picture", picture)):
        told = f"{volume.source.paths[0].name} holds 3 frames in time."
        write_answer(*answering(volume, warnings=(told,)), tmp_path / name)
        for file, data in contents(tmp_path / name).items():
            if file.endswith(".dcm"):
                continue
            for secret in secrets:
                assert secret.encode() not in data, f"{secret} in {file}"
        warnings = json.loads((tmp_path / name / "answer.json").read_text(encoding="utf-8"))["warnings"]
        assert warnings == ["The scan holds 3 frames in time."]


def test_an_earlier_answer_is_replaced_and_other_files_stay(
    ct: Volume, picture: Volume, answering: Answering, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    write_answer(*answering(ct), out)
    (out / "notes.txt").write_text("mine")
    (out / "masks" / "drawn by hand.png").write_text("mine")
    written = write_answer(*answering(picture, raw="The <p>heart</p>[C4_7].", labels=("heart",)), out)
    assert set(contents(out)) == {*written.files, "notes.txt", "masks/drawn by hand.png"}
    assert "segmentation.dcm" not in contents(out) and "masks/01_heart.png" in contents(out)
    write_answer(*answering(picture, raw="Nothing."), out)
    assert set(contents(out)) == {"answer.json", "overlay.png", "report.html", "notes.txt", "masks/drawn by hand.png"}


def test_an_empty_masks_folder_does_not_stay_behind(picture: Volume, answering: Answering, tmp_path: Path) -> None:
    write_answer(*answering(picture), tmp_path / "out")
    write_answer(*answering(picture, raw="Nothing."), tmp_path / "out")
    assert sorted(os.listdir(tmp_path / "out")) == ["answer.json", "overlay.png", "report.html"]


@pytest.mark.parametrize("failure", [KeyboardInterrupt, RuntimeError])
@pytest.mark.parametrize("existing", [False, True])
def test_a_failure_on_the_way_leaves_what_was_there(
    picture: Volume,
    answering: Answering,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    failure: type[BaseException],
    existing: bool,
) -> None:
    out = tmp_path / "out"
    if existing:
        write_answer(*answering(picture), out)
    before = contents(tmp_path)

    def fail(*_: object) -> str:
        raise failure

    monkeypatch.setattr(writer, "report_page", fail)
    with pytest.raises(failure):
        write_answer(*answering(picture, raw="Nothing."), out)
    assert contents(tmp_path) == before
    assert sorted(path.name for path in tmp_path.rglob("*.partial")) == []
    assert out.exists() == existing


@pytest.mark.parametrize("steps", range(10))
@pytest.mark.parametrize("failure", [KeyboardInterrupt, OSError])
def test_a_failure_while_files_change_places_is_undone(
    picture: Volume,
    answering: Answering,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    steps: int,
    failure: type[BaseException],
) -> None:
    out = tmp_path / "out"
    write_answer(*answering(picture), out)
    before = contents(tmp_path)
    rename, left = os.rename, [steps]

    def breaking(source: str, target: str) -> None:
        left[0] -= 1
        if left[0] == -1:
            raise failure
        rename(source, target)

    monkeypatch.setattr(os, "rename", breaking)
    with pytest.raises(KeyboardInterrupt if failure is KeyboardInterrupt else InputError):
        write_answer(*answering(picture, raw="The <p>heart</p>[C4_7].", labels=("other",)), out)
    assert left[0] < 0
    assert contents(tmp_path) == before


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("x")
    for wrong in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(InputError, match="not a folder") as caught:
            check_folder(wrong)
        assert caught.value.code == "bad_output"
    check_folder(tmp_path / "new" / "deep")
    monkeypatch.setattr(os, "access", lambda *_: False)  # the tests may run as root, who may write anywhere
    with pytest.raises(InputError, match="may not be written"):
        check_folder(tmp_path / "new")


def test_results_go_through_a_link(picture: Volume, answering: Answering, tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    write_answer(*answering(picture), tmp_path / "link")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "real" / "report.html").is_file()


FULL = """
import sys
from pathlib import Path
import numpy as np
from pydicom import examples
from medsight_core.errors import InputError
from medsight_core.imaging.volume import open_volume
from medsight_core.output.writer import write_answer
from medsight_core.regions import Answer, Provenance, Question, Region, Span

disk = Path(sys.argv[1])
volume = open_volume(Path(examples.get_path("ct")))
mask = np.zeros((128, 128), bool)
mask[30:60, 40:80] = True
where = {"slice_index": 0, "mask": mask, "frame": volume.slice_frame(0)}
region = Region(code="[C0_1]", label="liver", span=Span(0, 5), score=0.9, **where)
origin = Provenance(model="any", digest="0" * 16)
answer = Answer(text="liver", raw="liver", regions=(region,), warnings=(), provenance=origin)
question = Question(text="Where is the liver?", volume=volume, slice_index=0)
def contents():
    return {path: path.read_bytes() for path in disk.rglob("*") if path.is_file()}

written = write_answer(question, answer, disk / "out")
with open(disk / "others", "wb", buffering=0) as others:
    others.write(bytes(2**24))  # as far as there is room
before = contents()
for room in (0, 10_000, 100_000):  # less than it takes
    with open(disk / "others", "r+b") as others:
        others.truncate(len(before[disk / "others"]) - room)
    before = contents()
    for folder in (disk / "out", disk / "new"):
        try:
            write_answer(question, answer, folder)
            print("written")
        except InputError as error:
            print(error.code, "No space left" in error.sentence, contents() == before, len(list(disk.iterdir())))
"""


def test_a_full_disk_is_named_and_leaves_what_was_there(tmp_path: Path, repository: Path) -> None:
    """On a file system of 1 MB, in a namespace of its own."""
    unshare = shutil.which("unshare")
    script = 'mount -t tmpfs -o size=1m none "$1" && exec "$2" -c "$3" "$1"'
    command = [str(unshare), "-rm", "sh", "-c", script, "sh", str(tmp_path), sys.executable]
    if unshare is None or subprocess.run([*command, "pass"], capture_output=True, check=False).returncode:
        pytest.skip("this system lets no user mount a small file system")
    run = subprocess.run([*command, FULL], cwd=repository, capture_output=True, text=True, check=False, timeout=120)
    assert run.stdout.splitlines() == ["bad_output True True 2"] * 6, run.stdout + run.stderr

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from medsight_core.errors import InputError
from training.evaluation.manifest import Row, check_files, read_manifest, read_mask
from training.evaluation.metrics import words
from training.evaluation.questions import Case, build_cases, training_diagnoses, training_masks


def row(**values: Any) -> Row:
    defaults: dict[str, Any] = {
        "dataset": "films", "split": "test", "image": "films/a.png", "mask": "films/a_lung.png", "modality": "X-ray",
        "site": "chest", "target": "lung", "diagnosis": None, "patient": None,
    }  # fmt: skip
    return Row(**{**defaults, **values})


def entry(**values: Any) -> str:
    defaults = {"dataset": "d", "split": "test", "image": "a.png", "mask": "m.png", "modality": "CT", "site": "abdomen"}
    return json.dumps({**defaults, "target": "liver", **values})


def write(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2"),
        ("[1]", "no JSON object"),
        (entry(dataset=None), "dataset missing"),
        (entry(modality=" ", site=3), "modality, site missing"),
        (entry(image="../a.png"), "leaves the root"),
        (entry(mask="/a.png"), "leaves the root"),
        (entry(target=None), "a mask without a target"),
        (entry(patient=7), "patient is neither text nor null"),
    ],
)
def test_a_wrong_line_is_named(tmp_path: Path, line: str, message: str) -> None:
    path = write(tmp_path / "m.jsonl", entry(), line)
    with pytest.raises(InputError, match=message) as caught:
        read_manifest(path)
    assert "1 of 2 lines" in str(caught.value) and "line 2" in str(caught.value)


def test_many_wrong_lines_are_counted_and_the_first_ones_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"9 of 9 lines.*line 5.*and 4 more"):
        read_manifest(write(tmp_path / "m.jsonl", *["no"] * 9))


def test_a_missing_or_empty_manifest_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        read_manifest(tmp_path / "absent.jsonl")
    with pytest.raises(InputError, match="is empty"):
        read_manifest(write(tmp_path / "m.jsonl", ""))


def test_missing_files_are_counted_and_named(tmp_path: Path) -> None:
    Image.new("L", (4, 4), 255).save(tmp_path / "m.png")
    rows = [row(image=f"image{number}.png", mask="m.png") for number in range(7)]
    with pytest.raises(InputError, match=r"7 of 8 files .*image0\.png.*image4\.png and 2 more"):
        check_files(rows, tmp_path)
    with pytest.raises(InputError, match="does not exist"):
        check_files(rows, tmp_path / "absent")


def test_unusable_masks_are_named(tmp_path: Path) -> None:
    Image.new("L", (4, 4), 255).save(tmp_path / "a.png")
    Image.new("L", (4, 4), 0).save(tmp_path / "empty.png")
    (tmp_path / "text.png").write_text("no picture")
    rows = [row(image="a.png", mask="empty.png"), row(image="a.png", mask="text.png")]
    with pytest.raises(InputError, match=r"2 of 2 masks.*empty\.png shows nothing.*text\.png is no readable"):
        check_files(rows, tmp_path)


@pytest.mark.parametrize(("mode", "high"), [("L", 255), ("L", 1), ("1", 1), ("RGB", 255), ("I;16", 40000)])
def test_masks_of_any_depth_are_read_alike(tmp_path: Path, mode: str, high: int) -> None:
    truth = np.zeros((6, 5), dtype=bool)
    truth[1:3, 2:4] = True
    if mode == "I;16":
        picture = Image.fromarray((truth * high).astype(np.uint16))
    elif mode == "1":
        picture = Image.fromarray(truth)
    else:
        picture = Image.fromarray((truth * high).astype(np.uint8)).convert(mode)
    picture.save(tmp_path / "m.png")
    assert np.array_equal(read_mask(tmp_path / "m.png"), truth)


def asked(cases: tuple[Case, ...], **values: str) -> list[Case]:
    return [case for case in cases if all(getattr(case, name) == value for name, value in values.items())]


def test_each_mask_is_asked_for_by_text_and_by_point_and_each_image_once_for_its_diagnosis() -> None:
    rows = [
        row(target="left lung", mask="films/a_left.png", diagnosis="tuberculosis"),
        row(target="right lung", mask="films/a_right.png", diagnosis="tuberculosis"),
        row(image="films/b.png", mask="films/b_left.png", target="left lung", split="train"),
    ]
    cases = build_cases(rows, [], split="test")
    assert [(case.kind, case.target) for case in cases] == [
        ("text", "left lung"),
        ("text", "right lung"),
        ("point", "left lung"),
        ("point", "right lung"),
        ("diagnosis", ""),
    ]
    assert cases[0].wording == cases[2].wording == "Segment the left lung in this image."


def test_negative_images_are_asked_for_all_targets_of_their_data_set() -> None:
    rows = [row(target="tumor", split="train"), row(target="cyst", split="train"), row(target="other", dataset="else")]
    negatives = [row(image="films/n.png", mask=None, target=None, diagnosis="normal")]
    cases = build_cases(rows, negatives, split="test", absent_per_image=0)
    found = [case for case in cases if case.row.image == "films/n.png"]
    assert [(case.kind, case.target, case.reason) for case in found] == [
        ("diagnosis", "", ""),
        ("absent", "cyst", "negative image"),
        ("absent", "tumor", "negative image"),
    ]


def test_a_target_that_could_be_on_the_image_is_never_asked_for_as_absent() -> None:
    rows = [
        row(),
        row(dataset="scopes", image="s.png", mask="s_polyp.png", modality="Endoscopy", site="colon", target="polyp"),
        row(dataset="ct", image="c.png", mask="c_colon.png", modality="CT", site="abdomen", target="colon"),
        row(dataset="mr", image="m.png", mask="m_glioma.png", modality="MRI", site="brain", target="glioma"),
        row(dataset="eye", image="e.png", mask="e_vessel.png", modality="Fundus", site="retinal", target="vessel"),
        row(dataset="slide", image="p.png", mask="p_nuclei.png", modality="Pathology", site="tissue", target="nuclei"),
        row(dataset="odd", image="o.png", mask="o_thing.png", modality="CT", site="somewhere", target="gadget"),
    ]
    cases = build_cases(rows, [], split="test", absent_per_image=99)
    found = {
        name: {case.target for case in asked(cases, kind="absent") if case.row.image == name}
        for name in ("films/a.png", "s.png", "c.png", "m.png", "p.png", "o.png")
    }
    assert found["films/a.png"] == {"polyp", "glioma"}  # no liver, no colon, no vessel: these can be on a chest film
    assert found["s.png"] == {"lung", "glioma", "gadget"}  # an endoscope shows the colon
    assert found["c.png"] == {"polyp", "glioma"}
    assert found["m.png"] == {"lung", "colon", "polyp"}
    assert found["p.png"] == set()  # a slide may be of any organ
    assert found["o.png"] == {"polyp"}  # nothing is known about that site


def test_the_same_manifest_gives_the_same_questions_in_any_order_of_the_other_splits() -> None:
    here = [row(image=f"i{number}.png", mask=f"m{number}.png") for number in range(20)]
    there = [
        row(
            image=f"s{name}.png",
            mask="s.png",
            modality="Endoscopy",
            site="colon",
            target=name,
            split="train",
            dataset="s",
        )
        for name in ("polyp", "instrument", "bubble", "stool")
    ]
    one, other = (build_cases([*here, *train], [], split="test") for train in (there, there[::-1]))
    assert one == other
    assert len({case.target for case in asked(one, kind="absent")}) > 1


def test_a_limit_spreads_over_the_whole_manifest() -> None:
    rows = [row(image=f"i{number}.png", mask=f"m{number}.png", dataset=f"d{number // 10}") for number in range(100)]
    cases = build_cases(rows, [], split="test", limit=10)
    assert len({case.row.image for case in cases}) == 10
    assert len({case.row.dataset for case in cases}) == 10


def test_training_is_counted_in_masks_and_images() -> None:
    rows = [
        row(split="train", diagnosis="normal"),
        row(split="train", diagnosis="normal", target="left lung"),
        row(split="train", image="films/b.png", diagnosis="normal"),
        row(diagnosis="normal"),
    ]
    assert training_masks(rows) == {("films", "lung"): 2, ("films", "left lung"): 1}
    assert training_diagnoses(rows) == {("films", "normal"): 2}


def test_the_shared_manifest_is_read_whole(shared_data: Path) -> None:
    seg = shared_data / "seg"
    rows, negatives = read_manifest(seg / "manifest.jsonl"), read_manifest(seg / "negatives.jsonl")
    assert len(rows) == sum(1 for _ in (seg / "manifest.jsonl").open())
    cases = build_cases(rows, negatives, split="test")
    check_files((case.row for case in cases), seg)
    kinds = Counter(case.kind for case in cases)
    masks = sum(1 for item in rows if item.split == "test")
    assert kinds["text"] == kinds["point"] == masks
    assert {case.row.split for case in cases} == {"test"}
    reasons = Counter(case.reason for case in asked(cases, kind="absent"))
    images = {item.image for item in rows if item.split == "test" and item.modality != "Pathology"}
    assert reasons["other site"] == len(images)
    assert reasons["negative image"] > 0
    for case in asked(cases, kind="absent", reason="other site"):
        at_home = {(item.modality, item.site) for item in rows if item.target == case.target}
        assert (case.row.modality, case.row.site) not in at_home
        assert not words(case.target) & words(case.row.site)

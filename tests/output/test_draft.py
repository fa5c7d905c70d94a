"""Drafts of reports: every sentence says what it rests on, every number is a measurement, nothing gets out or in."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import highdicom as hd
import numpy as np
import pytest
import SimpleITK as sitk
from PIL import Image

from medsight_core.errors import InputError
from medsight_core.evidence import Evidence
from medsight_core.geometry import Frame
from medsight_core.imaging.volume import Source, Volume, open_volume
from medsight_core.output.draft import Draft
from medsight_core.output.draft_page import draft_markdown, draft_page, key_images
from medsight_core.output.draft_template import PLACEHOLDERS, WORDING, ReportTemplate, read_template
from medsight_core.output.draft_writer import write_draft
from medsight_core.output.drafting import make_draft
from medsight_core.output.key_image import Shown, key_image
from medsight_core.questioning import answer_from_evidence
from medsight_core.regions import Answer, Provenance, Span, VolumeRegion
from tests.imaging.synthetic import write_series

MODEL = Provenance(model="fake-mini", digest="sha256:00ff", settings={"plane": "acquired"}, timings={"look": 0.25})


def region(volume: Volume, where: Any, label: str, score: float = 0.9) -> VolumeRegion:
    assert volume.frame is not None
    mask = np.zeros(volume.array.shape[:3], bool)
    mask[where] = True
    return VolumeRegion(
        code="[C0_1]", label=label, span=Span(0, 0), score=score, mask=mask, frame=volume.frame, key_slices=(2,)
    )


def found(volume: Volume) -> dict[str, VolumeRegion | None]:
    return {
        "liver": region(volume, np.s_[1:7, 4:16, 5:20], "liver"),
        "liver lesion": region(volume, np.s_[3:5, 6:10, 7:12], "liver lesion", score=0.4),
        "spleen": None,
    }


def draft_of(
    volume: Volume,
    regions: Mapping[str, VolumeRegion | None] | None = None,
    template: ReportTemplate | None = None,
    **more: Any,
) -> Draft:
    evidence = Evidence.gather(volume, found(volume) if regions is None else regions, provenance=MODEL)
    return make_draft(volume, evidence, template or ReportTemplate(), **more)


def sentences(draft: Draft) -> list[tuple[str, str]]:
    """Text and note of every sentence of a draft."""
    every = []
    for section in draft.sections:
        every += [*section.sentences, *(one.sentence for one in section.structures)]
        every += [one.answer for one in section.replies]
    return [(one.text, one.note) for one in every]


@pytest.fixture
def ct(tmp_path: Path) -> Volume:
    """8 slices of 24 x 32 pixels, 2.5 x 0.8 x 0.7 mm."""
    return open_volume(write_series(tmp_path / "DOE_JANE_1970").folder)


def test_findings_are_sentences_of_measurements_that_say_where_they_come_from(ct: Volume) -> None:
    said = dict(sentences(draft_of(ct)))
    liver = ct.array[1:7, 4:16, 5:20]
    wanted = (
        f"Liver: found on slices 1 to 6, certain (score 0.90); volume {6 * 12 * 15 * 1.4 / 1000:.1f} ml; longest "
        f"diameter {np.hypot(12 * 0.8, 14 * 0.7):.1f} mm on slice 1, "
    )
    (sentence,) = [text for text in said if text.startswith(wanted)]
    assert sentence.endswith(f"mean {liver.mean():.0f} ± {liver.std(ddof=1):.0f} HU.")
    assert said[sentence] == "slices 1 to 6"
    assert "uncertain (score 0.40)" in next(text for text in said if text.startswith("Liver lesion: found"))


def test_every_sentence_without_evidence_says_so(ct: Volume) -> None:
    fixed = ReportTemplate(structures=("liver", "appendix"))
    template = replace(
        fixed, sections=(*fixed.sections, *read_section("text", title="Comparison", text="No earlier scan."))
    )
    said = dict(sentences(draft_of(ct, template=template)))
    assert said["No earlier scan."] == "fixed text, not read from the scan"
    assert said["Appendix: not assessed, the model does not look for it."] == "no evidence was looked at"
    assert said["Everything else on this scan was not assessed."] == "no evidence was looked at"
    (technique,) = [note for text, note in said.items() if text.startswith("CT, 8 slices of 32 × 24 pixels")]
    assert technique == "from the file, not from the model"
    others = [note for text, note in said.items() if note.startswith(("from", "fixed", "no "))]
    assert len(others) == 4 and len(said) > 8
    page = draft_page(draft_of(ct, template=template), key_images(draft_of(ct)))
    for _, note in said.items():
        assert f"[{note}]" in page


def read_section(kind: str, **fields: str) -> tuple[Any, ...]:
    from medsight_core.output.draft_template import SectionPlan

    return (SectionPlan(kind=kind, **fields),)  # type: ignore[arg-type]


def test_the_impression_begins_with_what_is_abnormal(ct: Volume) -> None:
    draft = draft_of(ct, named=("spleen",))
    impression = next(section for section in draft.sections if section.kind == "impression")
    texts = [one.text for one in impression.sentences]
    assert texts[0].startswith("Liver lesion, ") and " mm, on slices 3 to 4: uncertain" in texts[0]
    assert impression.sentences[0].number == 2
    assert texts[1:3] == ["Found and measured: liver.", "Looked for and not found: spleen."]


def test_without_a_lesion_it_says_what_was_looked_for_and_that_it_excludes_nothing(ct: Volume) -> None:
    none = [text for text, _ in sentences(draft_of(ct, {"liver": None, "tumor": None}))]
    assert "Nothing abnormal of what was looked for (tumor) was found, which does not exclude it." in none
    assert "Abnormal findings were not looked for." in [text for text, _ in sentences(draft_of(ct, {"liver": None}))]


def test_what_was_asked_for_and_is_missing_gets_a_sentence_and_the_rest_a_list(ct: Volume) -> None:
    regions = {"liver": None, "spleen": None, "aorta": None, "colon": None}
    texts = [text for text, _ in sentences(draft_of(ct, regions, named=("spleen",)))]
    assert "Spleen: not found on the slices that were read, which does not exclude it." in texts
    assert "Looked for and not found: liver, aorta, colon." in texts


def test_a_structure_at_the_end_of_the_scan_is_said_to_be_cut_off(ct: Volume) -> None:
    whole, cut = ({"liver": region(ct, np.s_[first:7, 4:9, 5:9], "liver")} for first in (1, 0))
    assert "cut off" not in str(sentences(draft_of(ct, whole)))
    assert "cut off by the end of the scan" in str(sentences(draft_of(ct, cut)))


def test_two_structures_that_claim_one_place_are_named(ct: Volume) -> None:
    regions = {
        "colon": region(ct, np.s_[1:7, 4:16, 5:20], "colon"),
        "stomach": region(ct, np.s_[1:3, 4:16, 5:25], "stomach"),
        "anterior colon": region(ct, np.s_[1:7, 4:8, 5:20], "anterior colon"),
        "colon polyp": region(ct, np.s_[2:3, 5:8, 6:9], "colon polyp"),
    }
    assert draft_of(ct, regions, warnings=("First.",)).warnings == (
        "First.",
        "Colon (1) and stomach (2) lie over each other: 75% of the stomach is both; one of them is wrong.",
        "Stomach (2) and anterior colon (3) lie over each other: "
        "33% of the anterior colon is both; one of them is wrong.",
    )


def test_answers_stand_with_the_slices_they_rest_on(ct: Volume) -> None:
    evidence = Evidence.gather(ct, found(ct), provenance=MODEL)
    asked = ("Is there a lesion in the liver?", "How large is the liver?", "Is there a spleen?")
    answers = [(question, answer_from_evidence(question, evidence)) for question in asked]
    by_model = Answer(
        text="A liver.",
        raw="A liver.",
        regions=(),
        warnings=("Cut off after 3 tokens.",),
        provenance=replace(MODEL, settings={"plane": "coronal", "slices": [0, 24], "slices_read": [2, 3, 9]}),
    )
    silent = replace(by_model, warnings=(), provenance=MODEL)
    draft = make_draft(ct, evidence, ReportTemplate(), answers=[*answers, ("What is it?", by_model), ("And?", silent)])
    (section,) = [section for section in draft.sections if section.kind == "questions"]
    assert [reply.answer.note for reply in section.replies] == [
        "slices 3 to 4", "slices 1 to 6", "slices 0 to 7", "coronal slices 2 to 3 and 9", "no evidence was looked at",
    ]  # fmt: skip
    assert section.replies[0].answer.text.startswith("Yes: liver lesion (uncertain)")
    page = draft_page(draft, key_images(draft))
    assert "Cut off after 3 tokens." in page and "Cut off after 3 tokens." in draft_markdown(draft)


def test_answers_are_not_lost_where_the_template_forgets_them(ct: Volume) -> None:
    evidence = Evidence.gather(ct, found(ct), provenance=MODEL)
    answer = answer_from_evidence("How large is the liver?", evidence)
    assert answer is not None
    template = ReportTemplate(sections=read_section("impression"))
    draft = make_draft(ct, evidence, template, answers=[("How large is the liver?", answer)])
    assert [section.kind for section in draft.sections] == ["impression", "questions"]


class Page(HTMLParser):
    """What a page refers to and which tags it has."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.sources: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.sources += [value or "" for name, value in attrs if name in ("src", "href")]


def test_the_page_is_self_contained_and_says_what_it_is(ct: Volume) -> None:
    draft = draft_of(ct)
    page = draft_page(draft, key_images(draft))
    assert "Draft by fake-mini - not verified - research use" in page
    assert "default-src 'none'" in page
    parsed = Page(page)
    assert all(source.startswith(("data:image/", "#region-")) for source in parsed.sources)
    assert parsed.tags.count("img") == 4  # two key images, each with its layer of marks
    assert "Draft by fake-mini - not verified - research use" in draft_markdown(draft)
    for name in ("Longest × across (mm)", "Mean ± SD (HU)"):
        assert name in page and name in draft_markdown(draft)


def test_nothing_that_comes_from_outside_becomes_markup(ct: Volume) -> None:
    bad = "<img src=x onerror=alert(1)>|](http://a)*"
    regions = {bad: region(ct, np.s_[1:3, 4:9, 5:9], bad)}
    template = ReportTemplate(
        title=bad, sections=(*ReportTemplate().sections, *read_section("text", text=bad, title=bad))
    )
    answer = Answer(text=bad, raw=bad, regions=(), warnings=(bad,), provenance=replace(MODEL, model=bad))
    draft = draft_of(ct, regions, template, answers=[(bad, answer)], warnings=(bad,))
    page = draft_page(draft, key_images(draft))
    assert "<img src=x" not in page and page.count("&lt;img src=x") > 6
    text = draft_markdown(draft)
    assert "<img" not in re.sub(r"\\<", "", text) and "](http" not in text.replace("\\]", "")


def test_a_folder_has_all_of_it_and_nothing_of_the_patient(ct: Volume, tmp_path: Path) -> None:
    ct = replace(ct, warnings=("DOE_JANE_1970 has 2 localizers that were left out.",))
    written = write_draft(draft_of(ct, warnings=ct.warnings), tmp_path / "out")
    assert written.files == (
        "report.html", "report.dcm", "report.json", "report.md", "segmentation.dcm",
        "key-images/01_liver.jpg", "key-images/02_liver-lesion.jpg",
    )  # fmt: skip
    content = json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))
    assert content == json.loads(json.dumps(written.answer))
    assert content["verified"] is False and content["banner"].startswith("Draft by fake-mini")
    liver = content["regions"][0]
    assert liver["measurements"]["volume_mm3"] == pytest.approx(6 * 12 * 15 * 1.4, rel=1e-6)
    assert (content["segmentation"], content["structured_report"]) == ("segmentation.dcm", "report.dcm")
    for name in ("report.html", "report.md", "report.json"):
        text = (tmp_path / "out" / name).read_text(encoding="utf-8")
        assert "The scan has 2 localizers" in text
        for secret in ("DOE", "JANE", "CANARY", str(ct.source.series_uid)):
            assert secret not in text
    for name in re.findall(r"\]\((key-images/[^)]+)\)", (tmp_path / "out" / "report.md").read_text(encoding="utf-8")):
        assert Image.open(tmp_path / "out" / name).size == (960, 823)


def test_the_structured_report_has_the_numbers_of_the_page_and_the_impression(ct: Volume, tmp_path: Path) -> None:
    draft = draft_of(ct)
    write_draft(draft, tmp_path / "out")
    report = hd.sr.srread(tmp_path / "out" / "report.dcm")
    groups = report.content.get_volumetric_roi_measurement_groups()
    volumes = [one.value for group in groups for one in group.get_measurements() if one.name.meaning == "Volume"]
    assert volumes == [one.measured.volume_mm3 for one in draft.shown]
    (comment,) = [
        item.TextValue for item in report.ContentSequence if item.ValueType == "TEXT" and "Draft" in item.TextValue
    ]
    assert comment.startswith("Draft by fake-mini - not verified - research use. Liver lesion, ")


def test_nothing_found_is_a_report_too(ct: Volume, tmp_path: Path) -> None:
    written = write_draft(draft_of(ct, {"liver": None}), tmp_path / "out")
    assert written.files == ("report.html", "report.json", "report.md")
    assert written.answer["regions"] == [] and written.answer["segmentation"] is None


def test_a_source_that_is_not_dicom_gives_an_nrrd_and_no_structured_report(tmp_path: Path) -> None:
    frame = Frame(shape=(4, 20, 30), origin=np.zeros(3), spacing=np.ones(3), direction=np.eye(3)[:, ::-1])
    volume = Volume(
        array=np.arange(2400, dtype=np.int16).reshape(4, 20, 30),
        frame=frame,
        slice_frames=tuple(frame.slice(k) for k in range(4)),
        modality="MR",
        source=Source(kind="nifti", paths=(tmp_path / "scan.nii.gz",)),
    )
    written = write_draft(draft_of(volume, {"liver": region(volume, np.s_[1:3, 2:9, 3:9], "liver")}), tmp_path / "out")
    assert "segmentation.seg.nrrd" in written.files and "report.dcm" not in written.files
    assert sitk.ReadImage(str(tmp_path / "out" / "segmentation.seg.nrrd")).GetSize()[:2] == (30, 20)
    assert "HU" not in (tmp_path / "out" / "report.md").read_text(encoding="utf-8")


def test_a_failure_leaves_the_earlier_report(ct: Volume, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_draft(draft_of(ct), tmp_path / "out")
    (tmp_path / "out" / "mine.txt").write_text("kept")
    before = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}

    def stop(*_: object) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr("medsight_core.output.draft_writer.draft_markdown", stop)
    with pytest.raises(KeyboardInterrupt):
        write_draft(draft_of(ct, {"liver": None}), tmp_path / "out")
    assert {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()} == before
    monkeypatch.undo()
    write_draft(draft_of(ct, {"liver": None}), tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "mine.txt", "report.html", "report.json", "report.md",
    ]  # fmt: skip


def test_a_key_image_shows_mask_and_diameters_where_they_are(ct: Volume) -> None:
    one = draft_of(ct).shown[0]
    picture = key_image(ct, (one,), one.measured.diameter.slice_index)
    assert picture.scan.size == picture.marks.size == (960, 823)
    alpha = np.asarray(picture.marks)[..., 3]
    down, right = 823 / 24, 960 / 32
    inside = alpha[round(6.5 * down) : round(14 * down), round(8 * right) : round(18 * right)]
    assert (inside > 50).all()
    outside = alpha.copy()
    outside[round(3 * down) : round(17 * down), round(4 * right) : round(21 * right)] = 0
    assert outside.max() == 0
    white = (np.asarray(picture.marks) == 255).all(axis=-1)
    for point in (one.measured.diameter.start, one.measured.diameter.end, one.measured.perpendicular.start):
        assert ct.frame is not None
        _, row, column = ct.frame.to_index(point)
        y, x = round((row + 0.5) * down), round((column + 0.5) * right)
        assert white[y - 6 : y + 7, x - 6 : x + 7].any()


@pytest.mark.parametrize("flips", [(), (1,), (2,), (1, 2), (0, 2)])
def test_a_key_image_is_upright_however_the_scan_is_stored(flips: tuple[int, ...]) -> None:
    shape = (5, 20, 30)
    affine = np.eye(4)
    affine[:3, :3] = np.eye(3)[:, ::-1]
    array = np.random.default_rng(1).integers(0, 200, shape).astype(np.int16)
    mask = np.zeros(shape, bool)
    mask[3, 4:9, 20:26] = True  # to the front, on the patient's left
    for axis in flips:
        affine[:3, 3] += affine[:3, axis] * (shape[axis] - 1)
        affine[:3, axis] *= -1
    frame = Frame.from_affine(affine, shape)
    volume = Volume(
        array=np.flip(array, flips).copy(),
        frame=frame,
        slice_frames=tuple(frame.slice(k) for k in range(5)),
        modality="MR",
        source=Source(kind="nifti", paths=(Path("scan.nii"),)),
    )
    found_there = VolumeRegion(
        code="[C0_1]", label="liver", span=Span(0, 0), score=0.9, mask=np.flip(mask, flips), frame=frame
    )
    evidence = Evidence.gather(volume, {"liver": found_there}, provenance=MODEL)
    finding = evidence.findings[0]
    assert finding.region is not None and finding.measurements is not None
    shown = Shown(number=1, region=finding.region, measured=finding.measurements, colour=(255, 0, 0))
    assert shown.measured.diameter.slice_index == (1 if 0 in flips else 3)
    alpha = np.asarray(key_image(volume, (shown,), shown.measured.diameter.slice_index).marks)[..., 3]
    rows, columns = np.nonzero(alpha > 60)
    scale = 960 / 30
    assert rows.mean() == pytest.approx(6.5 * scale, abs=scale)
    assert columns.mean() == pytest.approx(23 * scale, abs=scale)


GOOD = """
title = "CT of the abdomen"
structures = ["liver", "  left   kidney "]
[[sections]]
kind = "findings"
title = "What is seen"
structures = ["liver lesion"]
[[sections]]
kind = "text"
text = "Costs $5."
[[sections]]
kind = "impression"
[wording]
present = "$Name measures $extent$$."
"""


def test_a_template_chooses_sections_structures_and_wordings(ct: Volume, tmp_path: Path) -> None:
    path = tmp_path / "ours.toml"
    path.write_text(GOOD, encoding="utf-8")
    template = read_template(path)
    assert template.structures == ("liver", "left kidney")
    assert template.names == ("liver", "left kidney", "liver lesion")
    draft = draft_of(ct, template=template)
    assert draft.title == "CT of the abdomen"
    assert [(section.kind, section.title) for section in draft.sections] == [
        ("findings", "What is seen"), ("text", ""), ("impression", "Impression"),
    ]  # fmt: skip
    (only,) = draft.sections[0].structures
    assert re.fullmatch(r"Liver lesion measures \d\.\d × \d\.\d mm\$\.", only.sentence.text)
    assert draft.sections[1].sentences[0].text == "Costs $5."


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("title = ", "it is not TOML"),
        ("titel = 'x'", "it has 'titel', which is none of sections, structures, title, wording"),
        ("title = 3", "title that is not text"),
        ("structures = 'liver'", "structures that are not a list"),
        ("structures = ['']", "structures that are not a list"),
        ("sections = 'all'", "not written as [[sections]]"),
        ("[[sections]]\nkind = 'finding'", "section 1 has the kind 'finding'"),
        ("[[sections]]\nkind = ['findings']", "section 1 has the kind ['findings']"),
        ("[[sections]]\nkind = 'text'", "section 1 is of kind text"),
        ("[[sections]]\nkind = 'impression'\ntext = 'x'", "a text belongs to the kind text"),
        ("[[sections]]\nkind = 'impression'\nstructures = ['x']", "only findings do"),
        ("[wording]\npresence = 'x'", "its wording has 'presence'"),
        ("[wording]\nabsent = '$size'", "the placeholder $size; there are $Name, $name"),
        ("[wording]\nrest = 'for $ 5'", "write $$ for a dollar"),
        ("wording = 3", "not written as [wording]"),
    ],
)
def test_a_bad_template_gives_one_clear_sentence(text: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError) as caught:
        read_template(path)
    assert caught.value.code == "bad_template"
    assert words in str(caught.value) and "bad.toml" in str(caught.value) and caught.value.remedy


def test_a_template_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "latin.toml").write_bytes(b"title = '\xe9'")
    for name, words in (("none.toml", "cannot be read"), ("latin.toml", "not TOML"), (".", "cannot be read")):
        with pytest.raises(InputError, match=words):
            read_template(tmp_path / name)


def test_our_own_sentences_use_only_their_placeholders() -> None:
    values = {name: f"<{name}>" for names in PLACEHOLDERS.values() for name in names}
    for name in WORDING:
        said = ReportTemplate().say(name, **{key: values[key] for key in PLACEHOLDERS[name]})
        assert "$" not in said

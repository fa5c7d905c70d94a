"""Questions about a volume, answered from what was found: right words, measured numbers, the slices they rest on."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given, settings
from hypothesis import strategies as st

from medsight_core.errors import InputError
from medsight_core.evidence import Evidence
from medsight_core.imaging.volume import Source, Volume, open_volume
from medsight_core.measure import measure
from medsight_core.questioning import answer_from_evidence, slices_text
from medsight_core.regions import Answer, Provenance, VolumeRegion
from tests.core.body import LESIONS, Grid, inside, region, regions, scan

MODEL = Provenance(model="test", digest="0", settings={"threshold": 0.5})
KNOWN = ("liver", "spleen", "kidney", "lesion", "polyp", "aorta")


def volume_on(grid: Grid, *, kind: str = "nifti") -> Volume:
    frame = grid.frame
    return Volume(
        array=scan(frame),
        frame=frame,
        slice_frames=tuple(frame.slice(k) for k in range(frame.shape[0])),
        modality="CT",
        source=Source(kind=kind, paths=(Path("scan"),)),  # type: ignore[arg-type]
    )


def evidence_on(grid: Grid, *, kind: str = "nifti", without: tuple[str, ...] = ()) -> Evidence:
    volume = volume_on(grid, kind=kind)
    found: dict[str, VolumeRegion | None] = {r.label: r for r in regions(grid.frame) if r.label not in without}
    return Evidence.gather(volume, {**found, "polyp": None}, provenance=MODEL, known=KNOWN)


@pytest.fixture(scope="module")
def evidence() -> Evidence:
    return evidence_on(Grid())


def ask(question: str, evidence: Evidence, *history: str) -> Answer:
    answer = answer_from_evidence(question, evidence, history=[(asked, "") for asked in history])
    assert answer is not None
    said = re.search(r"This rests on (slices? .+)\.$", answer.text)
    rests = answer.provenance.settings["slices"]
    assert (said is None) == (not rests)
    assert said is None or said.group(1) == slices_text(rests)
    for found in answer.volume_regions:
        assert found.span.of(answer.text) == found.label
        assert found.mask.any()
    return answer


def numbers(text: str) -> list[float]:
    return [float(n.replace(",", "")) for n in re.findall(r"(?<![\w.])-?\d[\d,]*\.?\d*", text)]


def slices_of(mask: np.ndarray) -> list[int]:
    return [int(k) for k in np.flatnonzero(mask.any(axis=(1, 2)))]


@pytest.mark.parametrize("question", ["Is there a lesion in the liver?", "Can you see any lesions in the liver?"])
def test_is_there_a_lesion_in_the_liver(evidence: Evidence, question: str) -> None:
    answer = ask(question, evidence)
    assert answer.text.startswith("Yes, 3: lesion, ")
    frame = Grid().frame
    for found, name in zip(answer.volume_regions, ("large right", "middle liver", "small right"), strict=True):
        np.testing.assert_array_equal(found.mask, inside(frame, LESIONS[name]))
    expected = {k for found in answer.volume_regions for k in slices_of(found.mask)}
    assert answer.provenance.settings["slices"] == sorted(expected)
    assert answer.provenance.settings["threshold"] == 0.5


def test_how_many(evidence: Evidence) -> None:
    assert ask("How many lesions are there?", evidence).text.startswith("4: ")
    assert ask("How many lesions are there in the liver?", evidence).text.startswith("3: ")
    assert ask("How many kidneys are there?", evidence).text.startswith("2: ")
    assert ask("What is the number of lesions in the spleen?", evidence).text.startswith("1: ")
    assert ask("How many polyps do you see?", evidence).text.startswith("0. ")


@pytest.mark.parametrize(
    "question",
    ["How large is the liver?", "What is the volume of the liver?", "measure the liver", "how big is the liver"],
)
def test_how_large_is_what_is_measured(evidence: Evidence, question: str) -> None:
    (liver,) = (r for r in evidence.regions if r.label == "liver")
    measured = measure(liver.mask, liver.frame)
    assert measured.volume_ml is not None
    answer = ask(question, evidence)
    longest, across = measured.diameter, measured.perpendicular
    assert f"liver, {measured.volume_ml:.1f} ml, longest diameter {longest.length_mm:.1f} mm" in answer.text
    assert f"on slice {longest.slice_index} and {across.length_mm:.1f} mm across" in answer.text


def test_a_part_is_measured_like_the_whole(evidence: Evidence) -> None:
    answer = ask("How large is the largest lesion?", evidence)
    (found,) = answer.volume_regions
    values = scan(found.frame)
    alone = measure(found.mask, found.frame, values=values)
    assert f"{alone.diameter.length_mm:.1f} mm on slice {alone.diameter.slice_index} and" in answer.text
    assert f"mean {alone.mean:.1f} ± {alone.sd:.1f} HU" in ask("How dense is the largest lesion?", evidence).text


def test_where_it_is(evidence: Evidence) -> None:
    text = ask("Where is the largest lesion?", evidence).text
    assert "lesion, on the right side of the body, in the liver, slices" in text
    assert "spleen, on the left side of the body" in ask("On which side is the spleen?", evidence).text
    assert "across the middle" in ask("Where are the kidneys?", evidence).text


def test_which_slices(evidence: Evidence) -> None:
    (spleen,) = (r for r in evidence.regions if r.label == "spleen")
    covered = slices_of(spleen.mask)
    for question in ("Which slices show the spleen?", "On which slices is the spleen visible?"):
        answer = ask(question, evidence)
        assert f"spleen, slices {covered[0]} to {covered[-1]}." in answer.text
        assert answer.provenance.settings["slices"] == covered


def test_it_is_what_was_spoken_of(evidence: Evidence) -> None:
    first = "Is there a lesion in the spleen?"
    for question in (
        "How large is it?",
        "How large?",
        "What is its volume?",
        "where is it",
        "What is its mean density?",
    ):
        answer = ask(question, evidence, "Where is the liver?", first, "Which slices is it on?")
        (found,) = answer.volume_regions
        np.testing.assert_array_equal(found.mask, inside(Grid().frame, LESIONS["splenic"]))
    unclear = ask("How large is it?", evidence)
    assert "not clear what is meant. I found liver, spleen, kidney, lesion." in unclear.text
    assert not unclear.volume_regions
    only = evidence_on(Grid(), without=("liver", "spleen", "lesion"))
    assert "kidney" in ask("How large is it?", only).text


def test_what_was_not_looked_for_is_said_and_no_number_is(evidence: Evidence) -> None:
    for question, said in (
        ("Is there an aorta?", "I did not look for aorta."),
        ("How large is the spaceship?", 'This model was never taught to find "spaceship" in CT.'),
        ("How many vertebrae are there?", 'This model was never taught to find "vertebrae" in CT.'),
        ("Is there a lesion in the femur?", 'This model was never taught to find "femur" in CT.'),
    ):
        answer = ask(question, evidence)
        assert answer.text == f"{said} I looked for liver, spleen, kidney, lesion, polyp."
        assert not numbers(answer.text) and not answer.volume_regions
    answer = ask("Is there a lesion in the aorta?", evidence)
    assert "I did not look for the aorta" in answer.text and not numbers(answer.text)


def test_what_was_not_found_rests_on_all_slices_read(evidence: Evidence) -> None:
    answer = ask("Is there a polyp?", evidence)
    assert answer.text.startswith("No. I looked for polyp and found none. This rests on slices 0 to 30.")
    assert "found none" in ask("How large is the polyp?", evidence).text
    nowhere = ask("Is there a lesion in the polyp?", evidence)
    assert "The polyp was not found" in nowhere.text and not nowhere.volume_regions


def test_no_lesion_of_the_kinds_that_are_known_is_not_no_lesion() -> None:
    volume = volume_on(Grid())
    (liver,) = (r for r in regions(Grid().frame) if r.label == "liver")
    known = Evidence.gather(volume, {"liver": liver, "kidney tumor": None, "polyp": None}, provenance=MODEL)
    for question in ("Is there a lesion in the liver?", "How many lesions are there?"):
        text = ask(question, known).text
        assert text.startswith(
            "None was found of the only kinds that could be looked for: kidney tumor, polyp. Any other"
        )
    assert ask("Is there a polyp?", known).text.startswith("No. I looked for polyp")


@pytest.mark.parametrize("question", ["Describe the findings.", "Segment the liver.", "Why?", "Is this a CT?", ""])
def test_other_questions_are_left_to_the_model(evidence: Evidence, question: str) -> None:
    assert answer_from_evidence(question, evidence) is None


def test_a_side_that_cannot_be_told_is_not_told() -> None:
    cropped = evidence_on(Grid(crop=(10.0, 150.0)), without=("liver",))
    answer = ask("Where is the left kidney?", cropped)
    assert "Left and right cannot be told here" in answer.text and not answer.volume_regions
    assert "side of the body" not in ask("Where is the spleen?", cropped).text
    picture = evidence_on(Grid(), kind="image")
    assert "no orientation in the patient" in ask("Where is the spleen?", picture).text
    assert "no orientation in the patient" in ask("How large is the left kidney?", picture).text


@settings(deadline=None, max_examples=5)
@given(
    order=st.permutations((0, 1, 2)),
    flips=st.tuples(st.booleans(), st.booleans(), st.booleans()),
    question=st.sampled_from(["Where is the largest lesion?", "Where are the lesions in the liver?"]),
)
def test_the_storage_order_changes_no_word_but_the_slices(order, flips, question) -> None:  # type: ignore[no-untyped-def]
    def words(grid: Grid) -> str:
        return re.sub(r"slices? [\d, toand]+", "", ask(question, evidence_on(grid)).text)

    assert words(Grid(order=tuple(order), flips=flips)) == words(Grid())


def test_a_region_of_another_grid_is_refused() -> None:
    frame = Grid(crop=(10.0, 150.0)).frame
    with pytest.raises(InputError) as caught:
        Evidence.gather(
            volume_on(Grid()), {"liver": region("liver", np.ones(frame.shape, bool), frame)}, provenance=MODEL
        )
    assert caught.value.code == "bad_region"


def test_uncertain_regions_are_called_so() -> None:
    frame = Grid().frame
    faint = region("liver", regions(frame)[0].mask, frame, score=0.3)
    weak = Evidence.gather(volume_on(Grid()), {"liver": faint}, provenance=MODEL)
    assert ask("Is there a liver?", weak).text.startswith("Yes: liver (uncertain), ")


def test_slices_in_words() -> None:
    assert slices_text([4]) == "slice 4"
    assert slices_text([3, 4, 5]) == "slices 3 to 5"
    assert slices_text([1, 3, 4, 9]) == "slices 1, 3 to 4 and 9"


def test_real_organs(shared_data: Path) -> None:
    """A real CT with its label map: the numbers are SimpleITK's, the sides are the labels'."""
    folder = shared_data / "volumes"
    volume = open_volume(folder / "ct_abdomen_totalseg_3mm.nii.gz")
    labels = sitk.ReadImage(str(folder / "ct_abdomen_totalseg_3mm_seg.nii.gz"), sitk.sitkUInt8)
    array = np.rint(open_volume(folder / "ct_abdomen_totalseg_3mm_seg.nii.gz").array)
    frame = volume.require_frame()
    kidneys = region("kidney", np.isin(array, (2, 3)), frame)
    named = {name: region(name, array == number, frame) for name, number in (("spleen", 1), ("liver", 5))}
    real = Evidence.gather(volume, {**named, "kidney": kidneys}, provenance=MODEL)
    statistics = sitk.LabelIntensityStatisticsImageFilter()
    statistics.Execute(labels, sitk.ReadImage(str(folder / "ct_abdomen_totalseg_3mm.nii.gz")))
    for name, number in (("spleen", 1), ("left kidney", 3), ("right kidney", 2), ("liver", 5)):
        assert f"{statistics.GetPhysicalSize(number) / 1000:,.1f} ml" in ask(f"How large is the {name}?", real).text
        mean, sd = statistics.GetMean(number), statistics.GetStandardDeviation(number)
        assert f"mean {mean:.1f} ± {sd:.1f} HU" in ask(f"What is the mean density of the {name}?", real).text
    assert "on the left side" in ask("Where is the spleen?", real).text
    assert ask("How many kidneys are there?", real).text.startswith("2: ")

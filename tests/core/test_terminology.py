"""Codes and colours of findings."""

from __future__ import annotations

import json
import re
from itertools import combinations
from pathlib import Path

import pytest
from highdicom.color import CIELabColor
from hypothesis import given
from hypothesis import strategies as st
from pydicom.sr._concepts_dict import concepts
from pydicom.sr.coding import Code

from medsight_core.snomed import ABNORMAL, NOT_IN_PYDICOM, OBJECTS, RIBS, STRUCTURES, SUBSTANCES, TISSUES, VERTEBRAE
from medsight_core.terminology import (
    ABNORMAL_STRUCTURE,
    ANATOMICAL_STRUCTURE,
    BILATERAL,
    LEFT,
    LESION,
    RIGHT,
    TISSUE,
    Term,
    display_colour,
    display_colours,
    find_term,
)

# TotalSegmentator's "total" task, less the muscles and bones that differ only by name from others here.
TOTALSEGMENTATOR = tuple(
    re.findall(
        r"\w+",
        """
        spleen kidney_right kidney_left gallbladder liver stomach pancreas adrenal_gland_right
        adrenal_gland_left lung_upper_lobe_left lung_lower_lobe_left lung_upper_lobe_right
        lung_middle_lobe_right lung_lower_lobe_right esophagus trachea thyroid_gland small_bowel duodenum
        colon urinary_bladder prostate kidney_cyst_left kidney_cyst_right sacrum vertebrae_S1 vertebrae_L5
        vertebrae_L1 vertebrae_T12 vertebrae_T1 vertebrae_C7 vertebrae_C1 heart aorta pulmonary_vein
        brachiocephalic_trunk subclavian_artery_right common_carotid_artery_left brachiocephalic_vein_left
        atrial_appendage_left superior_vena_cava inferior_vena_cava portal_vein_and_splenic_vein
        iliac_artery_left iliac_vena_right humerus_left scapula_right clavicula_left femur_left hip_right
        spinal_cord gluteus_medius_left gluteus_minimus_right autochthon_left iliopsoas_right brain skull
        rib_left_1 rib_right_12 sternum costal_cartilages coronary_arteries heart_myocardium
        heart_atrium_left heart_ventricle_right subcutaneous_fat skeletal_muscle
        """,
    )
)


def _all_codes() -> dict[str, str]:
    """Every code in the tables with its meaning, read from the tables themselves."""
    found: dict[str, str] = {}
    for table in (STRUCTURES, TISSUES, SUBSTANCES, OBJECTS):
        for row in table.strip().splitlines():
            value, meaning = row.split(" = ")[0].split(" ", 1)
            found[value] = meaning
    for row in ABNORMAL.strip().splitlines():
        words = row.split(" = ")[0]
        value, meaning = words.split(" ", 1)
        found[value] = meaning.split(" ~")[0].split(" @")[0].split(" +")[0]
        if "+" in words:
            modifier, modifier_meaning = words.split("+")[1].split(" ", 1)
            found[modifier] = modifier_meaning
    for letter, values in VERTEBRAE:
        found |= {value: f"{letter.upper()}{n} vertebra" for n, value in enumerate(values.split(), start=1)}
    for row in RIBS.split("|"):
        value, ordinal = row.split()
        found[value] = f"{ordinal} rib"
    return found


def _pydicom_meanings() -> dict[str, set[str]]:
    meanings: dict[str, set[str]] = {}
    for by_code in concepts["SCT"].values():
        for value, (meaning, _) in by_code.items():
            meanings.setdefault(value, set()).add(meaning.lower())
    return meanings


def _has_check_digit(value: str) -> bool:
    """Verhoeff's check digit, which ends every SNOMED CT identifier."""
    dihedral = [[0] * 10 for _ in range(10)]
    for i in range(10):
        for j in range(10):
            a, b = i % 5, j % 5
            turned = i >= 5
            dihedral[i][j] = ((a - b) % 5 if turned else (a + b) % 5) + (5 if turned != (j >= 5) else 0)
    permutation = [list(range(10)), [1, 5, 7, 6, 2, 8, 3, 0, 9, 4]]
    for _ in range(6):
        permutation.append([permutation[-1][permutation[1][i]] for i in range(10)])
    check = 0
    for place, digit in enumerate(reversed(value)):
        check = dihedral[check][permutation[place % 8][int(digit)]]
    return check == 0


def test_every_code_is_in_pydicoms_dictionary_or_listed_as_missing_there() -> None:
    assert {value for value in _all_codes() if value not in _pydicom_meanings()} == set(NOT_IN_PYDICOM)


def test_meanings_are_those_of_the_standard() -> None:
    known = _pydicom_meanings()
    wrong = {v: m for v, m in _all_codes().items() if v in known and m.lower() not in known[v]}
    assert wrong == {}


def test_every_code_has_a_valid_check_digit() -> None:
    assert _has_check_digit("64033007")
    assert not _has_check_digit("64033008")
    assert [value for value in _all_codes() if not _has_check_digit(value)] == []


@pytest.mark.parametrize(
    ("label", "category", "meaning", "laterality"),
    [
        ("liver", ANATOMICAL_STRUCTURE, "Liver", None),
        ("left lung", ANATOMICAL_STRUCTURE, "Lung", LEFT),
        ("Right Kidney", ANATOMICAL_STRUCTURE, "Kidney", RIGHT),
        ("lungs", ANATOMICAL_STRUCTURE, "Lung", None),
        ("both lungs", ANATOMICAL_STRUCTURE, "Lung", BILATERAL),
        ("left and right lung", ANATOMICAL_STRUCTURE, "Lung", BILATERAL),
        ("kidney_left", ANATOMICAL_STRUCTURE, "Kidney", LEFT),
        ("postcava", ANATOMICAL_STRUCTURE, "Inferior vena cava", None),
        ("oesophagus", ANATOMICAL_STRUCTURE, "Esophagus", None),
        ("grey matter", TISSUE, "Gray Matter", None),
        ("tumour", ABNORMAL_STRUCTURE, "Neoplasm", None),
        ("oedema", ABNORMAL_STRUCTURE, "Edema", None),
        ("naevus", ABNORMAL_STRUCTURE, "Pigmented nevus", None),
        ("masses", ABNORMAL_STRUCTURE, "Mass", None),
        ("coronary arteries", ANATOMICAL_STRUCTURE, "Coronary artery", None),
    ],
)
def test_words_find_their_code(label: str, category: Code, meaning: str, laterality: Code | None) -> None:
    term = find_term(label)
    assert (term.category, term.type.meaning, term.laterality) == (category, meaning, laterality)


def test_a_side_that_is_part_of_the_type_is_not_said_twice() -> None:
    term = find_term("left heart atrium")
    assert term.type.value == "82471001"
    assert term.type_modifiers == ()
    assert find_term("heart_atrium_left").key == term.key


@pytest.mark.parametrize("label", ["lesion in the liver", "liver lesion", "hepatic lesion", "Lesions of the liver"])
def test_a_finding_within_an_organ_has_the_organ_as_its_region(label: str) -> None:
    term = find_term(label)
    assert (term.type, term.region and term.region.meaning, term.match) == (LESION, "Liver", "exact")


def test_the_side_goes_with_the_region_where_there_is_one() -> None:
    cyst, kidney = find_term("cyst in the left kidney"), find_term("left kidney")
    assert (cyst.type_modifiers, cyst.region_modifiers) == ((), (LEFT,))
    assert (kidney.type_modifiers, kidney.region_modifiers) == ((LEFT,), ())


def test_a_modifier_and_a_side_are_both_kept() -> None:
    assert [code.meaning for code in find_term("left anterior hippocampus").type_modifiers] == ["Anterior", "Left"]
    tumour = find_term("malignant tumour of the left breast")
    assert [code.meaning for code in tumour.type_modifiers] == ["Malignant"]
    assert [code.meaning for code in tumour.region_modifiers] == ["Left"]


def test_the_site_is_the_region_of_a_finding_that_names_none() -> None:
    assert find_term("tumor", site="brain").region == find_term("brain").type
    assert find_term("kidney tumor", site="abdomen").region == find_term("kidney").type
    assert find_term("tumor", site="transperineal").region is None
    assert find_term("liver", site="abdomen").region is None


@pytest.mark.parametrize(
    ("label", "kind"),
    [("frobnicated thing", TISSUE), ("", TISSUE), ("é ±", TISSUE), ("wibbleoma", LESION), ("xyzitis", LESION)],
)
def test_unknown_words_get_a_general_code_and_say_so(label: str, kind: Code) -> None:
    term = find_term(label)
    assert (term.type, term.match) == (kind, "generic")
    assert label in term.note and kind.meaning in term.note


def test_an_unknown_part_of_an_organ_is_not_called_the_organ() -> None:
    duct = find_term("pancreatic duct")
    assert (duct.type, duct.region and duct.region.meaning, duct.match) == (TISSUE, "Pancreas", "generic")


def test_the_side_of_something_unknown_is_not_given_to_the_organ() -> None:
    term = find_term("hypodense lesion in the left lobe of the liver")
    assert (term.type, term.region and term.region.meaning, term.laterality) == (LESION, "Liver", None)
    assert term.match == "broader" and "Lesion" in term.note


def test_every_target_of_the_data_is_known(shared_data: Path) -> None:
    rows = [json.loads(line) for line in (shared_data / "seg" / "manifest.jsonl").read_text().splitlines()]
    terms = {row["target"]: find_term(row["target"], site=row["site"]) for row in rows}
    assert len(terms) >= 60
    # No code could be confirmed for these two; each is placed in its organ at least.
    assert {name for name, term in terms.items() if term.match == "generic"} == {"glandular structure", "optic cup"}
    assert terms["glandular structure"].region == find_term("colon").type
    assert terms["optic cup"].region == find_term("retina").type
    abnormal = {name for name, term in terms.items() if term.category == ABNORMAL_STRUCTURE}
    assert abnormal >= {"lesion", "tumor", "polyp", "melanoma", "lower-grade glioma", "consolidation", "kidney cyst"}
    assert abnormal.isdisjoint({"liver", "left lung", "optic disc", "fetal head", "vessel", "nuclei", "myocardium"})


@pytest.mark.parametrize("label", TOTALSEGMENTATOR)
def test_totalsegmentators_names_are_known(label: str) -> None:
    assert find_term(label).match == "exact"


def test_sides_of_totalsegmentators_names() -> None:
    assert find_term("rib_left_3").type.meaning == "Third rib"
    assert find_term("rib_left_3").laterality == LEFT
    cyst = find_term("kidney_cyst_right")
    assert (cyst.type.meaning, cyst.region_modifiers) == ("Cyst", (RIGHT,))


@given(st.text(max_size=60))
def test_any_text_gives_a_complete_term(label: str) -> None:
    term = find_term(label)
    assert isinstance(term, Term)
    assert all(code.value and code.meaning and len(code.meaning) <= 64 for code in (term.category, term.type))
    assert display_colour(label) == display_colour(label)


def test_a_colour_stays_the_same_for_ever() -> None:
    # Written out: a result of today and one of last year show the liver in one colour.
    expected = {"liver": "#bb00ff", "left lung": "#aadd99", "lesion": "#ff5555"}
    assert {name: display_colour(name).hex for name in expected} == expected


def test_synonyms_share_a_colour_and_the_two_sides_do_not() -> None:
    assert display_colour("inferior vena cava") == display_colour("postcava") == display_colour("IVC")
    left, right = display_colours(["left lung", "right lung"])
    assert left != right


def test_the_findings_of_one_answer_have_different_colours() -> None:
    labels = [name for name in TOTALSEGMENTATOR if "_left" not in name][:24]
    colours = display_colours([*labels, labels[0]])
    assert len(set(colours)) == 24
    assert colours[-1] == colours[0]


def test_colours_can_be_told_apart_and_stand_out_on_grey() -> None:
    palette = {display_colour(f"unknown thing {n}") for n in range(400)}
    assert len(palette) == 24
    lab = {colour: CIELabColor.from_rgb(*colour.rgb) for colour in palette}
    values = {colour: (c.l_star, c.a_star, c.b_star) for colour, c in lab.items()}
    apart = [sum((x - y) ** 2 for x, y in zip(a, b, strict=True)) ** 0.5 for a, b in combinations(values.values(), 2)]
    assert min(apart) > 30
    assert all((a**2 + b**2) ** 0.5 > 35 and 40 < lightness < 95 for lightness, a, b in values.values())

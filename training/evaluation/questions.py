"""What a model is asked: from the rows of a manifest to questions with known answers.

The wording is frozen here, so that two models are asked the same. Nothing is drawn at random: the same manifest gives
the same questions in the same order.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal, TypeVar

from training.evaluation.manifest import Row
from training.evaluation.metrics import words

Kind = Literal["text", "point", "diagnosis", "absent"]
Rows = TypeVar("Rows", bound=Sequence[Row])

WORDING: Final[Mapping[Kind, str]] = {
    "text": "Segment the {target} in this image.",
    "point": "Segment the {target} in this image.",
    "diagnosis": "What is the diagnosis? Name it, then segment it.",
    "absent": "Segment the {target} in this image.",
}

# Views that show one surface or one preparation: what is seen in one of them is seen in no other view.
_SURFACES: Final = frozenset({"endoscopy", "dermoscopy", "fundus", "oct", "pathology"})
_ANY_ORGAN: Final = frozenset({"pathology"})
"""Views that may show any organ: a slide labelled "tissue" can be of the kidney, so nothing is known to be absent."""
_HEAD: Final = frozenset({"brain", "head"})
_TRUNK: Final = frozenset(
    {
        "abdomen", "breast", "chest", "colon", "heart", "kidney", "liver", "lung", "pancreas", "pelvis", "prostate",
        "spleen", "thorax", "transperineal", "uterus",
    }
)  # fmt: skip
# Words that name nothing in particular: a vessel or a lesion can be anywhere, so asking for it proves nothing.
_GENERIC: Final = words(
    "vessel lesion tumor nodule edema cyst mass opacity nuclei nucleus cells infection benign malignant enhancing "
    "non core neoplastic inflammatory connective tissue glandular structure"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One question with what is known about its answer.

    Attributes:
        kind: "text" and "point": a mask is known. "diagnosis": words are known. "absent": nothing is to be found.
        row: The line it comes from; ``row.mask`` is the truth of "text" and "point" only.
        target: What is asked for; empty for "diagnosis".
        reason: For "absent": "negative image" (the data set says so) or "other site" (it belongs elsewhere).
    """

    kind: Kind
    row: Row
    target: str = ""
    reason: str = ""

    @property
    def wording(self) -> str:
        """The question in words."""
        return WORDING[self.kind].format(target=self.target)


def build_cases(
    rows: Sequence[Row],
    negatives: Sequence[Row],
    *,
    split: str,
    limit: int | None = None,
    absent_per_image: int = 1,
) -> tuple[Case, ...]:
    """All questions of a split, those of one image together.

    Args:
        rows: The whole manifest: other splits say which targets a data set has.
        negatives: Images of which a data set says that its targets are absent, also whole.
        split: Which rows are asked about.
        limit: At most so many images (and so many negative ones), spread evenly; None for all.
        absent_per_image: How many targets that belong elsewhere are asked for on each image.
    """
    targets = _targets_by_dataset(rows)
    places = _places_by_target([*rows, *negatives])
    cases: list[Case] = []
    for image_rows in spread(by_image(row for row in rows if row.split == split), limit):
        cases += _cases_of_image(image_rows, targets)
        elsewhere = _elsewhere(image_rows[0], places)
        cases += [
            Case(kind="absent", row=image_rows[0], target=target, reason="other site")
            for target in _choose(elsewhere, absent_per_image, key=image_rows[0].image)
        ]
    for image_rows in spread(by_image(row for row in negatives if row.split == split), limit):
        cases += _cases_of_image(image_rows, targets)
    return tuple(cases)


def _cases_of_image(rows: Sequence[Row], targets: Mapping[str, Sequence[str]]) -> list[Case]:
    present = [row for row in rows if row.mask is not None and row.target is not None]
    cases = [Case(kind=kind, row=row, target=row.target or "") for kind in ("text", "point") for row in present]
    diagnosed = [row for row in rows if row.diagnosis and words(row.diagnosis)]
    cases += [Case(kind="diagnosis", row=row) for row in diagnosed[:1]]
    named = {row.target for row in present}
    for row in rows:
        if row.mask is None:
            asked = [row.target] if row.target else targets.get(row.dataset, ())
            cases += [
                Case(kind="absent", row=row, target=target, reason="negative image")
                for target in asked
                if target not in named
            ]
    return cases


def training_masks(rows: Iterable[Row]) -> dict[tuple[str, str], int]:
    """How many training masks each (data set, target) has."""
    counts: dict[tuple[str, str], int] = defaultdict(int)
    for row in rows:
        if row.split == "train" and row.mask is not None and row.target is not None:
            counts[row.dataset, row.target] += 1
    return dict(counts)


def training_diagnoses(rows: Iterable[Row]) -> dict[tuple[str, str], int]:
    """How many training images each (data set, diagnosis) has."""
    images: dict[tuple[str, str], set[str]] = defaultdict(set)
    for row in rows:
        if row.split == "train" and row.diagnosis:
            images[row.dataset, row.diagnosis].add(row.image)
    return {pair: len(names) for pair, names in images.items()}


def by_image(rows: Iterable[Row]) -> list[list[Row]]:
    """Rows of each image, in the order of the manifest."""
    images: dict[str, list[Row]] = {}
    for row in rows:
        images.setdefault(row.image, []).append(row)
    return list(images.values())


def spread(images: Sequence[Rows], limit: int | None) -> Sequence[Rows]:
    """At most ``limit`` of them at even distances, so that a short run still sees every large data set."""
    if limit is None or limit >= len(images):
        return images
    return [images[number * len(images) // limit] for number in range(limit)]


def _targets_by_dataset(rows: Iterable[Row]) -> dict[str, list[str]]:
    found: dict[str, set[str]] = defaultdict(set)
    for row in rows:
        if row.target is not None:
            found[row.dataset].add(row.target)
    return {dataset: sorted(names) for dataset, names in found.items()}


def _places_by_target(rows: Iterable[Row]) -> dict[str, set[tuple[str, str]]]:
    places: dict[str, set[tuple[str, str]]] = defaultdict(set)
    for row in rows:
        if row.target is not None:
            places[row.target].add(_place(row))
    return dict(places)


def _place(row: Row) -> tuple[str, str]:
    """(view, part of the body), as coarse as certainty about absence needs.

    A chest film shows the upper abdomen and a heart scan the aorta; but no scan of the trunk shows the brain, and no
    film shows the inside of a colon as an endoscope does.
    """
    view = row.modality.casefold()
    if view in _SURFACES:
        return view, view
    site = row.site.casefold()
    return "scan", "head" if site in _HEAD else "trunk" if site in _TRUNK else "unknown"


def _elsewhere(row: Row, places: Mapping[str, set[tuple[str, str]]]) -> list[str]:
    """Targets that cannot be on this image: all that is known of them lies in other views or parts of the body."""
    view, part = _place(row)
    if view in _ANY_ORGAN:
        return []
    found = []
    for target in sorted(places):
        # An endoscope in the colon does show the colon: a target that shares a word with the site is not asked for.
        if words(target) <= _GENERIC or words(target) & words(row.site):
            continue
        if all(_apart((view, part), place) for place in places[target]):
            found.append(target)
    return found


def _apart(one: tuple[str, str], other: tuple[str, str]) -> bool:
    return one[0] != other[0] or (one[1] != other[1] and "unknown" not in {one[1], other[1]})


def _choose(names: Sequence[str], count: int, *, key: str) -> list[str]:
    """``count`` of the names, the same ones for the same key on every machine."""

    def rank(name: str) -> bytes:
        return hashlib.sha256(f"{key}\n{name}".encode()).digest()

    return sorted(names, key=rank)[:count]

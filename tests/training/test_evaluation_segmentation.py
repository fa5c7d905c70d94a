"""The evaluation on engines whose figures are known beforehand: one that is always right, one that finds nothing, one
that is off by a known shift, one that finds everything everywhere."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from medsight_core.geometry import GridTransform
from medsight_core.regions import Answer, Provenance, Question, Region, Span
from training.cli import app
from training.evaluation.bootstrap import Bootstrap
from training.evaluation.manifest import Row, read_manifest, read_mask
from training.evaluation.metrics import interior_point
from training.evaluation.questions import build_cases
from training.evaluation.report import extremes
from training.evaluation.segmentation import Outcome, run
from training.evaluation.summary import Rule, Summary, summarise

SIDE = 32
Painter = Callable[[np.ndarray | None, Question], np.ndarray | None]


class KnownEngine:
    """Answers from a table: the truth by image and target, changed by a painter."""

    name = "known"
    digest = "0" * 8

    def __init__(self, *, truths: dict[tuple[str, str], np.ndarray], says: str, paint: Painter) -> None:
        self.truths, self.says, self.paint = truths, says, paint
        self.batches: list[int] = []
        self.questions: list[Question] = []

    def answer_batch(self, questions: list[Question]) -> list[Answer]:
        self.batches.append(len(questions))
        self.questions += questions
        return [self._answer(question) for question in questions]

    def _answer(self, question: Question) -> Answer:
        image = question.volume.source.paths[0].name
        target = question.text.removeprefix("Segment the ").removesuffix(" in this image.")
        truth = self.truths.get((image, target))
        shape = question.volume.slice_frame(0).shape[1:]
        if truth is not None and truth.shape != shape:
            truth = GridTransform.resize(truth.shape, shape).image(truth.astype(np.float32)) >= 0.5
        mask = self.paint(truth, question)
        regions = () if mask is None else (self._region(mask, question, 0), self._region(mask, question, 1))
        return Answer(
            text=self.says,
            raw=self.says,
            regions=regions,
            warnings=(),
            provenance=Provenance(model="known", digest="0"),
        )

    def _region(self, mask: np.ndarray, question: Question, half: int) -> Region:
        """One half of the mask, so that only the union of the regions is right."""
        part = mask.copy()
        part[:, half::2] = False
        return Region(
            code=f"[C0_{half}]", label="half", span=Span(0, 1), score=0.9, slice_index=0, mask=part,
            frame=question.volume.slice_frame(0),
        )  # fmt: skip


def oracle(truth: np.ndarray | None, question: Question) -> np.ndarray | None:
    return truth


def shifted(truth: np.ndarray | None, question: Question) -> np.ndarray | None:
    """Right with a point, four rows off without."""
    return truth if truth is None or question.prompts else np.roll(truth, 4, axis=0)


def nothing(truth: np.ndarray | None, question: Question) -> np.ndarray | None:
    return None


def everything(truth: np.ndarray | None, question: Question) -> np.ndarray | None:
    return np.ones(question.volume.slice_frame(0).shape[1:], dtype=bool)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Films (lungs, masks of two sizes, two patients), scopes (polyps), a rare pair, an unseen one, a negative."""
    root = tmp_path_factory.mktemp("dataset")
    generator = np.random.default_rng(0)
    rows: list[dict[str, Any]] = []

    def add(name: str, mask: np.ndarray, **values: Any) -> None:
        picture = generator.integers(0, 80, (SIDE, SIDE), dtype=np.uint8)
        Image.fromarray(picture).save(root / f"{name}.png")
        Image.fromarray((mask * 255).astype(np.uint8)).save(root / f"{name}_mask.png")
        rows.append({"image": f"{name}.png", "mask": f"{name}_mask.png", "split": "test", **values})

    def square(top: int, left: int, side: int = 8, scale: int = 1) -> np.ndarray:
        mask = np.zeros((SIDE, SIDE), dtype=bool)
        mask[top : top + side, left : left + side] = True
        return mask.repeat(scale, axis=0).repeat(scale, axis=1)

    film = {"dataset": "films", "modality": "X-ray", "site": "chest", "target": "lung", "diagnosis": "tuberculosis"}
    scope = {"dataset": "scopes", "modality": "Endoscopy", "site": "colon", "target": "polyp", "diagnosis": None}
    for number in range(4):
        add(f"film{number}", square(4, 4 + number, scale=1 + number % 2), patient=f"p{number // 2}", **film)
        add(f"scope{number}", square(10, 8), patient=None, **scope)
    add("rare", square(2, 2), patient=None, **{**film, "target": "airways"})
    add("unseen", square(2, 2), patient=None, **{**film, "dataset": "BiomedParse-Demo"})
    training = [
        {**row, "split": "train", "image": f"{row['image']}.{n}"} for row in (rows[0], rows[1]) for n in range(20)
    ]
    Image.new("L", (SIDE, SIDE), 40).save(root / "clear.png")
    negative = {**scope, "image": "clear.png", "mask": None, "target": None, "diagnosis": "normal", "split": "test"}
    for name, lines in (("manifest", [*rows, *training]), ("negatives", [negative])):
        (root / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return root


def engine_for(root: Path, paint: Painter, says: str = "This is tuberculosis.") -> KnownEngine:
    rows = [row for row in read_manifest(root / "manifest.jsonl") if row.split == "test"]
    truths = {(row.image, row.target or ""): read_mask(root / (row.mask or "")) for row in rows}
    return KnownEngine(truths=truths, says=says, paint=paint)


def evaluate(root: Path, engine: KnownEngine, **options: Any) -> tuple[Summary, list[Outcome]]:
    rows, negatives = read_manifest(root / "manifest.jsonl"), read_manifest(root / "negatives.jsonl")
    outcomes = run(engine, build_cases(rows, negatives, split="test"), root, **options)
    summary = summarise(outcomes, training_rows=[*rows, *negatives], rule=Rule(), bootstrap=Bootstrap(replicates=200))
    return summary, outcomes


def values(summary: Summary) -> dict[str, float | None]:
    return {name: estimate.value for name, estimate in summary.headline.items()}


def test_an_engine_that_is_right_has_full_marks(dataset: Path) -> None:
    summary, _ = evaluate(dataset, engine_for(dataset, oracle))
    assert values(summary) == {
        "macro_dice": 1.0,
        "macro_dice_point": 1.0,
        "diagnosis_recall": 1.0,
        "emission_rate": 1.0,
        "absent_false_positive_rate": 0.0,
    }
    assert {name: estimate.count for name, estimate in summary.headline.items()} == {
        "macro_dice": 8,  # four lungs, four polyps; the rare and the unseen pair do not count
        "macro_dice_point": 8,
        "diagnosis_recall": 5,  # films; the negative's "normal" was never trained, the unseen data set stands apart
        "emission_rate": 10,
        "absent_false_positive_rate": 11,  # one per image, and the polyp of the negative one
    }


def test_an_engine_that_finds_nothing_has_no_marks_but_no_false_positives(dataset: Path) -> None:
    summary, _ = evaluate(dataset, engine_for(dataset, nothing, says="I do not know."))
    assert values(summary) == dict.fromkeys(summary.headline, 0.0)


def test_an_engine_that_finds_everything_is_caught_by_the_absent_targets(dataset: Path) -> None:
    summary, _ = evaluate(dataset, engine_for(dataset, everything))
    figures = values(summary)
    assert figures["absent_false_positive_rate"] == 1.0
    assert figures["emission_rate"] == 1.0
    # A square of 8 x 8 against 32 x 32: 2 * 64 / (64 + 1024).
    assert figures["macro_dice"] == pytest.approx(128 / 1088)


def test_a_shift_costs_what_it_should_and_a_point_mends_it(dataset: Path) -> None:
    summary, _ = evaluate(dataset, engine_for(dataset, shifted))
    assert values(summary)["macro_dice"] == pytest.approx(0.5)  # half of the eight rows overlap
    assert values(summary)["macro_dice_point"] == 1.0


def test_an_empty_region_counts_as_emitted_but_not_as_found(dataset: Path) -> None:
    def empty(truth: np.ndarray | None, question: Question) -> np.ndarray:
        return np.zeros(question.volume.slice_frame(0).shape[1:], dtype=bool)

    summary, _ = evaluate(dataset, engine_for(dataset, empty))
    assert values(summary)["emission_rate"] == 1.0
    assert values(summary)["absent_false_positive_rate"] == 0.0
    assert values(summary)["macro_dice"] == 0.0


def test_pairs_are_reported_whether_they_count_or_not(dataset: Path) -> None:
    summary, _ = evaluate(dataset, engine_for(dataset, shifted))
    rows = {(pair["dataset"], pair["target"]): pair for pair in summary.pairs}
    assert {pair: row["counted"] for pair, row in rows.items()} == {
        ("BiomedParse-Demo", "lung"): False,
        ("films", "airways"): False,
        ("films", "lung"): True,
        ("scopes", "polyp"): True,
    }
    lung = rows["films", "lung"]
    assert (lung["n"], lung["patients"], lung["training_masks"]) == (4, 2, 20)
    assert (lung["dice"], lung["dice_median"], lung["dice_point"]) == (0.5, 0.5, 1.0)
    assert rows["films", "airways"]["dice_interval"] is None
    assert summary.details["macro_dice_apart"].value == 0.5
    assert summary.details["absent_false_positive_rate_negative_image"].count == 1
    assert [(row["dataset"], row["diagnosis"], row["counted"]) for row in summary.diagnoses] == [
        ("BiomedParse-Demo", "tuberculosis", False),
        ("films", "tuberculosis", True),
        ("scopes", "normal", False),
    ]


def test_without_training_masks_all_pairs_but_those_apart_count() -> None:
    assert Rule().counts(("films", "lung"), {})
    assert not Rule().counts(("BiomedParse-Demo", "lung"), {})
    assert not Rule().counts(("films", "lung"), {("films", "polyp"): 50})


def test_the_point_is_where_the_truth_is_innermost_whatever_its_resolution(dataset: Path) -> None:
    engine = engine_for(dataset, oracle)
    evaluate(dataset, engine)
    rows: dict[str, Row] = {row.image: row for row in read_manifest(dataset / "manifest.jsonl") if row.split == "test"}
    clicked = [question for question in engine.questions if question.prompts]
    assert len(clicked) == len(rows)
    for question in clicked:
        truth = read_mask(dataset / (rows[question.volume.source.paths[0].name].mask or ""))
        scale = truth.shape[0] // SIDE
        row, column = interior_point(truth)
        (prompt,) = question.prompts
        found = question.volume.slice_frame(0).to_index(prompt.points)[0]
        assert prompt.kind == "point" and prompt.positive
        assert found == pytest.approx([0, (row + 0.5) / scale - 0.5, (column + 0.5) / scale - 0.5])


def test_questions_go_out_in_batches_and_each_image_is_opened_once_in_a_row(dataset: Path) -> None:
    engine = engine_for(dataset, oracle)
    done: list[int] = []
    _, outcomes = evaluate(dataset, engine, batch=7, on_progress=done.append)
    assert engine.batches == done
    assert set(engine.batches[:-1]) == {7} and sum(done) == len(outcomes)
    names = [question.volume.source.paths[0].name for question in engine.questions]
    assert len({id(question.volume) for question in engine.questions}) == len(set(names))


def test_the_batch_size_changes_nothing_but_the_times(dataset: Path) -> None:
    def figures(batch: int) -> dict[str, Any]:
        summary, _ = evaluate(dataset, engine_for(dataset, shifted), batch=batch)
        return {name: value for name, value in summary.to_json().items() if name != "timings"}

    assert figures(1) == figures(8)


def test_the_picture_shows_at_most_two_cases_of_a_pair(dataset: Path) -> None:
    _, outcomes = evaluate(dataset, engine_for(dataset, shifted))
    chosen = extremes(outcomes, 8, best=False)
    pairs = [(outcome.case.row.dataset, outcome.case.target) for outcome in chosen]
    assert len(chosen) == 6 and max(pairs.count(pair) for pair in pairs) == 2


@pytest.fixture
def embedded(dataset: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[Any, str]]]:
    """Puts a known engine where the command looks for the real one; yields what it was asked to load."""
    loaded: list[tuple[Any, str]] = []

    class Engine:
        @staticmethod
        def from_pretrained(path: Path | None = None, *, device: str = "auto") -> KnownEngine:
            loaded.append((path, device))
            return engine_for(dataset, shifted)

    module = ModuleType("medsight_core.inference.engine")
    module.Engine = Engine  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "medsight_core.inference.engine", module)
    yield loaded


def command(dataset: Path, *more: str) -> Any:
    files = ["--manifest", str(dataset / "manifest.jsonl"), "--root", str(dataset)]
    return CliRunner().invoke(app, ["eval", "segmentation", *files, *more])


def test_the_command_writes_figures_cases_and_pictures(
    dataset: Path, tmp_path: Path, embedded: list[tuple[Any, str]]
) -> None:
    out = tmp_path / "out"
    negatives = str(dataset / "negatives.jsonl")
    result = command(dataset, "--negatives", negatives, "--out", str(out), "--device", "cpu", "--json")
    assert result.exit_code == 0, result.output
    assert embedded == [(None, "cpu")]
    figures = json.loads(result.stdout)
    assert figures == json.loads((out / "segmentation.json").read_text(encoding="utf-8"))
    for name in ("macro_dice", "macro_dice_point", "diagnosis_recall", "emission_rate", "absent_false_positive_rate"):
        assert {"value", "interval", "count"} == set(figures[name])
    low, high = figures["macro_dice"]["interval"]
    assert low <= figures["macro_dice"]["value"] == 0.5 <= high
    assert figures["model"] == {"name": "known", "digest": "0" * 8}
    assert figures["settings"]["rule"] == {
        "min_training_masks": 20,
        "apart": ["BiomedParse-Demo"],
        "training_masks_known": True,
    }
    assert str(dataset) not in result.stdout  # no path of this machine in figures that are passed on
    with (out / "cases.csv").open(encoding="utf-8", newline="") as file:
        cases = list(csv.DictReader(file))
    assert len(cases) == 10 + 10 + 7 + 11
    assert [case["dice"] for case in cases if case["kind"] == "text"] == ["0.5"] * 10
    assert "| films | lung | 4 | 20 | 0.500 |" in (out / "segmentation.md").read_text(encoding="utf-8")
    with Image.open(out / "best_and_worst.png") as picture:
        colours = np.asarray(picture.convert("RGB")).reshape(-1, 3)
    for colour in ((0x56, 0xB4, 0xE9), (0xE6, 0x9F, 0x00)):
        assert (np.abs(colours.astype(int) - colour).max(axis=1) < 8).sum() > 100
    assert not list(out.glob(".*"))


def test_the_command_says_what_is_wrong_before_it_loads_a_model(
    dataset: Path, tmp_path: Path, embedded: list[tuple[Any, str]]
) -> None:
    out = tmp_path / "out"
    nowhere = CliRunner().invoke(app, ["eval", "segmentation", "--manifest", "absent.jsonl", "--root", str(dataset)])
    assert nowhere.exit_code == 2 and "cannot be read" in nowhere.stderr
    wrong_split = command(dataset, "--split", "tset", "--out", str(out))
    assert wrong_split.exit_code == 2 and "no rows of split 'tset'" in wrong_split.stderr
    assert "test, train" in wrong_split.stderr
    unfit = command(dataset, "--split", "train", "--out", str(out))  # the training images do not exist
    assert unfit.exit_code == 2 and "40 of 42 files are not in" in unfit.stderr
    assert not out.exists()
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    nowhere_to_write = command(dataset, "--out", str(blocked / "out"))
    assert nowhere_to_write.exit_code == 2 and "Nothing can be written" in nowhere_to_write.stderr
    assert not embedded

"""Simulated clicks against sessions whose answers are known: where they go, and what comes of the figures."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from medsight_core.imaging.volume import Volume
from medsight_core.regions import Prompt, Region, Span
from tests.inference.tiny import save_tiny
from training.cli import app
from training.evaluation.bootstrap import Bootstrap
from training.evaluation.interactive import (
    AWAY,
    Background,
    Interaction,
    click_on_nothing,
    click_through,
    free_places,
    honest,
    next_click,
)
from training.evaluation.interactive_summary import summarise
from training.evaluation.manifest import Row, read_manifest, read_mask
from training.evaluation.questions import by_image
from training.evaluation.summary import Rule

SIDE = 32


def square(top: int, left: int, side: int = 8) -> np.ndarray:
    mask = np.zeros((SIDE, SIDE), bool)
    mask[top : top + side, left : left + side] = True
    return mask


def row(**values: Any) -> Row:
    known: dict[str, Any] = {
        "dataset": "scopes", "split": "test", "image": "a.png", "mask": "m.png", "modality": "Endoscopy",
        "site": "colon", "target": "polyp", "diagnosis": None, "patient": None,
    }  # fmt: skip
    return Row(**{**known, **values})


class KnownSession:
    """Gives the union of squares of 9 pixels around positive clicks, less those around negative ones."""

    def __init__(self, volume: Volume, log: list[tuple[int, int, bool]], paint: Callable[[Prompt], np.ndarray]) -> None:
        self.volume, self.log, self.paint = volume, log, paint
        self.mask = np.zeros(volume.array.shape[1:3], bool)
        self.pointed: Any = None

    def add(self, prompt: Prompt, slice_index: int) -> Region | None:
        frame = self.volume.slice_frame(slice_index)
        if prompt.kind == "point":
            _, y, x = frame.to_index(prompt.points)[0].round().astype(int)
            self.log.append((int(y), int(x), prompt.positive))
        painted = self.paint(prompt)
        self.mask = self.mask | painted if prompt.positive else self.mask & ~painted
        self.pointed = (
            SimpleNamespace(nothing=0.9, something=0.1)
            if not self.mask.any()
            else SimpleNamespace(nothing=0.2, something=0.7)
        )
        if not self.mask.any():
            return None
        return Region(
            code="[C0_0]", label="x", span=Span(0, 0), score=0.5, slice_index=slice_index, mask=self.mask, frame=frame
        )


def around(prompt: Prompt) -> np.ndarray:
    """A square of 9 pixels around a click, all between the corners of a box."""
    mask = np.zeros((SIDE, SIDE), bool)
    low, high = prompt.points[:, 1::-1].min(0), prompt.points[:, 1::-1].max(0)
    if prompt.kind == "point":
        low, high = low - 4, high + 4
    top, left = np.ceil(np.clip(low, 0, SIDE)).astype(int)
    bottom, right = np.floor(high).astype(int) + 1
    mask[top:bottom, left:right] = True
    return mask


def test_the_next_click_goes_where_the_error_reaches_deepest() -> None:
    truth = square(4, 4, 15)
    assert next_click(np.zeros_like(truth), truth) == (11, 11, True)
    assert next_click(truth, truth) is None
    hole = truth & ~square(6, 6, 5)
    assert next_click(hole, truth) == (8, 8, True)
    spill = truth | square(20, 20, 9)
    assert next_click(spill, truth) == (24, 24, False)
    assert next_click(hole | square(20, 20, 9), truth) == (24, 24, False), "the deeper of the two"
    assert next_click(hole | square(24, 24, 5), truth) == (8, 8, True), "what is missing first"


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A picture with two polyps under three names, one of them twice; another of 64 pixels with a mask of 32."""
    generator = np.random.default_rng(0)
    rows: list[dict[str, Any]] = []
    for name, side, masks in (
        ("a", SIDE, {"polyp": square(4, 4, 9), "lesion": square(4, 4, 9), "tumor": square(18, 18, 9)}),
        ("b", 2 * SIDE, {"polyp": square(10, 10, 9)}),
    ):
        Image.fromarray(generator.integers(20, 90, (side, side, 3), dtype=np.uint8)).save(tmp_path / f"{name}.png")
        for target, mask in masks.items():
            Image.fromarray(mask.astype(np.uint8) * 255).save(tmp_path / f"{name}_{target}.png")
            rows.append(
                {
                    "dataset": "scopes", "split": "test", "image": f"{name}.png", "mask": f"{name}_{target}.png",
                    "modality": "Endoscopy", "site": "colon", "target": target, "patient": name,
                }
            )  # fmt: skip
    (tmp_path / "manifest.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return tmp_path


def test_each_mask_is_clicked_once_and_boxed(images: Path) -> None:
    log: list[tuple[int, int, bool]] = []
    steps: list[int] = []
    rows = by_image(row for row in read_manifest(images / "manifest.jsonl") if row.image == "a.png")
    begin = lambda volume: KnownSession(volume, log, around)  # noqa: E731
    results = list(click_through(begin, rows, images, on_progress=steps.append))
    assert [one.row.target for one in results] == ["polyp", "lesion", "tumor"] and steps == [3]
    assert log == [(8, 8, True), (22, 22, True)], "the same mask is clicked once, a perfect one not again"
    for one in results:
        assert one.dice == {"click_1": 1.0, "click_2": 1.0, "click_3": 1.0, "box": 1.0}
        assert one.nothing == pytest.approx(0.2 - 0.7)


def test_clicks_go_on_until_it_is_right_and_fit_images_of_other_sizes(images: Path) -> None:
    log: list[tuple[int, int, bool]] = []

    def clumsy(prompt: Prompt) -> np.ndarray:
        """Paints, in an image of 64 pixels, a part of the truth (rows and columns 20 to 37) at every click."""
        mask = np.zeros((2 * SIDE, 2 * SIDE), bool)
        _, y = prompt.points[0, :2]
        mask[20:38, 20:38] = True
        mask[: int(y) - 4] = mask[int(y) + 4 :] = False
        return mask

    rows = by_image(row for row in read_manifest(images / "manifest.jsonl") if row.image == "b.png")
    begin = lambda volume: KnownSession(volume, log, clumsy)  # noqa: E731
    (one,) = click_through(begin, rows, images, on_progress=lambda done: None)
    assert log[0][:2] == (28, 28) or log[0][:2] == (29, 29), "the middle of the truth, on the grid of the image"
    assert one.dice["click_1"] < one.dice["click_2"] <= one.dice["click_3"] <= 1
    assert all(positive for _, _, positive in log) and len(log) == 3


def test_only_images_without_unknown_anatomy_are_clicked_beside() -> None:
    scope, film = {"dataset": "scopes"}, {"dataset": "films", "modality": "X-ray", "site": "chest"}
    rows = [
        row(image="polyp", **scope),
        row(image="film 1", target="left lung", **film),
        row(image="film 1", target="heart", **film),
        row(image="film 2", target="left lung", **film),
        row(image="film 3", target="left lung", **film),
        row(image="film 3", target="heart", **film),
        row(image="film 3", target="pleural effusion", **film),
        row(image="other film", dataset="demo", target="rib", modality="X-ray", site="chest"),
    ]
    chosen = honest(by_image(rows), rows, apart=("demo",))
    # Film 2 may show a heart that nobody outlined; that film 1 has no effusion is known; the demo does not count.
    assert [some[0].image for some in chosen] == ["polyp", "film 1", "film 3"]
    assert [some[0].image for some in honest(by_image(rows), rows, apart=())] == ["polyp"], "now ribs are known"
    empty = row(image="normal", mask=None, target=None, **scope)
    assert honest([[empty]], rows, apart=()) == [[empty]], "an image without findings"


def test_free_places_keep_away_from_outlines_and_padding() -> None:
    picture = np.zeros((100, 80, 3), np.uint8)
    picture[20:90, 5:75] = 120
    taken = np.zeros((100, 80), bool)
    taken[40:60, 30:50] = True
    places = free_places(picture, taken)
    assert places.min(0).tolist() == [20, 5] and places.max(0).tolist() == [89, 74]
    rows, columns = places.T
    across = np.maximum(np.maximum(30 - columns, columns - 49), 0)
    down = np.maximum(np.maximum(40 - rows, rows - 59), 0)
    assert np.hypot(across, down).min() > AWAY * 100
    assert not len(free_places(np.zeros_like(picture), taken))


def test_clicks_on_nothing_are_the_same_each_time_and_hit_nothing(images: Path) -> None:
    rows = by_image(read_manifest(images / "manifest.jsonl"))
    truths = {some[0].image: [read_mask(images / str(one.mask)) for one in some] for some in rows}
    runs = []
    for _ in range(2):
        log: list[tuple[int, int, bool]] = []
        begin = lambda volume, log=log: KnownSession(volume, log, lambda p: np.zeros(volume.array.shape[1:3], bool))  # noqa: E731
        found = list(click_on_nothing(begin, rows, images, seeds=(0, 1, 2), on_progress=lambda done: None))
        runs.append([(one.row.image, one.seed, one.xy) for one in found])
        assert len(found) == 6 and not any(one.region for one in found)
        assert [(x, y) for y, x, _ in log] == [one.xy for one in found]
        for one in found:
            assert one.nothing == pytest.approx(0.8)
            for truth in truths[one.row.image]:
                scale = (64 if one.row.image == "b.png" else 32) // SIDE
                assert not truth[one.xy[1] // scale, one.xy[0] // scale]
    assert runs[0] == runs[1] and len({xy for _, _, xy in runs[0]}) > 3


def test_figures_are_means_over_pairs_and_gains_are_paired() -> None:
    def one(target: str, mask: str, first: float, third: float, nothing: float = -0.5) -> Interaction:
        dice = {"click_1": first, "click_2": first, "click_3": third, "box": 1.0}
        seconds = {"click_1": 0.2, "click_2": 0.12, "click_3": 0.1, "box": 0.1}
        return Interaction(row=row(target=target, mask=mask, patient=mask), dice=dice, nothing=nothing, seconds=seconds)

    some = [one("polyp", "1", 0.8, 0.9), one("polyp", "2", 0.6, 0.7), one("lesion", "3", 0.2, 0.6, nothing=0.3)]
    clicks = [
        Background(row=row(image=str(n)), seed=0, xy=(0, 0), region=n == 0, nothing=0.0 if n == 0 else 0.6)
        for n in range(4)
    ]
    report = summarise(
        some, clicks, text={"1": 0.5, "3": 0.4}, training_rows=[], rule=Rule(), bootstrap=Bootstrap(replicates=50)
    )
    assert report["click_1"]["value"] == pytest.approx((0.7 + 0.2) / 2)
    assert report["click_3"]["value"] == pytest.approx((0.8 + 0.6) / 2)
    assert report["gain_of_click_3"]["value"] == pytest.approx((0.1 + 0.4) / 2)
    assert report["text"]["value"] == pytest.approx(0.45) and report["text"]["count"] == 2
    assert report["gain_of_click_1"]["value"] == pytest.approx((0.3 - 0.2) / 2), "only where text was measured"
    assert report["background_no_region"]["value"] == pytest.approx(0.75)
    assert report["background"] == [{"dataset": "scopes", "images": 4, "n": 4, "no_region": 0.75}]
    at = {entry["margin"]: entry for entry in report["decision"]}
    assert at[0.2]["structures_refused"] == pytest.approx(1 / 3, abs=1e-3)
    assert at[0.2]["background_refused"] == 0.75 and at[0.0]["background_refused"] == 1.0
    assert report["seconds"]["median"]["click_2"] == 0.12
    assert report["seconds"]["click_2_by_click_3"] == pytest.approx(1.2)
    rule = Rule(min_training_masks=1)
    trained = [row(split="train", target="polyp")]
    counted = summarise(some, [], text={}, training_rows=trained, rule=rule, bootstrap=Bootstrap(replicates=50))
    assert counted["click_1"]["value"] == pytest.approx(0.7) and counted["text"]["value"] is None
    assert [pair["counted"] for pair in counted["pairs"]] == [False, True]


def test_the_command_measures_a_real_model(images: Path, tmp_path: Path) -> None:
    model = save_tiny(tmp_path / "tiny")
    arguments = ["--manifest", str(images / "manifest.jsonl"), "--root", str(images), "--model", str(model)]
    arguments += ["--no-text", "--out", str(tmp_path / "out"), "--device", "cpu", "--min-train", "0"]
    result = CliRunner().invoke(app, ["eval", "interactive", *arguments, "--json"])
    assert result.exit_code == 0, result.output
    figures = json.loads(result.stdout)
    assert figures == json.loads((tmp_path / "out" / "interactive.json").read_text(encoding="utf-8"))
    assert figures["click_1"]["count"] == 4 and figures["text"]["value"] is None
    assert figures["background_no_region"]["count"] == 6
    with open(tmp_path / "out" / "clicks.csv", encoding="utf-8") as file:
        assert [line["target"] for line in csv.DictReader(file)] == ["polyp", "lesion", "tumor", "polyp"]
    assert "one click" in (tmp_path / "out" / "interactive.md").read_text(encoding="utf-8")
    again = CliRunner().invoke(app, ["eval", "interactive", *arguments, "--json"])
    fields = ("click_1", "click_2", "click_3", "box", "background_no_region", "pairs", "decision")
    assert {name: json.loads(again.stdout)[name] for name in fields} == {name: figures[name] for name in fields}


def test_an_empty_split_is_refused(images: Path) -> None:
    result = CliRunner().invoke(
        app,
        ["eval", "interactive", "--manifest", str(images / "manifest.jsonl"), "--root", str(images), "--split", "x"],
    )
    assert result.exit_code == 2 and "has no masks of split 'x'" in result.output

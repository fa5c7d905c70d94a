"""The benchmarks of the large model: what they count is right, and what they measure runs, at a tiny size."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from medsight_core.model import MedSightConfig

REPOSITORY = Path(__file__).resolve().parents[2]
MARK = "<!-- full size: written by benchmarks/full_size.py -->"


def load_benchmark(name: str) -> ModuleType:
    """A benchmark as a module; they are programs and no package."""
    spec = importlib.util.spec_from_file_location(f"benchmark_{name}", REPOSITORY / "benchmarks" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_operations_of_decoding_codes() -> None:
    """At full size, on the meta device: one pass for all codes, less what the first pass has done already."""
    dim, grid, codes = 1024, 24, 4
    counted = load_benchmark("perceiver").sums(MedSightConfig(), dim=dim, grid=grid, codes=codes)
    assert counted["codes_from_start"] == counted["codes_in_full"] - counted["start"]
    fine = (2 * grid) ** 2
    # The convolution, what pixels ask and offer, and keys and values of the coarse grid; two operations each.
    assert counted["start"] == 2 * (fine * dim * (9 * dim + 1024 + 512) + grid**2 * dim * 1024)
    assert counted["code_in_full"] > 0.99 * counted["codes_in_full"], "what costs is the pixels, not the codes"
    naive = codes * (counted["vision"] + counted["first"] + counted["code_in_full"])
    ours = counted["vision"] + counted["first"] + counted["codes_from_start"]
    assert naive / ours > codes


def test_masks_of_all_ways_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    benchmark = load_benchmark("perceiver")
    monkeypatch.setattr("medsight_core.model.perceiver.PIECE", 4096)
    sizes = {"dim": 32, "grid": 6, "codes": 1, "repeats": 1}
    pieces, whole, naive = (benchmark.measure(way, **sizes) for way in benchmark.WAYS)
    assert pieces["masks"] == pytest.approx(whole["masks"], abs=2e-6)
    assert pieces["masks"] == pytest.approx(naive["masks"], abs=2e-6)
    assert pieces["first_peak"] >= 0 and pieces["first"] > 0


def test_the_full_size_benchmark_at_a_tiny_size(tmp_path: Path) -> None:
    """As a program: it saves a checkpoint, opens it, measures it, and puts the table into the page of the figures."""
    page = tmp_path / "performance.md"
    before = (REPOSITORY / "docs" / "performance.md").read_text(encoding="utf-8")
    page.write_text(before, encoding="utf-8")
    options = ["--tiny", "--precisions", "fp32", "--tokens", "6", "--repeats", "1", "--codes", "2"]
    command = [sys.executable, str(REPOSITORY / "benchmarks" / "full_size.py"), *options]
    command += ["--scratch", str(tmp_path), "--json", str(tmp_path / "out.json"), "--write", str(page)]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "CUDA_VISIBLE_DEVICES": ""}
    ran = subprocess.run(command, capture_output=True, text=True, timeout=200, env=environment, check=False)
    assert ran.returncode == 0, ran.stderr
    figures = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))["measured"]["fp32"]
    assert figures.pop("same_as_generate") and figures.pop("fixed_same")
    assert {"load", "first_token", "plain", "fixed", "generate", "masks"} <= set(figures)
    assert all(value > 0 for value in figures.values())
    head, table = page.read_text(encoding="utf-8").split(MARK)
    assert head == before.split(MARK)[0] and "<!-- full size: end -->" in table
    assert table.count("| tokens/s, plain loop |") == 1 and "CPU" in table
    assert sorted(file.name for file in tmp_path.iterdir()) == ["out.json", "performance.md"], "the checkpoint is gone"

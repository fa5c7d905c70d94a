"""What it costs to decode region codes with the region perceiver, at the size of the released weights.

    python benchmarks/perceiver.py [--dim 1024] [--grid 24] [--codes 4] [--repeats 1] [--threads 2] [--json FILE]

Sums are counted on the meta device, without computing anything. Processor time and memory are measured with random
weights in fp32 on the CPU, each way in a process of its own, whose peak memory is asked of the system and starts from
where the features of the image lie ready. "whole" is the same code with everything that goes over pixels done in one
piece.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import torch
from torch.utils.flop_counter import FlopCounterMode

import medsight_core.model.perceiver as perceiver_module
from medsight_core.model import MedSightConfig
from medsight_core.model.perceiver import RegionPerceiver
from medsight_core.model.vision import VisionEncoder

WAYS: Final = ("pieces", "whole", "naive")
"""Ours; ours without pieces; and every code for itself from the patch features on, in one piece."""


def build(config: MedSightConfig, dim: int) -> RegionPerceiver:
    """The perceiver of a configuration, at another width if so wanted."""
    return RegionPerceiver(
        dim=dim,
        num_queries=config.num_region_queries,
        num_stages=config.perceiver_stages,
        num_classes=config.num_classes,
        heads=config.perceiver_heads,
        head_dim=config.perceiver_head_dim,
        ff_mult=config.perceiver_ff_mult,
    ).eval()


def count(work: Callable[[], object]) -> int:
    """Floating-point operations of matrix products, convolutions and attention."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        work()
    return int(counter.get_total_flops())


def sums(config: MedSightConfig, *, dim: int, grid: int, codes: int) -> dict[str, int]:
    """Operations of each part, for one image and all its codes."""
    with torch.device("meta"):
        vision = VisionEncoder(config).eval().requires_grad_(False)
        perceiver = build(config, dim).requires_grad_(False)
        side = config.vision_config.image_size
        pixels, features = torch.zeros(1, 3, side, side), torch.zeros(1, grid, grid, dim)
        many, one = torch.zeros(1, codes, dim), torch.zeros(1, 1, dim)
        with torch.no_grad():
            start = perceiver.start(features)
        return {
            "vision": count(lambda: vision(pixels)),
            "start": count(lambda: perceiver.start(features)),
            "first": count(lambda: perceiver(features)),
            "codes_from_start": count(lambda: perceiver(start, many)),
            "codes_in_full": count(lambda: perceiver(features, many)),
            "code_in_full": count(lambda: perceiver(features, one)),
        }


def peak() -> int:
    """Largest resident set of this process since `reset_peak`, in bytes."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def reset_peak() -> int:
    """Begins to look for the peak anew; gives what is resident now."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    return peak()


def measure(way: str, *, dim: int, grid: int, codes: int, repeats: int) -> dict[str, Any]:
    """Processor seconds and bytes of one way: the pass with the learned queries, then all codes."""
    if way != "pieces":
        perceiver_module.PIECE = 1 << 60  # type: ignore[misc]
    torch.manual_seed(0)
    perceiver = build(MedSightConfig(), dim)
    features, queries = torch.randn(1, grid, grid, dim), torch.randn(1, codes, dim)
    seconds: dict[str, list[float]] = {"first": [], "codes": []}
    most = {"first": 0, "codes": 0}
    masks = None

    def timed(name: str, work: Callable[[], Any]) -> Any:
        before, begun = reset_peak(), time.process_time()
        made = work()
        seconds[name].append(time.process_time() - begun)
        most[name] = max(most[name], peak() - before)
        return made

    with torch.inference_mode():
        perceiver(features[:, : grid // 3, : grid // 3])  # what is set up once should not count
        for _ in range(repeats):
            start = features if way == "naive" else timed("first", lambda: perceiver.start(features))
            timed("first", lambda start=start: perceiver(start).mask_logits)
            if way == "naive":
                masks = timed("codes", lambda: [perceiver(features, q[:, None]).mask_logits for q in queries.unbind(1)])
            else:
                masks = timed("codes", lambda start=start: [perceiver(start, queries).mask_logits])
            del start
    assert masks is not None
    first = sum(seconds["first"]) / repeats
    return {
        "first": first,
        "codes": statistics.median(seconds["codes"]),
        "first_peak": most["first"],
        "codes_peak": most["codes"],
        "masks": [round(float(mask.double().abs().mean()), 6) for mask in masks],
        "parameters": sum(p.numel() for p in perceiver.parameters()),
    }


def in_a_process(way: str, given: argparse.Namespace) -> dict[str, Any]:
    """`measure` where nothing else has left memory behind."""
    command = [sys.executable, __file__, "--only", way]
    for name in ("dim", "grid", "codes", "repeats", "threads"):
        command += [f"--{name}", str(getattr(given, name))]
    made = subprocess.run(command, check=True, capture_output=True, text=True)
    measured: dict[str, Any] = json.loads(made.stdout)
    return measured


def report(counted: dict[str, int], measured: dict[str, dict[str, Any]], given: argparse.Namespace) -> str:
    """The figures as Markdown."""
    k, side = given.codes, given.grid * 2 ** MedSightConfig().perceiver_stages
    ours = counted["vision"] + counted["first"] + counted["codes_from_start"]
    twice = counted["vision"] + counted["first"] + counted["codes_in_full"]
    naive = k * (counted["vision"] + counted["first"] + counted["code_in_full"])
    lines = [
        f"One image, {k} codes, {side} x {side} x {given.dim} features, "
        f"{measured['pieces']['parameters']:,} parameters.",
        "",
        "| operations | GFLOP | ÷ ours |",
        "|---|---|---|",
    ]
    parts = {
        "image encoder": counted["vision"],
        "pass with the learned queries": counted["first"],
        "of which the start, kept for the codes": counted["start"],
        f"pass with {k} codes from that start": counted["codes_from_start"],
    }
    lines += [f"| {name} | {value / 1e9:,.0f} | |" for name, value in parts.items()]
    wholes = {
        "image and codes, ours": ours,
        "image and codes, two full passes": twice,
        "image and codes, everything again for each code": naive,
    }
    lines += [f"| {name} | {value / 1e9:,.0f} | {value / ours:.2f} |" for name, value in wholes.items()]
    lines += ["", "| way | learned queries, CPU s | codes, CPU s | peak, learned queries, MiB | peak, codes, MiB |"]
    lines += ["|---|---|---|---|---|"]
    for way, m in measured.items():
        peaks = (m["first_peak"] / 2**20, m["codes_peak"] / 2**20)
        lines.append(f"| {way} | {m['first']:.2f} | {m['codes']:.2f} | {peaks[0]:,.0f} | {peaks[1]:,.0f} |")
    return "\n".join(lines)


def main() -> None:
    """Counts, measures, prints the tables, writes JSON where asked."""
    parser = argparse.ArgumentParser(description="What decoding codes with the region perceiver costs.")
    parser.add_argument("--dim", type=int, default=1024, help="width of queries and pixels")
    parser.add_argument("--grid", type=int, default=24, help="patches along a side")
    parser.add_argument("--codes", type=int, default=4, help="codes of the answer")
    parser.add_argument("--repeats", type=int, default=1, help="of every measurement")
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1), help="for torch")
    parser.add_argument("--json", type=Path, help="write the figures here as well")
    parser.add_argument("--only", choices=WAYS, help=argparse.SUPPRESS)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    sizes = {"dim": given.dim, "grid": given.grid, "codes": given.codes}
    if given.only:
        print(json.dumps(measure(given.only, **sizes, repeats=given.repeats)))
        return
    counted = sums(MedSightConfig(), **sizes)
    measured = {way: in_a_process(way, given) for way in WAYS}
    machine = {
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
        "threads": given.threads,
        "torch": torch.__version__,
    }
    print(", ".join(f"{name} {value}" for name, value in machine.items()))
    print(report(counted, measured, given))
    if given.json is not None:
        content = {"machine": machine, "operations": counted, "measured": measured}
        given.json.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

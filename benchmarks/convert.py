"""`medsight convert` on a synthetic release of some gigabytes: how much memory it takes at most, and how long.

    python benchmarks/convert.py [--gigabytes 3] [--dtype float32] [--scratch DIR] [--json FILE]

The image encoder and the perceiver have the release's own size; the language model has the layers that make up the
rest. Writing the release and converting it are processes of their own, and the second tells the most memory that it
ever had. Beside it stands the time that a plain copy of the same files takes.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Final

REPOSITORY: Final = Path(__file__).resolve().parents[1]
GOAL: Final = 1.5
"""Peak memory by the largest weight file of the release."""

WRITE: Final = """
import sys
from pathlib import Path
from tests.convert.release import Sizes, write_release
layers, shards = int(sys.argv[2]), int(sys.argv[3])
large = Sizes(
    hidden=2048, wide=8192, layers=layers, heads=16, key_heads=8, head=128, text=300, padding=20_000,
    vision=1024, vision_wide=4096, vision_layers=24, image=336, patch=14, projected=768,
    inner=512, region_wide=4096, queries=20, classes=17, groups=18, codes=32, code=64,
)
write_release(Path(sys.argv[1]), large, shards=shards)
"""
CONVERT: Final = """
import re, sys
from pathlib import Path
import typer
from medsight_core.cli.group import CommandGroup
from medsight_core.convert.cli import app as ours
app = typer.Typer(cls=CommandGroup)
app.registered_commands += ours.registered_commands
app.callback()(lambda: None)
try:
    app()
finally:
    print(re.search(r"VmHWM:.*", Path("/proc/self/status").read_text())[0], file=sys.stderr)
"""
LAYER: Final = 4 * (2048 * 2048 * 2 + 2048 * 1024 * 2 + 3 * 2048 * 8192)
"""Bytes of a layer of the language model."""

REST: Final = 4 * (304_293_888 + 102_895_634 + 2 * 20_876 * 2048)
"""Bytes of everything else."""


def main() -> None:
    """Measures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=3.0, help="of the release, at least 2.3")
    parser.add_argument("--shard-gigabytes", type=float, default=1.0, help="of a file of its language model")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="to store")
    parser.add_argument("--scratch", type=Path, help="where to; twice the gigabytes have to fit")
    parser.add_argument("--json", type=Path, help="write the figures here as well")
    given = parser.parse_args()
    layers = max(2, round((given.gigabytes * 1e9 - REST) / LAYER))
    shards = max(1, round(layers * LAYER / (given.shard_gigabytes * 1e9)))
    with tempfile.TemporaryDirectory(dir=given.scratch) as scratch:
        release = Path(scratch) / "release"
        run(WRITE, str(release), str(layers), str(shards))
        figures = measure(release, Path(scratch), given.dtype)
    figures |= {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count(), "dtype": given.dtype}
    for name, value in figures.items():
        print(f"{name:32} {value}")
    if given.json:
        given.json.write_text(json.dumps(figures, indent=1) + "\n")
    if figures["peak / largest file"] > GOAL:
        sys.exit(f"peak memory is {figures['peak / largest file']} of the largest file, the goal is {GOAL}")


def measure(release: Path, scratch: Path, dtype: str) -> dict[str, Any]:
    """Converts, and copies."""
    files = [file for file in release.rglob("*") if file.suffix in (".safetensors", ".pt", ".bin")]
    sizes = {file: file.stat().st_size for file in files}
    shards = [size for file, size in sizes.items() if file.suffix == ".safetensors"]
    start = time.perf_counter()
    said = run(CONVERT, "convert", str(release), str(scratch / "model"), "--dtype", dtype, "-q")
    seconds = time.perf_counter() - start
    peak = int(re.findall(r"VmHWM:\s+(\d+) kB", said)[-1]) * 1024
    made = sum(file.stat().st_size for file in (scratch / "model").glob("*.safetensors"))
    shutil.rmtree(scratch / "model")
    start = time.perf_counter()
    for number, file in enumerate(files):
        shutil.copyfile(file, scratch / f"{number}.copy")
        with (scratch / f"{number}.copy").open("rb") as copied:
            os.fsync(copied.fileno())
    copying = time.perf_counter() - start
    return {
        "release, GB": round(sum(sizes.values()) / 1e9, 2),
        "largest file, GB": round(max(sizes.values()) / 1e9, 2),
        "largest language shard, GB": round(max(shards) / 1e9, 2),
        "result, GB": round(made / 1e9, 2),
        "peak memory, GB": round(peak / 1e9, 2),
        "peak / largest file": round(peak / max(sizes.values()), 2),
        "peak / largest language shard": round(peak / max(shards), 2),
        "seconds": round(seconds, 1),
        "seconds / copying the files": round(seconds / copying, 2),
    }


def run(program: str, *arguments: str) -> str:
    """Runs a program in a process of its own; gives what it said on stderr."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join((str(REPOSITORY), os.environ.get("PYTHONPATH", "")))}
    command = [sys.executable, "-c", program, *arguments]
    done = subprocess.run(command, env=environment, text=True, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL)
    if done.returncode:
        sys.exit(done.stderr)
    return done.stderr


if __name__ == "__main__":
    main()

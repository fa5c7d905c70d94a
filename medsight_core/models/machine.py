"""What this machine has: memory, GPUs, room on its disks. Asked of the system, so that it is known before torch is."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Final

SECONDS: Final = 20.0
"""That the driver may take to answer; it wakes sleeping GPUs first."""

_QUERY: Final = "index,name,memory.total,memory.free,compute_cap"


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """An NVIDIA GPU.

    Attributes:
        index: As CUDA counts them.
        name: What it calls itself.
        bytes: Its memory.
        free: Of that, what nobody uses now.
        capability: What it can compute, such as (9, 0); None where the driver is too old to say.
    """

    index: int
    name: str
    bytes: int
    free: int
    capability: tuple[int, int] | None = None

    @property
    def bfloat16(self) -> bool:
        """Whether it computes in bfloat16 as fast as it should: from Ampere on."""
        return self.capability is None or self.capability >= (8, 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """What there is.

    Attributes:
        memory: Bytes that this process may have at most.
        free: Bytes of it that are free now.
        gpus: Those of NVIDIA, in order.
        torch: Its version; None where it is not installed.
        quantises: Whether what 8 and 4 bits need is installed.
        offloads: Whether what spreads a model over several devices is installed.
    """

    memory: int
    free: int
    gpus: tuple[Gpu, ...] = ()
    torch: str | None = None
    quantises: bool = False
    offloads: bool = False

    @property
    def blind(self) -> bool:
        """Whether there are GPUs that the installed torch cannot use."""
        return bool(self.gpus) and self.torch is not None and "+cpu" in self.torch


def this_machine() -> Machine:
    """Looks at the machine; takes no longer than the driver does."""
    memory, free = _memory()
    try:
        torch = version("torch")
    except PackageNotFoundError:
        torch = None
    return Machine(
        memory=memory,
        free=free,
        gpus=_gpus(),
        torch=torch,
        quantises=find_spec("bitsandbytes") is not None,
        offloads=find_spec("accelerate") is not None,
    )


def free_bytes(folder: Path) -> int:
    """Room on the disk of a folder that may not exist yet."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return shutil.disk_usage(folder).free


def parse_gpus(text: str) -> tuple[Gpu, ...]:
    """The GPUs of what ``nvidia-smi --query-gpu --format=csv,noheader,nounits`` says; other lines are left out."""
    found = []
    for line in text.splitlines():
        fields = [field.strip() for field in line.split(",")]
        if len(fields) < 4 or not (fields[0].isdecimal() and fields[2].isdecimal() and fields[3].isdecimal()):
            continue
        major, dot, minor = (fields[4] if len(fields) > 4 else "").partition(".")
        found.append(
            Gpu(
                index=int(fields[0]),
                name=fields[1],
                bytes=int(fields[2]) * 2**20,
                free=int(fields[3]) * 2**20,
                capability=(int(major), int(minor)) if dot and major.isdecimal() and minor.isdecimal() else None,
            )
        )
    return tuple(found)


def _gpus() -> tuple[Gpu, ...]:
    if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return ()
    for query in (_QUERY, _QUERY.removesuffix(",compute_cap")):  # which old drivers do not know
        try:
            told = subprocess.run(
                ["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader,nounits"],
                capture_output=True,
                text=True,
                timeout=SECONDS,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired):
            return ()
        if told.returncode == 0:
            return _visible(parse_gpus(told.stdout))
    return ()


def _visible(gpus: tuple[Gpu, ...]) -> tuple[Gpu, ...]:
    """Those that ``CUDA_VISIBLE_DEVICES`` leaves, where it names them by number."""
    named = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    if not named or not all(name.isdecimal() for name in named):
        return gpus
    return tuple(gpu for name in named for gpu in gpus if gpu.index == int(name))


def _memory() -> tuple[int, int]:
    """Bytes in all and free now, no more than a container is allowed."""
    total, free = _of_system()
    limit = _limit()
    if limit is None or limit[0] >= total:
        return total, free
    return limit[0], min(free, limit[0] - limit[1])


def _of_system() -> tuple[int, int]:
    if Path("/proc/meminfo").exists():
        told = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines())
        total, free = (int(told[name].split()[0]) * 1024 for name in ("MemTotal", "MemAvailable"))
        return total, free
    if os.name == "nt":
        return _of_windows()
    # What is free is not told in one number elsewhere; programs and files that can be thrown out fill the rest.
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return total, total * 3 // 4


def _of_windows() -> tuple[int, int]:
    import ctypes

    class Status(ctypes.Structure):
        _fields_ = [("length", ctypes.c_ulong), ("load", ctypes.c_ulong)] + [
            (name, ctypes.c_ulonglong) for name in ("total", "free", "b", "c", "d", "e", "f")
        ]

    status = Status()
    status.length = ctypes.sizeof(Status)
    getattr(ctypes, "windll").kernel32.GlobalMemoryStatusEx(ctypes.byref(status))  # noqa: B009
    return int(status.total), int(status.free)


def _limit(root: Path = Path("/sys/fs/cgroup")) -> tuple[int, int] | None:
    """What a container is allowed, and what of it is used, without files that can be thrown out; None without one."""
    for limit, used, stat in (
        ("memory.max", "memory.current", "memory.stat"),  # version 2
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat"),  # version 1
    ):
        try:
            said = (root / limit).read_text(encoding="ascii").strip()
            if not said.isdecimal():
                return None
            told = dict(line.split() for line in (root / stat).read_text(encoding="ascii").splitlines())
            files = int(told.get("inactive_file", told.get("total_inactive_file", 0)))
            return int(said), max(0, int((root / used).read_text(encoding="ascii")) - files)
        except (OSError, ValueError):
            continue
    return None

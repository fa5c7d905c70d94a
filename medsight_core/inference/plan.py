"""What a question about a volume will cost, said before any work starts, and refused where it cannot be done.

Seconds come from slices that were timed on this machine; bytes from the size of what has to be held. What does not fit
is looked at a second time instead, and only where even the masks do not fit there is no way but a smaller range.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from medsight_core.errors import InputError
from medsight_core.imaging.planes import Plane, Reformatted

EXPECTED_LABELS: Final = 4
"""Structures that an answer about a volume is reckoned to draw."""

JOINING_BYTES: Final = 10
"""Per voxel, while the parts of a structure are joined: a label map of 32 bits and several masks."""

COARSE: Final = 10
"""Voxels longer by this factor in one direction than in another are worth a word."""

SPARE: Final = 0.9
"""So much of the free memory a plan may use."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """What one slice costs on this machine.

    Attributes:
        look: Seconds to encode and perceive it.
        read: Seconds until the language model has written an answer of usual length about it.
        draw: Seconds to draw one structure on it.
        kept: Bytes that are kept of it.
    """

    look: float
    read: float
    draw: float
    kept: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What will be done about a question on a volume.

    Attributes:
        plane: As it was asked for.
        words: What its slices are called; "" where that is not known.
        slices: Those of the plane that are looked at, from 0.
        total: How many slices the plane has.
        read: How many of them the language model reads.
        new: How many of them were not looked at before.
        kept: Of how many the features fit in memory; the others are looked at again when masks are drawn.
        budget: Bytes of these features.
        exact: The language model reads every slice.
        seconds: Time it will take.
        bytes: Memory it will take, beside the scan and the model.
        warnings: What should be known before it is done.
    """

    plane: Plane
    words: str
    slices: range
    total: int
    read: int
    new: int
    kept: int
    budget: int
    exact: bool
    seconds: float
    bytes: int
    warnings: tuple[str, ...] = ()

    @property
    def looks(self) -> int:
        """Passes of encoder and perceiver."""
        return self.new + (0 if self.exact else len(self.slices) - self.kept)

    @property
    def sentence(self) -> str:
        """The plan as a person reads it."""
        count = len(self.slices)
        kind = f"{self.words} slice" if self.words else "slice"
        which = f"{kind} {self.slices[0]}" if count == 1 else f"{count} {kind}s ({self.slices[0]} to {self.slices[-1]})"
        twice = 0 if self.exact else count - self.kept
        again = f", {twice} of them twice to save memory," if twice else ""
        if self.new < count:
            again += f", {count - self.new} of them seen before,"
        read = "all of them" if self.read == count else str(self.read or "none of them")
        size = f"{self.bytes / 1e9:.1f} GB" if self.bytes >= 1e8 else f"{max(1, round(self.bytes / 1e6))} MB"
        return f"Looks at {which}{again} and reads {read}: {duration(self.seconds)} and {size} of memory."

    def to_json(self) -> dict[str, Any]:
        """Ready for ``json.dumps``."""
        return {
            "plane": self.plane,
            "slices": [self.slices.start, self.slices.stop],
            "looked_at": self.looks,
            "read": self.read,
            "exact": self.exact,
            "estimated_seconds": round(self.seconds, 1),
            "estimated_bytes": self.bytes,
        }


def duration(seconds: float) -> str:
    """A length of time in words."""
    if seconds < 90:
        return f"about {max(1, round(seconds))} s"
    return f"about {round(seconds / 60)} min" if seconds < 5400 else f"about {seconds / 3600:.1f} h"


def make_plan(
    cut: Reformatted, slices: range, *, pace: Pace, new: int, read: int, exact: bool, budget: int, free: int | None
) -> Plan:
    """Reckons what looking at slices will cost.

    Args:
        cut: The volume in the plane that was asked for.
        slices: A sound range of it.
        pace: Of this machine.
        new: How many of the slices were not looked at before.
        read: How many slices are read at most, without ``exact``.
        exact: Read every slice.
        budget: Bytes that features may take.
        free: Bytes of memory that there are; None where that is not known.

    Raises:
        InputError: not_enough_memory.
    """
    count = len(slices)
    in_plane = cut.volume.array.shape[1] * cut.volume.array.shape[2]
    turned = 1 if cut.arrangement is None else 2
    masks = EXPECTED_LABELS * turned * cut.volume.n_slices * in_plane + JOINING_BYTES * count * in_plane
    allowed = None if free is None else int(SPARE * free)
    room = budget if allowed is None else min(budget, allowed - masks)
    kept = 0 if exact else max(0, min(count, room // max(1, pace.kept)))
    needed = masks + (kept + 1) * pace.kept
    if allowed is not None and needed > allowed:
        fitting = max(0, int(count * allowed / needed))
        raise InputError(
            "not_enough_memory",
            f"{count} slices of {cut.volume.array.shape[1]} x {cut.volume.array.shape[2]} pixels need about "
            f"{needed / 1e9:.1f} GB of memory; {allowed / 1e9:.1f} GB are free for them.",
            f"Ask about fewer slices at a time, about {fitting}, with --slices." if fitting else "Free some memory.",
        )
    reads = count if exact else min(read, count)
    looks = new + (0 if exact else count - kept)
    seconds = looks * pace.look + reads * pace.read + EXPECTED_LABELS * count * pace.draw
    return Plan(
        plane=cut.plane,
        words=cut.words,
        slices=slices,
        total=cut.volume.n_slices,
        read=reads,
        new=new,
        kept=kept,
        budget=kept * pace.kept,
        exact=exact,
        seconds=seconds,
        bytes=needed,
        warnings=tuple(coarse(cut)),
    )


def coarse(cut: Reformatted) -> Iterator[str]:
    """A sentence where the voxels of a volume are long and thin, and what to do about it."""
    frame = cut.volume.require_frame()
    apart, high, wide = (float(size) for size in frame.spacing)
    if not frame.physical or cut.volume.n_slices == 1 or max(apart, high, wide) < COARSE * min(apart, high, wide):
        return
    ratio = f"1:{max(apart, high, wide) / min(apart, high, wide):.0f}"
    if apart >= max(high, wide):
        yield (
            f"The slices lie {apart:.3g} mm apart and their pixels {min(high, wide):.3g} mm ({ratio}), so what is "
            "joined from slice to slice is coarse; take a series of thinner slices where there is one."
        )
        return
    kind = f"{cut.words} slices".lstrip()
    yield (
        f"The {kind} have pixels of {high:.3g} x {wide:.3g} mm and lie {apart:.3g} mm apart ({ratio}), so little can "
        "be seen on them; ask about the slices that were acquired."
    )


def free_memory() -> int | None:
    """Bytes that this process may still take; None where the system does not say."""
    found = [value for value in (_of_machine(), _of_group(), _of_process()) if value is not None]
    return max(0, min(found)) if found else None


def _of_machine() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), None)
    except (OSError, ValueError, IndexError):
        pass
    try:
        return int(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    except (AttributeError, ValueError, OSError):
        return None


def _of_group() -> int | None:
    """Within the limit of a container (cgroup v2)."""
    folder = Path("/sys/fs/cgroup")
    try:
        limit = (folder / "memory.max").read_text(encoding="ascii").strip()
        return None if limit == "max" else int(limit) - int((folder / "memory.current").read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None


def _of_process() -> int | None:
    """Within the limit that was set for this process (``ulimit -v``)."""
    try:
        import resource  # not on Windows

        limit, _ = resource.getrlimit(resource.RLIMIT_AS)
        if limit == resource.RLIM_INFINITY:
            return None
        used = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * resource.getpagesize()
    except (ImportError, OSError, ValueError, IndexError):
        return None
    return limit - used

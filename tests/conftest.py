"""What all tests share: the data pack beside the checkout, and the count of what was skipped."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import hypothesis
import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
SHARED = REPOSITORY.parent / "shared"

# The same examples every time, so that whoever changes something sees what that change does; HYPOTHESIS_PROFILE=random
# draws new ones, which is how to look for what nobody thought of.
hypothesis.settings.register_profile("same", derandomize=True)
hypothesis.settings.register_profile("random", derandomize=False, print_blob=True)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "same"))


def _folder_or_skip(folder: Path) -> Path:
    if not folder.is_dir():
        pytest.skip(f"the data pack is not beside the checkout (../{folder.relative_to(REPOSITORY.parent)} is absent)")
    return folder


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the checkout."""
    return REPOSITORY


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real images beside the checkout (``../shared/data``); the test is skipped where they are absent."""
    return _folder_or_skip(SHARED / "data")


@pytest.fixture(scope="session")
def shared_parity() -> Path:
    """Reference tensors beside the checkout (``../shared/parity``); the test is skipped where they are absent."""
    return _folder_or_skip(SHARED / "parity")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Says how many tests were skipped and why: a suite that skips quietly proves less than it seems to."""
    reasons: Counter[str] = Counter()
    for report in terminalreporter.stats.get("skipped", []):
        place = report.longrepr
        text = place[2] if isinstance(place, tuple) else str(place)
        reasons[text.removeprefix("Skipped: ")] += 1
    terminalreporter.section("skipped tests")
    terminalreporter.write_line(f"{reasons.total()} skipped")
    for reason, count in reasons.most_common():
        terminalreporter.write_line(f"{count:5d}  {reason}")

"""What the comparisons share: one thread, exact attention, and a figure for every tensor compared."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from tests.parity.reference import TOLERANCE

Compare = Callable[[str, Tensor, Tensor], None]


@pytest.fixture(autouse=True)
def exact() -> Iterator[None]:
    """Plain matrix products for attention: a fused kernel adds up in another order, which large logits show."""
    torch.set_num_threads(1)
    with sdpa_kernel(SDPBackend.MATH):
        yield


@pytest.fixture
def compare(record_property: Callable[[str, object], None]) -> Compare:
    """Asserts that two tensors are equal within the tolerance, and records by how much they differ."""

    def check(name: str, ours: Tensor, theirs: Tensor) -> None:
        assert ours.shape == theirs.shape, f"{name} is {tuple(ours.shape)}, reference {tuple(theirs.shape)}"
        assert theirs.isfinite().all() and theirs.abs().max() > 0, f"{name}: the reference says nothing"
        difference = float((ours.detach().float() - theirs.float()).abs().max())
        record_property(name, difference)
        assert difference <= TOLERANCE, f"{name} differs by {difference:.2e}"

    return check


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """The largest difference of every test that compared something."""
    reports = [*terminalreporter.stats.get("passed", []), *terminalreporter.stats.get("failed", [])]
    rows = [
        (report.nodeid.split("/")[-1], *max(figures, key=lambda pair: pair[1]))
        for report in reports
        if (figures := [(n, v) for n, v in report.user_properties if isinstance(v, float)])
        and "parity" in report.nodeid
    ]
    if rows:
        terminalreporter.section("largest differences from the released model")
        for test, name, value in rows:
            terminalreporter.write_line(f"{value:.1e}  {test}  ({name})")

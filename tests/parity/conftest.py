"""What the comparisons share: one thread, exact attention, and a figure for every tensor compared."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from tests.parity.reference import TOLERANCE

Compare = Callable[[str, Tensor, Tensor], None]
CompareHalf = Callable[..., None]

FIGURE = "{fixture}, {dtype}: {name}"
"""How a recorded difference is called."""


@pytest.fixture(autouse=True)
def exact() -> Iterator[None]:
    """Plain matrix products for attention: a fused kernel adds up in another order, which large logits show."""
    torch.set_num_threads(1)
    with sdpa_kernel(SDPBackend.MATH):
        yield


@pytest.fixture
def record(request: pytest.FixtureRequest) -> Callable[[str, str, float], None]:
    """Notes by how much something of a recorded run differs."""
    case = getattr(request.node, "callspec", None)
    fixture = (case.params.get("name") if case is not None else None) or request.module.FIXTURE

    def note(name: str, dtype: str, difference: float) -> None:
        request.node.user_properties.append((FIGURE.format(fixture=fixture, dtype=dtype, name=name), difference))

    return note


@pytest.fixture
def compare(record: Callable[[str, str, float], None]) -> Compare:
    """Asserts that two tensors are equal within the tolerance, and records by how much they differ."""

    def check(name: str, ours: Tensor, theirs: Tensor) -> None:
        _comparable(name, ours, theirs)
        difference = float((ours.detach().float() - theirs.float()).abs().max())
        record(name, "fp32", difference)
        assert difference <= TOLERANCE, f"{name} differs by {difference:.2e}"

    return check


@pytest.fixture
def compare_half(record: Callable[[str, str, float], None]) -> CompareHalf:
    """The same in half precision: the root mean square of the differences, relative to the reference's."""

    def check(name: str, ours: Tensor, theirs: Tensor, *, bound: float) -> None:
        _comparable(name, ours, theirs)
        theirs = theirs.float()
        difference = float((ours.float() - theirs).square().mean().sqrt() / theirs.square().mean().sqrt())
        record(name, str(ours.dtype).removeprefix("torch."), difference)
        assert difference <= bound, f"{name} differs by {difference:.2%} of its size, more than {bound:.0%}"

    return check


def _comparable(name: str, ours: Tensor, theirs: Tensor) -> None:
    assert ours.shape == theirs.shape, f"{name} is {tuple(ours.shape)}, reference {tuple(theirs.shape)}"
    assert theirs.isfinite().all() and theirs.abs().max() > 0, f"{name}: the reference says nothing"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """The largest difference of every recorded run, in each precision."""
    largest: dict[str, tuple[float, str]] = {}
    for report in (*terminalreporter.stats.get("passed", []), *terminalreporter.stats.get("failed", [])):
        for figure, value in report.user_properties:
            run, colon, name = figure.partition(": ")
            if colon and "parity" in report.nodeid and isinstance(value, float):
                largest[run] = max(largest.get(run, (0.0, name)), (value, name))
    if largest:
        terminalreporter.section("differences from the released model")
        terminalreporter.write_line("fp32: largest absolute; half precision: root mean square, relative")
        for run, (value, name) in sorted(largest.items()):
            terminalreporter.write_line(f"{value:.1e}  {run}  ({name})")

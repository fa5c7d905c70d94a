"""A short run of the fuzzer; the long one is a command (see `tests.server.fuzz`)."""

from __future__ import annotations

from tests.server.fuzz import fuzz_application


def test_no_request_meets_a_defect() -> None:
    tally = fuzz_application(count=160, seed=20)
    assert tally.requests > 150
    statuses = {status for _, _, status, _ in tally.outcomes}
    assert {200, 400, 422} <= statuses, "some requests must get through, and some must not"
    assert not tally.defects, "\n".join(tally.defects)

"""Is there a way from here to an answer? Looked at step by step, so that what is wrong has a name."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from medsight_core.errors import MedSightError

Step = Literal["address", "proxy", "host", "port", "TLS", "token", "version", "model"]

LOOKED_AT: Final[tuple[Step, ...]] = ("host", "port", "TLS", "token", "version", "model")
"""In this order: each needs those before it."""

_STEP_OF: Final[Mapping[str, Step]] = {
    "proxy_failed": "proxy",
    "unknown_host": "host",
    "no_connection": "host",
    "connection_refused": "port",
    "not_medsight": "port",
    "redirected": "port",
    "not_found": "port",
    "timed_out": "port",
    "connection_lost": "port",
    "tls_untrusted": "TLS",
    "tls_expired": "TLS",
    "tls_wrong_host": "TLS",
    "tls_failed": "TLS",
    "unauthorized": "token",
    "forbidden": "token",
    "wrong_host": "host",
    "wrong_version": "version",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One thing that was looked at.

    Attributes:
        step: What.
        error: What is wrong with it; None where nothing is.
    """

    step: Step
    error: MedSightError | None = None


def run_checks(looks: Sequence[Callable[[], object]], *, tls: bool) -> list[Check]:
    """Looks until something is wrong.

    Args:
        looks: What has to go well, one behind the other; they raise what is wrong.
        tls: Whether the connection is encrypted.

    Returns:
        What was found to be right, in the order of `LOOKED_AT`, and then what is wrong, if anything is.
    """
    steps = [step for step in LOOKED_AT if tls or step != "TLS"]
    try:
        for look in looks:
            look()
    except MedSightError as error:
        failed = _STEP_OF.get(error.code, "model")
        right = steps[: steps.index(failed)] if failed in steps else []
        return [*(Check(step=step) for step in right), Check(step=failed, error=error)]
    return [Check(step=step) for step in steps]

"""Ray, started for one program on this machine alone, or the cluster that the environment names.

Whoever reaches Ray's ports runs code, so they are on the loopback interface, and each start has a token of its own.
"""

from __future__ import annotations

import logging
import os
import secrets
from typing import Any, Final

from medsight_core.errors import MedSightError

ADDRESS: Final = "RAY_ADDRESS"
"""Names the cluster; without it Ray is started here."""


def has_cluster() -> bool:
    """Whether a cluster is named, which was there before and stays afterwards."""
    return bool(os.environ.get(ADDRESS))


def start_ray(option: str, *, processes: int, variables: dict[str, str], niceness: int | None = None) -> Any:
    """Starts Ray, or goes to the cluster.

    Args:
        option: What needs it, such as "--ray".
        processes: How many it shall run here at once; it counts each as a core, whatever it does with it.
        variables: Of the environment of these processes.
        niceness: How far they step back for others; None for Ray's own, which is far.

    Returns:
        The module ``ray``.

    Raises:
        MedSightError: missing_package.
    """
    options: dict[str, Any] = {}
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ["RAY_ENABLE_AUTO_CONNECT"] = "0"  # else a late call of its own starts it again after it was shut down
    if niceness is not None:
        os.environ.setdefault("RAY_worker_niceness", str(niceness))
    if not has_cluster():
        # Ray reads these when it is imported. The first one alone keeps its ports on the loopback interface: to Ray, an
        # address of 127.0.0.1 means whichever the machine is reached by.
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
        os.environ.setdefault("RAY_AUTH_MODE", "token")
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
        # Two more for its own small tasks.
        options = {"num_cpus": processes + 2, "include_dashboard": False, "_node_ip_address": "127.0.0.1"}
    try:
        import ray
    except ModuleNotFoundError as error:
        raise MedSightError(
            "missing_package",
            f"{option} needs {error.name}, which is not installed.",
            f"Say: pip install 'medsight[ray]'; or leave {option} out.",
        ) from error
    ray.init(log_to_driver=False, logging_level=logging.ERROR, runtime_env={"env_vars": variables}, **options)
    return ray

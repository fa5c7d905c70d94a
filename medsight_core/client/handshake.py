"""What a server says it is, and whether it and this client understand each other."""

from __future__ import annotations

from typing import Any, Final

from medsight_core import __version__
from medsight_core.backend import Info
from medsight_core.client.address import Address
from medsight_core.errors import InputError, MedSightError
from medsight_core.wire import PROTOCOL, checked

PROTOCOL_HEADER: Final = "MedSIGHT-Protocol"
"""Of every request: the protocol that this client speaks."""

INFO: Final = "/v1/medsight/info"


def read_info(content: Any, address: Address) -> Info:
    """Reads what a server says it is.

    Args:
        content: As parsed from JSON.
        address: Of the server.

    Raises:
        MedSightError: not_medsight, wrong_version.
    """
    names = ("version", "protocol", "model", "digest", "device", "dtype")
    try:
        fields = checked.record(content, "info", required=names, optional=None)
        version, protocol = checked.text(fields["version"], "version"), checked.integer(fields["protocol"], "protocol")
        if protocol != PROTOCOL:
            raise MedSightError(
                "wrong_version",
                f"{address.name} runs MedSIGHT {version} and speaks protocol {protocol}; this is MedSIGHT "
                f"{__version__}, which speaks protocol {PROTOCOL}.",
                "Install the same version on both computers.",
            )
        limits = checked.record(fields.get("limits", {}), "limits", optional=None)
        return Info(
            version=version,
            protocol=protocol,
            **{name: checked.text(fields[name], name) for name in names[2:]},
            classes=_texts(fields, "classes"),
            capabilities=frozenset(_texts(fields, "capabilities")),
            limits={name: checked.integer(value, name, high=2**63) for name, value in limits.items()},
        )
    except InputError as error:
        raise MedSightError(
            "not_medsight",
            f"{address.name} answers, but does not say what it is: {error.sentence}",
            "Check address and port; it may be another program.",
        ) from error


def _texts(fields: dict[str, Any], name: str) -> tuple[str, ...]:
    return tuple(checked.text(one, name) for one in checked.listed(fields.get(name, []), name, most=100_000))

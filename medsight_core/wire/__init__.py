"""What crosses between client and server: volumes as a compressed stream, everything else as JSON with packed masks.

Server and client share these modules, not each other. Nothing in here knows HTTP, and nothing here lets a name, a date,
an identifier or a path pass: what leaves a machine is listed field by field.
"""

from __future__ import annotations

from medsight_core.backend import PROTOCOL

__all__ = ["PROTOCOL"]

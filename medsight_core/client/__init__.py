"""The client: a server as a `Backend`, for whoever has no model, no torch and no GPU."""

from medsight_core.client.checking import Check
from medsight_core.client.remote import RemoteBackend

__all__ = ["Check", "RemoteBackend"]

"""What is noted about one request while it is served."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import Final

from starlette.types import Scope

_KEY: Final = "medsight.trace"


@dataclass(slots=True, kw_only=True)
class Trace:
    """What is noted about a request while it is served.

    Attributes:
        request_id: Random; stands in the response and in the log.
        volume: First digits of the content hash that it is about.
        prompt_tokens, completion_tokens: Read and written by the model.
        code: Of the error that it ended with.
        answered: The answer is complete.
        gone: The client went away before it was.
    """

    request_id: str
    volume: str = ""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    code: str = ""
    answered: bool = False
    gone: bool = False

    def about(self, digest: str) -> None:
        """Notes the volume, by the first digits of its hash."""
        self.volume = digest[:8]


def trace_of(scope: Scope) -> Trace:
    """The notes about the request that is being served."""
    trace: Trace = scope.setdefault(_KEY, Trace(request_id=secrets.token_hex(8)))
    return trace

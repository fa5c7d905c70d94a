"""Errors that a person reads.

Every failure that we expect has a code (stable, for programs), a sentence (what we got and what we expected) and a
remedy (what to do). The command line prints them as they are, the server sends them, the viewer shows them.
"""

from __future__ import annotations


class MedSightError(Exception):
    """Something went wrong and we know what.

    Args:
        code: Short stable name such as ``"missing_slices"``; snake case.
        sentence: What was got and what was expected.
        remedy: What to do about it; empty where there is nothing to do.
    """

    def __init__(self, code: str, sentence: str, remedy: str = "") -> None:
        # All three go to Exception so that the error survives pickling between processes.
        super().__init__(code, sentence, remedy)
        self.code = code
        self.sentence = sentence
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.sentence} {self.remedy}".strip()


class InputError(MedSightError):
    """What the user gave is wrong: a path, a scan, a question, a prompt."""


class CheckpointError(MedSightError):
    """A model folder is missing, damaged or of the wrong kind."""


class Busy(MedSightError):
    """More is waiting than can be taken in.

    Args:
        retry_after: Seconds after which it is worth asking again.
    """

    def __init__(self, retry_after: float) -> None:
        super().__init__(
            "busy",
            "The model is busy: as many questions are waiting as may wait.",
            f"Ask again in {max(1, round(retry_after))} s.",
        )
        self.args = (retry_after,)  # what the error is made of anew between processes
        self.retry_after = retry_after

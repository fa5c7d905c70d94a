"""A conversation about a scan: turns, findings, what is asked next, undo and redo, transcripts.

Pure Python without a window, a thread or a network, so that the terminal and the viewer share it.
"""

from medsight_core.chat.conversation import Conversation
from medsight_core.chat.turns import Asked, Finding, Piece, Turn, put

__all__ = ["Asked", "Conversation", "Finding", "Piece", "Turn", "put"]

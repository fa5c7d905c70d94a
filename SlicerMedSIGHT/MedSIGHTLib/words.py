"""What a person reads, in the viewer's language: by Slicer's translations, else the words as they stand.

Called on the main thread. What a thread may have to say is looked up once, when its module is imported. Sentences of
``medsight_core`` come in English, and so do answers, which are the model's.
"""

from __future__ import annotations

try:
    from slicer.i18n import tr as _
except ImportError:  # outside Slicer

    def _(text: str) -> str:
        return text


__all__ = ["_"]

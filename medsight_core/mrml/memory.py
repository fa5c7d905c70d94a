"""What the scene remembers of a conversation: a text node for each volume, saved and restored with the scene."""

from __future__ import annotations

from typing import Any, Final

VOLUME_ROLE: Final = "MedSIGHT.conversation"
"""Role of the reference from the text node to its volume."""


def remembered(volume_node: Any) -> str:
    """The conversation that was kept for a volume; "" where there is none."""
    node = _node(volume_node)
    return "" if node is None else str(node.GetText() or "")


def remember(volume_node: Any, text: str) -> None:
    """Keeps a conversation for a volume in place of the one before."""
    node = _node(volume_node)
    if node is None:
        if not text:
            return
        node = volume_node.GetScene().AddNewNodeByClass("vtkMRMLTextNode", f"{volume_node.GetName()} conversation")
        node.SetNodeReferenceID(VOLUME_ROLE, volume_node.GetID())
        node.SetForceCreateStorageNode(True)
    node.SetText(text)


def _node(volume_node: Any) -> Any | None:
    scene = volume_node.GetScene()
    nodes = scene.GetNodesByClass("vtkMRMLTextNode") if scene is not None else ()
    return next((node for node in nodes if node.GetNodeReference(VOLUME_ROLE) is volume_node), None)

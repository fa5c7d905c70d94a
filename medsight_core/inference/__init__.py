"""From a question to an answer with masks: checkpoint, inputs, decoding, transcript, grounding, engine.

`checkpoint` and `shapes` need no torch, so that a damaged model folder is named before torch is imported.
"""

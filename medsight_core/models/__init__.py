"""Models as things to have: which are known by name, where they lie, how they come here, and what they need to run.

Nothing here runs a model or opens weights to use them; it is files, digests and sums.
"""

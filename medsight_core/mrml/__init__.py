"""Between a 3D Slicer scene and the values of this project: volumes, prompts, segments, the transcript. No Qt in here.

Slicer's axes are RAS, ours are LPS; the sign changes here and nowhere else (`space`).
"""

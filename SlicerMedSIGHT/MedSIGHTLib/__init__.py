"""What the MedSIGHT module of 3D Slicer is made of: its panel, its settings, and what stands between them and a scan.

Everything here that touches Qt does so through `_qt`, in the words that PythonQt and PySide6 share, so that the panel
runs unchanged inside Slicer and outside.
"""

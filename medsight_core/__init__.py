"""MedSIGHT: ask a medical image in plain words and read an answer whose terms are tied to masks on the image."""

__version__ = "0.1.0"

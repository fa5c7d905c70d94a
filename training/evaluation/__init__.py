"""Measuring a model through the same door that a user takes: a scan is opened, the engine is asked, masks come back."""

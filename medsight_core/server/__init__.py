"""A backend served over HTTP: volumes by content hash, chat in OpenAI's form, one-click segmentation.

The server holds no model of its own: it serves any `medsight_core.backend.Backend`. Nothing of a request's content goes
into its log, and it never fetches anything.
"""

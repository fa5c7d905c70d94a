"""Figures for Prometheus: how much is asked, how long it takes, what is under way. One registry per application."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, ProcessCollector, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

_SECONDS: Final = (0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


class Metrics:
    """What an application counts; labels are route templates and codes, never anything that a request says.

    Args:
        model: Name of the model that is served.
        digest: Of its checkpoint.
    """

    content_type = CONTENT_TYPE_LATEST

    def __init__(self, *, model: str, digest: str) -> None:
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        self._requests = Counter(
            "medsight_requests", "Requests served.", ("method", "route", "status"), registry=self._registry
        )
        self._seconds = Histogram(
            "medsight_request_seconds", "From a request's head to the end of its response.", ("route",),
            buckets=_SECONDS, registry=self._registry,
        )  # fmt: skip
        self._tokens = Counter("medsight_tokens", "Tokens read and written.", ("kind",), registry=self._registry)
        self._first = Histogram(
            "medsight_first_text_seconds", "From a question to the first words of its answer.",
            buckets=_SECONDS, registry=self._registry,
        )  # fmt: skip
        self._cancelled = Counter(
            "medsight_cancelled", "Answers given up because nobody took them any more.", ("why",),
            registry=self._registry,
        )  # fmt: skip
        served = Info("medsight_model", "The model that is served.", registry=self._registry)
        served.info({"name": model, "digest": digest})

    def request(self, *, method: str, route: str, status: int, seconds: float) -> None:
        """Counts a request that is over."""
        self._requests.labels(method, route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def tokens(self, *, prompt: int, completion: int) -> None:
        """Counts tokens that the model read and wrote."""
        self._tokens.labels("prompt").inc(prompt)
        self._tokens.labels("completion").inc(completion)

    def first_text(self, seconds: float) -> None:
        """Notes how long the first words of an answer took."""
        self._first.observe(seconds)

    def cancelled(self, why: str) -> None:
        """Counts an answer that nobody took: its client was "gone" or "stalled"."""
        self._cancelled.labels(why).inc()

    def gauge(self, name: str, meaning: str, value: Callable[[], float]) -> None:
        """Adds a figure that is read when it is asked for."""
        Gauge(f"medsight_{name}", meaning, registry=self._registry).set_function(value)

    def page(self) -> bytes:
        """All figures in Prometheus' text format."""
        return generate_latest(self._registry)

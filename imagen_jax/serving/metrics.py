"""Metrics for Prometheus: of HTTP, counted here, and of the engine, read from it when they are asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

_METHODS = ("GET", "HEAD", "POST", "DELETE", "OPTIONS")
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 900)

# the engine's numbers by key, see `Engine.stats`: name and text of the metric
_GAUGES = {
    "ready": ("ready", "Whether jobs are taken from the queue."),
    "waits_for_disk": ("waits_for_disk", "Whether images cannot be written."),
    "queued": ("queued_images", "Images that wait."),
    "queued_jobs": ("queued_jobs", "Jobs that wait."),
    "clients": ("queued_clients", "Clients whose jobs wait."),
    "running_jobs": ("running_jobs", "Jobs of the batch that is sampled."),
    "running_images": ("running_images", "Images of the batch that is sampled."),
    "seconds_per_image": (
        "seconds_per_image",
        "Seconds for an image with the cascade's own settings, as measured last.",
    ),
    "subscriptions": ("subscriptions", "Jobs that are followed or waited for, counted for each follower."),
}
_COUNTERS = {
    "images": ("images", "Images sampled and kept."),
    "batches": ("batches", "Batches sampled."),
    "rows": ("batch_rows", "Images in batches, with those that only fill them up."),
    "failed_batches": ("failed_batches", "Batches that have failed."),
    "seconds": ("sampling_seconds", "Seconds that the devices were busy."),
    "compilations": ("compilations", "Programs compiled, or loaded from the compilation cache."),
    "compilations_on_demand": (
        "compilations_on_demand",
        "Of them, for other settings or sizes than the cascade's own.",
    ),
    "compilations_unexpected": (
        "compilations_unexpected",
        "Of them, for the cascade's own settings after the server was ready: there should be none.",
    ),
    "dropped_previews": ("dropped_previews", "Previews that slow clients have missed."),
}


class HttpMetrics:
    """Counts requests.

    Args:
        stats: returns the engine's numbers, see `Engine.stats`.
    """

    def __init__(self, stats: Callable[[], Mapping[str, Any]]) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "imagen_http_requests",
            "Requests answered.",
            ["method", "route", "status"],
            registry=self._registry,
        )
        self._seconds = Histogram(
            "imagen_http_request_seconds",
            "Seconds from a request to the end of its response; event streams are left out.",
            ["method", "route"],
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._rejected = Counter(
            "imagen_http_rejected",
            "Requests refused, by the status of the response.",
            ["status"],
            registry=self._registry,
        )
        self._dropped = Counter(
            "imagen_http_connections_dropped",
            "Connections closed without a response, by the reason.",
            ["reason"],
            registry=self._registry,
        )
        self.streams = Gauge("imagen_event_streams", "Event streams that are open.", registry=self._registry)
        self._registry.register(_EngineCollector(stats))

    def answered(self, method: str, route: str, status: int, seconds: float | None) -> None:
        """Counts a response; `seconds` is None for an event stream."""
        method = method if method in _METHODS else "other"  # labels of strangers would fill the memory
        self._requests.labels(method, route, str(status)).inc()
        if seconds is not None:
            self._seconds.labels(method, route).observe(seconds)
        if status >= 400:
            self._rejected.labels(str(status)).inc()

    def dropped(self, reason: str) -> None:
        """Counts a connection that was closed without a response."""
        self._dropped.labels(reason).inc()

    def text(self) -> bytes:
        """Returns all metrics in Prometheus' text format."""
        return generate_latest(self._registry)


class _EngineCollector(Collector):
    """Reads the engine's numbers when metrics are asked for.

    Args:
        stats: see `HttpMetrics`.
    """

    def __init__(self, stats: Callable[[], Mapping[str, Any]]) -> None:
        self._stats = stats

    def collect(self) -> Iterable[Metric]:
        """Yields a metric for each of the engine's numbers."""
        stats = self._stats()
        for key, (name, text) in _GAUGES.items():
            yield GaugeMetricFamily(f"imagen_{name}", text, value=float(stats[key]))
        for key, (name, text) in _COUNTERS.items():
            yield CounterMetricFamily(f"imagen_{name}", text, value=float(stats[key]))
        jobs = GaugeMetricFamily("imagen_jobs", "Jobs of the queue and the history, by status.", labels=["status"])
        for status, count in stats["jobs"].items():
            jobs.add_metric([status], count)
        yield jobs

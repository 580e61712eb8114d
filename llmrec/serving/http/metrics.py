"""Prometheus metrics of the front; the engines' own are not collected."""

from collections.abc import Callable

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (0.005, 0.01, 0.02, 0.035, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_BEAMS = (1, 5, 10, 20, 50, 100, 200, 512)


class Metrics:
    """What is counted, in a registry of its own."""

    def __init__(self):
        self.registry = CollectorRegistry()
        self.requests = Counter("llmrec_requests", "Requests.", ["route", "status"], registry=self.registry)
        self.stages = Histogram(
            "llmrec_stage_seconds",
            "Time of recommendations in the queue, in the search, and in total.",
            ["stage"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.beams = Histogram("llmrec_beams", "Widths of searches.", buckets=_BEAMS, registry=self.registry)
        self.items = Counter(
            "llmrec_items_returned",
            "Items returned: valid ones are in the request's catalogue version and allowed by its filter.",
            ["valid"],
            registry=self.registry,
        )
        for valid in (True, False):
            self.items.labels(str(valid).lower())
        self.gauge("llmrec_valid_share", "Share of returned items that are valid; should be 1.", self.valid_share)

    def gauge(self, name: str, text: str, value: Callable[[], float]) -> None:
        """A number that is read when somebody asks."""
        Gauge(name, text, registry=self.registry).set_function(value)

    def valid_share(self) -> float:
        """1 where nothing was returned yet."""
        valid, invalid = (self.items.labels(label)._value.get() for label in ("true", "false"))
        return valid / (valid + invalid) if valid + invalid else 1.0

    def text(self) -> bytes:
        """In Prometheus' text format, with what other libraries register."""
        return generate_latest(self.registry) + generate_latest(REGISTRY)

"""`Front`: what the routes of one application share, as FastAPI dependencies, and what of it is measured."""

import time
from collections.abc import AsyncIterator, Callable
from typing import Annotated

from fastapi import Depends, Request
from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from llmrec.serving.http.errors import engine_failed
from llmrec.serving.http.followers import Followers
from llmrec.serving.http.limits import Gate
from llmrec.serving.http.recommending import cost
from llmrec.serving.http.schemas import RecommendRequest
from llmrec.serving.http.service import Served, Service, Unavailable
from llmrec.serving.http.settings import Settings

_SECONDS = (0.005, 0.01, 0.02, 0.035, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_BEAMS = (1, 5, 10, 20, 50, 100, 200, 512)


class Metrics:
    """Prometheus metrics, in a registry of their own; the engines' are not collected."""

    def __init__(self):
        self._registry = registry = CollectorRegistry()
        self.requests = Counter("llmrec_requests", "Requests.", ["route", "status"], registry=registry)
        text = "Time of recommendations in the queue, in the search, and in total."
        self.stages = Histogram("llmrec_stage_seconds", text, ["stage"], buckets=_SECONDS, registry=registry)
        self.beams = Histogram("llmrec_beams", "Widths of searches.", buckets=_BEAMS, registry=registry)
        text = "Items returned: valid ones are in the request's catalogue version and allowed by its filter."
        self.items = Counter("llmrec_items_returned", text, ["valid"], registry=registry)
        counts = [self.items.labels(valid)._value for valid in ("true", "false")]

        def valid_share() -> float:
            valid, invalid = (count.get() for count in counts)
            return valid / (valid + invalid) if valid + invalid else 1.0

        self.gauge("llmrec_valid_share", "Share of returned items that are valid; should be 1.", valid_share)

    def gauge(self, name: str, text: str, value: Callable[[], float]) -> None:
        """A number that is read when somebody asks."""
        Gauge(name, text, registry=self._registry).set_function(value)

    def text(self) -> bytes:
        """In Prometheus' text format, with what other libraries register."""
        return generate_latest(self._registry) + generate_latest(REGISTRY)


class Front:
    """What routes share; recommendations take turns at `searches`, changes of the catalogue at `changes`, and
    questions for titles, which read all of them, at `lookups`.

    Args:
        alone_s: what a recommendation without a history takes that runs alone; without it `max_concurrent` run at a
            time, however long they take.

    Attributes:
        leaving: it was told to stop, and answers for a while yet.
    """

    def __init__(self, service: Service, settings: Settings, alone_s: float | None = None):
        self.service, self.settings, self.metrics = service, settings, Metrics()
        self.followers, self.leaving = Followers(lambda: service.store.followed_until), False
        self.started = int(time.time())
        alone = alone_s and (cost(RecommendRequest(), service.current, settings), alone_s)
        self.searches = self.gate(settings.max_concurrent, alone)
        self.changes, self.lookups = self.gate(1), self.gate(4)
        gauge = self.metrics.gauge
        gauge("llmrec_running", "Recommendations that run.", lambda: self.searches.running)
        gauge("llmrec_waiting", "Recommendations that wait.", lambda: self.searches.waiting)
        gauge("llmrec_catalogue_version", "The current version.", lambda: service.current.number)
        gauge("llmrec_followers", "Servers that follow this one's catalogue.", lambda: len(self.followers))
        text = "Servers that follow it and are behind what was acknowledged: they answer 503."
        gauge("llmrec_followers_left_out", text, lambda: self.followers.left_out)
        items = "Items of the current version."
        gauge("llmrec_catalogue_items", items, lambda: len(service.current.version.index.items))

    def check(self) -> None:
        """Raises `ApiError` (503) where an engine is dead; it says when there will be another one."""
        try:
            self.service.check()
        except Unavailable as error:
            raise engine_failed(str(error), error.seconds) from error

    def gate(self, width: int, alone: tuple[float, float] | None = None) -> Gate:
        return Gate(width, self.settings.max_queue, self.settings.timeout_s, alone)


def _front(request: Request) -> Front:
    return request.app.state.front


async def _current(front: Annotated[Front, Depends(_front)]) -> AsyncIterator[Served]:
    with front.service.using() as served:
        yield served


TheFront = Annotated[Front, Depends(_front)]
Current = Annotated[Served, Depends(_current)]  # the current catalogue version, held until the answer is sent

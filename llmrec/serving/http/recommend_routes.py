"""`POST /v1/recommend` and its batch."""

import logging
import time

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse

from llmrec.serving.http.errors import ApiError
from llmrec.serving.http.limits import Gate, until_disconnect
from llmrec.serving.http.metrics import Metrics
from llmrec.serving.http.recommending import Asked, Found, read_request, search, shortage
from llmrec.serving.http.responses import errors
from llmrec.serving.http.schemas import BatchRequest, BatchResponse, RecommendRequest, RecommendResponse
from llmrec.serving.http.service import Served, Service
from llmrec.serving.http.settings import Settings

logger = logging.getLogger("llmrec.serving")


def recommend_router(service: Service, settings: Settings, gate: Gate, metrics: Metrics) -> APIRouter:
    """The routes that recommend."""
    router = APIRouter(tags=["recommend"])

    async def answers(request: Request, bodies: list[RecommendRequest]) -> list[dict | ApiError]:
        """One answer or error for each body; all of the catalogue version that is current when the turn comes."""
        request.state.log |= _logged(bodies, settings)

        def work() -> tuple[Served, list[tuple[Asked | ApiError, Found | Exception | None]]]:
            with service.using() as served:
                asked = [_read(body, served, settings) for body in bodies]
                found = iter(search([one for one in asked if isinstance(one, Asked)], served))
                return served, [(one, next(found) if isinstance(one, Asked) else None) for one in asked]

        (served, done), waited = await until_disconnect(request, gate.run(work))
        request.state.log |= {"catalogue_version": served.number, "beams": _of_all([_beams(one) for one, _ in done])}
        return [
            one if isinstance(one, ApiError) else answer(request, number, one, found, served, waited)
            for number, (one, found) in enumerate(done)
        ]

    def answer(
        request: Request, number: int, one: Asked, found: Found | Exception, served: Served, waited: float
    ) -> dict | ApiError:
        if isinstance(found, Exception):
            logger.error("a search failed", exc_info=found)
            return ApiError(503, "the engine failed: try again later", code="engine", headers={"Retry-After": "1"})
        metrics.beams.observe(one.num_beams)
        metrics.items.labels("true").inc(found.valid)
        if invalid := len(found.items) - found.valid:
            logger.error("%d items of request %s are not allowed", invalid, request.state.id)
            metrics.items.labels("false").inc(invalid)
        total = time.perf_counter() - request.state.began
        for stage, seconds in (("queue", waited), ("search", found.search_s), ("total", total)):
            metrics.stages.labels(stage).observe(seconds)
        message = shortage(one, found)
        semid = served.version.index.encode
        return {
            "id": f"rec-{request.state.id}" + (f"-{number}" if number else ""),
            "object": "recommendation",
            "created": int(time.time()),
            "model": settings.model,
            "catalogue_version": served.number,
            "items": [
                {"item_id": item.item_id, "title": item.title, "semid": semid(item.item_id), "score": item.score}
                for item in found.items
            ],
            "complete": message is None,
            "message": message,
            "prompt": one.prompt if one.body.return_prompt else None,
            "thoughts": found.thoughts,
            "timings_ms": {
                name: round(seconds * 1000, 3)
                for name, seconds in (("total", total), ("search", found.search_s), ("queue", waited))
            },
        }

    @router.post(
        "/v1/recommend", response_model=RecommendResponse, responses=errors(400, 401, 413, 429, 503), name="recommend"
    )
    async def recommend(body: RecommendRequest, request: Request):
        """The best items after a history, a chat, or a task's prompt."""
        (found,) = await answers(request, [body])
        if isinstance(found, ApiError):
            raise found
        return JSONResponse(found)

    @router.post(
        "/v1/recommend/batch", response_model=BatchResponse, responses=errors(400, 401, 413, 429, 503), name="batch"
    )
    async def batch(body: BatchRequest, request: Request):
        """Independent requests, searched together: what does not fit the catalogue has an error in its place."""
        if len(body.requests) > settings.max_batch:
            message = f"requests has {len(body.requests)} entries, the limit here is {settings.max_batch}"
            raise ApiError(400, message, "requests")
        found = await answers(request, body.requests)
        data = [{"object": "error", "error": one.body} if isinstance(one, ApiError) else one for one in found]
        return JSONResponse({"object": "list", "data": data})

    return router


def _read(body: RecommendRequest, served: Served, settings: Settings) -> Asked | ApiError:
    try:
        return read_request(body, served, settings)
    except ApiError as error:
        return error


def _beams(one: Asked | ApiError) -> int | None:
    return one.num_beams if isinstance(one, Asked) else None


def _of_all(values: list):
    """The one value of a single request, the list of a batch."""
    return values[0] if len(values) == 1 else values


def _logged(bodies: list[RecommendRequest], settings: Settings) -> dict:
    """What the log says of requests: numbers only, unless the operator wants more."""
    line = {"k": _of_all([body.k for body in bodies]), "history": _of_all([len(body.history) for body in bodies])}
    if settings.log_histories:
        line["request"] = _of_all([body.model_dump(exclude_defaults=True) for body in bodies])
    return line

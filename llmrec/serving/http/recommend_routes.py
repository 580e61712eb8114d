"""`POST /v1/recommend` and its batch."""

import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import partial

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse
from pydantic import ValidationError

from llmrec.serving.http.errors import ApiError, errors, validation_error
from llmrec.serving.http.front import Front, TheFront
from llmrec.serving.http.limits import all_of, client_of, until_disconnect
from llmrec.serving.http.recommending import Asked, Found, read_request, search, shortage
from llmrec.serving.http.schemas import BatchRequest, BatchResponse, RecommendRequest, RecommendResponse
from llmrec.serving.http.service import Served
from llmrec.serving.http.settings import Settings

logger = logging.getLogger("llmrec.serving")
router = APIRouter(tags=["recommend"])
_PART = 4.0
_DOCUMENTED = errors(400, 401, 413, 429, 503)


@router.post("/v1/recommend", response_model=RecommendResponse, responses=_DOCUMENTED)
async def recommend(body: RecommendRequest, request: Request, front: TheFront):
    """The best items after a history, a chat, or a task's prompt."""
    (answer,) = await _answers(request, front, [body])
    if isinstance(answer, ApiError):
        raise answer
    return JSONResponse(answer)


@router.post("/v1/recommend/batch", response_model=BatchResponse, responses=_DOCUMENTED)
async def batch(body: BatchRequest, request: Request, front: TheFront):
    """Independent requests, searched together: one that cannot be read, or does not fit the catalogue, has an error in
    its place."""
    if len(body.requests) > front.settings.max_batch:
        message = f"requests has {len(body.requests)} entries, the limit here is {front.settings.max_batch}"
        raise ApiError(400, message, "requests")
    answers = await _answers(request, front, body.requests)
    data = [{"object": "error", "error": one.body} if isinstance(one, ApiError) else one for one in answers]
    return JSONResponse({"object": "list", "data": data})


async def _answers(
    request: Request, front: Front, bodies: Sequence[RecommendRequest | ValidationError]
) -> list[dict | ApiError]:
    """One answer or error for each body; all of the catalogue version that is current when they come."""
    read = [body for body in bodies if isinstance(body, RecommendRequest)]
    if not read:
        return [*map(validation_error, bodies)]
    # Numbers only, unless the operator wants more.
    line = {"k": _of_all([body.k for body in read]), "history": _of_all([len(body.history) for body in read])}
    if front.settings.log_histories:
        line["request"] = _of_all([body.model_dump(exclude_defaults=True) for body in read])
    request.state.log |= line

    with front.service.using() as served:
        cost = partial(_cost, width=served.recommender.config.num_beams, most=front.settings.max_beams)

        def work(part: list) -> tuple[list[Asked | ApiError], list[Found | ApiError]]:
            with front.service.using(served):  # a search that nobody waits for any more may still run
                asked = [_read(body, served, front.settings) for body in part]
                return asked, search(asked, served)

        def turn(part: list) -> Awaitable:
            return front.searches.run(partial(work, part), client_of(request), sum(map(cost, part)))

        parts = _parts(bodies, cost)
        done = await until_disconnect(request, all_of([*map(turn, parts)]))
    asked = [one for (of_part, _), _ in done for one in of_part]
    found = [one for (_, of_part), _ in done for one in of_part]
    waited = max(waited for _, waited in done)
    beams = [one.num_beams if isinstance(one, Asked) else None for one in asked]
    request.state.log |= {"catalogue_version": served.number, "beams": _of_all(beams)}
    return [
        result if isinstance(result, ApiError) else _answer(request, front, served, number, one, result, waited)
        for number, (one, result) in enumerate(zip(asked, found))
    ]


def _read(body: RecommendRequest | ValidationError, served: Served, settings: Settings) -> Asked | ApiError:
    try:
        return validation_error(body) if isinstance(body, ValidationError) else read_request(body, served, settings)
    except ApiError as error:
        return error


def _cost(body: RecommendRequest | ValidationError, width: int, most: int) -> float:
    """About how much work a search is: 1 is one as wide as the model's own; those above the limit are refused."""
    return 0.0 if isinstance(body, ValidationError) else min(most, max(body.num_beams or width, body.k)) / width


def _parts(bodies: Sequence, cost_of: Callable[..., float]) -> list[list]:
    """The requests of a batch, in parts that cost about as much as `_PART` plain ones: others get turns in between."""
    parts, cost = [[]], 0.0
    for body in bodies:
        if parts[-1] and cost + cost_of(body) > _PART:
            parts.append([])
            cost = 0.0
        parts[-1].append(body)
        cost += cost_of(body)
    return parts


def _answer(
    request: Request, front: Front, served: Served, number: int, one: Asked, found: Found, waited: float
) -> dict:
    """The answer of one body, which is counted too."""
    seconds = {"total": time.perf_counter() - request.state.began, "search": found.search_s, "queue": waited}
    front.metrics.beams.observe(one.num_beams)
    front.metrics.items.labels("true").inc(found.valid)
    if invalid := len(found.items) - found.valid:
        logger.error("%d items of request %s are not allowed", invalid, request.state.id)
        front.metrics.items.labels("false").inc(invalid)
    for stage, value in seconds.items():
        front.metrics.stages.labels(stage).observe(value)
    message = shortage(one, found)
    return {
        "id": f"rec-{request.state.id}" + (f"-{number}" if number else ""),
        "object": "recommendation",
        "created": int(time.time()),
        "model": front.settings.model,
        "catalogue_version": served.number,
        "items": [served.name(item_id) | {"score": score} for item_id, score in found.items],
        "complete": message is None,
        "message": message,
        "prompt": one.prompt if one.body.return_prompt else None,
        "thoughts": found.thoughts,
        "timings_ms": {name: round(value * 1000, 3) for name, value in seconds.items()},
    }


def _of_all(values: list):
    """The one value of a single request, the list of a batch."""
    return values[0] if len(values) == 1 else values

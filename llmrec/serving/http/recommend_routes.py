"""`POST /v1/recommend` and its batch."""

import logging
import time
from collections.abc import Callable, Sequence
from functools import partial

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from fastapi.routing import APIRoute
from pydantic import ValidationError

from llmrec.serving.http.errors import ApiError, errors, validation_error
from llmrec.serving.http.front import Front, TheFront
from llmrec.serving.http.limits import client_of, until_disconnect
from llmrec.serving.http.recommending import Asked, Found, cost, read_request, search, shortage
from llmrec.serving.http.schemas import BatchRequest, BatchResponse, RecommendRequest, RecommendResponse
from llmrec.serving.http.service import Served

logger = logging.getLogger("llmrec.serving")
_DOCUMENTED = errors(400, 401, 413, 429, 503)


class _Door(APIRoute):
    """Turns away what no engine is there for, or has no room in the queue, before it is parsed."""

    def get_route_handler(self) -> Callable:
        handle = super().get_route_handler()

        async def turn_away_or_handle(request: Request) -> Response:
            await request.body()
            front = request.app.state.front
            front.check()
            front.searches.check_room(client_of(request))
            return await handle(request)

        return turn_away_or_handle


router = APIRouter(tags=["recommend"], route_class=_Door)


@router.post("/v1/recommend", response_model=RecommendResponse, responses=_DOCUMENTED)
async def recommend(body: RecommendRequest, request: Request, front: TheFront):
    """The best items after a history, a chat, or a task's prompt."""
    (answer,) = await _answers(request, front, [body])
    if isinstance(answer, ApiError):
        raise answer
    return Response(answer, media_type="application/json")


@router.post("/v1/recommend/batch", response_model=BatchResponse, responses=_DOCUMENTED)
async def batch(body: BatchRequest, request: Request, front: TheFront):
    """Independent requests, searched together: one that cannot be read, or does not fit the catalogue, has an error in
    its place."""
    if len(body.requests) > front.settings.max_batch:
        message = f"requests has {len(body.requests)} entries, the limit here is {front.settings.max_batch}"
        raise ApiError(400, message, "requests")
    answers = await _answers(request, front, body.requests)
    data = [_json({"object": "error", "error": one.body}) if isinstance(one, ApiError) else one for one in answers]
    return Response(b'{"object":"list","data":[%b]}' % b",".join(data), media_type="application/json")


async def _answers(
    request: Request, front: Front, bodies: Sequence[RecommendRequest | ValidationError]
) -> list[bytes | ApiError]:
    """One answer, as JSON, or one error for each body; all of the catalogue version that is current when they come.
    Each body has a turn of its own, in which all is done that takes time."""
    read = [body for body in bodies if isinstance(body, RecommendRequest)]
    if not read:
        return [*map(validation_error, bodies)]
    # Numbers only, unless the operator wants more.
    line = {"k": _of_all([body.k for body in read]), "history": _of_all([len(body.history) for body in read])}
    if front.settings.log_histories:
        line["request"] = _of_all([body.model_dump(exclude_defaults=True) for body in read])
    request.state.log |= line
    came, beams = time.perf_counter(), [None] * len(bodies)
    with front.service.using() as served:

        def work(number: int) -> bytes | ApiError:
            with front.service.using(served):  # a search that nobody waits for any more may still run
                waited = time.perf_counter() - came
                try:
                    front.check()
                    asked = read_request(bodies[number], served, front.settings)
                    beams[number] = asked.num_beams
                    if isinstance(found := search(asked, served), ApiError):
                        front.check()  # an engine that is started again says for how long
                        return found
                except ApiError as error:
                    return error
                return _json(_answer(request, front, served, number, asked, found, waited))

        places = [number for number, body in enumerate(bodies) if isinstance(body, RecommendRequest)]
        calls = [(cost(bodies[number], served, front.settings), partial(work, number)) for number in places]
        answers = await until_disconnect(request, front.searches.run(calls, client_of(request)))
    request.state.log |= {"catalogue_version": served.number, "beams": _of_all(beams)}
    made = dict(zip(places, answers))
    return [made.get(number) or validation_error(body) for number, body in enumerate(bodies)]


def _json(value: dict) -> bytes:
    return JSONResponse(value).body


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

"""OpenAI's chats and completions by vLLM's own serving objects, with the items that the texts name beside them."""

import json
import logging
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from itertools import accumulate

from fastapi import APIRouter, Depends, FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from fastapi.routing import APIRoute
from starlette.datastructures import State
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.entrypoints.openai.completion.protocol import CompletionRequest
from vllm.entrypoints.serve.exception_handling.error_response import create_error_response
from vllm.exceptions import VLLMError

from llmrec.serving.http.engine_context import EngineContext, engine_context
from llmrec.serving.http.errors import ApiError, engine_failed, errors
from llmrec.serving.http.front import Current
from llmrec.serving.http.limits import client_of, until_disconnect
from llmrec.serving.http.schemas import check_characters, texts_in
from llmrec.serving.http.service import Served
from llmrec.serving.http.settings import Settings

logger = logging.getLogger("llmrec.serving")

_GRAMMARS = {"structured_outputs", "response_format", "tools"}
_LARGEST_GRAMMAR, _DEEPEST_GRAMMAR = 2**15, 64
_VALUES = 10_000  # of a body beside its tokens: pydantic has many errors for each message that is none
_LOGPROBS = 20  # each of them is an object of this process, for every token of a prompt
_TOKENS = {"prompt", "stop_token_ids", "allowed_token_ids"}
_OURS = ("semid", "semid_start", "semid_normalize")
_DOCUMENTED = {
    **errors(400, 401, 404, 413, 429, 503),
    200: {"content": {"application/json": {"schema": {"type": "object"}}, "text/event-stream": {}}},
}


class _Door(APIRoute):
    """Turns away what has too many values before it is parsed, which would take a core for minutes."""

    def get_route_handler(self) -> Callable:
        handle = super().get_route_handler()

        async def turn_away_or_handle(request: Request) -> Response:
            try:
                given = await request.json()
            except (ValueError, RecursionError):  # the route says so
                given = None
            if values_of(given) > _VALUES:
                message = f"the body has more than {_VALUES} values beside its tokens: send less at a time"
                raise ApiError(400, message)
            return await handle(request)

        return turn_away_or_handle


router = APIRouter(tags=["generate"], route_class=_Door)


async def _turn(request: Request) -> AsyncIterator[None]:
    """A place among the chats that run, until the answer is sent to its end or the client goes away."""
    request.app.state.front.check()
    async with AsyncExitStack() as held:
        await until_disconnect(request, held.enter_async_context(request.app.state.chats.slot(client_of(request))))
        yield


def add_openai_routes(app: FastAPI, generate: State) -> None:
    """Adds `/v1/chat/completions` and `/v1/completions` to the front.

    `generate` has what vLLM's `init_app_state` sets over a `VersionedEngine` (`llmrec.serving.http.engine_context`).
    """
    front = app.state.front
    app.state.generate, app.state.chats = generate, front.gate(front.settings.max_concurrent)
    front.metrics.gauge("llmrec_generating", "Chats and completions that run.", lambda: app.state.chats.running)
    app.add_exception_handler(VLLMError, _refused)
    app.include_router(router)


@router.post("/v1/chat/completions", responses=_DOCUMENTED, dependencies=[Depends(_turn)])
async def chat(body: ChatCompletionRequest, request: Request, served: Current):
    """OpenAI's, by vLLM; every choice has `items`: those whose Semantic IDs stand in its text."""
    check_bounds(await request.json(), body, request.app.state.front.settings)
    try:
        body.messages = served.recommender.renderer.chat_messages(body.messages)
    except ValueError as error:
        raise ApiError(400, str(error), "messages") from error
    call = request.app.state.generate.openai_serving_chat.create_chat_completion
    return await _answer(call, body, request, served)


@router.post("/v1/completions", responses=_DOCUMENTED, dependencies=[Depends(_turn)])
async def completion(body: CompletionRequest, request: Request, served: Current):
    """OpenAI's, by vLLM; every choice has `items`. With `use_beam_search` choices are Semantic IDs."""
    check_bounds(await request.json(), body, request.app.state.front.settings)
    if body.use_beam_search and isinstance(body.prompt, list) and not all(isinstance(t, int) for t in body.prompt):
        if len(body.prompt) > 1:
            raise ApiError(400, "beam search takes one prompt: send the others by themselves", "prompt")
    call = request.app.state.generate.openai_serving_completion.create_completion
    return await _answer(call, body, request, served)


def values_of(given) -> int:
    """How many values a body has, beside its tokens."""
    fields = given.items() if isinstance(given, dict) else [("", given)]
    left, count = [one for name, one in fields if name not in _TOKENS or not _are_tokens(one)], 0
    while left:
        one = left.pop()
        count += 1
        left += one.values() if isinstance(one, dict) else one if isinstance(one, list) else ()
    return count


def _are_tokens(value) -> bool:
    """A list of them, or of such lists."""
    lists = value if isinstance(value, list) and value and isinstance(value[0], list) else [value]
    return all(isinstance(one, list) and all(isinstance(token, int) for token in one) for one in lists)


def check_bounds(given: dict, body, settings: Settings) -> None:
    """Refuses what vLLM would take: more choices than a search has beams, more log-probabilities than OpenAI gives,
    half characters, and grammars that are so large, or nested so deeply, that the native code which reads them takes
    minutes or overflows its stack. `body` is `given` as it was read: "n": "2" is 2 to vLLM."""
    try:
        check_characters(given)
    except ValueError as error:
        raise ApiError(400, str(error)) from error
    for name in ("logprobs", "top_logprobs", "prompt_logprobs"):
        if not 0 <= (most := getattr(body, name, None) or 0) <= _LOGPROBS:
            raise ApiError(400, f"{name} is {most}, it should be from 0 to {_LOGPROBS}", name)
    prompt, choices = given.get("prompt"), body.n or 1
    if isinstance(prompt, list) and not all(isinstance(token, int) for token in prompt):
        choices *= len(prompt)
    if choices > settings.max_beams:
        raise ApiError(400, f"n: {choices} choices were asked for, the limit here is {settings.max_beams}", "n")
    for name in _GRAMMARS & given.keys():
        size = sum(len(text) for _, text in texts_in(given[name]))
        if size > _LARGEST_GRAMMAR:
            raise ApiError(400, f"{name} has {size} characters, the limit is {_LARGEST_GRAMMAR}", name)
        for path, text in texts_in(given[name], name):
            if (depth := _brackets(text)) > _DEEPEST_GRAMMAR:
                raise ApiError(400, f"{path} nests {depth} brackets, the limit is {_DEEPEST_GRAMMAR}", name)


def _brackets(text: str) -> int:
    """The most brackets that are open at a time."""
    steps = ((char in "([{") - (char in ")]}") for char in text)
    return max(accumulate(steps), default=0)


async def _answer(call, body, request: Request, served: Served):
    body.request_id = request.state.id  # a client's own would stand in the engine's log
    request.state.log |= {"catalogue_version": served.number, "stream": bool(body.stream)}
    engine_context.set(_context(body, served))
    try:
        made = await until_disconnect(request, call(body, request))
    except ApiError:
        raise
    except Exception as error:
        raise _failed(create_error_response(error), body, request, error) from error
    if hasattr(made, "error"):
        raise _failed(made, body, request)
    if hasattr(made, "model_dump"):
        return JSONResponse(_with_items(made.model_dump(), served))
    return StreamingResponse(_events(made, served), media_type="text/event-stream")


def _failed(response, body, request: Request, error: Exception | None = None) -> ApiError:
    """A grammar that an engine could not follow is the client's mistake, where the engine is well."""
    answer = _api_error(response, error)
    if answer.status_code == 503:
        request.app.state.front.check()
        asked = next((name for name in sorted(_GRAMMARS) if getattr(body, name, None) is not None), None)
        if asked is not None:
            return ApiError(400, f"the engine cannot follow {asked}: simplify it", asked)
    return answer


def _context(body, served: Served) -> EngineContext:
    given = body.vllm_xargs or {}
    if given.get("semid_version") is not None:
        message = "a request gets the catalogue version that is current when it comes: leave semid_version out"
        raise ApiError(400, message, "vllm_xargs.semid_version")
    fields = {name: given[name] for name in _OURS if name in given}
    if body.use_beam_search:
        fields.setdefault("semid", "next")
    return EngineContext(served.number, fields, body.use_beam_search)


async def _refused(request: Request, error: VLLMError) -> JSONResponse:
    return _api_error(create_error_response(error), error).response()


def _api_error(response, error: Exception | None = None) -> ApiError:
    info = response.error
    if info.code == 404:
        return ApiError(404, info.message, info.param)
    if info.code == 429:
        return ApiError(429, info.message, info.param, headers={"Retry-After": "1"})
    if info.code < 500 or info.code == 501:  # 501: what vLLM does not do
        return ApiError(400, info.message, info.param)
    logger.error("the engine failed: %s", info.message, exc_info=error)
    return engine_failed()


def _with_items(answer: dict, served: Served) -> dict:
    for choice in answer["choices"]:
        text = choice["message"]["content"] if "message" in choice else choice["text"]
        choice["items"] = served.items_in(text or "")
    return answer


async def _events(stream: AsyncIterator[str], served: Served) -> AsyncIterator[str]:
    """The same events, and one more with every choice's items before the last."""
    texts: dict[int, str] = defaultdict(str)
    head: dict = {}
    async for event in stream:
        data = event.removeprefix("data:").strip()
        if data == "[DONE]" and head:
            rest = {"delta": {}} if head["object"].startswith("chat") else {"text": ""}
            choices = [
                {"index": number, **rest, "finish_reason": None, "items": served.items_in(text)}
                for number, text in sorted(texts.items())
            ]
            yield f"data: {json.dumps(head | {'choices': choices})}\n\n"
        elif data.startswith("{"):
            fields = json.loads(data)
            if "choices" in fields:
                head = {name: fields[name] for name in ("id", "object", "created", "model")}
                for choice in fields["choices"]:
                    said = choice["delta"].get("content") if "delta" in choice else choice["text"]
                    texts[choice["index"]] += said or ""
        yield event

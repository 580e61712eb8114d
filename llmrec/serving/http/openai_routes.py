"""OpenAI's chats and completions by vLLM's own serving objects, with the items that the texts name beside them."""

import json
import logging
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, NamedTuple

from fastapi import APIRouter, FastAPI, Request
from fastapi.responses import JSONResponse, StreamingResponse

from llmrec.serving.http.engine_context import EngineContext, engine_context
from llmrec.serving.http.errors import ApiError
from llmrec.serving.http.limits import Gate, until_disconnect
from llmrec.serving.http.responses import errors
from llmrec.serving.http.service import Served, Service

if TYPE_CHECKING:
    from vllm.entrypoints.openai.chat_completion.serving import OpenAIServingChat
    from vllm.entrypoints.openai.completion.serving import OpenAIServingCompletion

logger = logging.getLogger("llmrec.serving")

_OURS = ("semid", "semid_start", "semid_normalize")


class Generate(NamedTuple):
    """vLLM's serving objects, both over a `VersionedEngine` (`llmrec.serving.http.engine_context`).

    `vllm.entrypoints.launchers.api_server.app_state.init_app_state` makes them: `state.openai_serving_chat` and
    `state.openai_serving_completion`.
    """

    chat: "OpenAIServingChat"
    completion: "OpenAIServingCompletion"


class _Stream(StreamingResponse):
    """Server-sent events; `held` is let go when they end, or the client goes away."""

    def __init__(self, content, held: AsyncExitStack):
        super().__init__(content, media_type="text/event-stream")
        self._held = held

    async def __call__(self, scope, receive, send) -> None:
        async with self._held:
            await super().__call__(scope, receive, send)


def add_openai_routes(app: FastAPI, service: Service, generate: Generate, gate: Gate) -> None:
    """Adds `/v1/chat/completions` and `/v1/completions`."""
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
    from vllm.entrypoints.openai.completion.protocol import CompletionRequest
    from vllm.exceptions import VLLMError

    router = APIRouter(tags=["generate"])
    documented = {
        **errors(400, 401, 404, 413, 429, 503),
        200: {"content": {"application/json": {"schema": {"type": "object"}}, "text/event-stream": {}}},
    }

    async def answer(call, body, request: Request):
        async with AsyncExitStack() as held:
            await until_disconnect(request, held.enter_async_context(gate.slot()))
            served = held.enter_context(service.using())
            request.state.log |= {"catalogue_version": served.number, "stream": bool(body.stream)}
            engine_context.set(_context(body, served))
            try:
                made = await until_disconnect(request, call(body, request))
            except ApiError:
                raise
            except Exception as error:
                raise _refusal(error) from error
            if hasattr(made, "error"):
                raise _api_error(made)
            if hasattr(made, "model_dump"):
                return JSONResponse(_with_items(made.model_dump(), served))
            return _Stream(_events(made, served), held.pop_all())

    @router.post("/v1/chat/completions", responses=documented)
    async def chat(body: ChatCompletionRequest, request: Request):
        """OpenAI's, by vLLM; every choice has `items`: those whose Semantic IDs stand in its text."""
        return await answer(generate.chat.create_chat_completion, body, request)

    @router.post("/v1/completions", responses=documented)
    async def completion(body: CompletionRequest, request: Request):
        """OpenAI's, by vLLM; every choice has `items`. With `use_beam_search` choices are Semantic IDs."""
        if body.use_beam_search and isinstance(body.prompt, list) and not all(isinstance(t, int) for t in body.prompt):
            if len(body.prompt) > 1:
                raise ApiError(400, "beam search takes one prompt: send the others by themselves", "prompt")
        return await answer(generate.completion.create_completion, body, request)

    @app.exception_handler(VLLMError)
    async def refused(request: Request, error: VLLMError):
        return _refusal(error).response()

    app.include_router(router)


def _context(body, served: Served) -> EngineContext:
    given = body.vllm_xargs or {}
    if given.get("semid_version") is not None:
        message = "a request gets the catalogue version that is current when it comes: leave semid_version out"
        raise ApiError(400, message, "vllm_xargs.semid_version")
    fields = {name: given[name] for name in _OURS if name in given}
    if body.use_beam_search:
        fields.setdefault("semid", "next")
    return EngineContext(served.number, fields, body.use_beam_search)


def _refusal(error: Exception) -> ApiError:
    from vllm.entrypoints.serve.exception_handling.error_response import create_error_response

    return _api_error(create_error_response(error), error)


def _api_error(response, error: Exception | None = None) -> ApiError:
    """vLLM's `ErrorResponse` as ours."""
    info = response.error
    if info.code == 404:
        return ApiError(404, info.message, info.param)
    if info.code == 429:
        return ApiError(429, info.message, info.param, headers={"Retry-After": "1"})
    if info.code < 500 or info.code == 501:  # 501: what vLLM does not do
        return ApiError(400, info.message, info.param)
    logger.error("the engine failed: %s", info.message, exc_info=error)
    return ApiError(503, "the engine failed: try again later", code="engine", headers={"Retry-After": "1"})


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
            chat = head["object"].startswith("chat")
            rest = {"delta": {}} if chat else {"text": ""}
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

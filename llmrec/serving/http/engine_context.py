"""What all engine requests of one HTTP request say: the trace that they belong to, and about Semantic IDs the version,
the mode, and where the answer begins.

vLLM's beam search sends an engine request for every beam and step, made by itself: of what the client said it keeps
nothing. So an engine client in between adds it.
"""

import copy
from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field


@dataclass
class EngineContext:
    """Fields of `llmrec.decoding.semid_states.SemIDRequest` for engine requests.

    Args:
        fields: what the client said, e.g. `{"semid": "next"}`.
        beam_search: engine requests are beams of one prompt, that of the first.
    """

    version: int
    fields: Mapping = field(default_factory=dict)
    beam_search: bool = False
    start: int | None = None

    def extra_args(self, given: Mapping | None, prompt_length: int) -> dict:
        """Those of an engine request whose prompt has so many tokens."""
        if self.start is None or not self.beam_search:
            self.start = prompt_length
        args = {**(given or {}), **self.fields, "semid_version": self.version}
        if args.get("semid") == "next":
            args.setdefault("semid_start", self.start)
        return args


engine_context: ContextVar[EngineContext | None] = ContextVar("engine_context", default=None)


came_with: ContextVar[Mapping[str, str] | None] = ContextVar("came_with", default=None)  # `traceparent`, `tracestate`


class TracedEngine:
    """An engine client of vLLM whose requests belong to the trace of the HTTP request, where the engine `traces`; all
    else is the client's."""

    def __init__(self, client, traces: bool = False):
        self._client, self._traces = client, traces

    def __getattr__(self, name: str):
        return getattr(self._client, name)

    def encode(self, *args, **more):
        return self._client.encode(*args, **(more | self._trace()))

    def generate(self, *args, **more):
        return self._client.generate(*args, **(more | self._trace()))

    def _trace(self) -> dict:
        if not self._traces:
            return {}
        from opentelemetry.propagate import inject

        headers = dict(came_with.get() or {})
        inject(headers)  # the span of this server, where it has one
        return {"trace_headers": headers}


class VersionedEngine(TracedEngine):
    """One whose `generate` adds the `engine_context`."""

    def generate(self, prompt, sampling_params, request_id: str, **more):
        """See vLLM's `EngineClient.generate`; prompts are tokens already."""
        context = engine_context.get()
        if context is not None:
            sampling_params = copy.copy(sampling_params)
            length = len(prompt["prompt_token_ids"])
            sampling_params.extra_args = context.extra_args(sampling_params.extra_args, length)
        return super().generate(prompt, sampling_params, request_id, **more)

"""What all engine requests of one HTTP request say about Semantic IDs: the version, the mode, where the answer begins.

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


class VersionedEngine:
    """An engine client of vLLM whose `generate` adds the `engine_context`; all else is the client's."""

    def __init__(self, client):
        self._client = client

    def __getattr__(self, name: str):
        return getattr(self._client, name)

    def generate(self, prompt, sampling_params, request_id: str, **more):
        """See vLLM's `EngineClient.generate`; prompts are tokens already."""
        context = engine_context.get()
        if context is not None:
            sampling_params = copy.copy(sampling_params)
            length = len(prompt["prompt_token_ids"])
            sampling_params.extra_args = context.extra_args(sampling_params.extra_args, length)
        return self._client.generate(prompt, sampling_params, request_id, **more)

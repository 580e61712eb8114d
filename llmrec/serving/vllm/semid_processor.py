"""`SemIDProcessor`: Semantic IDs in ordinary vLLM, as a logits processor for both of its model runners.

    --logits-processors llmrec.serving.vllm.semid_processor:SemIDProcessor --logprobs-mode processed_logits
    --additional-config '{"semid": {"default": "next"}}'

What a request may set stands in `llmrec.decoding.semid_states.SemIDRequest`; `default` and `normalize` in
`additional_config["semid"]` are the engine's defaults for requests without `semid` and `semid_normalize`.

With default "next", temperature 0 and `logprobs_mode="processed_logits"` vLLM's own beam search is exact: it sums the
scores of `llmrec.decoding`. It glues every beam to the prompt, so the SemID so far is read from the prompt's end.
Where prompts themselves end with SemIDs (format stream) and these are ragged, give `semid_start` instead: the tokens
alone do not say whether the last SemID is the answer.

Interfaces checked with vLLM 0.32: V1 (CPUs; `VLLM_USE_V2_MODEL_RUNNER=0`) hands over Python lists, V2 (GPUs) tensors.
"""

import logging
from dataclasses import dataclass

import numpy as np
import torch
from vllm.exceptions import VLLMValidationError
from vllm.v1.sample.logits_processor import LogitsProcessor as V1LogitsProcessor
from vllm.v1.sample.logits_processor import MoveDirectionality
from vllm.v1.worker.gpu.sample.logits_processor.interface import LogitsProcessor as V2LogitsProcessor

from llmrec.arguments import one_of
from llmrec.decoding.semid_states import MODES, NORMALIZATIONS, CatalogueTokens, Prefix, SemIDRequest, SemIDStates
from llmrec.serving.vllm import catalogues

logger = logging.getLogger(__name__)


@dataclass(eq=False)
class _Row:
    """A request of the V1 runner: its output (a live list), how much of that was read, and its slot."""

    request: SemIDRequest
    prefix: Prefix
    catalogue: CatalogueTokens
    reported: bool
    room: int
    output: list[int]
    read: int = 0
    slot: int | None = None


class SemIDProcessor(V1LogitsProcessor, V2LogitsProcessor):
    """Lets the catalogue's trie rule inside Semantic IDs.

    Args:
        runner: what the runner adds to the configuration: V1 `(device, is_pin_memory)`, V2 `(req_states,)`.

    Raises:
        ValueError: no model folder, a tokenizer without EOS, or a wrong `additional_config["semid"]`.
    """

    def __init__(self, vllm_config, *runner):
        self._reports = vllm_config.model_config.logprobs_mode == "processed_logits"
        self._longest = vllm_config.model_config.max_model_len
        self._request_states = runner[0] if len(runner) == 1 else None
        if self._request_states is None:
            device, size = torch.device(runner[0]), vllm_config.scheduler_config.max_num_seqs
        else:
            device, size = self._request_states.device, self._request_states.max_num_reqs
        self._catalogues = catalogues.of(vllm_config)
        config, index = self._catalogues.config, self._catalogues.get().index
        given, where = vllm_config.additional_config.get("semid", {}), 'additional_config["semid"]'
        if unknown := sorted(set(given) - {"default", "normalize"}):
            raise ValueError(f"{where}: unknown field {unknown[0]!r}; there are default and normalize")
        self._mode = one_of(given.get("default", "inside"), MODES, f"{where}: default")
        self._normalize = one_of(given.get("normalize", config.normalize), NORMALIZATIONS, f"{where}: normalize")
        self._adds_tokens = index.adds_tokens
        self._states = SemIDStates(size, device, config.prompt.get("format", "chat") == "chat")
        # V1
        self._rows: dict[int, _Row] = {}  # by place in the batch
        self._used: set[int] = set()  # slots of rows
        # V2
        self._staged: dict[int, tuple | None] = {}  # by slot, of `_read`; None: the request is left alone
        self._active = np.zeros(size, bool)
        self._unread = np.zeros(size, np.int64)  # output that was there before the request came to its slot
        self._position = torch.zeros(size + 1, dtype=torch.long, device=device)  # tokens of each slot that were read
        speculative = vllm_config.speculative_config
        self._drafts = speculative.num_speculative_tokens if speculative else 0

    @classmethod
    def validate_params(cls, sampling_params) -> None:
        """Refuses wrong `extra_args` when a request comes (HTTP 400)."""
        try:
            SemIDRequest.of(sampling_params.extra_args)
        except ValueError as error:
            raise VLLMValidationError(str(error)) from error

    def is_argmax_invariant(self) -> bool:
        return False

    def _read(self, sampling_params) -> tuple[SemIDRequest, bool, int] | None:
        """What a request wants, whether its log-probabilities are asked for, and how many tokens it may have; `None`:
        nothing of us."""
        request = SemIDRequest.of(sampling_params.extra_args, self._mode, self._normalize)
        if request.mode != "next" and not self._adds_tokens:
            return None  # words of the LLM do not say where a SemID begins
        asked = sampling_params.logprobs is not None or bool(sampling_params.logprob_token_ids)
        return request, asked and self._reports, sampling_params.max_tokens or self._longest

    def _catalogue(self, number: int | None) -> CatalogueTokens:
        """A version, by default the newest. In place of one that is not loaded too, with a warning: vLLM has no way
        here to fail one request alone."""
        try:
            tokens = self._catalogues.get(number).tokens
        except ValueError as error:
            logger.warning("%s; the newest version is used", error)
            tokens = self._catalogues.get().tokens
        return tokens.to(self._states.device)

    # V1

    def update_state(self, batch_update) -> None:
        if batch_update is None:
            return
        for index in batch_update.removed:
            self._rows.pop(index, None)
        for index, params, prompt, output in batch_update.added:
            self._rows.pop(index, None)
            if (read := self._read(params)) is not None:
                request, reported, room = read
                catalogue = self._catalogue(request.version)
                prefix = catalogue.prefix(prompt or [], request.start)
                room = min(room, self._longest - len(prompt or []))
                self._rows[index] = _Row(request, prefix, catalogue, reported, room, output)
        for source, target, direction in batch_update.moved:
            moved, replaced = self._rows.pop(source, None), self._rows.pop(target, None)
            if moved is not None:
                self._rows[target] = moved
            if replaced is not None and direction == MoveDirectionality.SWAP:
                self._rows[source] = replaced
        kept = {row.slot for row in self._rows.values()}
        if gone := self._used - kept:
            self._states.end([*gone])
        free = (slot for slot in range(self._states.size) if slot not in kept)
        new = [row for row in self._rows.values() if row.slot is None]
        for row in new:
            row.slot = next(free)
        self._used = {row.slot for row in self._rows.values()}
        self._begin(new)

    def _begin(self, rows: list[_Row]) -> None:
        if rows:
            fields = [(row.slot, row.request, row.prefix, row.catalogue, row.reported, row.room) for row in rows]
            self._states.begin(*map(list, zip(*fields)))
        for row in rows:
            row.read = 0

    def apply(self, logits: torch.Tensor, ctx=None) -> torch.Tensor:
        """Masks and scores `logits` (float32 [N, V]) in place; V2 gives `ctx`."""
        if ctx is not None:
            return self._apply_v2(logits, ctx)
        if not self._rows:
            return logits
        states = self._states
        self._begin([row for row in self._rows.values() if len(row.output) < row.read])  # vLLM took tokens back
        indices = sorted(self._rows)
        rows = [self._rows[index] for index in indices]
        tries = states.catalogues_of(row.slot for row in rows)
        slots = torch.tensor([row.slot for row in rows], device=states.device)
        tokens, counts = states.padded([row.output[row.read :] for row in rows])
        place = states.places_of(slots)
        for column in range(tokens.shape[1]):
            place = states.read(place, slots, tokens[:, column], column < counts, tries)
        states.keep(slots, place)
        for row in rows:
            row.read = len(row.output)
        if indices == list(range(len(logits))):
            states.constrain(logits, slots, place, tries)
            return logits
        indices = torch.tensor(indices, device=states.device)
        ours = logits[indices]
        states.constrain(ours, slots, place, tries)
        return logits.index_copy_(0, indices, ours)

    # V2

    def add_request(self, req_idx: int, sampling_params) -> bool:
        """Its tokens are on the device only in `apply_staged_writes`."""
        self._staged[req_idx] = self._read(sampling_params)
        self._active[req_idx] = self._staged[req_idx] is not None
        return bool(self._active[req_idx])

    def apply_staged_writes(self) -> None:
        if not self._staged:
            return
        ours = {slot: read for slot, read in self._staged.items() if read is not None}
        self._states.end([slot for slot in self._staged if slot not in ours])
        self._staged = {}
        if not ours:
            return
        source, slots = self._request_states, list(ours)
        requests, reported, room = map(list, zip(*ours.values()))
        wanted = [self._catalogue(request.version) for request in requests]
        lengths = source.prompt_len.np[slots].astype(np.int64)
        index = torch.tensor(slots, device=source.device)
        prompts = source.all_token_ids.gpu[index, : lengths.max()].cpu().numpy()
        prefixes = [
            catalogue.prefix(prompt[:length].tolist(), request.start)
            for catalogue, prompt, length, request in zip(wanted, prompts, lengths, requests)
        ]
        room = np.minimum(room, self._longest - lengths).tolist()
        self._states.begin(slots, requests, prefixes, wanted, reported, room)
        self._position[index] = torch.from_numpy(lengths).to(source.device)
        self._unread[slots] = source.prefill_len.np[slots] - lengths

    def _apply_v2(self, logits: torch.Tensor, ctx) -> torch.Tensor:
        batch = ctx.idx_mapping_np
        if not self._active[batch].any():
            return logits
        states, history = self._states, self._request_states.all_token_ids.gpu
        slots, local = ctx.expanded_idx_mapping.long(), ctx.expanded_local_pos.long()
        last, position = ctx.pos.long(), self._position[slots]
        rows, tries = torch.arange(len(slots), device=slots.device), states.catalogues_of(batch.tolist())
        place = states.places_of(slots)
        # Drafts that were accepted in the last step, those of this step, and what a request came with
        for step in range(1 + 2 * self._drafts + int(self._unread[batch].max())):
            at = position + step
            behind = last - at  # how long ago the token was fed
            given = behind >= 0
            fed = ctx.input_ids[(rows - behind).clamp(0, len(ctx.input_ids) - 1)].long()
            kept = history[slots, at.clamp(0, history.shape[1] - 1)].long()
            tokens = torch.where(behind <= local, fed, kept)  # drafts are only among what was fed
            place = states.read(place, slots, tokens, given, tries)
        states.constrain(logits, slots, place, tries)
        target = torch.where(local == 0, slots, states.size)  # what follows a draft may be rejected
        states.keep(target, place)
        self._position[target] = torch.maximum(position, last + 1)
        self._unread[batch[ctx.seq_lens_upper_bound_np >= self._request_states.prefill_len.np[batch]]] = 0
        return logits

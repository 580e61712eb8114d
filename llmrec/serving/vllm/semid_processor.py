"""`SemIDProcessor`: Semantic IDs in ordinary vLLM, as a logits processor for both of its model runners.

    --logits-processors llmrec.serving.vllm.semid_processor:SemIDProcessor --logprobs-mode processed_logits
    --additional-config '{"semid": {"default": "next"}}'

What a request may set stands in `llmrec.serving.vllm.semid_states.SemIDRequest`; `default` and `normalize` in
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

from llmrec.models.folder import RecommenderConfig
from llmrec.models.vocabulary import semid_token_ids
from llmrec.serving.vllm import catalogues
from llmrec.serving.vllm.semid_states import MODES, NORMALIZATIONS, Catalogue, Prefix, SemIDRequest, SemIDStates

try:
    from vllm.v1.worker.gpu.sample.logits_processor.interface import LogitsProcessor as V2LogitsProcessor
except ImportError:  # a vLLM without the V2 runner

    class V2LogitsProcessor:
        pass


logger = logging.getLogger(__name__)


@dataclass
class _Row:
    """A request of the V1 runner: its slot, its output (a live list), and how much of that was read."""

    slot: int
    request: SemIDRequest
    prefix: Prefix
    catalogue: Catalogue
    reported: bool
    output: list[int]
    read: int = 0


class SemIDProcessor(V1LogitsProcessor, V2LogitsProcessor):
    """Lets the catalogue's trie rule inside Semantic IDs.

    Args:
        vllm_config: of an engine on a model folder (`llmrec.models.folder`).
        runner: what the runner adds: V1 `(device, is_pin_memory)`, V2 `(req_states,)`.

    Raises:
        ValueError: no model folder, a tokenizer without EOS, or a wrong `additional_config["semid"]`.
    """

    def __init__(self, vllm_config, *runner):
        self._reports = vllm_config.model_config.logprobs_mode == "processed_logits"
        self._request_states = runner[0] if len(runner) == 1 else None
        if self._request_states is None:
            device, size = torch.device(runner[0]), vllm_config.scheduler_config.max_num_seqs
        else:
            device, size = self._request_states.device, self._request_states.max_num_reqs
        config = RecommenderConfig.load(vllm_config.model_config.model)
        self._mode, self._normalize = _defaults(vllm_config.additional_config.get("semid", {}), config)
        self._catalogues = _Catalogues(vllm_config, device)
        self._states = SemIDStates(size, device, config.prompt.get("format", "chat") == "chat")
        # V1
        self._rows: dict[int, _Row] = {}  # by place in the batch
        self._free = list(range(size))
        # V2
        self._staged: dict[int, tuple[SemIDRequest, bool] | None] = {}  # by slot; None: the request is left alone
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

    def _read(self, sampling_params) -> tuple[SemIDRequest, bool] | None:
        """What a request wants and whether its log-probabilities are asked for; `None`: nothing of us."""
        request = SemIDRequest.of(sampling_params.extra_args, self._mode, self._normalize)
        if request.mode == "inside" and not self._catalogues.adds_tokens:
            return None  # words of the LLM do not say where a SemID begins
        asked = sampling_params.logprobs is not None or bool(sampling_params.logprob_token_ids)
        return request, asked and self._reports

    # V1

    def update_state(self, batch_update) -> None:
        """Follows requests that leave, enter and move in the batch, in this order."""
        if batch_update is None:
            return
        gone = [self._rows.pop(index, None) for index in batch_update.removed]
        new = []
        for index, params, prompt, output in batch_update.added:
            gone.append(self._rows.pop(index, None))
            if (read := self._read(params)) is not None:
                catalogue = self._catalogues.get(read[0].version)
                prefix = catalogue.prefix(prompt or [], read[0].start)
                self._rows[index] = _Row(-1, read[0], prefix, catalogue, read[1], output)
                new.append(self._rows[index])
        for source, target, direction in batch_update.moved:
            moved, replaced = self._rows.pop(source, None), self._rows.pop(target, None)
            if moved is not None:
                self._rows[target] = moved
            if replaced is not None and direction == MoveDirectionality.SWAP:
                self._rows[source] = replaced
            else:
                gone.append(replaced)
        freed = [row.slot for row in gone if row is not None and row.slot >= 0]
        if freed:
            self._states.end(freed)
            self._free += freed
        kept = set(map(id, self._rows.values()))
        new = [row for row in new if id(row) in kept]
        for row in new:
            row.slot = self._free.pop()
        self._begin(new)

    def _begin(self, rows: list[_Row]) -> None:
        if rows:
            fields = [(row.slot, row.request, row.prefix, row.catalogue, row.reported) for row in rows]
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
        """Notes a request; its tokens are on the device only in `apply_staged_writes`."""
        self._staged[req_idx] = self._read(sampling_params)
        self._active[req_idx] = self._staged[req_idx] is not None
        return bool(self._active[req_idx])

    def apply_staged_writes(self) -> None:
        """Starts the requests that were noted: reads the ends of their prompts."""
        if not self._staged:
            return
        ours = {slot: read for slot, read in self._staged.items() if read is not None}
        self._states.end([slot for slot in self._staged if slot not in ours])
        self._staged = {}
        if not ours:
            return
        source, slots = self._request_states, list(ours)
        requests, reported = map(list, zip(*ours.values()))
        wanted = [self._catalogues.get(request.version) for request in requests]
        lengths = source.prompt_len.np[slots].astype(np.int64)
        prompts = [source.all_token_ids.gpu[slot, :length].tolist() for slot, length in zip(slots, lengths)]
        prefixes = [c.prefix(prompt, r.start) for c, prompt, r in zip(wanted, prompts, requests)]
        self._states.begin(slots, requests, prefixes, wanted, reported)
        self._position[torch.tensor(slots, device=source.device)] = torch.from_numpy(lengths).to(source.device)
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
            held = behind >= 0
            fed = ctx.input_ids[(rows - behind).clamp(0, len(ctx.input_ids) - 1)].long()
            kept = history[slots, at.clamp(0, history.shape[1] - 1)].long()
            tokens = torch.where(behind <= local, fed, kept)  # drafts are only among what was fed
            place = states.read(place, slots, tokens, held, tries)
        states.constrain(logits, slots, place, tries)
        target = torch.where(local == 0, slots, states.size)  # what follows a draft may be rejected
        states.keep(target, place)
        self._position[target] = torch.maximum(position, last + 1)
        self._unread[batch[ctx.seq_lens_upper_bound_np >= self._request_states.prefill_len.np[batch]]] = 0
        return logits


def _defaults(given: dict, config: RecommenderConfig) -> tuple[str, str]:
    """The engine's mode and normalisation."""
    where = 'additional_config["semid"]'
    unknown = sorted(set(given) - {"default", "normalize"})
    if unknown:
        raise ValueError(f"{where}: unknown field {unknown[0]!r}; there are default and normalize")
    mode, normalize = given.get("default", "inside"), given.get("normalize", config.normalize)
    if mode not in tuple(MODES):
        raise ValueError(f"{where}: default should be one of {', '.join(MODES)}, not {mode!r}")
    if normalize not in NORMALIZATIONS:
        raise ValueError(f"{where}: normalize should be one of {', '.join(NORMALIZATIONS)}, not {normalize!r}")
    return mode, normalize


class _Catalogues:
    """The catalogue versions of this process as `Catalogue` objects on a device."""

    def __init__(self, vllm_config, device: torch.device):
        directory = vllm_config.additional_config.get("catalogue")
        self._versions = catalogues.of(vllm_config.model_config.model, directory)
        index = self._versions.get().index
        self.adds_tokens = index.adds_tokens
        self._levels = semid_token_ids(self._versions.tokenizer, index) or None  # every version has the same tokens
        self._device = device
        self._made: list[Catalogue] = []

    def get(self, number: int | None) -> Catalogue:
        """A version, by default the newest. In place of one that is not loaded too, with a warning: vLLM has no way
        here to fail one request alone."""
        try:
            trie = self._versions.get(number).trie.to(self._device)
        except ValueError as error:
            logger.warning("%s; the newest version is used", error)
            trie = self._versions.get().trie.to(self._device)
        for catalogue in self._made:
            if catalogue.trie is trie:
                return catalogue
        self._made = [*self._made[-3:], Catalogue(trie, self._levels)]  # requests keep the older ones that they use
        return self._made[-1]

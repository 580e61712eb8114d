"""A simulated engine for the logits processor, with plain Python beside it: vLLM's V2 runner itself needs a GPU."""

from types import SimpleNamespace

import numpy as np
import torch
from decoding.reference_states import Case, expected_row
from transformers import AutoConfig

from llmrec.decoding.semid_states import SemIDRequest


def prompts_of(case: Case, count: int, seed: int = 0) -> list[list[int]]:
    """Texts with SemIDs in them, also of removed items, that end in text."""
    rng = np.random.default_rng(seed)
    text = [token for token in range(5, 100) if token not in case.tokens and token != case.eos]
    semids = [*sorted(case.semids), *case.removed]
    prompts = []
    for _ in range(count):
        history = [semids[i] for i in rng.integers(0, len(semids), rng.integers(0, 4))]
        prompts.append([*rng.choice(text, 5).tolist(), *sum(history, ()), *rng.choice(text, 3).tolist()])
    return prompts


class Live(SimpleNamespace):
    """A request of the simulated engine."""


class Simulation:
    """An engine that hands the same requests to a processor of each interface, in batches of their own order."""

    longest = 40

    def __init__(self, folder, case: Case, size: int, seed: int, mode: str, drafts: int = 0):
        from llmrec.serving.vllm.semid_processor import SemIDProcessor

        self.case, self.size, self.rng, self.mode = case, size, np.random.default_rng(seed), mode
        self.vocabulary = AutoConfig.from_pretrained(folder).vocab_size
        config = SimpleNamespace(
            model_config=SimpleNamespace(
                model=str(folder), logprobs_mode="processed_logits", max_model_len=self.longest
            ),
            scheduler_config=SimpleNamespace(max_num_seqs=size),
            additional_config={"semid": {"default": mode}},
            speculative_config=SimpleNamespace(num_speculative_tokens=drafts) if drafts else None,
        )
        self.tokens = torch.zeros(size, 64, dtype=torch.int32)
        self.prompt_len, self.prefill_len = np.zeros(size, np.int32), np.zeros(size, np.int32)
        states = SimpleNamespace(
            device=torch.device("cpu"),
            max_num_reqs=size,
            all_token_ids=SimpleNamespace(gpu=self.tokens),
            prompt_len=SimpleNamespace(np=self.prompt_len),
            prefill_len=SimpleNamespace(np=self.prefill_len),
        )
        self.v1 = SemIDProcessor(config, torch.device("cpu"), False)
        self.v2 = SemIDProcessor(config, states)
        self.rows: list[Live | None] = []  # V1's batch
        self.free = list(range(size))  # V2's slots
        self.waiting: list[Live] = []  # were preempted

    def new_request(self) -> Live:
        from vllm import SamplingParams

        rng, case = self.rng, self.case
        semids = [*sorted(case.semids), *case.removed]
        prompt = prompts_of(case, 1, int(rng.integers(1 << 30)))[0]
        if rng.random() < 0.5:  # a beam, or a history that the answer goes on with
            prompt = prompt + list(sum((semids[i] for i in rng.integers(0, len(semids), rng.integers(1, 3))), ()))
            prompt = prompt[: len(prompt) - int(rng.integers(0, 3))]
        extra = {"other": 1}
        if rng.random() < 0.7:
            extra["semid"] = ["inside", "never", "next"][rng.integers(3)]
        if rng.random() < 0.2:
            extra["semid_start"] = int(rng.integers(len(prompt) - 2, len(prompt) + 1))
        if rng.random() < 0.5:
            extra["semid_normalize"] = "catalogue"
        longest = [None, 3, 16][rng.integers(3)]
        params = SamplingParams(extra_args=extra, logprobs=[None, 3][rng.integers(2)], max_tokens=longest)
        request = SemIDRequest.of(extra, self.mode)
        return Live(prompt=prompt, output=[], params=params, request=request, chunked=bool(rng.random() < 0.3))

    def expected(self, live: Live, logits: torch.Tensor, drafts: tuple = ()) -> torch.Tensor:
        reported = live.params.logprobs is not None
        output = [*live.output, *drafts]
        room = min(live.params.max_tokens or self.longest, self.longest - len(live.prompt))
        return expected_row(logits, live.request, live.prompt, output, self.case, True, reported, room)

    def change(self) -> None:
        """Requests finish, are preempted, come, and move."""
        from vllm.v1.sample.logits_processor import BatchUpdate, MoveDirectionality

        removed, added, moved = [], [], []
        for index, live in enumerate(self.rows):
            if self.rng.random() < 0.2:
                if self.rng.random() < 0.3:
                    self.waiting.append(live)
                self.free.append(live.slot)
                self.rows[index] = None
                removed.append(index)
        for _ in range(self.rng.integers(0, 4)):
            if not self.free:
                break
            live = self.waiting.pop() if self.waiting and self.rng.random() < 0.7 else self.new_request()
            live.slot, live.fed = self.free.pop(), 0
            if removed and self.rng.random() < 0.8:
                index = removed.pop(0)
                self.rows[index] = live
            else:
                index = len(self.rows)
                self.rows.append(live)
            added.append((index, live.params, live.prompt, live.output))
            everything = live.prompt + live.output
            self.tokens[live.slot, : len(everything)] = torch.tensor(everything, dtype=torch.int32)
            self.prompt_len[live.slot], self.prefill_len[live.slot] = len(live.prompt), len(everything)
            self.v2.add_request(live.slot, live.params)
        self.v2.apply_staged_writes()
        while None in self.rows:  # the last request takes the first empty place
            last = self.rows.pop()
            if last is not None:
                index = self.rows.index(None)
                self.rows[index] = last
                moved.append((len(self.rows), index, MoveDirectionality.UNIDIRECTIONAL))
        if len(self.rows) > 1 and self.rng.random() < 0.5:
            a, b = self.rng.choice(len(self.rows), 2, replace=False).tolist()
            self.rows[a], self.rows[b] = self.rows[b], self.rows[a]
            moved.append((a, b, MoveDirectionality.SWAP))
        changed = removed or added or moved
        self.v1.update_state(BatchUpdate(len(self.rows), removed, added, moved) if changed else None)

    def step(self) -> None:
        """One token for every request, but for prompts that are fed in two chunks."""
        logits = torch.from_numpy(self.rng.normal(size=(len(self.rows), self.vocabulary)).astype(np.float32))
        by_v1 = self.v1.apply(logits.clone())
        order = self.rng.permutation(len(self.rows)).tolist()
        rows = [self.rows[index] for index in order]
        partial = [live.fed == 0 and live.chunked for live in rows]
        ends = [len(live.prompt + live.output) - 2 * chunk for live, chunk in zip(rows, partial)]
        by_v2 = self.apply_v2(logits[order], rows, [0] * len(rows), ends)
        for place, (index, live, chunk) in enumerate(zip(order, rows, partial)):
            live.fed = ends[place]
            if chunk:
                continue
            expected = self.expected(live, logits[index])
            torch.testing.assert_close(by_v1[index], expected)
            torch.testing.assert_close(by_v2[place], expected)
            allowed = expected.isfinite().nonzero()[:, 0]
            self.commit(live, int(self.rng.choice(allowed if self.rng.random() < 0.9 else self.vocabulary)))

    def commit(self, live: Live, token: int) -> None:
        self.tokens[live.slot, len(live.prompt + live.output)] = token
        live.output.append(token)

    def apply_v2(self, logits, rows, local, ends, fed=None) -> torch.Tensor:
        """V2's answer for rows that stand at `local` of their requests, which have `ends` tokens."""
        slots = [live.slot for live in rows]
        batch = np.array(list(dict.fromkeys(slots)), np.int32)
        if fed is None:
            fed = [(live.prompt + live.output)[end - 1] for live, end in zip(rows, ends)]
        ctx = SimpleNamespace(
            expanded_idx_mapping=torch.tensor(slots, dtype=torch.int32),
            idx_mapping_np=batch,
            expanded_local_pos=torch.tensor(local, dtype=torch.int32),
            input_ids=torch.tensor(fed, dtype=torch.int32),
            pos=torch.tensor(ends) - 1,
            seq_lens_upper_bound_np=np.array([max(e for e, s in zip(ends, slots) if s == slot) for slot in batch]),
        )
        return self.v2.apply(logits.clone(), ctx)

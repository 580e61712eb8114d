"""Times catalogue-constrained decoding against what transformers offers, in one process on one random model.

    python scripts/bench_decoding.py --json decoding.json       # about 6 minutes on 2 cores
    python scripts/bench_decoding.py --quick                    # the same on small sizes: is everything alive?

Beam search: Qwen3, 4 layers of width 256, fp32; 32 prompts of 140 - 160 tokens; 3,500 items, 3 levels of 256. Ours is
compared with `generate(num_beams, prefix_allowed_tokens_fn)` over a dict of prefixes; lists and scores must be equal.
At 151,936 tokens `generate` runs on 8 prompts, and so does ours beside it; for `normalize="catalogue"` its processor
is ours, which renormalises. Methods alternate; medians of wall time.

Masking step: 10 million random SemIDs, 32 x 50 beams, log-probabilities over the SemID tokens alone (a whole
vocabulary would only slow the dense methods down), from beams to the next 50 per prompt, summed over levels 2 - 4.
"dict" masks one beam at a time as `PrefixConstrainedLogitsProcessor` does, with a dict of the visited prefixes only;
"static" is STATIC's CSR: children gathered for all beams at once, scattered into a dense mask at every step.

On a GPU: what would wait for the device and how many kernels would start, counted on one that is none
(`scripts/pretend_gpu.py`) with 50 beams, lists held against the CPU's; and the most memory that a search of 256 and
512 beams after 5,000 tokens holds beside the weights, as a multiple of what the model's own prefill holds.
"""

import argparse
import itertools
import statistics
import time

import numpy as np
import torch
from pretend_gpu import GPU, PretendGPU
from torch.profiler import ProfilerActivity, profile
from transformers import Qwen3Config, Qwen3ForCausalLM
from transformers.utils import logging

from llmrec.decoding import search_items, tree_beam_search
from llmrec.decoding.beam_search import Beams, expand
from llmrec.decoding.logits_processor import constrained_generate
from llmrec.decoding.trie import SemIDTrie
from llmrec.files import write_json

EOS = 2
FIRST_SEMID = 2_000


def random_model(vocab_size: int, **config) -> Qwen3ForCausalLM:
    torch.manual_seed(0)
    sizes = {
        "hidden_size": 256,
        "intermediate_size": 768,
        "num_hidden_layers": 4,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 32,
        "max_position_embeddings": 512,
        "tie_word_embeddings": False,
    }
    config = Qwen3Config(vocab_size=vocab_size, eos_token_id=EOS, pad_token_id=0, **sizes | config)
    model = Qwen3ForCausalLM(config).eval()
    with torch.no_grad():
        model.lm_head.weight *= 8  # a random model is nearly indifferent: let beams differ
    return model


def random_catalogue(items: int = 3_500, levels: int = 3, size: int = 256) -> np.ndarray:
    rng = np.random.default_rng(0)
    codes = np.unique(rng.integers(0, size, (2 * items, levels)), axis=0)
    return rng.permutation(codes)[:items] + FIRST_SEMID + size * np.arange(levels)


def random_prompts(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(1)
    lengths = torch.from_numpy(rng.integers(140, 161, count))
    mask = (torch.arange(160) >= 160 - lengths[:, None]).long()
    return torch.from_numpy(rng.integers(3, FIRST_SEMID, (count, 160))) * mask, mask


def dict_generate(model, ids, mask, semids: np.ndarray, num_beams: int):
    following: dict[tuple, set] = {}
    for semid in semids.tolist():
        for level in range(len(semid)):
            following.setdefault(tuple(semid[:level]), set()).add(semid[level])
    following = {prefix: sorted(tokens) for prefix, tokens in following.items()}
    width = ids.shape[1]
    return model.generate(
        input_ids=ids,
        attention_mask=mask,
        num_beams=num_beams,
        num_return_sequences=num_beams,
        max_new_tokens=semids.shape[1],
        do_sample=False,
        length_penalty=0.0,
        early_stopping=False,
        prefix_allowed_tokens_fn=lambda _, tokens: following.get(tuple(tokens[width:].tolist()), [EOS]),
        return_dict_in_generate=True,
        output_scores=True,
    )


def medians(methods: dict, repetitions: dict[str, int]) -> dict[str, float]:
    """Median seconds of functions that take turns."""
    times: dict[str, list[float]] = {name: [] for name in methods}
    for turn in range(max(repetitions.values())):
        for name, method in methods.items():
            if turn < repetitions[name]:
                start = time.perf_counter()
                method()
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def equal(ours, theirs, width: int) -> bool:
    """The same SemIDs with scores within 1e-4, so in the same order but for closer neighbours."""
    n, b = ours.scores.shape
    tokens, scores = theirs.sequences[:, width:].view(n, b, -1), theirs.sequences_scores.view(n, b)
    for row in range(n):
        expected = dict(zip(map(tuple, tokens[row].tolist()), scores[row].tolist()))
        found = dict(zip(map(tuple, ours.tokens[row].tolist()), ours.scores[row].tolist()))
        if found.keys() != expected.keys() or any(abs(found[key] - expected[key]) > 1e-4 for key in found):
            return False
    return torch.allclose(scores, ours.scores, atol=1e-4, rtol=0)


@torch.no_grad()
def bench_beams(vocab_size: int, normalize: str, suffix: str, prompts: int, baseline: int, beams, turns) -> dict:
    """`prompts` for our search and the prefill, the first `baseline` of them against `generate`."""
    model, semids = random_model(vocab_size), random_catalogue()
    trie = SemIDTrie(semids, EOS)
    ids, mask = random_prompts(prompts)
    few, few_mask = ids[:baseline], mask[:baseline]

    def prefill():
        model(input_ids=ids, attention_mask=mask, use_cache=True, logits_to_keep=1)

    prefill()
    figures, same = {}, True
    for num_beams in beams:
        kept = {}

        def ours(ids, mask, num_beams=num_beams):
            return tree_beam_search(model, ids, mask, trie, num_beams, normalize=normalize)

        def generate(num_beams=num_beams, kept=kept):
            if normalize == "catalogue":
                kept["theirs"] = constrained_generate(model, few, few_mask, trie, num_beams, normalize=normalize)
            else:
                kept["theirs"] = dict_generate(model, few, few_mask, semids, num_beams)

        methods = {"prefill": prefill, "ours": lambda ours=ours: ours(ids, mask), "generate": generate}
        if baseline < prompts:
            methods["ours_few"] = lambda ours=ours: ours(few, few_mask)
        seconds = medians(methods, {"generate": turns[0], "prefill": turns[1], "ours": turns[1], "ours_few": turns[1]})
        same &= equal(ours(few, few_mask), kept["theirs"], ids.shape[1])
        speedup = seconds["generate"] / seconds.get("ours_few", seconds["ours"])
        ratio = seconds["ours"] / seconds["prefill"]
        figures |= {f"beam{num_beams}_speedup{suffix}": speedup, f"beam{num_beams}_over_prefill{suffix}": ratio}
        print(
            f"{vocab_size:>8,} {normalize:<10} {num_beams:>5} {seconds['prefill']:>9.2f} {seconds['ours']:>7.2f}"
            f" {ratio:>9.2f} {seconds['generate']:>10.2f} {baseline:>9} {speedup:>8.1f}",
            flush=True,
        )
    return figures | {f"lists_equal{suffix}": int(same)}


class DenseMaskCSR:
    """STATIC's step: static-width gathers from CSR arrays, a dense mask over the vocabulary at every step."""

    def __init__(self, trie: SemIDTrie, vocab_size: int):
        self.trie, self.vocab_size = trie, vocab_size

    def __call__(self, nodes, scores, logprobs, level, num_beams):
        n, b = nodes.shape
        children = self.trie.children(nodes.flatten(), level)
        tokens = torch.where(children.valid, self.trie.vocab[level][children.column], self.vocab_size)
        mask = torch.zeros(n * b, self.vocab_size + 1, dtype=torch.bool)
        mask.scatter_(1, tokens, True)
        masked = torch.where(mask[:, :-1], logprobs, -torch.inf) + scores.view(-1, 1)
        return masked.view(n, -1).topk(num_beams)


class DictMask:
    """transformers' step: a mask filled one beam at a time from a dict of prefixes."""

    def __init__(self, trie: SemIDTrie, nodes: torch.Tensor, prefixes: torch.Tensor, level: int):
        children = trie.children(nodes.flatten(), level)
        self.prefixes = prefixes.flatten(0, 1)
        self.following = {
            tuple(prefix): tokens[valid].tolist()
            for prefix, tokens, valid in zip(
                self.prefixes.tolist(), trie.vocab[level][children.column], children.valid
            )
        }

    def __call__(self, nodes, scores, logprobs, level, num_beams):
        mask = torch.full_like(logprobs, -torch.inf)
        for beam, prefix in enumerate(self.prefixes):
            mask[beam, self.following[tuple(prefix.tolist())]] = 0
        return (logprobs + mask + scores.view(-1, 1)).view(len(nodes), -1).topk(num_beams)


def bench_trie(rows: int, repetitions: int) -> dict[str, float]:
    levels, size, n, b = 4, 1_024, 32, 50
    rng = np.random.default_rng(0)
    matrix = rng.integers(0, size, (rows, levels), dtype=np.int32) + size * np.arange(levels, dtype=np.int32)
    start = time.perf_counter()
    trie = SemIDTrie(matrix)
    build = time.perf_counter() - start
    del matrix

    torch.manual_seed(0)
    beams, totals = Beams.start(n, torch.device("cpu")), {"ours": 0.0, "dict": 0.0, "static": 0.0}
    for level in range(levels):
        wide = torch.randn(beams.scores.numel(), levels * size).log_softmax(-1)
        none = torch.zeros_like(beams.scores)

        def ours(beams=beams, wide=wide, none=none, level=level):
            logits = wide.index_select(1, trie.head_ids[level]).view(*beams.scores.shape, -1)
            return expand(trie, level, beams, logits, none, b)

        running, _, finished = ours()
        if level:
            by_dict = DictMask(trie, beams.nodes, beams.tokens, level)
            dense = DenseMaskCSR(trie, levels * size)
            given = (beams.nodes, beams.scores, wide, level, b)
            methods = {"ours": ours, "dict": lambda: by_dict(*given), "static": lambda: dense(*given)}  # noqa: B023
            expected = (running or finished).scores.sort(descending=True).values
            for method in (by_dict, dense):
                torch.testing.assert_close(method(*given).values, expected)
            for name, seconds in medians(methods, dict.fromkeys(methods, repetitions)).items():
                totals[name] += seconds
        beams = running
    figures = {
        "trie_build_10m_s": build,
        "trie_bytes_per_item": trie.nbytes / rows,
        "mask_step_ms": totals["ours"] / (levels - 1) * 1e3,
        "mask_step_vs_dict_speedup": totals["dict"] / totals["ours"],
        "mask_step_vs_static_speedup": totals["static"] / totals["ours"],
    }
    print(f"\ntrie of {rows:,} random SemIDs, 4 levels of 1,024; masking step for 32 x 50 beams")
    for name, value in figures.items():
        print(f"  {name:<28} {value:>10.2f}")
    return figures


@torch.no_grad()
def bench_device(prompts: int) -> dict[str, float]:
    """Waits and launches of a search of 3 levels x 50 beams whose prompts are on the device, read once."""
    model, semids = random_model(3_000), random_catalogue()
    trie, (ids, mask) = SemIDTrie(semids, EOS), random_prompts(prompts)

    def ours():
        return search_items(model, ids, mask, trie, np.arange(len(semids)), [50] * prompts, 50)

    expected = ours()
    with PretendGPU() as gpu:
        model.to(GPU), trie.to(GPU)
        ids = ids.to(GPU)
        ours()  # the first search of a model checks itself
        counts = []
        for run in (lambda: model(input_ids=ids, use_cache=True, logits_to_keep=1), ours):
            gpu.syncs, gpu.launches = [], 0
            found = run()
            counts.append(gpu.launches)
    same = all(
        [a.item for a in one] == [b.item for b in other]
        and np.allclose([a.score for a in one], [b.score for b in other])
        for one, other in zip(found, expected)
    )
    print(f"\n3 levels x 50 beams on a GPU: {len(gpu.syncs)} waits, {counts[1]} launches ({counts[0]} of the prefill)")
    return {"syncs_per_search": len(gpu.syncs), "launches_per_search": counts[1], "device_lists_equal": int(same)}


def peak_bytes(function) -> int:
    """The most that a function holds at a time, of what PyTorch's allocator gives out on the CPU."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        function()
    events = [one for one in record.profiler.kineto_results.events() if one.name() == "[memory]"]
    return max(itertools.accumulate(one.nbytes() for one in sorted(events, key=lambda one: one.start_ns())))


@torch.no_grad()
def bench_memory(context: int, beams: tuple[int, ...]) -> dict[str, float]:
    model = random_model(3_000, max_position_embeddings=context + 8)
    trie, ids = SemIDTrie(random_catalogue(), EOS), torch.randint(3, FIRST_SEMID, (1, context))
    mask = torch.ones_like(ids)
    tree_beam_search(model, ids[:, :8], mask[:, :8], trie, 5)  # the first search of a model checks itself
    prefill = peak_bytes(lambda: model(input_ids=ids, use_cache=True, logits_to_keep=1))
    figures = {}
    for number in beams:
        search = peak_bytes(lambda: tree_beam_search(model, ids, mask, trie, number))  # noqa: B023
        figures[f"beam{number}_ctx{context}_memory_ratio"] = search / prefill
        print(
            f"{number} beams after {context:,} tokens: {search / 2**20:.0f} MiB, the prefill {prefill / 2**20:.0f} MiB"
        )
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", help="write the figures here")
    parser.add_argument("--quick", action="store_true", help="small sizes; the figures mean nothing")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    logging.set_verbosity_error()

    rows, prompts, few, beams = (100_000, 4, 2, (5, 10)) if args.quick else (10_000_000, 32, 8, (20, 50))
    turns = (1, 1) if args.quick else (2, 5)
    figures = bench_trie(rows, 2 if args.quick else 7)
    print("\nbeam search, seconds (medians); speedup is over generate() on the given number of prompts")
    print(
        f"{'tokens':>8} {'normalize':<10} beams   prefill    ours  /prefill   generate   prompts  speedup", flush=True
    )
    figures |= bench_beams(3_000, "vocabulary", "", prompts, prompts, beams, turns)
    for normalize in ("vocabulary", "catalogue"):
        suffix = f"_v152k_{normalize}"
        figures |= bench_beams(151_936, normalize, suffix, prompts, few, beams, (1, max(1, turns[1] - 2)))
    print(f"\nlists and scores equal: {all(figures[name] for name in figures if name.startswith('lists_equal'))}")
    figures |= bench_device(2 if args.quick else 32)
    figures |= bench_memory(5_000, (256, 512))
    if args.json:
        write_json(args.json, {"figures": figures})


if __name__ == "__main__":
    main()

"""The product's paths on one GPU, timed and checked, without network: what `bash scripts/check_gpu.sh` runs.

    bash scripts/check_gpu.sh --json gpu.json       # at most 8 minutes on one GPU
    bash scripts/check_gpu.sh --small               # the same code on small shapes, on the CPU where there is no GPU

Random weights in the shape of Qwen3-0.6B. Each part stands alone: one whose package is not installed is left out and
named, as is what no time or memory is left for; one that fails is named, and the exit status is 1. vLLM has its own
tests (`pytest -m vllm`).

parity: lists of the CPU and the GPU in fp32, and what waited for the device; without a GPU on one that is none.
search: tree search, and `generate` with our logits processor where its cache of beams x context is bearable.
sft, grpo: a step's tokens a second (a row for every completion), beside stock TRL's.
evaluation, sasrec, rq_vae: they run there, and say what they say on the CPU.
"""

import argparse
import copy
import itertools
import statistics
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import PackageNotFoundError, version

import numpy as np
import torch
from bench_decoding import EOS, FIRST_SEMID, bench_device, peak_bytes, random_catalogue, random_model
from transformers.utils import logging

from llmrec.decoding import search_items, tree_beam_search
from llmrec.decoding.logits_processor import constrained_generate
from llmrec.decoding.trie import SemIDTrie
from llmrec.files import write_json

QWEN3 = {"hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28, "num_attention_heads": 16}
QWEN3 |= {"num_key_value_heads": 8, "head_dim": 128, "tie_word_embeddings": True}
TINY = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
TINY |= {"num_key_value_heads": 2, "head_dim": 16, "tie_word_embeddings": True}
PACKAGES = ("torch", "transformers", "trl", "peft", "faiss-cpu", "vllm", "flash-attn", "liger-kernel")


@dataclass(frozen=True)
class Sizes:
    """What is small on a CPU."""

    config: dict = field(default_factory=lambda: QWEN3)
    vocabulary: int = 151_936
    contexts: tuple[int, ...] = (150, 5_000)
    beams: tuple[int, ...] = (20, 50, 256)
    generated: int = 100_000  # beams x context that generate() still gets
    group: int = 16
    prompts: int = 8
    steps: int = 4
    users: int = 5_000
    items: int = 3_500
    epochs: int = 3
    repeats: int = 5


SMALL = Sizes(
    TINY, 3_500, (24, 200), (4, 16), 1_000, group=4, prompts=2, steps=3, users=120, items=80, epochs=2, repeats=1
)


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def median_ms(function: Callable, device: torch.device, repeats: int) -> float:
    """Of some runs after one that warms up."""
    function()
    times = []
    for _ in range(repeats):
        wait(device)
        start = time.perf_counter()
        function()
        wait(device)
        times.append((time.perf_counter() - start) * 1e3)
    return statistics.median(times)


def peak_mib(function: Callable, device: torch.device) -> float:
    """The most that a function holds beside what is there before it."""
    if device.type != "cuda":
        return peak_bytes(function) / 2**20
    wait(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    function()
    wait(device)
    return (torch.cuda.max_memory_allocated(device) - before) / 2**20


def waits(function: Callable) -> int:
    """How often a function waits for the GPU, as PyTorch itself counts."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            function()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return sum("synchronizing CUDA operation" in str(one.message) for one in said)


def agreement(ours, theirs, width: int) -> tuple[float, float]:
    """The share of `generate`'s SemIDs that our beams hold, and how far the scores of those are apart at most."""
    expected = dict(zip(map(tuple, theirs.sequences[:, width:].tolist()), theirs.sequences_scores.tolist()))
    found = dict(zip(map(tuple, ours.tokens[0].tolist()), ours.scores[0].tolist()))
    common = found.keys() & expected.keys()
    return len(common) / len(expected), max((abs(found[key] - expected[key]) for key in common), default=0.0)


def check(holds: bool, said: str) -> None:
    if not holds:
        raise AssertionError(said)


@torch.no_grad()
def parity(sizes: Sizes, device: torch.device) -> Iterator[dict]:
    if device.type != "cuda":
        figures = bench_device(2)
    else:
        model, semids = random_model(sizes.vocabulary, **sizes.config), random_catalogue(sizes.items)
        trie, ids = SemIDTrie(semids, EOS), torch.randint(3, FIRST_SEMID, (2, 150))
        ours = partial(search_items, model, k=[50] * 2, num_beams=50, trie=trie, item_of_row=np.arange(len(semids)))
        mask = torch.ones_like(ids)
        there = ours(input_ids=ids, attention_mask=mask)
        model.to(device), trie.to(device)
        run = partial(ours, input_ids=ids.to(device), attention_mask=mask)
        shares, apart = [], 0.0
        for one, other in zip(run(), there):
            scores = {hit.item: hit.score for hit in other}
            common = [hit for hit in one if hit.item in scores]
            shares.append(len(common) / len(other))
            apart = max([apart, *(abs(hit.score - scores[hit.item]) for hit in common)])
        figures = {"syncs_per_search": waits(run), "device_lists_shared": min(shares), "device_scores_apart": apart}
        figures["device_lists_equal"] = int(min(shares) >= 0.98 and apart < 1e-2)
    yield figures
    check(figures["device_lists_equal"] == 1, "in fp32 the lists of the GPU are not those of the CPU")
    check(figures["syncs_per_search"] <= 2, f"a search waits {figures['syncs_per_search']} times for the device")


@torch.no_grad()
def search(sizes: Sizes, device: torch.device) -> Iterator[dict]:
    config = sizes.config | {"max_position_embeddings": max(sizes.contexts) + 8}
    trie = SemIDTrie(random_catalogue(sizes.items), EOS).to(device)
    for dtype in (torch.float32, torch.bfloat16):
        model = random_model(sizes.vocabulary, **config).to(device, dtype)
        for context in sizes.contexts:
            ids = torch.randint(3, FIRST_SEMID, (1, context)).to(device)
            mask = torch.ones(1, context, dtype=torch.long)
            prefill = partial(model, input_ids=ids, use_cache=True, logits_to_keep=1)
            at = f"{'fp32' if dtype is torch.float32 else 'bf16'}_ctx{context}"
            yield {f"prefill_{at}_ms": median_ms(prefill, device, sizes.repeats)}
            prefill_mib = peak_mib(prefill, device)
            for beams in sizes.beams:
                ours = partial(tree_beam_search, model, ids, mask, trie, beams)
                figures = {f"search_{at}_beam{beams}_ms": median_ms(ours, device, sizes.repeats)}
                held = peak_mib(ours, device)
                yield figures | {
                    f"search_{at}_beam{beams}_mib": held,
                    f"memory_ratio_{at}_beam{beams}": held / prefill_mib,
                }
                if beams * context > sizes.generated:
                    continue
                try:
                    theirs = partial(constrained_generate, model, ids, mask.to(device), trie, beams)
                    yield {f"generate_{at}_beam{beams}_ms": median_ms(theirs, device, 1)}
                    shared, apart = agreement(ours(), theirs(), context)
                except torch.OutOfMemoryError:
                    torch.cuda.empty_cache()
                    print(f"search: generate() left out after {context} tokens, {beams} beams: out of memory")
                    continue
                yield {f"shared_{at}_beam{beams}": shared, f"apart_{at}_beam{beams}": apart}
                exact = dtype is torch.bfloat16 or (shared >= 0.98 and apart < 1e-2)
                check(
                    exact, f"{at}, {beams} beams: generate() has other lists ({shared:.0%} shared, {apart:.1e} apart)"
                )


def free(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.empty_cache()


def sft(sizes: Sizes, device: torch.device) -> Iterator[dict]:
    from bench_grpo import random_setting
    from bench_sft import Recorder, Stock, with_trainer
    from datasets import Dataset

    recommender, rows = random_setting(sizes.prompts * sizes.steps, sizes.vocabulary, 1, sizes.items, **sizes.config)
    read, given = recommender.tokenizer, []
    for row in rows:
        prompt, answer = read(row["prompt"])["input_ids"], read(recommender.index.encode(row["target"]))["input_ids"]
        given.append({"input_ids": prompt + answer, "labels": [-100] * len(prompt) + answer})
    tokens, losses, speeds = sum(len(row["input_ids"]) for row in given) / sizes.steps, [], []
    for kind in (Recorder, Stock):
        model = copy.deepcopy(recommender.model)
        more = {"kind": kind, "per_device_train_batch_size": sizes.prompts, "bf16": device.type == "cuda"}
        more |= {"learning_rate": 1e-6}  # so that the order of rows is no difference
        labels, loss, batches = with_trainer(model, read, Dataset.from_list(given), sizes.steps, **more)
        seconds = sum(int((batch["labels"] != -100).sum()) for batch in batches[1:]) / labels / (sizes.steps - 1)
        speeds.append(tokens / seconds)
        losses.append(loss)
        del model, batches
        free(device)
    yield {"sft_tokens_per_second": speeds[0], "sft_tokens_per_second_trl": speeds[1], "sft_loss": losses[0]}
    check(abs(losses[0] / losses[1] - 1) < 5e-3, f"SFT has the loss {losses[0]:.4f}, TRL {losses[1]:.4f}")


def grpo(sizes: Sizes, device: torch.device) -> Iterator[dict]:
    from bench_grpo import Clock, make_trainer, random_setting, whole_step

    recommender, rows = random_setting(sizes.prompts, sizes.vocabulary, sizes.group, sizes.items, **sizes.config)
    tokens = sum(map(len, recommender.tokenizer([row["prompt"] for row in rows])["input_ids"])) + 3 * len(rows)
    for name, ending in (("llmrec", ""), ("TRL", "_trl")):
        trainer = make_trainer(name, recommender, rows, bf16=device.type == "cuda")
        ms = median_ms(partial(whole_step, trainer, rows, Clock()), device, 1)
        yield {f"grpo_tokens_per_second{ending}": tokens / ms * 1e3}
        finite = all(bool(one.isfinite().all()) for one in trainer.model.parameters())
        check(finite, f"a GRPO step of {name} leaves weights that are no numbers")
        del trainer
        free(device)


def store(sizes: Sizes):
    from llmrec.data.prepare import prepare
    from llmrec.data.synthetic import generate_store

    return prepare(*generate_store(0, sizes.items, sizes.users), user_k=5, item_k=1, split="leave_one_out")


def evaluation(sizes: Sizes, device: torch.device) -> Iterator[dict]:
    from bench_grpo import random_recommender

    from llmrec.evaluation import evaluate

    data = store(sizes)
    recommender = random_recommender(data.items, 256, 20, **sizes.config).to(device)
    found = evaluate(recommender, data.test.slice(0, 500), data, "random", bootstrap=0).metrics
    yield {"evaluation_users_per_second": found["users_per_second"], "evaluation_valid@10": found["valid@10"]}
    check(found["valid@10"] == 1, "lists hold what is no item")


def sasrec(sizes: Sizes, device: torch.device) -> Iterator[dict]:
    from llmrec.features.sasrec_network import SASRecConfig
    from llmrec.recommenders.sasrec import SASRec

    data, start = store(sizes), time.perf_counter()
    ranker = SASRec.fit(data, SASRecConfig(max_epochs=sizes.epochs), device)
    wait(device)
    seconds = time.perf_counter() - start
    histories = data.test["history"].to_pylist()[:64]
    ours = ranker.recommend(histories, 10)
    ranker.model.to("cpu")
    theirs = ranker.recommend(histories, 10)
    apart = max(abs(a.score - b.score) for one, other in zip(ours, theirs) for a, b in zip(one, other))
    yield {"sasrec_epoch_s": seconds / sizes.epochs, "sasrec_scores_apart": apart}
    check(apart < 1e-2, f"SASRec's scores on the GPU are {apart:.1e} off the CPU's")


def rq_vae(sizes: Sizes, device: torch.device) -> Iterator[dict]:
    from llmrec.item_tokenizers import TOKENIZERS

    features = np.random.default_rng(0).normal(size=(sizes.items, 64)).astype(np.float32)
    books, start = [min(256, sizes.items // 4)] * 3, time.perf_counter()
    tokenizer = TOKENIZERS["rq_vae"](codebook_sizes=books, epochs=sizes.epochs, device=str(device))
    codes = tokenizer.fit(features, seed=0).encode(features)
    yield {"rq_vae_epoch_s": (time.perf_counter() - start) / sizes.epochs}
    check(codes.shape == (sizes.items, 3), f"RQ-VAE gives codes of shape {codes.shape}")


PARTS = {part.__name__: part for part in (parity, search, grpo, sft, evaluation, sasrec, rq_vae)}


def run(sizes: Sizes, device: torch.device, seconds: float, parts: list[str]) -> dict:
    """What `--json` holds: figures, and why what is missing is missing."""
    figures, left_out, failed, start = {}, {}, {}, time.perf_counter()
    for name in parts:
        began = time.perf_counter()
        if began - start > seconds:
            left_out[name] = f"the {seconds:.0f} s are over"
            continue
        try:
            for found in PARTS[name](sizes, device):
                figures |= found
                if time.perf_counter() - start > seconds:
                    left_out[name] = f"the rest: the {seconds:.0f} s are over"
                    break
        except ModuleNotFoundError as error:
            left_out[name] = f"{error.name} is not installed"
        except torch.OutOfMemoryError as error:
            left_out[name] = f"the rest: out of memory ({str(error).splitlines()[0]})"
        except Exception as error:
            failed[name] = f"{type(error).__name__}: {error}"
            traceback.print_exc()
        free(device)
        print(f"{name}: {time.perf_counter() - began:.1f} s", flush=True)
    return {"figures": figures, "left_out": left_out, "failed": failed}


def installed() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", help="write the figures here")
    parser.add_argument("--small", action="store_true", help="small shapes, on the CPU where there is no GPU")
    parser.add_argument("--seconds", type=float, default=440, help="what no time is left for is left out")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=[*PARTS])
    args = parser.parse_args()
    if not args.small and not torch.cuda.is_available():
        sys.exit("PyTorch finds no GPU here: --small runs the same code on the CPU")
    device = torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    logging.set_verbosity_error()
    torch.manual_seed(0)
    began = time.perf_counter()
    found = run(SMALL if args.small else Sizes(), device, args.seconds, args.parts)
    found["device"] = torch.cuda.get_device_name(0) if device.type == "cuda" else "cpu"
    found |= {"seconds": round(time.perf_counter() - began, 1), "small": args.small, "installed": installed()}
    for name, value in found["figures"].items():
        print(f"{name:<40} {value:>14,.4g}")
    for name, why in itertools.chain(found["left_out"].items(), found["failed"].items()):
        print(f"{name}: {'FAILED' if name in found['failed'] else 'left out'}: {why}")
    if args.json:
        write_json(args.json, found)
    sys.exit(1 if found["failed"] else 0)


if __name__ == "__main__":
    main()

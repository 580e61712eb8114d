"""Measures serving: `recommend` beside vLLM's own beam search and transformers' `generate`, on one random model.

    python scripts/bench_serving.py --json serving.json     # about 40 minutes on 2 cores, needs vLLM
    python scripts/bench_serving.py --quick                 # the same on small sizes: is everything alive?
    python scripts/bench_serving.py --quick --beside ../before   # this llmrec and that of another checkout, in turn

Qwen3, 4 layers of width 256, fp32; beam 50, 3 levels of 256; prompts of about 150 tokens. 32 users in a closed loop,
200 requests after a warm-up, through HTTP. Compared is the CPU time of all processes of a server per request, because
client and server share the machine; `generate` runs in this process, in batches. The lists must be equal.

recommend          POST /v1/recommend: one engine request, the search inside the pooler
beam_search        POST /v1/completions with use_beam_search: vLLM's, made exact by our logits processor
hf_generate        generate(num_beams, prefix_allowed_tokens_fn); with normalize="catalogue" our logits processor

At 151,936 tokens the peers answer fewer requests. At last 10 million items, with a predicate and a list of seen items
in every request: latency and memory beside 3,500.

`--beside` measures `recommend` alone, of two servers that run side by side on one folder, which the other checkout
made. They are asked in turn, so that what else the machine does hits both; above 1 this one costs more.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import torch
from bench_decoding import dict_generate
from serving_runs import (
    LEVELS,
    closed_loop,
    percentile_ms,
    random_folder,
    random_histories,
    running_server,
    save_json,
)

from llmrec.decoding import constrained_generate
from llmrec.recommenders import LLMRecommender

BEAMS, USERS = 50, 32


async def recommend(kept: list, client, body: dict) -> None:
    answer = await client.post("/v1/recommend", json=body)
    answer.raise_for_status()
    items = answer.json()["items"]
    assert len(items) == body["k"], answer.text
    kept.append((tuple(body["history"]), [(item["semid"], item["score"]) for item in items]))


async def beam_search(kept: list, client, body: dict) -> None:
    answer = await client.post("/v1/completions", json=body)
    answer.raise_for_status()
    choices = answer.json()["choices"]
    assert len(choices) == BEAMS, answer.text
    kept.append((body["prompt"], [choice["text"] for choice in choices]))


def loop(server, call, bodies: list[dict], warm: list[dict]) -> tuple[dict, list]:
    """Figures of a closed loop, and what was answered."""
    closed_loop(partial(call, []), server.url, warm, USERS)
    kept: list = []
    cpu, began = server.cpu_s(), time.perf_counter()
    seconds = closed_loop(partial(call, kept), server.url, bodies, USERS)
    figures = {
        "cpu_s_per_request": (server.cpu_s() - cpu) / len(bodies),
        "requests_per_s": len(bodies) / (time.perf_counter() - began),
        "p50_ms": percentile_ms(seconds, 50),
        "p99_ms": percentile_ms(seconds, 99),
    }
    return figures, kept


def hf_generate(recommender: LLMRecommender, prompts: list[str]) -> tuple[dict, list]:
    """The same of `generate` in this process; a batch holds all prompts."""
    ids = recommender.token_ids(prompts)
    width = max(map(len, ids))
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in ids])
    tokens = torch.tensor([[0] * (width - len(row)) + row for row in ids])
    began, wall = time.process_time(), time.perf_counter()
    if recommender.config.normalize == "catalogue":
        output = constrained_generate(recommender.model, tokens, mask, recommender.trie, BEAMS, normalize="catalogue")
    else:
        index, convert = recommender.index, recommender.tokenizer.convert_tokens_to_ids
        level_ids = [torch.tensor(convert(level)) for level in index.level_tokens]
        semids = torch.stack([ids[index.codes[:, level]] for level, ids in enumerate(level_ids)], 1).numpy()
        began, wall = time.process_time(), time.perf_counter()
        with torch.no_grad():
            output = dict_generate(recommender.model, tokens, mask, semids, BEAMS)
    cpu, wall = time.process_time() - began, time.perf_counter() - wall
    found = recommender.tokenizer.batch_decode(output.sequences[:, width : width + LEVELS])
    scores = output.sequences_scores.tolist()
    lists = [list(zip(found[i : i + BEAMS], scores[i : i + BEAMS])) for i in range(0, len(found), BEAMS)]
    figures = {"cpu_s_per_request": cpu / len(ids), "requests_per_s": len(ids) / wall}
    return figures | {"p50_ms": wall * 1e3, "p99_ms": wall * 1e3}, lists


def same(ours: list[tuple[str, float]], theirs: list) -> bool:
    """The same SemIDs in the same order; neighbours that score within 1e-4 may change places."""
    score = dict(ours)
    named = [semid if isinstance(semid, str) else semid[0] for semid in theirs]
    if sorted(score) != sorted(named):
        return False
    close = all(abs(score[semid] - mine) <= 1e-4 for semid, (_, mine) in zip(named, ours))
    return close and all(abs(score[one[0]] - one[1]) <= 1e-4 for one in theirs if not isinstance(one, str))


def compare(folder: Path, num_items: int, suffix: str, args, peers: int, hf_prompts: int) -> dict:
    """All methods on one folder; `peers` requests go through vLLM's beam search, `hf_prompts` through generate."""
    recommender = LLMRecommender.from_pretrained(folder, device="cpu", dtype="float32")
    histories = random_histories(num_items, args.requests + USERS)
    warm, asked = histories[:USERS], histories[USERS:]
    prompts = recommender.prompts(asked)
    bodies = [{"history": history, "k": BEAMS, "num_beams": BEAMS} for history in histories]
    rows = {}
    with running_server(folder, "--modes", "recommend") as server:
        rows["recommend"], answers = loop(server, recommend, bodies[USERS:], bodies[:USERS])
        rows["recommend"]["memory_gib"] = server.memory_gib()
    ours = dict(answers)
    beam = {"model": folder.name, "max_tokens": LEVELS, "n": BEAMS, "use_beam_search": True, "temperature": 0,
            "ignore_eos": True, "length_penalty": 0}  # fmt: skip
    bodies = [{**beam, "prompt": prompt} for prompt in [*recommender.prompts(warm[: peers // 8]), *prompts[:peers]]]
    with running_server(folder, "--modes", "generate") as server:
        rows["beam_search"], theirs = loop(server, beam_search, bodies[-peers:], bodies[:-peers])
    theirs = dict(theirs)
    rows["hf_generate"], hf = hf_generate(recommender, prompts[:hf_prompts])
    equal = all(same(ours[tuple(h)], theirs[p]) for h, p in zip(asked[:peers], prompts[:peers]))
    equal &= all(same(ours[tuple(h)], lists) for h, lists in zip(asked, hf))
    cost = {name: row["cpu_s_per_request"] for name, row in rows.items()}
    for name, row in rows.items():
        print(f"{num_items:>10,} {suffix[1:] or 'small vocabulary':<20} {name:<12} {row['cpu_s_per_request']:>10.4f} "
              f"{row['requests_per_s']:>8.1f} {row['p50_ms']:>9.0f} {row['p99_ms']:>9.0f}"
              f" {cost[name] / cost['recommend']:>8.1f}", flush=True)  # fmt: skip
    figures = {f"{name}_{key}{suffix}": value for name, row in rows.items() for key, value in row.items()}
    return figures | {
        f"recommend_vs_beam_search{suffix}": cost["beam_search"] / cost["recommend"],
        f"recommend_vs_hf_generate{suffix}": cost["hf_generate"] / cost["recommend"],
        f"lists_equal{suffix}": int(equal),
    }


ROUNDS = 6  # of one server and the other, and the other way round
MAKE = "import sys, serving_runs as s; s.random_folder(s.Path(sys.argv[1]), int(sys.argv[2]), 0, 'vocabulary')"


def beside(root: Path, checkout: Path, num_items: int, args) -> dict:
    """Figures of this llmrec's server over those of another checkout's: medians of what both needed in a round."""
    root = root.resolve()
    folder, checkouts = root / "beside", {"this": Path(__file__).parents[1], "other": checkout.resolve()}
    paths = {**os.environ, "PYTHONPATH": os.pathsep.join([str(checkouts["other"]), f"{checkouts['other']}/scripts"])}
    subprocess.run([sys.executable, "-c", MAKE, str(folder), str(num_items)], check=True, env=paths)  # old reads old
    bodies = [
        {"history": history, "k": BEAMS, "num_beams": BEAMS}
        for history in random_histories(num_items, args.requests + USERS)
    ]
    flags = "--modes", "recommend", "--catalogue_dir"
    with (
        running_server(folder, *flags, str(root / "a"), log=root / "a.log", checkout=checkouts["this"]) as this,
        running_server(
            folder, *flags, str(root / "b"), port=8198, log=root / "b.log", checkout=checkouts["other"]
        ) as other,
    ):
        ratios: dict[str, list[float]] = {}
        for number in range(ROUNDS):
            found = {}
            for server in (this, other) if number % 2 else (other, this):
                found[server], answers = loop(server, recommend, bodies[USERS:], bodies[:USERS])
                found[server]["answers"] = dict(answers)
            ours, theirs = (found[server].pop("answers") for server in (this, other))
            for name, value in found[this].items():
                ratios.setdefault(name, []).append(value / found[other][name])
            equal = all(same(ours[history], theirs[history]) for history in ours)
            ratios.setdefault("lists_equal", []).append(float(equal))
            print(
                f"round {number + 1} of {ROUNDS}: " + ", ".join(f"{n} {v[-1]:.3f}" for n, v in ratios.items()),
                flush=True,
            )
    return {f"beside_{name}": statistics.median(values) for name, values in ratios.items()}


def many_items(folders: dict[int, Path], args) -> dict:
    """Latency and memory with filters, by catalogue size; both servers answer in turn."""
    figures, latency = {}, {}
    for num_items, folder in folders.items():
        histories = random_histories(num_items, args.requests + USERS)
        bodies = [
            {"history": history, "k": 10, "num_beams": BEAMS, "filter": {"exclude_seen": True, "where": [
                ["category", "==", f"category {number % 20}"], ["in_stock", "==", True]]}}
            for number, history in enumerate(histories)
        ]  # fmt: skip
        with running_server(folder, "--modes", "recommend") as server:
            closed_loop(partial(recommend, []), server.url, bodies[:20], 1)  # every predicate once
            row, _ = loop(server, recommend, bodies[USERS:], bodies[:USERS])
            alone = closed_loop(partial(recommend, []), server.url, bodies[:USERS], 1)
            memory = server.memory_gib()
        latency[num_items] = row["p50_ms"]
        figures |= {f"filtered_{name}_{num_items}": value for name, value in row.items()}
        figures |= {f"filtered_alone_p50_ms_{num_items}": percentile_ms(alone, 50), f"memory_gib_{num_items}": memory}
        print(f"{num_items:>10,} with filters: p50 {row['p50_ms']:.0f} ms, p99 {row['p99_ms']:.0f} ms, one user "
              f"{percentile_ms(alone, 50):.0f} ms, memory {memory:.1f} GiB", flush=True)  # fmt: skip
    few, many = sorted(latency)
    return figures | {"latency_10m_over_3500": latency[many] / latency[few]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", help="write the figures here")
    parser.add_argument("--quick", action="store_true", help="small sizes; the figures mean little")
    parser.add_argument("--requests", type=int, default=200, help="of every closed loop")
    parser.add_argument("--only", choices=["small", "v152k", "many"], help="a part of it")
    parser.add_argument("--beside", type=Path, help="another checkout, whose server is measured in turn with this one")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--folders", help="where the random model folders are kept (default: a temporary folder)")
    args = parser.parse_args()
    if args.beside and not (args.beside / "scripts/serving_runs.py").is_file():
        parser.error(f"--beside {args.beside} is no checkout of llmrec: there is no scripts/serving_runs.py")
    torch.set_num_threads(args.threads)
    sizes, many = ((500, 2_000), 20_000) if args.quick else ((3_500, 100_000), 10_000_000)
    args.requests = 40 if args.quick else args.requests
    figures: dict = {}
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(args.folders or temporary)
        if args.beside:
            figures = beside(root, args.beside, sizes[0], args)
            args.only = "beside"
        print("CPU seconds are per request, of all processes of the server\n     items                      "
              "method            CPU s    req/s    p50 ms    p99 ms   ours x")  # fmt: skip
        if args.only in (None, "small"):
            for place, size in enumerate(sizes):
                folder = random_folder(root / f"small_{size}", size, 0, "vocabulary")
                figures |= compare(folder, size, f"_{size}" if place else "", args, args.requests, USERS)
        if args.only in (None, "v152k"):
            for normalize in ("vocabulary", "catalogue"):
                folder = random_folder(root / f"v152k_{normalize}", sizes[0], 151_936, normalize)
                figures |= compare(folder, sizes[0], f"_v152k_{normalize}", args, 40, 8)
        if args.only in (None, "many"):
            folders = {n: random_folder(root / f"small_{n}", n, 0, "vocabulary") for n in (sizes[0], many)}
            figures |= many_items(folders, args)
    for name in figures:
        if name.startswith(("recommend_vs", "lists", "latency", "beside")):
            print(f"  {name:<45} {figures[name]:>8.2f}")
    save_json(args.json, figures, requests=args.requests, threads=args.threads)


if __name__ == "__main__":
    main()

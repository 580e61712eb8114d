"""RPG's decoding along a graph against scoring every item and against beam search, on one thread unless told.

    python scripts/bench_rpg.py --json rpg.json                     # 10^4, 10^5 and 10^6 items, about 10 minutes
    python scripts/bench_rpg.py --sizes 10000                       # seconds
    python scripts/bench_rpg.py --sizes --model out/benchmarks/beauty/rpg --data_dir out/beauty/data

Items are drawn around N / 20 centres (128 dimensions), and `PQ` gives them 32 digits of 256 codes, whose centroids are
the digits' vectors. A request stands between two items of one centre, with noise; a digit's logits are cosines with
its piece, divided by .03. All methods begin with the digits' log-probabilities, so the network's time is left out:

    exhaustive  the mean of every item's digits, one gather, and the best 10
    graph       `walk` in three sizes; `recall` is the share of the exhaustive ten that it finds
    beam        the catalogue's trie, digit after digit, with the same log-probabilities after every beam: what beam
                search can do for digits that have no order. An autoregressive model would run its network 32 times

Seconds are medians over batches of 32 requests; `single` is one request at a time. With `--model` a trained RPG ranks
the test rows in both ways, and `recall` is that of the targets.
"""

import argparse
import resource
import statistics
import time
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F

from llmrec.data import PreparedData
from llmrec.decoding.beam_search import Beams, expand
from llmrec.decoding.trie import SemIDTrie
from llmrec.evaluation import evaluate
from llmrec.files import write_json
from llmrec.item_tokenizers import PQ
from llmrec.recommenders.networks.decoding_graph import decoding_graph, digit_similarity, item_scores, walk
from llmrec.recommenders.rpg import RPG

DIGITS, CODES, WIDTH = 32, 256, 128
# Beam, edges, rounds; those of the paper are for Amazon Beauty (12,101 items).
WALKS = {"graph": (100, 100, 4), "graph_paper": (20, 200, 3), "graph_narrow": (20, 50, 3)}


def store(count: int, requests: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Codes int32 [N, m], as `decoding_graph` has them, the digits' vectors [m, K, D], and log-probabilities
    [requests, m * K]."""
    rng = np.random.default_rng(0)
    scale = (1 + np.arange(WIDTH)) ** -0.25
    centres = rng.standard_normal((max(2, count // 20), WIDTH)) * scale
    of_item = rng.integers(len(centres), size=count)
    rows = np.empty((count, WIDTH), np.float32)
    for first in range(0, count, 65_536):
        part = of_item[first : first + 65_536]
        rows[first : first + len(part)] = centres[part] + 0.7 * scale * rng.standard_normal((len(part), WIDTH))
    tokenizer = PQ(digits=DIGITS, codebook_size=CODES, preprocess="none", niter=5)
    tokenizer.fit(rows[rng.permutation(count)[:20_000]])
    codes = tokenizer.encode(rows)
    vectors = torch.from_numpy(np.stack(tokenizer.codebooks))
    first = rng.integers(count, size=requests)
    second = [rng.choice(np.flatnonzero(of_item == of_item[one])) for one in first]
    states = (rows[first] + rows[second]) / 2 + 0.3 * scale * rng.standard_normal((requests, WIDTH))
    states = F.normalize(torch.from_numpy(states).float().view(requests, DIGITS, 1, -1), dim=-1)
    cosines = (states @ F.normalize(vectors, dim=-1).mT).squeeze(2)
    tables = (cosines / 0.03).log_softmax(-1).flatten(1)
    return torch.from_numpy((codes + np.arange(DIGITS) * CODES).astype(np.int32)), vectors, tables


def best_ten(rows: np.ndarray, scores: np.ndarray) -> np.ndarray:
    return rows[np.argpartition(-scores, 10)[:10]]


def by_graph(tables, codes, graph, beam: int, rounds: int) -> tuple[list[np.ndarray], float]:
    """The best ten of each request, and how many items were visited."""
    starts = torch.from_numpy(np.random.default_rng(0).choice(len(codes), beam, replace=False))
    found = walk(tables, codes, graph, starts, beam, rounds)
    return [best_ten(*one) for one in found], float(np.mean([len(rows) for rows, _ in found]))


def by_beams(tables: torch.Tensor, trie: SemIDTrie, num_beams: int) -> list[np.ndarray]:
    beams = Beams.start(len(tables), tables.device)
    for level in range(trie.depth):
        logits = tables[:, None, trie.head_ids[level]].expand(-1, beams.scores.shape[1], -1)
        beams, _, ended = expand(trie, level, beams, logits, torch.zeros_like(beams.scores), num_beams)
    order = ended.scores.argsort(descending=True)
    low, high = ended.low.gather(1, order).tolist(), ended.high.gather(1, order).tolist()
    spans = [[trie.order[a:b] for a, b in zip(*each)] for each in zip(low, high)]
    return [torch.cat(each)[:10].numpy() for each in spans]


def timed(method, tables: torch.Tensor, size: int) -> tuple[float, list]:
    """Milliseconds per request, median over batches, and what the method gave for each batch."""
    seconds, given = [], []
    for batch in tables.split(size):
        start = time.perf_counter()
        given.append(method(batch))
        seconds.append((time.perf_counter() - start) / len(batch))
    return statistics.median(seconds) * 1e3, given


def bench(count: int, requests: int) -> dict[str, float]:
    codes, vectors, tables = store(count, requests)
    trie, similarity = SemIDTrie(codes.numpy()), digit_similarity(vectors)
    start = time.perf_counter()
    widest = decoding_graph(similarity, codes, max(edges for _, edges, _ in WALKS.values()))
    figures = {"graph_made_s": time.perf_counter() - start}
    print(f"\n{count:,} items; graph of {widest.shape[1]} edges in {figures['graph_made_s']:.1f} s")

    def exhaustive(batch):
        return [*item_scores(batch, codes).topk(10).indices.numpy()]

    methods = {"exhaustive": lambda batch: (exhaustive(batch), count)}
    for name, (beam, edges, rounds) in WALKS.items():
        graph = widest[:, :edges]
        methods[name] = lambda batch, g=graph, b=beam, r=rounds: by_graph(batch, codes, g, b, r)
    for num_beams in (50, 500):
        methods[f"beam{num_beams}"] = lambda batch, b=num_beams: (by_beams(batch, trie, b), b * DIGITS)
    right = [set(one.tolist()) for batch in tables.split(32) for one in exhaustive(batch)]
    print(f"{'':<14}{'visited':>10}{'ms':>9}{'ms single':>11}{'recall':>8}")
    for name, method in methods.items():
        ms, given = timed(method, tables, 32)
        single, _ = timed(method, tables[:16], 1)
        found = [one for lists, _ in given for one in lists]
        recall = float(np.mean([len(set(one.tolist()) & other) / 10 for one, other in zip(found, right)]))
        visited = float(np.mean([number for _, number in given]))
        figures |= {f"{name}_{key}": value for key, value in
                    {"visited": visited, "ms": ms, "single_ms": single, "recall": recall}.items()}  # fmt: skip
        print(f"{name:<14}{visited:>10,.0f}{ms:>9.2f}{single:>11.2f}{recall:>8.3f}", flush=True)
    return figures


def bench_trained(folder: str, data_dir: str) -> dict[str, float]:
    """What a trained RPG loses on test rows."""
    data, rpg = PreparedData.load(data_dir), RPG.from_pretrained(folder)
    figures = {}
    searches = {"exhaustive": {"search": "exhaustive"}}
    searches |= {
        name: {"search": "graph", "beam": beam, "edges": edges, "rounds": rounds}
        for name, (beam, edges, rounds) in WALKS.items()
    }
    for name, settings in searches.items():
        made = RPG(rpg.model, rpg.items, rpg.popularity, replace(rpg.config, **settings))
        figures[f"trained_{name}_recall@10"] = evaluate(made, data.test, data, name, bootstrap=0).metrics["recall@10"]
        print(f"{name:<14} recall@10 of test targets {figures[f'trained_{name}_recall@10']:.4f}")
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", help="write the figures here")
    parser.add_argument("--sizes", type=int, nargs="*", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--requests", type=int, default=128)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--model", help="folder of a trained RPG")
    parser.add_argument("--data_dir", help="the prepared data that it was trained on")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    figures: dict[str, float] = {}
    for count in args.sizes:
        of_size = bench(count, args.requests)
        figures |= {f"rpg_{name}_{count}": value for name, value in of_size.items()}
        # Of the last, largest catalogue, one request at a time; in batches a whole catalogue is scored much faster.
        figures["rpg_graph_speedup"] = of_size["exhaustive_single_ms"] / of_size["graph_single_ms"]
        figures["rpg_graph_speedup_batch"] = of_size["exhaustive_ms"] / of_size["graph_ms"]
        figures["rpg_graph_speedup_over_beam"] = of_size["beam500_single_ms"] / of_size["graph_single_ms"]
        figures["rpg_graph_recall_kept"] = of_size["graph_recall"]
    figures["rpg_peak_gib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"\npeak memory {figures['rpg_peak_gib']:.1f} GiB")
    if args.model:
        trained = bench_trained(args.model, args.data_dir)
        figures |= {f"rpg_{name}": value for name, value in trained.items()}
        kept = trained["trained_graph_recall@10"] / trained["trained_exhaustive_recall@10"]
        figures["rpg_trained_graph_recall_kept"] = kept
    if args.json:
        write_json(args.json, {"figures": figures})


if __name__ == "__main__":
    with torch.no_grad():
        main()

"""Times item tokenizers on one thread, and says how good what they learned is.

    python scripts/bench_tokenizers.py --json tokenizers.json      # about 6 minutes
    python scripts/bench_tokenizers.py --only rq_kmeans            # one part
    python scripts/bench_tokenizers.py --million                   # memory and time of 1,000,000 items; 5 minutes
    python scripts/bench_tokenizers.py --quick                     # small sizes: is everything alive?

Seconds are CPU seconds of this process, so other work on the machine counts little.

`rq_kmeans`: fit and encode 100,000 x 384, 3 x 256 codes, 25 iterations of k-means, against `faiss.ResidualQuantizer`
(`Train_default`, beam 1). Both learn from 65,536 rows a level. The two alternate three times; medians. Speed and error
(of the reconstruction, ours / faiss's) are those without normalised residuals, as faiss has none; collisions are those
of `RQKMeans()` as it is. The rows are made up: 480 clusters in 40 groups, sizes and spectrum by a power law, and unit
length.

`rq_vae`: `RQVAE()` on the text features (all-MiniLM-L6-v2) of the 12,101 items of Amazon Beauty 2014, if LLMREC_DATA
names the data folder; on as many made-up rows otherwise. Computing the features is not counted; `--cache` keeps them.

`actionpiece`: 1,000 merges over 5,000 sequences of 8 items with 5 features, against Algorithm 1 of the paper as it is
written: all pairs counted again at every merge (with our integers for weights, which is kinder to it than fractions).
The merges must be equal.

`million`: 1,000,000 made-up rows of 384 in a file that is mapped into memory; seconds, and the most memory (GiB) that
the process ever held, pages of that file included.
"""

import argparse
import os
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from llmrec.catalogue.collisions import collision_stats
from llmrec.features import ItemFeatures
from llmrec.files import read_parquet, write_json
from llmrec.item_tokenizers import RQVAE, RQKMeans
from llmrec.item_tokenizers.contextual.actionpiece_vocabulary import (
    add_weights,
    find_pair,
    learn_merges,
    make_chain,
    merge_pair,
    weight_unit,
)

DIM = 384


def clustered_blocks(rows: int, seed: int = 0, size: int = 50_000) -> Iterator[np.ndarray]:
    """Blocks of made-up item embeddings, float32 `[<= size, DIM]`, of unit length."""
    rng = np.random.default_rng(seed)
    groups = rng.normal(size=(40, DIM))
    centres = np.repeat(groups, 12, axis=0) + 0.7 * rng.normal(size=(480, DIM))
    share = 1 / np.arange(1, 481)
    spectrum = (1 / np.sqrt(np.arange(1, DIM + 1))).astype(np.float32)
    for start in range(0, rows, size):
        count = min(size, rows - start)
        block = centres[rng.choice(480, count, p=share / share.sum())].astype(np.float32)
        block += 0.8 * rng.standard_normal((count, DIM), np.float32)
        block *= spectrum
        yield block / np.linalg.norm(block, axis=1, keepdims=True)


def clustered(rows: int) -> np.ndarray:
    return np.concatenate(list(clustered_blocks(rows)))


def beauty(cache: str | None) -> np.ndarray:
    """The text features of Amazon Beauty, or as many made-up rows."""
    folder = os.environ.get("LLMREC_DATA")
    if folder is None:
        return clustered(12_101)
    items = read_parquet(Path(folder) / "amazon14_beauty" / "items.parquet")
    return ItemFeatures([{"kind": "text"}], cache).fit(items).encode(items)


def seconds(function: Callable) -> tuple[float, object]:
    start = time.process_time()
    result = function()
    return time.process_time() - start, result


def medians(methods: dict[str, Callable], turns: int) -> tuple[dict[str, float], dict[str, object]]:
    """Median seconds of functions that take turns, and what they returned."""
    times: dict[str, list[float]] = {name: [] for name in methods}
    results = {}
    for _ in range(turns):
        for name, method in methods.items():
            spent, results[name] = seconds(method)
            times[name].append(spent)
    return {name: statistics.median(values) for name, values in times.items()}, results


def collisions(codes: np.ndarray) -> float:
    return collision_stats(codes)["collision_rate"]


def rq_kmeans(args) -> dict[str, float]:
    import faiss

    x = clustered(5_000 if args.quick else 100_000)

    def of_faiss():
        quantizer = faiss.ResidualQuantizer(DIM, 3, 8)
        quantizer.train_type = faiss.ResidualQuantizer.Train_default
        quantizer.max_beam_size = 1
        quantizer.cp.niter = 25
        quantizer.train(x)
        return quantizer, quantizer.compute_codes(x)

    def ours(**arguments):
        tokenizer = RQKMeans(niter=25, **arguments).fit(x)
        return tokenizer, tokenizer.encode(x)

    methods = {"faiss": of_faiss, "ours": lambda: ours(normalize_residuals=False)}
    spent, results = medians(methods, 1 if args.quick else 3)
    spent["ours, normalised"], results["ours, normalised"] = seconds(ours)
    quantizer, packed = results["faiss"]
    tokenizer, codes = results["ours"]
    reconstructed = {
        "faiss": quantizer.decode(packed),
        "ours": sum(codebook[code] for codebook, code in zip(tokenizer.codebooks, codes.T)),
    }
    variance = ((x - x.mean(0)) ** 2).sum()
    error = {name: float(((x - y) ** 2).sum() / variance) for name, y in reconstructed.items()}
    rate = {name: collisions(coded) for name, (_, coded) in results.items()}
    print(f"\nresidual k-means, {len(x):,} x {DIM}, 3 x 256\n{'':<18} CPU s   error  collisions")
    for name in results:
        print(f"{name:<18} {spent[name]:>5.1f} {error.get(name, float('nan')):>7.4f} {rate[name]:>11.4f}", flush=True)
    return {
        "rq_kmeans_vs_faiss_speedup": spent["faiss"] / spent["ours"],
        "rq_kmeans_vs_faiss_error": error["ours"] / error["faiss"],
        "rq_kmeans_collision_rate": rate["ours, normalised"],
        "faiss_collision_rate": rate["faiss"],
    }


def rq_vae(args) -> dict[str, float]:
    x = beauty(args.cache)[: 1_000 if args.quick else None]
    tokenizer = RQVAE(device="cpu")
    spent, _ = seconds(lambda: tokenizer.fit(x))
    rate = collisions(tokenizer.encode(x))
    print(f"\nRQ-VAE, {len(x):,} x {x.shape[1]}: {spent:.1f} CPU s, collisions {rate:.4f}", flush=True)
    return {"rq_vae_cpu_s": spent, "rq_vae_collision_rate": rate}


def shop_sequences(count: int, length: int = 8, num_items: int = 2_000) -> tuple[list[list[list[int]]], int]:
    """Sequences of items as lists of 5 tokens, made up: users stay in one of 40 groups whose items share features; and
    the number of tokens."""
    rng = np.random.default_rng(0)
    group = rng.integers(0, 40, num_items)
    typical = rng.integers(0, 64, (40, 5))
    codes = np.where(rng.random((num_items, 5)) < 0.6, typical[group], rng.integers(0, 64, (num_items, 5)))
    tokens = codes + 64 * np.arange(5)
    members = [np.flatnonzero(group == g) for g in range(40)]
    sequences = [tokens[rng.choice(members[rng.integers(0, 40)], length)].tolist() for _ in range(count)]
    return sequences, 5 * 64


def merges_as_written(sequences: list[list[list[int]]], num_tokens: int, num_merges: int) -> list[tuple[int, int]]:
    """Algorithm 1 of ActionPiece: count all pairs, merge the heaviest everywhere, again."""
    chains = [make_chain(sets) for sets in sequences]
    unit, base = weight_unit(chains), num_tokens + num_merges
    merges = []
    for piece in range(num_tokens, base):
        counts: dict[int, int] = {}
        for chain in chains:
            add_weights(chain, 0, len(chain) - 1, unit, base, counts)
        a, b = divmod(max(counts, key=lambda pair: (counts[pair], -pair)), base)
        merges.append((a, b))
        for chain in chains:
            while (place := find_pair(chain, a, b)) is not None:
                merge_pair(chain, *place, a, b, piece)
    return merges


def actionpiece(args) -> dict[str, float]:
    sequences, num_tokens = shop_sequences(200 if args.quick else 5_000)
    arguments = (sequences, num_tokens, 20 if args.quick else 1_000)
    direct, expected = seconds(lambda: merges_as_written(*arguments))
    ours, merges = seconds(lambda: learn_merges(*arguments))
    equal = list(map(tuple, merges.tolist())) == expected
    print(f"\nActionPiece, {len(sequences):,} sequences, {len(merges)} merges (equal: {equal})")
    print(f"as written {direct:.1f} CPU s, ours {ours:.1f}", flush=True)
    return {"actionpiece_speedup": direct / ours, "actionpiece_merges_equal": float(equal)}


def million(args) -> dict[str, float]:
    rows = 100_000 if args.quick else 1_000_000
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "features.f32"
        with path.open("wb") as file:
            for block in clustered_blocks(rows):
                block.tofile(file)
        x = np.memmap(path, np.float32, "r", shape=(rows, DIM))
        fit, tokenizer = seconds(lambda: RQKMeans().fit(x))
        encode, codes = seconds(lambda: tokenizer.encode(x))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    rate = collisions(codes)
    print(f"\n{rows:,} x {DIM} from a memory map: fit {fit:.1f}, encode {encode:.1f} CPU s; at most {peak:.1f} GiB")
    return {
        "million_fit_cpu_s": fit,
        "million_encode_cpu_s": encode,
        "million_peak_gib": peak,
        "million_collision_rate": rate,
    }


PARTS = {"rq_kmeans": rq_kmeans, "rq_vae": rq_vae, "actionpiece": actionpiece}


def main() -> None:
    import faiss
    import torch
    from threadpoolctl import threadpool_limits

    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", help="write the figures here")
    parser.add_argument("--only", choices=PARTS, help="run one part")
    parser.add_argument("--million", action="store_true", help="run the part with 1,000,000 items, and no other")
    parser.add_argument("--cache", help="folder that keeps text embeddings")
    parser.add_argument("--quick", action="store_true", help="small sizes; the figures mean nothing")
    args = parser.parse_args()
    torch.set_num_threads(1)
    faiss.omp_set_num_threads(1)
    parts = {"million": million} if args.million else {args.only: PARTS[args.only]} if args.only else PARTS
    figures: dict[str, float] = {}
    with threadpool_limits(1):
        for part in parts.values():
            figures |= part(args)
    print()
    for name, value in figures.items():
        print(f"{name:<28} {value:>10.4f}")
    if args.json:
        write_json(args.json, {"figures": figures})


if __name__ == "__main__":
    main()

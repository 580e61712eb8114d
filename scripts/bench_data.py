"""Prepares random interactions from parquet to the prepared folder: seconds and peak memory.

    python scripts/bench_data.py [--json FILE] [--interactions 20000000] [--split leave_one_out]

Items are drawn from a Zipf law, so that the 5-core has work to do. Generation runs in a process of its own, so the
peak memory is that of loading, validating, filtering, splitting and saving.
"""

import argparse
import json
import multiprocessing
import resource
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa

from llmrec.data import prepare
from llmrec.data.sources import load_tables
from llmrec.data.statistics import statistics_table
from llmrec.files import write_json, write_parquet

NUM_FILES = 4


def generate(folder: Path, interactions: int, users: int, items: int) -> None:
    rng = np.random.default_rng(0)
    weights = np.cumsum(1 / np.arange(1, items + 1) ** 0.8)
    for part, count in enumerate(np.diff(np.linspace(0, interactions, NUM_FILES + 1, dtype=np.int64))):
        item = np.searchsorted(weights, rng.random(count) * weights[-1])
        user = (users * rng.random(count) ** 1.5).astype(np.int64)
        table = {
            "user_id": pa.array(user).cast(pa.string()),
            "item_id": pa.array(item).cast(pa.string()),
            "timestamp": rng.integers(1_500_000_000, 1_600_000_000, count),
        }
        write_parquet(folder / "interactions" / f"{part}.parquet", pa.table(table))
    ids = pa.array(np.arange(items)).cast(pa.string())
    write_parquet(folder / "items.parquet", pa.table({"item_id": ids, "title": ids}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--interactions", type=int, default=20_000_000)
    parser.add_argument("--users", type=int, default=1_000_000)
    parser.add_argument("--items", type=int, default=200_000)
    parser.add_argument("--split", default="leave_one_out", choices=["leave_one_out", "time"])
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sizes = (args.interactions, args.users, args.items)
        process = multiprocessing.get_context("spawn").Process(target=generate, args=(folder, *sizes))
        process.start()
        process.join()
        if process.exitcode:
            sys.exit("generation failed")
        begin, begin_cpu = time.perf_counter(), time.process_time()
        interactions, items = load_tables(str(folder / "interactions"), str(folder / "items.parquet"))
        loaded = time.perf_counter()
        data = prepare(interactions, items, user_k=5, item_k=5, split=args.split)
        prepared = time.perf_counter()
        data.save(folder / "prepared")
        saved = time.perf_counter()
    cpu = time.process_time() - begin_cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(statistics_table(data.info["statistics"]))
    print(f"\nload {loaded - begin:.1f} s, prepare {prepared - loaded:.1f} s, save {saved - prepared:.1f} s")
    print(f"{args.interactions:,} interactions: {saved - begin:.1f} s ({cpu:.1f} s of CPU time), peak {peak:.2f} GiB")
    if args.json:
        size = f"{args.interactions // 10**6}m"
        figures = {f"prepare_{size}_s": round(saved - begin, 1), f"prepare_{size}_peak_gib": round(peak, 2)}
        figures[f"prepare_{size}_cpu_s"] = round(cpu, 1)  # on a busy machine the fairer of the two times
        write_json(args.json, {"figures": figures})
        print(json.dumps(figures))


if __name__ == "__main__":
    main()

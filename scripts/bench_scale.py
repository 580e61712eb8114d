"""Time and peak memory of preparing data and of making Semantic IDs, and how both grow.

    python scripts/bench_scale.py [--json FILE] [--interactions 100000 1000000] [--items 10000 100000]
    python scripts/bench_scale.py --interactions 100000000 --items --work DIR

Every size is a run of recipes/prepare_data.py or recipes/tokenize_items.py, a process of its own, so its peak memory
is what the command needs, Python's packages included. Its input is made before, in another process: interactions whose
items follow a Zipf law, so that the 5-core has work to do, 20 to a user and 200,000 items at most; features of random
normal numbers, 64 to an item. `--work` keeps the input of a run that is to be repeated.
"""

import argparse
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import yaml

from llmrec.data import PreparedData
from llmrec.data.prepared import schema_of
from llmrec.data.rows import list_array
from llmrec.files import atomic_path, write_json, write_parquet

ROOT, BLOCK = Path(__file__).parents[1], 2**20


def make_interactions(folder: Path, count: int) -> None:
    rng = np.random.default_rng(0)
    users = max(count // 20, 1)
    items = min(users, 200_000)
    weights = np.cumsum(1 / np.arange(1, items + 1) ** 0.8)
    sizes = np.diff(np.linspace(0, count, max(4, count // 5_000_000) + 1, dtype=np.int64))
    for part, size in enumerate(sizes):
        table = {
            "user_id": pa.array((users * rng.random(size) ** 1.5).astype(np.int64)).cast(pa.string()),
            "item_id": pa.array(np.searchsorted(weights, rng.random(size) * weights[-1])).cast(pa.string()),
            "timestamp": rng.integers(1_500_000_000, 1_600_000_000, size),
        }
        write_parquet(folder / "interactions" / f"{part:03}.parquet", pa.table(table))
    ids = pa.array(np.arange(items)).cast(pa.string())
    write_parquet(folder / "items.parquet", pa.table({"item_id": ids, "title": ids}))


def make_features(folder: Path, count: int, dim: int) -> None:
    rng = np.random.default_rng(0)
    ids = pa.array(np.arange(count)).cast(pa.string())
    offsets = np.append(np.arange(0, count, 10), count)  # every item in one training sequence, ten to a user
    users = pa.array(np.arange(len(offsets) - 1)).cast(pa.string())
    times, context = pa.array(np.zeros(count, np.int64)), pa.array(np.ones(len(users), np.int32))
    columns = [users, list_array(ids, offsets), list_array(times, offsets), context]
    none = schema_of("valid", False).empty_table()
    train = pa.table(columns, schema=schema_of("train", False))
    PreparedData(pa.table({"item_id": ids, "title": ids}), train, none, none).save(folder / "data")
    with atomic_path(folder / "features.npy") as path:
        matrix = np.lib.format.open_memmap(path, "w+", np.float32, (count, dim))
        for start in range(0, count, BLOCK):
            block = matrix[start : start + BLOCK]
            block[:] = rng.standard_normal(block.shape, np.float32)
        matrix.flush()


def measure(recipe: str, folder: Path, settings: dict) -> tuple[float, float, float]:
    """Seconds, seconds of CPU time and peak GiB of a recipe."""
    config = folder / f"{recipe}.yaml"
    config.write_text(yaml.safe_dump({**settings, "output_dir": str(folder / "out"), "overwrite": True}))
    begun = time.perf_counter()
    process = subprocess.Popen([sys.executable, ROOT / "recipes" / f"{recipe}.py", "--config", config])
    _, status, usage = os.wait4(process.pid, 0)  # of this one process alone
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"{recipe} failed")
    return time.perf_counter() - begun, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--interactions", type=positive, nargs="*", default=[100_000, 1_000_000])
    parser.add_argument("--items", type=positive, nargs="*", default=[10_000, 100_000])
    parser.add_argument("--dim", type=positive, default=64, help="of the features")
    parser.add_argument("--codebook_sizes", type=positive, nargs="+", default=[256, 256, 256, 256])
    parser.add_argument("--work", type=Path, help="folder to work in, and to leave the input in")
    args = parser.parse_args()
    figures = {}
    with tempfile.TemporaryDirectory() as temporary:
        for count in args.interactions:
            folder = (args.work or Path(temporary)) / f"interactions_{count}"
            made(folder / "items.parquet", make_interactions, folder, count)
            source = {"interactions": str(folder / "interactions"), "items": str(folder / "items.parquet")}
            settings = {"source": "table", "source_args": source, "user_k": 5, "item_k": 5}
            report(figures, f"prepare_{short(count)}", *measure("prepare_data", folder, settings))
        for count in args.items:
            folder = (args.work or Path(temporary)) / f"items_{count}x{args.dim}"
            made(folder / "features.npy", make_features, folder, count, args.dim)
            features = [{"kind": "precomputed", "path": str(folder / "features.npy")}]
            settings = {"data_dir": str(folder / "data"), "features": features}
            settings["tokenizer_args"] = {"codebook_sizes": args.codebook_sizes}
            report(figures, f"semids_{short(count)}", *measure("tokenize_items", folder, settings))
    if args.json:
        write_json(args.json, {"figures": figures})
    print(json.dumps(figures))


def made(result: Path, make, *arguments) -> None:
    if not result.exists():
        process = multiprocessing.get_context("spawn").Process(target=make, args=arguments)
        process.start()
        process.join()
        if process.exitcode:
            sys.exit("the input could not be made")


def report(figures: dict, name: str, seconds: float, cpu: float, peak: float) -> None:
    figures |= {f"{name}_s": round(seconds, 1), f"{name}_cpu_s": round(cpu, 1), f"{name}_peak_gib": round(peak, 2)}
    print(f"{name}: {seconds:.1f} s ({cpu:.1f} s of CPU time), peak {peak:.2f} GiB", flush=True)


def positive(text: str) -> int:
    if int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} should be at least 1")
    return int(text)


def short(count: int) -> str:
    if count % 10**3:
        return str(count)
    return f"{count // 10**3}k" if count % 10**6 else f"{count // 10**6}m"


if __name__ == "__main__":
    main()

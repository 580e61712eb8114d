"""Measures the living catalogue: changes a second, and how long a start takes. No model is needed.

    python scripts/bench_catalogue.py --items 3500 --versions 0 1000 20000
    python scripts/bench_catalogue.py --items 10000000 --versions 0 --start_runs 1       # 8 GB of memory

A change sets the price of one item of a random catalogue with six columns. `changes` are prepared and committed,
`commits` are the durable part alone; `start` opens a `CatalogueStore` over so many versions. Medians.
"""

import argparse
import json
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from serving_runs import random_index, random_items

from llmrec.models.folder import RecommenderConfig, write_sidecars
from llmrec.serving.living_catalogue.store import CatalogueStore, Changes, Prepared


def start_seconds(folder: Path, directory: Path, runs: int) -> float:
    """The median time that it takes to open a store."""
    times = []
    for _ in range(runs):
        start = time.perf_counter()
        CatalogueStore(folder, directory).close()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def make_folder(folder: Path, num_items: int) -> Path:
    """What a catalogue needs of a model folder."""
    index = random_index(num_items)
    write_sidecars(folder, RecommenderConfig({}, semid_fingerprint=index.fingerprint), index, random_items(num_items))
    return folder


def changes_per_second(folder: Path, directory: Path, count: int, num_items: int) -> dict[str, float]:
    """Medians over `count` changes, of prepare and commit together and of commit alone."""
    both, commits = [], []
    with CatalogueStore(folder, directory) as store:
        for step in range(count):
            start = time.perf_counter()
            prepared = store.prepare(Changes([{"item_id": f"item-{step % num_items}", "price": float(step)}]))
            middle = time.perf_counter()
            store.commit(prepared)
            end = time.perf_counter()
            both.append(end - start)
            commits.append(end - middle)
    return {"changes/s": 1 / statistics.median(both), "commits/s": 1 / statistics.median(commits)}


def write_versions(folder: Path, directory: Path, count: int, num_items: int) -> None:
    """A log of `count` changes; the versions between are not made."""
    with CatalogueStore(folder, directory) as store:
        for number in range(1, count + 1):
            put = [{"item_id": f"item-{number * 7 % num_items}", "columns": {"price": float(number)}}]
            record = {"number": number, "parent": number - 1, "time": "2026-01-31T12:00:00.000+00:00"}
            record |= {"rollback_of": None, "remove": [], "put": put}
            store.commit(Prepared(record, replace(store.current, number=number)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=3500)
    parser.add_argument("--versions", type=int, nargs="*", default=[0, 1000])
    parser.add_argument("--changes", type=int, default=300)
    parser.add_argument("--start_runs", type=int, default=5)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=".") as scratch:  # the usual place may be memory
        scratch = Path(scratch)
        folder = make_folder(scratch / "model", args.items)
        figures = {"items": args.items} | changes_per_second(folder, scratch / "changes", args.changes, args.items)
        for count in args.versions:
            directory = scratch / f"log-{count}"
            write_versions(folder, directory, count, args.items)
            figures[f"start s, {count} versions"] = start_seconds(folder, directory, args.start_runs)
        print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()

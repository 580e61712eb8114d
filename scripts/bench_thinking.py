"""What thinking ahead costs and brings: speed and recall of one model without thoughts, with one, and with several.

    python scripts/bench_thinking.py --model out/quickstart/thinking --data_dir out/quickstart/data --rows 300

The model is one that was trained on `think_next_item` (docs/reasoning.md). All settings answer the same test rows in
one process, each timed once after a warm-up; speed is lists per second of `recommend`, thoughts included. Intervals
are 95 % of a paired bootstrap over users, of the difference to no thought.
"""

import argparse
import dataclasses
import time

import numpy as np
import pyarrow as pa
import torch

from llmrec.data import PreparedData
from llmrec.evaluation.bootstrap import paired_difference
from llmrec.files import write_json
from llmrec.recommenders import LLMRecommender
from llmrec.recommenders.protocol import requests_of

K = 10


def hits_of(recommender: LLMRecommender, rows: pa.Table, think: bool) -> tuple[np.ndarray, float]:
    """`(float [rows]: 1 where the target is among the first K, seconds)`."""
    histories, wishes = requests_of(recommender, rows)
    start = time.perf_counter()
    lists = recommender.recommend(histories, K, think=think, **wishes)
    seconds = time.perf_counter() - start
    targets = rows["target"].to_pylist()
    found = [any(item.item_id == target for item in items) for items, target in zip(lists, targets)]
    return np.array(found, float), seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", required=True, help="model folder whose prompt is thinking")
    parser.add_argument("--data_dir", required=True, help="prepared data, for its test rows")
    parser.add_argument("--rows", type=int, default=300, help="test rows, drawn with the seed")
    parser.add_argument("--thoughts", type=int, nargs="+", default=[1, 5], help="settings beside no thought")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", help="write the figures here")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    recommender = LLMRecommender.from_pretrained(args.model)
    if recommender.block is None:
        parser.error(f"--model {args.model}: its prompt is not a thinking one (recommend_prompt: think_next_item)")
    recommender.seed = args.seed
    test, rng = PreparedData.load(args.data_dir).test, np.random.default_rng(args.seed)
    rows = test.take(pa.array(np.sort(rng.permutation(test.num_rows)[: args.rows])))
    hits_of(recommender, rows.slice(0, 8), think=True)

    figures, plain, base = {}, None, None
    print(f"{rows.num_rows} test rows, {recommender.config.num_beams} beams\n")
    print(f"{'thoughts':>8}  {'lists/s':>8}  {'time':>6}  recall@{K}  difference to none (95 %)", flush=True)
    for count in (0, *args.thoughts):
        recommender.config = dataclasses.replace(recommender.config, thoughts=count)
        hits, seconds = hits_of(recommender, rows, think=count > 0)
        plain, base = (hits, seconds) if plain is None else (plain, base)
        interval = paired_difference(hits[:, None], plain[:, None], rows["user_id"], seed=args.seed)
        low, high = (float(interval[end][0]) for end in ("low", "high"))
        print(
            f"{count:>8}  {len(hits) / seconds:>8.2f}  {seconds / base:>5.1f}x  {hits.mean():>9.3f}"
            f"  {(hits - plain).mean():+.3f} [{low:+.3f}, {high:+.3f}]",
            flush=True,
        )
        figures[str(count)] = {
            "lists_per_second": len(hits) / seconds,
            "time_ratio": seconds / base,
            f"recall@{K}": float(hits.mean()),
            "difference": [float((hits - plain).mean()), low, high],
        }
    for history, texts in zip(rows["history"].to_pylist()[:2], recommender.think(rows["history"].to_pylist()[:2])):
        print(f"\nafter {len(history)} items:", *texts[:2], sep="\n  ")
    if args.json:
        write_json(args.json, {"figures": figures})


if __name__ == "__main__":
    main()

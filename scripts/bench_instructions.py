"""Can the rows of a task mixture keep up with a trainer? Builds one, reads it, and says what that cost.

    python recipes/prepare_data.py --config recipes/configs/games/data.yaml
    python scripts/bench_instructions.py --data_dir out/games/data --mixture recipes/configs/mixtures/lcrec.yaml

Three things, in one process: seconds and memory to build the mixture over the training split; seconds and memory to
read an epoch of it (or `--rows` of it) as the data loader does, rendered and tokenised; and steps of a small model on
the same rows, with the share of their time that went into waiting for rows. Tasks that need columns which the data
have not are left out and named. Semantic IDs are random: their values cost nothing.
"""

import argparse
import json
import resource
import time
from pathlib import Path

import numpy as np
import psutil
import torch
import yaml
from torch.utils.data import DataLoader

from llmrec.catalogue.semids import SemIDIndex
from llmrec.data import PreparedData
from llmrec.instructions import Catalogue, Renderer, TaskMix, build_dataset
from llmrec.models.from_scratch import model_from_config, train_tokenizer
from llmrec.models.vocabulary import extend_vocabulary
from llmrec.training.batches import SemIDCollator

MODEL = {"model_type": "qwen3", "hidden_size": 192, "intermediate_size": 384, "num_hidden_layers": 1, "head_dim": 48,
         "num_attention_heads": 4, "num_key_value_heads": 4, "tie_word_embeddings": True}  # fmt: skip


def megabytes() -> float:
    return psutil.Process().memory_info().rss / 2**20


def usable(entries: list, data: PreparedData, renderer: Renderer) -> list[TaskMix]:
    """The entries whose tasks have rows in this data."""
    found = []
    for entry in entries:
        mix = TaskMix.parse(entry)
        try:
            build_dataset(data, [mix], renderer, 20, 1024)
        except ValueError as error:
            print(f"  left out: {entry}: {error}")
        else:
            found.append(mix)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", required=True)
    parser.add_argument("--mixture", default="recipes/configs/mixtures/lcrec.yaml", help="An SFT YAML with tasks.")
    parser.add_argument("--rows", type=int, default=0, help="Rows to read; 0 = a whole epoch.")
    parser.add_argument("--steps", type=int, default=40, help="Training steps of 64 rows.")
    parser.add_argument("--workers", type=int, default=1, help="Of the data loader.")
    parser.add_argument("--json", help="Write the figures here.")
    args = parser.parse_args()
    data = PreparedData.load(args.data_dir)
    codes = np.random.default_rng(0).permutation(256**3)[: data.items.num_rows]
    codes = np.stack(np.unravel_index(codes, (256, 256, 256)), 1)
    index = SemIDIndex(data.items["item_id"].to_pylist(), codes, [256, 256, 256])
    words = train_tokenizer(data.items["title"].to_pylist(), 2000)
    model = model_from_config(MODEL, words)
    extend_vocabulary(model, words, index)
    renderer = Renderer(words, Catalogue(index, data.items))
    mixture = usable(yaml.safe_load(Path(args.mixture).read_text(encoding="utf-8"))["tasks"], data, renderer)

    before, start = megabytes(), time.perf_counter()
    rows = build_dataset(data, mixture, renderer, 20, 1024)
    built = time.perf_counter() - start
    print(
        f"{len(rows):,} rows an epoch of {len(mixture)} tasks: built in {built:.1f} s, {megabytes() - before:+.0f} MB"
    )

    count, batch, memory, start = min(args.rows or len(rows), len(rows)), 64, [megabytes()], time.perf_counter()
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))[:count].tolist()
    tokens = 0
    for place in range(0, count, batch):
        tokens += sum(len(row["input_ids"]) for row in rows.__getitems__(order[place : place + batch]))
        if place % (256 * batch) == 0:
            memory.append(megabytes())
    read = time.perf_counter() - start
    quarter = memory[max(1, len(memory) // 4)]
    print(f"{count:,} rows read in {read:.1f} s, {count / read:,.0f} rows a second, {tokens / count:.0f} tokens a row")
    print(f"memory at a quarter {quarter:.0f} MB, at the end {memory[-1]:.0f} MB")

    loader = DataLoader(
        rows, batch, shuffle=True, collate_fn=SemIDCollator(words.pad_token_id), num_workers=args.workers
    )
    optimizer, waited, worked, batches = torch.optim.AdamW(model.parameters(), 1e-3), 0.0, 0.0, iter(loader)
    for step in range(args.steps + 2):
        start = time.perf_counter()
        inputs = next(batches)
        ready = time.perf_counter()
        model(**{name: inputs[name] for name in ("input_ids", "attention_mask", "labels")}).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if step >= 2:  # the first ones wait for the workers to start
            waited, worked = waited + ready - start, worked + time.perf_counter() - ready
    share = waited / (waited + worked)
    print(f"{args.steps} training steps: {share:.1%} of their time went into waiting for rows")
    figures = {"rows": len(rows), "build_s": built, "rows_per_second": count / read, "waiting_share": share,
               "memory_quarter_mb": quarter, "memory_end_mb": memory[-1],
               "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}  # fmt: skip
    if args.json:
        Path(args.json).write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

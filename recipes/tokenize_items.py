"""Gives every item of a catalogue a Semantic ID: features, item tokenizer, collision policy, report.

    python recipes/tokenize_items.py --config recipes/configs/quickstart/semids.yaml
    python recipes/tokenize_items.py --config recipes/configs/beauty/semids.yaml --collision append --overwrite true

Writes semids.parquet, item_tokenizer/ (and features/ in it), features.npy and report/ into `output_dir`, or reuses it.
"""

import logging
import resource
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from llmrec.arguments import at_least
from llmrec.catalogue.collisions import COLLISION_POLICIES
from llmrec.catalogue.ready_made import ready_made_semids
from llmrec.catalogue.report import report_lines, semid_report, write_report
from llmrec.catalogue.semids import SemIDIndex
from llmrec.commands import run_script
from llmrec.data import PreparedData
from llmrec.features import ItemFeatures
from llmrec.files import fingerprint
from llmrec.item_tokenizers import SEQUENCE_TOKENIZERS, TOKENIZERS, fit_semids, make_item_tokenizer
from llmrec.serving.writers import give_writer
from llmrec.stages import begin_stage, content_of, finish_stage, settings_of


@dataclass
class TokenizeArguments:
    data_dir: str = field(metadata={"help": "Prepared data (recipes/prepare_data.py)."})
    output_dir: str = field(metadata={"help": "Folder to write."})
    features: list[dict] = field(
        default_factory=lambda: [{"kind": "text"}],
        metadata={"help": "In the YAML only: parts side by side, each with kind, weight and arguments."},
    )
    tokenizer: str = field(default="rq_kmeans", metadata={"help": ", ".join(TOKENIZERS | SEQUENCE_TOKENIZERS)})
    tokenizer_args: dict = field(default_factory=dict, metadata={"help": "In the YAML only: its arguments."})
    collision: str = field(default="auto", metadata={"help": ", ".join(["auto", *COLLISION_POLICIES])})
    collision_reserve: int = field(default=32, metadata={"help": "Spare tokens for items that are added later."})
    pattern: str = field(default="default", metadata={"help": "Of the tokens: default, openonerec, eugeneyan, own."})
    ready_made: str | None = field(default=None, metadata={"help": "Column, .json or .parquet of SemIDs that exist."})
    cache_dir: str = field(default="out/feature_cache", metadata={"help": "Text embeddings by content."})
    actors: int = field(default=0, metadata={"help": "Actors of Ray that embed texts and pictures; 0: no Ray."})
    gpus_per_actor: float = field(default=0, metadata={"help": "GPUs that Ray gives to each actor."})
    seed: int = field(default=0, metadata={"help": "Of every random number here."})
    overwrite: bool = field(default=False, metadata={"help": "Make it again even if nothing has changed."})


def make_semids(args, data: PreparedData, features: ItemFeatures, tokenizer) -> tuple[SemIDIndex, np.ndarray, float]:
    """The index, the features and the seconds that fitting and encoding took."""
    folder = Path(args.output_dir)
    matrix = features.fit(data.items, data.train, args.seed).encode_to(folder / "features.npy", data.items)
    print(f"Features: {features.describe()}, {matrix.shape[0]} items x {matrix.shape[1]}")
    if args.ready_made is not None:
        return ready_made_semids(data.items, args.ready_made), matrix, 0.0
    info = {"features": features.config, "data": data.info.get("name", ""), "seed": args.seed}
    start = time.perf_counter()
    naming = {"collision": args.collision, "collision_reserve": args.collision_reserve, "pattern": args.pattern}
    index = fit_semids(tokenizer, matrix, data.items, data.train, args.seed, info=info, **naming)
    seconds = time.perf_counter() - start
    tokenizer.save_pretrained(folder / "item_tokenizer")
    features.save_pretrained(folder / "item_tokenizer" / "features")
    return index, matrix, seconds


def main(args: TokenizeArguments) -> None:
    at_least(args, collision_reserve=0, actors=0, gpus_per_actor=0.0)
    data, folder = PreparedData.load(args.data_dir), Path(args.output_dir)
    features = ItemFeatures(args.features, args.cache_dir, args.actors, args.gpus_per_actor)
    tokenizer = give_writer(make_item_tokenizer(args.tokenizer, args.tokenizer_args, args.collision))
    files = content_of(args.ready_made, args.tokenizer_args.get("prompt"))
    inputs = {"inputs": features.inputs_fingerprint(), "files": files}
    made_from = {"data": fingerprint(data.items, data.train), **inputs}
    where = ("output_dir", "overwrite", "cache_dir", "data_dir", "actors", "gpus_per_actor")
    settings = settings_of(args, ignore=where) | made_from
    if begin_stage(folder, settings, args.overwrite) == "done":
        print(f"Reusing the Semantic IDs in {folder} (same settings, same data).")
        index = SemIDIndex.load(folder / "semids.parquet")
    else:
        index, matrix, seconds = make_semids(args, data, features, tokenizer)
        index.save(folder / "semids.parquet", data.items)
        report = semid_report(index, matrix, data.items, seed=args.seed)
        write_report(report, folder / "report", index, matrix)
        print("\n".join(report_lines(report)))
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # KiB on Linux
        finish_stage(folder, warnings=report["warnings"], fit_seconds=seconds, memory_gib=memory)
    few = data.items.filter(pc.is_in(data.items["item_id"], pa.array(index.items[:5])))
    titles = dict(zip(few["item_id"].to_pylist(), few["title"].to_pylist()))
    for item in index.items[:5]:
        print(f"{index.encode(item)}  {titles[item][:80]}")
    print(f"Semantic IDs: {folder}/semids.parquet; report: {folder}/report/report.md")


if __name__ == "__main__":
    run_script(main, TokenizeArguments, level=logging.INFO)

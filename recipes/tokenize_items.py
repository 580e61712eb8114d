"""Gives every item of a catalogue a Semantic ID: features, item tokenizer, collision policy, report.

    python recipes/tokenize_items.py --config recipes/configs/quickstart/semids.yaml
    python recipes/tokenize_items.py --config recipes/configs/beauty/semids.yaml --collision append --overwrite true

Writes semids.parquet, item_tokenizer/ (with features/: what new items need), features.npy and report/ into
`output_dir`. A folder that was made with the same settings from the same data is reused.
"""

import logging
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from trl import TrlParser

from llmrec.data import PreparedData
from llmrec.files import atomic_path, fingerprint
from llmrec.item_tokenizers import TOKENIZERS, ItemFeatures, build_semids, ready_made_semids, rows_in_training
from llmrec.item_tokenizers.report import report_lines, semid_report, write_report
from llmrec.semids import SemIDIndex
from llmrec.stages import begin_stage, finish_stage, settings_of


@dataclass
class TokenizeArguments:
    data_dir: str = field(metadata={"help": "Prepared data (recipes/prepare_data.py)."})
    output_dir: str = field(metadata={"help": "Folder to write."})
    features: list[dict] = field(
        default_factory=lambda: [{"kind": "text"}],
        metadata={"help": "YAML: parts side by side: kind (text, cooccurrence, precomputed), weight, arguments."},
    )
    tokenizer: str = field(default="rq_kmeans", metadata={"help": f"One of {', '.join(TOKENIZERS)}."})
    tokenizer_args: dict = field(default_factory=dict, metadata={"help": "YAML: its arguments, e.g. codebook_sizes."})
    collision: str = field(
        default="reassign_last", metadata={"help": "keep, append, append_all, reassign_last or sinkhorn_last."}
    )
    collision_reserve: int = field(default=32, metadata={"help": "Spare tokens for items that are added later."})
    pattern: str = field(default="default", metadata={"help": "Of the tokens: default, openonerec, eugeneyan, own."})
    ready_made: str | None = field(
        default=None, metadata={"help": "SemIDs that exist: a column of the catalogue, or index.json. No tokenizer."}
    )
    cache_dir: str = field(default="out/feature_cache", metadata={"help": "Text embeddings by content."})
    seed: int = field(default=0, metadata={"help": "Of every random number here."})
    overwrite: bool = field(default=False, metadata={"help": "Make it again even if nothing has changed."})


def make_semids(args: TokenizeArguments, data: PreparedData, folder: Path) -> tuple[SemIDIndex, np.ndarray]:
    features = ItemFeatures(args.features, args.cache_dir).fit(data.items, data.train, args.seed)
    matrix = features.encode(data.items)
    print(f"Features: {features.describe()}, {matrix.shape[0]} items x {matrix.shape[1]}")
    if args.ready_made is not None:
        return ready_made_semids(data.items, args.ready_made), matrix
    if args.tokenizer not in TOKENIZERS:
        raise ValueError(f"tokenizer {args.tokenizer!r} is not one of {', '.join(TOKENIZERS)}")
    tokenizer = TOKENIZERS[args.tokenizer](**args.tokenizer_args)
    tokenizer.fit(matrix[rows_in_training(data.items, data.train)], seed=args.seed)
    info = {"features": features.config, "data": data.info.get("name", ""), "seed": args.seed}
    ids = data.items["item_id"].to_pylist()
    index = build_semids(ids, matrix, tokenizer, args.collision, args.collision_reserve, args.pattern, info)
    tokenizer.save_pretrained(folder / "item_tokenizer")
    features.save_pretrained(folder / "item_tokenizer" / "features")
    return index, matrix


def main(args: TokenizeArguments) -> None:
    data = PreparedData.load(args.data_dir)
    folder = Path(args.output_dir)
    made_from = {"data": fingerprint(data.items, data.train)}
    settings = settings_of(args, ignore=("output_dir", "overwrite", "cache_dir", "data_dir")) | made_from
    if begin_stage(folder, settings, args.overwrite) == "done":
        print(f"Reusing the Semantic IDs in {folder} (same settings, same data).")
    else:
        index, matrix = make_semids(args, data, folder)
        index.save(folder / "semids.parquet", data.items)
        with atomic_path(folder / "features.npy") as path:
            np.save(path, matrix)
        report = semid_report(index, matrix, data.items, seed=args.seed)
        write_report(report, folder / "report", index, matrix)
        print("\n".join(report_lines(report)))
        finish_stage(folder, warnings=report["warnings"])
    index = SemIDIndex.load(folder / "semids.parquet")
    titles = dict(zip(data.items["item_id"].to_pylist(), data.items["title"].to_pylist()))
    for item in index.items[:5]:
        print(f"{index.encode(item)}  {titles[item][:80]}")
    print(f"Semantic IDs: {folder}/semids.parquet; report: {folder}/report/report.md")


if __name__ == "__main__":
    (arguments,) = TrlParser((TokenizeArguments,)).parse_args_and_config()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logging.getLogger("faiss").setLevel(logging.WARNING)
    main(arguments)

"""Evaluates any number of recommenders on the same rows and writes one report.

    python recipes/evaluate.py --config recipes/configs/quickstart/evaluate.yaml

`recommenders` maps a name to a folder: a model folder, or a baseline that recipes/train_baselines.py wrote. Writes
metrics.json, predictions/<name>.parquet, report.md and report.html (with plots) into `output_dir`.
"""

import logging
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from trl import TrlParser

from llmrec.data import PreparedData
from llmrec.evaluation import KS, evaluate, load_recommender, shuffle_histories, shuffle_order
from llmrec.evaluation.report import headline, write_report
from llmrec.semids import SemIDIndex

CONTROLS = {"shuffled histories": shuffle_histories, "shuffled order": shuffle_order}


@dataclass
class EvaluateArguments:
    data_dir: str = field(metadata={"help": "Folder that recipes/prepare_data.py wrote."})
    output_dir: str = field(metadata={"help": "Where the report goes."})
    recommenders: dict = field(metadata={"help": "Name -> folder of a model or a baseline."})
    split: str = field(default="test", metadata={"help": "test or valid."})
    max_rows: int | None = field(default=None, metadata={"help": "Evaluate a random sample of this many rows."})
    reference: str | None = field(default=None, metadata={"help": "Name that all others are compared with."})
    controls: list[str] = field(
        default_factory=list, metadata={"help": "Names evaluated again with shuffled histories and shuffled order."}
    )
    semids: str | None = field(
        default=None, metadata={"help": "semids.parquet or index.json for the SemID level of every recommender."}
    )
    ks: list[int] = field(default_factory=lambda: list(KS), metadata={"help": "List lengths of the metrics."})
    batch_size: int = field(default=256, metadata={"help": "Rows per call of recommend."})
    bootstrap: int = field(default=1000, metadata={"help": "Resamples for the intervals; 0 = none."})
    seed: int = field(default=0, metadata={"help": "Of the sample of rows, the controls and the bootstrap."})


def main():
    (arguments,) = TrlParser((EvaluateArguments,)).parse_args_and_config()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if arguments.split not in ("test", "valid"):
        raise ValueError(f"split is {arguments.split!r}, it should be test or valid")
    unknown = next((name for name in arguments.controls if name not in arguments.recommenders), None)
    if unknown is not None:
        raise ValueError(f"controls names {unknown!r}, which is not one of the recommenders")
    data = PreparedData.load(arguments.data_dir)
    rows = getattr(data, arguments.split)
    if arguments.max_rows is not None and arguments.max_rows < rows.num_rows:
        sample = np.random.default_rng(arguments.seed).permutation(rows.num_rows)[: arguments.max_rows]
        rows = rows.take(np.sort(sample))
    index = SemIDIndex.load(arguments.semids) if arguments.semids else None

    results = []
    for name, folder in arguments.recommenders.items():
        recommender = load_recommender(folder)
        tests = {name: rows}
        if name in arguments.controls:
            tests |= {f"{name}, {control}": shuffle(rows, arguments.seed) for control, shuffle in CONTROLS.items()}
        for label, table in tests.items():
            results.append(
                evaluate(recommender, table, data, label, tuple(arguments.ks), arguments.batch_size, index,
                         arguments.bootstrap, arguments.seed)
            )  # fmt: skip
    facts = {
        "data": data.info.get("name", Path(arguments.data_dir).name),
        "data fingerprint": data.fingerprint,
        "split": f"{arguments.split}, {rows.num_rows} rows",
        "items": data.items.num_rows,
        "seed": arguments.seed,
    }
    title = f"{facts['data']}: {len(results)} recommenders"
    write_report(results, arguments.output_dir, title, arguments.reference, facts, arguments.bootstrap, arguments.seed)
    print(f"\n{title}, {facts['split']}, item level [95 % interval]\n\n{headline(results)}\n")
    print(f"Report: {arguments.output_dir}/report.html (figures: metrics.json, lists: predictions/)")


if __name__ == "__main__":
    main()

"""Evaluates any number of recommenders on the same rows and writes one report.

    python recipes/evaluate.py --config recipes/configs/quickstart/evaluate.yaml

`recommenders` maps a name to a folder: a model folder, or a baseline that recipes/train_baselines.py wrote. Writes
metrics.json, predictions/<name>.parquet, report.md and report.html (with plots) into `output_dir`, and alignment.json
for the models that `alignment` names (docs/alignment.md).
"""

import logging
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from llmrec.arguments import did_you_mean, one_of
from llmrec.catalogue.semids import SemIDIndex
from llmrec.commands import Parser
from llmrec.data import PreparedData
from llmrec.evaluation import CONTROLS, KS, evaluate
from llmrec.evaluation.alignment import Aligner, AlignmentArguments, Sample
from llmrec.evaluation.report import alignment_text, headline, is_report_of, write_report
from llmrec.files import Lock, fingerprint, read_json
from llmrec.recommenders import check_trained_on, files_of, load_recommender


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
    seed: int = field(default=0, metadata={"help": "Of the samples of rows, the controls and the bootstrap."})


def main(args: EvaluateArguments, more: AlignmentArguments) -> None:
    one_of(args.split, ("test", "valid"), "split")
    for name in (*args.controls, *more.alignment):
        if name not in args.recommenders:
            near = did_you_mean(name, args.recommenders)
            raise ValueError(f"controls or alignment names {name!r}, which is not one of the recommenders{near}")
    names = [*args.recommenders, *(f"{name}, {control}" for name in args.controls for control in CONTROLS)]
    if args.reference is not None and args.reference not in names:
        raise ValueError(f"reference {args.reference!r} is not one of the recommenders {names}")
    aligner = Aligner(more.alignment_prompts, more.general_text, more.general_text_base)
    data = PreparedData.load(args.data_dir)
    settings = f"{asdict(args)} {asdict(more)} {aligner.fingerprint}"
    inputs = fingerprint(settings, data.fingerprint, *map(files_of, args.recommenders.values()))
    if is_report_of(args.output_dir, inputs):
        print(f"Reusing {args.output_dir}: same settings, data and recommenders.")
    else:
        with Lock(args.output_dir):
            rows = getattr(data, args.split)
            if args.max_rows is not None and args.max_rows < rows.num_rows:
                rows = rows.take(np.sort(np.random.default_rng(args.seed).permutation(rows.num_rows)[: args.max_rows]))
            index = SemIDIndex.load(args.semids) if args.semids else None
            shared = {"ks": args.ks, "batch_size": args.batch_size, "bootstrap": args.bootstrap, "seed": args.seed}
            sample = Sample(data, getattr(data, args.split), more.alignment_rows, args.seed, args.bootstrap)
            results, alignment = [], {}
            for name, folder in args.recommenders.items():
                check_trained_on(folder, data)
                recommender = load_recommender(folder)
                if name in more.alignment:
                    alignment[name] = aligner(recommender, sample)
                results.append(evaluate(recommender, rows, data, name, index=index, **shared))
                for control, shuffle in CONTROLS.items() if name in args.controls else ():
                    shuffled = shuffle(rows, args.seed)
                    results.append(evaluate(recommender, shuffled, data, f"{name}, {control}", index=index, **shared))
            facts = {
                "data": data.info.get("name", Path(args.data_dir).name),
                "data fingerprint": data.fingerprint,
                "split": f"{args.split}, {rows.num_rows} rows",
                "items": data.items.num_rows,
                "seed": args.seed,
                "inputs fingerprint": inputs,
            }
            title = f"{facts['data']}: {len(results)} recommenders"
            write_report(results, args.output_dir, title, args.reference, facts, args.bootstrap, args.seed, alignment)
    summary = read_json(Path(args.output_dir) / "metrics.json")
    print(f"\n{summary['facts']['data']}, {summary['facts']['split']}, item level [95 % interval]\n")
    print(f"{headline(summary)}\n{alignment_text(args.output_dir)}")
    print(f"Report: {args.output_dir}/report.html (figures: metrics.json, lists: predictions/)")


if __name__ == "__main__":
    logging.basicConfig(format="%(message)s")
    logging.getLogger("llmrec").setLevel(logging.INFO)
    main(*Parser((EvaluateArguments, AlignmentArguments)).parse_args_and_config())

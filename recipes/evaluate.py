"""Evaluates any number of recommenders on the same rows and writes one report.

    python recipes/evaluate.py --config recipes/configs/quickstart/evaluate.yaml

`recommenders` maps a name to a folder, of a model or a baseline. Writes metrics.json, predictions/<name>.parquet,
report.md and report.html (with plots), and alignment.json for the models of `alignment` (docs/alignment.md).
"""

import logging
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from llmrec.arguments import at_least, one_of
from llmrec.catalogue.semids import SemIDIndex
from llmrec.commands import run_script
from llmrec.data import PreparedData, excludes_seen
from llmrec.evaluation import CONTROLS, KS, evaluate
from llmrec.evaluation.alignment import Aligner, AlignmentArguments, Sample
from llmrec.evaluation.report import alignment_text, headline, is_report_of, write_report
from llmrec.files import Lock, fingerprint, read_json
from llmrec.recommenders import check_trained_on, files_of, load_recommender


@dataclass
class EvaluateArguments:
    data_dir: str = field(metadata={"help": "Folder that recipes/prepare_data.py wrote."})
    output_dir: str = field(metadata={"help": "Where the report goes."})
    recommenders: dict = field(metadata={"help": "Name -> folder of a model or a baseline, or of the Hub."})
    split: str = field(default="test", metadata={"help": "test or valid."})
    max_rows: int | None = field(default=None, metadata={"help": "Evaluate a random sample of this many rows."})
    reference: str | None = field(default=None, metadata={"help": "Name that all others are compared with."})
    controls: list[str] = field(default_factory=list, metadata={"help": "Names to evaluate on shuffled rows as well."})
    semids: str | None = field(default=None, metadata={"help": "semids.parquet or index.json for the SemID level."})
    exclude_seen: str = field(default="auto", metadata={"help": "Leave out the history's items: auto, true, false."})
    ks: list[int] = field(default_factory=lambda: list(KS), metadata={"help": "List lengths of the metrics."})
    batch_size: int = field(default=256, metadata={"help": "Rows per call of recommend."})
    bootstrap: int = field(default=1000, metadata={"help": "Resamples for intervals; 0 = none."})
    seed: int = field(default=0, metadata={"help": "Of the samples of rows, the controls and the bootstrap."})


def measure(args: EvaluateArguments, more: AlignmentArguments, aligner: Aligner, data: PreparedData, inputs: str):
    rows = getattr(data, args.split)
    sample = Sample(data, rows, more.alignment_rows, args.seed, args.bootstrap, more.search_encoder, more.search_cache)
    rows = rows.take(np.sort(np.random.default_rng(args.seed).permutation(rows.num_rows)[: args.max_rows]))
    shared = {name: getattr(args, name) for name in ("ks", "batch_size", "bootstrap", "seed")}
    shared["index"] = SemIDIndex.load(args.semids) if args.semids else None
    seen = excludes_seen(args.exclude_seen, data)
    results, alignment = [], {}
    for name, folder in args.recommenders.items():
        check_trained_on(folder, data)
        recommender = load_recommender(folder)
        if name in more.alignment:
            alignment[name] = aligner(recommender, sample)
        results.append(evaluate(recommender, rows, data, name, exclude_seen=args.exclude_seen, **shared))
        for control, shuffle in CONTROLS.items() if name in args.controls else ():
            given = (recommender, shuffle(rows, args.seed), data, f"{name}, {control}")
            results.append(evaluate(*given, exclude_seen=seen, **shared))  # not auto: one column is enough
    facts = {
        "data": data.info.get("name", Path(args.data_dir).name),
        "data fingerprint": data.fingerprint,
        "folders": {"data": args.data_dir, **args.recommenders},
        "split": f"{args.split}, {rows.num_rows} rows",
        "items": data.items.num_rows,
        "items of the history": f"{'left out' if seen else 'kept'} ({args.exclude_seen})".lower(),
        "seed": args.seed,
        "inputs fingerprint": inputs,
    }
    title = f"{facts['data']}: {len(results)} recommenders"
    write_report(results, args.output_dir, title, args.reference, facts, args.bootstrap, args.seed, alignment)


def main(args: EvaluateArguments, more: AlignmentArguments) -> None:
    one_of(args.split, ("test", "valid"), "split")
    if not args.recommenders:
        raise ValueError("recommenders is empty: give a name and the folder of a model or a baseline")
    at_least(args, max_rows=1, ks=1, batch_size=1, bootstrap=0)
    for name in (*args.controls, *more.alignment):
        one_of(name, args.recommenders, "controls or alignment names")
    names = [*args.recommenders, *(f"{name}, {control}" for name in args.controls for control in CONTROLS)]
    one_of(args.reference or names[0], names, "reference")
    aligner = Aligner(more.alignment_prompts, more.general_text, more.general_text_base)
    data = PreparedData.load(args.data_dir)
    settings = f"{asdict(args)} {asdict(more)} {aligner.fingerprint}"
    inputs = fingerprint(settings, data.fingerprint, *map(files_of, args.recommenders.values()))
    if is_report_of(args.output_dir, inputs):
        print(f"Reusing {args.output_dir}: same settings, data and recommenders.")
    else:
        with Lock(args.output_dir):
            measure(args, more, aligner, data, inputs)
    summary = read_json(Path(args.output_dir) / "metrics.json")
    print(f"\n{summary['facts']['data']}, {summary['facts']['split']}, item level [95 % interval]\n")
    print(f"{headline(summary)}\n{alignment_text(args.output_dir)}")
    print(f"Report: {args.output_dir}/report.html (figures: metrics.json, lists: predictions/)")


if __name__ == "__main__":
    run_script(main, EvaluateArguments, AlignmentArguments, level=logging.INFO)

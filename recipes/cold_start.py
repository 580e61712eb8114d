"""Cold start: items that training never saw, in two steps around the ordinary recipes.

    C=recipes/configs/office14_cold
    python recipes/cold_start.py --config $C/cold_start.yaml --step hold_out   # data_dir -> cold_dir
    python recipes/tokenize_items.py --config recipes/configs/own_csv/semids.yaml ...   # and so on (docs/lifecycle.md)
    python recipes/cold_start.py --config $C/cold_start.yaml --step evaluate   # report.md in output_dir

`hold_out` writes prepared data whose training and validation hold no cold item; `evaluate` compares recommenders that
were made from it on cold and on warm targets.
"""

from dataclasses import dataclass, field
from pathlib import Path

from llmrec.arguments import at_least, one_of
from llmrec.commands import run_script
from llmrec.data import PreparedData
from llmrec.data.cold_items import hold_out_items
from llmrec.data.prepared import check_replaceable
from llmrec.data.statistics import statistics_table
from llmrec.evaluation import KS
from llmrec.evaluation.cold_start import evaluate_cold, write_cold_report
from llmrec.files import Lock
from llmrec.recommenders import check_trained_on, load_recommender


@dataclass
class ColdStartArguments:
    cold_dir: str = field(metadata={"help": "Data whose training lacks the cold items; evaluate: any prepared data."})
    step: str = field(default="hold_out", metadata={"help": "hold_out or evaluate."})
    data_dir: str | None = field(default=None, metadata={"help": "hold_out: prepared data (recipes/prepare_data.py)."})
    fraction: float = field(default=0.05, metadata={"help": "hold_out: share of the training items."})
    from_training: bool = field(default=False, metadata={"help": "hold_out: cold training targets are test rows too."})
    overwrite: bool = field(default=False, metadata={"help": "hold_out: replace what is there."})
    output_dir: str | None = field(default=None, metadata={"help": "evaluate: where the report goes."})
    recommenders: dict = field(default_factory=dict, metadata={"help": "evaluate: name -> folder."})
    reference: str | None = field(default=None, metadata={"help": "evaluate: name that the others are compared with."})
    max_warm: int | None = field(default=None, metadata={"help": "evaluate: a sample of this many warm rows."})
    ks: list[int] = field(default_factory=lambda: list(KS), metadata={"help": "evaluate: lengths of the lists."})
    batch_size: int = field(default=256, metadata={"help": "evaluate: rows per call of recommend."})
    bootstrap: int = field(default=1000, metadata={"help": "evaluate: resamples for the intervals; 0 = none."})
    seed: int = field(default=0, metadata={"help": "Of the drawn items, the sample and the bootstrap."})


def hold_out(args: ColdStartArguments) -> None:
    if args.data_dir is None:
        raise ValueError("hold_out needs data_dir, a folder of recipes/prepare_data.py")
    folder = Path(args.cold_dir)
    if Path(args.data_dir).resolve().is_relative_to(folder.resolve()):
        raise ValueError(f"cold_dir {folder} would replace data_dir {args.data_dir}: choose another cold_dir")
    data = PreparedData.load(args.data_dir)
    rule = {"fraction": args.fraction, "seed": args.seed, "from_training": args.from_training, "of": data.fingerprint}
    if (folder / "dataset.json").exists() and not args.overwrite:
        if PreparedData.load(folder).info.get("rules", {}).get("hold_out") != rule:
            raise ValueError(f"{folder} holds other data: pass --overwrite true, or choose another cold_dir")
        print(f"Reusing {folder}: same settings, same data.")
    else:
        with Lock(folder):
            check_replaceable(folder)
            hold_out_items(data, args.fraction, args.seed, args.from_training).save(folder)
    cold = PreparedData.load(folder)
    print(statistics_table(cold.info["statistics"]))
    print(f"{len(cold.info['cold_items'])} cold items. Next: recipes/tokenize_items.py on {folder}")


def evaluate(args: ColdStartArguments) -> None:
    if args.output_dir is None or not args.recommenders:
        raise ValueError("evaluate needs output_dir and recommenders (name: folder)")
    if args.reference is not None and args.reference not in args.recommenders:
        raise ValueError(f"reference {args.reference!r} is not one of the recommenders {list(args.recommenders)}")
    data = PreparedData.load(args.cold_dir)
    loaded = {}
    for name, folder in args.recommenders.items():
        check_trained_on(folder, data)
        loaded[name] = load_recommender(folder)
    shared = {"bootstrap": args.bootstrap, "seed": args.seed}
    facts = {"data": data.info.get("name", args.cold_dir), "data fingerprint": data.fingerprint, "seed": args.seed}
    with Lock(args.output_dir):
        cuts = evaluate_cold(loaded, data, args.max_warm, ks=args.ks, batch_size=args.batch_size, **shared)
        lines = write_cold_report(cuts, data, args.output_dir, facts, reference=args.reference, **shared)
    print(*lines, f"\nReport: {args.output_dir}/report.md", sep="\n")


STEPS = {"hold_out": hold_out, "evaluate": evaluate}


def main(args: ColdStartArguments) -> None:
    at_least(args, fraction=0.0, max_warm=1, ks=1, batch_size=1, bootstrap=0)
    STEPS[one_of(args.step, STEPS, "step")](args)


if __name__ == "__main__":
    run_script(main, ColdStartArguments)

"""Trains one recommender to compare with, of any kind: item-kNN, SASRec, BSARec, HSTU, a blend of several, ...

    python recipes/train_recommender.py --config recipes/configs/benchmarks/beauty/bsarec.yaml

`settings` are those of the kind (docs/recommenders.md has a table); one that has a list of choices is chosen on
validation (choices.json). Writes the recommender, which `load_recommender` and `recipes/evaluate.py` read, and where a
network was trained its learning curve (curve.json, curve.png). A run that was killed goes on after its last epoch.
"""

import logging
import os
import shutil
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

from llmrec.arguments import one_of
from llmrec.commands import run_script
from llmrec.data import PreparedData
from llmrec.recommenders.choosing import configs_of, fit_best
from llmrec.recommenders.loading import KINDS
from llmrec.stages import begin_stage, finish_stage
from llmrec.training.run import finish_network


@dataclass
class TrainArguments:
    data_dir: str = field(metadata={"help": "Folder that recipes/prepare_data.py wrote."})
    output_dir: str = field(metadata={"help": "The recommender is written into it."})
    kind: str = field(metadata={"help": f"One of {', '.join(KINDS)}."})
    settings: dict = field(default_factory=dict, metadata={"help": "Of the kind; the others keep their defaults."})
    device: str = field(default="auto", metadata={"help": "auto: the GPU where there is one; cpu, cuda, cuda:1."})
    overwrite: bool = field(default=False, metadata={"help": "Replace what a run with other settings left."})


def main(args: TrainArguments) -> None:
    kind = KINDS[one_of(args.kind, KINDS, "kind")]
    configs = configs_of(kind, args.settings)
    data, folder = PreparedData.load(args.data_dir), Path(args.output_dir)
    made_from = {"data_fingerprint": data.fingerprint} | kind.made_from(configs[0])
    settings = {"kind": args.kind, "settings": [asdict(config) for config in configs]}
    if begin_stage(folder, settings | made_from, args.overwrite) == "done":
        print(f"Reusing {folder}: same settings, same data.")
        return
    began = time.perf_counter()
    recommender = fit_best(kind, data, configs, args.device, folder)
    results = {"seconds": round(time.perf_counter() - began, 1), "parameters": recommender.num_parameters}
    recommender.save_pretrained(made := folder / ".recommender", made_from)
    for part in sorted(made.iterdir(), key=lambda part: part.name == "config.json"):  # it says that all are there
        if part.is_dir():
            shutil.rmtree(folder / part.name, ignore_errors=True)
        os.replace(part, folder / part.name)
    made.rmdir()
    results |= finish_network(folder)
    finish_stage(folder, **results)
    print(f"{args.kind}: {results} -> {folder}")


if __name__ == "__main__":
    run_script(main, TrainArguments, level=logging.INFO)

"""Trains the baselines: popularity, item-kNN, content-kNN and SASRec.

    python recipes/train_baselines.py --config recipes/configs/quickstart/baselines.yaml

Writes `output_dir/{popularity,item_knn,content_knn,sasrec}`; `recipes/evaluate.py` reads them. What is there
with the same settings and data is reused.
"""

import logging
import time
from dataclasses import dataclass, field
from pathlib import Path

from llmrec.commands import run_script
from llmrec.data import PreparedData
from llmrec.files import check_whole, made_again
from llmrec.recommenders.content_knn import ContentKNN, ContentKNNConfig
from llmrec.recommenders.item_knn import ItemKNN, ItemKNNConfig
from llmrec.recommenders.popularity import Popularity
from llmrec.recommenders.sasrec import SASRec, SASRecConfig
from llmrec.stages import begin_stage, finish_stage, settings_of


@dataclass
class BaselineArguments:
    data_dir: str = field(metadata={"help": "Folder that recipes/prepare_data.py wrote."})
    output_dir: str = field(metadata={"help": "One folder per baseline is written into it."})
    overwrite: bool = field(default=False, metadata={"help": "Replace what a run with other settings left."})


def main(args: BaselineArguments, knn: ItemKNNConfig, content: ContentKNNConfig, sasrec: SASRecConfig) -> None:
    data = PreparedData.load(args.data_dir)
    made_from = {"data_fingerprint": data.fingerprint} | ContentKNN.made_from(content)
    elsewhere = ("output_dir", "overwrite", "content_cache")
    settings = settings_of(args, knn, content, sasrec, ignore=elsewhere) | made_from
    if begin_stage(args.output_dir, settings, args.overwrite) == "done":
        print(f"Reusing the baselines in {args.output_dir}: same settings, same data.")
        return
    seconds = {}
    makers = {
        "popularity": lambda: Popularity.fit(data),
        "item_knn": lambda: ItemKNN.fit(data, knn),
        "content_knn": lambda: ContentKNN.fit(data, content),
        "sasrec": lambda: SASRec.fit(data, sasrec),
    }
    for name, fit in makers.items():
        folder = Path(args.output_dir) / name
        if folder.exists():
            with made_again(folder):
                check_whole(folder)
            print(f"Reusing {folder} of the interrupted run.")
            continue
        began = time.perf_counter()
        fit().save_pretrained(folder, {"data_fingerprint": data.fingerprint})
        seconds[name] = round(time.perf_counter() - began, 1)
        print(f"{name}: {seconds[name]} s -> {folder}")
    finish_stage(args.output_dir, seconds=seconds)


if __name__ == "__main__":
    run_script(main, BaselineArguments, ItemKNNConfig, ContentKNNConfig, SASRecConfig, level=logging.INFO)

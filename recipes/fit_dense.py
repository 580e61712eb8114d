"""Dense retrieval beside generation: fits a head on the states of a trained model, whose weights stay as they are.

    python recipes/fit_dense.py --config recipes/configs/office14_cold/dense.yaml

Writes `output_dir/head` and for every mode `output_dir/<mode>`, a model folder that uses it (docs/decoding.md, "Dense
retrieval"): `rank` the items that the beams hold, these and all `cold` items, or all items, the head `alone`. A run
that was killed goes on with the states that it had read, after its last epoch.
"""

import logging
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from tqdm.auto import tqdm

from llmrec.arguments import one_of
from llmrec.arrays import blocks
from llmrec.commands import run_script
from llmrec.data import PreparedData
from llmrec.decoding.dense import MODES
from llmrec.features import ItemFeatures
from llmrec.files import atomic_path, fingerprint
from llmrec.models.dense import DenseHead
from llmrec.models.update import add_dense
from llmrec.recommenders import LLMRecommender, check_trained_on, files_of
from llmrec.stages import begin_stage, finish_stage, settings_of
from llmrec.training.dense import DenseConfig, dense_rows, fit_dense, states_of
from llmrec.training.run import finish_network

_ROWS = 2048  # whose states are written together


@dataclass
class FitDenseArguments:
    model: str = field(metadata={"help": "A trained model folder of ours."})
    data_dir: str = field(metadata={"help": "The prepared data that it was trained on."})
    output_dir: str = field(metadata={"help": "The head and the model folders are written into it."})
    modes: list[str] = field(default_factory=lambda: ["cold"], metadata={"help": "rank, cold, alone."})
    hard_links: bool = field(default=False, metadata={"help": "Share the weights' files with the model."})
    cache_dir: str = field(default="out/feature_cache", metadata={"help": "Text embeddings by content."})
    overwrite: bool = field(default=False, metadata={"help": "Replace what a run with other settings left."})


def read_states(recommender: LLMRecommender, rows: dict, folder: Path) -> dict[str, np.ndarray]:
    states = {}
    for name, table in rows.items():
        parts = []
        for block in tqdm(blocks(len(table), _ROWS), desc=f"states of {name} prompts", unit=f" x {_ROWS} rows"):
            file = folder / f"{name}-{block.start}.npy"
            if not file.exists():
                with atomic_path(file) as temporary, temporary.open("wb") as opened:
                    np.save(opened, states_of(recommender, table.slice(block.start, block.stop - block.start)))
            parts.append(np.load(file, allow_pickle=False))
        states[name] = np.concatenate(parts)
    return states


def main(args: FitDenseArguments, config: DenseConfig) -> None:
    for mode in args.modes:
        one_of(mode, MODES, "modes:")
    data, folder = PreparedData.load(args.data_dir), Path(args.output_dir)
    check_trained_on(args.model, data)
    inputs = ItemFeatures(config.dense_features, args.cache_dir).inputs_fingerprint()
    made_from = {"data": data.fingerprint, "of": fingerprint(files_of(args.model)), "inputs": inputs}
    settings = settings_of(args, config, ignore=("output_dir", "overwrite", "cache_dir", "modes")) | made_from
    settings["modes"] = sorted(args.modes)
    if begin_stage(folder, settings, args.overwrite) == "done":
        print(f"Reusing {folder}: same settings, same model.")
        return
    recommender = LLMRecommender.from_pretrained(args.model)
    if recommender.block is not None:
        raise ValueError(f"{args.model} thinks before it answers: a dense head is for models that answer at once")
    if recommender.index.items != data.items["item_id"].to_pylist():
        raise ValueError(f"{args.model} has other items than {args.data_dir}: fit before the catalogue is updated")
    if not (folder / "head").exists():
        rows = dense_rows(data, config)
        states = read_states(recommender, rows, folder / "states")
        dense, _ = fit_dense(data, rows, states, config, args.cache_dir, folder=folder)
        dense.save_pretrained(folder / "head")
    dense = DenseHead.from_pretrained(folder / "head", recommender.index.items, args.cache_dir)
    for mode in args.modes:
        if not (folder / mode).exists():
            add_dense(args.model, dense, mode, folder / mode, args.hard_links)
    shutil.rmtree(folder / "states", ignore_errors=True)
    told = {name: dense.settings[name] for name in ("ndcg@10", "prompts")}
    finish_stage(folder, **finish_network(folder), **told)
    print(f"Validation ndcg@10 of the head: {dense.settings['ndcg@10']:.4f}. {', '.join(args.modes)} in {folder}")


if __name__ == "__main__":
    run_script(main, FitDenseArguments, DenseConfig, level=logging.INFO)

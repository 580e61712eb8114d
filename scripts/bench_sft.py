"""SFT throughput: `SemIDSFTTrainer` against a bare PyTorch loop over the same batches of the same model, and the
recipe of own data against the recipe for Beauty of another commit.

    python scripts/bench_sft.py [--json FILE] [--steps 60] [--repeats 3] [--against REF] [--data DIR] [--sampled N]

The first two train the quickstart's model on the generated store with fused AdamW and gradient clipping, in one
process and in turn; the figure is the median ratio of labelled tokens per second. Losses must agree.

Then the recipe for Beauty as it was (recipes/configs/beauty of that commit, two tokens an item) and the recipe of own
data as it is (recipes/configs/own_csv, one token an item) train on the same users in turn, in a process each: those of
a generated store of the size of Beauty, or of the prepared data of `--data`. The figure is the median ratio of targets
(items) per second, and, for busy machines, per CPU second. The loss of both is measured in one way: -log of the
probability of the next item among all of the catalogue, on the same validation rows. `--sampled` is the
`sampled_softmax` of the second (docs/training.md).
"""

import argparse
import copy
import json
import os
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from functools import partial
from pathlib import Path

import torch
import yaml
from transformers import TrainerCallback
from trl import SFTConfig, SFTTrainer

from llmrec.catalogue.semids import SemIDIndex
from llmrec.data import PreparedData
from llmrec.data.prepare import prepare
from llmrec.data.synthetic import generate_store
from llmrec.decoding.head import head_output
from llmrec.features import ItemFeatures
from llmrec.files import write_json
from llmrec.instructions import (
    Catalogue,
    Renderer,
    TaskMix,
    build_dataset,
    encode_rows,
    load_prompt,
    target_rows,
)
from llmrec.item_tokenizers import TOKENIZERS, build_semids
from llmrec.models.folder import RecommenderConfig, plain_generation_config, write_sidecars
from llmrec.models.from_scratch import model_from_config, train_tokenizer
from llmrec.models.vocabulary import extend_vocabulary
from llmrec.recommenders import LLMRecommender
from llmrec.training import CatalogueLoss, SemIDSFTTrainer
from llmrec.training.batches import SemIDCollator

BEFORE = "d219398"  # the trainer that looked at the whole vocabulary
ROOT = Path(__file__).parents[1]
RECIPES = {"before": "recipes/configs/beauty", "after": "recipes/configs/own_csv"}


class Clock(TrainerCallback):
    """Seconds from the end of the first step (which warms up) to the end of the last."""

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 1:
            self.start = time.perf_counter()
        self.seconds = time.perf_counter() - self.start


class Records:
    """Keeps the batches that a trainer trained on."""

    batches: list

    def compute_loss(self, model, inputs, *args, **kwargs):
        self.batches.append(dict(inputs))
        return super().compute_loss(model, inputs, *args, **kwargs)


class Recorder(Records, SemIDSFTTrainer):
    """Ours."""


class Stock(Records, SFTTrainer):
    """TRL's."""


def store() -> PreparedData:
    interactions, items = generate_store(seed=0)
    return prepare(interactions, items, user_k=5, item_k=5, split="leave_one_out")


def semids(data: PreparedData, kind: str, settings: dict, collision: str) -> tuple[SemIDIndex, list]:
    """Semantic IDs of tf-idf, and the codebooks."""
    features = ItemFeatures([{"kind": "text", "encoder": "tfidf"}]).fit(data.items, data.train, 0).encode(data.items)
    tokenizer = TOKENIZERS[kind](**settings).fit(features, seed=0)
    return build_semids(data.items["item_id"].to_pylist(), features, tokenizer, collision), tokenizer.codebooks


def setting(data: PreparedData):
    index, codebooks = semids(data, "rq_kmeans", {"codebook_sizes": [64, 64, 64]}, "reassign_last")
    with open("recipes/configs/quickstart/model.yaml", encoding="utf-8") as file:
        config = yaml.safe_load(file)["model_config"] | {"attention_dropout": 0.0}  # so that the losses must agree
    words = train_tokenizer(data.items["title"].to_pylist(), 2000)
    model = model_from_config(config, words)
    extend_vocabulary(model, words, index, "codebook", codebooks=codebooks)
    rows = build_dataset(data, [TaskMix.parse("stream")], Renderer(words, Catalogue(index, data.items)), 20, 512)
    return model, words, rows


def with_trainer(model, words, rows, steps: int, kind: type = Recorder, **more) -> tuple[float, float, list]:
    """(labelled tokens per second, mean loss, the batches it saw); `more` goes to `SFTConfig`."""
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        settings = {
            "max_steps": steps,
            "per_device_train_batch_size": 64,
            "learning_rate": 1e-3,
            "lr_scheduler_type": "constant",
            "train_sampling_strategy": "group_by_length",
            "use_cpu": not torch.cuda.is_available(),
            "bf16": False,
            "gradient_checkpointing": False,
            "report_to": "none",
            "save_strategy": "no",
            "disable_tqdm": True,
            "max_length": 512,
        }
        arguments = SFTConfig(folder, **settings | more)
        trainer = kind(model, arguments, train_dataset=rows, processing_class=words, callbacks=[clock])
        trainer.batches = []
        loss = trainer.train().training_loss
    return labelled(trainer.batches[1:]) / clock.seconds, loss, trainer.batches


def bare(model, batches: list) -> tuple[float, float]:
    """The same steps in a plain loop."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0, fused=True)
    model.train()
    losses, start = [], 0.0
    for batch in batches:
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        start = start or time.perf_counter()
    return labelled(batches[1:]) / (time.perf_counter() - start), statistics.mean(losses)


def labelled(batches: list) -> int:
    return sum(int((batch["labels"] != -100).sum()) for batch in batches)


def beauty_sized() -> PreparedData:
    """A generated store with as many items and users as Beauty."""
    return prepare(*generate_store(0, 12_100, 22_400), user_k=5, item_k=1, split="leave_one_out")


def write_base(folder: Path, recipe: Path, data: PreparedData) -> None:
    """The model that a recipe begins from, with tf-idf for its features."""
    made, settings = (
        yaml.safe_load((recipe / f"{name}.yaml").read_text(encoding="utf-8")) for name in ("semids", "model")
    )
    index, codebooks = semids(data, made["tokenizer"], made["tokenizer_args"], made["collision"])
    words = train_tokenizer(data.items["title"].to_pylist(), settings["vocab_size"])
    model = model_from_config(settings["model_config"], words)
    extend_vocabulary(model, words, index, "codebook", codebooks=codebooks)
    model.generation_config = plain_generation_config(words)
    model.save_pretrained(folder)
    words.save_pretrained(folder)
    write_sidecars(
        folder, RecommenderConfig.of(data, index, prompt=load_prompt("stream").to_dict()), index, data.items
    )


def train_at(tree: Path, config: str, data: Path, base: Path, output: Path, more: list) -> dict[str, float]:
    """Labels and seconds of a run of a tree's own recipe, whose model lies in `output` then."""
    flags = ["--config", f"{config}/sft.yaml", "--data_dir", data, "--model_name_or_path", base]
    flags += ["--output_dir", output, "--eval_strategy", "no", "--save_strategy", "no"]
    flags += ["--load_best_model_at_end", "false", "--disable_tqdm", "true", *more]
    figures, script = output.with_suffix(".json"), ROOT / "scripts" / "timed_sft.py"
    command = [sys.executable, script, figures, *flags]
    environment = os.environ | {"PYTHONPATH": str(tree)}
    done = subprocess.run([*map(str, command)], cwd=tree, env=environment, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"recipes/sft.py failed in {tree}:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return json.loads(figures.read_text(encoding="utf-8"))


@torch.no_grad()
def item_loss(folder: Path, data: PreparedData, count: int = 1000) -> float:
    """The mean of -log p(next item) over the catalogue, on the first validation rows."""
    recommender = LLMRecommender.from_pretrained(folder)
    rows = target_rows(data.valid.slice(0, count), recommender.config.max_history)
    rows = encode_rows(rows, recommender.prompt, recommender.renderer, 512).select_columns(["input_ids", "labels"])
    model, collate = recommender.model, SemIDCollator(pad_token_id=recommender.tokenizer.pad_token_id)
    loss, total = CatalogueLoss(recommender.trie, model.get_output_embeddings().weight.shape[0]), 0.0
    for start in range(0, len(rows), 100):
        batch = collate([*rows.select(range(start, min(start + 100, len(rows))))])
        with head_output(model, partial(loss, labels=batch.pop("labels")[:, 1:].contiguous())):
            ids, mask = (batch[name][:, :-1] for name in ("input_ids", "attention_mask"))
            total += float(model(input_ids=ids, attention_mask=mask, use_cache=False).logits.sum())
    return total / len(rows)


def against(ref: str, given: Path | None, steps: int, repeats: int, sampled: int) -> dict[str, float]:
    """Runs the recipe of own data here and the recipe for Beauty of a commit of this repository, in turn."""
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        trees = {"before": folder / "tree", "after": ROOT}
        if subprocess.run(["git", "-C", str(ROOT), "archive", "--output", str(folder / "before.tar"), ref]).returncode:
            sys.exit(f"--against {ref}: this needs a git checkout that has this commit")
        with tarfile.open(folder / "before.tar") as files:
            files.extractall(trees["before"], filter="data")
        data = PreparedData.load(given) if given else beauty_sized()
        data.save(folder / "data")
        for name, recipe in RECIPES.items():
            write_base(folder / f"{name}-base", trees[name] / recipe, data)
        speeds, cpu, losses = ({name: [] for name in trees} for _ in range(3))
        for repeat in range(repeats):
            for name, tree in trees.items():
                base, output = folder / f"{name}-base", folder / f"{name}-{repeat}"
                more = ["--max_steps", steps] + (["--sampled_softmax", sampled] if sampled and name == "after" else [])
                found = train_at(tree, RECIPES[name], folder / "data", base, output, more)
                targets = found["labels"] / SemIDIndex.load(output / "semids.parquet").lengths.mean()
                speeds[name].append(targets / found["seconds"])
                cpu[name].append(targets / found["cpu_seconds"])
                losses[name].append(item_loss(output, data))
                speed, loss = speeds[name][-1], losses[name][-1]
                print(f"run {repeat}, {name}: {speed:,.0f} targets/s, loss {loss:.4f}", flush=True)
    figures = {
        f"targets_per_{kind}_speedup": statistics.median(new / old for new, old in zip(each["after"], each["before"]))
        for kind, each in (("second", speeds), ("cpu_second", cpu))
    }
    figures |= {f"targets_per_second_{name}": statistics.median(each) for name, each in speeds.items()}
    return figures | {f"item_loss_{name}": statistics.median(each) for name, each in losses.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", help="write the figures there")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--against", default=BEFORE, help="a commit of this repository; empty: none")
    parser.add_argument("--sampled", type=int, default=0, help="sampled_softmax of the recipe of own data")
    parser.add_argument("--data", type=Path, help="prepared data, such as out/beauty/data")
    arguments = parser.parse_args()
    model, words, rows = setting(store())
    ratios, losses = [], []
    print(f"{model.num_parameters():,} parameters, {torch.get_num_threads()} threads, {arguments.steps} steps")
    for repeat in range(arguments.repeats):
        ours, our_loss, batches = with_trainer(copy.deepcopy(model), words, rows, arguments.steps)
        plain, plain_loss = bare(copy.deepcopy(model), batches)
        ratios.append(ours / plain)
        losses.append(abs(our_loss / plain_loss - 1))
        print(f"run {repeat}: trainer {ours:,.0f} tokens/s, bare loop {plain:,.0f} tokens/s, ratio {ratios[-1]:.3f}")
    figures = {"sft_throughput_vs_bare": statistics.median(ratios), "sft_loss_relative_difference": max(losses)}
    print(f"median ratio {figures['sft_throughput_vs_bare']:.3f}, loss differs by {max(losses):.1e}")
    if arguments.against:
        run = arguments.data, arguments.steps, arguments.repeats, arguments.sampled
        figures |= against(arguments.against, *run)
        print(f"{arguments.against} → here: {figures['targets_per_second_speedup']:.2f} times the targets per second")
    if arguments.json:
        write_json(arguments.json, {"figures": figures})


if __name__ == "__main__":
    main()

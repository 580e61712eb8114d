"""Dense (`stream`) supervision against one row per target: training time to the same validation recall@10.

    python scripts/bench_supervision.py --config recipes/configs/industrial/sft.yaml [--json FILE] [--row_epochs 3]

Both start from the model folder that the configuration names and use its settings, except that both keep a constant
learning rate, so that neither profits from a schedule's end. The row format trains `row_epochs` epochs and sets the
mark: its best recall@10 and the training time (without evaluation) until then. Dense supervision trains until it
reaches the mark. The figure is the ratio of the two times.
"""

import argparse
import dataclasses
import tempfile
import time

import yaml
from transformers import TrainerCallback
from trl import SFTConfig

from llmrec.data import PreparedData
from llmrec.files import write_json
from llmrec.instructions import Catalogue, Renderer, TaskMix, build_dataset, load_prompt
from llmrec.models.folder import RecommenderConfig, load_index, semids_table
from llmrec.models.weights import load_model, load_tokenizer
from llmrec.recommenders import LLMRecommender
from llmrec.training import SemIDSFTTrainer, ValidationSample, add_dropout


class Curve(TrainerCallback):
    """(training seconds, recall@10) every `every` steps; stops at `mark`."""

    def __init__(self, sample: ValidationSample, every: int, mark: float = 2.0):
        self.sample, self.every, self.mark = sample, every, mark
        self.points: list[tuple[float, float]] = []
        self.seconds = 0.0

    def on_step_begin(self, args, state, control, **kwargs):
        self.began = time.perf_counter()

    def on_step_end(self, args, state, control, model=None, **kwargs):
        self.seconds += time.perf_counter() - self.began
        if state.global_step % self.every and state.global_step < state.max_steps:
            return
        recall = self.sample.evaluate(model, self.trainer.accelerator)["recall@10"]
        self.points.append((self.seconds, recall))
        print(f"  {self.seconds:7.1f} s  recall@10 {recall:.4f}", flush=True)
        control.should_training_stop |= recall >= self.mark


def train(settings: dict, prompt, epochs: float, evaluations: int, mark: float = 2.0) -> list[tuple[float, float]]:
    data, base = PreparedData.load(settings["data_dir"]), settings["model_name_or_path"]
    index, items = load_index(base, RecommenderConfig.load(base)), semids_table(base)
    tokenizer, model = load_tokenizer(base), load_model(base)
    if settings.get("hidden_dropout"):
        add_dropout(model, settings["hidden_dropout"])
    renderer = Renderer(tokenizer, Catalogue(index, items))
    rows = build_dataset(data, [TaskMix(prompt)], renderer, settings["max_history"], settings["max_length"])
    config = RecommenderConfig.of(
        data, index, prompt=load_prompt("stream").to_dict(), max_history=settings["max_history"], num_beams=20
    )
    sample = ValidationSample(LLMRecommender(model, tokenizer, index, items, config), data.valid, 1000, ks=(10,))
    steps = int(epochs * len(rows) / settings["per_device_train_batch_size"])
    curve = Curve(sample, max(1, steps // evaluations), mark)
    ours = ("per_device_train_batch_size", "learning_rate", "weight_decay", "max_grad_norm", "max_length")
    with tempfile.TemporaryDirectory() as folder:
        arguments = SFTConfig(
            folder,
            max_steps=steps,
            lr_scheduler_type="constant_with_warmup",
            warmup_steps=50,
            train_sampling_strategy="group_by_length",
            use_cpu=settings.get("use_cpu", False),
            bf16=settings.get("bf16", True),
            gradient_checkpointing=False,
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
            logging_strategy="no",
            seed=0,
            **{name: settings[name] for name in ours},
        )
        trainer = SemIDSFTTrainer(model, arguments, train_dataset=rows, processing_class=tokenizer, callbacks=[curve])
        curve.trainer = trainer
        tokens = sum(rows.with_format(None)["length"])
        print(f"{prompt.task}: {len(rows):,} rows, {tokens:,} tokens per epoch, {steps} steps at most")
        trainer.train()
    return curve.points


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", required=True, help="an sft.yaml whose model and data exist")
    parser.add_argument("--row_epochs", type=float, default=3.0, help="epochs of the row format")
    parser.add_argument("--json", help="write the figures there")
    arguments = parser.parse_args()
    with open(arguments.config, encoding="utf-8") as file:
        settings = yaml.safe_load(file)
    dense = load_prompt("stream")
    one_target = [dataclasses.replace(template, completion="{target}") for template in dense.templates]
    rows = dataclasses.replace(dense, task="next_item", templates=tuple(one_target))
    points = train(settings, rows, arguments.row_epochs, evaluations=8)
    mark = max(recall for _, recall in points)
    row_seconds = next(seconds for seconds, recall in points if recall == mark)
    points = train(settings, dense, 40, evaluations=40, mark=mark)
    seconds, reached = points[-1]
    name = settings["data_dir"].split("/")[-2]
    figures = {
        f"{name}_row_recall@10": mark,
        f"{name}_row_seconds": row_seconds,
        f"{name}_dense_recall@10": reached,
        f"{name}_dense_seconds": seconds,
        f"{name}_dense_over_row_time": seconds / row_seconds,
    }
    print("\n".join(f"{key:40} {value:.4f}" for key, value in figures.items()))
    if reached < mark:
        print("dense supervision did NOT reach the mark")
    if arguments.json:
        write_json(arguments.json, {"figures": figures})


if __name__ == "__main__":
    main()

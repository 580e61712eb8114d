"""SFT throughput: `SemIDSFTTrainer` against a bare PyTorch loop over the same batches of the same model.

    python scripts/bench_sft.py [--json FILE] [--steps 60] [--repeats 3]

Both train the quickstart's model on the generated store with fused AdamW and gradient clipping, in one process and in
turn; the figure is the median ratio of labelled tokens per second. Losses must agree.
"""

import argparse
import copy
import statistics
import tempfile
import time

import torch
import yaml
from transformers import TrainerCallback
from trl import SFTConfig

from llmrec.data import PreparedData
from llmrec.data.prepare import prepare
from llmrec.data.synthetic import generate_store
from llmrec.features import ItemFeatures
from llmrec.files import write_json
from llmrec.instructions import Catalogue, Renderer, TaskMix, build_dataset
from llmrec.item_tokenizers import TOKENIZERS, build_semids
from llmrec.models.from_scratch import model_from_config, train_tokenizer
from llmrec.models.vocabulary import extend_vocabulary
from llmrec.training import SemIDSFTTrainer


class Clock(TrainerCallback):
    """Seconds from the end of the first step (which warms up) to the end of the last."""

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 1:
            self.start = time.perf_counter()
        self.seconds = time.perf_counter() - self.start


class Recorder(SemIDSFTTrainer):
    """Keeps the batches that it trained on."""

    batches: list

    def compute_loss(self, model, inputs, *args, **kwargs):
        self.batches.append(dict(inputs))
        return super().compute_loss(model, inputs, *args, **kwargs)


def store() -> PreparedData:
    interactions, items = generate_store(seed=0)
    return prepare(interactions, items, user_k=5, item_k=5, split="leave_one_out")


def setting(data: PreparedData):
    features = ItemFeatures([{"kind": "text", "encoder": "tfidf"}]).fit(data.items, data.train, 0).encode(data.items)
    tokenizer = TOKENIZERS["rq_kmeans"](codebook_sizes=[64, 64, 64]).fit(features, seed=0)
    index = build_semids(data.items["item_id"].to_pylist(), features, tokenizer, "reassign_last")
    with open("recipes/configs/quickstart/model.yaml", encoding="utf-8") as file:
        config = yaml.safe_load(file)["model_config"] | {"attention_dropout": 0.0}  # so that the losses must agree
    words = train_tokenizer(data.items["title"].to_pylist(), 2000)
    model = model_from_config(config, words)
    extend_vocabulary(model, words, index, "codebook", codebooks=tokenizer.codebooks)
    rows = build_dataset(data, [TaskMix.parse("stream")], Renderer(words, Catalogue(index, data.items)), 20, 512)
    return model, words, rows


def with_trainer(model, words, rows, steps: int) -> tuple[float, float, list]:
    """(labelled tokens per second, mean loss, the batches it saw)."""
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        arguments = SFTConfig(
            folder,
            max_steps=steps,
            per_device_train_batch_size=64,
            learning_rate=1e-3,
            lr_scheduler_type="constant",
            train_sampling_strategy="group_by_length",
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
            max_length=512,
        )
        trainer = Recorder(model, arguments, train_dataset=rows, processing_class=words, callbacks=[clock])
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", help="write the figures there")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--repeats", type=int, default=3)
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
    if arguments.json:
        write_json(arguments.json, {"figures": figures})


if __name__ == "__main__":
    main()

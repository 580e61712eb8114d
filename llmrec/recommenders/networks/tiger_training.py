"""Trains a TIGER with transformers' `Trainer`: its rows, its loss, and validation by the search that will be used."""

import logging
import math
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch.utils.data import Dataset
from transformers import EarlyStoppingCallback, Trainer, TrainerCallback, TrainingArguments

from llmrec.arrays import check_loss
from llmrec.catalogue.filters import Filter
from llmrec.data import PreparedData, excludes_seen, lists_to_rows
from llmrec.data.rows import ragged_arange
from llmrec.decoding.self_check import evaluating
from llmrec.features.network_training import CHECKPOINT, CURVE, learning_curve, validation_rows
from llmrec.features.next_item import next_item_windows
from llmrec.files import write_json
from llmrec.recommenders.choosing import list_gains
from llmrec.recommenders.networks.tiger import PAD, CodeVocabulary, TIGERConfig
from llmrec.stages import last_complete_checkpoint

logger = logging.getLogger(__name__)
LEFT_OUT = 0.5  # of the rows, the user


class TargetRows(Dataset):
    """The rows of one epoch after the other, in the order in which they are to be read: batches of similar length.

    A row of `prefix` and `one` is a history and its target; of `dense` a stretch of a sequence with all its targets.
    Everything follows from the seed and the epoch. Reading several rows at once gives one batch.
    """

    def __init__(self, data: PreparedData, vocabulary: CodeVocabulary, config: TIGERConfig):
        self.vocabulary, self.config = vocabulary, config
        self.values, offsets = lists_to_rows(data.train["item_ids"], data.items["item_id"])
        context = data.train["num_context"].to_numpy()
        kind = "dense" if config.rows == "dense" else "prefix"
        self.windows = next_item_windows(offsets, context, config.max_length, kind)  # first, stop, first target
        sequence = np.searchsorted(offsets, self.windows[:, 2], "right") - 1
        self._first = np.append(np.flatnonzero(np.diff(sequence, prepend=-1)), len(sequence))
        users = data.train["user_id"].to_pylist()
        self.users = np.array([vocabulary.user(users[i]) for i in sequence]) if config.user_tokens else None
        self._tokens = np.append(0, np.cumsum(vocabulary.lengths[self.values]))
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        config, rng = self.config, np.random.default_rng([self.config.seed, epoch])
        rows = np.arange(len(self.windows))
        if config.rows == "one":
            rows = self._first[:-1] + rng.integers(np.diff(self._first))
        rows = rng.permutation(rows)
        lengths = self._tokens[self.windows[rows, 1] - 1] - self._tokens[self.windows[rows, 0]]
        pools = np.split(np.arange(len(rows)), range(config.batch_size * 32, len(rows), config.batch_size * 32))
        rows = rows[np.concatenate([pool[np.argsort(lengths[pool], kind="stable")] for pool in pools])]
        batches = np.split(rows, range(config.batch_size, len(rows), config.batch_size))
        last = batches.pop() if len(rows) % config.batch_size else rows[:0]  # shorter, so it stays the last
        self._order = np.concatenate([*(batches[i] for i in rng.permutation(len(batches))), last])
        self._left_out = rng.random(len(self.windows)) < LEFT_OUT

    def __len__(self) -> int:
        return len(self._order)

    def __getitems__(self, places: list[int]) -> dict[str, torch.Tensor]:
        """`input_ids`, `attention_mask` and `labels` (-100 where there is none) as T5 takes them; of `dense` rows also
        `targets` (int64 [b, Q], which one a place of the decoder writes; -1 in padding) and `seen` (int64 [b, Q], how
        many tokens of the encoder it may look at)."""
        chosen = self._order[places]
        first, stop, label = self.windows[chosen].T
        users = None if self.users is None else np.where(self._left_out[chosen], -1, self.users[chosen])
        batch = self.vocabulary.prompts(self.values, first, stop - 1, users)
        if self.config.rows != "dense":
            answers = self.vocabulary.answers[self.values[label]]
            answers = answers[:, : (answers >= 0).any(0).sum()]
            return batch | {"labels": torch.from_numpy(np.where(answers < 0, -100, answers))}
        count = stop - label
        places, row = ragged_arange(label, stop), np.repeat(np.arange(len(chosen)), count)
        answers = self.vocabulary.answers[self.values[places]]  # [targets, L + 1]
        seen = self._tokens[places] - self._tokens[first[row]]
        if users is not None:
            seen = seen + (users[row] >= 0)
        written = answers >= 0
        target = np.broadcast_to((places - label[row])[:, None], answers.shape)
        length = np.bincount(row, written.sum(1), len(chosen)).astype(np.int64)
        filled = np.arange(length.max()) < length[:, None]
        columns = {"labels": (answers, -100), "targets": (target, -1)}
        columns["seen"] = np.broadcast_to(seen[:, None], answers.shape), 1
        for name, (values, padding) in columns.items():
            laid = np.full(filled.shape, padding)
            laid[filled] = values[written]
            batch[name] = torch.from_numpy(laid)
        return batch


def dense_logits(model, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """float [b, Q, V] of `dense` rows: the decoder's places of one target see each other, and the items before it.

    T5's positions are relative, so a target that stands after others in a row has those that it has alone.
    """
    targets, seen, labels = batch["targets"], batch["seen"], batch["labels"]
    states = model.get_encoder()(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
    begins = F.pad(targets[:, 1:] != targets[:, :-1], (1, 0), value=True)
    read = F.pad(labels[:, :-1], (1, 0), value=PAD).masked_fill(begins, PAD).clamp(min=PAD)
    places = torch.arange(labels.shape[1], device=labels.device)
    own = (targets[:, :, None] == targets[:, None]) & (places <= places[:, None])
    before = torch.arange(batch["input_ids"].shape[1], device=labels.device) < seen[..., None]
    lowest = torch.finfo(model.dtype).min
    masks = [torch.zeros(mask.shape, device=mask.device).masked_fill(~mask, lowest)[:, None] for mask in (own, before)]
    return model(
        encoder_outputs=states,
        attention_mask=masks[1],
        decoder_input_ids=read,
        decoder_attention_mask=masks[0],
        use_cache=False,
    ).logits


class FreshRows(TrainerCallback):
    """Tells the rows which epoch it is, and validates after the last step too."""

    def __init__(self, rows: TargetRows):
        self.rows = rows

    def on_epoch_begin(self, args, state, control, **kwargs):
        self.rows.set_epoch(int(state.epoch or 0))

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step >= state.max_steps:
            control.should_evaluate = control.should_save = True


class TIGERTrainer(Trainer):
    """`Trainer` whose evaluation ranks validation rows by the constrained search.

    Args:
        recommender: has the model that is trained.
        curve: the learning curve so far; `keep(curve)` is called with every new point.
    """

    def __init__(self, recommender, args, excluded: bool, curve: list[dict], keep, **kwargs):
        super().__init__(recommender.model, args, data_collator=lambda batch: batch, **kwargs)
        self.recommender, self.excluded, self.curve, self.keep = recommender, excluded, curve, keep
        self._before, self._began = curve[-1]["seconds"] if curve else 0.0, time.perf_counter()
        self._losses: list[float] = []

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """The cross-entropy over the whole vocabulary, of all that the decoder writes."""
        dense = "targets" in inputs
        logits = dense_logits(model, inputs) if dense else model(**inputs, use_cache=False).logits
        loss = F.cross_entropy(logits.flatten(0, 1).float(), inputs["labels"].flatten())
        check_loss(value := loss.item(), "TIGER")
        self._losses.append(value)
        return (loss, {"logits": logits}) if return_outputs else loss

    def evaluate(self, *args, metric_key_prefix: str = "eval", **kwargs) -> dict[str, float]:
        """ndcg@10 and recall@10 of the validation rows, `eval_dataset`."""
        rows = self.eval_dataset
        with evaluating(self.model):
            only = Filter(exclude_seen=True) if self.excluded else None
            lists = self.recommender.recommend(rows["history"].to_pylist(), 10, only)
        gains = list_gains(lists, rows["target"].to_pylist())
        metrics = {"ndcg@10": float(gains.mean()), "recall@10": float((gains > 0).mean())}
        seconds = round(self._before + time.perf_counter() - self._began, 2)
        loss = float(np.mean(self._losses)) if self._losses else math.nan
        point = {"epoch": round(self.state.epoch or 0, 3), "step": self.state.global_step, "loss": loss, **metrics}
        self.curve.append(point | {"seconds": seconds})
        self._losses.clear()
        self.keep(self.curve)
        logger.info("TIGER: step %d, loss %.3f, validation ndcg@10 %.4f", point["step"], loss, metrics["ndcg@10"])
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in metrics.items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics


def train_tiger(recommender, data: PreparedData, device: torch.device, folder: Path) -> None:
    """Trains `recommender.model` until validation stops it, and leaves it with its best weights.

    `folder` gets the learning curve and, at every validation, a checkpoint, and goes on from those that lie there.
    Raises `ValueError` on no training target or no validation row, `FloatingPointError` on a loss of NaN or inf.
    """
    config: TIGERConfig = recommender.config
    valid, rows = validation_rows(data, config, "TIGER"), TargetRows(data, recommender.vocabulary, config)
    checkpoint = last_complete_checkpoint(folder / CHECKPOINT)
    last = int(checkpoint.rpartition("-")[2]) if checkpoint else 0
    curve = [point for point in learning_curve(folder) if point["step"] <= last]
    args = TrainingArguments(
        output_dir=str(folder / CHECKPOINT),
        per_device_train_batch_size=config.batch_size,
        num_train_epochs=config.max_epochs,
        learning_rate=config.learning_rate,
        weight_decay=config.weight_decay,
        lr_scheduler_type=config.lr_scheduler_type,
        warmup_steps=config.warmup_steps,
        train_sampling_strategy="sequential",  # `TargetRows` has an order of its own
        remove_unused_columns=False,
        eval_strategy="steps",
        eval_steps=config.eval_steps,
        save_strategy="steps",
        save_steps=config.eval_steps,
        save_total_limit=2,
        load_best_model_at_end=True,
        metric_for_best_model="eval_ndcg@10",
        logging_strategy="no",
        report_to="none",
        restore_callback_states_from_checkpoint=True,
        use_cpu=device.type == "cpu",
        dataloader_pin_memory=device.type != "cpu",
        seed=config.seed,
    )
    trainer = TIGERTrainer(
        recommender,
        args,
        excludes_seen(config.exclude_seen, data),
        curve,
        lambda points: write_json(folder / CURVE, {"epochs": points}),
        train_dataset=rows,
        eval_dataset=valid,
        callbacks=[FreshRows(rows), EarlyStoppingCallback(config.patience)],
    )
    trainer.train(resume_from_checkpoint=checkpoint)

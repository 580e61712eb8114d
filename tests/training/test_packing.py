"""Rows in one sequence must not see each other: packed and padding-free losses are those of padded rows."""

import pytest
import torch
from small_runs import base_folder, make_trainer, rows, settings
from transformers import AutoTokenizer

from llmrec.training import packed


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return base_folder(tmp_path_factory.mktemp("packing") / "base")


def row_losses(trainer, examples) -> list[float]:
    """Summed loss of every row, each alone in its batch."""
    with torch.no_grad():
        return [
            trainer.compute_loss(trainer.model.eval(), trainer.data_collator([e]), num_items_in_batch=1).item()
            for e in examples
        ]


@pytest.mark.parametrize("how", ["packing", "padding_free"])
def test_the_loss_of_each_row_is_that_of_the_row_alone(base, tmp_path, how):
    plain = make_trainer(base, settings(tmp_path / "plain"))
    trainer = make_trainer(base, settings(tmp_path / how, **{how: True}))
    examples = [trainer.train_dataset[i] for i in range(3)]
    batch = trainer.data_collator(examples)
    assert batch["input_ids"].shape[0] == 1 and "attention_mask" not in batch
    # Cut the batch back into its rows, and measure each inside the whole: all other labels are hidden.
    starts = (batch["position_ids"][0] == 0).nonzero().flatten().tolist() + [batch["input_ids"].shape[1]]
    assert len(starts) > (4 if how == "packing" else 3)
    inside, alone = [], []
    for start, end in zip(starts, starts[1:]):
        labels = torch.full_like(batch["labels"], -100)
        labels[:, start:end] = batch["labels"][:, start:end]
        inside.append({**batch, "labels": labels})
        alone.append({name: batch[name][0, start:end].tolist() for name in ("input_ids", "labels")})
    with torch.no_grad():
        together = [trainer.compute_loss(trainer.model.eval(), one, num_items_in_batch=1).item() for one in inside]
    assert together == pytest.approx(row_losses(plain, alone), rel=1e-5)


@pytest.mark.parametrize("how", ["packing", "padding_free"])
def test_the_arguments_of_the_caller_stay_as_they_are(base, tmp_path, how):
    arguments, same = (settings(tmp_path, **{how: True}, dataset_kwargs={"a": 1}) for _ in range(2))
    make_trainer(base, arguments)
    assert arguments.to_dict() == same.to_dict()


def test_packing_keeps_every_row_whole_with_its_weights(base):
    tokenizer = AutoTokenizer.from_pretrained(base)
    before = rows(tokenizer, weigh=lambda row, labels: [float(i + 1) for i in range(len(labels))])
    dense = packed(before, 128)
    assert len(dense) < len(before) and max(map(len, dense["input_ids"])) <= 128
    names, found = ("input_ids", "labels", "weights"), []
    for row in dense:
        start = 0
        for length in row["seq_lengths"]:
            found.append(
                tuple(tuple(row[name][start : start + length]) for name in ("input_ids", "labels", "weights"))
            )
            start += length
    assert sorted(found) == sorted(tuple(tuple(row[name]) for name in names) for row in before)


@pytest.mark.parametrize("how", ["packing", "padding_free"])
def test_it_trains_with_weights(base, tmp_path, how):
    weigh = lambda row, labels: [0.5] * len(labels)  # noqa: E731
    arguments = settings(tmp_path / how, max_steps=8, **{how: True})
    trainer = make_trainer(base, arguments, weigh=weigh)
    trainer.train()
    losses = [log["loss"] for log in trainer.state.log_history if "loss" in log]
    assert losses[-1] < 0.8 * losses[0]
    assert 0 < trainer.evaluate()["eval_loss"] < losses[0]  # unpacked and unweighted


@pytest.mark.parametrize("how", [{}, {"packing": True}, {"padding_free": True}])
def test_the_tokens_that_were_seen_are_those_of_the_rows(base, tmp_path, how):
    trainer = make_trainer(base, settings(tmp_path, **how))
    trainer.processing_class.pad_token_id = trainer.train_dataset[0]["input_ids"][0]  # as where it ends turns
    collate, lengths = trainer.data_collator, []
    trainer.data_collator = lambda rows: lengths.append(sum(len(row["input_ids"]) for row in rows)) or collate(rows)
    trainer.train()
    seen = [log["num_input_tokens_seen"] for log in trainer.state.log_history if "loss" in log]
    assert seen == [sum(lengths[:1]), sum(lengths[:2]), sum(lengths[:3])]

"""A prompt that all rows of a batch share is computed once, and nothing else differs."""

import pytest
import torch
from training.small_runs import base_folder, make_trainer, settings
from trl import ModelConfig

from llmrec.training import batches
from scripts.sweep_families import tiny_model as of_family

LORA = {"use_peft": True, "lora_r": 4, "lora_target_modules": "all-linear"}


def weigh(row, answer):
    return [0.5 + place % 3 for place in range(len(answer))]


def loss_and_gradients(trainer, batch):
    trainer.model.zero_grad()
    loss = trainer.compute_loss(trainer.model, batch)
    loss.backward()
    return [loss.detach(), *(p.grad.clone() for p in trainer.model.parameters() if p.grad is not None)]


@pytest.mark.parametrize("train, weights", [("all", None), ("all", weigh), ("new_tokens", None)])
def test_loss_and_gradients_are_those_of_whole_rows(tmp_path, monkeypatch, train, weights):
    trainer = make_trainer(base_folder(tmp_path / "base"), settings(tmp_path / "out"), train=train, weigh=weights)
    ends = {0: 40, 3: 28, 5: 32}  # rows of several lengths
    examples = [(trainer.train_dataset[place], end) for place, end in ends.items()]
    names = ("input_ids", "labels", *(["weights"] if weights else []))
    batch = trainer.data_collator([{name: list(row[name])[:end] for name in names} for row, end in examples])
    assert len(set(batch["attention_mask"].sum(1).tolist())) == 3
    seen = []
    forward = batches.prefix_cache
    monkeypatch.setattr("llmrec.training.sft.prefix_cache", lambda *args: seen.append(args[1].shape) or forward(*args))
    shared = loss_and_gradients(trainer, batch)
    monkeypatch.setattr("llmrec.training.sft.shared_prefix", lambda inputs: 0)
    whole = loss_and_gradients(trainer, batch)
    (shape,) = seen
    assert shape[1] >= 4
    for one, other in zip(shared, whole, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("lora", [{}, LORA], ids=["whole", "lora"])
def test_nothing_is_shared_where_activations_are_computed_again(tmp_path, monkeypatch, lora):
    base = base_folder(tmp_path / "base")
    trainer = make_trainer(
        base,
        settings(tmp_path / "out", max_steps=1, gradient_checkpointing=True),
        ModelConfig(model_name_or_path=str(base), **lora),
    )
    monkeypatch.setattr("llmrec.training.sft.prefix_cache", lambda *args: pytest.fail("a cache is refused there"))
    trainer.train()


def test_what_rows_share_ends_before_what_predicts_a_label_or_differs():
    ids = torch.tensor([[5, 6, 7, 8, 9, 9, 1, 2], [5, 6, 7, 8, 9, 9, 3, 0]])
    mask = torch.tensor([[1] * 8, [1] * 7 + [0]])
    labels = torch.full_like(ids, -100)
    labels[:, 6:] = ids[:, 6:].where(mask[:, 6:] == 1, -100)
    whole = {"input_ids": ids, "attention_mask": mask, "labels": labels}
    assert batches.shared_prefix(whole) == 5  # the sixth token predicts the first label
    assert batches.shared_prefix({**whole, "labels": labels.index_fill(1, torch.tensor([3]), 8)}) == 0
    assert batches.shared_prefix({name: column[:1] for name, column in whole.items()}) == 0
    other = ids.clone()
    other[1, 4] = 4
    assert batches.shared_prefix({**whole, "input_ids": other}) == 4  # what differs is no label
    other[1, 3] = 4
    assert batches.shared_prefix({**whole, "input_ids": other}) == 0


# Windows, states beside keys, states alone
@pytest.mark.parametrize("family, shares", [("llama", True), ("gemma2", False), ("jamba", False), ("mamba", False)])
def test_only_the_keys_and_values_of_all_tokens_are_shared(family, shares):
    cache = batches.prefix_cache(of_family(family), torch.tensor([[5, 6, 7, 8]] * 3))
    assert (cache is not None) == shares
    if shares:
        assert {len(layer.keys) for layer in cache.layers} == {3} and cache.get_seq_length() == 4

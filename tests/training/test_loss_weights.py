"""Weights of answer tokens: what they are, and that the trainer's loss is their weighted mean."""

import math

import pyarrow as pa
import pytest
import torch
from small_runs import DATA, INDEX, base_folder, make_trainer, rows, settings
from transformers import AutoTokenizer

from llmrec.catalogue.semids import SemIDIndex
from llmrec.training import SFTArguments, loss_weights
from llmrec.training.loss_weights import LossWeights, log_values

STAGE = SFTArguments(level_weights=[1.0, 0.5], value_column="price")


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return base_folder(tmp_path_factory.mktemp("weights") / "base")


@pytest.fixture(scope="module")
def tokenizer(base):
    return AutoTokenizer.from_pretrained(base)


def semid_tokens(tokenizer, item: str) -> list[int]:
    return tokenizer(INDEX.encode(item), add_special_tokens=False)["input_ids"]


def test_levels_and_prices_weigh_the_tokens_of_their_items(tokenizer):
    weigh = loss_weights(STAGE, tokenizer, INDEX, DATA.items)
    values = log_values(DATA.items, "price")
    assert sum(values.values()) / len(values) == pytest.approx(1)
    assert values["item-03"] / values["item-08"] == pytest.approx(math.log(4) / math.log(9))
    two, three = semid_tokens(tokenizer, "item-08"), semid_tokens(tokenizer, "item-03")
    assert (len(two), len(three)) == (2, 3)  # ragged
    answer = [*two, *three, tokenizer.eos_token_id]
    v8, v3 = values["item-08"], values["item-03"]
    expected = [v8, v8 / 2, v3, v3 / 2, v3 / 2, (v8 + v3) / 2]
    assert weigh({"targets": ["item-08", "item-03"]}, answer) == pytest.approx(expected)


def test_kinds_of_interaction_weigh_the_items_they_belong_to():
    weigh = LossWeights({(5, 6): ["a"], (5, 7): ["b"]}, behaviour_values={"view": 0.1, "buy": 1}, behaviour_tokens=[8])
    row = {"targets": ["a", "b", "a"], "target_behaviours": ["view", "buy", "view"]}
    assert weigh(row, [8, 5, 6, 8, 5, 7, 8, 5, 6]) == [0.1] * 3 + [1] * 3 + [0.1] * 3
    with pytest.raises(ValueError, match="no value for 'cart'"):
        weigh({"targets": ["a"], "target_behaviours": ["cart"]}, [5, 6])


def test_text_has_a_weight_of_its_own(tokenizer):
    weigh = loss_weights(SFTArguments(text_weight=0.25), tokenizer, INDEX, DATA.items)
    words = tokenizer("red gadget", add_special_tokens=False)["input_ids"]
    tokens = semid_tokens(tokenizer, "item-03")
    assert weigh({"targets": ["item-03"]}, [*words, *tokens]) == [0.25] * len(words) + [1.0] * 3


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"level_weights": [1, -1]}, "level_weights"),
        ({"level_weights": [0.0]}, "not all 0"),
        ({"value_column": "colour"}, "the items have no column 'colour'"),
        ({"value_column": "brand"}, "'brand 0', not a number"),
        ({"behaviour_values": {"buy": 1.0}}, "interactions with kinds"),
    ],
)
def test_bad_weights_are_refused(tokenizer, fields, message):
    with pytest.raises(ValueError, match=message):
        loss_weights(SFTArguments(**fields), tokenizer, INDEX, DATA.items)


@pytest.mark.parametrize("fields", [{"text_weight": 0.0}, {"text_weight": 0.5}, {"level_weights": [1.0, 0.5]}])
def test_text_and_levels_cannot_be_weighed_apart_where_semids_are_words(tokenizer, fields):
    levels = [[" red", " green"], [" blue", " gadget"]]
    index = SemIDIndex(["x", "y"], [[0, 0], [1, 1]], [2, 2], level_tokens=levels, adds_tokens=False)
    with pytest.raises(ValueError, match="text_weight need Semantic IDs of fixed new tokens"):
        loss_weights(SFTArguments(**fields), tokenizer, index, DATA.items)
    # Values of items weigh whole answers: these stay possible.
    items = pa.table({"item_id": ["x", "y"], "price": [1.0, 3.0]})
    weigh = loss_weights(SFTArguments(value_column="price"), tokenizer, index, items)
    assert weigh({"targets": ["y"]}, [5]) == [log_values(items, "price")["y"]]


def test_missing_values_count_as_the_mean():
    items = pa.table({"item_id": ["a", "b", "c"], "price": [1.0, None, 3.0]})
    values = log_values(items, "price")
    assert "b" not in values
    assert LossWeights({(1,): ["b"]}, item_values=values)({"targets": ["b"]}, [1]) == [1.0]


def test_without_settings_there_are_no_weights(base, tokenizer):
    assert loss_weights(SFTArguments(), tokenizer, INDEX, DATA.items) is None
    assert "weights" not in rows(tokenizer)[0]


def test_the_loss_is_the_weighted_mean_computed_by_hand(base, tokenizer, tmp_path):
    weigh = loss_weights(STAGE, tokenizer, INDEX, DATA.items)
    trainer = make_trainer(base, settings(tmp_path / "out"), weigh=weigh)
    examples = [trainer.train_dataset[i] for i in (0, 1, 2)]
    batch = trainer.data_collator(examples)
    model = trainer.model.eval()
    top = bottom = plain = count = 0.0
    for example in examples:
        with torch.no_grad():
            logits = model(torch.tensor([example["input_ids"]])).logits[0]
        for place in range(1, len(example["labels"])):
            if example["labels"][place] != -100:
                loss = -logits[place - 1].log_softmax(-1)[example["labels"][place]].item()
                top += example["weights"][place] * loss
                bottom += example["weights"][place]
                plain, count = plain + loss, count + 1
    with torch.no_grad():
        assert trainer.compute_loss(model, batch).item() == pytest.approx(top / bottom, rel=1e-5)
        # TRL's fused head, which other devices use.
        rest = {name: value for name, value in batch.items() if name != "weights"}
        fused = (trainer._fused_losses(model, rest) * batch["weights"][:, 1:]).sum() / bottom
        assert fused.item() == pytest.approx(top / bottom, rel=1e-5)
        ones = {**batch, "weights": (batch["labels"] != -100).float()}
        unweighted = trainer.compute_loss(model, rest).item()
        assert unweighted == pytest.approx(plain / count, rel=1e-5)
        assert trainer.compute_loss(model, ones).item() == pytest.approx(unweighted, rel=1e-6)
    assert abs(top / bottom - plain / count) > 1e-3


def test_accumulated_steps_equal_one_large_batch(base, tokenizer, tmp_path):
    """Micro-batches hold different sums of weights, so a mean of their means would differ."""
    weigh = loss_weights(STAGE, tokenizer, INDEX, DATA.items)
    losses, weights = [], []
    for size, steps in ((4, 1), (1, 4)):
        arguments = settings(
            tmp_path / str(size), per_device_train_batch_size=size, gradient_accumulation_steps=steps, max_steps=4
        )
        trainer = make_trainer(base, arguments, weigh=weigh)
        trainer.train()
        losses.append([log["loss"] for log in trainer.state.log_history if "loss" in log])
        weights.append(trainer.model.get_input_embeddings().weight.detach())
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    torch.testing.assert_close(*weights, atol=1e-4, rtol=1e-3)

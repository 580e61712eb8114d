"""The loss over the catalogue: what a search ranks by, and nothing else of the vocabulary."""

import numpy as np
import pytest
import torch
from small_runs import DATA, INDEX, base_folder, make_trainer, settings
from tiny import write_tiny_base
from trl import ModelConfig

from llmrec.catalogue.semids import SemIDIndex
from llmrec.decoding import SemIDTrie
from llmrec.instructions import encode_rows, target_rows
from llmrec.recommenders import LLMRecommender
from llmrec.training import CatalogueLoss, SFTArguments, catalogue_loss
from scripts.sweep_families import tiny_model as of_family

CATALOGUE = SFTArguments(log_probs="catalogue")
LORA = {"use_peft": True, "lora_r": 4, "lora_target_modules": "all-linear"}


@pytest.fixture(scope="module", params=["ragged", "shared prefixes"])
def base(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("catalogue") / "base"
    if request.param == "ragged":
        return base_folder(folder)
    number = np.arange(24)  # every node of the last level has three children of eight
    codes = np.stack([number % 2, number // 2 % 4, (number + number // 8) % 8], 1)
    return write_tiny_base(folder, DATA, SemIDIndex(INDEX.item_ids, codes, [2, 4, 8]))


def trainer_of(recommender, folder, base, train="all", model_args=None, prompt="stream", **changes):
    trainer = make_trainer(base, settings(folder, **changes), model_args, train=train, prompt=prompt)
    trainer.catalogue_loss = catalogue_loss(CATALOGUE, trainer.model, recommender.trie)
    return trainer


def validation_batch(trainer, recommender, count=8):
    rows = target_rows(DATA.valid.slice(0, count), 20)
    rows = encode_rows(rows, recommender.prompt, recommender.renderer, 128)
    return trainer.data_collator([{name: row[name] for name in ("input_ids", "labels")} for row in rows])


@pytest.mark.parametrize("shared", [True, False])
def test_the_loss_of_an_item_is_the_score_that_ranks_it(base, tmp_path, monkeypatch, shared):
    recommender = LLMRecommender.from_pretrained(base)
    recommender.config.normalize = "catalogue"
    monkeypatch.setattr("small_runs.INDEX", recommender.index)
    trainer = trainer_of(recommender, tmp_path, base)
    if not shared:
        monkeypatch.setattr("llmrec.training.sft.shared_prefix", lambda inputs: 0)
    batch = validation_batch(trainer, recommender)
    with torch.no_grad():
        loss = trainer.compute_loss(trainer.model.eval(), batch, num_items_in_batch=1).item()
    lists = recommender.recommend(DATA.valid.slice(0, 8)["history"].to_pylist(), k=24)
    scores = [{item.item_id: item.score for item in items} for items in lists]
    wanted = [found[target] for found, target in zip(scores, DATA.valid["target"].to_pylist())]
    assert loss == pytest.approx(-sum(wanted), rel=1e-5)
    assert [sum(np.exp([*found.values()])) for found in scores] == pytest.approx([1.0] * 8, rel=1e-4)


def test_words_are_still_over_the_vocabulary(tmp_path):
    base = base_folder(tmp_path / "base")
    recommender = LLMRecommender.from_pretrained(base)
    trainer = trainer_of(recommender, tmp_path, base, prompt="item_to_title")
    batch = trainer.data_collator([trainer.train_dataset[place] for place in range(3)])
    with torch.no_grad():
        over = trainer.compute_loss(trainer.model.eval(), batch, num_items_in_batch=1)
        trainer.catalogue_loss = None
        plain = trainer.compute_loss(trainer.model.eval(), batch, num_items_in_batch=1)
    torch.testing.assert_close(over, plain)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_gradients_are_those_of_a_softmax_over_the_children(smoothing):
    torch.manual_seed(0)
    trie = SemIDTrie(np.array([[3, 5, 9], [3, 6, 8], [4, 5, 8], [4, 5, 9], [4, 7, -1]]))
    head, hidden = torch.nn.Linear(6, 12, bias=False), torch.randn(2, 6, 6, requires_grad=True)
    labels = torch.tensor([[-100, 3, 6, 8, 4, 7], [11, 4, 5, 9, 2, -100]])
    children = {(0, 1): [3, 4], (0, 2): [5, 6], (0, 3): [8], (0, 4): [3, 4], (0, 5): [5, 7]}
    children |= {(1, 0): range(12), (1, 1): [3, 4], (1, 2): [5, 7], (1, 3): [8, 9], (1, 4): range(12)}
    expected = torch.zeros(2, 6)
    for (row, place), allowed in children.items():
        steps = head(hidden[row, place])[[*allowed]].log_softmax(0)
        own = steps[[*allowed].index(int(labels[row, place]))]
        expected[row, place] = -(1 - smoothing) * own - smoothing * steps.mean()
    found = CatalogueLoss(trie, 12)(head, hidden, labels, smoothing)
    torch.testing.assert_close(found, expected)
    wanted = torch.autograd.grad(expected.sum(), [hidden, head.weight])
    for one, other in zip(torch.autograd.grad(found.sum(), [hidden, head.weight]), wanted, strict=True):
        torch.testing.assert_close(one, other)


def test_a_sample_estimates_the_sum_over_all_items():
    torch.manual_seed(0)
    tokens = torch.arange(3, 43)
    trie, head = SemIDTrie(tokens[:, None].numpy()), torch.nn.Linear(6, 50, bias=False)
    hidden, labels = torch.randn(2, 3, 6), torch.tensor([[3, 9, 40], [-100, 9, 11]])
    logits = head(hidden)
    whole, target = logits[..., tokens].exp().sum(-1), logits.gather(-1, labels.clamp(min=0)[..., None])[..., 0]

    def sums(sampled: int, training: bool) -> torch.Tensor:
        loss = CatalogueLoss(trie, 50, sampled=sampled)
        return (loss(head, hidden, labels, training=training) + target).exp()[labels >= 0]

    with torch.no_grad():
        whole = whole[labels >= 0]
        torch.testing.assert_close(sums(36, True), whole)  # 36 items are no target
        torch.testing.assert_close(sums(8, False), whole)
        drawn = torch.stack([sums(8, True) for _ in range(500)])
    assert (drawn.std(0) > 0.02 * whole).all()  # each is of a draw of its own
    torch.testing.assert_close(drawn.mean(0), whole, rtol=0.03, atol=0)


def test_only_training_is_of_a_sample(tmp_path):
    base = base_folder(tmp_path / "base")
    recommender = LLMRecommender.from_pretrained(base)
    trainer = trainer_of(recommender, tmp_path, base)
    sampled = SFTArguments(log_probs="catalogue", sampled_softmax=1)
    batch, model = validation_batch(trainer, recommender, count=1), trainer.model

    def loss(training: bool) -> float:
        return trainer.compute_loss(model.train(training), batch, num_items_in_batch=1).item()

    with torch.no_grad():
        whole, in_training = loss(False), loss(True)
        trainer.catalogue_loss = catalogue_loss(sampled, model, recommender.trie)
        assert loss(False) == whole and loss(True) != in_training
    with pytest.raises(ValueError, match="sampled_softmax: 99, but Semantic IDs begin with one of"):
        catalogue_loss(SFTArguments(log_probs="catalogue", sampled_softmax=99), model, recommender.trie)


def test_labels_that_name_no_item_are_refused():
    trie = SemIDTrie(np.array([[3, 5], [4, 6]]))
    head, hidden = torch.nn.Linear(4, 8, bias=False), torch.randn(1, 2, 4)
    for wrong in ([3, 6], [5, 3]):
        with pytest.raises(ValueError, match=f"token {6 if wrong == [3, 6] else 5} continues no Semantic ID"):
            CatalogueLoss(trie, 8)(head, hidden, torch.tensor([wrong]))


@pytest.mark.parametrize("tokens", [[[3, 5], [5, 3]], [[3, 5], [3, -1]]])
def test_semantic_ids_whose_beginning_cannot_be_told_are_refused(tokens):
    with pytest.raises(ValueError, match="set log_probs: vocabulary"):
        CatalogueLoss(SemIDTrie(np.array(tokens), eos_token_id=9), 10)


def test_models_that_change_their_heads_output_are_refused():
    with pytest.raises(ValueError, match="set log_probs: vocabulary"):
        catalogue_loss(CATALOGUE, of_family("gemma2"), SemIDTrie(np.array([[3], [4]])))


@pytest.mark.parametrize("how", ["weights", "padding_free", "packing", "new_tokens", "lora", "gradient_checkpointing"])
def test_it_learns(tmp_path, how):
    base = base_folder(tmp_path / "base")
    recommender = LLMRecommender.from_pretrained(base)
    changes = {how: True} if how in ("padding_free", "packing", "gradient_checkpointing") else {}
    model_args = ModelConfig(model_name_or_path=str(base), **(LORA if how == "lora" else {}))
    arguments = settings(tmp_path / "out", max_steps=20, learning_rate=3e-2, **changes)
    weigh = (lambda row, answer: [0.5] * len(answer)) if how == "weights" else None
    train = "new_tokens" if how == "new_tokens" else "all"
    trainer = make_trainer(base, arguments, model_args, train=train, weigh=weigh)
    trainer.catalogue_loss = catalogue_loss(CATALOGUE, trainer.model, recommender.trie)
    rows = trainer.train_dataset
    before = trainer.evaluate(rows)["eval_loss"]
    trainer.train()
    assert 0 < trainer.evaluate(rows)["eval_loss"] < 0.9 * before

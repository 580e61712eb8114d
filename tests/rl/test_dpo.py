"""DPO and S-DPO: the loss, stock TRL on the same pairs, which items are negatives, the recipe from end to end."""

import contextlib
import inspect
import json
import runpy
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from tiny import tiny_data, tiny_index, write_tiny_base
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import DPOConfig, DPOTrainer, ModelConfig, TrlParser

from llmrec.catalogue.semids import SemIDIndex
from llmrec.catalogue.views import join_views
from llmrec.decoding import tree_beam_search
from llmrec.recommenders import LLMRecommender
from llmrec.rl import prompt_rows
from llmrec.rl.dpo import (
    SemIDDPOTrainer,
    WrongItems,
    check_dpo,
    collate_groups,
    preference_rows,
    sample_rows,
    softmax_dpo_loss,
)
from llmrec.training import ValidationSample, lora_config

ROOT = Path(__file__).parents[2]
DATA = tiny_data()
INDEX = tiny_index(DATA)
COMMON = {
    "beta": 0.5,
    "use_cpu": True,
    "bf16": False,
    "gradient_checkpointing": False,
    "report_to": "none",
    "logging_steps": 1,
}


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return write_tiny_base(tmp_path_factory.mktemp("dpo") / "base", DATA, INDEX)


def searching(base: Path) -> LLMRecommender:
    """As wide as the catalogue, and over it."""
    found = LLMRecommender.from_pretrained(base)
    found.config.num_beams, found.config.normalize = 24, "catalogue"
    return found


@pytest.fixture(scope="module")
def recommender(base) -> LLMRecommender:
    return searching(base)


@pytest.fixture(scope="module")
def prompts(recommender) -> Dataset:
    return prompt_rows(DATA, recommender)


def settings(folder: Path, **changes) -> DPOConfig:
    fields = {
        "output_dir": str(folder),
        "per_device_train_batch_size": 8,
        "learning_rate": 1e-3,
        "max_steps": 10,
        "save_strategy": "no",
    }
    return DPOConfig(**{**COMMON, **fields, **changes})


def make_trainer(base: Path, arguments: DPOConfig, rows: Dataset, trie, **more) -> SemIDDPOTrainer:
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = AutoModelForCausalLM.from_pretrained(base)
    if more.pop("lora", False):
        args = ModelConfig(use_peft=True, lora_r=4, lora_target_modules=["q_proj", "v_proj"])
        more["peft_config"] = lora_config(args, model, tokenizer, INDEX)
    return SemIDDPOTrainer(model, arguments, trie=trie, train_dataset=rows, processing_class=tokenizer, **more)


def disturb(model: torch.nn.Module) -> None:
    """Moves the policy away from its reference."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.02 * torch.randn(parameter.shape, generator=generator)


def test_the_loss_is_that_of_the_paper_and_with_one_negative_that_of_dpo():
    ratios, beta = torch.randn(5, 4, generator=torch.Generator().manual_seed(0)), 0.7
    for row, loss in zip(ratios, softmax_dpo_loss(ratios, beta)):
        inner = sum(torch.exp(beta * (wrong - row[0])) for wrong in row[1:])
        assert torch.isclose(loss, -torch.log(torch.sigmoid(-torch.log(inner))))
    wanted = -torch.nn.functional.logsigmoid(beta * (ratios[:, 0] - ratios[:, 1]))
    assert torch.allclose(softmax_dpo_loss(ratios[:, :2], beta), wanted)
    huge = torch.tensor([[-2000.0, 2000.0]], requires_grad=True)
    softmax_dpo_loss(huge, 1.0).sum().backward()
    assert huge.grad.tolist() == [[-1.0, 1.0]]


def test_one_negative_over_the_vocabulary_is_stock_trl(base, recommender, prompts, tmp_path):
    rows = preference_rows(prompts, recommender, DATA.train, num_negatives=1)
    ours = make_trainer(base, settings(tmp_path / "ours"), rows, trie=None)
    text = Dataset.from_dict({"prompt": ["a"], "chosen": ["b"], "rejected": ["c"]})
    more = {"train_dataset": text, "processing_class": AutoTokenizer.from_pretrained(base)}
    stock = DPOTrainer(AutoModelForCausalLM.from_pretrained(base), args=settings(tmp_path / "stock"), **more)
    examples = [rows[number] for number in (0, 3, 50, 77, 120)]
    pairs = [{**row, "rejected_ids": row["rejected_ids"][0]} for row in examples]
    losses = []
    for trainer, batch in ((ours, collate_groups(examples)), (stock, stock.data_collator(pairs))):
        disturb(trainer.model)
        trainer.model.train()
        losses.append(trainer.compute_loss(trainer.model, batch))
        losses[-1].backward()
    assert losses[0].item() == pytest.approx(losses[1].item(), rel=1e-4)
    assert abs(losses[0].item() - np.log(2)) > 1e-3
    wanted = dict(stock.model.named_parameters())
    for name, parameter in ours.model.named_parameters():
        assert (parameter.grad - wanted[name].grad).norm() < 1e-4 * wanted[name].grad.norm(), name
    for name in ("chosen", "rejected", "margins", "accuracies"):
        values = [trainer._metrics["train"][f"rewards/{name}"] for trainer in (ours, stock)]
        assert values[0] == pytest.approx(values[1], rel=1e-4, abs=1e-6), name
    assert ours._metrics["train"]["entropy"] == pytest.approx(stock._metrics["train"]["entropy"], rel=1e-4)


@pytest.mark.parametrize("lora", [False, True])
def test_the_loss_over_the_catalogue_equals_a_search_of_all_items(base, recommender, prompts, tmp_path, lora):
    """A beam search as wide as the catalogue gives every item's log-probability."""
    rows = preference_rows(prompts, recommender, DATA.train, num_negatives=3)
    trainer = make_trainer(base, settings(tmp_path), rows, recommender.trie, lora=lora)
    examples = [rows[number] for number in (1, 40, 90)]
    batch = collate_groups(examples)
    assert trainer.compute_loss(trainer.model, batch).item() == pytest.approx(np.log(4), rel=1e-5)  # no difference yet
    disturb(trainer.model)
    loss = trainer.compute_loss(trainer.model, batch)
    policies = all_items(trainer.model, examples, recommender)
    # What was disturbed beneath an adapter is part of the reference.
    with trainer.model.disable_adapter() if lora else contextlib.nullcontext():
        references = all_items(trainer.model if lora else recommender.model, examples, recommender)
    losses = []
    for row, policy, before in zip(examples, policies, references):
        ratios = [policy[tuple(ids)] - before[tuple(ids)] for ids in (row["chosen_ids"], *row["rejected_ids"])]
        losses.append(softmax_dpo_loss(torch.tensor([ratios]), trainer.beta).item())
    assert loss.item() == pytest.approx(np.mean(losses), rel=1e-4)
    assert abs(loss.item() - np.log(4)) > 1e-3


def test_the_arguments_of_the_caller_stay_as_they_are(base, recommender, prompts, tmp_path):
    rows = preference_rows(prompts, recommender, DATA.train, 1)
    arguments, same = settings(tmp_path), settings(tmp_path)
    make_trainer(base, arguments, rows, recommender.trie)
    assert arguments.to_dict() == same.to_dict()


def test_dropout_inside_attention_is_off_too(recommender, prompts, tmp_path):
    base = write_tiny_base(tmp_path / "base", DATA, INDEX, attention_dropout=0.5)
    rows = preference_rows(prompts.select(range(8)), recommender, DATA.train)
    trainer = make_trainer(base, settings(tmp_path / "off"), rows, recommender.trie)
    model = trainer.model.train()
    assert trainer.compute_loss(model, collate_groups(list(rows))).item() == pytest.approx(np.log(4), rel=1e-5)


def all_items(model, examples, recommender) -> list[dict[tuple[int, ...], float]]:
    found = []
    for row in examples:
        ids, trie = torch.tensor([row["prompt_ids"]]), recommender.trie
        beams = tree_beam_search(model, ids, torch.ones_like(ids), trie, trie.num_leaves, normalize="catalogue")
        assert beams.scores[0].exp().sum().item() == pytest.approx(1, rel=1e-4)
        items = [tuple(token for token in tokens if token >= 0) for tokens in beams.tokens[0].tolist()]
        found.append(dict(zip(items, beams.scores[0].tolist())))
    return found


# Negatives


@pytest.fixture(scope="module")
def shared(tmp_path_factory) -> LLMRecommender:
    """Items 0 to 5 share their Semantic ID with items 6 to 11."""
    codes = INDEX.codes.copy()
    codes[6:12] = codes[:6]
    index = SemIDIndex(INDEX.item_ids, codes, INDEX.codebook_sizes)
    return LLMRecommender.from_pretrained(write_tiny_base(tmp_path_factory.mktemp("shared"), DATA, index))


@pytest.mark.parametrize("negatives", ["random", "popularity", "beam"])
def test_negatives_are_other_items_and_follow_from_the_row(shared, negatives):
    index, rows = shared.index, prompt_rows(DATA, shared)
    found = preference_rows(rows, shared, DATA.train, 5, negatives, seed=3)
    tokens = {tuple(ids): shared.tokenizer.decode(ids).replace(" ", "") for ids in WrongItems(shared).ids}
    for row, target in zip(found, rows["target"]):
        wrong = [index.decode(tokens[tuple(ids)]) for ids in row["rejected_ids"]]
        assert len({tuple(items) for items in wrong}) == 5 and all(wrong)
        assert index.decode(tokens[tuple(row["chosen_ids"])]) == index.decode(index.encode(target))
        assert not any(target in items for items in wrong)
    few = rows.select([70, 2])
    again = preference_rows(few, shared, DATA.train, 5, negatives, seed=3)
    assert again["rejected_ids"] == [found[70]["rejected_ids"], found[2]["rejected_ids"]]
    if negatives != "beam":
        other = preference_rows(few, shared, DATA.train, 5, negatives, seed=4)
        assert other["rejected_ids"] != again["rejected_ids"]


def test_of_several_views_the_searched_one_is_compared(tmp_path):
    other = SemIDIndex(INDEX.item_ids, np.stack([np.arange(24) // 5, np.arange(24) % 5], 1), [5, 5])
    index = join_views({"meaning": INDEX, "users": other})
    whole = LLMRecommender.from_pretrained(write_tiny_base(tmp_path, DATA, index))
    for view, levels in (("users", range(3, 5)), ("meaning", range(3))):
        whole.config.fuse = [view]
        searched = LLMRecommender(whole.model, whole.tokenizer, index, DATA.items, whole.config, batch_size=7)
        rows = prompt_rows(DATA, searched).select(range(10))
        known = {token for level in levels for token in index.level_tokens[level]}
        for negatives in ("random", "beam"):
            for row in preference_rows(rows, searched, DATA.train, 23, negatives):
                group = [row["chosen_ids"], *row["rejected_ids"]]
                texts = {tuple(searched.tokenizer.convert_ids_to_tokens(ids)) for ids in group}
                assert len(texts) == 24 and {token for text in texts for token in text} <= known


def test_how_often_items_are_drawn(recommender):
    target = DATA.items["item_id"][0].as_py()
    counts = Counter(item for items in DATA.train["item_ids"].to_pylist() for item in items)
    for train, weight in ((None, dict.fromkeys(INDEX.items, 1)), (DATA.train, counts)):
        wrong = WrongItems(recommender, train)
        drawn = Counter(tuple(wrong.drawn(target, 1, [0, row])[0]) for row in range(4000))
        items = [item for item in INDEX.items if item != target]
        share = np.array([weight[item] for item in items]) / sum(weight[item] for item in items)
        seen = np.array([drawn[tuple(wrong.chosen(item))] for item in items])
        assert seen.sum() == 4000
        assert ((seen - 4000 * share) ** 2 / (4000 * share)).sum() < 50  # chi-square, 22 degrees: p = 0.0006


def test_hard_negatives_are_what_the_model_ranks_first(recommender, prompts):
    rows = preference_rows(prompts.select(range(40, 60)), recommender, DATA.train, 4, "beam")
    for row, scores in zip(rows, all_items(recommender.model, rows, recommender)):
        best = sorted(scores, key=scores.get, reverse=True)
        wanted = [ids for ids in best if ids != tuple(row["chosen_ids"])][:4]
        assert [tuple(ids) for ids in row["rejected_ids"]] == wanted


def test_every_other_item_can_be_a_negative_and_no_more(recommender, prompts, tmp_path):
    rows = preference_rows(prompts.select(range(3)), recommender, DATA.train, 23)
    assert all(len({tuple(ids) for ids in row["rejected_ids"]}) == 23 for row in rows)
    once = DATA.train.slice(0, 1)  # six items occur in it
    with pytest.raises(ValueError, match="num_negatives: 6 .* only 5 other Semantic IDs"):
        preference_rows(prompts.select([0]), recommender, once, 6, "popularity")
    unknown = Dataset.from_dict({"prompt": ["a"], "target": ["item-99"], "row": [0]})
    with pytest.raises(ValueError, match="target 'item-99' is not in the catalogue"):
        preference_rows(unknown, recommender, DATA.train)
    thinking = LLMRecommender.from_pretrained(write_tiny_base(tmp_path, DATA, INDEX, prompt="think_next_item"))
    with pytest.raises(ValueError, match="writes a thought before an item"):
        preference_rows(prompts, thinking, DATA.train)


# Training


@pytest.mark.parametrize("lora", [False, True])
def test_margins_rise_and_evaluations_rank(base, recommender, prompts, tmp_path, lora):
    sample = ValidationSample(searching(base), DATA.valid, 30)
    trainer = make_trainer(
        base,
        settings(tmp_path, max_steps=30, learning_rate=1e-2 if lora else 2e-3),
        preference_rows(prompts, recommender, DATA.train),
        recommender.trie,
        lora=lora,
        sample=sample,
        eval_dataset=preference_rows(sample_rows(sample), recommender, DATA.train),
    )
    before = trainer.evaluate()
    trainer.train()
    after = trainer.evaluate()
    assert after["eval_loss"] < 0.8 * before["eval_loss"] and before["eval_loss"] == pytest.approx(np.log(4), rel=1e-4)
    assert after["eval_ndcg@10"] > before["eval_ndcg@10"]
    margins = [log["rewards/margins"] for log in trainer.state.log_history if "rewards/margins" in log]
    assert abs(margins[0]) < 1e-5 and margins[-1] > 0.5
    assert before["eval_rewards/margins"] == pytest.approx(0, abs=1e-5) and after["eval_rewards/accuracies"] > 0.8


def run(monkeypatch, folder: Path, output: str, *flags: str) -> None:
    """As a user would."""
    fields = {
        "model_name_or_path": folder / "base",
        "data_dir": folder / "data",
        "output_dir": folder / output,
        "num_train_epochs": 2,
        "per_device_train_batch_size": 16,
        "learning_rate": 3e-3,
        "negatives": "beam",
        "validation_rows": 20,
        "eval_strategy": "epoch",
        "save_strategy": "epoch",
        "load_best_model_at_end": True,
        "metric_for_best_model": "eval_ndcg@10",
    }
    script = str(ROOT / "recipes" / "dpo.py")
    arguments = [part for key, value in (COMMON | fields).items() for part in (f"--{key}", str(value))]
    monkeypatch.setattr(sys, "argv", [script, *arguments, *flags])
    runpy.run_path(script, run_name="__main__")


@pytest.fixture(scope="module")
def folder(base) -> Path:
    DATA.save(base.parent / "data")
    return base.parent


def hits(folder: Path) -> float:
    lists = LLMRecommender.from_pretrained(folder).recommend(DATA.test["history"].to_pylist(), k=5)
    targets = DATA.test["target"].to_pylist()
    return float(np.mean([target in [item.item_id for item in items] for target, items in zip(targets, lists)]))


def test_the_recipe_makes_a_recommender_of_a_recommender(folder, monkeypatch, capfd):
    run(monkeypatch, folder, "out")
    assert "Hard negatives" in capfd.readouterr().err
    state = json.loads((folder / "out" / "checkpoint-26" / "trainer_state.json").read_text())
    margins = [log["rewards/margins"] for log in state["log_history"] if "rewards/margins" in log]
    assert abs(margins[0]) < 1e-5 and margins[-1] > 0.5
    assert hits(folder / "out") > 2 * hits(folder / "base")
    stage = json.loads((folder / "out" / "stage.json").read_text())
    assert stage["complete"] and "ndcg@10" in (folder / "out" / "README.md").read_text()
    assert (folder / "out" / "training.png").stat().st_size > 5000
    run(monkeypatch, folder, "out")
    assert "Reusing the model" in capfd.readouterr().out


def test_the_recipe_merges_its_adapter(folder, monkeypatch):
    flags = ["--use_peft", "true", "--lora_r", "4", "--lora_target_modules", "q_proj", "v_proj"]
    run(monkeypatch, folder, "lora", *flags, "--negatives", "random", "--num_train_epochs", "1")
    before, after = (LLMRecommender.from_pretrained(folder / name) for name in ("base", "lora"))
    changed = (before.model.get_input_embeddings().weight != after.model.get_input_embeddings().weight).any(1)
    semids = torch.zeros_like(changed)
    semids[before.tokenizer.convert_tokens_to_ids(before.index.tokens)] = True
    assert changed[semids].any() and not changed[~semids].any()
    assert not list((folder / "lora").glob("adapter_*"))


@pytest.mark.parametrize("name", ["quickstart", "industrial"])
def test_the_shipped_settings_are_accepted(name):
    recipe = runpy.run_path(str(ROOT / "recipes" / "dpo.py"))
    parser = TrlParser((recipe["DataArguments"], DPOConfig, ModelConfig))
    path = str(ROOT / "recipes" / "configs" / name / "dpo.yaml")
    args, arguments, model = parser.parse_args_and_config(["--config", path])
    check_dpo(arguments, args.num_negatives, args.negatives, args.log_probs, INDEX)
    assert model.model_name_or_path == f"out/{name}/model" and arguments.output_dir == f"out/{name}/dpo"


# What is refused


@pytest.mark.parametrize(
    ("changes", "choice", "message"),
    [
        ({}, {"num_negatives": 0}, "num_negatives: 0 wrong items"),
        ({}, {"num_negatives": 24}, "num_negatives: 24 .* of 24 distinct"),
        ({}, {"negatives": "hard"}, "negatives: 'hard' is not one of random, popularity, beam"),
        ({}, {"log_probs": "trie"}, "log_probs: 'trie' is not one of"),
        ({"loss_type": ["ipo"]}, {}, "loss_type: .* has no meaning"),
        ({"precompute_ref_log_probs": True}, {}, "precompute_ref_log_probs"),
        ({"label_smoothing": 0.1}, {}, "label_smoothing: 0.1"),
        ({"max_length": 256}, {}, "max_length: 256"),
    ],
)
def test_settings_that_cannot_work_are_refused(tmp_path, changes, choice, message):
    chosen = {"num_negatives": 3, "negatives": "random", "log_probs": "catalogue", **choice}
    with pytest.raises(ValueError, match=message):
        check_dpo(settings(tmp_path, **changes), index=INDEX, **chosen)
    check_dpo(settings(tmp_path), 23, "beam", "vocabulary", INDEX)


def test_the_recipe_refuses_before_it_writes(folder, tmp_path, monkeypatch, recommender):
    recommender.model.save_pretrained(tmp_path / "plain")
    recommender.tokenizer.save_pretrained(tmp_path / "plain")
    with pytest.raises(ValueError, match="is no llmrec model folder"):
        run(monkeypatch, folder, "refused", "--model_name_or_path", str(tmp_path / "plain"))
    with pytest.raises(ValueError, match="num_negatives: 24"):
        run(monkeypatch, folder, "refused", "--num_negatives", "24")
    assert not (folder / "refused").exists()


def test_what_trl_is_asked_for_is_where_it_was(base, recommender, prompts, tmp_path):
    """Fails where an internal that `SemIDDPOTrainer` overrides or reads has moved: see its docstring."""
    for name, parameters in {
        "compute_loss": "self model inputs return_outputs num_items_in_batch",
        "_prepare_dataset": "self dataset processing_class args dataset_name",
        "evaluate": "self eval_dataset ignore_keys metric_key_prefix",
        "save_model": "self output_dir _internal_call",
    }.items():
        assert list(inspect.signature(getattr(DPOTrainer, name)).parameters) == parameters.split(), name
    rows = preference_rows(prompts.select(range(4)), recommender, DATA.train)
    plain = make_trainer(base, settings(tmp_path / "a"), rows, recommender.trie)
    assert plain.beta == 0.5 and plain.ref_model is not plain.model and not plain.ref_model.training
    assert plain._metrics == {"train": {}, "eval": {}} and plain.train_dataset is rows
    assert make_trainer(base, settings(tmp_path / "b"), rows, recommender.trie, lora=True).ref_model is None

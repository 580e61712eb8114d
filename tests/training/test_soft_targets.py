"""Soft targets: a node's share is the sum over the items below it, and a student comes nearer to its teacher."""

import runpy
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from small_runs import DATA, base_folder, make_trainer, settings
from tiny import tiny_data, write_tiny_base
from torch.nn import functional as F
from trl import ModelConfig

from llmrec.catalogue.semids import SemIDIndex
from llmrec.data import lists_to_rows
from llmrec.decoding import SemIDTrie
from llmrec.features.sasrec_network import SASRecConfig
from llmrec.instructions.spans import target_spans
from llmrec.recommenders import LLMRecommender
from llmrec.recommenders.item_knn import ItemKNN
from llmrec.recommenders.sasrec import SASRec
from llmrec.training import SFTArguments, SoftTargets, catalogue_loss, check_sft, soft_targets, teacher_of

ROOT = Path(__file__).parents[2]
RAGGED = np.array([[3, 5, 9], [3, 6, 8], [4, 5, 8], [4, 5, 9], [4, 7, -1]])


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    folder = tmp_path_factory.mktemp("teacher") / "sasrec"
    config = SASRecConfig(hidden_size=16, num_layers=1, max_epochs=20, dropout=0.0, learning_rate=1e-2)
    SASRec.fit(DATA, config).save_pretrained(folder, {"data_fingerprint": DATA.fingerprint})
    return folder


def asking(folder, weight=1.0) -> SFTArguments:
    return SFTArguments(log_probs="catalogue", soft_targets_from=str(folder), soft_targets_weight=weight)


def test_a_share_is_the_sum_over_what_lies_below():
    trie = SemIDTrie(RAGGED)
    rows = torch.rand(40, 5, generator=torch.Generator().manual_seed(0)).softmax(1)
    items = np.arange(40) % 5
    by_row = rows[:, torch.from_numpy(trie.host_order).long()]
    positions = trie.position[items].astype(np.int64)
    soft = SoftTargets(1.0, trie, np.arange(40), positions, iter([by_row[:30], by_row[30:]]))
    for number, item in enumerate(items):
        for level in range(3):
            prefix = RAGGED[item, :level]
            below = np.flatnonzero((RAGGED[:, :level] == prefix).all(1))
            tokens = np.unique(RAGGED[below, level])
            sums = [rows[number, below[RAGGED[below, level] == token]].sum() for token in tokens]
            wanted = torch.stack(sums) / rows[number, below].sum()
            got = soft.shares[level][number].float()
            torch.testing.assert_close(got[: len(tokens)], wanted, atol=1e-3, rtol=1e-3)
            assert not got[len(tokens) :].any()


def test_what_the_teacher_leaves_out_is_taught_hard():
    trie = SemIDTrie(RAGGED)
    rows = torch.zeros(1, 5)
    rows[0, trie.position[4]] = 1.0
    soft = SoftTargets(1.0, trie, np.array([7]), trie.position[[1]].astype(np.int64), iter([rows]))
    assert soft.shares[0][0].tolist() == [0, 1]  # the teacher's
    assert soft.shares[1][0].tolist() == [0, 1] and soft.shares[2][0].tolist() == [1, 0]  # [3, 6, 8] itself


def test_targets_are_found_by_their_place():
    trie = SemIDTrie(RAGGED)
    soft = SoftTargets(1.0, trie, np.array([2, 3, 9]), np.zeros(3, np.int64), iter([torch.ones(3, 5) / 5]))
    first = torch.tensor([[2], [8], [-1]])
    found = soft.find(first, torch.tensor([[-1, 0, 1], [0, 1, 2], [0, 3, 4]]))
    assert found.tolist() == [[-1, 0, 1], [-1, 2, -1], [-1] * 3]


def trainer_of(base, folder, sft, **changes):
    recommender = LLMRecommender.from_pretrained(base)
    trie = recommender.trie
    model = teacher_of(sft, DATA, recommender.index)
    soft = model and soft_targets(model, sft.soft_targets_weight, DATA, recommender.index, trie, 20)
    made = make_trainer(base, settings(folder, **changes), catalogue_loss=None)
    loss = catalogue_loss(sft, made.model, trie, soft)
    return make_trainer(base, settings(folder, **changes), catalogue_loss=loss), soft, recommender


@pytest.fixture(scope="module", params=["ragged", "two levels"])
def base(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("student") / "base"
    if request.param == "ragged":
        return base_folder(folder)
    number = np.arange(24)
    index = SemIDIndex(DATA.items["item_id"].to_pylist(), np.stack([number % 5, number // 5], 1), [5, 5])
    return write_tiny_base(folder, DATA, index)


def test_the_loss_is_the_teachers_cross_entropy(base, teacher, tmp_path, monkeypatch):
    monkeypatch.setattr("small_runs.INDEX", LLMRecommender.from_pretrained(base).index)
    trainer, soft, recommender = trainer_of(base, tmp_path, asking(teacher, 0.75))
    examples = [trainer.train_dataset[place] for place in range(6)]
    trainer.model.get_input_embeddings().weight.data.mul_(30)  # a model that has an opinion
    with torch.no_grad():
        loss = trainer.compute_loss(trainer.model.eval(), trainer.data_collator(examples), num_items_in_batch=1).item()
    trie, model, wanted = recommender.trie, trainer.model, 0.0
    spans = target_spans(DATA, 20)
    values, _ = lists_to_rows(DATA.train["item_ids"], DATA.items["item_id"])
    scorer = SASRec.from_pretrained(teacher)
    for example in examples:
        ids, labels = torch.tensor(example["input_ids"]), torch.tensor(example["labels"])
        with torch.no_grad():
            logits = model(ids[None]).logits[0]
        place = (labels != -100).nonzero()[0, 0].item()
        for number, target in enumerate(example["targets"]):
            at = example["first_target"] + number
            assert DATA.items["item_id"][values[at]].as_py() == target
            start = spans["start"].to_numpy()[spans["middle"].to_numpy() == at][0]
            probability = np.exp(scorer.score(values[start:at], np.array([0, at - start]))[0])
            node = 0
            codes = [code for code in recommender.index.codes[recommender.index.item_ids.index(target)] if code >= 0]
            for level in range(len(codes)):
                children = trie.children(torch.tensor([node]), level)
                nodes = children.node[0][children.valid[0]]
                tokens = trie.token(nodes, level)
                steps = logits[place + level - 1, tokens].float().log_softmax(0)
                ranges = [range(*(int(end) for end in pair)) for pair in zip(*trie.rows(nodes, level + 1))]
                mass = np.array([sum(probability[trie.host_order[row]] for row in below) for below in ranges])
                hit = int((tokens == ids[place + level]).nonzero()[0, 0])
                wanted -= 0.25 * steps[hit].item() + 0.75 * float((steps.numpy() * mass).sum() / mass.sum())
                node = int(nodes[hit])
            place += len(codes)
    assert loss == pytest.approx(wanted, rel=2e-3)  # shares are float16
    batch = trainer.data_collator([{**example, "first_target": None} for example in examples])
    with torch.no_grad():
        hard = trainer.compute_loss(model, batch, num_items_in_batch=1).item()
    assert abs(hard - wanted) > 5e-3 * wanted  # without their places they are plain targets


def test_a_student_comes_nearer_to_its_teacher(base, teacher, tmp_path, monkeypatch):
    monkeypatch.setattr("small_runs.INDEX", LLMRecommender.from_pretrained(base).index)
    histories = DATA.valid["history"].to_pylist()
    values, offsets = lists_to_rows(DATA.valid["history"], DATA.items["item_id"])
    said = torch.from_numpy(SASRec.from_pretrained(teacher).score(values, offsets))

    def divergence(weight: float) -> float:
        sft = asking(teacher, weight) if weight else SFTArguments(log_probs="catalogue")
        trainer, _, _ = trainer_of(base, tmp_path / str(weight), sft, max_steps=60, learning_rate=3e-3)
        trainer.train()
        trainer.save_model(str(tmp_path / str(weight) / "model"))
        student = LLMRecommender.from_pretrained(base)
        student.model.load_state_dict(trainer.model.state_dict())
        student.config.normalize = "catalogue"
        scores = [{item.item_id: item.score for item in items} for items in student.recommend(histories, k=24)]
        steps = torch.tensor([[found[item] for item in DATA.items["item_id"].to_pylist()] for found in scores])
        return float(F.kl_div(steps, said, log_target=True, reduction="batchmean"))

    assert divergence(1.0) < 0.8 * divergence(0.0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"soft_targets_weight": 0.0}, "soft_targets_weight"),
        ({"soft_targets_weight": 1.5}, "soft_targets_weight"),
        ({"log_probs": "vocabulary"}, "log_probs: catalogue"),
    ],
)
def test_settings_that_contradict(change, message, tmp_path):
    sft = SFTArguments(**({"log_probs": "catalogue", "soft_targets_from": "x"} | change))
    with pytest.raises(ValueError, match=message):
        check_sft(sft, settings(tmp_path), ModelConfig())
    with pytest.raises(ValueError, match="packing"):
        check_sft(asking("x"), settings(tmp_path, packing=True), ModelConfig())


def test_teachers_that_cannot_say(base, teacher, tmp_path):
    index = LLMRecommender.from_pretrained(base).index
    ItemKNN.fit(DATA).save_pretrained(tmp_path / "knn", {"data_fingerprint": DATA.fingerprint})
    SASRec.from_pretrained(teacher).save_pretrained(tmp_path / "unsaid")  # of which data it is
    other = tiny_data(num_items=25)
    twice = SemIDIndex([*index.item_ids, index.item_ids[0]], index.codes[[*range(24), 1]], index.codebook_sizes)
    for folder, data, semids, message in (
        (tmp_path / "knn", DATA, index, "knn is no sasrec or bsarec"),
        (base, DATA, index, "base is no sasrec or bsarec"),
        (tmp_path / "gone", DATA, index, "gone"),
        (teacher, tiny_data(num_users=30), index, "other data"),
        (tmp_path / "unsaid", other, index, "unsaid was trained on another catalogue"),
        (teacher, DATA, twice, "one Semantic ID"),
    ):
        with pytest.raises(ValueError, match=message):
            teacher_of(asking(folder), data, semids)


def test_the_recipe_knows_its_teacher_before_it_begins(teacher, tmp_path, monkeypatch):
    DATA.save(tmp_path / "data")
    base, own = base_folder(tmp_path / "base"), tmp_path / "own"
    shutil.copytree(teacher, own)
    fields = {"model_name_or_path": str(base), "data_dir": str(tmp_path / "data"), "output_dir": str(tmp_path / "out")}
    fields |= {
        "log_probs": "catalogue",
        "max_steps": 1,
        "max_length": 128,
        "validation_rows": 5,
        "save_strategy": "no",
    }
    fields |= {"soft_targets_from": str(own), "report_to": "none", "use_cpu": True, "disable_tqdm": True}

    def run(**changes):
        (tmp_path / "sft.yaml").write_text(yaml.safe_dump(fields | changes))
        monkeypatch.setattr(sys, "argv", ["recipes/sft.py", "--config", str(tmp_path / "sft.yaml")])
        runpy.run_path(str(ROOT / "recipes" / "sft.py"), run_name="__main__")

    with pytest.raises(ValueError, match="base is no sasrec or bsarec"):
        run(soft_targets_from=str(base))
    assert not (tmp_path / "out").exists()
    run()
    recommender = SASRec.from_pretrained(own)
    recommender.model.items.weight.data.mul_(2)
    shutil.rmtree(own)
    recommender.save_pretrained(own, {"data_fingerprint": DATA.fingerprint})
    with pytest.raises(ValueError, match=r"other settings \(soft_targets_from\)"):
        run()

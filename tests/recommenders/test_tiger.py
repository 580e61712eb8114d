"""TIGER: what it learns, what it refuses, that a folder brings it back, and that its rows are what they say."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from protocol_checks import FILTERS, HISTORIES, KS, check_filters
from tiny import tiny_data, tiny_index
from transformers import T5ForConditionalGeneration

from llmrec.catalogue.filters import Filter
from llmrec.catalogue.semids import SemIDIndex
from llmrec.data import training_rows
from llmrec.decoding import search
from llmrec.evaluation import evaluate
from llmrec.features.network_training import learning_curve
from llmrec.recommenders import load_recommender
from llmrec.recommenders.networks.tiger import EOS, PAD, CodeVocabulary, TIGERConfig, make_t5
from llmrec.recommenders.networks.tiger_training import TargetRows, TIGERTrainer, dense_logits
from llmrec.recommenders.tiger import TIGER

SMALL = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_layers": 1,
    "num_heads": 2,
    "head_dim": 16,
    "batch_size": 16,
    "learning_rate": 5e-3,
    "max_length": 4,
    "num_beams": 8,
    "eval_steps": 100,
    "max_epochs": 40,
    "patience": 3,
}


CONFIGS = Path(__file__).parents[2] / "recipes" / "configs" / "benchmarks"


@pytest.fixture(scope="module")
def data():
    return tiny_data()


@pytest.fixture(scope="module")
def semids(data, tmp_path_factory):
    """Ragged on purpose: every second item has a code more, by which it is told apart."""
    path = tmp_path_factory.mktemp("semids") / "semids.parquet"
    tiny_index(data).save(path, data.items)
    return str(path)


@pytest.fixture(scope="module")
def tiger(data, semids):
    return TIGER.fit(data, TIGERConfig(semids=semids, **SMALL), "cpu")


@pytest.mark.parametrize("rows", ["prefix", "one", "dense"])
def test_it_learns_the_walk(rows, tiger, data, semids, tmp_path):
    if rows != "prefix":
        epochs = {"one": 200, "dense": 200}[rows]
        tiger = TIGER.fit(data, TIGERConfig(semids=semids, rows=rows, **SMALL | {"max_epochs": epochs}), "cpu")
    assert search.way_of(tiger.model, tiger.model.device).way == search.TREE
    assert evaluate(tiger, data.test, data, "tiger", bootstrap=0).metrics["recall@1"] >= 0.9
    tiger.save_pretrained(tmp_path / "tiger")
    histories = data.test["history"].to_pylist()[:5]
    assert load_recommender(tmp_path / "tiger", "cpu").recommend(histories) == tiger.recommend(histories)


def test_protocol_filters_and_folder(tiger, data, tmp_path):
    lists = check_filters(tiger)
    assert all(one == sorted(one, key=lambda item: -item.score) for one in lists)
    (few,) = tiger.recommend(HISTORIES[:1], k=100, filters=Filter(at_most={"brand": 1}))
    assert len(few) == 4
    singles = [tiger.recommend([history], k=4)[0] for history in HISTORIES]
    together = tiger.recommend(HISTORIES, k=4)
    assert [[item.item_id for item in one] for one in singles] == [[item.item_id for item in one] for one in together]
    assert together[0][0].title == "blue gadget number 5"
    tiger.save_pretrained(tmp_path / "tiger", {"data_fingerprint": data.fingerprint})
    assert {path.name for path in (tmp_path / "tiger").iterdir()} == {
        "config.json", "generation_config.json", "model.safetensors", "semids.parquet", "counts.npy",
    }  # fmt: skip
    again = load_recommender(tmp_path / "tiger", "cpu")
    assert again.recommend(HISTORIES, k=KS, filters=FILTERS) == lists
    assert again.num_parameters == tiger.num_parameters > 10_000
    with pytest.raises(ValueError, match="nowhere"):
        tiger.recommend([["nowhere"]])
    with pytest.raises(ValueError, match="k is 0, it should be a whole number of at least 1"):
        tiger.recommend([["item-03"]], k=0)
    with pytest.raises(ValueError, match="knows no users"):
        tiger.recommend([["item-03"]], users=["user-1"])
    assert tiger.recommend([]) == []
    (tmp_path / "tiger" / "model.safetensors").write_bytes(b"torn")
    with pytest.raises(ValueError, match="model.safetensors"):
        load_recommender(tmp_path / "tiger")


def test_lists_are_those_of_generate_with_a_prefix_function(tiger, data, tmp_path):
    """The whole way, from a folder that transformers reads: the items' Semantic IDs and their scores."""
    tiger.save_pretrained(tmp_path / "tiger")
    model = T5ForConditionalGeneration.from_pretrained(tmp_path / "tiger").eval()
    vocabulary = tiger.vocabulary
    answers = [tuple(token for token in row if token >= 0) for row in vocabulary.answers.tolist()]
    depth = max(map(len, answers))

    def follow(_, tokens):
        prefix = tuple(tokens.tolist()[1:])
        following = {answer[len(prefix)] for answer in answers if answer[: len(prefix)] == prefix != answer}
        return sorted(following) or [PAD]

    history = ["item-05", "item-06"]
    prompt = vocabulary.prompts(np.array([5, 6]), np.array([0]), np.array([2]))
    output = model.generate(
        **prompt, prefix_allowed_tokens_fn=follow, num_beams=24, num_return_sequences=24, max_new_tokens=depth,
        length_penalty=0.0, early_stopping=False, return_dict_in_generate=True, output_scores=True,
    )  # fmt: skip
    (ours,) = tiger.recommend([history], k=24)
    number = {item: place for place, item in enumerate(tiger.index.items)}
    theirs = {}
    for tokens, score in zip(output.sequences.tolist(), output.sequences_scores.tolist()):
        written = tuple(token for token in tokens[1:] if token != PAD)
        if written in answers:
            theirs[answers.index(written)] = score
    same = [item for item in ours if len(answers[number[item.item_id]]) == depth]  # generate scores a forced end
    assert len(same) >= 10
    for item in same:
        assert item.score == pytest.approx(theirs[number[item.item_id]], abs=1e-4)


def rows_of(data, semids, **settings):
    config = TIGERConfig(semids=semids, **SMALL | settings)
    index = SemIDIndex.load(semids).aligned(data.items)
    return TargetRows(data, CodeVocabulary(index, config), config)


def test_every_prefix_is_a_row_and_says_what_it_is(data, semids):
    rows = rows_of(data, semids, max_length=3, batch_size=7)
    wanted = training_rows(data.train, 3).to_pylist()
    index = SemIDIndex.load(semids)
    names = {token: name for name, token in rows.vocabulary._ids.items()}
    got = []
    for start in range(0, len(rows), 7):
        batch = rows.__getitems__([*range(start, min(start + 7, len(rows)))])
        for ids, mask, labels in zip(*(batch[name].tolist() for name in ("input_ids", "attention_mask", "labels"))):
            read = ids[: sum(mask)]
            assert read[-1] == EOS and set(ids[sum(mask) :]) <= {PAD}
            got.append(("".join(names[i] for i in read[:-1]), "".join(names[i] for i in labels if i >= 0)))
    wanted = [("".join(map(index.encode, row["history"])), index.encode(row["target"])) for row in wanted]
    assert sorted(got) == sorted(wanted)


def test_one_row_of_every_sequence_is_another_in_every_epoch(data, semids):
    rows, every = rows_of(data, semids, rows="one"), rows_of(data, semids)
    assert len(rows) == data.train.num_rows and len(every) == 5 * len(rows)
    seen = set()
    for epoch in range(30):
        rows.set_epoch(epoch)
        first = rows._order.copy()
        assert sorted(first // 5) == [*range(len(rows))]
        seen |= {*first.tolist()}
        rows.set_epoch(epoch)
        assert np.array_equal(first, rows._order)
    assert len(seen) > 0.95 * len(every)


@pytest.mark.parametrize("users", [0, 5])
def test_a_dense_row_has_the_logits_of_its_prefixes(users, data, semids):
    """What the decoder writes for a target does not see the other targets, nor items after it."""
    rows = rows_of(data, semids, rows="dense", user_tokens=users)
    torch.manual_seed(0)
    model = make_t5(rows.config, rows.vocabulary.size).eval()
    batch = rows.__getitems__([0, 1, 2])
    with torch.no_grad():
        together = dense_logits(model, batch)
        for row in range(3):
            for target in range(int(batch["targets"][row].max()) + 1):
                places = batch["targets"][row] == target
                labels = batch["labels"][row][places]
                read = batch["input_ids"][row][: batch["seen"][row][places][0]]
                alone = model(read[None], decoder_input_ids=torch.cat([torch.tensor([PAD]), labels[:-1]])[None]).logits
                torch.testing.assert_close(together[row][places], alone[0], atol=1e-4, rtol=1e-4)
    assert (batch["labels"] >= 0).sum() == sum(
        (rows.vocabulary.answers[rows.values[place]] >= 0).sum()
        for first, stop, label in rows.windows[rows._order[:3]]
        for place in range(label, stop)
    )


def test_users_are_said_in_half_of_the_rows_and_may_be_left_out(data, semids):
    rows = rows_of(data, semids, user_tokens=7, max_epochs=1)
    batch = rows.__getitems__([*range(len(rows))])
    said = (batch["input_ids"][:, 0] > EOS) & (batch["input_ids"][:, 0] < EOS + 1 + 7)
    assert 0.4 < said.float().mean() < 0.6
    recommender = TIGER.fit(data, dataclasses.replace(rows.config, eval_steps=5), "cpu")
    histories = [["item-03"], ["item-03"]]
    with_user, without = recommender.recommend(histories, users=["user-3", None])
    (alone,) = recommender.recommend(histories[:1])
    assert [item.score for item in without] == pytest.approx([item.score for item in alone], abs=1e-4)
    assert abs(with_user[0].score - without[0].score) > 1e-3


def test_a_run_that_was_killed_goes_on_as_if_it_had_not(data, semids, tmp_path, monkeypatch):
    config = TIGERConfig(semids=semids, **SMALL | {"max_epochs": 4, "eval_steps": 9, "patience": 50, "dropout": 0.3})
    whole = TIGER.fit(data, config, "cpu", tmp_path / "whole")

    own, seen = TIGERTrainer.compute_loss, []

    def until(self, *args, **kwargs):
        seen.append(1)
        if len(seen) == 24:
            raise KeyboardInterrupt
        return own(self, *args, **kwargs)

    with monkeypatch.context() as killed, pytest.raises(KeyboardInterrupt):
        killed.setattr(TIGERTrainer, "compute_loss", until)
        TIGER.fit(data, config, "cpu", tmp_path / "killed")
    again = TIGER.fit(data, config, "cpu", tmp_path / "killed")
    for name, weights in whole.model.state_dict().items():
        assert torch.equal(weights, again.model.state_dict()[name]), name
    curves = [[(p["step"], p["ndcg@10"]) for p in learning_curve(tmp_path / name)] for name in ("whole", "killed")]
    assert curves[0] == curves[1] and curves[0][-1][0] == 52  # the last step too, between two validations


def test_wrong_settings_are_refused_by_name(data, semids, tmp_path):
    with pytest.raises(ValueError, match="kind 'tiger': semids is empty"):
        TIGER.fit(data)
    with pytest.raises(ValueError, match="rows 'all' is not one of prefix, one, dense"):
        TIGERConfig(rows="all")
    index = tiny_index(data)
    refused = {
        "'actionpiece', which writes an item in another way": {"item_tokenizer": {"name": "actionpiece"}},
        "'opq', whose codes have no order": {"item_tokenizer": {"name": "opq"}, "ordered": False},
    }
    for said, info in refused.items():
        index.replaced(index.item_ids, index.codes, info).save(tmp_path / "semids.parquet", data.items)
        with pytest.raises(ValueError, match=said):
            TIGER.fit(data, TIGERConfig(semids=str(tmp_path / "semids.parquet")))
    few = SemIDIndex(index.item_ids, index.codes[:, :1], [6])
    few.save(tmp_path / "semids.parquet", data.items)
    with pytest.raises(ValueError, match=r"18 of 24 items share .* too few codes.* append_all"):
        TIGER.fit(data, TIGERConfig(semids=str(tmp_path / "semids.parquet")))
    index.rows_at(range(20)).save(tmp_path / "semids.parquet")
    with pytest.raises(ValueError, match="item 'item-20' of the catalogue has no Semantic ID"):
        TIGER.fit(data, TIGERConfig(semids=str(tmp_path / "semids.parquet")))


@pytest.mark.parametrize("name", ["beauty", "office14", "industrial"])
def test_the_configs_of_the_benchmarks_fit_together(name):
    tiger, semids = (
        yaml.safe_load((CONFIGS / name / f"{what}.yaml").read_text()) for what in ("tiger", "tiger_semids")
    )
    config = TIGERConfig(**tiger["settings"])
    assert config.semids == semids["output_dir"] and tiger["kind"] == TIGER.kind
    assert semids["data_dir"] == tiger["data_dir"] == f"out/{name}/data" and semids["collision"] == "append_all"
    assert config.rows == ("one" if name == "beauty" else "prefix")

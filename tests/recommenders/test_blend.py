"""Blends of recommenders, and settings that are chosen on validation."""

import json
import runpy
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from protocol_checks import HISTORIES, check_filters
from tiny import tiny_data

from llmrec.catalogue.filters import Filter
from llmrec.evaluation import evaluate
from llmrec.recommenders import load_recommender
from llmrec.recommenders.blend import BlendConfig
from llmrec.recommenders.choosing import configs_of, fit_best, validation_ndcg
from llmrec.recommenders.item_knn import ItemKNN, ItemKNNConfig
from llmrec.recommenders.loading import Blend
from llmrec.recommenders.popularity import Popularity
from llmrec.recommenders.sasrec import SASRec, SASRecConfig

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def data():
    return tiny_data()


@pytest.fixture(scope="module")
def members(data, tmp_path_factory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("members")
    few = {"max_length": 8, "hidden_size": 16, "batch_size": 16, "max_epochs": 4, "learning_rate": 1e-2}
    for name, one in {
        "popularity": Popularity.fit(data),
        "item_knn": ItemKNN.fit(data),
        "sasrec": SASRec.fit(data, SASRecConfig(**few)),
    }.items():
        one.save_pretrained(folder / name, {"data_fingerprint": data.fingerprint})
    return {name: str(folder / name) for name in ("popularity", "item_knn", "sasrec")}


def ids(lists) -> list[list[str]]:
    return [[item.item_id for item in one] for one in lists]


@pytest.mark.parametrize("scores", ["reciprocal_ranks", "standardized"])
def test_scores_by_hand(data, members, scores):
    both = {name: members[name] for name in ("popularity", "item_knn")}
    config = BlendConfig(both, {"popularity": 0.3, "item_knn": 0.7}, scores, depth=24)
    blend = Blend.fit(data, config)
    for history, found in zip(HISTORIES, blend.recommend(HISTORIES, k=24)):
        total = dict.fromkeys(data.items["item_id"].to_pylist(), 0.0)
        for name, weight in config.weights.items():
            (one,) = load_recommender(members[name]).recommend([history], k=24)
            values = np.asarray([item.score for item in one])
            values = (values - values.mean()) / values.std()
            for place, (item, value) in enumerate(zip(one, values)):
                total[item.item_id] += weight * (value if scores == "standardized" else 1 / (10 + place + 1))
        expected = sorted(total, key=lambda item: -total[item])
        assert [item.score for item in found] == pytest.approx([total[item] for item in expected])
        assert {item.item_id for item in found} == set(total)
        assert [total[item.item_id] for item in found] == pytest.approx([total[item] for item in expected])


def test_weights_are_chosen_on_validation_and_help(data, members):
    blend = Blend.fit(data, BlendConfig(members))
    assert sum(blend.config.weights.values()) == pytest.approx(1, abs=1e-3)
    alone = {name: validation_ndcg(load_recommender(path), data) for name, path in members.items()}
    assert validation_ndcg(blend, data) >= max(alone.values()) - 1e-9
    assert max(blend.config.weights, key=blend.config.weights.get) == max(alone, key=alone.get)
    popular = evaluate(load_recommender(members["popularity"]), data.test, data, "popularity", bootstrap=0)
    assert evaluate(blend, data.test, data, "blend", bootstrap=0).metrics["ndcg@10"] > 2 * popular.metrics["ndcg@10"]
    assert blend.num_parameters == load_recommender(members["sasrec"]).num_parameters


def test_a_folder_needs_nothing_else(data, members, tmp_path):
    copies = {name: shutil.copytree(path, tmp_path / "members" / name) for name, path in members.items()}
    blend = Blend.fit(data, BlendConfig({name: str(path) for name, path in copies.items()}))
    filters = [Filter(exclude_seen=True), Filter(where=[("price", "<", 4)]), Filter(at_most={"brand": 1}), None]
    lists = blend.recommend(HISTORIES, k=[100, 3, 24, 5], filters=filters)
    blend.save_pretrained(tmp_path / "blend")
    shutil.rmtree(tmp_path / "members")
    (tmp_path / "blend").rename(tmp_path / "elsewhere")
    again = load_recommender(tmp_path / "elsewhere")
    assert again.recommend(HISTORIES, k=[100, 3, 24, 5], filters=filters) == lists
    assert again.config.weights == blend.config.weights and again.recommend([]) == []
    (tmp_path / "elsewhere" / "members" / "sasrec" / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"sasrec/model\.safetensors is missing or damaged"):
        load_recommender(tmp_path / "elsewhere")


def test_filters_and_k(data, members):
    blend = Blend.fit(data, BlendConfig(members, depth=10))
    check_filters(blend)
    brand = dict(zip(data.items["item_id"].to_pylist(), data.items["brand"].to_pylist()))
    (limited,) = ids(blend.recommend(HISTORIES[:1], k=4, filters=Filter(at_most={"brand": 1})))
    assert len({brand[item] for item in limited}) == len(limited) == 4
    assert [len(set(one)) for one in ids(blend.recommend(HISTORIES, k=7))] == [7] * 4
    for wrong, said in (([["nowhere"]], "nowhere"), ("item-03", "no list of histories")):
        with pytest.raises(ValueError, match=said):
            blend.recommend(wrong)
    with pytest.raises(ValueError, match="k is 0"):
        blend.recommend(HISTORIES, k=0)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"recommenders": {"a": "out"}}, "a blend has two or more"),
        ({"recommenders": {"a": "x", "b": "y"}, "scores": "ranks"}, "scores 'ranks' is not one of"),
        ({"recommenders": {"a": "x", "b": "y"}, "weights": {"c": 1}}, "weights: 'c' is not one of a, b"),
        ({"recommenders": {"a": "x", "b": "y"}, "weights": {"a": 1}}, "one for every recommender"),
        ({"recommenders": {"a": "x", "b": "y"}, "weights": {"a": 1, "b": -1}}, "none below 0"),
        ({"recommenders": {"a": "x", "b": "y"}, "depth": 3}, "depth is 3"),
    ],
)
def test_wrong_settings(settings, said):
    with pytest.raises(ValueError, match=f"settings of kind 'blend': .*{said}"):
        configs_of(Blend, settings)


def test_a_member_of_other_data_is_refused(data, members):
    other = tiny_data(num_users=30)
    with pytest.raises(ValueError, match="was trained on other data"):
        Blend.fit(other, BlendConfig(members))


# Choices


def test_the_best_choice_is_kept(data, tmp_path):
    settings = {"decay": [1.0, 0.1], "window": [None, 1], "neighbours": 5}
    configs = configs_of(ItemKNN, settings)
    assert [(one.decay, one.window) for one in configs] == [(1.0, None), (1.0, 1), (0.1, None), (0.1, 1)]
    best = fit_best(ItemKNN, data, configs, folder=tmp_path)
    tried = json.loads((tmp_path / "choices.json").read_text())["tried"]
    figures = [validation_ndcg(ItemKNN.fit(data, config), data) for config in configs]
    assert [one["ndcg@10"] for one in tried] == pytest.approx(figures)
    assert best.config == configs[int(np.argmax(figures))] and max(figures) > min(figures)
    reported = evaluate(best, data.valid, data, "best", bootstrap=0).metrics["ndcg@10"]
    assert reported == pytest.approx(max(figures))
    # What was tried before a kill is not tried again.
    cheat = [{**one, "ndcg@10": 2.0 if number == 2 else 0.0} for number, one in enumerate(tried[:3])]
    (tmp_path / "choices.json").write_text(json.dumps({"tried": cheat}))
    assert fit_best(ItemKNN, data, configs, folder=tmp_path).config == configs[2]
    with pytest.raises(ValueError, match="settings of kind 'item_knn': decay must lie"):
        configs_of(ItemKNN, {"decay": [0.5, 0.0]})
    with pytest.raises(ValueError, match="settings of kind 'item_knn': window has no choice"):
        configs_of(ItemKNN, {"window": []})


def test_a_choice_goes_on_where_it_was_killed(data, tmp_path, monkeypatch):
    few = {"max_length": 8, "hidden_size": 16, "batch_size": 16, "max_epochs": 4, "learning_rate": 1e-2}
    configs = configs_of(SASRec, few | {"dropout": [0.1, 0.6], "exclude_seen": "false"})
    whole = fit_best(SASRec, data, configs, folder=tmp_path / "whole")
    folder, steps = tmp_path / "killed", []
    monkeypatch.setattr("llmrec.features.network_training.check_loss", lambda *_: steps.pop())
    for updates in (4, 9 + 7):  # of 12: into the second epoch of the first choice, and the third one of the second
        steps[:] = [None] * updates
        with pytest.raises(IndexError):
            fit_best(SASRec, data, configs, folder=folder)
    steps[:] = [None] * 6
    resumed = fit_best(SASRec, data, configs, folder=folder)
    monkeypatch.undo()
    choices = [json.loads((tmp_path / one / "choices.json").read_text())["tried"] for one in ("whole", "killed")]
    assert choices[0] == choices[1] and not steps
    assert resumed.recommend(HISTORIES, k=24) == whole.recommend(HISTORIES, k=24)
    assert (folder / "curve.json").exists()
    assert {path.name for path in (folder / "checkpoint").iterdir()} == {"best"}
    # What compares them is the rule of the configs.
    found = [validation_ndcg(SASRec.fit(data, one), data, "false") for one in configs]
    assert [one["ndcg@10"] for one in choices[0]] == pytest.approx(found)
    with pytest.raises(ValueError, match="exclude_seen is how choices are compared"):
        configs_of(SASRec, {"exclude_seen": ["true", "false"]})


def test_an_item_knn_with_a_window_by_hand():
    from test_baselines import store

    knn = ItemKNN.fit(store(["a", "b", "c"], ["a", "b"], ["c", "d", "c"]), ItemKNNConfig(neighbours=5, window=1))
    expected = np.zeros((5, 5))
    expected[0, 1] = expected[1, 0] = 2 / 2
    expected[1, 2] = expected[2, 1] = 1 / 2
    expected[2, 3] = expected[3, 2] = 2 / np.sqrt(2)
    expected[2, 2] = 1 / 2
    np.testing.assert_allclose(knn.similarity.toarray(), expected, atol=1e-6)


def test_the_recipe_trains_a_blend_of_choices(data, members, tmp_path, monkeypatch):
    data.save(tmp_path / "data")
    config = tmp_path / "config.yaml"
    lines = [f"data_dir: {tmp_path / 'data'}", f"output_dir: {tmp_path / 'blend'}", "kind: blend"]
    settings = {"recommenders": members, "scores": ["standardized", "reciprocal_ranks"], "depth": 24}
    config.write_text("\n".join([*lines, f"settings: {json.dumps(settings)}"]))
    monkeypatch.setattr(sys, "argv", ["train_recommender.py", "--config", str(config)])
    runpy.run_path(str(ROOT / "recipes" / "train_recommender.py"), run_name="__main__")
    blend = load_recommender(tmp_path / "blend")
    assert len(blend.members) == 3 and len(blend.recommend(HISTORIES, k=3)[0]) == 3
    assert len(json.loads((tmp_path / "blend" / "choices.json").read_text())["tried"]) == 2

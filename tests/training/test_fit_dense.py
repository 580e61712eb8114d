"""recipes/fit_dense.py: a head on frozen states learns to find items that training never held, from their texts."""

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import yaml
from tiny import tiny_index, write_tiny_base
from trl import ModelConfig, SFTConfig, TrlParser

from llmrec.data import PreparedData
from llmrec.data.cold_items import hold_out_items
from llmrec.data.prepared import SEQUENCES, TARGETS
from llmrec.instructions import load_prompt
from llmrec.recommenders import LLMRecommender
from llmrec.training.dense import DenseConfig, dense_rows, fit_dense, states_of
from llmrec.training.run import TrainingRun

ROOT = Path(__file__).parents[2]
spec = importlib.util.spec_from_file_location("fit_dense_recipe", ROOT / "recipes" / "fit_dense.py")
recipe = importlib.util.module_from_spec(spec)
sys.modules[spec.name] = recipe
spec.loader.exec_module(recipe)
FEATURES = [{"kind": "text", "encoder": "tfidf", "dim": 8}]
SMALL = {"dim": 8, "learning_rate": 0.01, "batch_size": 64, "max_epochs": 40, "validation_rows": 100}


def run(*arguments):
    parser = TrlParser((recipe.FitDenseArguments, recipe.DenseConfig))
    recipe.main(*parser.parse_args_and_config(args=list(map(str, arguments))))


@pytest.fixture(scope="module")
def data():
    """Users who stay in one of six departments, whose items share words; some items come after training."""
    rng = np.random.default_rng(0)
    departments = ["garden hose", "silver ring", "running shoe", "steel pan", "jazz record", "board game"]
    ids = [f"item-{i:02d}" for i in range(36)]
    texts = [f"{departments[i % 6]} edition {i // 6}" for i in range(36)]
    items = pa.table({"item_id": ids, "title": texts})
    walks = [[ids[6 * step + user % 6] for step in rng.permutation(6)] for user in range(300)]
    users = [f"user-{u}" for u in range(300)]
    columns = {"user_id": users, "item_ids": [walk[:-2] for walk in walks], "num_context": [1] * 300}
    train = pa.table(columns | {"timestamps": [[0] * 4 for _ in walks]}).select(SEQUENCES.names).cast(SEQUENCES)
    valid, test = (
        pa.table(
            {
                "user_id": users,
                "history": [walk[:cut] for walk in walks],
                "target": [walk[cut] for walk in walks],
                "timestamp": [cut] * 300,
            }
        ).cast(TARGETS)
        for cut in (4, 5)
    )
    return hold_out_items(PreparedData(items, train, valid, test, {"name": "departments"}), 0.2, seed=0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("fit")
    data.save(folder / "data")
    saved = PreparedData.load(folder / "data")
    write_tiny_base(folder / "model", saved, tiny_index(saved), initializer_range=0.05)
    return folder


@pytest.fixture(scope="module")
def fitted(folder):
    data = PreparedData.load(folder / "data")
    recommender = LLMRecommender.from_pretrained(folder / "model")
    rows = dense_rows(data, config := DenseConfig(dense_features=FEATURES, max_prompts=600, **SMALL))
    states = {name: states_of(recommender, table) for name, table in rows.items()}
    return data, rows, states, config, fit_dense(data, rows, states, config)


def test_cold_items_are_found(folder, fitted):
    data, _, _, _, (head, curve) = fitted
    cold = set(data.info["cold_items"])
    assert [item for item, is_cold in zip(head.item_ids, head.cold) if is_cold] == sorted(cold) and len(cold) >= 5
    assert curve[-1]["loss"] < curve[0]["loss"] and head.settings["ndcg@10"] == max(one["ndcg@10"] for one in curve)
    recommender = LLMRecommender.from_pretrained(folder / "model")
    recommender.dense, recommender.has_dense = head, True
    rows = [row for row in data.test.to_pylist() if row["target"] in cold]
    lists = recommender.recommend([row["history"] for row in rows], 6, dense="alone")
    found = [row["target"] in {item.item_id for item in one} for row, one in zip(rows, lists)]
    assert len(rows) > 20 and np.mean(found) > 0.8  # 6 of 36 by chance is .17


def test_nothing_is_learned_from_cold_items(fitted):
    """Other texts of the cold items leave everything as it is but their own embeddings."""
    data, rows, states, config, (head, _) = fitted
    cold = set(data.info["cold_items"])
    titles = [
        f"unheard {item}" if item in cold else title
        for item, title in zip(*(data.items[name].to_pylist() for name in ("item_id", "title")))
    ]
    other = PreparedData(data.items.set_column(1, "title", pa.array(titles)), data.train, data.valid, data.test)
    again, _ = fit_dense(other, rows, states, config)
    np.testing.assert_array_equal(again.vectors[~head.cold], head.vectors[~head.cold])
    np.testing.assert_array_equal(again.project, head.project)
    assert np.abs(again.vectors[head.cold] - head.vectors[head.cold]).max() > 0.1


def test_items_may_learn_vectors_of_their_own(fitted):
    data, rows, states, config, _ = fitted
    head, _ = fit_dense(
        data, rows, states, DenseConfig(dense_features=FEATURES, max_prompts=600, item_dropout=0.5, **SMALL)
    )
    from_text = head.embed(data.items)
    np.testing.assert_allclose(head.vectors[head.cold], from_text[head.cold], atol=1e-6)
    assert (np.abs(head.vectors - from_text).max(1)[~head.cold] > 1e-3).all()


def test_the_recipe(folder, tmp_path, capsys, monkeypatch):
    settings = {"model": folder / "model", "data_dir": folder / "data", "cache_dir": tmp_path / "cache"}
    settings = {name: str(path) for name, path in settings.items()} | {"max_prompts": 300, "dense_features": FEATURES}
    (tmp_path / "dense.yaml").write_text(yaml.safe_dump(settings | SMALL))
    flags = ["--config", tmp_path / "dense.yaml", "--output_dir", tmp_path / "dense"]
    with pytest.raises(ValueError, match="modes: 'old' is not one of rank, cold, alone"):
        run(*flags, "--modes", "old")

    def killed(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(recipe, "fit_dense", killed)
    with pytest.raises(KeyboardInterrupt):
        run(*flags, "--modes", "cold", "alone")
    monkeypatch.undo()
    with monkeypatch.context() as patched:
        patched.setattr(recipe, "states_of", killed)  # they are there already
        run(*flags, "--modes", "cold", "alone")
    out = tmp_path / "dense"
    assert {path.name for path in out.iterdir()} == {"head", "cold", "alone", "curve.json", "curve.png", "stage.json"}
    assert "Validation ndcg@10" in capsys.readouterr().out
    loaded = LLMRecommender.from_pretrained(out / "alone")
    assert loaded.config.dense == "alone" and loaded.dense.settings["prompts"] == 300
    given = recipe.FitDenseArguments(str(out / "cold"), str(folder / "data"), "")
    trained = TrainingRun(given, SFTConfig(str(tmp_path / "sft"), bf16=False), ModelConfig(str(out / "cold")))
    assert trained.config.dense == "" and trained.load_recommender().dense_mode() == ""  # other weights, no head
    run(*flags, "--modes", "cold", "alone")
    assert "Reusing" in capsys.readouterr().out
    with pytest.raises(ValueError, match="other settings .*temperature"):
        run(*flags, "--modes", "cold", "alone", "--temperature", 0.2)
    with pytest.raises(ValueError, match="weight is 1.5, it should be at most 1"):
        run(*flags, "--weight", 1.5)
    config = folder / "model" / "llmrec_config.json"
    text = config.read_text()
    fields = json.loads(text) | {"prompt": load_prompt("think_next_item").to_dict()}
    config.write_text(json.dumps(fields))
    flags[-1] = tmp_path / "thinking"
    try:
        with pytest.raises(ValueError, match="thinks before it answers"):
            run(*flags)
    finally:
        config.write_text(text)


def test_shipped_configs_fit_together():
    configs = ROOT / "recipes" / "configs" / "office14_cold"
    parser = TrlParser((recipe.FitDenseArguments, recipe.DenseConfig))
    args, config = parser.parse_args_and_config(args=["--config", str(configs / "dense.yaml")])
    files = {name: yaml.safe_load((configs / f"{name}.yaml").read_text()) for name in ("baselines", "cold_start")}
    assert args.model == files["cold_start"]["recommenders"]["ours"]
    assert args.data_dir == files["cold_start"]["cold_dir"]
    assert config.dense_features == files["baselines"]["content_features"]
    compared = yaml.safe_load((configs / "cold_start_dense.yaml").read_text())["recommenders"]
    assert {f"{args.output_dir}/{mode}" for mode in args.modes} < {*compared.values()}
    assert compared["generation"] == args.model
    assert compared["content_knn"] == files["cold_start"]["recommenders"]["content_knn"]

"""Cold items: out of everything that is fitted, in everything that is recommended from."""

import importlib.util
import json
import runpy
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import yaml
from tiny import tiny_data, tiny_index, tiny_model, write_tiny_base
from trl import TrlParser

from llmrec.catalogue.filters import Filter
from llmrec.data import PreparedData, prepare
from llmrec.data.cold_items import hold_out_items
from llmrec.evaluation.cold_start import COLD, COLD_ONLY, WARM, Restricted, cold_lines, evaluate_cold
from llmrec.features import ItemFeatures
from llmrec.instructions import load_prompt, task_rows
from llmrec.item_tokenizers import RQKMeans, fit_semids
from llmrec.item_tokenizers.protocol import tokenizer_fingerprint
from llmrec.models.folder import RecommenderConfig
from llmrec.recommenders import LLMRecommender
from llmrec.recommenders.content_knn import ContentKNN
from llmrec.recommenders.item_knn import ItemKNN
from llmrec.recommenders.popularity import Popularity
from llmrec.recommenders.protocol import requests_of
from llmrec.recommenders.ranker import CatalogueRanker
from llmrec.recommenders.sasrec import SASRec, SASRecConfig

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "recipes" / "configs" / "office14_cold"
spec = importlib.util.spec_from_file_location("cold_start_recipe", ROOT / "recipes" / "cold_start.py")
recipe = importlib.util.module_from_spec(spec)
sys.modules[spec.name] = recipe
spec.loader.exec_module(recipe)


def run(*arguments):
    recipe.main(TrlParser((recipe.ColdStartArguments,)).parse_args_and_config(args=list(map(str, arguments)))[0])


@pytest.fixture(scope="module")
def data():
    return tiny_data(num_users=80, length=9)


@pytest.fixture(scope="module")
def cold(data):
    return hold_out_items(data, 0.2, seed=1)


def ids_of(column):
    return {item for items in column.to_pylist() for item in items}


def fitted_state(data):
    """Everything that is learned from prepared data here, as something to compare."""
    features = ItemFeatures([{"kind": "text", "encoder": "tfidf", "dim": 6}, {"kind": "cooccurrence", "dim": 4}])
    matrix = features.fit(data.items, data.train, 0).encode(data.items)
    tokenizer = RQKMeans([4, 4], niter=3, preprocess="standardize")
    index = fit_semids(tokenizer, matrix, data.items, data.train)
    # `auto` asks the test targets whether one is a repeat, which is said outright here.
    settings = {"max_length": 8, "hidden_size": 8, "max_epochs": 2, "batch_size": 16, "exclude_seen": "true"}
    sasrec = SASRec.fit(data, SASRecConfig(**settings))
    return {
        "features": [part.state() for part in features.parts],
        "tokenizer": tokenizer_fingerprint(tokenizer),
        "index": index,
        "popularity": Popularity.fit(data).counts,
        "item_knn": ItemKNN.fit(data).similarity.toarray(),
        "content": ContentKNN.fit(data).vectors,
        "sasrec": sasrec.model.state_dict(),
        "rows": [task_rows(task, data, 20) for task in ("stream", "next_item")],
    }


def test_nothing_fitted_sees_cold_items_or_their_interactions(data, cold):
    """Other texts of the cold items, and other interactions with them, leave all that is fitted as it is."""
    gone = cold.info["cold_items"]
    titles = [f"unheard words {item}" if item in gone else title
              for item, title in zip(*(data.items[c].to_pylist() for c in ("item_id", "title")))]  # fmt: skip
    rng = np.random.default_rng(0)

    def exchanged(table, column):
        """Cold items change places with each other, each as frequent as before."""
        lists = table[column].to_pylist()
        nested = isinstance(lists[0], list)
        flat = [item for items in lists for item in items] if nested else lists
        places = [place for place, item in enumerate(flat) if item in gone]
        for place, item in zip(places, rng.permutation([flat[place] for place in places]).tolist()):
            flat[place] = item
        values = [[flat.pop(0) for _ in items] for items in lists] if nested else flat
        number = table.column_names.index(column)
        return table.set_column(number, table.schema.field(column), [values])

    retold = PreparedData(
        data.items.set_column(1, "title", [titles]),
        exchanged(data.train, "item_ids"),
        exchanged(exchanged(data.valid, "history"), "target"),
        exchanged(exchanged(data.test, "history"), "target"),
        data.info,
    )
    assert not retold.train.equals(data.train)
    again = hold_out_items(retold, 0.2, seed=1)
    assert again.info["cold_items"] == gone
    one, two = fitted_state(cold), fitted_state(again)
    assert one["tokenizer"] == two["tokenizer"] and one["rows"] == two["rows"]
    for (values, arrays), (others, other_arrays) in zip(one["features"], two["features"]):
        assert values == others
        assert all(np.array_equal(arrays[name], other_arrays[name]) for name in arrays)
    for name in ("popularity", "item_knn"):
        np.testing.assert_array_equal(one[name], two[name])
    assert all(np.array_equal(value, two["sasrec"][name]) for name, value in one["sasrec"].items())
    warm = [row for row, item in enumerate(data.items["item_id"].to_pylist()) if item not in gone]
    np.testing.assert_array_equal(one["content"][warm], two["content"][warm])
    assert not np.array_equal(one["content"], two["content"])
    assert set(one["index"].items) == set(data.items["item_id"].to_pylist())


class Oracle(CatalogueRanker):
    """Knows the order of the walk, and nothing else."""

    def __init__(self):
        super().__init__(tiny_data().items)

    @classmethod
    def fit(cls, data, config=None, device=None):
        return cls()

    def score(self, values, offsets):
        return -((np.arange(24) - values[offsets[1:] - 1][:, None] - 1) % 24).astype(np.float32)

    def arrays(self):
        return {}

    @classmethod
    def from_arrays(cls, items, arrays, settings):
        return cls()


def test_three_views(cold):
    views = evaluate_cold({"oracle": Oracle(), "popularity": Popularity.fit(cold)}, cold, bootstrap=0, ks=[1, 10])
    gone = set(cold.info["cold_items"])
    for view, of_cold in ((COLD, True), (COLD_ONLY, True), (WARM, False)):
        oracle, popularity = views[view]
        assert all((target in gone) == of_cold for target in oracle.predictions["target"].to_pylist())
        assert oracle.metrics["recall@1"] == 1
        assert popularity.metrics["recall@1"] < 0.5
    shown = ids_of(views[COLD_ONLY][0].predictions["item_ids"])
    assert shown == gone
    assert views[COLD][1].metrics["recall@10"] == 0  # popularity has nothing to say about cold items
    assert views[COLD][0].predictions.num_rows + views[WARM][0].predictions.num_rows == cold.test.num_rows
    few = evaluate_cold({"oracle": Oracle()}, cold, max_warm=7, bootstrap=0, ks=[1])
    assert few[WARM][0].predictions.num_rows == 7
    assert "1.0000" in cold_lines(few, cold.info["cold_items"], 24)[-1]  # recall@10, which nobody asked for


def test_cold_targets_among_cold_items_are_asked_for_as_everywhere():
    """Kinds of interaction reach the recommender in this view, too; it differs from the others in its filter alone."""
    kinds = ["view", "cart", "buy"]
    rows = [(f"u{u}", f"item-{(u + i) % 24:02d}", 3 * i + j, kind)
            for u in range(24) for i in range(3) for j, kind in enumerate(kinds)]  # fmt: skip
    log = pa.table(dict(zip(("user_id", "item_id", "timestamp", "behaviour"), zip(*rows))))
    data = prepare(log, tiny_data().items, behaviours=kinds)
    index = tiny_index(data).with_behaviours(data.behaviours)
    model, tokenizer = tiny_model(data, index)
    config = RecommenderConfig.of(data, index, prompt=load_prompt("stream").to_dict(), num_beams=24)
    whole = LLMRecommender(model.eval(), tokenizer, index, data.items, config)
    restricted = Restricted(whole, index.items[:9])
    asked = data.test.slice(0, 4)
    histories, wishes = requests_of(whole, asked)
    assert histories[0][-1][1] == "cart" and requests_of(restricted, asked) == (histories, wishes)
    wishes = {"behaviour": ["view"] * 4}  # not the one that is asked for by default
    lists = restricted.recommend(histories, 5, **wishes)
    assert lists == whole.recommend(histories, 5, Filter(allow=index.items[:9]), **wishes)
    assert lists != whole.recommend(histories, 5, Filter(allow=index.items[:9]))


def test_the_recipe_from_holding_out_to_the_report(monkeypatch, tmp_path, data, capsys):
    data.save(tmp_path / "data")
    config = tmp_path / "cold_start.yaml"
    settings = {
        "data_dir": str(tmp_path / "data"),
        "cold_dir": str(tmp_path / "cold"),
        "fraction": 0.2,
        "output_dir": str(tmp_path / "report"),
        "recommenders": {name: str(tmp_path / name) for name in ("content_knn", "popularity", "ours")},
        "reference": "content_knn",
        "bootstrap": 20,
        "max_warm": 20,
    }
    config.write_text(yaml.safe_dump(settings))
    run("--config", config, "--step", "hold_out")
    assert "5 cold items" in capsys.readouterr().out
    run("--config", config)
    assert "Reusing" in capsys.readouterr().out
    with pytest.raises(ValueError, match="holds other data"):
        run("--config", config, "--fraction", "0.4")
    held = PreparedData.load(tmp_path / "cold")
    for kind, name in ((ContentKNN, "content_knn"), (Popularity, "popularity")):
        kind.fit(held).save_pretrained(tmp_path / name, {"data_fingerprint": held.fingerprint})
    features = ItemFeatures([{"kind": "text", "encoder": "tfidf", "dim": 6}]).fit(held.items, held.train)
    index = fit_semids(RQKMeans([4, 4], niter=3), features.encode(held.items), held.items, held.train)
    write_tiny_base(tmp_path / "ours", held, index)
    run("--config", config, "--step", "evaluate")
    printed = capsys.readouterr().out
    assert "5 of 24 items are cold (20.8%)" in printed and "| ours |" in printed
    summary = json.loads((tmp_path / "report" / "cold_start.json").read_text())
    assert set(summary["views"]) == {COLD, COLD_ONLY, WARM}
    assert summary["views"][COLD_ONLY]["ours"]["metrics"]["recall@10"] == 1  # five cold items, all of them shown
    assert summary["views"][WARM]["ours"]["rows"] == 20
    assert (tmp_path / "report" / "cold_targets_cold_items_only" / "report.html").exists()
    source, results = f"pretrained={tmp_path / 'report' / 'cold_start.json'}", tmp_path / "results.json"
    monkeypatch.setattr(sys, "argv", ["write_results.py", source, "--json", str(results)])
    runpy.run_path(str(ROOT / "scripts" / "write_results.py"), run_name="__main__")
    of_cold = summary["views"][COLD]["content_knn"]
    figures = json.loads(results.read_text())["figures"]
    assert figures["pretrained/cold/content_knn/recall@10"] == pytest.approx(of_cold["metrics"]["recall@10"], abs=1e-6)
    assert figures["pretrained/cold/content_knn/rows"] == of_cold["rows"] > 0
    capsys.readouterr()
    assert set(LLMRecommender.from_pretrained(tmp_path / "ours").item_ids) >= set(held.info["cold_items"])
    Popularity.fit(data).save_pretrained(tmp_path / "leaky", {"data_fingerprint": data.fingerprint})
    leaky = {"recommenders": {"leaky": str(tmp_path / "leaky")}, "reference": None}
    config.write_text(yaml.safe_dump({**settings, **leaky}))
    with pytest.raises(ValueError, match="trained on other data"):
        run("--config", config, "--step", "evaluate")
    with pytest.raises(ValueError, match="'fit' is not one of hold_out, evaluate"):
        run("--config", config, "--step", "fit")
    # Before anything is loaded: the folder of this recommender does not exist.
    config.write_text(yaml.safe_dump({**settings, "recommenders": {"gone": "nowhere"}, "reference": "typo"}))
    with pytest.raises(ValueError, match="reference 'typo' is not one of the recommenders .'gone'."):
        run("--config", config, "--step", "evaluate")


def test_holding_out_replaces_prepared_data_only(tmp_path, data):
    data.save(tmp_path / "shop" / "data")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    flags = ["--data_dir", tmp_path / "shop" / "data", "--fraction", "0.2", "--overwrite", "true", "--cold_dir"]
    with pytest.raises(ValueError, match="no prepared data"):
        run(*flags, tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.txt").exists()
    for folder in (tmp_path / "shop" / "data", tmp_path / "shop"):
        with pytest.raises(ValueError, match="would replace data_dir"):
            run(*flags, folder)
    assert "cold_items" not in PreparedData.load(tmp_path / "shop" / "data").info
    (tmp_path / "empty").mkdir()
    for seed in (0, 1):
        run(*flags, tmp_path / "empty", "--seed", seed)
    assert PreparedData.load(tmp_path / "empty").info["rules"]["hold_out"]["seed"] == 1


def test_the_configs_of_office14_fit_together():
    args = TrlParser((recipe.ColdStartArguments,)).parse_args_and_config(
        args=["--config", str(CONFIGS / "cold_start.yaml")]
    )[0]
    baselines = yaml.safe_load((CONFIGS / "baselines.yaml").read_text())
    assert baselines["data_dir"] == args.cold_dir
    made = {f"{baselines['output_dir']}/{name}" for name in ("popularity", "item_knn", "content_knn", "sasrec")}
    told = (ROOT / "docs" / "lifecycle.md").read_text()  # the commands that train ours
    assert f"D={args.cold_dir} O={Path(args.cold_dir).parent}" in told
    assert set(args.recommenders.values()) == made | {f"{Path(args.cold_dir).parent}/model"}

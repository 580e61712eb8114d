"""Lists without the items that a user already has: when, exactly how, and what the report says of it."""

import itertools
import json
import runpy
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from tiny import tiny_data, tiny_index, tiny_model

from llmrec.data import PreparedData, excludes_seen
from llmrec.data.prepared import TARGETS
from llmrec.data.seen import repeats
from llmrec.evaluation import compare, evaluate
from llmrec.evaluation.metrics import row_metrics, target_ranks
from llmrec.features.network_training import Validation
from llmrec.instructions import load_prompt
from llmrec.models.folder import RecommenderConfig
from llmrec.recommenders import LLMRecommender
from llmrec.recommenders.popularity import Popularity
from llmrec.recommenders.protocol import Recommendation
from llmrec.recommenders.sasrec import SASRec, SASRecConfig

ROOT = Path(__file__).parents[2]


def rows_of(histories: list[list[str]], targets: list[str]) -> pa.Table:
    users, times = [f"u{row}" for row in range(len(targets))], [None] * len(targets)
    return pa.table({"user_id": users, "history": histories, "target": targets, "timestamp": times}, schema=TARGETS)


def with_repeats(split: str) -> PreparedData:
    """The tiny store with one more row in a split, whose target the user has already."""
    data = tiny_data()
    more = rows_of([["item-03", "item-04", "item-03"]], ["item-03"])
    setattr(data, split, pa.concat_tables([getattr(data, split), more]))
    return data


def test_a_repeat_is_a_target_that_stands_in_its_own_history():
    items = tiny_data().items["item_id"]
    rows = rows_of([["item-01"], [], ["item-02", "item-01", "item-02"], ["item-05"]], ["item-01"] * 4)
    assert repeats(rows, items).tolist() == [True, False, True, False]
    assert repeats(rows.slice(0, 0), items).tolist() == []


def test_auto_leaves_seen_items_out_where_no_target_is_one():
    assert excludes_seen("auto", tiny_data())
    for split in ("valid", "test"):
        data = with_repeats(split)
        assert not excludes_seen("auto", data)
        assert excludes_seen("true", data) and excludes_seen(True, data)
    assert not excludes_seen("false", tiny_data()) and not excludes_seen(False, tiny_data())
    with pytest.raises(ValueError, match="^exclude_seen: 'always' is not one of auto, true, false"):
        excludes_seen("always", tiny_data())


def test_the_lists_are_exact_and_both_columns_are_measured():
    """The best items that are not seen, as many as there are: not what is left of a short list."""
    data = tiny_data()
    popular = Popularity.fit(data)
    ours, kept = (evaluate(popular, data.test, data, "x", exclude_seen=choice) for choice in ("auto", False))
    order = np.argsort(-popular.counts, kind="stable")
    ids, recalls = data.items["item_id"].to_pylist(), []
    for row, found in zip(data.test.to_pylist(), ours.predictions["item_ids"].to_pylist()):
        best = [ids[place] for place in order if ids[place] not in row["history"]]
        assert found == best and len(best) == 24 - 7
        recalls.append(row["target"] in best[:10])
    assert ours.exclude_seen and not kept.exclude_seen
    assert ours.metrics["recall@10"] == pytest.approx(np.mean(recalls))
    assert all(ours.metrics[f"valid@{k}"] == 1 for k in (1, 10, 50))
    for name in ("recall@10", "ndcg@10"):
        assert ours.metrics[f"kept/{name}"] == kept.metrics[name] != ours.metrics[name]
        assert ours.ci[f"kept/{name}"] == kept.ci[name]
    first = [ids[order[0]] in row["history"] for row in data.test.to_pylist()]
    assert ours.metrics["kept/seen@1"] == pytest.approx(np.mean(first))
    said = evaluate(popular, data.test, data, "x", exclude_seen="true")
    assert said.metrics["ndcg@10"] == ours.metrics["ndcg@10"] and not any("kept/" in name for name in said.metrics)
    with pytest.raises(ValueError, match="one was evaluated with exclude_seen"):
        compare(ours, kept)


def test_with_repeats_nothing_changes():
    data = with_repeats("valid")
    result = evaluate(Popularity.fit(data), data.test, data, "x")
    assert not result.exclude_seen and not any("kept/" in name for name in result.metrics)
    assert len(result.predictions["item_ids"][0]) == 24


def test_a_target_that_was_left_out_is_no_hit():
    data = with_repeats("test")
    rows = data.test.slice(40)
    result = evaluate(Popularity.fit(data), rows, data, "x", exclude_seen=True, bootstrap=0)
    assert result.predictions["rank"].to_pylist() == [0] and result.metrics["recall@50"] == 0


def test_rows_that_are_not_of_the_data_count_too(caplog):
    """`auto` looked at the data alone, so a row of repeats was never found; where that is asked for it is said."""
    data = tiny_data()
    rows = with_repeats("test").test.slice(39)
    assert not evaluate(Popularity.fit(data), rows, data, "x", bootstrap=0).exclude_seen and not caplog.messages
    assert evaluate(Popularity.fit(data), rows, data, "x", bootstrap=0, exclude_seen=True).exclude_seen
    assert "the target is one in 1 of 2 rows" in caplog.text
    with pytest.raises(ValueError, match="^ks is empty"):
        evaluate(Popularity.fit(data), rows, data, "x", ks=())


def test_a_recommender_that_heeds_no_filter_is_named():
    class Stubborn:
        def recommend(self, histories, k=10, filters=None):
            return [[Recommendation(item, 0.0) for item in history[:k]] for history in histories]

    data = tiny_data()
    with pytest.raises(ValueError, match="^stubborn lists items of the history in 40 of 40 rows.*exclude_seen: false"):
        evaluate(Stubborn(), data.test, data, "stubborn")


@pytest.mark.parametrize("seen", [(), (1,), (1, 3), (2,), (0, 1, 2), (6, 6)])
def test_items_that_were_left_out_are_no_part_of_a_group(seen):
    """The expectation over all orders of the group, by enumeration: items 1 to 4 share a Semantic ID, 2 is wanted."""
    groups = np.array([0, 1, 1, 1, 1, 2, 3, 4])
    values, offsets = np.array(seen, np.int32), np.array([0, len(seen)])
    wanted, ks = 2, (1, 2, 3, 5)
    totals = dict.fromkeys([f"{name}@{k}" for name in ("recall", "ndcg") for k in ks], 0.0)
    orders = list(itertools.permutations([1, 2, 3, 4]))
    for order in orders:
        whole = [item for item in [0, *order, 5, 6, 7] if item not in seen]
        place = whole.index(wanted) + 1 if wanted in whole else np.inf
        for k in ks:
            totals[f"recall@{k}"] += (place <= k) / len(orders)
            totals[f"ndcg@{k}"] += (place <= k) / np.log2(place + 1) / len(orders)
    listed = [item for item in [0, 1, 2, 3, 4, 5, 6, 7] if item not in seen]
    lists = np.array([listed + [-1] * (8 - len(listed))])
    found = row_metrics(*target_ranks(lists, np.array([wanted]), groups, (values, offsets)), ks)
    for name, total in totals.items():
        assert found[name][0] == pytest.approx(total), name


def test_sasrec_stops_by_the_metric_that_is_reported():
    data = tiny_data()
    found = {}

    def score(*histories: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(sasrec.score(*histories))

    for choice in ("auto", "false"):
        config = SASRecConfig(max_length=8, hidden_size=16, max_epochs=2, exclude_seen=choice)
        sasrec = SASRec.fit(data, config)
        found[choice] = Validation.of(data, config, "SASRec").ndcg(score)
        reported = evaluate(sasrec, data.valid, data, "sasrec", exclude_seen=choice, bootstrap=0).metrics["ndcg@10"]
        assert found[choice] == pytest.approx(reported, abs=1e-6)
    assert found["auto"] > found["false"]


def test_the_report_says_what_was_left_out(tmp_path, monkeypatch):
    data = tiny_data()
    data.save(tmp_path / "data")
    Popularity.fit(data).save_pretrained(tmp_path / "popularity", {"data_fingerprint": data.fingerprint})

    def run(output: str, **flags) -> tuple[dict, str]:
        recommenders = json.dumps({"popularity": str(tmp_path / "popularity")})
        config = tmp_path / "evaluate.yaml"
        lines = [f"data_dir: {tmp_path / 'data'}", f"output_dir: {tmp_path / output}", f"recommenders: {recommenders}"]
        lines += ["bootstrap: 20", "controls: [popularity]", *(f"{name}: {value}" for name, value in flags.items())]
        config.write_text("\n".join(lines))
        monkeypatch.setattr(sys, "argv", ["evaluate.py", "--config", str(config)])
        runpy.run_path(str(ROOT / "recipes" / "evaluate.py"), run_name="__main__")
        html = (tmp_path / output / "report.html").read_text()
        return json.loads((tmp_path / output / "metrics.json").read_text()), html

    summary, html = run("auto")
    assert summary["facts"]["items of the history"] == "left out (auto)" and "left out (auto)" in html
    folders = {"data": str(tmp_path / "data"), "popularity": str(tmp_path / "popularity")}
    assert summary["facts"]["folders"] == folders and all(folder in html for folder in folders.values())
    popular, *controls = summary["recommenders"].values()
    assert popular["exclude_seen"] and f"{popular['metrics']['kept/recall@10']:.4f}" in html
    assert "With the items of the history" in html
    assert all(one["exclude_seen"] and "kept/recall@10" not in one["metrics"] for one in controls)
    summary, html = run("kept", exclude_seen="false")
    assert summary["facts"]["items of the history"] == "kept (false)" and "With the items of the history" not in html
    assert summary["recommenders"]["popularity"]["metrics"]["recall@10"] == popular["metrics"]["kept/recall@10"]


def test_a_language_model_leaves_them_out_exactly():
    """As many as are left, and in the order and with the scores that they have beside the seen ones."""
    data = tiny_data()
    index = tiny_index(data)
    model, tokenizer = tiny_model(data, index)
    config = RecommenderConfig.of(data, index, prompt=load_prompt("stream").to_dict(), num_beams=24)
    ours = LLMRecommender(model.eval(), tokenizer, index, data.items, config)
    rows = data.test.slice(0, 6)
    gone, kept = (
        evaluate(ours, rows, data, "ours", ks=(10, 24), exclude_seen=choice, bootstrap=0).predictions
        for choice in (True, False)
    )
    for row, short, long in zip(rows.to_pylist(), gone["item_ids"].to_pylist(), kept["item_ids"].to_pylist()):
        assert len(short) == 24 - 7 and short == [item for item in long if item not in row["history"]]

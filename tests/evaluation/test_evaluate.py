"""`evaluate` end to end on a tiny store, with recommenders whose lists are known."""

import json
import re
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tiny import tiny_data

from llmrec.catalogue.semids import SemIDIndex
from llmrec.data.prepared import TARGETS, PreparedData
from llmrec.evaluation import compare, shuffle_histories, shuffle_order
from llmrec.evaluation import evaluate as evaluate_by_protocol
from llmrec.evaluation.evaluate import semid_groups
from llmrec.evaluation.report import headline, write_report
from llmrec.evaluation.slices import popularity_classes, row_slices
from llmrec.recommenders import load_recommender
from llmrec.recommenders.popularity import Popularity
from llmrec.recommenders.protocol import Recommendation

evaluate = partial(evaluate_by_protocol, exclude_seen=False)  # recommenders with fixed lists heed no filter


class Fixed:
    """Recommends the same ids to everybody."""

    def __init__(self, ids: list[str], index: SemIDIndex | None = None):
        self.ids = ids
        if index is not None:
            self.index = index

    def recommend(self, histories, k=10, filters=None):
        return [[Recommendation(item, -float(i)) for i, item in enumerate(self.ids[:k])] for _ in histories]


class NextInWalk:
    """Knows the rule behind `tiny_data`."""

    def recommend(self, histories, k=10, filters=None):
        lists = []
        for history in histories:
            last = int(history[-1].removeprefix("item-"))
            lists.append([Recommendation(f"item-{(last + step) % 24:02d}", -float(step)) for step in range(1, k + 1)])
        return lists


@pytest.fixture(scope="module")
def data():
    return tiny_data()


def rows_with_targets(*targets: str) -> pa.Table:
    count = len(targets)
    columns = {
        "user_id": [f"u{i}" for i in range(count)],
        "history": [["item-00"]] * count,
        "target": list(targets),
        "timestamp": [None] * count,
    }
    return pa.table(columns, schema=TARGETS)


def test_perfect_recommender_and_its_controls(data):
    result = evaluate(NextInWalk(), data.test, data, "oracle", ks=(1, 10), bootstrap=100)
    assert result.metrics["recall@1"] == result.metrics["ndcg@10"] == result.metrics["valid@10"] == 1
    assert result.metrics["coverage@10"] == 1 and result.ci["recall@1"] == [1, 1]
    assert result.metrics["items_per_second"] == pytest.approx(10 * result.metrics["users_per_second"])
    assert sum(one["rows"] for one in result.slices if one["slice"].startswith("target popularity")) == 40
    assert sum(one["rows"] for one in result.slices if one["slice"].startswith("history length")) == 40
    for control in (shuffle_histories, shuffle_order):
        lost = evaluate(NextInWalk(), control(data.test), data, control.__name__, bootstrap=0)
        assert lost.metrics["recall@1"] < 0.4 and lost.ci == {}


def test_collisions_by_hand(data):
    ids = data.items["item_id"].to_pylist()
    codes = np.arange(24)[:, None].repeat(2, 1)
    codes[[3, 4, 5]] = codes[2]  # 2, 3, 4 and 5 share a SemID
    index = SemIDIndex(ids, codes, [24, 24])
    ranked = [ids[i] for i in (0, 2, 3, 4, 5, 6, 7, 8, 9, 10)]
    rows = rows_with_targets(ids[5], ids[6], ids[20])
    ours = evaluate(Fixed(ranked, index), rows, data, "ours", ks=(1, 3, 10), bootstrap=0)
    assert ours.predictions["rank"].to_pylist() == [2, 6, 0]
    assert ours.predictions["group_size"].to_pylist() == [4, 1, 1]
    assert ours.predictions["semid_rank"].to_pylist() == [2, 3, 0]
    assert ours.metrics["recall@3"] == pytest.approx((2 / 4 + 0 + 0) / 3)
    assert ours.metrics["recall@10"] == pytest.approx(2 / 3)
    assert ours.metrics["semid/recall@3"] == pytest.approx(2 / 3)
    # The order inside the group does not matter, and a list that names one member only is credited from its place.
    shuffled = evaluate(Fixed([ids[i] for i in (0, 5, 4, 3, 2, 6)], index), rows, data, "same", ks=(1, 3, 10))
    assert shuffled.metrics["recall@3"] == ours.metrics["recall@3"]
    # A recommender of items is judged by its own order; the SemID level comes from an index passed in.
    items = evaluate(Fixed(ranked), rows, data, "items", ks=(1, 3, 10), index=index, bootstrap=0)
    assert items.predictions["rank"].to_pylist() == [5, 6, 0]
    assert items.metrics["semid/recall@3"] == pytest.approx(2 / 3)
    assert not any(key.startswith("semid/") for key in evaluate(Fixed(ranked), rows, data, "x").metrics)


def test_groups_of_items_with_several_semids(data):
    ids = data.items["item_id"]
    names = ids.to_pylist()[:4] + ids.to_pylist()[:2]
    codes = np.array([[0], [0], [0], [3], [1], [1]])
    groups = semid_groups(SemIDIndex(names, codes, [8]), ids)
    assert groups[0] == groups[1] != groups[2], "item 2 has the first SemID only"
    assert len(np.unique(groups)) == 23


def test_invalid_lists_are_counted(data):
    ids = data.items["item_id"].to_pylist()
    result = evaluate(Fixed([ids[0], ids[0], "invented", ids[1]]), data.test, data, "bad", ks=(1, 4), bootstrap=0)
    assert result.metrics["valid@1"] == 1 and result.metrics["valid@4"] == 0.5
    assert result.metrics["coverage@4"] == pytest.approx(2 / 24)


def test_slices_by_hand():
    counts = np.array([0, 1, 1, 1, 2, 2, 3, 4, 9, 30])
    classes, meaning = popularity_classes(counts)
    # Nine items are seen: the tenth with the highest counts is one item, the median is 2.
    assert classes.tolist() == ["cold"] + ["tail"] * 3 + ["mid"] * 5 + ["head"]
    assert meaning["head"] == ">= 30 in train" and meaning["mid"] == "2 to 29 in train"
    slices = row_slices(np.array([0, 1, 3]), np.array([False, True, False]), np.array([9, 1, 0]), counts)
    assert slices["history length / 0"].tolist() == [True, False, False]
    assert slices["history length / 2 to 3"].tolist() == [False, False, True]
    assert slices["target in history / yes"].tolist() == [False, True, False]
    assert slices["target popularity / cold (not in train)"].tolist() == [False, False, True]


def test_controls_keep_what_they_promise(data):
    exchanged = shuffle_histories(data.test, seed=3)
    assert exchanged.drop_columns(["history"]).equals(data.test.drop_columns(["history"]))
    before, after = data.test["history"].to_pylist(), exchanged["history"].to_pylist()
    assert sorted(before) == sorted(after) and exchanged.equals(shuffle_histories(data.test, seed=3))
    numbered = data.test.set_column(1, "history", pa.array([[str(i)] for i in range(40)], pa.list_(pa.string())))
    assert all(one != [str(i)] for i, one in enumerate(shuffle_histories(numbered)["history"].to_pylist()))
    mixed = shuffle_order(data.test, seed=3)
    assert [sorted(one) for one in mixed["history"].to_pylist()] == [sorted(one) for one in before]
    assert mixed["history"].to_pylist() != before and mixed.schema == data.test.schema
    with pytest.raises(ValueError, match="two rows"):
        shuffle_histories(data.test.slice(0, 1))


def test_report_holds_the_figures(data, tmp_path):
    oracle = evaluate(NextInWalk(), data.test, data, "oracle <b>", bootstrap=50)
    popular = evaluate(Popularity.fit(data), data.test, data, "popularity", bootstrap=50)
    lost = evaluate(NextInWalk(), shuffle_histories(data.test), data, "oracle, shuffled histories", bootstrap=50)
    results = [oracle, popular, lost]
    summary = write_report(results, tmp_path, "Tiny", reference="popularity", facts={"split": "test"}, bootstrap=50)
    assert json.loads((tmp_path / "metrics.json").read_text()) == json.loads(json.dumps(summary))
    figure = f"{popular.metrics['recall@10']:.4f}"
    markdown, html = ((tmp_path / f"report.{ending}").read_text() for ending in ("md", "html"))
    assert figure in markdown and figure in html and figure in headline(summary)
    assert "oracle &lt;b&gt;" in html and "<b>" not in html
    assert re.search(r"src=\"(?!data:)|href=", html) is None, "the HTML stands alone"
    for name in re.findall(r"\((plots/[^)]+)\)", markdown):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
    difference = summary["differences"]["oracle <b>"]["recall@10"]
    assert difference["difference"] == pytest.approx(1 - popular.metrics["recall@10"]) and difference["low"] > 0
    few = next(label for label, mask in oracle.masks.items() if 0 < mask.sum() < 40)
    by_hand = np.array(popular.predictions["rank"])[oracle.masks[few]]
    sliced = summary["slice_differences"]["oracle <b>"]
    assert sliced.keys() == popular.masks.keys()
    paired = sliced[few]["recall@10"]
    assert paired["difference"] == pytest.approx(1 - ((by_hand > 0) & (by_hand <= 10)).mean())
    assert f"{few} | {paired['difference']:+.4f} [{paired['low']:+.4f}, {paired['high']:+.4f}]" in markdown
    of_popular = next(one for one in popular.slices if one["slice"] == few)
    assert "{:.4f} [{:.4f}, {:.4f}]".format(of_popular["recall@10"], *of_popular["ci"]["recall@10"]) in markdown
    table = pq.read_table(tmp_path / "predictions" / "popularity.parquet")
    assert table.num_rows == 40 and len(table["item_ids"][0].as_py()) == 24 == len(table["scores"][0].as_py())
    with pytest.raises(ValueError, match="reference"):
        write_report(results, tmp_path, "Tiny", reference="nobody")
    with pytest.raises(ValueError, match="distinct names"):
        write_report([popular, popular], tmp_path, "Tiny")
    other = evaluate(NextInWalk(), data.valid, data, "other rows", bootstrap=0)
    with pytest.raises(ValueError, match="different rows"):
        compare(oracle, other)


def test_bad_input(data, tmp_path):
    with pytest.raises(ValueError, match="no row"):
        evaluate(NextInWalk(), data.test.slice(0, 0), data, "x")
    foreign = PreparedData(data.items.slice(0, 5), data.train.slice(0, 0), data.valid, data.test, {})
    with pytest.raises(ValueError, match="not in the catalogue"):
        evaluate(NextInWalk(), data.test, foreign, "x")
    with pytest.raises(
        ValueError, match="hold item 'new', which the data lacks .1 such items.: evaluate a model on data"
    ):
        semid_groups(SemIDIndex(["item-00", "new"], np.zeros((2, 1), np.int32), [8]), data.items["item_id"])
    with pytest.raises(ValueError, match="config.json"):
        load_recommender(tmp_path)
    (tmp_path / "config.json").write_text('{"kind": "magic"}')
    with pytest.raises(ValueError, match="magic"):
        load_recommender(tmp_path)

import json

import numpy as np
import pyarrow as pa
import pytest

from llmrec.catalogue.report import (
    category_labels,
    level_figures,
    nearest_neighbours,
    neighbours_kept,
    purity,
    report_lines,
    semid_report,
    write_report,
)
from llmrec.catalogue.semids import SemIDIndex
from llmrec.item_tokenizers import RQKMeans, build_semids


@pytest.fixture(scope="module")
def clustered():
    rng = np.random.default_rng(0)
    kind = rng.integers(0, 12, 400)
    features = (4 * rng.normal(size=(12, 16))[kind] + rng.normal(size=(400, 16))).astype(np.float32)
    ids = [f"i{i}" for i in range(400)]
    items = pa.table({"item_id": ids, "categories": [f"Shop > {k % 4} > {k} > leaf {i}" for i, k in enumerate(kind)]})
    index = build_semids(ids, features, RQKMeans([24, 16, 16]).fit(features), "append")
    return index, features, items


def test_level_figures():
    uniform = level_figures(np.array([0, 1, 2, 3]), 4)
    assert uniform["entropy"] == pytest.approx(1) and uniform["perplexity"] == pytest.approx(4)
    skewed = level_figures(np.array([0, 0, 0, -1]), 8)
    assert (skewed["used"], skewed["usage"], skewed["held"]) == (1, 1 / 8, 0.75)
    assert skewed["entropy"] == 0 and skewed["largest_share"] == 1
    assert level_figures(np.array([-1, -1]), 4)["used"] == 0


def test_neighbours_kept_is_one_for_a_perfect_code_and_chance_for_random():
    # Ten far-apart clusters of six: the five nearest of an item are the rest of its cluster.
    rng = np.random.default_rng(0)
    cluster = np.repeat(np.arange(10), 6)
    features = (10 * np.eye(10)[cluster] + 0.1 * rng.normal(size=(60, 10))).astype(np.float32)
    near = nearest_neighbours(features, 5, 60, 0)
    assert neighbours_kept(cluster[:, None], *near) == pytest.approx(1)
    # All items share one code: every item is as good as any other.
    assert neighbours_kept(np.zeros((60, 1), int), *near) == pytest.approx(5 / 59)
    # Half of a cluster is told apart: 2 of 5 neighbours certainly, the other 3 by chance among 57.
    half = np.stack([cluster * 2 + np.tile([0, 0, 0, 1, 1, 1], 10)], 1)
    expected = (2 + 3 * (3 / 57)) / 5
    assert neighbours_kept(half, *near) == pytest.approx(expected)


def test_purity_and_labels():
    assert purity(np.array([[0], [0], [0], [1]]), np.array([5, 5, 6, 6])) == 0.75
    assert purity(np.array([[0], [0], [1]]), np.array([2, 2, -1])) == 1.0
    items = pa.table({"categories": ["A > B > C > D | X > Y", "A > B > C > E", "A > Z", None]})
    labels = category_labels(items)
    assert labels[0] == labels[1] != labels[2] and labels[3] == -1
    assert category_labels(pa.table({"categories": ["A", "A", ""]})) is None
    assert category_labels(pa.table({"title": ["A"]})) is None


def test_report_of_sound_semids(clustered, tmp_path):
    index, features, items = clustered
    report = semid_report(index, features, items, sample=200)
    assert report["warnings"] == []
    assert report["neighbours"]["kept"] > 5 * report["neighbours"]["control"]
    assert report["prefixes"][0]["purity"] > 0.8 > report["prefixes"][0]["purity_control"] + 0.3
    assert report["collisions"]["after"]["unique"] == 400
    assert [row["unique"] for row in report["prefixes"]] == sorted(row["unique"] for row in report["prefixes"])
    write_report(report, tmp_path / "report", index, features)
    assert json.loads((tmp_path / "report" / "report.json").read_text()) == json.loads(json.dumps(report))
    text = (tmp_path / "report" / "report.md").read_text()
    for name in ("codes", "map", "groups"):
        assert (tmp_path / "report" / f"{name}.png").stat().st_size > 5000 and f"({name}.png)" in text
    assert all(line in text for line in report_lines(report))


def test_words_that_levels_share_are_no_collapsed_codebook(clustered):
    _, features, items = clustered
    words = [[f" word{number}" for number in range(400)]] * 2
    codes = np.stack([np.arange(400) % 9, np.arange(400)], axis=1)
    for adds_tokens in (True, False):
        index = SemIDIndex(
            items["item_id"].to_pylist(), codes, [400, 400], level_tokens=words, adds_tokens=adds_tokens
        )
        assert not any(
            "collapsed" in warning for warning in semid_report(index, features, items, sample=50)["warnings"]
        )
    split = SemIDIndex(items["item_id"].to_pylist(), codes, [400, 400])
    assert any("9 of 400 codes" in warning for warning in semid_report(split, features, items, sample=50)["warnings"])


def test_alarms(clustered, caplog):
    _, features, items = clustered
    ids = items["item_id"].to_pylist()
    collapsed = SemIDIndex(ids, np.zeros((400, 2), np.int32), [64, 64])
    text = " ".join(semid_report(collapsed, features, items, sample=50)["warnings"])
    for alarm in ("1 of 64 codes", "one code of level 2 holds 100%", "shared a SemID before", "up to 400 items share"):
        assert alarm in text
    assert "hardly more neighbours" in text and "the codebook has collapsed" in caplog.text
    same = np.repeat(features[:100], 4, axis=0)
    assert "-0.0" not in "".join(report_lines(semid_report(collapsed, features, items, sample=50)))
    assert any("only 100 of 400" in warning for warning in semid_report(collapsed, same, items)["warnings"])


def test_a_token_an_item_has_no_neighbours_to_keep(clustered):
    _, features, items = clustered
    index = SemIDIndex(items["item_id"].to_pylist(), np.arange(400)[:, None], [400])
    assert semid_report(index, features, items, sample=50)["warnings"] == []


def test_of_many_items_a_sample_is_compared(clustered, monkeypatch):
    index, features, items = clustered
    whole = semid_report(index, features, items)
    monkeypatch.setattr("llmrec.catalogue.report._COMPARED", 150)
    some = semid_report(index, features, items)
    assert some["compared"] == 150 and "compared" not in whole
    for figure in ("collisions", "levels", "tokens", "bits", "features", "fingerprint"):
        assert some[figure] == whole[figure]
    assert [row["unique"] for row in some["prefixes"]] == [row["unique"] for row in whole["prefixes"]]
    for depth, (row, of_all) in enumerate(zip(some["prefixes"], whole["prefixes"])):
        assert row["purity"] == pytest.approx(of_all["purity"], abs=0.1), depth
    assert some["neighbours"]["kept"] > 2 * some["neighbours"]["control"]
    assert any("those of a sample of 150 items" in line for line in report_lines(some))

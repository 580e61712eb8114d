import json
import logging
import os
from pathlib import Path

import pyarrow as pa
import pytest

from llmrec.data import PreparedData, prepare
from llmrec.data.sources import generate_store, load_compact
from llmrec.data.statistics import statistics_table

ITEMS = pa.table({"item_id": list("abcde"), "title": ["<b>A</b>", "B", "", "D", "E"], "own": [1, 2, 3, 4, 5]})
LOG = pa.table({"user_id": list("uuuuvvvw"), "item_id": list("abcaabcd"), "timestamp": range(8),
                "rating": [5, 1, 4, 4, 5, 5, 2, 5], "behaviour": ["buy", "view"] * 4})  # fmt: skip


def test_statistics_by_hand():
    data = prepare(LOG, ITEMS)
    assert data.info["statistics"] == {
        "users": 3, "items": 5, "interactions": 8, "density": 8 / 15, "length_min": 1, "length_mean": 8 / 3,
        "length_median": 3.0, "length_max": 4, "train_users": 3, "train_sequences": 3, "train_interactions": 4,
        "train_targets": 1, "items_in_train": 3, "valid": 2, "valid_history_mean": 1.5, "valid_cold": 0.5,
        "test": 2, "test_history_mean": 2.5, "test_cold": 0.5, "text_title": 0.8,
        "given_interactions": 8, "duplicates": 0, "duplicates_kept": 0,
    }  # fmt: skip
    lines = statistics_table(data.info["statistics"]).splitlines()
    assert lines[0].split() == ["users", "3"] and lines[3].split() == ["density", "53.3333%"]


def test_catalogue_after_k_core():
    assert prepare(LOG, ITEMS).items["item_id"].to_pylist() == list("abcde")
    data = prepare(LOG, ITEMS, user_k=2, item_k=1)
    assert data.items["item_id"].to_pylist() == list("abc") and data.items["own"].to_pylist() == [1, 2, 3]
    assert prepare(LOG, ITEMS, user_k=2, item_k=1, keep_all_items=True).items.num_rows == 5
    with pytest.raises(ValueError, match="no interaction is left with user_k 9"):
        prepare(LOG, ITEMS, user_k=9)


def test_text_is_cleaned_unless_asked_not_to():
    assert prepare(LOG, ITEMS).items["title"][0].as_py() == "A"
    assert prepare(LOG, ITEMS, clean=False).items["title"][0].as_py() == "<b>A</b>"


def test_behaviours_and_ratings():
    data = prepare(LOG, ITEMS, behaviours=["buy"])
    assert data.info["statistics"]["interactions"] == 4
    assert prepare(LOG, ITEMS, min_rating=4).info["statistics"]["interactions"] == 6
    for option, column in (({"behaviours": ["buy"]}, "behaviour"), ({"min_rating": 4}, "rating")):
        with pytest.raises(ValueError, match=f"needs a column '{column}'"):
            prepare(LOG.drop_columns([column]), ITEMS, **option)


@pytest.mark.parametrize(
    "option, message",
    [
        ({"split": "random"}, "split 'random' is not one of leave_one_out, time, given"),
        ({"ties": "x"}, "ties 'x' is not one of"),
        ({"repeats": "x"}, "repeats 'x' is not one of"),
        ({"max_history": 0}, "max_history is 0, it should be a whole number of at least 1"),
        ({"split": "given"}, "needs a column 'split'"),
    ],
)
def test_rules_that_do_not_exist(option, message):
    with pytest.raises(ValueError, match=message):
        prepare(LOG, ITEMS, **option)


def given(labels):
    return LOG.append_column("split", pa.array(labels))


def test_given_split():
    data = prepare(given(["train", "train", "valid", "test", "train", "train", "test", "train"]), ITEMS, split="given")
    assert data.test["history"].to_pylist() == [list("abc"), list("ab")]
    with pytest.raises(ValueError, match="user 'u' has a train interaction after a valid one"):
        prepare(given(["train", "valid", "train", "test"] + ["train"] * 4), ITEMS, split="given")
    with pytest.raises(ValueError, match="column 'split': 'dev' is not one of train, valid, test"):
        prepare(given(["train"] * 7 + ["dev"]), ITEMS, split="given")


def test_windows_take_no_other_rules():
    rows = pa.table({"user_id": ["u"], "history": [["a"]], "item_id": ["b"], "split": ["train"]})
    with pytest.raises(ValueError, match="ready windows"):
        prepare(rows, ITEMS, split="given", user_k=5)
    with pytest.raises(ValueError, match="ready windows"):
        prepare(rows, ITEMS)
    unknown = pa.table({"user_id": ["u"], "history": [["x"]], "item_id": ["b"], "split": ["train"]})
    with pytest.raises(ValueError, match="item 'x' is not in the catalogue"):
        prepare(unknown, ITEMS, split="given")


def test_missing_times():
    holes = LOG.set_column(2, "timestamp", pa.array([1, None, *range(6)]))
    with pytest.raises(ValueError, match="column 'timestamp', row 2: no value"):
        prepare(holes, ITEMS)
    assert prepare(holes.append_column("order", pa.array(range(8))), ITEMS).test["timestamp"].to_pylist() == [1, 4]
    with pytest.raises(ValueError, match="split: time needs a timestamp everywhere"):
        prepare(LOG.drop_columns(["timestamp"]), ITEMS, split="time")


def test_empty_parts_are_said(caplog):
    with caplog.at_level(logging.WARNING):
        prepare(given(["train"] * 8), ITEMS, split="given")
    assert "valid has no rows" in caplog.text and "test has no rows" in caplog.text


def test_same_input_same_fingerprint_and_round_trip(tmp_path):
    store = generate_store(seed=3, num_users=100, num_items=100)
    data, again = (prepare(*store, user_k=3, item_k=3, split="time") for _ in range(2))
    assert data.fingerprint == again.fingerprint
    data.save(tmp_path / "data")
    loaded = PreparedData.load(tmp_path / "data")
    assert loaded.fingerprint == data.fingerprint
    assert json.loads(json.dumps(data.info)) == {k: v for k, v in loaded.info.items() if k != "content"}


PUBLISHED = {  # the counts that the data sets' own descriptions give
    "amazon14_beauty": {"users": 22_363, "items": 12_101, "interactions": 198_502, "train_interactions": 153_776,
                        "length_max": 204},
    "amazon14_office": {"users": 4_905, "items": 2_420, "interactions": 53_258, "train_interactions": 43_448},
    "amazon14_sports": {"users": 35_598, "items": 18_357, "interactions": 296_337, "train_interactions": 225_141},
    "amazon18_games": {"users": 50_546, "items": 16_859, "interactions": 452_989, "train_interactions": 351_897},
    "movielens_small": {"users": 610, "items": 3_650, "interactions": 90_274, "train_interactions": 89_054},
    "minionerec_industrial": {"items": 3_686, "train_users": 6_104, "train_targets": 30_968, "valid": 4_532,
                              "test": 4_533},
    "minionerec_office": {"items": 3_459, "train_users": 2_413, "train_targets": 9_484, "valid": 4_866, "test": 4_866},
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", PUBLISHED)
def test_real_counts(name):
    interactions, items = load_compact(str(Path(os.environ["LLMREC_DATA"]) / name))
    data = prepare(interactions, items, split="given")
    assert {key: data.info["statistics"][key] for key in PUBLISHED[name]} == PUBLISHED[name]
    if not name.startswith("minionerec"):
        own = prepare(interactions.drop_columns(["split"]), items, user_k=5, item_k=5)
        assert own.fingerprint == data.fingerprint


def test_given_with_test_rows_alone():
    items = pa.table({"item_id": list("abc"), "title": list("ABC")})
    log = pa.table({"user_id": ["u", "u", "v"], "item_id": list("abc"), "split": ["test"] * 3})
    data = prepare(log, items, split="given")
    assert data.test["history"].to_pylist() == [["a"]] and data.train.num_rows == 0
    assert data.info["statistics"]["length_min"] == 1
    with pytest.raises(ValueError, match="nothing is left: every interaction is a target without any history"):
        prepare(log.slice(1), items, split="given")

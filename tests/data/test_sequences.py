import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmrec.data import prepare, training_rows
from llmrec.data.prepared import SEQUENCES, TARGETS
from llmrec.data.sequences import label_by_time, label_leave_one_out, repeats_kept

ITEMS = pa.table({"item_id": list("abcde"), "title": list("ABCDE")})
events = st.lists(
    st.tuples(st.sampled_from("uvw"), st.sampled_from("abcde"), st.integers(0, 9)), min_size=1, max_size=40
)


def log_of(rows, **columns):
    users, items, times = zip(*rows)
    return pa.table({"user_id": users, "item_id": items, "timestamp": times, **columns})


def chains(data):
    """Each user's items in training, then validation, then test."""
    result = {row["user_id"]: list(row["item_ids"]) for row in data.train.to_pylist()}
    for table in (data.valid, data.test):
        for row in table.to_pylist():
            result.setdefault(row["user_id"], list(row["history"])).append(row["target"])
    return result


def test_leave_one_out_by_hand():
    rows = [("u", "c", 3), ("u", "a", 1), ("v", "a", 1), ("u", "b", 2), ("v", "b", 2), ("u", "d", 4)]
    data = prepare(log_of(rows), ITEMS)
    assert data.train.schema.equals(SEQUENCES) and data.test.schema.equals(TARGETS)
    assert data.train.to_pylist() == [
        {"user_id": "u", "item_ids": ["a", "b"], "timestamps": [1, 2], "num_context": 1},
        {"user_id": "v", "item_ids": ["a", "b"], "timestamps": [1, 2], "num_context": 1},
    ]
    assert data.valid.to_pylist() == [{"user_id": "u", "history": ["a", "b"], "target": "c", "timestamp": 3}]
    assert data.test.to_pylist() == [{"user_id": "u", "history": ["a", "b", "c"], "target": "d", "timestamp": 4}]


@given(events, st.sampled_from([None, 1, 3]))
@settings(deadline=None, max_examples=30)
def test_leave_one_out_equals_a_loop(rows, max_history):
    data = prepare(log_of(rows), ITEMS, max_history=max_history)
    expected = {}
    for user, item, _ in sorted(rows, key=lambda row: row[2]):
        expected.setdefault(user, []).append(item)
    assert chains(data) == expected
    long = {user: items for user, items in expected.items() if len(items) >= 3}
    last = {None: 99}.get(max_history, max_history)
    assert {row["user_id"]: (row["history"], row["target"]) for row in data.test.to_pylist()} == {
        user: (items[:-1][-last:], items[-1]) for user, items in long.items()
    }
    assert {row["user_id"]: (row["history"], row["target"]) for row in data.valid.to_pylist()} == {
        user: (items[:-2][-last:], items[-2]) for user, items in long.items()
    }


@given(events)
@settings(deadline=None, max_examples=30)
def test_splits_are_disjoint_and_complete(rows):
    # Items are made unique, so that an item names one interaction.
    rows = [(user, f"i{number}", time) for number, (user, _, time) in enumerate(rows)]
    items = pa.table({"item_id": [row[1] for row in rows], "title": [""] * len(rows)})
    for split in ("leave_one_out", "time"):
        try:
            data = prepare(log_of(rows), items, split=split)
        except ValueError as error:
            assert split == "time" and "leaves no" in str(error)
            continue
        train = {item for row in data.train.to_pylist() for item in row["item_ids"]}
        valid, test = ({row["target"] for row in table.to_pylist()} for table in (data.valid, data.test))
        assert not (train & valid or train & test or valid & test)
        left_out = data.info["rules"]["targets_without_history_left_out"]
        assert len(train) + len(valid) + len(test) + left_out == len(rows)
        trained = set(training_rows(data.train)["target"].to_pylist())
        assert trained <= train


def test_split_by_time_by_hand():
    rows = [("u", "a", 1), ("u", "b", 5), ("u", "c", 9), ("v", "d", 5), ("v", "e", 6), ("v", "a", 9), ("u", "d", 2)]
    data = prepare(log_of(rows), ITEMS, split="time", valid_start=5, test_start=9)
    assert data.train.to_pylist() == [{"user_id": "u", "item_ids": ["a", "d"], "timestamps": [1, 2], "num_context": 1}]
    assert data.valid.to_pylist() == [
        {"user_id": "u", "history": ["a", "d"], "target": "b", "timestamp": 5},
        {"user_id": "v", "history": ["d"], "target": "e", "timestamp": 6},
    ]
    assert data.test.to_pylist() == [
        {"user_id": "u", "history": ["a", "d", "b"], "target": "c", "timestamp": 9},
        {"user_id": "v", "history": ["d", "e"], "target": "a", "timestamp": 9},
    ]
    assert data.info["rules"]["targets_without_history_left_out"] == 1
    assert data.info["leak_check"] == {
        "rule": "time", "histories_end_before_their_targets": 4,
        "last_train": 2, "first_valid": 5, "last_valid": 6, "first_test": 9,
    }  # fmt: skip


def test_fractions_keep_equal_times_together():
    times = np.repeat(np.arange(20), 5)
    labels, valid_start, test_start = label_by_time(times)
    assert np.bincount(labels).tolist() == [80, 10, 10] and (valid_start, test_start) == (16, 18)
    labels, _, _ = label_by_time(np.array([1, 1, 1, 1, 2, 2, 3, 3]), (0.5, 0.25, 0.25))
    assert labels.tolist() == [0, 0, 0, 0, 1, 1, 2, 2]


def test_dates_of_a_split_by_time():
    day = 86400
    labels, valid_start, test_start = label_by_time(
        np.array([0, day, 2 * day]), valid_start="1970-01-02", test_start="1970-01-03T00:00:00+00:00"
    )
    assert labels.tolist() == [0, 1, 2] and (valid_start, test_start) == (day, 2 * day)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"fractions": (0.5, 0.5, 0.5)}, "fractions must be three positive shares"),
        ({"valid_start": 3}, "both valid_start and test_start"),
        ({"valid_start": "soon", "test_start": "later"}, "'soon' is neither seconds nor an ISO 8601 date"),
        ({"valid_start": 100, "test_start": 200}, "leaves no valid interactions; timestamps run from 1970-01-01"),
    ],
)
def test_splits_by_time_that_cannot_be(options, message):
    with pytest.raises(ValueError, match=message):
        label_by_time(np.arange(10), **options)


def test_ties_follow_the_input_or_the_item_id():
    rows = [("u", "c", 1), ("u", "a", 1), ("u", "b", 1), ("u", "e", 0)]
    assert chains(prepare(log_of(rows), ITEMS))["u"] == ["e", "c", "a", "b"]
    assert chains(prepare(log_of(rows), ITEMS, ties="item_id"))["u"] == ["e", "a", "b", "c"]


def test_order_counts_before_time_and_input_order_where_there_is_neither():
    rows = [("u", "c", 1), ("u", "a", 2), ("u", "b", 3)]
    assert chains(prepare(log_of(rows, order=[2, 1, 0]), ITEMS))["u"] == ["b", "a", "c"]
    assert chains(prepare(log_of(rows).drop_columns(["timestamp"]), ITEMS))["u"] == ["c", "a", "b"]


def test_repeats():
    rows = [("u", item, time) for time, item in enumerate("aabbacaa")]
    assert "".join(chains(prepare(log_of(rows), ITEMS))["u"]) == "aabbacaa"
    assert "".join(chains(prepare(log_of(rows), ITEMS, repeats="drop_consecutive"))["u"]) == "abaca"
    assert "".join(chains(prepare(log_of(rows), ITEMS, repeats="first"))["u"]) == "abc"


@given(events, st.integers(0, 3))
@settings(deadline=None, max_examples=30)
def test_k_core_and_repeats_hold_together(rows, k):
    try:
        data = prepare(log_of(rows), ITEMS, user_k=k, item_k=k, repeats="drop_consecutive")
    except ValueError as error:
        assert "no interaction is left" in str(error)
        return
    sequences = chains(data)
    assert all(len(items) >= k for items in sequences.values())
    assert all(a != b for items in sequences.values() for a, b in zip(items, items[1:]))
    counts = [sum(items.count(item) for items in sequences.values()) for item in data.items["item_id"].to_pylist()]
    assert not k or min(counts) >= k


def test_labels_of_short_users_and_repeats_of_nothing():
    assert label_leave_one_out(np.array([0, 1, 1, 2, 2, 2])).tolist() == [0, 0, 0, 0, 1, 2]
    for rule in ("keep", "drop_consecutive", "first"):
        assert repeats_kept(np.empty(0, np.int32), np.empty(0, np.int32), rule).tolist() == []

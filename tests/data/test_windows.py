import os
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmrec.data import prepare, stitch_windows, training_rows
from llmrec.data.prepared import SEQUENCES, TARGETS
from llmrec.data.sources import load_compact

walks = st.lists(st.text(alphabet="abc", min_size=2, max_size=14), min_size=1, max_size=5)


def windows(rows):
    columns = zip(*rows) if rows else ([], [], [], [])
    return pa.table(dict(zip(TARGETS.names, map(list, columns))), schema=TARGETS)


def multiset(table):
    return Counter((r["user_id"], tuple(r["history"]), r["target"], r["timestamp"]) for r in table.to_pylist())


@given(walks, st.integers(1, 5), st.randoms(use_true_random=False), st.data())
@settings(deadline=None, max_examples=30)
def test_stitched_windows_give_the_same_rows_back(items, window, random, data):
    rows = [
        (f"u{number}", list(walk[max(0, p - window) : p]), walk[p], p)
        for number, walk in enumerate(items)
        for p in range(1, len(walk))
    ]
    # Interleave the users and lose some rows, as real files do.
    random.shuffle(rows)
    rows.sort(key=lambda row: row[3] // 3)
    rows = [row for row in sorted(rows, key=lambda row: row[3]) if data.draw(st.integers(0, 9))]
    table = windows(rows)
    sequences = stitch_windows(table, window)
    assert sequences.schema.equals(SEQUENCES)
    assert multiset(training_rows(sequences, window)) == multiset(table)
    if len(rows) == sum(len(walk) - 1 for walk in items):
        assert [row["item_ids"] for row in sequences.sort_by("user_id").to_pylist()] == [list(walk) for walk in items]


@given(
    st.lists(st.tuples(st.sampled_from("uv"), st.text(alphabet="ab", max_size=3), st.sampled_from("ab")), max_size=12)
)
@settings(deadline=None, max_examples=30)
def test_rows_that_fit_nowhere_give_the_same_rows_back(rows):
    table = windows([(user, list(history), target, None) for user, history, target in rows])
    longest = max([1, *(len(history) for _, history, _ in rows)])  # the window that is taken if none is given
    assert multiset(training_rows(stitch_windows(table), longest)) == multiset(table)
    assert multiset(training_rows(stitch_windows(table, 3), 3)) == multiset(table)


def test_one_long_sequence_from_full_windows():
    walk = "abcdabcda"
    rows = [("u", list(walk[max(0, p - 3) : p]), walk[p], 10 * p) for p in range(1, 9)]
    (sequence,) = stitch_windows(windows(rows)).to_pylist()
    assert sequence == {
        "user_id": "u",
        "item_ids": list(walk),
        "timestamps": [None, *range(10, 90, 10)],
        "num_context": 1,
    }


def test_a_history_longer_than_the_window_is_refused():
    with pytest.raises(ValueError, match="a history has 3 items, more than the window of 2"):
        stitch_windows(windows([("u", list("abc"), "d", None)]), 2)


def test_windows_with_kinds_are_refused():
    rows = {"user_id": ["u"] * 3, "history": [["a"], ["a", "b"], ["b", "c"]], "item_id": list("bcd")}
    rows |= {"split": ["train", "valid", "test"], "behaviour": ["view", "buy", "buy"]}
    items = pa.table({"item_id": list("abcd"), "title": list("ABCD")})
    with pytest.raises(ValueError, match="leave out the column 'behaviour'"):
        prepare(pa.table(rows), items, split="given")
    assert not prepare(pa.table(rows | {"behaviour": ["buy"] * 3}), items, split="given").behaviours


@pytest.mark.slow
@pytest.mark.parametrize("name, sequences", [("minionerec_industrial", 6104), ("minionerec_office", 2413)])
def test_real_windows(name, sequences):
    interactions, items = load_compact(str(Path(os.environ["LLMREC_DATA"]) / name))
    rows = interactions.filter(pa.compute.equal(interactions["split"], "train"))
    rows = rows.select(["user_id", "history", "item_id", "timestamp"]).rename_columns(TARGETS.names)
    data = prepare(interactions, items, split="given")
    assert multiset(training_rows(data.train, 10)) == multiset(rows)
    assert data.train.num_rows == len(data.train["user_id"].unique()) == sequences

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmrec.data import ids_to_rows, lists_to_rows, training_rows
from llmrec.data.prepared import SEQUENCES, TARGETS
from llmrec.data.rows import ragged_arange

lists_of_ids = st.lists(st.lists(st.sampled_from("abcde"), max_size=6), max_size=8)


def sequences(lists, contexts=None):
    return pa.table(
        {
            "user_id": [f"u{i}" for i in range(len(lists))],
            "item_ids": lists,
            "timestamps": [[10 * i for i in range(len(items))] for items in lists],
            "num_context": contexts if contexts is not None else [1] * len(lists),
        },
        schema=SEQUENCES,
    )


@given(lists_of_ids, st.integers(0, 8))
@settings(deadline=None, max_examples=50)
def test_lists_to_rows_equals_a_dictionary(lists, cut):
    column = pa.chunked_array(
        [pa.array(lists[:cut], pa.list_(pa.string())), pa.array(lists, pa.list_(pa.string()))[cut:]]
    )
    values, offsets = lists_to_rows(column, list("edcba"))
    assert values.dtype == np.int32 and offsets.dtype == np.int64 and len(offsets) == len(lists) + 1
    position = {item: row for row, item in enumerate("edcba")}
    assert [values[a:b].tolist() for a, b in zip(offsets, offsets[1:])] == [[position[i] for i in x] for x in lists]


def test_lists_to_rows_of_a_table_without_rows():
    values, offsets = lists_to_rows(SEQUENCES.empty_table()["item_ids"], pa.chunked_array([["a"]]))
    assert values.tolist() == [] and offsets.tolist() == [0]


def test_unknown_items_and_null_lists_are_named():
    with pytest.raises(ValueError, match="item 'x' is not in the catalogue"):
        lists_to_rows(pa.array([["a"], ["x"]]), ["a"])
    with pytest.raises(ValueError, match="row 1 has no list"):
        lists_to_rows(pa.array([["a"], None]), ["a"])
    with pytest.raises(ValueError, match="'y'"):
        ids_to_rows(pa.array(["a", "y"]), ["a"])


@given(lists_of_ids, st.data())
@settings(deadline=None, max_examples=50)
def test_training_rows_equal_a_loop(lists, data):
    contexts = [data.draw(st.integers(0, 7)) for _ in lists]
    max_history = data.draw(st.sampled_from([None, 1, 3]))
    expected = [
        (f"u{i}", items[:p][-max_history:] if max_history else items[:p], items[p], 10 * p)
        for i, (items, context) in enumerate(zip(lists, contexts))
        for p in range(context, len(items))
    ]
    rows = training_rows(sequences(lists, contexts), max_history)
    assert rows.schema.equals(TARGETS)
    assert [tuple(row.values()) for row in rows.to_pylist()] == expected


def test_training_rows_of_nothing_and_bad_max_history():
    assert training_rows(sequences([])).num_rows == 0
    with pytest.raises(ValueError, match="max_history"):
        training_rows(sequences([["a", "b"]]), 0)


def test_ragged_arange():
    assert ragged_arange(np.array([3, 7, 0]), np.array([5, 7, 3])).tolist() == [3, 4, 0, 1, 2]

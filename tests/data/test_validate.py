import datetime

import pyarrow as pa
import pytest

from llmrec.data import prepare
from llmrec.data.validate import items_of_interactions, standard_interactions, standard_items

LOG = {"user_id": ["u", "u"], "item_id": ["a", "b"]}
ITEMS = {"item_id": ["a", "b"], "title": ["A", "B"]}


def log(**columns):
    return pa.table({**LOG, **columns})


@pytest.mark.parametrize(
    "table, options, message",
    [
        ({"user": ["u"], "item_id": ["a"]}, {}, r"log\.csv: no column 'user_id'; it has user, item_id; map it"),
        (LOG, {"columns": {"timestamp": "when"}}, r"log\.csv: no column 'when'; it has user_id, item_id$"),
        (LOG, {"columns": {"userid": "u"}}, "columns names 'userid'; interactions have user_id"),
        ({"user_id": [], "item_id": []}, {}, r"log\.csv: the table has no rows"),
        ({**LOG, "item_id": ["a", None]}, {}, r"log\.csv, column 'item_id', row 2: the id is missing \(None\)"),
        ({**LOG, "item_id": ["a", ""]}, {}, r"column 'item_id', row 2: the id is missing \(''\)"),
        ({**LOG, "user_id": ["nan", "u"]}, {}, r"column 'user_id', row 1: the id is missing \('nan'\)"),
        ({**LOG, "user_id": [1.0, float("nan")]}, {}, r"column 'user_id', row 2: the id is missing \(nan\)"),
        ({**LOG, "user_id": [1.0, 2.5]}, {}, r"column 'user_id', row 2: 2\.5 \(double\) is not a whole number"),
        ({**LOG, "item_id": [["a"], ["b"]]}, {}, r"column 'item_id', row 1: \['a'\] .* is not string"),
        ({**LOG, "timestamp": ["2020-01-01", "soon"]}, {}, r"column 'timestamp', row 2: 'soon' \(string\) is not"),
        ({**LOG, "timestamp": [1, 1588687728923]}, {}, r"row 2: 1588687728923 s lies past the year 5000; .*ms"),
        ({**LOG, "timestamp": [1, 2]}, {"timestamp_unit": "h"}, "timestamp_unit 'h' is not one of s, ms, us, ns"),
        ({**LOG, "rating": ["5", "good"]}, {}, r"column 'rating', row 2: 'good' \(string\) is not a number"),
        (
            {**LOG, "order": pa.array([1, 2**24], pa.float32())},
            {},
            r"'order', row 2: 16777216\.0 is a number that has lost",
        ),
        (
            {**LOG, "history": [["a"], None]},
            {},
            r"log\.csv, column 'history', row 2: None is no list of ids; give an empty",
        ),
        ({**LOG, "order": ["1", "0x10"]}, {}, r"column 'order', row 2: '0x10' \(string\) is not a number"),
        ({**LOG, "order": [1, 2.5]}, {}, r"column 'order', row 2: 2\.5 \(double\) is not a whole number"),
        ({**LOG, "user_id": [b"u", b"\xff"]}, {}, r"column 'user_id', row 2: b'\\xff' is not valid UTF-8"),
    ],
)
def test_bad_interactions_are_named(table, options, message):
    with pytest.raises(ValueError, match=message):
        standard_interactions(pa.table(table), "log.csv", **options)


@pytest.mark.parametrize(
    "table, message",
    [
        ({"item_id": ["a"], "name": ["A"]}, r"items\.csv: no column 'title'; it has item_id, name; map it"),
        (
            {"item_id": ["a", "b", "a"], "title": ["", "", ""]},
            r"items\.csv, column 'item_id', row 3: item 'a' repeats",
        ),
        ({"item_id": ["a", None], "title": ["A", "B"]}, r"column 'item_id', row 2: the id is missing"),
        (
            {**ITEMS, "own": pa.array([{}, None], pa.struct([]))},
            r"items\.csv, column 'own': parquet files cannot hold",
        ),
        ({**ITEMS, "own": pa.array([[{}], None], pa.list_(pa.struct([])))}, "column 'own': parquet files cannot hold"),
        (
            {**ITEMS, "own": pa.array([(1, 2, 3)] * 2, pa.month_day_nano_interval())},
            "column 'own': parquet files cannot",
        ),
        (
            {
                **ITEMS,
                "own": pa.UnionArray.from_sparse(
                    pa.array([0, 1], pa.int8()), [pa.array(["x", "y"]), pa.array([1, 2])]
                ),
            },
            "column 'own': parquet files cannot hold its type",
        ),
        (
            {"B001": ["B002"], "Pen": ["Ink"]},
            r"no column 'item_id'.*has no header, give column_names \(item_column_names",
        ),
        ({**ITEMS, "price": ["1.5", "$2"]}, r"column 'price', row 2: '\$2' \(string\) is not a number"),
        ({"item_id": pa.array([], pa.string()), "title": pa.array([], pa.string())}, "the table has no rows"),
    ],
)
def test_bad_items_are_named(table, message):
    with pytest.raises(ValueError, match=message):
        standard_items(pa.table(table), "items.csv")


def test_broken_utf8_in_text_is_found_in_every_column():
    broken = pa.Array.from_buffers(pa.string(), 2, pa.array([b"ok", b"\xe9"]).buffers())
    for name in ("title", "own"):
        with pytest.raises(ValueError, match=rf"items, column '{name}', row 2: .*UTF-8"):
            standard_items(pa.table({**ITEMS, name: broken}))


def test_ids_of_any_type_become_text():
    table = standard_interactions(
        pa.table({"user_id": [1.0, 2.0], "item_id": pa.array([7, 8], pa.int8()), "behaviour": ["buy", "view"]})
    )
    assert table["user_id"].to_pylist() == ["1", "2"] and table["item_id"].to_pylist() == ["7", "8"]
    ids = pa.array(["a", "b"]).dictionary_encode()
    assert standard_interactions(log(user_id=ids))["user_id"].type == pa.string()


@pytest.mark.parametrize(
    "values, unit, seconds",
    [
        ([1, 2], "s", [1, 2]),
        ([1588687728923, 5], "ms", [1588687728, 0]),
        ([1.9, float("nan")], "s", [1, None]),
        (["1", "2"], "s", [1, 2]),
        (["2020-01-01", "2020-01-01 00:00:01.5"], "s", [1577836800, 1577836801]),
        ([datetime.datetime(2020, 1, 1), None], "s", [1577836800, None]),
        ([datetime.date(2020, 1, 1), None], "s", [1577836800, None]),
    ],
)
def test_timestamps(values, unit, seconds):
    table = standard_interactions(log(timestamp=values), timestamp_unit=unit)
    assert table["timestamp"].to_pylist() == seconds and table["timestamp"].type == pa.int64()


def test_item_text_lists_and_own_columns():
    items = standard_items(
        pa.table(
            {
                **ITEMS,
                "title": [None, "B"],
                "categories": [[["Shop", "Pens"], ["Gifts"]], None],
                "description": [["One.", "Two."], []],
                "price": ["1.5", None],
                "sid": [["<a_1>"], ["<a_2>"]],
                "year": [1999, None],
            }
        )
    )
    assert items.to_pylist() == [
        {"item_id": "a", "title": "", "description": "One. Two.", "categories": "Shop > Pens | Gifts", "price": 1.5,
         "sid": ["<a_1>"], "year": 1999},
        {"item_id": "b", "title": "B", "description": "", "categories": "", "price": None, "sid": ["<a_2>"],
         "year": None},
    ]  # fmt: skip
    # Slices of a larger table have offsets; joining must respect them.
    both = pa.table({**ITEMS, "categories": [[["x"]], [["y", "z"]]]})
    assert standard_items(both.slice(1))["categories"].to_pylist() == ["y > z"]


def test_standard_form_is_a_fixed_point():
    table = standard_interactions(log(timestamp=[1.5, 2.0], split=["train", "test"], rating=[1, 2]))
    assert standard_interactions(table).equals(table)


def test_unknown_items_are_an_error_or_dropped():
    interactions = standard_interactions(pa.table({"user_id": ["u"] * 4, "item_id": ["a", "x", "b", "y"]}))
    items = standard_items(pa.table(ITEMS))
    with pytest.raises(ValueError, match=r"column 'item_id', row 2: item 'x' is not among the items, as in 2 of 4"):
        items_of_interactions(interactions, items, "error")
    kept, rows = items_of_interactions(interactions, items, "drop")
    assert kept["item_id"].to_pylist() == ["a", "b"] and rows.tolist() == [0, 1]
    with pytest.raises(ValueError, match="unknown_items 'skip'"):
        prepare(interactions, items, unknown_items="skip")

"""Columns of every physical type, as text, ids, numbers and seconds."""

import datetime
from decimal import Decimal

import pyarrow as pa
import pytest

from llmrec.catalogue.filters import CatalogueFilter, Filter
from llmrec.data import prepare
from llmrec.data.convert import as_seconds, as_text, column_of, exact_numbers
from llmrec.data.validate import standard_interactions, standard_items

BERLIN = datetime.timezone(datetime.timedelta(hours=2))
MOMENT = datetime.datetime(2014, 4, 7, 10, 51, 9, 277_000)


def chunked(values, kind=None):
    return pa.chunked_array([pa.array(values, kind)])


@pytest.mark.parametrize(
    "kind", [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int8(), pa.string())]
)
@pytest.mark.parametrize(
    "text",
    [
        "2014-04-07T10:51:09Z",
        "2014-04-07T10:51:09.277Z",
        "2014-04-07T10:51:09.277123456789Z",
        "2014-04-07 10:51:09,2",
        "2014-04-07t10:51:09z",
        "2014-04-07T12:51:09+02:00",
        "2014-04-07T12:51:09.277+0200",
        "2014-04-07 12:51:09 +02",
        "2014-04-07 08:21:09-02:30",
        "2014-04-07 10:51:09.277 UTC",
        " 2014-04-07 10:51:09 ",
        "1396867869",
        "1396867869.9",
    ],
)
def test_iso_text_with_zones_and_fractions(text, kind):
    assert as_seconds(chunked([text, None, ""], kind), "s", "log", "t").to_pylist() == [1396867869, None, None]


@pytest.mark.parametrize(
    "values, kind, seconds",
    [
        *(([MOMENT, None], pa.timestamp(unit), [1396867869, None]) for unit in ("ms", "us", "ns")),
        *(
            ([MOMENT.replace(tzinfo=BERLIN)], pa.timestamp(unit, "Europe/Berlin"), [1396860669])
            for unit in ("ms", "ns")
        ),
        ([1396867869277123457], pa.timestamp("ns"), [1396867869]),
        ([datetime.date(2014, 4, 7)], pa.date32(), [1396828800]),
        ([datetime.date(2014, 4, 7)], pa.date64(), [1396828800]),
        ([Decimal("1396867869.9")], pa.decimal128(20, 3), [1396867869]),
        ([-1], pa.timestamp("ms"), [-1]),
        (["1969-12-31T23:59:59.5Z"], pa.string(), [-1]),
        (["2014-04-07", "2014-04-07T10:51"], pa.string(), [1396828800, 1396867860]),
        ([None, None], pa.null(), [None, None]),
        ([1.9, None], pa.float32(), [1, None]),
        (["20140407", "20149999"], pa.string(), [20140407, 20149999]),  # one is no date, so these are seconds
    ],
)
def test_moments_of_every_type(values, kind, seconds):
    assert as_seconds(chunked(values, kind), "s", "log", "t").to_pylist() == seconds


@pytest.mark.parametrize(
    "values, kind, shown",
    [
        (["2014-04-07T10:51:09Z", "2014-04-07T10:51:09+99:99"], pa.string(), "row 2: '2014-04-07T10:51:09\\+99:99'"),
        (["2014-13-07"], pa.string(), "row 1: '2014-13-07'"),
        (["07.04.2014"], pa.string(), "ISO 8601 moment such as"),
        (["5", "0x10"], pa.string(), "row 1: '5' .*ISO 8601|row 2: '0x10' .*ISO 8601"),
        (["", "20140407", "20140408"], pa.string(), "row 2: 20140407 and all others look like dates"),
        (["20140407105109"], pa.string(), "row 1: 20140407105109 and all others look like dates"),
        ([20140407.0, None], pa.float64(), "row 1: 20140407 and all others look like dates"),
        ([0, 10**14], pa.int64(), "row 2: 100000000000000 s lies past the year 5000"),
        ([0, -(10**14)], pa.int64(), "row 2: -100000000000000 s lies before the year 1;"),
        ([1.0, 1396867869.0], pa.float32(), "row 2: 1396867840.0 is a moment that has lost digits as a float"),
        ([datetime.time(1, 2)], pa.time32("s"), "is no moment"),
        ([datetime.timedelta(1)], pa.duration("s"), "is no moment"),
        ([True], pa.bool_(), "is no moment"),
    ],
)
def test_what_is_no_moment_is_named(values, kind, shown):
    with pytest.raises(ValueError, match=f"log, column 't', row .*{shown}|log, column 't', {shown}"):
        as_seconds(chunked(values, kind), "s", "log", "t")


@pytest.mark.parametrize(
    "ids, kind, text",
    [
        (["007", "1.0"], pa.string_view(), ["007", "1.0"]),
        ([b"a", b"b"], pa.binary_view(), ["a", "b"]),
        ([12.0, 123456789012.0], pa.float64(), ["12", "123456789012"]),
        ([1.0, 2.0], pa.float16(), ["1", "2"]),
        ([Decimal("12.00")], pa.decimal128(10, 2), ["12"]),
        ([2**64 - 1], pa.uint64(), ["18446744073709551615"]),
    ],
)
def test_ids_of_every_type(ids, kind, text):
    table = standard_interactions(pa.table({"user_id": pa.array(ids, kind), "item_id": pa.array(ids, kind)}))
    assert table["user_id"].to_pylist() == table["item_id"].to_pylist() == text


@pytest.mark.parametrize(
    "ids, kind, problem",
    [
        ([1.0, 9007199254740992.0], pa.float64(), "row 2: 9007199254740992.0 is an id that has lost digits"),
        ([1.0, 2.0**24], pa.float32(), "row 2: 16777216.0 is an id that has lost digits as a float; give text"),
        ([1.0, 2048.0], pa.float16(), "row 2: 2048.0 is an id that has lost digits as a halffloat"),
        ([Decimal("1.50")], pa.decimal128(10, 2), "row 1: Decimal"),
        (["a", " "], pa.string(), r"row 2: the id is missing \(' '\)"),
        ([None, None], pa.null(), r"row 1: the id is missing \(None\)"),
    ],
)
def test_ids_that_are_none_are_named(ids, kind, problem):
    with pytest.raises(ValueError, match=f"log, column 'user_id', {problem}"):
        standard_interactions(pa.table({"user_id": pa.array(ids, kind), "item_id": ["a"] * len(ids)}), "log")


def test_histories_of_every_list_type_and_an_id_that_is_missing_in_one():
    base = {"user_id": ["u", "v"], "item_id": ["a", "b"]}
    for kind in (pa.list_view(pa.string_view()), pa.large_list(pa.float64()), pa.list_(pa.int64(), 2)):
        lists = pa.array([[1, 2], [3, 4]], pa.list_(pa.int64())).to_pylist()
        values = [[str(x) for x in each] for each in lists] if "string" in str(kind) else lists
        table = standard_interactions(pa.table({**base, "history": pa.array(values, kind)}))
        assert table["history"].to_pylist() == [["1", "2"], ["3", "4"]]
    with pytest.raises(ValueError, match=r"log, column 'history', row 2: the id is missing \(None\)"):
        standard_interactions(pa.table({**base, "history": [["a", "b"], ["c", None]]}), "log")


@pytest.mark.parametrize(
    "lists, text",
    [
        ([["a", None, "b"], None, [], [None]], ["a b", "", "", ""]),
        ([["a", " ", ""]], ["a"]),
        ([[["a", None], None, ["b"], [None]], [None]], ["a b", ""]),
        ([[1.0, float("nan")]], ["1"]),
        ([[{"b": 1}, None]], [""]),
        ([["None"]], ["None"]),  # the user's own word
    ],
)
def test_lists_lose_what_is_missing_in_them_and_nothing_else(lists, text):
    items = {"item_id": list("abcd"[: len(lists)]), "title": lists, "categories": lists}
    table = standard_items(pa.table(items))
    assert table["title"].to_pylist() == text
    paths = [value.replace(" ", " | " if isinstance(lists[0][0], list) else " > ") for value in text]
    assert table["categories"].to_pylist() == paths


def test_text_of_other_types_has_no_words_for_what_is_missing():
    table = pa.table({"item_id": ["a", "b"], "title": [1984.0, float("nan")], "brand": pa.nulls(2)})
    assert standard_items(table)["title"].to_pylist() == ["1984", ""]
    assert standard_items(table)["brand"].to_pylist() == ["", ""]
    assert as_text(chunked([b"ok"]), "x", "y").to_pylist() == ["ok"]


@pytest.mark.parametrize(
    "texts, numbers",
    [
        (["1", "", "-20"], [1, None, -20]),
        (["1.5", "2", "0.1"], [1.5, 2.0, 0.1]),
        (["1999.0", "2001.0"], [1999.0, 2001.0]),
        (["true", "", "false"], [True, None, False]),
        (["True", "False"], [True, False]),
        *(
            ([text, "5"], None)
            for text in "007 0012 1e5 NA nan NaN inf -inf +1 1_000 1,5 0x10 -0 1.50 .5 5. null".split()
        ),
        ([" 1", "5"], None),
        (["12345678901234567890", "5"], None),
        (["0.1234567890123456789", "5"], None),
        (["1.0", "1"], None),
        (["2020-01-01"], None),
        (["", ""], None),
        (["true", "1"], None),
    ],
)
def test_own_columns_become_numbers_only_where_every_value_survives(texts, numbers):
    assert exact_numbers(chunked(texts), "items.csv", "own").to_pylist() == (numbers or texts)


@pytest.mark.parametrize(
    "values, text",
    [
        ([1, "x", None, 2.0, True, 12345678901234567890], ["1", "x", None, "2", "true", "12345678901234567890"]),
        (["flat", ["a", None, {"b": 1}]], [["flat"], ["a", None, None]]),
        (["x", {"b": 1}, float("nan")], ["x", None, None]),
        ([{"b": 1}, {"b": "x"}, None], ['{"b": 1}', '{"b": "x"}', None]),
        ([["a", ["b", "c"]], "d", ["e", "f"]], [[["a"], ["b", "c"]], [["d"]], [["e", "f"]]]),
    ],
)
def test_values_of_several_kinds_become_text(values, text):
    assert column_of(values).to_pylist() == text


def test_view_types_can_be_filtered_after_prepare():
    view = lambda *values: pa.array(values, pa.string_view())  # noqa: E731
    items = pa.table({"item_id": view("a", "b"), "title": view("x", "y"), "colour": view("red", "blue"),
                      "sizes": pa.array([["S"], ["M", None]], pa.list_view(pa.string_view()))})  # fmt: skip
    log = pa.table(
        {"user_id": view("u", "u"), "item_id": view("a", "b"), "timestamp": view("2020-01-01", "2020-01-02")}
    )
    data = prepare(log, items)
    assert data.items.schema.types == [pa.string()] * 3 + [pa.list_(pa.string())]
    mask, _ = CatalogueFilter(data.items)(Filter(where=[("colour", "==", "red")]))
    assert mask.tolist() == [True, False] and data.train["timestamps"].to_pylist() == [[1577836800, 1577923200]]

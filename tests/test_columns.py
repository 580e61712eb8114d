import uuid

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from llmrec.columns import plain_column, plain_table
from llmrec.files import read_parquet

LISTS = pa.list_(pa.string())
DICTIONARY = pa.dictionary(pa.int8(), pa.string())


@pytest.mark.parametrize(
    "values, kind, plain",
    [
        (["a", None], pa.string_view(), pa.string()),
        (["a", None], pa.large_string(), pa.string()),
        (["a", None], DICTIONARY, pa.string()),
        ([None, None], pa.null(), pa.string()),
        ([b"a", None], pa.binary_view(), pa.binary()),
        ([b"ab", None], pa.binary(2), pa.binary()),
        ([["a", None], None, [], ["b"]], pa.list_view(pa.string_view()), LISTS),
        ([["a"], None, ["b", "c"]], pa.large_list_view(pa.large_string()), LISTS),
        ([["a"], None, ["b"]], pa.large_list(DICTIONARY), LISTS),
        ([["a", "b"], None, ["c", None]], pa.list_(pa.string(), 2), LISTS),
        ([[["a"], None], None], pa.large_list(pa.list_view(pa.string_view())), pa.list_(LISTS)),
        ([{"x": "a", "y": 1}, None], pa.struct({"x": pa.string_view(), "y": pa.int8()}), None),
        ([1, None], pa.int8(), pa.int8()),
    ],
)
def test_every_type_becomes_plain_with_its_values(values, kind, plain):
    whole = pa.array([values[-1], *values], kind)  # a slice has offsets of its own
    for column in (whole.slice(1), pa.chunked_array([whole.slice(1, 1), whole.slice(2)])):
        done = plain_column(column)
        assert done.to_pylist() == values
        assert done.type == (plain or pa.struct({"x": pa.string(), "y": pa.int8()}))
        done.validate(full=True)
    assert plain_column(pa.chunked_array([], kind)).type == done.type


def test_extensions_and_run_ends():
    ids = [uuid.UUID(int=7), None]
    assert plain_column(pa.array([ids[0].bytes, None], pa.uuid())).to_pylist() == [str(ids[0]), None]
    flags = pa.ExtensionArray.from_storage(pa.bool8(), pa.array([1, 0, None], pa.int8()))
    assert plain_column(flags).to_pylist() == [True, False, None]
    assert plain_column(pc.run_end_encode(pa.array(["a", "a", "b"]))).to_pylist() == ["a", "a", "b"]


@pytest.mark.parametrize(
    "kind", [pa.string_view(), pa.binary_view(), DICTIONARY, pa.list_view(pa.string_view()), LISTS]
)
def test_views_and_dictionaries_inside_dictionaries_and_run_ends(kind):
    values = {pa.binary_view(): [b"a", None, b"b"]}.get(
        kind, [["a"], None, ["b"]] if "list" in str(kind) else ["a", None, "b"]
    )
    inner = pa.array(values, kind)
    dictionary = pa.DictionaryArray.from_arrays(pa.array([2, 0, None, 1, 2], pa.uint8()), inner)
    runs = pa.RunEndEncodedArray.from_arrays(pa.array([2, 3, 5], pa.int16()), inner)
    for column in (dictionary, runs, pa.RunEndEncodedArray.from_arrays(pa.array([2, 5], pa.int64()), dictionary[:2])):
        lists = pa.ListArray.from_arrays(pa.array([0, 2, 5]), column)
        for encoded in (column, column.slice(1), column.slice(1, 3), column.slice(0, 0), lists, lists.slice(1)):
            done = plain_column(encoded)
            assert done.to_pylist() == encoded.to_pylist() and done.type == plain_column(encoded.slice(0, 0)).type
            done.validate(full=True)


def test_parquet_is_read_in_plain_types_with_its_metadata(tmp_path):
    table = pa.table({"a": pa.array(["x"], pa.string_view()), "b": pa.array([[1.0, 2.0]], pa.list_(pa.float32(), 2))})
    pq.write_table(table.replace_schema_metadata({"llmrec": "{}"}), tmp_path / "t.parquet")
    read = read_parquet(tmp_path / "t.parquet")
    assert read.schema.types == [pa.string(), pa.list_(pa.float32())] and read.to_pylist() == table.to_pylist()
    assert read.schema.metadata[b"llmrec"] == b"{}"
    plain = pa.table({"a": ["x"]})
    assert plain_table(plain)["a"].chunk(0) is plain["a"].chunk(0) or plain_table(plain).equals(plain)

"""CSV, TSV and JSON lines as messy as users have them: nothing is swallowed, merged or reformed without a word."""

import json
import logging

import pyarrow as pa
import pytest

from llmrec.data.sources import load_hub, load_tables
from llmrec.data.validate import standard_interactions, standard_items

HEADER = "user_id,item_id,timestamp\n"


def tables(tmp_path, log, items=None, kind="csv", **options):
    (tmp_path / f"log.{kind}").write_text(log, encoding="utf-8", newline="")
    if items is not None:
        (tmp_path / f"items.{kind}").write_text(items, encoding="utf-8", newline="")
        items = str(tmp_path / f"items.{kind}")
    return load_tables(str(tmp_path / f"log.{kind}"), items, **options)


def hub(tmp_path, log, items=None, kind="csv", **options):
    for name, text in (("log", log), ("items", items)):
        (tmp_path / name).mkdir(exist_ok=True)
        (tmp_path / name / f"train.{kind}").write_text(text or "", encoding="utf-8", newline="")
    arguments = [{"path": str(tmp_path / name)} for name in (["log"] if items is None else ["log", "items"])]
    return load_hub(*arguments, **options)


BOTH = pytest.mark.parametrize("load", [tables, hub])


@BOTH
@pytest.mark.parametrize("kind", ["tsv", "csv"])
def test_a_tsv_has_no_quotes_and_a_csv_that_opens_one_is_refused(load, kind, tmp_path):
    rows = 'item_id,title\na,Low\nb,"Heroes\nc,Lodger\nd,"Low" live\n'
    log = HEADER + 'u,a,1\n"v,b,2\nu,c,3\n"w,d,4\nu,b,5\n'
    if kind == "tsv":
        log, items = load(tmp_path, log.replace(",", "\t"), rows.replace(",", "\t"), kind)
        assert log["user_id"].to_pylist() == ["u", '"v', "u", '"w', "u"]
        assert items["title"].to_pylist() == ["Low", '"Heroes', "Lodger", '"Low" live']
        return
    with pytest.raises(ValueError, match=r"\.csv, row 2: a value begins with \" and is not closed"):
        load(tmp_path, log, rows)
    with pytest.raises(ValueError, match=r"\.csv, row 2: a value begins with"):
        load(tmp_path, HEADER + "u,a,1\n", rows)


def test_quotes_that_swallow_rows_in_a_csv_are_found(tmp_path):
    good = 'item_id,title\na,"Low, ""live""\n\nin Berlin"\n\nb,5" disc\n'
    _, items = tables(tmp_path, HEADER + "u,a,1\n", good)
    assert items["title"].to_pylist() == ['Low, "live"\n\nin Berlin', '5" disc']
    for bad, row in (('a,"Low\nb,Heroes\nc,Lodger', 1), ('a,Low\nb,"Heroes" live\n', 2), ('a,"x\ny"z\nb,"c"\n', 1)):
        with pytest.raises(ValueError, match=rf"items\.csv, row {row}: a value begins with"):
            tables(tmp_path, HEADER + "u,a,1\n", "item_id,title\n" + bad)
    _, items = tables(tmp_path, HEADER + "u,a,1\n", 'item_id,title\na,"Low\nb,Heroes\n', quote_char="")
    assert items["title"].to_pylist() == ['"Low', "Heroes"]


def test_a_tsv_with_quotes_can_say_so_and_is_hinted_at(tmp_path, caplog):
    items = 'item_id\ttitle\na\t"Low ""live"""\nb\t"x\ny"\n'
    log = "user_id\titem_id\nu\ta\n"
    with pytest.raises(ValueError, match=r"items\.tsv cannot be read.*quote_char"):
        tables(tmp_path, log, items, "tsv")
    _, read = tables(tmp_path, log, items, "tsv", quote_char='"')
    assert read["title"].to_pylist() == ['Low "live"', "x\ny"]
    with caplog.at_level(logging.WARNING):
        tables(tmp_path, log, items.replace("\ny", ""), "tsv")
    assert "items.tsv, column 'title', row 1" in caplog.text and "quote_char" in caplog.text


@BOTH
def test_ids_and_text_keep_their_form(load, tmp_path):
    log = HEADER + "001,0042,1\n1,42,2\n1.0,1e5,3\n"
    items = "item_id,title,brand,sku,year,note\n0042,007,0012,00117,1999,NA\n42,NA,nan,1,,x\n1e5,null,1.50,2,2001,\n"
    log, items = load(tmp_path, log, items)
    assert log["user_id"].to_pylist() == ["001", "1", "1.0"] and log["item_id"].to_pylist() == ["0042", "42", "1e5"]
    assert items["title"].to_pylist() == ["007", "NA", "null"] and items["brand"].to_pylist() == [
        "0012",
        "nan",
        "1.50",
    ]
    assert items["sku"].to_pylist() == ["00117", "1", "2"] and items["note"].to_pylist() == ["NA", "x", ""]
    assert items["year"].to_pylist() == [1999, None, 2001]


@BOTH
@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_moments_are_the_same_from_every_format(load, kind, tmp_path):
    moments = ["2014-04-07T10:51:09.277Z", "2014-04-07 12:51:09+02:00", "2014-04-07 10:51:09", ""]
    rows = [{"user_id": "u", "item_id": f"{number}", "timestamp": at} for number, at in enumerate(moments)]
    text = HEADER + "".join(",".join(row.values()) + "\n" for row in rows)
    if kind == "jsonl":
        text = "".join(json.dumps(row) + "\n" for row in rows)
    log, _ = load(tmp_path, text, kind=kind)
    assert log["timestamp"].to_pylist() == [1396867869] * 3 + [None]


@BOTH
def test_json_strings_stay_strings_and_mixed_ids_are_text(load, tmp_path):
    log = '{"user_id": 1, "item_id": "a"}\n{"user_id": "1", "item_id": "2001-01-01"}\n{"user_id": 2.0, "item_id": 7}\n'
    items = (
        '{"item_id": "a", "title": "2001-01-01", "tags": ["2020-01-01"]}\n'
        '{"item_id": "2001-01-01", "title": "1984-01-01", "tags": null}\n'
    )
    log, items = load(tmp_path, log, items, "jsonl")
    assert log["user_id"].to_pylist() == ["1", "1", "2"] and log["item_id"].to_pylist() == ["a", "2001-01-01", "7"]
    assert items["title"].to_pylist() == ["2001-01-01", "1984-01-01"]
    assert items["tags"].to_pylist() == [["2020-01-01"], None]


@BOTH
@pytest.mark.parametrize("first", ['"a"', "1"])
def test_half_a_character_is_named_with_its_file_and_row(load, first, tmp_path):
    good = json.dumps({"item_id": "b", "title": "\U0001f600"})
    log = '{"user_id": "u", "item_id": "b"}\n'
    items = f'{{"item_id": {first}, "title": "x"}}\n{good}\n'
    _, read = load(tmp_path, log, items, "jsonl")
    assert read["title"].to_pylist() == ["x", "\U0001f600"]
    for text in ('"x \\ud83d"', '["x", "\\uDC00 y"]'):
        with pytest.raises(ValueError, match=r"\.jsonl cannot be read: row 3 holds '.ud\w+', one half of a character"):
            load(tmp_path, log, items + f'{{"item_id": "c", "title": {text}}}\n', "jsonl")


def test_json_lists_of_every_kind_and_a_key_that_stands_twice(tmp_path):
    items = (
        '{"item_id": "a", "title": "x", "description": ["One.", null, {"b": 1}, "Two."], "categories": [["A", null]]}'
        "\n"
        '{"item_id": "b", "title": ["y", 2], "description": "flat", "categories": null}\n'
    )
    _, items = tables(tmp_path, '{"user_id": "u", "item_id": "a"}\n', items, "jsonl")
    assert items["title"].to_pylist() == ["x", "y 2"] and items["categories"].to_pylist() == ["A", ""]
    assert items["description"].to_pylist() == ["One. Two.", "flat"]
    for mixed in ("", '{"user_id": 1, "item_id": "a"}\n'):
        with pytest.raises(ValueError, match=r"log\.jsonl.*twice"):
            tables(tmp_path, mixed + '{"user_id": "u", "item_id": "a", "item_id": "b"}\n', kind="jsonl")


@BOTH
def test_a_file_without_a_header_is_named_and_can_have_names(load, tmp_path):
    rows = "A1,0205616461,5.0,1369699200\nA2,0205616461,4.0,1369699201\nA1,0205616462,3.0,1369699203\n"
    mapping = {"user_id": "A1", "item_id": "0205616461", "rating": "5.0", "timestamp": "1369699200"}
    for columns in ({}, mapping):
        with pytest.raises(ValueError, match=r"first line \(A1, .*looks like a row.*column_names"):
            load(tmp_path, rows, columns=columns)
    with pytest.raises(ValueError, match=r"column 'A1', row 2: the value is the column's own name.*column_names"):
        load(tmp_path, "A1,i1\nA2,i2\nA1,i3\n", columns={"user_id": "A1", "item_id": "i1"})
    names = ["user_id", "item_id", "rating", "timestamp"]
    if load is tables:
        log, _ = tables(tmp_path, rows, column_names=names)
        _, items = tables(tmp_path, rows, "0205616461,Pen\n0205616462,Ink\n", column_names=names,
                          item_column_names=["item_id", "title"])  # fmt: skip
        assert items["title"].to_pylist() == ["Pen", "Ink"]
        with pytest.raises(ValueError, match=r"column 'user_id', row 1: the value is the column's own name"):
            tables(tmp_path, "user_id,item_id,rating,timestamp\n" + rows, column_names=names)
    else:
        (tmp_path / "log" / "train.csv").write_text(rows)
        log, _ = load_hub({"path": str(tmp_path / "log"), "column_names": names})
    assert log["user_id"].to_pylist() == ["A1", "A2", "A1"] and log["rating"].to_pylist() == [5.0, 4.0, 3.0]


def test_names_that_pandas_makes_for_columns_without_one_can_be_mapped(tmp_path):
    log, _ = tables(tmp_path, "0,1,2\nu,a,5\n", columns={"user_id": "0", "item_id": "1"})
    assert log.to_pylist() == [{"user_id": "u", "item_id": "a"}]


@BOTH
def test_a_name_that_stands_twice_is_named_with_its_file(load, tmp_path):
    with pytest.raises(ValueError, match=r"\.csv: the header has 'item_id' 2 times"):
        load(tmp_path, "user_id,item_id,item_id\nu,a,b\n")


def test_a_table_with_a_name_twice_is_refused():
    twice = pa.table([["u"], ["a"], ["b"]], names=["user_id", "item_id", "item_id"])
    with pytest.raises(ValueError, match="log: 2 columns are called 'item_id'"):
        standard_interactions(twice, "log")
    with pytest.raises(ValueError, match="items: 2 columns are called 'own'"):
        standard_items(pa.table([["a"], ["A"], ["x"], ["y"]], names=["item_id", "title", "own", "own"]))


def test_a_hub_csv_with_another_delimiter_or_encoding(tmp_path):
    (tmp_path / "log.csv").write_text("user_id;item_id\nJos\u00e9;a\n", encoding="latin-1")
    log, _ = load_hub({"path": str(tmp_path), "delimiter": ";", "encoding": "latin-1"})
    assert log.to_pylist() == [{"user_id": "Jos\u00e9", "item_id": "a"}]
    with pytest.raises(ValueError, match=r"log\.csv cannot be read: .*it is not utf-8: .*encoding: latin-1"):
        load_hub({"path": str(tmp_path), "delimiter": ";"})


def test_what_a_hub_folder_of_two_formats_leaves_out_is_named(tmp_path, caplog):
    (tmp_path / "a.jsonl").write_text('{"user_id": "u", "item_id": "a"}\n')
    load_hub({"path": str(tmp_path)})
    assert "left out" not in caplog.text
    (tmp_path / "b.csv").write_text("user_id,item_id\nv,b\n")
    log, _ = load_hub({"path": str(tmp_path)})
    left_out = "b.csv" if log["user_id"].to_pylist() == ["u"] else "a.jsonl"
    assert f"left out: {tmp_path / left_out}" in caplog.text and "data_files" in caplog.text


def test_lists_of_maps_lose_them_with_a_warning(caplog):
    maps = pa.array([[[("x", "y")]], []], pa.list_(pa.map_(pa.string(), pa.string())))
    items = pa.table({"item_id": ["a", "b"], "title": ["A", "B"], "description": maps})
    assert standard_items(items, "items")["description"].to_pylist() == ["", ""]
    assert "items, column 'description': its lists hold objects" in caplog.text


def test_a_part_of_a_hub_split_and_gz(tmp_path):
    import gzip

    (tmp_path / "log").mkdir()
    with gzip.open(tmp_path / "log" / "train.csv.gz", "wt") as file:
        file.write("user_id,item_id\n" + "".join(f"0{number},a\n" for number in range(4)))
    for split, users in (("train[:50%]", ["00", "01"]), ("train[3:]+train[:1]", ["03", "00"])):
        log, _ = load_hub({"path": str(tmp_path / "log"), "split": split})
        assert log["user_id"].to_pylist() == users
    with pytest.raises(ValueError, match='Unknown split "test"'):
        load_hub({"path": str(tmp_path / "log"), "split": "test"})

import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llmrec.data.sources import SOURCES, load_hub, load_tables
from llmrec.data.sources.tables import find_files

LOG = "reviewerID,sku,when\nu1,007,30\nu1,B2,10\nu2,007,20\n"
ITEMS = "sku,name,colour\n007,Pen,red\nB2,Ink,blue\n"
COLUMNS = {"user_id": "reviewerID", "item_id": "sku", "timestamp": "when"}
ITEM_COLUMNS = {"item_id": "sku", "title": "name"}
ROWS = [
    {"user_id": "u1", "item_id": "007", "timestamp": 30},
    {"user_id": "u1", "item_id": "B2", "timestamp": 10},
    {"user_id": "u2", "item_id": "007", "timestamp": 20},
]


def test_csv_with_a_column_mapping_keeps_zeros_and_own_columns(tmp_path):
    (tmp_path / "log.csv").write_text(LOG)
    (tmp_path / "items.csv").write_text(ITEMS)
    interactions, items = load_tables(
        str(tmp_path / "log.csv"), str(tmp_path / "items.csv"), COLUMNS, item_columns=ITEM_COLUMNS
    )
    assert interactions.to_pylist() == ROWS
    assert items.to_pylist()[0] == {"item_id": "007", "title": "Pen", "colour": "red"}


def test_tsv_gz_and_jsonl_and_a_folder_of_parquet_give_the_same(tmp_path):
    (tmp_path / "log.csv").write_text(LOG)
    expected, _ = load_tables(str(tmp_path / "log.csv"), columns=COLUMNS)
    with gzip.open(tmp_path / "log.tsv.gz", "wt") as file:
        file.write(LOG.replace(",", "\t"))
    records = [{**{own: row[name] for name, own in COLUMNS.items()}, "extra": [1]} for row in ROWS]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    parts = tmp_path / "parts"
    parts.mkdir()
    for number, part in enumerate((records[:2], records[2:])):
        pq.write_table(pa.Table.from_pylist(part), parts / f"part-{number}.parquet")
    (parts / "_SUCCESS").touch()
    for name in ("log.tsv.gz", "log.jsonl", "parts", "parts/*.parquet"):
        interactions, items = load_tables(str(tmp_path / name), columns=COLUMNS)
        assert interactions.equals(expected), name
        assert items.to_pylist() == [{"item_id": "007", "title": ""}, {"item_id": "B2", "title": ""}]


def test_quoted_text_with_line_breaks_and_another_encoding(tmp_path):
    (tmp_path / "log.csv").write_text("user_id,item_id\nu,i\n")
    (tmp_path / "items.csv").write_bytes('item_id,title\ni,"Café,\nlarge"\n'.encode("latin-1"))
    arguments = (str(tmp_path / "log.csv"), str(tmp_path / "items.csv"))
    _, items = load_tables(*arguments, encoding="latin-1")
    assert items["title"].to_pylist() == ["Café,\nlarge"]
    with pytest.raises(ValueError, match=r"items\.csv.*encoding: latin-1"):
        load_tables(*arguments)


def test_files_that_cannot_be_read_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"nowhere\.csv: no such file"):
        load_tables(str(tmp_path / "nowhere.csv"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty: no such file, or a folder without"):
        load_tables(str(tmp_path / "empty"))
    for name, content in (
        ("x.parquet", b"no parquet"),
        ("x.csv.gz", b"no gzip"),
        ("x.jsonl", b"{broken\n"),
        ("x.csv", b"a,b\n1,2\n1,2,3\n"),
        ("empty.csv", b""),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=name.replace(".", r"\.") + " cannot be read"):
            load_tables(str(tmp_path / name))
    (tmp_path / "x.json").write_text('[{"user_id": "u", "item_id": "i"}]')
    with pytest.raises(ValueError, match="one JSON object per line"):
        load_tables(str(tmp_path / "x.json"))
    (tmp_path / "x.xlsx").write_text("")
    with pytest.raises(ValueError, match="unknown ending"):
        load_tables(str(tmp_path / "x.xlsx"))


def test_files_with_different_columns_are_refused(tmp_path):
    (tmp_path / "a.csv").write_text("user_id,item_id,timestamp\nu,i,1\n")
    (tmp_path / "b.csv").write_text("user_id,item_id\nu,i\n")
    with pytest.raises(ValueError, match="some files have the columns timestamp"):
        load_tables([str(tmp_path / "a.csv"), str(tmp_path / "b.csv")])
    assert [path.name for path in find_files(str(tmp_path))] == ["a.csv", "b.csv"]


def test_item_ids_that_repeat_across_files_are_named(tmp_path):
    (tmp_path / "log.csv").write_text("user_id,item_id\nu,i\n")
    for name in ("a", "b"):
        (tmp_path / f"items-{name}.csv").write_text("item_id,title\ni,Pen\n")
    with pytest.raises(ValueError, match="item 'i' repeats"):
        load_tables(str(tmp_path / "log.csv"), str(tmp_path / "items-*.csv"))


@pytest.mark.parametrize("streaming", [False, True])
def test_hub_data_set_from_a_local_folder(tmp_path, streaming, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "log").mkdir()
    (tmp_path / "items").mkdir()
    (tmp_path / "log" / "train.csv").write_text(LOG)
    (tmp_path / "items" / "train.jsonl").write_text('{"sku": "B2", "name": "Ink"}\n{"sku": "007", "name": "Pen"}\n')
    cache = {} if streaming else {"cache_dir": str(tmp_path / "cache")}
    interactions, items = load_hub(
        {"path": str(tmp_path / "log"), **cache},
        {"path": str(tmp_path / "items"), **cache},
        columns=COLUMNS,
        item_columns=ITEM_COLUMNS,
        streaming=streaming,
    )
    assert interactions.sort_by("timestamp").column_names == ["user_id", "item_id", "timestamp"]
    assert interactions["user_id"].to_pylist() == ["u1", "u1", "u2"]
    assert items["title"].to_pylist() == ["Ink", "Pen"]


def test_hub_errors_name_the_data_set(tmp_path):
    with pytest.raises(ValueError, match="needs a path"):
        load_hub({"name": "x"})
    with pytest.raises(ValueError, match="nowhere cannot be loaded"):
        load_hub({"path": str(tmp_path / "nowhere")})


def test_every_source_is_a_function_with_a_docstring():
    for name, loader in SOURCES.items():
        assert callable(loader) and loader.__doc__, name

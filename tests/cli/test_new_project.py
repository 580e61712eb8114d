"""`llmrec new`: the YAML files of a project from a look at a user's files; what is written loads as it says."""

import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from messy_shop import SOURCE_ARGS, write_messy_shop

from llmrec.cli.new import parse, write
from llmrec.data.guessing import lists_written, price_written, ways_of_moments, words_of
from llmrec.data.sources import SOURCES
from llmrec.shipped import folder


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def new(*argv: str) -> dict:
    write(parse(["shop", *argv]))
    return yaml.safe_load(Path("shop/data.yaml").read_text(encoding="utf-8"))


def rows(path: str, header: str, *lines: str) -> str:
    Path(path).write_text("\n".join([header, *lines, ""]), encoding="utf-8")
    return path


def loaded(settings: dict):
    return SOURCES[settings["source"]](**settings["source_args"])


def test_a_shop_as_it_is_needs_no_word(capsys):
    Path("my").mkdir()
    true = write_messy_shop(Path("my"))
    settings = new("--interactions", "my/Bestellungen.csv", "--items", "my/Artikel.csv")
    args = settings["source_args"]
    assert {name: args[name] for name in SOURCE_ARGS} == SOURCE_ARGS and args["delimiter"] == ";"
    interactions, items = loaded(settings)
    assert (len(interactions), len(items)) == (true["events"], true["items"])
    assert items["currency"].unique().to_pylist() == ["EUR"] and items["Gewicht"].type == pa.float64()
    text = Path("shop/data.yaml").read_text(encoding="utf-8")
    assert "    user_id: Kunde # its name; 251 different, such as 'K0000'\n" in text
    assert "    item_id: Artikelnr # 120 different; 100.0% of the interactions' Artikelnr are among them\n" in text
    assert "timestamp: Datum # its name; from 2024-01-" in text and "# Farben, Gewicht: kept" in text
    like = folder("recipes") / "configs" / "own_csv"
    for file in [*like.glob("*.yaml")]:
        made = (Path("shop") / file.name).read_text(encoding="utf-8")
        assert file.stem == "data" or made == file.read_text(encoding="utf-8").replace("own_csv", "shop")
    said = capsys.readouterr().out
    assert "llmrec sft --config shop/sft.yaml\n" in said and "user_id: Kunde" in said


def test_other_shops():
    events = rows("a.csv", "userId,movieId,rating,timestamp", "1,31,2.5,1260759144", "2,31,3,1260759179")
    items = rows("b.csv", "movieId,title,genres", "31,Toy Story,Comedy|Children", "32,Twelve Monkeys,Mystery")
    args = new("--interactions", events, "--items", items)["source_args"]
    assert args["columns"] == {"user_id": "userId", "item_id": "movieId", "timestamp": "timestamp", "rating": "rating"}
    assert args["item_columns"] == {"item_id": "movieId", "title": "title", "categories": "genres"}
    assert args["timestamp_unit"] == "s" and args["item_lists"] == {"categories": {"several": "|"}}
    assert "decimal" not in args and "delimiter" not in args


def test_without_items_semantic_ids_are_of_what_was_bought_together():
    sold = "1\t85123A\tHOLDER\t12/1/2010 8:26\t17850", "2\t71053\tLANTERN\t12/13/2010 8:34\t13047"
    events = rows("a.tsv", "InvoiceNo\tStockCode\tDescription\tInvoiceDate\tCustomerID", *sold)
    settings = new("--interactions", events)
    assert settings["source_args"]["columns"] == {
        "user_id": "CustomerID", "item_id": "StockCode", "timestamp": "InvoiceDate"
    }  # fmt: skip
    assert settings["source_args"]["timestamp_unit"] == "%m/%d/%Y %H:%M" and "items" not in settings["source_args"]
    assert "# InvoiceNo, Description: not used" in Path("shop/data.yaml").read_text()
    assert yaml.safe_load(Path("shop/semids.yaml").read_text())["features"] == [{"kind": "cooccurrence", "dim": 64}]
    assert loaded(settings)[0]["timestamp"].to_pylist() == [1291191960, 1292229240]


def test_parquet_and_what_is_said_wins():
    moments = pa.array([1_400_000_000_000, 1_500_000_000_000], pa.timestamp("ms"))
    columns = {"who": ["a", "b"], "what": ["x", "y"], "day": moments, "behaviour": ["view", "buy"], "n": [1, 2]}
    Path("events").mkdir()
    pq.write_table(pa.table(columns), "events/1.parquet")
    settings = new("--interactions", "events", "--columns", "user_id=who", "item_id=what")
    assert settings["source_args"]["columns"] == {"user_id": "who", "item_id": "what", "timestamp": "day"}
    text = Path("shop/data.yaml").read_text()
    assert "only column whose values are moments; from 2014-05-13 to 2017-07-14" in text
    assert "  # behaviour: used by this name\n  # n: not used\n" in text
    assert loaded(settings)[0]["behaviour"].to_pylist() == ["view", "buy"]
    shutil.rmtree("shop")
    given = ["--columns", "user_id=who", "item_id=what", "timestamp="]
    settings = new("--interactions", "events", *given)
    assert settings["source_args"] == {"interactions": "events", "columns": {"user_id": "who", "item_id": "what"}}
    assert "# no timestamp: the rows stand in the order of time" in Path("shop/data.yaml").read_text()
    assert len(loaded(settings)[0]) == 2


@pytest.mark.parametrize(
    "header, row, more, said",
    [
        ("a,b", "1,2", [], "that it is the user_id; it has the columns a, b; say --columns user_id=COLUMN"),
        ("customer,client,sku", "1,2,3", [], "customer and client could each be the user_id; .* user_id=COLUMN"),
        ("customer,product_name,day", "1,2,3", [], "that it is the item_id; .* say --columns item_id=COLUMN"),
        ("user,item,x", "1,2,3", [], "is the timestamp; .* --columns timestamp=COLUMN, or --columns timestamp= where"),
        ("user,item,time", "1,2,3", [], "column 'time': '3' and the others are moments in no .* say --timestamp_unit"),
        ("user,item,time", "1,2,03/04/2024", [], "fits '%d/%m/%Y' and '%m/%d/%Y': say --timestamp_unit"),
        ("user,item,start_date,end_date", "1,2,2024-01-01,2024-01-02", [], "start_date and end_date could each be"),
        ("user,item,date", "1,2,2024-01-01", ["--columns", "user=x"], "--columns 'user' is not one of user_id"),
        ("user,item,date", "1,2,2024-01-01", ["--columns", "user_id=x"], "user_id=x: a.csv has the columns user, it"),
        ("user,item,date", "1,2,2024-01-01", ["--columns", "user_id"], "--columns user_id: write NAME=COLUMN"),
        (
            "user,item,date",
            "1,2,soon",
            ["--timestamp_unit", "%d.%m.%Y"],
            "'soon' and .* not all .* given '%d.%m.%Y': say",
        ),
        ("user,item,date", "", [], "a.csv has no rows"),
    ],
)
def test_what_cannot_be_guessed_is_asked_for(header, row, more, said):
    with pytest.raises(ValueError, match=said):
        new("--interactions", rows("a.csv", header, row), *more)
    assert not Path("shop").exists()


@pytest.mark.parametrize(
    "header, line, said",
    [
        ("sku,brand", "x,B", "that it is the title; .* say --item_columns title=COLUMN"),
        (
            "sku,name",
            "y,Pen",
            "b.csv: no column holds, each once, most of the item_id, such as 'x' of the interactions",
        ),
        ("one,two,name", "x,x,Pen", "one and two could each be the item_id, .* say --item_columns item_id=COLUMN"),
        ("sku,product_name,article_name", "x,Pen,A pen", "product_name and article_name could each be the title"),
    ],
)
def test_so_it_is_with_items(header, line, said):
    events = rows("a.csv", "customer,sku,date", "1,x,2024-01-01")
    with pytest.raises(ValueError, match=said):
        new("--interactions", events, "--items", rows("b.csv", header, line))
    assert not Path("shop").exists()


def test_of_two_columns_that_hold_the_ids_the_one_of_the_same_name_is_meant():
    events = rows("a.csv", "customer,sku,date", "1,x,2024-01-01")
    args = new("--interactions", events, "--items", rows("b.csv", "code,sku,name", "x,x,Pen"))["source_args"]
    assert args["item_columns"]["item_id"] == "sku"


def test_a_price_that_can_be_read_in_two_ways_is_asked_for(capsys):
    events = rows("a.csv", "customer,sku,date", "1,x,2024-01-01")
    settings = new("--interactions", events, "--items", rows("b.csv", "sku,name,cost,price", 'x,Pen,1,"12,500"'))
    assert "  # price is written in several ways, or in one that can be read in two: set" in capsys.readouterr().out
    with pytest.raises(ValueError, match="for prices like this set price_format"):
        loaded(settings)
    settings["source_args"] |= {"price_format": "{}", "decimal": "."}
    assert loaded(settings)[1]["price"].to_pylist() == [12500.0]


def test_a_header_with_line_breaks_and_a_name_that_looks_like_a_number():
    events = rows("a.csv", 'customer,sku,date,"rat\ning","in\nfull"', "1,x,2024-01-01,5,y")
    items = rows("b.csv", 'sku,name,"pri\nce: EUR","col\nours"', "x,Pen,3,red|blue")
    write(
        parse(
            ["007", "--interactions", events, "--items", items, "--item_columns", "title=name", "price=pri\nce: EUR"]
        )
    )
    settings = yaml.safe_load(Path("007/data.yaml").read_text(encoding="utf-8"))
    assert settings["name"] == "007" and settings["source_args"]["item_lists"] == {"col\nours": {"several": "|"}}
    _, table = loaded(settings)
    assert table["price"].to_pylist() == [3.0] and table["col\nours"].to_pylist() == [["red", "blue"]]


@pytest.mark.parametrize(
    "argv, said",
    [
        (["shop"], "required: --interactions; llmrec new --help"),
        (["shop", "--interactions", "a.csv", "--item", "b.csv"], "unrecognized arguments: --item b.csv; llmrec new"),
    ],
)
def test_flags_of_new_are_asked_for_in_a_line(argv, said):
    with pytest.raises(ValueError, match=said):
        parse(argv)


def test_nobodys_folder_is_written_into():
    events = rows("a.csv", "customer,sku,date", "1,x,2024-01-01")
    rows("shop", "a file")
    with pytest.raises(ValueError, match="shop exists: choose another name, or remove it"):
        new("--interactions", events)
    with pytest.raises(ValueError, match="name the project with letters"):
        write(parse(["my shop: x", "--interactions", events]))
    with pytest.raises(ValueError, match="name the project with letters"):
        write(parse(["..", "--interactions", events]))


def text(*values) -> pa.ChunkedArray:
    return pa.chunked_array([pa.array(values)])


@pytest.mark.parametrize(
    "values, units",
    [
        (["1400000000", "1500000000"], ["s"]),
        (["1400000000000"], ["ms"]),
        (["2014-04-07T10:51:09Z", ""], [None]),
        (["20140407"], ["%Y%m%d"]),
        (["07.04.14"], ["%d.%m.%y"]),
        (["13/04/2014 10:51:00"], ["%d/%m/%Y %H:%M:%S"]),
        (["03/04/2014"], ["%d/%m/%Y", "%m/%d/%Y"]),
        (["12/1/2010 8:26 PM", "12/13/2010 8:26 AM"], ["%m/%d/%Y %I:%M %p"]),
        (["17"], []),
        (["Berlin"], []),
        ([None], []),
    ],
)
def test_ways_of_moments(values, units):
    assert [way.unit for way in ways_of_moments(text(*values).cast(pa.string()))] == units


def test_ways_of_moments_that_are_no_text():
    numbers = text(1_400_000_000, 1_500_000_000)
    assert [way.unit for way in ways_of_moments(numbers)] == ["s"] and not ways_of_moments(text([1]))
    assert [way.unit for way in ways_of_moments(numbers.cast(pa.timestamp("s")))] == [None]
    assert not ways_of_moments(text(5)) and ways_of_moments(text(5), "s")[0].first == "1970-01-01"


def test_prices_lists_and_names():
    assert price_written(text("$ 1,299.00", "$ 3.50", "")) == ("$ {}", ".")
    assert price_written(text("12,50", "1.299,00")) == (None, ",")
    assert price_written(text("1.299 EUR", "3 EUR")) is None and price_written(text("1.299")) is None
    assert price_written(text("3", "", "12")) == (None, None) and price_written(text("3.50")) == (None, ".")
    assert price_written(text(3.5, None)) == (None, None) and price_written(text("3 EUR", "4 USD")) is None
    assert lists_written(text("A>B", "C"), "categories") == ({"path": ">"}, "A>B")
    assert lists_written(text("A > B", "C"), "categories") is None  # as we write them
    assert lists_written(text("red|blue"), None) == ({"several": "|"}, "red|blue")
    assert lists_written(text("Knives & Forks; sharp"), None) is None and lists_written(text(1), None) is None
    assert words_of("reviewerID") == ["reviewer", "id"] and words_of("Kundennr") == ["kunden", "nr"]
    assert words_of("parent_asin") == ["parent", "asin"] and words_of("StockCode") == ["stock", "code"]

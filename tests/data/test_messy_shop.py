"""A shop's own data, from its CSV files to prepared data, by settings alone (tests/messy_shop.py)."""

import gzip
import logging
import re

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from messy_shop import GUEST, SOURCE_ARGS, write_messy_shop

from llmrec.catalogue.semids import SemIDIndex
from llmrec.data import prepare
from llmrec.data.rows import with_columns
from llmrec.data.sources import load_tables
from llmrec.instructions import Catalogue
from llmrec.instructions.wishes import say


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shop")
    return folder, write_messy_shop(folder)


def load(folder, **changes):
    settings = {name: value for name, value in {**SOURCE_ARGS, **changes}.items() if value is not None}
    return load_tables(folder / "Bestellungen.csv", folder / "Artikel.csv", **settings)


def test_the_shop_is_read_as_it_is(shop, caplog):
    folder, true = shop
    interactions, items = load(folder)
    assert (len(interactions), len(items)) == (true["events"], true["items"])
    assert items.column_names == [
        "item_id", "title", "brand", "categories", "price", "Farben", "Gewicht", "currency"
    ]  # fmt: skip
    first = items.slice(0, 1).to_pylist()[0]
    assert first["item_id"] == "00000" and re.fullmatch(r"Büro > \w+ > \w+", first["categories"])
    assert set(items["price"].to_pylist()) == {None, 0.99, 4.5, 12.5, 39.0, 1299.0}
    assert items["currency"].unique().to_pylist() == ["EUR"]
    assert items.schema.field("Farben").type == pa.list_(pa.string()) and items["Farben"].null_count == 0
    assert items["Gewicht"].type == pa.float64() and interactions["rating"].unique().to_pylist() != [None]
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 2 and all("separated by ';'" in message for message in said)


def test_what_is_not_said_is_guessed_aloud_or_an_error_says_what_to_say(shop, caplog):
    folder, _ = shop
    with pytest.raises(ValueError, match=r"'Datum', row 1: .* e\.g\. timestamp_unit: '%d\.%m\.%Y %H:%M'"):
        load(folder, timestamp_unit=None)
    said = r"column 'Preis', row 1: '.* EUR' \(string\) is not a number; .* price_format: '\{\} EUR' and decimal: ','"
    with pytest.raises(ValueError, match=said):
        load(folder, price_format=None, decimal=None)
    with pytest.raises(ValueError, match=r"is not written as price_format: '\{\} \$'; .* price_format: '\{\} EUR'"):
        load(folder, price_format="{} $")
    with pytest.raises(ValueError, match=r"is no number with the decimal '\.'"):
        load(folder, decimal=".")
    with pytest.raises(ValueError, match="it should hold {} once"):
        load(folder, price_format="EUR")
    with pytest.raises(ValueError, match="one column, called 'Kunde;Artikelnr;Datum;Bewertung'; .* delimiter: ';'"):
        load(folder, delimiter=",")
    with pytest.raises(ValueError, match="item_lists names 'Farbe'; the items have"):
        load(folder, item_lists={"Farbe": {"several": "|"}})
    with pytest.raises(ValueError, match="item_lists, 'Farben': give"):
        load(folder, item_lists={"Farben": "|"})
    with pytest.raises(ValueError, match=r"column 'Farben', row 1: .* is no list in JSON"):
        load(folder, item_lists={"Farben": {"several": "json"}})
    caplog.clear()
    _, items = load(folder, decimal=None, item_lists=None)  # 12,50 is plain, and said
    assert 1299.0 in items["price"].to_pylist() and items["Gewicht"].type == pa.string()
    said = "\n".join(record.getMessage() for record in caplog.records)
    assert "column 'Preis'" in said and "are read as numbers with the decimal ','" in said
    assert "is read as one text; item_lists: {categories: …} reads a list: {path: json}" in said


def test_the_guest_and_the_duplicates_are_named_and_counted(shop, caplog):
    folder, true = shop
    interactions, items = load(folder)
    kept = prepare(interactions, items, user_k=3, item_k=2, max_history=None)
    share = f"{100 * true['of_guest'] / true['events']:.1f} % of all interactions"
    assert f"user '{GUEST}' has {share}" in caplog.text and caplog.text.count("shared account") == 1
    numbers = kept.info["statistics"]
    assert numbers["given_interactions"] == true["events"] and numbers["length_max"] > 500
    assert numbers["duplicates"] == true["duplicates"] and "dropped_repeats" not in numbers
    assert 0 < numbers["duplicates_kept"] <= true["duplicates"]

    limited = prepare(
        interactions, items, user_k=3, item_k=2, repeats="drop_duplicates", max_user_interactions=50, max_history=None
    )
    numbers = limited.info["statistics"]
    assert numbers["duplicates_kept"] == 0 and numbers["length_max"] == 50
    assert numbers["dropped_repeats"] == true["duplicates"]
    dropped = sum(count for name, count in numbers.items() if name.startswith("dropped_"))
    assert numbers["interactions"] + dropped == true["events"]
    guest = limited.test.filter(pa.compute.equal(limited.test["user_id"], GUEST))
    latest = interactions.filter(pa.compute.equal(interactions["user_id"], GUEST)).sort_by("timestamp")
    assert guest["timestamp"][0].as_py() == latest["timestamp"][-1].as_py()


def test_duplicates_without_times_cannot_be_told(shop):
    interactions, items = load(shop[0])
    with pytest.raises(ValueError, match="give a column 'timestamp'"):
        prepare(interactions.drop_columns("timestamp"), items, repeats="drop_duplicates")
    assert "duplicates" not in prepare(interactions.drop_columns("timestamp"), items).info["statistics"]


def test_prompts_say_the_shops_currency(shop):
    _, items = load(shop[0])
    index = SemIDIndex(items["item_id"].to_pylist(), np.arange(len(items))[:, None], [len(items)])
    priced = items.filter(pa.compute.equal(items["price"], 12.5))["item_id"][0].as_py()
    assert Catalogue(index, items).facts(priced).price == "12.50 EUR"
    assert Catalogue(index, items).attributes.named("for 12.50 EUR, or $3") == {"12.50 EUR"}
    signed = prepare(*load(shop[0]), currency="€").items
    assert Catalogue(index, signed).facts(priced).price == "€12.50"
    assert Catalogue(index, items.drop_columns("currency")).facts(priced).price == "$12.50"
    assert [say("below=20", currency=each) for each in ("€", "EUR", "$")] == [
        "for less than €20", "for less than 20 EUR", "for less than $20"
    ]  # fmt: skip
    two = with_columns(items, {"currency": pa.array(["EUR", "USD"] * (len(items) // 2))})
    with pytest.raises(ValueError, match="'EUR' and 'USD'; prices are compared"):
        prepare(load(shop[0])[0], two)


def test_frames_go_in_directly(shop):
    interactions, items = load(shop[0])
    made = prepare(interactions, items, user_k=3)
    frame = items.to_pandas().set_index(pd.Index([f"row {n}" for n in range(len(items))]))
    of_frames = prepare(interactions.to_pandas(), frame, user_k=3)
    assert of_frames.train.equals(made.train) and of_frames.test.equals(made.test)
    assert of_frames.items.to_pylist() == made.items.to_pylist()
    with pytest.raises(ValueError, match="items is a list: give a pyarrow table or a data frame"):
        prepare(interactions, [])
    mixed = pd.DataFrame({"user_id": ["a", 1], "item_id": ["00000", "00001"]})
    with pytest.raises(ValueError, match="interactions: .*user_id.* values of one kind"):
        prepare(mixed, items)


@pytest.mark.parametrize(
    "name, sign", [("x.csv", ";"), ("x.csv", "\t"), ("x.csv", "|"), ("x.tsv", ","), ("x.csv.gz", ";")]
)
def test_separators_are_seen(name, sign, tmp_path, caplog):
    text = sign.join(["user_id", "item_id", "when, UTC"]) + "\n" + sign.join(["1", "2", "a, b"]) + "\n"
    if sign == ",":
        text = text.replace(", ", " ")
    (gzip.open if name.endswith("gz") else open)(tmp_path / name, "wt").write(text)
    interactions, _ = load_tables(tmp_path / name)
    assert interactions.to_pylist() == [{"user_id": "1", "item_id": "2"}] and f"separated by {sign!r}" in caplog.text


def test_a_comma_stays_a_comma(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    (tmp_path / "i.csv").write_text('item_id,title,"tags;all"\n1,"a;b",x;y;z\n2,c|d,;\n')
    (tmp_path / "x.csv").write_text("user_id,item_id\nu,1\n")
    _, items = load_tables(tmp_path / "x.csv", tmp_path / "i.csv")
    assert items.column_names == ["item_id", "title", "tags;all"] and not caplog.text


@pytest.mark.parametrize(
    "written, read",
    [
        (["12,50", "1.299,00", ""], [12.5, 1299.0, None]),
        (["12.50", "1,299.00", "NA"], [12.5, 1299.0, None]),
        (["12", "5"], [12.0, 5.0]),
        (["12,500", "3,125"], "'12,500' (string) is not a number; for prices like this set price_format: '{}' and"),
        (["12,50", "3.99"], "'12,50' (string) is not a number"),
        (["ab 12,50", "3"], "price_format: 'ab {}'"),
        (["gratis", "3"], "'gratis' (string) is not a number"),
    ],
)
def test_plain_decimals_are_seen_and_others_refused(written, read, tmp_path):
    rows = "".join(f'{n},t,"{price}"\n' for n, price in enumerate(written))
    (tmp_path / "i.csv").write_text("item_id,title,price\n" + rows)
    (tmp_path / "x.csv").write_text("user_id,item_id\nu,1\n")
    if isinstance(read, str):
        with pytest.raises(ValueError, match=re.escape(read)):
            load_tables(tmp_path / "x.csv", tmp_path / "i.csv")
    else:
        assert load_tables(tmp_path / "x.csv", tmp_path / "i.csv")[1]["price"].to_pylist() == read


@pytest.mark.parametrize(
    "text, rule, read",
    [
        ('["A", "B"]', {"path": "json"}, "A > B"),
        ("['A', 'B']", {"several": "json"}, "A | B"),
        ('[["A", "B"], ["C"]]', {"path": "json"}, "A > B | C"),
        ("A>B|C", {"several": "|", "path": ">"}, "A > B | C"),
        ("A/B", {"path": "/"}, "A > B"),
        ("A|B", {"several": "|"}, "A | B"),
        ('["A>B", "C"]', {"several": "json", "path": ">"}, "A > B | C"),
        ("[]", {"path": "json"}, ""),
        ("", {"path": "json"}, ""),
    ],
)
def test_lists_become_categories(text, rule, read, tmp_path):
    quoted = text.replace('"', '""')
    (tmp_path / "i.csv").write_text(f'item_id,title,categories\n1,t,"{quoted}"\n')
    (tmp_path / "x.csv").write_text("user_id,item_id\nu,1\n")
    _, items = load_tables(tmp_path / "x.csv", tmp_path / "i.csv", item_lists={"categories": rule})
    assert items["categories"].to_pylist() == [read]

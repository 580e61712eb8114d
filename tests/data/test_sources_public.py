"""Every public format, on tiny files in its true form."""

import csv
import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llmrec.data import prepare
from llmrec.data.sources import (
    load_amazon2014,
    load_amazon2018,
    load_amazon2023,
    load_compact,
    load_lcrec,
    load_minionerec,
    load_movielens,
    write_compact,
)
from llmrec.data.sources.amazon import load_review_texts


def write_gz(path, lines):
    with gzip.open(path, "wt", encoding="utf-8") as file:
        file.writelines(line + "\n" for line in lines)
    return str(path)


def review_2014_2018(user, item, time):
    fields = {"reviewerID": user, "asin": item, "helpful": [0, 1], "reviewText": "fine", "overall": 5.0}
    return json.dumps({**fields, "summary": "ok", "unixReviewTime": time, "reviewTime": "09 13, 2009"})


def test_amazon2014_metadata_are_python_literals(tmp_path):
    reviews = write_gz(
        tmp_path / "reviews_Beauty_5.json.gz",
        [review_2014_2018("A1", "0000031887", 1252800000), review_2014_2018("A2", "B01", 1252800001)],
    )
    metadata = write_gz(
        tmp_path / "meta_Beauty.json.gz",
        [
            "{'asin': '0000031887', 'title': \"Girl's Tutu\", 'price': 3.17, 'imUrl': 'http://x/y.jpg', "
            "'related': {'also_bought': ['B00']}, 'salesRank': {'Toys': 211836}, 'brand': 'Coxlures', "
            "'categories': [['Sports & Outdoors', 'Dance'], ['Clothing']]}",
            "{'asin': 'B01', 'description': 'No title'}",
            "{'asin': 'UNSEEN', 'title': 'nobody reviewed this'}",
        ],
    )
    interactions, items = load_amazon2014(reviews, metadata)
    assert interactions.to_pylist()[0] == {
        "user_id": "A1",
        "item_id": "0000031887",
        "timestamp": 1252800000,
        "rating": 5.0,
    }
    tutu, untitled = items.to_pylist()
    assert tutu == {
        "item_id": "0000031887",
        "title": "Girl's Tutu",
        "description": "",
        "brand": "Coxlures",
        "categories": "Sports & Outdoors > Dance | Clothing",
        "price": 3.17,
        "image": "http://x/y.jpg",
    }
    assert (untitled["item_id"], untitled["title"], untitled["price"]) == ("B01", "", None)


def test_amazon2014_executes_nothing(tmp_path):
    reviews = write_gz(tmp_path / "r.json.gz", [review_2014_2018("A1", "B01", 1)])
    metadata = write_gz(tmp_path / "m.json.gz", ["{'asin': 'B01'}", "{'asin': __import__('os').getcwd()}"])
    with pytest.raises(ValueError, match=r"m\.json\.gz, line 2: not the metadata of an item"):
        load_amazon2014(reviews, metadata)


def test_half_a_character_in_metadata_is_named(tmp_path):
    reviews = write_gz(tmp_path / "r.json.gz", [review_2014_2018("A1", "B01", 1)])
    metadata = write_gz(tmp_path / "m.json.gz", ['{"asin": "B00"}', '{"asin": "B01", "title": "x \\ud83d"}'])
    for load in (load_amazon2014, load_amazon2018):
        with pytest.raises(ValueError, match=r"m\.json\.gz cannot be read: line 2 holds '.ud83d', one half"):
            load(reviews, metadata)


def test_amazon2018_first_of_a_repeated_item_counts(tmp_path):
    reviews = write_gz(
        tmp_path / "Office_5.json.gz", [review_2014_2018("A1", "B01", 5), review_2014_2018("A1", "B02", 6)]
    )
    metadata = write_gz(
        tmp_path / "meta_Office.json.gz",
        [
            json.dumps({"asin": "B01", "title": "Pen &amp; Ink", "category": ["Office", "Pens"], "price": "$1,299.00",
                        "description": ["One.", "Two."], "brand": "Acme", "imageURLHighRes": ["http://x/1.jpg"]}),
            json.dumps({"asin": "B01", "title": "Other"}),
            json.dumps({"asin": "B02", "title": "Ink", "price": "$10.99 - $20.00", "description": "flat"}),
        ],
    )  # fmt: skip
    interactions, items = load_amazon2018(reviews, metadata)
    assert interactions["timestamp"].to_pylist() == [5, 6]
    pen, ink = items.to_pylist()
    assert (pen["title"], pen["categories"], pen["price"]) == ("Pen &amp; Ink", "Office > Pens", 1299.0)
    assert (pen["description"], pen["image"]) == ("One. Two.", "http://x/1.jpg")
    assert (ink["price"], ink["description"], ink["categories"], ink["image"]) == (None, "flat", "", "")


def test_amazon2023_parent_asin_and_milliseconds(tmp_path):
    review = {"rating": 4.0, "title": "t", "text": "x", "images": [], "asin": "CHILD", "parent_asin": "P1",
              "user_id": "AE2", "timestamp": 1588687728923, "helpful_vote": 0, "verified_purchase": True}  # fmt: skip
    reviews = write_gz(tmp_path / "Video_Games.jsonl.gz", [json.dumps(review)])
    item = {"main_category": "Video Games", "title": "A Game", "average_rating": 4.5, "features": ["Fun", "Fast"],
            "description": [], "price": "from 12.99", "images": [{"thumb": "t", "large": "l.jpg", "hi_res": None}],
            "store": "Acme", "categories": ["Video Games", "PC"], "details": {}, "parent_asin": "P1"}  # fmt: skip
    metadata = write_gz(tmp_path / "meta_Video_Games.jsonl.gz", [json.dumps(item)])
    interactions, items = load_amazon2023(reviews, metadata)
    assert interactions.to_pylist() == [{"user_id": "AE2", "item_id": "P1", "timestamp": 1588687728, "rating": 4.0}]
    assert items.to_pylist() == [
        {"item_id": "P1", "title": "A Game", "description": "Fun Fast", "brand": "Acme",
         "categories": "Video Games > PC", "price": None, "image": "l.jpg"}
    ]  # fmt: skip


def test_amazon_metadata_lose_what_is_missing_in_lists_and_nothing_else(tmp_path):
    reviews = write_gz(tmp_path / "r.json.gz", [review_2014_2018("A1", f"B{n}", n) for n in range(4)])
    metadata = [
        {"asin": "B0", "title": ["A", None, {"x": 1}], "description": ["One.", None],
         "category": ["Shop", None, "Pens"], "imageURL": [None, "i.jpg"]},
        {"asin": "B1", "title": 1984, "description": None, "brand": ["Acme"], "category": None, "image": [{}]},
        {"asin": "B2", "title": None, "description": ["a", None], "brand": None, "category": [["A", "B"], None]},
        {"asin": "B3", "title": "None", "description": [["c", None], "d"], "price": True},
    ]  # fmt: skip
    newer = write_gz(tmp_path / "m18.json.gz", map(json.dumps, metadata))
    items = load_amazon2018(reviews, newer)[1]
    assert items["title"].to_pylist() == ["A", "1984", "", "None"]
    assert items["description"].to_pylist() == ["One.", "", "a", "c d"]
    assert items["categories"].to_pylist() == ["Shop > Pens", "", "A > B", ""]
    assert items["brand"].to_pylist() == ["", "Acme", "", ""] and items["image"].to_pylist() == ["i.jpg", "", "", ""]
    assert items["price"].null_count == 4
    older = write_gz(tmp_path / "m14.json.gz", [repr({"asin": "B0", "categories": [["A", None, "B"], [None], None]})])
    assert load_amazon2014(reviews, older)[1]["categories"].to_pylist() == ["A > B"]
    deep = write_gz(tmp_path / "deep.json.gz", ["{'asin': 'B0', 'x': " + "[" * 5000 + "]" * 5000 + "}"])
    with pytest.raises(ValueError, match=r"deep\.json\.gz, line 1: not the metadata"):
        load_amazon2014(reviews, deep)
    review = {"rating": 4.0, "user_id": "A", "timestamp": 1588687728923}
    reviews = write_gz(tmp_path / "r.jsonl.gz", [json.dumps({**review, "parent_asin": f"P{n}"}) for n in range(2)])
    metadata = [
        {"parent_asin": "P0", "title": "A", "description": [None, ""], "features": ["Fun", None],
         "images": [None, {"hi_res": None, "large": "l.jpg"}], "categories": [None, "PC"]},
        {"parent_asin": "P1", "title": "B", "description": ["d", {"a": 1}], "images": "no list"},
    ]  # fmt: skip
    items = load_amazon2023(reviews, write_gz(tmp_path / "m.jsonl.gz", map(json.dumps, metadata)))[1]
    assert items["description"].to_pylist() == ["Fun", "d"] and items["categories"].to_pylist() == ["PC", ""]
    assert items["image"].to_pylist() == ["l.jpg", ""]


def test_amazon_review_texts_of_every_year(tmp_path):
    newer = {"text": "Fun.", "asin": "CHILD", "parent_asin": "P1", "user_id": "AE2", "timestamp": 1588687728923}
    older = [review_2014_2018("A1", "B01", 5), json.dumps({"reviewerID": "A2", "asin": "B02", "unixReviewTime": 6})]
    reviews = load_review_texts(write_gz(tmp_path / "Office_5.json.gz", older))
    assert reviews.to_pylist() == [
        {"user_id": "A1", "item_id": "B01", "timestamp": 5, "text": "fine"},
        {"user_id": "A2", "item_id": "B02", "timestamp": 6, "text": None},
    ]
    reviews = load_review_texts(write_gz(tmp_path / "Video_Games.jsonl.gz", [json.dumps(newer)]))
    assert reviews.to_pylist() == [{"user_id": "AE2", "item_id": "P1", "timestamp": 1588687728, "text": "Fun."}]


def test_amazon_errors_name_the_file(tmp_path):
    reviews = write_gz(tmp_path / "r.json.gz", [review_2014_2018("A1", "B01", 1)])
    other = write_gz(tmp_path / "meta_other.json.gz", [json.dumps({"asin": "B99"})])
    with pytest.raises(ValueError, match="describes none of the 1 reviewed items"):
        load_amazon2018(reviews, other)
    (tmp_path / "cut.json.gz").write_bytes(open(reviews, "rb").read()[:-12])
    with pytest.raises(ValueError, match=r"cut\.json\.gz cannot be read"):
        load_amazon2018(str(tmp_path / "cut.json.gz"), other)
    with pytest.raises(ValueError, match=r"cut\.json\.gz cannot be read"):
        load_amazon2018(reviews, str(tmp_path / "cut.json.gz"))
    with pytest.raises(ValueError, match=r"no_file\.json\.gz cannot be read"):
        load_amazon2018(reviews, str(tmp_path / "no_file.json.gz"))
    with pytest.raises(ValueError, match=r"meta_other\.json\.gz: no column 'parent_asin'|no column|missing"):
        load_amazon2023(other, other)
    with gzip.open(tmp_path / "latin.json.gz", "wb") as file:
        file.write('{"asin": "B01", "title": "Café"}'.encode("latin-1"))
    with pytest.raises(ValueError, match=r"latin\.json\.gz cannot be read.*utf-8"):
        load_amazon2018(reviews, str(tmp_path / "latin.json.gz"))


def test_movielens_latest_and_1m_give_the_same(tmp_path):
    (tmp_path / "ml-latest-small").mkdir()
    (tmp_path / "ml-latest-small" / "ratings.csv").write_text(
        "userId,movieId,rating,timestamp\n1,1,4.0,964982703\n1,3,4.5,7\n"
    )
    (tmp_path / "ml-latest-small" / "movies.csv").write_text(
        "movieId,title,genres\n1,Toy Story (1995),Animation|Children's\n"
        '3,"Star Wars: Léon, The",(no genres listed)\n',
        encoding="utf-8",
    )
    (tmp_path / "ml-1m").mkdir()
    (tmp_path / "ml-1m" / "ratings.dat").write_text("1::1::4::964982703\n1::3::4.5::7\n")
    (tmp_path / "ml-1m" / "movies.dat").write_bytes(
        "1::Toy Story (1995)::Animation|Children's\n3::Star Wars: Léon, The::\n".encode("latin-1")
    )
    results = [load_movielens(str(tmp_path / name)) for name in ("ml-latest-small", "ml-1m")]
    assert results[0][0].equals(results[1][0])
    assert results[0][1].equals(results[1][1])
    interactions, items = results[0]
    assert interactions.to_pylist()[0] == {"user_id": "1", "item_id": "1", "timestamp": 964982703, "rating": 4.0}
    assert items.to_pylist() == [
        {"item_id": "1", "title": "Toy Story", "categories": "Animation | Children's", "year": 1995},
        {"item_id": "3", "title": "Star Wars: Léon, The", "categories": "", "year": None},
    ]


def test_movielens_errors(tmp_path):
    with pytest.raises(ValueError, match="no MovieLens folder"):
        load_movielens(str(tmp_path))
    (tmp_path / "ratings.dat").write_text("1::1::4\n")
    with pytest.raises(ValueError, match=r"ratings\.dat cannot be read"):
        load_movielens(str(tmp_path))
    (tmp_path / "ratings.dat").write_text("1::1::4::7\n")
    (tmp_path / "movies.dat").write_text("1::Toy\n")
    with pytest.raises(ValueError, match=r"movies\.dat, line 1"):
        load_movielens(str(tmp_path))


def lcrec_folder(tmp_path):
    (tmp_path / "Games.item.json").write_text(
        json.dumps({"0": {"title": "Pong", "description": "", "brand": "Atari", "categories": "Games,PC"},
                    "1": {"title": "Tetris", "description": "Blocks", "brand": None, "categories": "Games"},
                    "2": {"title": "Snake", "description": "", "brand": "", "categories": ""}})
    )  # fmt: skip
    (tmp_path / "Games.inter.json").write_text(json.dumps({"0": [2, 0, 1, 0], "1": [1, 2]}))
    (tmp_path / "Games.index.json").write_text(
        json.dumps({"0": ["<a_1>", "<b_2>"], "1": ["<a_1>", "<b_3>"], "2": ["<a_0>", "<b_0>", "<c_1>"]})
    )
    return tmp_path


def test_lcrec_leave_one_out_with_ready_made_semids(tmp_path):
    interactions, items = load_lcrec(str(lcrec_folder(tmp_path)), "Games")
    assert interactions.column_names == ["user_id", "item_id", "order"]
    assert items["sid"].to_pylist()[2] == ["<a_0>", "<b_0>", "<c_1>"]
    assert items["brand"].to_pylist() == ["Atari", "", ""]
    data = prepare(interactions, items)
    assert data.train["item_ids"].to_pylist() == [["2", "0"], ["1", "2"]]
    assert data.valid.to_pylist() == [{"user_id": "0", "history": ["2", "0"], "target": "1", "timestamp": None}]
    assert data.test.to_pylist() == [{"user_id": "0", "history": ["2", "0", "1"], "target": "0", "timestamp": None}]


def test_lcrec_fields_of_several_kinds(tmp_path):
    folder = lcrec_folder(tmp_path)
    records = {"0": {"title": 7, "description": ["One.", None, {"a": 1}]}, "1": {"title": None, "description": "flat"},
               "2": {"title": ["x", None], "categories": [["A", None], ["B"]]}}  # fmt: skip
    (folder / "Games.item.json").write_text(json.dumps(records))
    (folder / "Games.inter.json").write_text(json.dumps({"0": [2, "0", 1]}))
    interactions, items = load_lcrec(str(folder), "Games")
    assert interactions["item_id"].to_pylist() == ["2", "0", "1"]
    assert items["title"].to_pylist() == ["7", "", "x"] and items["description"].to_pylist() == ["One.", "flat", ""]
    assert items["categories"].to_pylist() == ["", "", "A | B"]
    (folder / "Games.inter.json").write_text(json.dumps({"0": [2, None, 1]}))
    with pytest.raises(ValueError, match=r"inter\.json, column 'item_id', row 2: the id is missing"):
        load_lcrec(str(folder), "Games")


def test_lcrec_errors(tmp_path):
    folder = lcrec_folder(tmp_path)
    (folder / "Games.index.json").write_text(json.dumps({"0": ["<a_1>"]}))
    with pytest.raises(ValueError, match=r"index\.json: item '1' of Games\.item\.json has no Semantic ID"):
        load_lcrec(str(folder), "Games")
    (folder / "Games.index.json").unlink()
    (folder / "Games.inter.json").write_text(json.dumps({"u": 3}))
    with pytest.raises(ValueError, match=r"inter\.json: user 'u' should have a list"):
        load_lcrec(str(folder), "Games")
    with pytest.raises(ValueError, match=r"Toys\.item\.json does not exist"):
        load_lcrec(str(folder), "Toys")


MINIONEREC = [
    "user_id",
    "history_item_title",
    "item_title",
    "history_item_id",
    "item_id",
    "history_item_sid",
    "item_sid",
]


def minionerec_csv(path, rows):
    titles = {0: 'Pong, the "first"', 1: "Tetris", 2: "Snake"}
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(MINIONEREC)
        for user, history, item in rows:
            sids = [f"<a_{i}><b_{i}>" for i in history]
            writer.writerow(
                [user, [titles[i] for i in history], titles[item], history, item, sids, f"<a_{item}><b_{item}>"]
            )
    return str(path)


def minionerec_files(folder):
    train = minionerec_csv(folder / "train.csv", [("A1", [0], 1), ("A2", [2], 2), ("A1", [0, 1], 2)])
    valid = minionerec_csv(folder / "valid.csv", [("A1", [0, 1, 2], 0)])
    test = minionerec_csv(folder / "test.csv", [("A9", [1], 0)])
    return {"train": train, "valid": valid, "test": test}


def test_minionerec_windows_are_stitched(tmp_path):
    info = tmp_path / "info.txt"
    info.write_text("<a_0><b_0>\tPong\t0\n<a_1><b_1>\tTetris\t1\n<a_2><b_2>\tSnake\t2\n")
    interactions, items = load_minionerec(**minionerec_files(tmp_path), info=str(info))
    assert items["sid"].to_pylist()[1] == ["<a_1>", "<b_1>"]
    data = prepare(interactions, items, split="given")
    assert data.train.select(["user_id", "item_ids", "num_context"]).to_pylist() == [
        {"user_id": "A1", "item_ids": ["0", "1", "2"], "num_context": 1},
        {"user_id": "A2", "item_ids": ["2", "2"], "num_context": 1},
    ]
    assert data.valid.to_pylist() == [{"user_id": "A1", "history": ["0", "1", "2"], "target": "0", "timestamp": None}]
    assert data.info["rules"]["split"] == "windows"


def test_minionerec_with_item_json(tmp_path):
    folder = lcrec_folder(tmp_path)
    paths = {"item_json": str(folder / "Games.item.json"), "index_json": str(folder / "Games.index.json")}
    interactions, items = load_minionerec(**minionerec_files(tmp_path), **paths)
    assert items["description"].to_pylist() == ["", "Blocks", ""] and "sid" in items.column_names
    assert interactions["history"].to_pylist() == [["0"], ["2"], ["0", "1"], ["0", "1", "2"], ["1"]]


def test_minionerec_lists_of_quoted_ids_and_what_is_no_list(tmp_path):
    files = minionerec_files(tmp_path)
    text = (tmp_path / "train.csv").read_text().replace('"[0, 1]"', "\"['0', '1']\"")
    (tmp_path / "train.csv").write_text(text)
    (tmp_path / "info.txt").write_text("<a_0>\tPong\t0\n")
    interactions, _ = load_minionerec(**files, info=str(tmp_path / "info.txt"))
    assert interactions["history"].to_pylist()[2] == ["0", "1"]
    (tmp_path / "train.csv").write_text(text.replace("[2]", "open('x')"))
    with pytest.raises(
        ValueError, match=r"train\.csv, column 'history_item_id', row 2: \"open\('x'\)\" is not a list"
    ):
        load_minionerec(**files, info=str(tmp_path / "info.txt"))
    with pytest.raises(ValueError, match="give one of them"):
        load_minionerec(**files)


def compact_items():
    return pa.table({"item_id": pa.array([0, 1, 2], pa.int32()), "source_id": ["A", "B", "C"], "title": ["", "", ""],
                     "keywords": ["ink", "pen", "cap"], "sid": [["<a_0>"], ["<a_1>"], ["<a_2>"]]})  # fmt: skip


def test_compact_interactions_and_item_columns(tmp_path):
    pq.write_table(compact_items(), tmp_path / "items.parquet")
    log = {"user_id": [7, 7, 7, 8], "item_id": [2, 0, 1, 0], "position": [2, 0, 1, 0]}
    split = pa.array(["test", "train", "valid", "train"]).dictionary_encode()
    pq.write_table(pa.table({**log, "split": split}), tmp_path / "interactions.parquet")
    interactions, items = load_compact(str(tmp_path), {"title": "keywords"})
    assert items["title"].to_pylist() == ["ink", "pen", "cap"] and items["sid"].to_pylist()[0] == ["<a_0>"]
    assert "keywords" not in items.column_names and "source_id" in items.column_names
    data = prepare(interactions, items, split="given")
    assert data.train["item_ids"].to_pylist() == [["0"], ["0"]]
    assert data.test.to_pylist() == [{"user_id": "7", "history": ["0", "1"], "target": "2", "timestamp": None}]


def test_compact_windows_and_back(tmp_path):
    pq.write_table(compact_items(), tmp_path / "items.parquet")
    rows = {"train": ([7, 7], [[0], [0, 1]], [1, 2]), "valid": ([7], [[0, 1, 2]], [0]), "test": ([8], [[2]], [0])}
    for name, (users, histories, targets) in rows.items():
        table = {"user_id": users, "history": histories, "item_id": targets, "timestamp": [None] * len(users)}
        types = pa.schema([("user_id", pa.int32()), ("history", pa.list_(pa.int32())), ("item_id", pa.int32()),
                           ("timestamp", pa.int64())])  # fmt: skip
        pq.write_table(pa.table(table, schema=types), tmp_path / f"{name}.parquet")
    data = prepare(*load_compact(str(tmp_path)), split="given")
    assert data.train["item_ids"].to_pylist() == [["0", "1", "2"]]
    write_compact(data, tmp_path / "again", window=3)
    assert prepare(*load_compact(str(tmp_path / "again")), split="given").fingerprint == data.fingerprint
    (tmp_path / "test.parquet").unlink()
    with pytest.raises(ValueError, match=r"test\.parquet"):
        load_compact(str(tmp_path))


def test_compact_interactions_there_and_back(tmp_path):
    log = pa.table({"user_id": ["u", "v", "u", "u", "v", "v", "u", "w"], "item_id": list("abcabcda"),
                    "timestamp": [4, 1, 2, 9, 5, 3, 7, 7]})  # fmt: skip
    items = pa.table({"item_id": list("abcd"), "title": list("ABCD")})
    data = prepare(log, items)
    write_compact(data, tmp_path / "compact")
    again = prepare(*load_compact(str(tmp_path / "compact")), split="given")
    assert again.fingerprint == data.fingerprint
    columns = pq.read_table(tmp_path / "compact" / "interactions.parquet").column_names
    assert columns == ["user_id", "item_id", "timestamp", "split", "position"]

"""Texts from reviews: what they say, and that nothing of the future is read for them."""

import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from test_teacher import recipe, run  # noqa: F401
from tiny import tiny_data, tiny_index

from llmrec.catalogue.semids import SemIDIndex
from llmrec.instructions import Catalogue, Texts
from llmrec.instructions.reviews import load_reviews, readable, reviews_writer, terms_of
from llmrec.instructions.teacher import Sequences, rows_to_write, write_texts

DATA = tiny_data()
CATALOGUE = Catalogue(tiny_index(DATA), DATA.items)
WORDS = "tent stove lamp rope boots jacket kettle mat torch bottle knife map".split()


def every_review(data=DATA):
    """A review of every interaction, evaluated ones too: two words of the item and two of the user, in a sentence."""
    reviews = {}
    for part, column in (("train", "item_ids"), ("valid", "target"), ("test", "target")):
        for user, items in zip(*(getattr(data, part)[name].to_pylist() for name in ("user_id", column))):
            for item in items if part == "train" else [items]:
                number, own = int(item[-2:]), int(user.split("-")[1])
                text = (
                    f"A {WORDS[number % 12]} with {WORDS[number * 5 % 12]}x. My {WORDS[own % 12]} is {WORDS[own // 4]}"
                )
                reviews[user, item] = text
    return reviews


def table_of(reviews, **columns):
    users, items = zip(*reviews)
    return pa.table({"user_id": users, "item_id": items, "text": list(reviews.values()), **columns})


def texts_of(kind, reviews, folder, **columns):
    """Text by user and item, through a file as the recipe reads it."""
    folder = Path(tempfile.mkdtemp(dir=folder))
    pq.write_table(table_of(reviews, **columns), folder / "reviews.parquet")
    known = readable(load_reviews(folder / "reviews.parquet"), DATA)
    rows = rows_to_write(DATA, kind)
    write_texts(folder, DATA, rows, kind, CATALOGUE, reviews_writer(kind, CATALOGUE, known))
    records = Texts.load(folder).table.to_pylist()
    return {(record["user_id"], record["item_id"]): record["text"] for record in records}


def small(reviews, train, titles=None, semids=None):
    """Of a store of its own: its writer for queries and for preferences, given (user, items) sequences."""
    items = sorted({item for _, walk in train for item in walk})
    table = pa.table({"item_id": items, "title": [(titles or {}).get(item, "") for item in items]})
    index = SemIDIndex(items, np.arange(len(items))[:, None], [len(items)])
    data = tiny_data()
    users, walks = zip(*train)
    data.train = pa.table({"user_id": users, "item_ids": walks})
    known = readable(table_of(reviews), data)
    return [reviews_writer(kind, Catalogue(index, table), known) for kind in ("query", "preference")]


def test_terms():
    text = "I love this tent, the light poles don't break! Poles: 2 light-poles (café)"
    words = ["love", "tent", "light", "poles", "break", "poles", "light", "poles", "café"]
    assert sorted(terms_of(text)) == sorted([*words, "light poles", "light poles"])
    assert terms_of("the of it's 12") == []


def test_a_query_says_what_tells_an_item_apart_and_neither_its_title_nor_a_semid():
    train = [(f"u{n}", ["lamp", "tent", "mat", "rope"]) for n in range(3)]
    reviews = {}
    for user, walk in train:
        for item in walk:
            reviews[user, item] = f"A good {item}"
    reviews["u0", "lamp"] = "A good lamp. Warm white shade, really good, <a_0> rare"
    reviews["u1", "lamp"] = "Good lamp. Warm white shade"
    reviews["u2", "mat"] = "good, with a lamp. Warm white shade"
    reviews["u2", "rope"] = "Good, a lamp"
    query, _ = small(reviews, train)
    asked = lambda item: query([{"about": item}], [0])[0]  # noqa: E731
    # `lamp` is said most often, but by three of four items, `rare` and `really` by one alone, `good` by all.
    assert asked("lamp") == "warm white shade lamp"
    assert asked("mat") == "warm white shade lamp" and asked("tent") == "" and asked("nothing") == ""
    query, _ = small(reviews, train, titles={"lamp": "Shade", "mat": "Warm White Shade Lamp"})
    assert asked("lamp") == "warm white lamp" and asked("mat") == "warm white shade"


def test_a_preference_says_what_the_history_speaks_of_and_few_others_do():
    train = [("me", ["a", "b", "c", "d"]), ("you", ["a", "b"]), ("they", ["a", "b"]), ("we", ["a", "b"])]
    reviews = {("me", "a"): "Light poles, nice", ("me", "b"): "Light poles again", ("me", "c"): "Nice zipper",
               ("me", "d"): "Loud music", ("you", "a"): "Light poles", ("they", "a"): "Zipper, nice. Loud music",
               ("you", "b"): "Nice", ("we", "a"): "Nice, loud music"}  # fmt: skip
    _, preference = small(reviews, train)
    row = {"user_id": "me", "history": ["a", "b", "c"], "targets": ["d"], "time": None}
    said = preference([row, row | {"history": ["c"]}, row | {"user_id": "nobody"}], [0, 1, 2])
    assert said == ["Speaks of light poles and zipper in reviews", "Speaks of zipper in reviews", ""]


def test_no_review_of_the_target_or_of_later_changes_a_preference(tmp_path):
    reviews = every_review()
    before = texts_of("preference", reviews, tmp_path)
    assert len(before) == 40 and len(set(before.values())) > 20
    rows = Sequences(DATA.train).rows(rows_to_write(DATA, "preference"))
    for row in rows[::7]:
        user, kept = row["user_id"], (row["user_id"], row["history"][-1])
        changed = dict(reviews)
        later = [key for key in reviews if key[0] == user and key[1] not in row["history"]]
        assert len(later) == 3  # the target, and what validation and test ask for
        for place, key in enumerate(later):
            changed[key] = f"{WORDS[place]} {WORDS[place + 3]} quite another tent"
        assert texts_of("preference", changed, tmp_path)[kept] == before[kept]
        for key in later:
            del changed[key]
        assert texts_of("preference", changed, tmp_path)[kept] == before[kept]
        known = {**reviews, (user, row["history"][0]): f"{WORDS[-1]} {WORDS[-2]}"}
        assert texts_of("preference", known, tmp_path)[kept] != before[kept]


def test_no_review_of_an_evaluated_interaction_is_read(tmp_path):
    reviews = every_review()
    walks = zip(DATA.train["user_id"].to_pylist(), DATA.train["item_ids"].to_pylist())
    trained = {(user, item) for user, items in walks for item in items}
    changed = {key: text if key in trained else "tent stove lamp" for key, text in reviews.items()}
    assert changed != reviews
    for kind in ("query", "preference"):
        texts = texts_of(kind, reviews, tmp_path)
        assert texts == texts_of(kind, changed, tmp_path) and len(texts) >= 24


def test_reviews_of_an_unknown_time_are_not_read(tmp_path):
    """Of an item that the user took again, in training or in evaluation, or reviewed twice."""
    data = tiny_data()
    walks = data.train["item_ids"].to_pylist()
    walks[0][4] = walks[0][1]
    data.train = data.train.set_column(1, "item_ids", pa.array(walks))
    tests = data.test["target"].to_pylist()
    tests[0] = walks[0][2]
    data.test = data.test.set_column(2, "target", pa.array(tests))
    keys = [("user-0", item) for item in walks[0][:4]]
    reviews = table_of(dict.fromkeys([*keys, ("user-1", "item-99")], "tent"))
    assert readable(reviews, data).select(["user_id", "item_id"]).to_pylist() == [
        {"user_id": "user-0", "item_id": item} for item in sorted([walks[0][0], walks[0][3]])
    ]
    assert readable(pa.concat_tables([reviews, reviews.slice(0, 1)]), data)["item_id"].to_pylist() == [walks[0][3]]
    with pytest.raises(ValueError, match="none of the 1 reviews can be read: their user_id and item_id should be"):
        readable(reviews.slice(1, 1), data)


def test_reviews_that_are_dated_later_than_the_target_are_not_read(tmp_path):
    row = Sequences(DATA.train).rows(rows_to_write(DATA, "preference"))[3]
    kept, late = (row["user_id"], row["history"][-1]), (row["user_id"], row["history"][0])
    reviews = every_review()
    other = next(key for key in reviews if key[0] != row["user_id"])
    reviews |= {late: "zebra stripes", other: "zebra stripes"}
    assert "zebra stripes" in texts_of("preference", reviews, tmp_path)[kept]
    on_time = [5] * len(reviews)  # when the last training target was taken
    assert "zebra stripes" in texts_of("preference", reviews, tmp_path, timestamp=on_time)[kept]
    too_late = [6 if key == late else 5 for key in reviews]
    dated = texts_of("preference", reviews, tmp_path, timestamp=too_late)
    assert "zebra stripes" not in dated[kept]
    changed = {**reviews, late: "torch knife kettle"}
    assert texts_of("preference", changed, tmp_path, timestamp=too_late)[kept] == dated[kept]


@pytest.mark.parametrize(
    "columns, message",
    [
        ({"user_id": ["u"], "item_id": ["i"]}, "reviews.parquet: no column 'text'; it has user_id, item_id"),
        ({"user_id": ["u"], "text": ["t"]}, "no column 'item_id'"),
        ({"user_id": ["u"], "item_id": ["i"], "text": ["t"], "timestamp": [10**12]}, "lies past the year 5000"),
    ],
)
def test_bad_tables_are_named(columns, message, tmp_path):
    pq.write_table(pa.table(columns), tmp_path / "reviews.parquet")
    with pytest.raises(ValueError, match=message):
        load_reviews(tmp_path / "reviews.parquet")


def test_the_recipe_writes_them_and_again_where_they_change(recipe, tmp_path):  # noqa: F811
    reviews = every_review()
    fields = {"source": "reviews", "reviews": str(tmp_path / "reviews.parquet"), "kind": "query"}
    pq.write_table(table_of(reviews), tmp_path / "reviews.parquet")
    rows = run(recipe, tmp_path, **fields)
    assert len(rows) == 24 and all(row["kind"] == "query" and not row["user_id"] for row in rows)
    assert {(row["user_id"], row["item_id"]): row["text"] for row in rows} == texts_of("query", reviews, tmp_path)
    assert run(recipe, tmp_path, **fields) == rows
    key = next(iter(reviews))
    pq.write_table(table_of({**reviews, key: "changed"}), tmp_path / "reviews.parquet")
    with pytest.raises(ValueError, match=r"other settings \(reviews_read\)"):
        run(recipe, tmp_path, **fields)
    with pytest.raises(ValueError, match="reviews say no kind 'rationale': they give query and preference"):
        run(recipe, tmp_path, **fields | {"kind": "rationale", "output_dir": str(tmp_path / "other")})

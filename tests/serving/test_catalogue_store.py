"""Items come, change and go while a model serves: what holds after any row of changes, and what is refused."""

import datetime
import json
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from serving.living_catalogue import (
    bare,
    change,
    opened_with_snapshot,
    records,
    roll_back,
    row,
    same,
    write_living_folder,
)
from tiny import tiny_data, tiny_index

from llmrec import LLMRecommender
from llmrec.catalogue.filters import CatalogueFilter, Filter
from llmrec.catalogue.lifecycle import VERSION_COLUMN
from llmrec.files import read_json, write_json
from llmrec.models.folder import CONFIG, semids_table
from llmrec.serving.http.service import Service
from llmrec.serving.living_catalogue import store as store_module
from llmrec.serving.living_catalogue.store import CatalogueStore, Changes, apply_records, load_version

TITLES = ["red gadget number 7", "green gadget number 8", "blue gadget", "lamp"]
NEW = {"item_id": "new", "title": "red gadget number 77"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_living_folder(tmp_path_factory.mktemp("living") / "model")


@pytest.fixture
def store(folder, tmp_path):
    with CatalogueStore(folder, tmp_path / "log") as store:
        yield store


def random_changes(data, version):
    """Some items of a few that come and go, and a few of the first version."""
    here = {
        item for item in [f"item-{i:02d}" for i in range(4)] + [f"new-{i}" for i in range(4)] if item in version.index
    }
    items = data.draw(
        st.lists(st.sampled_from([*sorted(here), "new-0", "new-1", "new-2", "new-3"]), min_size=1, unique=True)
    )
    removed = [item for item in items if item in here and data.draw(st.booleans())]
    put = []
    for item in items:
        if item not in removed:
            columns = {"title": data.draw(st.sampled_from(TITLES))}
            if data.draw(st.booleans()):
                columns["price"] = data.draw(st.none() | st.floats(-10, 10, width=16))
            put.append({"item_id": item, **columns})
    return Changes(put, removed)


@given(data=st.data())
@settings(deadline=None, max_examples=20)
def test_whatever_happens_versions_come_back_and_nobody_moves(folder, tmp_path_factory, data):
    directory = tmp_path_factory.mktemp("log")
    store = CatalogueStore(folder, directory)
    versions, content, made = {0: store.current}, {0: contents(store.current)}, []
    own = {item: store.current.index.encode(item) for item in store.current.index.items}
    owners = {semid: item for item, semid in own.items()}
    for _ in range(data.draw(st.integers(1, 8))):
        before = store.current
        kind = data.draw(st.sampled_from(["change", "change", "change", "roll back", "snapshot", "reopen"]))
        if kind in ("snapshot", "reopen"):
            store.close()
            store = (opened_with_snapshot if kind == "snapshot" else CatalogueStore)(folder, directory)
            assert same(store.current, before)
        elif kind == "roll back" and len(versions) > 1:
            number = data.draw(st.sampled_from(sorted(versions)[:-1]))
            made.append(roll_back(store, number))
            assert same(store.current, versions[number], number=False)
            assert store.history()[-1]["rollback_of"] == number
        else:
            changes = random_changes(data, before)
            made.append(change(store, changes))
            expected = contents(before)
            for item in changes.remove:
                del expected[item]
            for put in changes.put:
                known = expected.setdefault(put["item_id"], dict.fromkeys(before.items.column_names))
                expected[put["item_id"]] = {**known, **put}
            assert contents(store.current) == expected
        current = store.current
        versions[current.number], content[current.number] = current, contents(current)
        assert same(load_version(folder, directory), current)
        for item in current.index.items:
            semid = current.index.encode(item)
            assert own.setdefault(item, semid) == semid and owners.setdefault(semid, item) == item
        assert current.index.level_tokens == versions[0].index.level_tokens
        assert set(current.index.info.get("reserved", {})) == set(own) - set(current.index.items)
    assert all(same(store.version(number), version) for number, version in versions.items())
    assert all(contents(version) == content[number] for number, version in versions.items())
    assert records(folder, directory) == made == json.loads(json.dumps(made))
    step = versions[0]
    for record in made:
        step = apply_records(step, [json.loads(json.dumps(record))])
        assert same(step, versions[step.number])
    assert same(apply_records(versions[0], made), store.current)
    store.close()


def contents(version):
    return {entry["item_id"]: entry for entry in version.items.to_pylist()}


def test_a_change_of_columns_leaves_the_index_alone(store):
    before = store.current
    record = change(
        store, Changes([{"item_id": "item-03", "price": 9, "brand": None}, {"item_id": "item-01", "price": 1}])
    )
    assert store.current.index is before.index and record["remove"] == []
    assert store.current.items["title"].equals(before.items["title"])
    assert row(store.current, "item-03") == {**row(before, "item-03"), "price": 9.0, "brand": None}
    assert row(before, "item-03")["price"] == 3.0  # whoever began with it finishes with it
    cheap = CatalogueFilter(store.current.items)(Filter(where=[("price", "<", 2.0)]))[0]
    assert np.flatnonzero(cheap).tolist() == [0, 1]


def test_a_version_is_seen_only_when_it_is_committed(folder, store, tmp_path):
    first = store.prepare(Changes(remove=["item-00"]))
    second = store.prepare(Changes(remove=["item-01"]))
    assert store.current.number == 0 and load_version(folder, tmp_path / "log").number == 0
    assert "item-01" not in second.version.index and "item-00" in second.version.index
    assert store.commit(second) == second.record and store.current is second.version
    with pytest.raises(ValueError, match="version 1 was prepared after version 0, but version 2 is current now"):
        store.commit(first)
    third = store.prepare_rollback(0)
    assert (third.record["number"], third.record["parent"], third.record["rollback_of"]) == (3, 2, 0)
    store.commit(third)
    assert [entry["version"] for entry in store.history()] == [2, 3]
    with pytest.raises(ValueError, match="the record of version 3 follows version 2, not 3"):
        apply_records(store.current, [third.record])
    with pytest.raises(ValueError, match="version 3 is the current one"):
        roll_back(store, 3)
    for number in (1, 4):
        with pytest.raises(ValueError, match=f"no catalogue version {number}; the last one before it is"):
            roll_back(store, number)


def test_writers_of_one_process_wait_for_each_other(folder, tmp_path):
    store = CatalogueStore(folder, tmp_path)
    service = Service(store, lambda version: None)
    with ThreadPoolExecutor(4) as pool:
        changes = [Changes([{"item_id": f"item-{i % 24:02d}", "price": float(i)}]) for i in range(40)]
        numbers = [record["number"] for record in pool.map(service.change, changes)]
    assert sorted(numbers) == list(range(1, 41)) == [entry["version"] for entry in store.history()]
    current = store.current
    store.close()
    assert same(load_version(folder, tmp_path), current)
    with pytest.raises(ValueError, match="this catalogue is closed; open it again"):
        change(store, changes[0])


def test_an_item_comes_back_with_its_semantic_id_and_without_its_old_columns(store):
    semid = store.current.index.encode("item-07")
    change(store, Changes(remove=["item-07"]))
    assert store.current.index.encode("item-07") == semid and "item-07" not in store.current.index
    change(store, Changes(put=[{"item_id": "item-07", "title": "again"}]))
    assert store.current.index.items[-1] == "item-07" and store.current.index.encode("item-07") == semid
    assert row(store.current, "item-07")["brand"] is None and store.current.index.info["reserved"] == {}
    own = store.current.index.tokens_of_row(23)
    change(store, Changes(remove=["item-07"]))
    with pytest.raises(ValueError, match="item 'item-07' had the semid .* and gets it back: leave semid out"):
        store.prepare(Changes([{"item_id": "item-07", "title": "x", "semid": ["<a_0>", "<b_0>", "<c_9>"]}]))
    change(store, Changes([{"item_id": "item-07", "title": "x", "semid": own}]))
    assert store.current.index.encode("item-07") == semid


def test_an_item_of_an_updated_folder_keeps_the_version_it_came_with(tmp_path):
    items = tiny_data().items.append_column(VERSION_COLUMN, pa.array([1] * 23 + [2], pa.int32()))
    index = tiny_index(tiny_data())
    index.info["version"] = 2
    with CatalogueStore(bare(tmp_path / "second", index, items)) as store:
        change(store, Changes([{**NEW, "semid": ["<a_5>", "<c_3>"]}], ["item-23", "item-22"]))
        assert row(store.current, "new")[VERSION_COLUMN] == 3
        assert store.current.index.info["reserved_versions"] == {"item-23": 2}
        change(store, Changes([{"item_id": item, "title": "back"} for item in ("item-23", "item-22")], ["new"]))
        assert (
            row(store.current, "item-23")[VERSION_COLUMN] == 2 and row(store.current, "item-22")[VERSION_COLUMN] == 1
        )
        assert store.current.index.info["reserved_versions"] == {"new": 3}
        with pytest.raises(ValueError, match=f"column '{VERSION_COLUMN}': the catalogue has"):
            store.prepare(Changes([{"item_id": "item-01", VERSION_COLUMN: 1}]))


def test_columns_of_many_types(tmp_path):
    items = tiny_data().items
    n = items.num_rows
    day = datetime.date(2024, 2, 29)
    noon = datetime.datetime(2024, 2, 29, 12, 0, 0, 500, datetime.UTC)
    further = {
        "stock": pa.array(range(n), pa.int16()),
        "in_stock": pa.array([True] * n),
        "tags": pa.array([["a", "b"], None, []] * (n // 3), pa.list_(pa.string())),
        "sizes": pa.array([[1, 2]] * n, pa.list_(pa.int32())),
        "since": pa.array([day] * n),
        "seen": pa.array([noon] * n, pa.timestamp("us", "UTC")),
        "cost": pa.array([Decimal("1.50")] * n, pa.decimal128(9, 2)),
        "colour": pa.array(["red"] * n).dictionary_encode(),
        "vector": pa.array([[0.5, 1.0]] * n, pa.list_(pa.float32())),
        "raw": pa.array([b"\0"] * n),
    }
    for name, column in further.items():
        items = items.append_column(name, column)
    folder = bare(tmp_path / "types", tiny_index(tiny_data()), items)
    values = {
        **{"stock": 7, "in_stock": False, "tags": ["c"], "sizes": [], "since": "2025-01-01"},
        **{"seen": "2025-01-01T00:00:00Z", "cost": "2.25", "colour": "blue", "vector": [2, 0.1]},
    }
    with CatalogueStore(folder) as store:
        start = store.current
        change(store, Changes([{"item_id": "item-04", **values}]))
        now = row(store.current, "item-04")
        assert now["since"] == datetime.date(2025, 1, 1) and now["cost"] == Decimal("2.25")
        assert now["seen"] == datetime.datetime(2025, 1, 1, tzinfo=datetime.UTC)
        assert (now["stock"], now["in_stock"], now["tags"], now["colour"]) == (7, False, ["c"], "blue")
        assert now["vector"] == [2.0, np.float32(0.1)] and now["raw"] == b"\0"
        wrong = {
            **{"stock": [1.5, True, "7", 10**9], "in_stock": [1, "yes"], "tags": ["ab", [1]], "sizes": [[1.5], 3]},
            **{"since": ["soon", 3], "seen": ["2025-01-01 00:00"], "cost": ["dear", "1.234"], "colour": [3]},
            **{"vector": [[float("nan")], ["x"]], "raw": ["x"], "price": [True, "1", float("inf"), [1.0], {}]},
            **{"title": [None, 3, "\ud800"]},
        }
        for name, value in ((name, value) for name, values in wrong.items() for value in values):
            changes = Changes([{"item_id": "item-03", "price": 1.0}, {"item_id": "item-04", name: value}])
            with pytest.raises(ValueError, match=f"item 'item-04', column '{name}'"):
                store.prepare(changes)
        current = store.current
    assert same(load_version(folder), current)
    with CatalogueStore(folder) as store:
        roll_back(store, 0)
        assert same(store.current, start, number=False)
        change(store, Changes(remove=["item-04"]))
        with pytest.raises(ValueError, match="column 'raw' of type binary cannot be written"):
            roll_back(store, 0)


GIVEN = {**NEW, "embedding": [0.0] * 8}
REFUSED = [
    (Changes(), "nothing to change"),
    (Changes(remove=["nobody"]), "item 'nobody' is to be removed, but is not in the catalogue"),
    (Changes(remove=["item-01", "item-01"]), "'item-01' stands twice in remove"),
    (Changes(remove=[f"item-{i:02d}" for i in range(24)]), "remove names all items"),
    (Changes(remove=[7]), r"remove\[0\] is 7"),
    (Changes([NEW, NEW]), "'new' stands twice in put"),
    (Changes([{"item_id": "item-01", "price": 1.0}], ["item-01"]), "'item-01' stands in put and in remove"),
    (Changes(["item-01"]), r"put\[0\] is 'item-01', it should be an item's columns"),
    (Changes([{"title": "x"}]), r"put\[0\].item_id is None"),
    (Changes([{"item_id": 12, "title": "x"}]), r"put\[0\].item_id is 12"),
    (Changes([{"item_id": " ", "title": "x"}]), r"put\[0\].item_id is ' '"),
    (Changes([{"item_id": "\ud800", "title": "x"}]), r"put\[0\].item_id is "),
    (Changes([{"item_id": "item-01"}]), "'item-01' is known and no column of it is given"),
    (Changes([{"item_id": "item-01", "colour": "red"}]), "item 'item-01', column 'colour': the catalogue has"),
    (Changes([{**NEW, "codes": [1, 2, 3]}]), "item 'new', column 'codes': the catalogue has"),
    (Changes([{"item_id": "new", "price": 1.0}]), "'new' is new and has no title"),
    (Changes([{**NEW, "price": "cheap"}]), "item 'new', column 'price': 'cheap' is not double"),
    (Changes([{**NEW, "embedding": [1.0] * 7}]), "'new' gets no Semantic ID: features have 7 dimensions"),
    (
        Changes([GIVEN, {**GIVEN, "item_id": "b", "embedding": [1.0]}]),
        "item 'b': its embedding holds 1 numbers, not 8",
    ),
    (Changes([{**NEW, "embedding": [float("nan")] * 8}]), "item 'new': embedding is .* list of finite numbers"),
    (Changes([{**NEW, "embedding": [10**400] * 8}]), "item 'new': embedding is"),
    (Changes([{**NEW, "embedding": "abc"}]), "item 'new': embedding is 'abc'"),
    (Changes([{**NEW, "embedding": []}]), "item 'new': embedding is"),
    (Changes([{**NEW, "semid": "<a_1>"}]), "item 'new': semid is '<a_1>', it should be a list of tokens"),
    (Changes([{**NEW, "semid": []}]), "item 'new': semid is"),
    (Changes([{**NEW, "semid": ["<a_4>"]}]), "item 'new': '<a_4>' of its semid is no token"),
    (Changes([{**NEW, "semid": ["<b_1>", "<a_1>"]}]), "item 'new': '<a_1>' of its semid is no token of a level after"),
    (Changes([{**NEW, "semid": ["<a_1>", "<b_1>", "<c_1>", "<d_1>"]}]), "item 'new': '<d_1>'"),
    (
        Changes([{**NEW, "semid": ["<a_1>", "<c_9>"]}, {**NEW, "item_id": "b", "semid": ["<a_1>", "<c_9>"]}]),
        "item 'b': item 'new' has or had its semid",
    ),
    (
        Changes([{"item_id": "item-01", "price": 1.0, "semid": ["<a_0>"]}]),
        "item 'item-01' has the semid .* and keeps it",
    ),
]


@pytest.mark.parametrize("changes, message", REFUSED, ids=range(len(REFUSED)))
def test_what_does_not_fit_is_refused_and_leaves_no_trace(store, changes, message):
    before, written = store.current, records(store.folder, store.directory)
    with pytest.raises(ValueError, match=message):
        change(store, changes)
    assert store.current is before and records(store.folder, store.directory) == written
    assert change(store, Changes([{"item_id": "item-01", "price": 1.0}]))["number"] == store.current.number


def test_a_folder_without_recorded_fingerprint_is_known_by_its_index(tmp_path):
    folder = bare(tmp_path / "old", tiny_index(tiny_data()))
    config = read_json(folder / CONFIG)
    with CatalogueStore(folder) as store:
        change(store, Changes(remove=["item-00"]))
    write_json(folder / CONFIG, {**config, "semid_fingerprint": ""})
    assert load_version(folder).number == 1
    write_json(folder / CONFIG, config)
    shuffled = semids_table(folder).take(list(reversed(range(24))))
    tiny_index(tiny_data()).aligned(shuffled).save(
        folder / "semids.parquet", shuffled.drop_columns(["semid", "codes"])
    )
    with pytest.raises(ValueError, match="is not the one the model was trained with"):
        CatalogueStore(folder)


def test_a_recommender_of_a_version_recommends_its_items(tmp_path):
    from tiny import write_tiny_base

    data = tiny_data()
    folder = write_tiny_base(tmp_path / "model", data, tiny_index(data))
    with CatalogueStore(folder) as store:
        change(store, Changes([{**NEW, "semid": ["<a_5>", "<c_3>"]}], ["item-03"]))
        version = store.current
    base = LLMRecommender.from_pretrained(folder)
    ours = LLMRecommender(base.model, base.tokenizer, version.index, version.items, base.config)
    found = [item.item_id for item in ours.recommend([["item-01", "item-03"]], k=24)[0]]
    assert sorted(found) == sorted(version.index.items) and "new" in found and "item-03" not in found


def test_a_log_is_shortened_while_it_grows(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(store_module, "SNAPSHOT_SIZE", 500)
    folder, directory = bare(tmp_path / "model", tiny_index(tiny_data())), tmp_path / "log"
    with CatalogueStore(folder, directory) as store:
        for price in range(12):
            change(store, Changes(put=[{"item_id": "item-01", "price": float(price)}]))
        current = store.current
        assert len(list(directory.glob("snapshot-*.parquet"))) > 1
        monkeypatch.setattr(store._log, "add_snapshot", lambda *_: _full())
        monkeypatch.setattr(store_module, "SNAPSHOT_SIZE", 0)
        record = change(store, Changes(put=[{"item_id": "item-01", "price": 99.0}]))
        assert record["number"] == 13 and "no snapshot of catalogue version 13" in caplog.text
    with CatalogueStore(folder, directory) as store:
        assert row(store.current, "item-01")["price"] == 99.0
        assert same(store.version(12), current) and row(store.version(3), "item-01")["price"] == 2.0
        assert [entry["version"] for entry in store.history(5)] == [9, 10, 11, 12, 13]
        assert [entry["version"] for entry in store.history(2, before=3)] == [1, 2]


def _full():
    raise OSError("no space left on device")

"""New items get Semantic IDs: from the item tokenizer, from what they bring, or those that they had."""

import shutil

import numpy as np
import pyarrow as pa
import pytest
from serving.living_catalogue import bare, change, roll_back, row, same, write_living_folder
from tiny import tiny_data, tiny_index

from llmrec.catalogue.lifecycle import remove_items, taken_codes
from llmrec.catalogue.semids import SemIDIndex
from llmrec.catalogue.views import join_views
from llmrec.features import ItemFeatures
from llmrec.files import read_json
from llmrec.item_tokenizers import add_items, load_item_tokenizer
from llmrec.models.folder import ITEM_TOKENIZER
from llmrec.serving.living_catalogue.store import CatalogueStore, Changes, load_version

NEW = {"item_id": "new", "title": "red gadget number 77"}
GIVEN = {**NEW, "embedding": [0.0] * 8}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_living_folder(tmp_path_factory.mktemp("living") / "model")


@pytest.fixture
def store(folder, tmp_path):
    with CatalogueStore(folder, tmp_path / "log") as store:
        yield store


def test_new_items_get_what_update_catalogue_would_give_them(folder, store):
    data = tiny_data()
    new = [
        {"item_id": "n1", "title": "red gadget number 77", "brand": "brand 1", "price": 3},
        {"item_id": "n2", "title": "green <b>gadget</b>  number 78", "brand": "brand 2"},
        {"item_id": "n3", "title": "red gadget number 0", "brand": "brand 0", "categories": "Shop > red"},
    ]
    index = store.current.index
    change(store, Changes(new, ["item-05"]))
    features = ItemFeatures.from_pretrained(folder / ITEM_TOKENIZER / "features")
    tokenizer = load_item_tokenizer(folder / ITEM_TOKENIZER)
    columns = {name: [entry.get(name) for entry in new] for name in data.items.column_names}
    columns["title"][1] = "green gadget number 78"
    table = pa.table(columns, schema=data.items.schema)
    theirs = add_items(remove_items(index, ["item-05"]), tokenizer, features.encode(table), ["n1", "n2", "n3"], table)
    assert store.current.index.fingerprint == theirs.fingerprint
    assert store.current.index.info["reserved"] == theirs.info["reserved"]
    assert row(store.current, "n2") == {
        **{"item_id": "n2", "title": "green gadget number 78", "brand": "brand 2"},
        **{"categories": None, "price": None},
    }
    assert row(store.current, "n1")["price"] == 3.0


def test_embeddings_and_semids_may_be_brought(folder, store):
    features = ItemFeatures.from_pretrained(folder / ITEM_TOKENIZER / "features")
    columns = store.current.items.slice(4, 1)
    vector = features.encode(columns)[0]
    free = ["<a_0>", "<b_0>", "<c_30>"]
    new = [
        {**NEW, "embedding": vector.tolist()},
        {"item_id": "own", "title": "x", "semid": free},
        {**NEW, "item_id": "b"},
    ]
    change(store, Changes(new))
    index = store.current.index
    four = index.codes[4, :2].tolist()
    assert index.codes[index.row("new"), :2].tolist() == four and index.codes[index.row("new"), 2] >= 0
    assert index.tokens_of_row(index.row("own")) == free
    # What says nothing new about a known item may stand there: a feed may repeat itself.
    change(store, Changes([{**new[0], "price": 1}, {**new[1], "price": 2}]))
    assert store.current.index is index
    assert len({index.semid_of_row(row) for row in range(len(index))}) == len(index)


def test_a_folder_without_item_tokenizer_takes_ready_made_semantic_ids(tmp_path):
    folder = bare(tmp_path / "bare", tiny_index(tiny_data()))
    with CatalogueStore(folder) as store:
        with pytest.raises(ValueError, match="'new' needs a semid of its own: .* no item_tokenizer"):
            change(store, Changes([NEW]))
        change(store, Changes([{**NEW, "semid": ["<a_5>", "<c_3>"]}], ["item-01"]))  # nothing at level b
        assert store.current.index.codes[-1].tolist() == [5, -1, 3]
        change(store, Changes([{"item_id": "item-01", "title": "back"}]))
    assert load_version(folder).index.encode("item-01") == tiny_index(tiny_data()).encode("item-01")
    assert (folder / "catalogue" / "catalogue.sqlite").exists()


def test_levels_that_share_tokens_are_told_apart_by_what_they_read(tmp_path):
    data = tiny_data(num_items=3)
    words = [[" red", " lamp"], [" lamp", " red"]]
    index = SemIDIndex(
        data.items["item_id"].to_pylist(), [[0, 0], [0, 1], [1, -1]], [2, 2], level_tokens=words, adds_tokens=False
    )
    with CatalogueStore(bare(tmp_path / "words", index, data.items)) as store:
        for taken, owner in (([" red", " lamp"], "item-00"), ([" lamp"], "item-02")):
            with pytest.raises(ValueError, match=f"item 'new': item '{owner}' has or had its semid"):
                store.prepare(Changes([{**NEW, "semid": taken}]))
        change(store, Changes([{**NEW, "semid": [" lamp", " red"]}]))
        assert store.current.index.encode("new") == " lamp red;"


def test_several_semantic_ids_of_an_item_come_and_go_together(tmp_path):
    data = tiny_data()
    joined = join_views({"one": tiny_index(data), "two": tiny_index(data).shuffled(0)})
    with CatalogueStore(bare(tmp_path / "joined", joined)) as store:
        start = store.current
        change(store, Changes([{"item_id": "item-03", "price": 77.0}], ["item-02"]))
        assert store.current.index.item_ids.count("item-02") == 0 and len(store.current.index) == len(joined) - 2
        prices = dict.fromkeys(store.version(1).index.rows("item-03"), 77.0)
        assert {row: store.current.items["price"][row].as_py() for row in prices} == prices and len(prices) == 2
        change(store, Changes([{"item_id": "item-02", "title": "back"}]))
        assert store.current.index.encode("item-02") == start.index.encode("item-02")
        roll_back(store, 0)
        assert same(store.current, start, number=False)
        for extra in ({}, {"semid": start.index.tokens_of_row(0)}):
            with pytest.raises(ValueError, match="'new'.* views"):
                store.prepare(Changes([{**NEW, **extra}]))


def test_no_semantic_id_is_given_that_somebody_has_or_had(store):
    change(store, Changes(remove=["item-09"]))
    index = store.current.index
    for item, tokens in (("item-08", index.tokens_of_row(index.row("item-08"))), ("item-09", None)):
        codes = index.info["reserved"]["item-09"][0]
        tokens = tokens or [index.token(level, code) for level, code in enumerate(codes) if code >= 0]
        with pytest.raises(ValueError, match=f"item 'new': item '{item}' has or had its semid; give it a free one"):
            store.prepare(Changes([{**NEW, "semid": tokens}]))
    change(store, Changes([{**NEW, "semid": ["<a_0>", "<b_0>", "<c_20>"]}]))
    same_title = [{"item_id": f"n{i}", "title": "red gadget number 0", "brand": "brand 0"} for i in range(5)]
    change(store, Changes(same_title, ["new"]))
    taken = taken_codes(store.current.index)
    assert len(np.unique(taken, axis=0)) == len(taken) == 24 + 1 + 5


def test_a_full_collision_level_is_said_before_anything_happens(store):
    many = [{"item_id": f"n{i}", "title": "red gadget number 0"} for i in range(60)]
    with pytest.raises(
        ValueError, match="'n0' .or one of the 59 items beside it. gets no Semantic ID: .* collision level full"
    ):
        change(store, Changes(many))
    assert store.current.number == 0


def test_folders_that_cannot_name_new_items(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "blind", ignore=shutil.ignore_patterns("features"))
    with CatalogueStore(tmp_path / "blind") as store:
        with pytest.raises(ValueError, match="no encoder .*: give item 'new' an embedding or a semid"):
            change(store, Changes([NEW]))
        change(store, Changes([GIVEN]))
    shutil.copytree(folder, tmp_path / "other")
    config = read_json(tmp_path / "other" / ITEM_TOKENIZER / "config.json")
    other = write_living_folder(tmp_path / "third", codebook_sizes=(4, 3))
    shutil.rmtree(tmp_path / "other" / ITEM_TOKENIZER)
    shutil.copytree(other / ITEM_TOKENIZER, tmp_path / "other" / ITEM_TOKENIZER)
    assert config != read_json(tmp_path / "other" / ITEM_TOKENIZER / "config.json")
    with CatalogueStore(tmp_path / "other") as store:
        with pytest.raises(ValueError, match="'new' gets no Semantic ID: this index was not built with this"):
            change(store, Changes([NEW]))


def test_items_whose_tokens_depend_on_the_history_need_a_semid(tmp_path):
    index = tiny_index(tiny_data())
    index.info["item_tokenizer"] = {"name": "pctx"}
    with CatalogueStore(bare(tmp_path / "contextual", index)) as store:
        with pytest.raises(ValueError, match="needs a semid of its own: .* 'pctx' knows the items it was fitted with"):
            change(store, Changes([NEW]))

"""Items come and go, nobody moves, and no Semantic ID ever changes hands unasked."""

import functools

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from item_tokenizers.small import SMALL, blobs, small_items, small_train

from llmrec.catalogue.collisions import COLLISION_POLICIES
from llmrec.catalogue.lifecycle import bring_back, diff, next_catalogue, next_version, remove_items
from llmrec.catalogue.semids import SemIDIndex
from llmrec.item_tokenizers import TOKENIZERS, RQKMeans, add_items, build_semids


@functools.cache
def fitted(name):
    """A tokenizer of the first 60 of 80 items."""
    items = small_items()
    tokenizer = TOKENIZERS[name](**SMALL[name])
    return tokenizer.fit(blobs()[:60], seed=0, items=items.slice(0, 60), train=small_train(items.slice(0, 60)))


@functools.cache
def first_version(name, collision):
    items = small_items().slice(0, 60)
    ids = items["item_id"].to_pylist()
    return build_semids(ids, blobs()[:60], fitted(name), collision, collision_reserve=80, items=items)


def added(index, name, rows):
    items = small_items().take(pa.array(rows))
    return add_items(index, fitted(name), blobs()[rows], items["item_id"].to_pylist(), items)


def policies(name):
    costs = TOKENIZERS[name].traits.decodes_to_vector and TOKENIZERS[name].traits.fixed_length
    return [policy for policy in COLLISION_POLICIES if costs or not policy.endswith("_last")]


@pytest.mark.parametrize("name", TOKENIZERS)
@given(data=st.data())
@settings(deadline=None, max_examples=6)
def test_nobody_moves_and_no_semid_changes_hands(tmp_path_factory, name, data):
    collision = data.draw(st.sampled_from(policies(name)))
    index = first_version(name, collision)
    owner = {index.encode(item): item for item in index.items}
    own = {item: index.encode(item) for item in index.items}
    for step in range(data.draw(st.integers(1, 4))):
        held = set(index.items)
        outside = sorted(set(range(80)) - {int(item[1:]) for item in held})
        if outside and data.draw(st.booleans()):
            rows = data.draw(st.lists(st.sampled_from(outside), min_size=1, unique=True))
            new = added(index, name, rows)
            come, gone = {f"i{row}" for row in rows}, set()
        else:
            come, gone = (
                set(),
                set(data.draw(st.lists(st.sampled_from(sorted(held)), min_size=1, max_size=len(held) - 1))),
            )
            new = remove_items(index, sorted(gone))
        changes = diff(index, new)
        assert not changes.moved and set(changes.added) == come and set(changes.removed) == gone
        assert set(new.items) == (held | come) - gone
        assert new.level_tokens == index.level_tokens
        assert new.info["version"] == step + 2 and new.info["parent"] == index.fingerprint
        assert new.info["changelog"][-1] == {"version": step + 2, "added": len(come), "removed": len(gone)}
        for item in new.items:
            assert own.setdefault(item, new.encode(item)) == new.encode(item)  # also after it was away
            if collision != "keep":
                assert owner.setdefault(new.encode(item), item) == item
        index = new
    path = tmp_path_factory.mktemp("s") / "semids.parquet"
    index.save(path)
    loaded = SemIDIndex.load(path)
    assert loaded.info == index.info and loaded.fingerprint == index.fingerprint


def twins(reuse):
    """Three items with equal features; the last one goes, and a fourth comes."""
    features = np.concatenate([blobs()[:60], np.repeat(blobs()[:1], 3, 0)])
    ids = [f"i{row}" for row in range(60)] + ["x", "y", "z"]
    tokenizer = RQKMeans([4, 4], niter=2).fit(features)
    index = build_semids(ids, features, tokenizer, "append")
    gone = remove_items(index, ["z"], reuse=reuse)
    return index, add_items(gone, tokenizer, features[-1:], ["new"]), tokenizer, features


def test_a_freed_number_is_kept_unless_asked_for():
    before, after, tokenizer, features = twins(reuse=False)
    assert after.encode("new") not in {before.encode(item) for item in before.items}
    back = add_items(after, tokenizer, features[-1:], ["z"])
    assert back.encode("z") == before.encode("z") and "z" not in back.info["reserved"]
    before, after, tokenizer, features = twins(reuse=True)
    assert after.encode("new") == before.encode("z")


def test_diff_finds_who_moved_and_a_version_refuses_it():
    index = first_version("rq_kmeans", "append")
    codes = index.codes.copy()
    codes[[3, 7]] = codes[[7, 3]]
    moved = index.replaced(index.item_ids, codes)
    changes = diff(index, moved)
    assert changes.moved == {
        "i3": (index.encode("i3"), index.encode("i7")),
        "i7": (index.encode("i7"), index.encode("i3")),
    }
    assert "0 items added, 0 removed, 2 moved" in str(changes) and f"{index.encode('i7')}  i3" in str(changes)
    with pytest.raises(ValueError, match="'i3' would move"):
        next_version(index, moved)
    # The order of the items, and the names of tokens that nobody has, are no change.
    assert not diff(index, index.rows_at(range(59, -1, -1))).moved
    renamed = SemIDIndex(index.item_ids, index.codes, index.codebook_sizes, "openonerec")
    assert len(diff(index, renamed).moved) == 60


def test_removing_needs_items_that_are_there_and_leaves_one():
    index = first_version("rq_kmeans", "append")
    with pytest.raises(ValueError, match="'nobody' has no Semantic ID"):
        remove_items(index, ["i1", "nobody"])
    with pytest.raises(ValueError, match="all of them would be removed"):
        remove_items(index, index.items)
    with pytest.raises(ValueError, match="has a Semantic ID already"):
        added(index, "rq_kmeans", [3])


def test_an_item_with_several_semids_goes_and_comes_back_whole():
    index = SemIDIndex(["a", "b", "a"], [[0, 1], [1, 0], [1, 1]], [2, 3], info={"collision": "append"})
    gone = remove_items(index, ["a"])
    assert gone.item_ids == ["b"] and gone.info["reserved"] == {"a": [[0, 1], [1, 1]]}
    assert diff(index, gone).removed == {"a": "<a_0><b_1> <a_1><b_1>"}


def test_an_item_that_returns_has_the_version_it_came_with():
    index = SemIDIndex(list("abc"), [[0, 1], [1, 0], [1, 1]], [2, 3], info={"collision": "append"})
    versions = pa.array([1, 2, 1], pa.int32())
    items = pa.table({"item_id": list("abc"), "title": list("ABC"), "semid_version": versions})
    gone = remove_items(index, ["a", "b"], items=items)
    assert gone.reserved_versions == {"a": 1, "b": 2}
    left = next_catalogue(items, removed=["a", "b"], version=3)
    given = pa.table({"item_id": list("abd"), "title": list("ABD")})
    back = next_catalogue(left, given, version=4, returning=gone.reserved_versions)
    assert back["item_id"].to_pylist() == list("abdc") and back["semid_version"].to_pylist() == [1, 2, 4, 1]
    later = bring_back(gone, ["b"])
    assert later.reserved_versions == {"a": 1} and later.info["reserved_versions"] == {}
    assert remove_items(index, ["a"], reuse=True, items=items).reserved_versions == {}


def test_the_next_catalogue():
    items = pa.table({"item_id": ["a", "b", "c"], "title": ["A", "B", "C"], "price": [1.0, 2.0, 3.0]})
    given = pa.table({"item_id": ["d", "b"], "title": ["D", "B, new"], "price": [4, 5]})
    table = next_catalogue(items, given, removed=["a"])
    assert table.to_pylist() == [
        {"item_id": "d", "title": "D", "price": 4.0, "semid_version": 2},
        {"item_id": "b", "title": "B, new", "price": 5.0, "semid_version": 1},
        {"item_id": "c", "title": "C", "price": 3.0, "semid_version": 1},
    ]
    later = next_catalogue(table, pa.table({"item_id": ["e"], "title": ["E"]}), version=3)
    assert later["semid_version"].to_pylist() == [3, 2, 1, 1] and later["price"][0].as_py() is None
    assert next_catalogue(later, removed=["d"])["item_id"].to_pylist() == ["e", "b", "c"]
    with pytest.raises(ValueError, match="'b' is to be removed"):
        next_catalogue(items, given, removed=["b"])
    with pytest.raises(ValueError, match="column 'price', row 1: 'cheap'"):
        next_catalogue(items, pa.table({"item_id": ["d"], "title": ["D"], "price": ["cheap"]}))

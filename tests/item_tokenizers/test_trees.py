"""Trees: balance, communities, categories; and where items go that were not there."""

from collections import Counter

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from item_tokenizers.small import blobs, small_items, small_train
from scipy import sparse
from scipy.optimize import linear_sum_assignment

from llmrec.item_tokenizers import (
    BalancedTree,
    CategoryTree,
    CooccurrenceTree,
    add_items,
    build_semids,
    load_item_tokenizer,
)
from llmrec.item_tokenizers.residual.rq_kmeans import greedy
from llmrec.item_tokenizers.trees.balanced_tree import assign_balanced
from llmrec.item_tokenizers.trees.cooccurrence_tree import shared_users, spectral_clusters

# Balanced tree


@given(rows=st.integers(2, 60), columns=st.integers(2, 9), seed=st.integers(0, 1000), ties=st.booleans())
@settings(deadline=None, max_examples=60)
def test_assignment_is_balanced(rows, columns, seed, ties):
    costs = np.random.default_rng(seed).random((max(rows, columns), columns))
    sizes = np.bincount(assign_balanced(costs.round(1) if ties else costs), minlength=columns)
    assert sizes.sum() == len(costs) and sizes.max() - sizes.min() <= 1


def test_assignment_is_nearer_to_the_best_than_first_come_first_served():
    rng = np.random.default_rng(0)
    mine = best = simple = 0.0
    for _ in range(20):
        points, centres = rng.normal(size=(60, 3)), rng.normal(size=(6, 3))
        costs = ((points[:, None] - centres) ** 2).sum(2)
        seats = np.repeat(np.arange(6), 10)
        row, seat = linear_sum_assignment(costs[:, seats])
        best += costs[row, seats[seat]].sum()
        mine += costs[np.arange(60), assign_balanced(costs)].sum()
        simple += costs[np.arange(60), greedy(costs.T)].sum()
    assert best <= mine < 1.25 * best and mine < 0.9 * simple


@given(count=st.integers(1, 150), branching=st.integers(2, 9), seed=st.integers(0, 20))
@settings(deadline=None, max_examples=15)
def test_siblings_are_equally_large_and_leaves_small(count, branching, seed):
    features = np.random.default_rng(seed).normal(size=(count, 5)).astype(np.float32)
    codes = BalancedTree(branching, node_tokens=False).fit(features, seed=seed).encode(features)
    assert len(np.unique(codes, axis=0)) == count
    for level in range(codes.shape[1] - 1):
        sizes = Counter(tuple(row[: level + 1]) for row in codes if row[level] >= 0)
        for parent in {prefix[:-1] for prefix in sizes}:
            children = [sizes[*parent, child] for child in range(branching)]
            assert sum(children) > branching and max(children) - min(children) <= 1
    assert max(Counter(tuple(row[:-1]) for row in codes).values()) <= branching


@pytest.mark.parametrize("count, widths", [(1, (1,)), (2, (2,)), (9, (3, 9)), (83, (10, 83)), (100, (10, 100))])
def test_by_default_there_is_one_level_of_clusters_above_the_items(tmp_path, count, widths):
    features = np.random.default_rng(0).normal(size=(count, 5)).astype(np.float32)
    tokenizer = BalancedTree().fit(features)
    assert tokenizer.codebook_sizes == widths
    tokenizer.save_pretrained(tmp_path)
    again = load_item_tokenizer(tmp_path)
    assert again.codebook_sizes == widths and (again.encode(features) == tokenizer.encode(features)).all()
    assert BalancedTree(node_tokens=False).fit(features).codebook_sizes == (max(2, widths[0]),) * len(widths)


def separated(seed=0):
    """Four far clusters of 16 items."""
    rng = np.random.default_rng(seed)
    centres = 20 * np.eye(4, 8)
    return (np.repeat(centres, 16, 0) + rng.normal(size=(64, 8))).astype(np.float32), np.repeat(np.arange(4), 16)


def test_the_first_codes_are_the_clusters_and_new_items_join_their_nearest():
    features, cluster = separated()
    tokenizer = BalancedTree(4).fit(features)
    codes = tokenizer.encode(features)
    assert tokenizer.codebook_sizes == (4, 16, 64)
    assert len({*zip(cluster, codes[:, 0])}) == 4
    near = (features + 1e-3).astype(np.float32)
    assert (tokenizer.encode(near) == codes).mean() > 0.95
    far, far_cluster = separated(seed=1)
    assert {*zip(far_cluster, tokenizer.encode(far)[:, 0])} == {*zip(cluster, codes[:, 0])}


def test_every_node_is_a_token_unless_children_are_numbered(tmp_path):
    features = blobs(count=83)
    local, nodes = BalancedTree(4, node_tokens=False).fit(features), BalancedTree(4).fit(features)
    assert sum(nodes.codebook_sizes) == len(nodes.remembered.codes) + len(nodes._children) - 1 > 80
    codes, numbers = local.encode(features), nodes.encode(features)
    assert nodes.codebook_sizes[-1] == len(np.unique(codes, axis=0)) == 80
    for level in range(codes.shape[1]):
        here = codes[:, level] >= 0
        assert (here == (numbers[:, level] >= 0)).all()
        prefixes = {(number, *path) for number, path in zip(numbers[here, level], codes[here, : level + 1])}
        assert len(prefixes) == len({number for number, *_ in prefixes}) == nodes.codebook_sizes[level]
    for tokenizer in (local, nodes):  # which of the two is said in the folder, whatever the default is
        tokenizer.save_pretrained(folder := tmp_path / str(tokenizer.node_tokens))
        loaded = load_item_tokenizer(folder)
        assert loaded.node_tokens == tokenizer.node_tokens
        assert (loaded.encode(features) == tokenizer.encode(features)).all()
    assert local.codebooks == [] and [len(book) for book in nodes.codebooks] == [*nodes.codebook_sizes]
    for book, column in zip(nodes.codebooks, numbers.T):  # of the distinct rows: the first three stand twice
        for code, vector in enumerate(book):
            under = np.unique(features[column == code], axis=0)
            np.testing.assert_allclose(vector, under.mean(0), rtol=1e-4, atol=1e-6)


def test_a_large_tree_is_loaded_with_the_members_of_every_leaf():
    count = 300_000
    leaf_of = np.random.default_rng(0).permutation(np.arange(count) // 3)
    arrays = {
        "remembered.digests": np.arange(2 * count).view(np.uint8).reshape(count, 16),
        "remembered.codes": np.zeros((count, 2), np.int32),
        "parents": np.concatenate([[-1], np.zeros(count // 3 - 1, int)]),
        "leaf_of": leaf_of,
        "rows": np.empty((count, 1), np.float32),
    }
    tokenizer = BalancedTree(4)
    tokenizer.restore({}, arrays)
    assert all(tokenizer._members[leaf].tolist() == np.flatnonzero(leaf_of == leaf).tolist() for leaf in range(9))


# Co-occurrence tree


def sequences(lists):
    return pa.table({"user_id": [f"u{n}" for n in range(len(lists))], "item_ids": lists})


@given(seed=st.integers(0, 100))
@settings(deadline=None, max_examples=10)
def test_affinity_counts_users_in_both_orders(seed):
    rng = np.random.default_rng(seed)
    ids = [f"i{n}" for n in range(6)]
    lists = [list(rng.choice(ids, rng.integers(0, 7))) for _ in range(15)]
    counts = shared_users(pa.chunked_array([ids]), sequences(lists)).toarray()
    for a, first in enumerate(ids):
        for b, second in enumerate(ids):
            assert counts[a, b] == (0 if a == b else sum(first in row and second in row for row in lists))


def communities(groups=4, size=30, users=400, seed=0):
    """Users who stay in their group of items, but for one item in twenty."""
    rng = np.random.default_rng(seed)
    lists = []
    for user in range(users):
        group = np.where(rng.random(8) < 0.05, rng.integers(0, groups, 8), user % groups)
        lists.append([f"i{g * size + place:03}" for g, place in zip(group, rng.integers(0, size, 8))])
    items = pa.table({"item_id": [f"i{n:03}" for n in range(groups * size)]})
    return items, sequences(lists), np.repeat(np.arange(groups), size)


def test_communities_become_branches_and_the_order_of_a_sequence_does_not_matter():
    items, train, group = communities()
    tokenizer = CooccurrenceTree(clusters=4, max_leaf=40).fit(None, items=items, train=train)
    codes = tokenizer.encode(None, items)
    assert len({*zip(group, codes[:, 0])}) == 4 and codes.shape[1] == 2
    assert len(np.unique(codes, axis=0)) == len(codes)
    backwards = sequences([row[::-1] for row in train["item_ids"].to_pylist()])
    again = CooccurrenceTree(clusters=4, max_leaf=40).fit(None, items=items, train=backwards)
    assert (again.encode(None, items) == codes).all()


@pytest.mark.parametrize("size", [50, 200])  # LAPACK's way, and ARPACK's
def test_spectral_clusters_find_planted_groups(size):
    rng = np.random.default_rng(0)
    group = np.repeat(np.arange(4), size)
    link = np.triu(rng.random((4 * size, 4 * size)) < np.where(group[:, None] == group, 0.4, 0.02), 1)
    graph = sparse.csr_matrix((link | link.T).astype(np.float64))
    labels = spectral_clusters(graph, 4)
    assert len({*zip(group, labels)}) == 4
    assert (spectral_clusters(graph, 4) == labels).all()


@pytest.mark.parametrize("shape", ["pairs", "clique", "star"])
def test_graphs_without_clusters_end_in_leaves_too(shape):
    count = 120
    ids = [f"i{n:03}" for n in range(count)]
    lists = {
        "pairs": [ids[n : n + 2] for n in range(0, count, 2)],  # sixty components
        "clique": [ids],
        "star": [[ids[0], item] for item in ids[1:]],
    }[shape]
    items = pa.table({"item_id": ids})
    tokenizer = CooccurrenceTree(clusters=3, max_leaf=10).fit(None, items=items, train=sequences(lists))
    codes = tokenizer.encode(None, items)
    assert len(np.unique(codes, axis=0)) == count
    assert max(Counter(map(tuple, codes[:, :-1].tolist())).values()) <= 10
    assert len(tokenizer.codebook_sizes) < 20


def test_items_without_neighbours_have_a_branch_of_their_own():
    items, train, _ = communities()
    lonely = pa.table({"item_id": ["lonely", "new1", "new2"]})
    train = pa.concat_tables([train, pa.table({"user_id": ["x"], "item_ids": [["lonely"]]})])
    tokenizer = CooccurrenceTree(clusters=4, max_leaf=20).fit(
        None, items=pa.concat_tables([items, lonely.slice(0, 1)]), train=train
    )
    codes = tokenizer.encode(None, lonely)
    spare = tokenizer.codebook_sizes[0] - 1
    assert (codes[:, 0] == spare).all() and (codes >= 0).all() and len(np.unique(codes, axis=0)) == 3
    assert (tokenizer.encode(None, items)[:, 0] < spare).all()
    assert (tokenizer.encode(None, lonely.slice(2)) == codes[2:]).all()
    # A catalogue of one leaf has the spare branch too.
    small = CooccurrenceTree(clusters=4, max_leaf=500).fit(None, items=items, train=train.slice(0, 400))
    known, new = small.encode(None, items), small.encode(None, lonely)
    assert (known[:, 0] == -1).all() and (new[:, 0] == 0).all() and small.codebook_sizes[0] == 1


def test_cooccurrence_errors():
    items, train, _ = communities()
    with pytest.raises(ValueError, match="needs train"):
        CooccurrenceTree().fit(None, items=items)
    with pytest.raises(ValueError, match="nothing to cluster"):
        CooccurrenceTree().fit(None, items=items, train=sequences([["i001"], ["i002", "i002"]]))
    with pytest.raises(ValueError, match="clusters=20 and max_leaf=20"):
        CooccurrenceTree(max_leaf=20)


# Category tree


def catalogue(paths, prefix="i"):
    return pa.table({"item_id": [f"{prefix}{n}" for n in range(len(paths))], "categories": paths})


def test_category_paths_then_places():
    items = catalogue(["A > B > C", "A > D", "A > D", "E > B | A > D", "", None, "A > B > A"])
    tokenizer = CategoryTree().fit(None, items=items)
    assert tokenizer.encode(None, items).tolist() == [
        [2, 1, 2, 1],
        [2, 2, -1, 1],
        [2, 2, -1, 2],
        [3, 1, -1, 1],  # the first path; the name B is one token under A and under E
        [1, -1, -1, 1],  # no category: a branch of its own
        [1, -1, -1, 2],
        [2, 1, 1, 1],  # a name that comes back at a deeper level is another token
    ]
    assert tokenizer.codebook_sizes == (4, 3, 3, 1 + 2 + 32)


def test_new_items_stay_on_the_known_path():
    tokenizer = CategoryTree().fit(None, items=catalogue(["A > B > C", "A > D", "E > F"]))
    new = catalogue(["A > D", "A > X > C", "A > F", "Y > B", "A > B > C > Z", "A > B", "A > D > Z", ""], "n")
    codes = tokenizer.encode(None, new)
    assert codes[:, :-1].tolist() == [
        [1, 2, -1],
        [1, 0, -1],
        [1, 0, -1],  # F is known, under E
        [0, -1, -1],
        [1, 1, 1],
        [1, 1, -1],
        [1, 2, 0],
        [0, -1, -1],
    ]
    assert ((codes[:, -1] > 1) & (codes[:, -1] < tokenizer.codebook_sizes[-1])).all()


def test_a_category_has_room_for_newcomers(tmp_path):
    items = catalogue(["A > B"] * 100 + ["A > C"])
    tokenizer = CategoryTree().fit(None, items=items)
    features = np.zeros((301, 1), np.float32)
    index = build_semids(items["item_id"].to_pylist(), features[:101], tokenizer, items=items)
    new = catalogue(["A > B"] * 200, "n")
    tokenizer.save_pretrained(tmp_path / "t")
    tokenizer = load_item_tokenizer(tmp_path / "t")
    assert tokenizer.codebook_sizes[-1] == 1 + 100 + 100
    grown = add_items(index, tokenizer, features[101:], new["item_id"].to_pylist(), items=new)
    assert len({grown.encode(item) for item in grown.items}) == 301
    assert len(np.unique(tokenizer.encode(None, new), axis=0)) > 70


def test_newcomers_leave_fitted_categories_alone():
    items = small_items()
    old, new = items.slice(0, 50), items.slice(50)
    tokenizer = CategoryTree().fit(None, items=old)
    features = blobs()
    index = build_semids(old["item_id"].to_pylist(), features[:50], tokenizer, items=old)
    assert index.lengths.max() == 4 and index.info["collisions_before"]["collision_rate"] == 0
    grown = add_items(index, tokenizer, features[50:], new["item_id"].to_pylist(), items=new)
    assert len({grown.encode(item) for item in grown.items}) == 80
    fitted = {tuple(row) for row in index.codes[:, :-1].tolist()}
    assert not fitted & {tuple(row) for row in grown.codes[50:, :-1].tolist()}


def test_category_errors():
    with pytest.raises(ValueError, match="no column 'categories'"):
        CategoryTree().fit(None, items=small_items().drop(["categories"]))
    with pytest.raises(ValueError, match="column 'categories' holds list<item: string>, not text: join the names"):
        CategoryTree().fit(None, items=catalogue([["A", "B"], ["A"]]))
    with pytest.raises(ValueError, match="needs items"):
        CategoryTree().fit(None, train=small_train(small_items()))
    with pytest.raises(ValueError, match="at least one item"):
        CategoryTree().fit(None, items=catalogue([]))

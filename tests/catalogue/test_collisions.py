import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmrec.arrays import sinkhorn
from llmrec.catalogue.collisions import (
    COLLISION_POLICIES,
    _colliding_prefixes,
    collision_stats,
    equal_rows,
    reassign_last,
)

K = 5


@st.composite
def catalogues(draw):
    """Codes full of collisions, features of equal items included, split into old items and newcomers."""
    count = draw(st.integers(1, 60))
    rng = np.random.default_rng(draw(st.integers(0, 10_000)))
    codes = rng.integers(0, draw(st.integers(1, K)), (count, draw(st.integers(1, 3)))).astype(np.int32)
    costs = rng.integers(0, draw(st.integers(1, 50)), (count, K)).astype(np.float32)
    return codes, costs, draw(st.integers(0, count))


def resolve(name, codes, costs, taken=None):
    if taken is None:
        taken = np.empty((0, codes.shape[1] + 1), np.int32)
    return COLLISION_POLICIES[name](codes, lambda rows: costs[rows], taken)


@pytest.mark.parametrize("name", [name for name in COLLISION_POLICIES if name != "keep"])
@given(catalogues())
@settings(deadline=None, max_examples=40)
def test_policies_end_unique_and_newcomers_meet_nobody(name, catalogue):
    codes, costs, split = catalogue
    old = resolve(name, codes[:split], costs[:split]) if split else np.empty((0, codes.shape[1] + 1), np.int32)
    new = resolve(name, codes[split:], costs[split:], old) if split < len(codes) else old[:0]
    both = np.concatenate([old, new])
    assert len(np.unique(both, axis=0)) == len(codes)
    assert (both[:, :-2] == codes[:, :-1]).all()  # only the last level and the further code may change
    assert ((both[:, -2] >= 0) & (both[:, -2] < K)).all() and both.dtype == np.int32
    if split:
        assert (resolve(name, codes[:split], costs[:split]) == old).all()


def test_keep_changes_nothing():
    codes = np.array([[1, 2], [1, 2]], np.int32)
    assert resolve("keep", codes, np.zeros((2, K), np.float32)).tolist() == [[1, 2, -1], [1, 2, -1]]


def test_append_touches_colliding_items_only():
    codes = np.array([[0, 1], [2, 2], [0, 1], [0, 1]], np.int32)
    costs = np.zeros((4, K), np.float32)
    assert resolve("append", codes, costs).tolist() == [[0, 1, 0], [2, 2, -1], [0, 1, 1], [0, 1, 2]]
    assert resolve("append_all", codes, costs).tolist() == [[0, 1, 0], [2, 2, 0], [0, 1, 1], [0, 1, 2]]


def test_a_newcomer_that_meets_a_bare_semid_gets_the_further_token():
    taken = np.array([[2, 2, -1], [0, 1, 0], [0, 1, 1]], np.int32)
    codes = np.array([[2, 2], [0, 1], [0, 1], [3, 3]], np.int32)
    expected = [[2, 2, 0], [0, 1, 2], [0, 1, 3], [3, 3, -1]]
    assert resolve("append", codes, np.zeros((4, K), np.float32), taken).tolist() == expected


def test_each_of_many_prefixes_is_found_with_the_codes_in_use_there():
    codes = np.stack([np.arange(100_000), np.full(100_000, 3)], axis=1).astype(np.int32)
    taken = np.concatenate([codes, np.full((100_000, 1), -1, np.int32)], axis=1)
    found = [(rows.tolist(), used.tolist()) for rows, used in _colliding_prefixes(codes, taken)]
    assert found == [([row], [3]) for row in range(100_000)]


def test_reassign_finds_the_least_total_cost_and_leaves_other_prefixes_alone():
    codes = np.array([[0, 1], [0, 1], [0, 2], [1, 1]], np.int32)
    costs = np.array([[9, 0, 5, 1, 9], [9, 0, 5, 8, 9], [9, 9, 0, 9, 9], [9, 0, 0, 0, 0]], np.float32)
    assert resolve("reassign_last", codes, costs)[:, 1].tolist() == [3, 1, 2, 1]


@given(st.integers(0, 1000))
@settings(deadline=None, max_examples=20)
def test_reassign_appends_where_a_prefix_is_full(seed):
    rng = np.random.default_rng(seed)
    codes = np.zeros((2 * K + 3, 2), np.int32)
    result = reassign_last(codes, lambda rows: rng.random((len(rows), K), np.float32), np.empty((0, 3), np.int32))
    assert len(np.unique(result, axis=0)) == len(codes)
    assert len(np.unique(result[:, 1])) == K


def test_sinkhorn_balances():
    cost = np.random.default_rng(0).random((40, 8)).astype(np.float32)
    cost[:, 0] -= 0.3  # everybody's nearest
    plan = np.exp(sinkhorn(cost, epsilon=0.05, iterations=200))
    np.testing.assert_allclose(plan.sum(0), 1 / 8, rtol=1e-6)
    np.testing.assert_allclose(plan.sum(1), 1 / 40, rtol=1e-2)
    assert np.bincount(sinkhorn(cost).argmax(1), minlength=8).max() < np.bincount(cost.argmin(1)).max()


def test_sinkhorn_survives_extreme_costs():
    assert np.isfinite(sinkhorn(np.array([[0, 1e30], [1e30, 0], [0, 0]], np.float32))).all()
    assert np.isfinite(sinkhorn(np.zeros((3, 4), np.float32))).all()


def test_collision_stats():
    stats = collision_stats(np.array([[0, 0], [0, 0], [0, 0], [1, 0]]))
    assert (stats["unique"], stats["collision_rate"], stats["colliding_items"]) == (2, 0.5, 0.75)
    assert stats["largest_group"] == 3 and stats["group_sizes"] == {"1": 1, "3": 1}


@pytest.mark.parametrize("largest", [3, 2**30])
def test_rows_are_numbered_in_their_order(largest):
    codes = np.random.default_rng(0).integers(-1, 3, (200, 3), dtype=np.int32)
    codes[codes == 2] = largest  # three levels of 2^30 codes are no 64-bit number any more
    np.testing.assert_array_equal(equal_rows(codes), np.unique(codes, axis=0, return_inverse=True)[1].reshape(-1))
    assert (equal_rows(codes[:, :0]) == 0).all() and len(equal_rows(codes[:0])) == 0

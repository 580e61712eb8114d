"""Metrics by hand, against scikit-learn, and against the literal expectation over orders of a SemID group."""

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import ndcg_score

from llmrec.evaluation.metrics import KS, first_occurrences, first_positions, list_metrics, row_metrics


def test_by_hand():
    values = row_metrics(np.array([1, 3, 0, 10]), ks=(1, 3, 10))
    assert values["recall@1"].tolist() == [1, 0, 0, 0]
    assert values["recall@10"].tolist() == [1, 1, 0, 1]
    np.testing.assert_allclose(values["ndcg@3"], [1, 0.5, 0, 0])
    np.testing.assert_allclose(values["ndcg@10"], [1, 0.5, 0, 1 / np.log2(11)])
    np.testing.assert_allclose(values["mrr@10"], [1, 1 / 3, 0, 0.1])


def test_shared_semid_by_hand():
    # A group of 4 starting at rank 2 takes the places 2 to 5: at k = 3 the target is within k in 2 of 4 orders.
    values = row_metrics(np.array([2]), np.array([4]), ks=(1, 3, 10))
    assert values["recall@1"][0] == 0
    assert values["recall@3"][0] == pytest.approx(2 / 4)
    assert values["recall@10"][0] == pytest.approx(1)
    assert values["ndcg@3"][0] == pytest.approx((1 / np.log2(3) + 1 / np.log2(4)) / 4)
    assert values["mrr@10"][0] == pytest.approx((1 / 2 + 1 / 3 + 1 / 4 + 1 / 5) / 4)


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 8), st.integers(1, 4), st.integers(1, 10))
def test_expectation_over_all_orders(start, size, k):
    expected = {"recall": 0.0, "ndcg": 0.0, "mrr": 0.0}
    orders = list(permutations(range(size)))
    for order in orders:
        rank = start + order.index(0)
        for name, value in (("recall", 1), ("ndcg", 1 / np.log2(rank + 1)), ("mrr", 1 / rank)):
            expected[name] += value * (rank <= k) / len(orders)
    values = row_metrics(np.array([start]), np.array([size]), ks=(k,))
    for name, value in expected.items():
        assert values[f"{name}@{k}"][0] == pytest.approx(value)


@pytest.mark.parametrize("k", KS)
def test_ndcg_equals_sklearn(k):
    rng = np.random.default_rng(k)
    scores = rng.random((30, 80))
    targets = rng.integers(80, size=30)
    relevance = np.eye(80)[targets]
    ranks = 1 + (scores > scores[np.arange(30), targets][:, None]).sum(1)
    ours = row_metrics(ranks, ks=(k,))[f"ndcg@{k}"]
    assert ours.mean() == pytest.approx(ndcg_score(relevance, scores, k=k))


def test_positions_validity_and_coverage():
    lists = np.array([[3, 1, 3, -1], [0, 1, 2, 3]])
    assert first_positions(lists, np.array([3, 5])).tolist() == [1, 0]
    assert first_occurrences(lists).tolist() == [[True, True, False, False], [True] * 4]
    values = list_metrics(lists, num_items=5, ks=(2, 4, 50))
    assert values["valid@2"] == 1 and values["valid@4"] == pytest.approx(6 / 8)
    # No list can hold more than the whole catalogue.
    assert values["valid@50"] == pytest.approx(6 / 10)
    assert values["coverage@2"] == pytest.approx(3 / 5) and values["coverage@4"] == pytest.approx(4 / 5)


def test_bad_input():
    with pytest.raises(ValueError, match="ranks"):
        row_metrics(np.array([-1]))
    with pytest.raises(ValueError, match="k must be"):
        row_metrics(np.array([1]), ks=(0,))

"""The bootstrap: the right width, the right coverage, reproducible, and paired where it should be."""

import numpy as np
import pytest

from llmrec.evaluation import bootstrap
from llmrec.evaluation.bootstrap import bootstrap_means, confidence_intervals, paired_difference


def test_width_matches_the_standard_error():
    values = (np.random.default_rng(0).random((2000, 1)) < 0.1).astype(float)
    low, high = confidence_intervals(values, samples=2000)
    error = values.std() / np.sqrt(len(values))
    assert low[0] < values.mean() < high[0]
    assert high[0] - low[0] == pytest.approx(2 * 1.96 * error, rel=0.08)


def test_interval_covers_the_truth_about_95_times_in_100():
    rng = np.random.default_rng(1)
    covered = 0
    for trial in range(200):
        low, high = confidence_intervals((rng.random((300, 1)) < 0.2).astype(float), samples=200, seed=trial)
        covered += low[0] <= 0.2 <= high[0]
    assert 0.89 <= covered / 200 <= 0.99


def test_same_seed_same_means_whatever_the_chunk(monkeypatch):
    values = np.random.default_rng(2).random((50, 3))
    first = bootstrap_means(values, samples=40, seed=7)
    assert np.array_equal(first, bootstrap_means(values, samples=40, seed=7))
    monkeypatch.setattr(bootstrap, "_CELLS", 50 * 7)
    np.testing.assert_allclose(first, bootstrap_means(values, samples=40, seed=7))
    assert not np.array_equal(first, bootstrap_means(values, samples=40, seed=8))


def test_pairing_sees_what_two_intervals_do_not():
    rng = np.random.default_rng(3)
    hard = rng.random((500, 1))
    better = hard + 0.01 + 0.01 * rng.standard_normal((500, 1))
    result = paired_difference(better, hard)
    assert result["low"][0] > 0 and result["p"][0] < 0.01
    assert confidence_intervals(better)[0][0] < hard.mean() < confidence_intervals(better)[1][0]
    same = paired_difference(hard, hard)
    assert same["difference"][0] == 0 and same["p"][0] == 1


def test_rows_of_one_user_are_drawn_together():
    """300 users of ten equal rows say as much as 300 rows; row by row the interval would be too narrow by sqrt(10)."""
    of_users = (np.random.default_rng(4).random((300, 1)) < 0.3).astype(float)
    users = [f"u{number}" for number in range(300) for _ in range(10)]
    rows = np.repeat(of_users, 10, axis=0)
    low, high = confidence_intervals(rows, users, samples=2000)
    wanted = confidence_intervals(of_users, samples=2000)
    np.testing.assert_allclose((low, high), wanted)
    narrow = confidence_intervals(rows, samples=2000)
    assert (high - low)[0] / (narrow[1] - narrow[0])[0] == pytest.approx(np.sqrt(10), rel=0.1)
    paired = paired_difference(rows, np.zeros_like(rows), users, samples=2000)
    assert (paired["low"], paired["high"]) == (low, high)


def test_users_with_many_rows_weigh_more_and_order_does_not_matter():
    values = np.array([[1.0], [0.0], [1.0], [1.0]])
    means = set(np.round(bootstrap_means(values, ["a", "b", "a", "a"], samples=200)[:, 0], 6))
    assert means == {1.0, 0.75, 0.0}  # both of a, a and b, both of b
    alone = np.random.default_rng(5).random((40, 2))
    assert np.array_equal(bootstrap_means(alone, [str(n) for n in range(40)], 30), bootstrap_means(alone, None, 30))


def test_bad_input():
    with pytest.raises(ValueError, match="one user a row, got 1 users of 2 rows"):
        bootstrap_means(np.zeros((2, 1)), ["a"])
    with pytest.raises(ValueError, match="rows"):
        bootstrap_means(np.empty((0, 2)))
    with pytest.raises(ValueError, match="differ"):
        paired_difference(np.zeros((2, 1)), np.zeros((3, 1)))

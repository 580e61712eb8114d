"""Percentile bootstrap over test rows (Efron 1979): how far a mean could move with another sample of users."""

from collections.abc import Mapping

import numpy as np

_ENDS = ((1 - 0.95) / 2, 1 - (1 - 0.95) / 2)
_CELLS = 2**23  # resampled rows held at once


def bootstrap_means(values: np.ndarray, samples: int = 1000, seed: int = 0) -> np.ndarray:
    """float64 [samples, m]: means over resampled rows of `values` (float [n, m]). All columns use the same resamples,
    so they may be compared with each other. Raises `ValueError`: no rows, or fewer than one sample."""
    values = np.asarray(values, np.float64)
    rows = len(values)
    if rows == 0 or samples < 1:
        raise ValueError(f"a bootstrap needs rows and samples, got {rows} rows and {samples} samples")
    generator = np.random.default_rng(seed)
    means = np.empty((samples, values.shape[1]))
    step = max(1, _CELLS // rows)
    for start in range(0, samples, step):
        count = min(step, samples - start)
        drawn = generator.integers(0, rows, (count, rows))
        drawn += np.arange(count)[:, None] * rows
        weights = np.bincount(drawn.ravel(), minlength=count * rows).reshape(count, rows)
        means[start : start + count] = weights @ values / rows
    return means


def confidence_intervals(values: np.ndarray, samples: int = 1000, seed: int = 0) -> np.ndarray:
    """float64 [2, m]: low and high ends of the 95 % percentile intervals of the column means of `values` [n, m]."""
    return np.quantile(bootstrap_means(values, samples, seed), _ENDS, axis=0)


def intervals_of(values: Mapping[str, np.ndarray], samples: int, seed: int) -> dict[str, list[float]]:
    """`{name: [low, high]}` of the means of columns [n] that stand side by side; none without samples."""
    if not samples:
        return {}
    low, high = confidence_intervals(np.stack(list(values.values()), 1), samples, seed)
    return {name: [float(low[i]), float(high[i])] for i, name in enumerate(values)}


def paired_difference(
    ours: np.ndarray, theirs: np.ndarray, samples: int = 1000, seed: int = 0
) -> dict[str, np.ndarray]:
    """Mean difference of two recommenders on the same rows in the same order (float [n, m] each).

    Pairing removes what both find hard, so the interval is narrower than those of the two means suggest. Returned are
    `difference`, `low`, `high` and `p` (two-sided, from the share of resamples at or beyond 0), float64 [m] each.
    """
    if ours.shape != theirs.shape:
        raise ValueError(f"paired rows differ: {ours.shape} against {theirs.shape}")
    values = np.asarray(ours, np.float64) - theirs
    means = bootstrap_means(values, samples, seed)
    low, high = np.quantile(means, _ENDS, axis=0)
    beyond = np.minimum((means <= 0).sum(0), (means >= 0).sum(0))
    return {
        "difference": values.mean(0),
        "low": low,
        "high": high,
        "p": np.minimum(1, 2 * (beyond + 1) / (samples + 1)),
    }

"""Percentile bootstrap over users (Efron 1979): how far a mean over rows could move with another sample of users.

Rows of one user are alike, so they are drawn together (the cluster bootstrap, Field & Welsh 2007): drawing them one by
one makes intervals too narrow wherever users have several rows.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
from tqdm.auto import tqdm

_ENDS = ((1 - 0.95) / 2, 1 - (1 - 0.95) / 2)
_CELLS = 2**23  # resampled users held at once


def bootstrap_means(
    values: np.ndarray, users: pa.ChunkedArray | Sequence | None = None, samples: int = 1000, seed: int = 0
) -> np.ndarray:
    """float64 [samples, m]: means over the rows of resampled users.

    Args:
        values: float [n, m]. All columns use the same resamples, so they may be compared with each other.
        users: whose each row is, [n] (ids of users, or of items where rows are about items); None = one row each.

    Raises:
        ValueError: no rows, fewer than one sample, or not one user a row.
    """
    values = np.asarray(values, np.float64)
    if len(values) == 0 or samples < 1:
        raise ValueError(f"a bootstrap needs rows and samples, got {len(values)} rows and {samples} samples")
    if users is not None:
        values, rows = _by_user(values, users)
    else:
        rows = np.ones(len(values))
    count = len(values)
    generator = np.random.default_rng(seed)
    means = np.empty((samples, values.shape[1]))
    step = max(1, _CELLS // count)
    for start in tqdm(range(0, samples, step), desc="bootstrap", leave=False, delay=2):
        some = min(step, samples - start)
        drawn = generator.integers(0, count, (some, count))
        drawn += np.arange(some)[:, None] * count
        weights = np.bincount(drawn.ravel(), minlength=some * count).reshape(some, count)
        means[start : start + some] = weights @ values / (weights @ rows)[:, None]
    return means


def _by_user(values: np.ndarray, users: pa.ChunkedArray | Sequence) -> tuple[np.ndarray, np.ndarray]:
    """`(float64 [u, m], float64 [u])`: the sums and the number of the rows of each user, in order of appearance."""
    if not isinstance(users, (pa.Array, pa.ChunkedArray)):
        users = pa.array(users)
    if len(users) != len(values):
        raise ValueError(f"a bootstrap over users needs one user a row, got {len(users)} users of {len(values)} rows")
    encoded = users.combine_chunks() if isinstance(users, pa.ChunkedArray) else users
    numbers = encoded.dictionary_encode(null_encoding="encode").indices.to_numpy()
    rows = np.bincount(numbers)
    sums = np.stack([np.bincount(numbers, column, len(rows)) for column in values.T], 1)
    return sums, rows.astype(np.float64)


def confidence_intervals(
    values: np.ndarray, users: pa.ChunkedArray | Sequence | None = None, samples: int = 1000, seed: int = 0
) -> np.ndarray:
    """float64 [2, m]: low and high ends of the 95 % percentile intervals of the column means of `values` [n, m];
    arguments and errors of `bootstrap_means`."""
    return np.quantile(bootstrap_means(values, users, samples, seed), _ENDS, axis=0)


def intervals_of(
    values: Mapping[str, np.ndarray], users: pa.ChunkedArray | Sequence | None, samples: int, seed: int
) -> dict[str, list[float]]:
    """`{name: [low, high]}` of the means of columns [n] that stand side by side; none without samples."""
    if not samples:
        return {}
    low, high = confidence_intervals(np.stack(list(values.values()), 1), users, samples, seed)
    return {name: [float(low[i]), float(high[i])] for i, name in enumerate(values)}


def paired_difference(
    ours: np.ndarray,
    theirs: np.ndarray,
    users: pa.ChunkedArray | Sequence | None = None,
    samples: int = 1000,
    seed: int = 0,
) -> dict[str, np.ndarray]:
    """Mean difference of two recommenders on the same rows in the same order (float [n, m] each), `users` [n] as in
    `bootstrap_means`.

    Pairing removes what both find hard, so the interval is narrower than those of the two means suggest. Returned are
    `difference`, `low`, `high` and `p` (two-sided, from the share of resamples at or beyond 0), float64 [m] each.
    """
    if ours.shape != theirs.shape:
        raise ValueError(f"paired rows differ: {ours.shape} against {theirs.shape}")
    values = np.asarray(ours, np.float64) - theirs
    means = bootstrap_means(values, users, samples, seed)
    low, high = np.quantile(means, _ENDS, axis=0)
    beyond = np.minimum((means <= 0).sum(0), (means >= 0).sum(0))
    return {
        "difference": values.mean(0),
        "low": low,
        "high": high,
        "p": np.minimum(1, 2 * (beyond + 1) / (samples + 1)),
    }


def over_seeds(
    runs: Mapping[str, Sequence[Mapping[str, np.ndarray]]],
    reference: str | None,
    users: pa.ChunkedArray | Sequence | None = None,
) -> list[dict]:
    """Recommenders that were trained with one or more seeds, best ndcg@10 first. `runs` has for each one mapping per
    seed: metric → float [rows], the same metrics and rows (of `users`) for all.

    Returns:
        of each `name`, `seeds`, and per metric `mean`, `spread` (largest - smallest over seeds), `ci` (95 %, bootstrap
        over users of the seeds' mean) and, where the reference is among them, `against` and `against_ci` (the
        difference to it, and its interval).
    """
    means = {
        name: np.stack([np.mean([run[metric] for run in seeds], axis=0) for metric in seeds[0]], 1)
        for name, seeds in runs.items()
    }
    rows = []
    for name, seeds in runs.items():
        values = means[name]
        if reference in means:
            values = np.concatenate([values, values - means[reference]], 1)
        average, (low, high) = values.mean(0).tolist(), confidence_intervals(values, users).tolist()
        row = {"name": name, "seeds": len(seeds)}
        for place, metric in enumerate(seeds[0]):
            of_seeds = [float(np.mean(run[metric])) for run in seeds]
            spread = max(of_seeds) - min(of_seeds)
            row[metric] = {"mean": average[place], "spread": spread, "ci": [low[place], high[place]]}
            if reference in means:
                place += len(seeds[0])
                row[metric] |= {"against": average[place], "against_ci": [low[place], high[place]]}
        rows.append(row)
    return sorted(rows, key=lambda row: -row["ndcg@10"]["mean"])

"""Work on matrices that several rooms share: checks, blocks, norms, k-means, principal components, transport plans."""

import math
from hashlib import blake2b

import numpy as np
from scipy.linalg import eigh

_LARGEST = 1e15  # squares of rows of larger numbers are inf in float32, and k-means never ends on them


def check_features(features: np.ndarray, dim: int | None = None, first: int = 0) -> np.ndarray:
    """The features as contiguous float32 `[N, D]`; no copy where they are that already, as a memory map may be.
    `first` is the number of the first row.

    Raises:
        ValueError: not a matrix, no rows, NaN, inf or a number beyond 1e15 (names the row), or another width than
            `dim`.
    """
    features = np.ascontiguousarray(features, dtype=np.float32)
    if features.ndim != 2 or 0 in features.shape:
        raise ValueError(f"features must be a non-empty matrix [items, dimensions], not of shape {features.shape}")
    # The least and the greatest number of a block tell, without a matrix of truth values.
    suspect = [block for block in blocks(len(features)) if not (np.abs(_extremes(features[block])) <= _LARGEST).all()]
    if suspect:
        bad = [block.start + np.flatnonzero(~(np.abs(features[block]) <= _LARGEST).all(1)) for block in suspect]
        row, count = first + bad[0][0], sum(map(len, bad))
        what = "NaN or inf" if not np.isfinite(features[bad[0][0]]).all() else f"a number beyond {_LARGEST:g}"
        raise ValueError(f"features of row {row} hold {what} ({count} such rows): mend or drop these items")
    if dim is not None and features.shape[1] != dim:
        raise ValueError(f"features have {features.shape[1]} dimensions, the item tokenizer was fitted with {dim}")
    return features


def check_loss(loss, what: str) -> None:
    """Raises `FloatingPointError` where the loss of a step (a number, or a tensor of one) is NaN or inf. For loops of
    our own: `llmrec.training.RecommenderTrainer`, which trains language models, sees to it itself."""
    if not math.isfinite(loss):
        raise FloatingPointError(
            f"{what}: the loss is {float(loss)}, so training stops and nothing is written: lower its learning rate, "
            "or look for inputs that are very large"
        )


def _extremes(block: np.ndarray) -> tuple[float, float]:
    return block.min(), block.max()


def blocks(count: int, size: int = 8_192) -> list[slice]:
    """Slices of at most `size` rows that cover `count` rows: small enough for copies of them to stay in the cache."""
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]


def l2_normalize(rows: np.ndarray) -> np.ndarray:
    """Rows of unit length; zero rows stay zero."""
    norms = np.sqrt(np.vecdot(rows, rows))[:, None]
    return rows / np.where(norms > 0, norms, 1)


def unique_rows(rows: np.ndarray) -> np.ndarray:
    """int64: the first row of every distinct value, ascending. Linear, unlike `np.unique(axis=0)` on wide rows."""
    # Equal rows begin with equal numbers: the others, which is nearly all of them, need no second look.
    _, inverse, counts = np.unique(rows[:, 0].view(f"u{rows.itemsize}"), return_inverse=True, return_counts=True)
    first: dict[bytes, int] = {}
    keep = np.ones(len(rows), bool)
    for i in np.flatnonzero(counts[inverse] > 1):
        keep[i] = first.setdefault(row_digests(rows[i : i + 1])[0], i) == i
    return np.flatnonzero(keep)


def row_digests(rows: np.ndarray) -> list[bytes]:
    """16 bytes for the content of every row."""
    return [blake2b(row.tobytes(), digest_size=16).digest() for row in np.ascontiguousarray(rows)]


def kmeans(
    rows: np.ndarray, count: int, seed: int, niter: int = 25, nredo: int = 1, far_apart: bool = False
) -> np.ndarray:
    """Centroids float32 `[count, D]` of float32 `[N, D]`, N >= count.

    Args:
        niter (`int`), nredo (`int`): iterations, and restarts of which the best is kept.
        far_apart (`bool`): draws the first centroids far from each other (AFK-MC2, which is k-means++ by a Markov
            chain, at no cost in time) instead of at random.
    """
    import faiss

    method = faiss.ClusteringInitMethod_AFK_MC2 if far_apart else faiss.ClusteringInitMethod_RANDOM
    clustering = faiss.Kmeans(
        rows.shape[1], count, niter=niter, nredo=nredo, seed=seed, min_points_per_centroid=1, init_method=method
    )
    clustering.train(rows)
    return clustering.centroids.copy()


def principal_components(features: np.ndarray, dim: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean `[D]`, the first components `[dim, D]` and their variances `[dim]`, float64.

    From the covariance, summed up block by block: sklearn's PCA holds several float64 copies of all rows. The largest
    number of every component is positive, as there.
    """
    mean = features.mean(0, dtype=np.float64)
    width = len(mean)
    covariance = np.zeros((width, width))
    for block in blocks(len(features)):
        centred = features[block] - mean
        covariance += centred.T @ centred
    variance, vectors = eigh(covariance / max(1, len(features) - 1), subset_by_index=[width - dim, width - 1])
    components = vectors.T[::-1]
    largest = np.take_along_axis(components, np.abs(components).argmax(1)[:, None], axis=1)
    return mean, components * np.sign(largest), variance[::-1]


def sinkhorn(cost: np.ndarray, epsilon: float = 0.003, iterations: int = 50) -> np.ndarray:
    """Log of the transport plan, float64 `[B, K]`, between B rows of mass 1/B and K columns of mass 1/K.

    Costs are scaled to [-1, 1] first, as LC-Rec does, so epsilon has no unit. Potentials are kept in the log domain:
    exp(-1 / 0.003) is zero in any float. One row is nearest-first: a single item has nothing to be balanced against.
    """
    cost = cost.astype(np.float64)
    if len(cost) == 1:
        return -cost
    low, high = cost.min(), cost.max()
    log_kernel = -(cost - (high + low) / 2) / ((high - low) / 2 + 1e-12) / epsilon
    g = np.zeros(cost.shape[1])
    for _ in range(iterations):
        f = -np.log(len(cost)) - logsumexp(log_kernel + g, axis=1)
        g = -np.log(cost.shape[1]) - logsumexp(log_kernel + f[:, None], axis=0)
    return log_kernel + f[:, None] + g


def logsumexp(x: np.ndarray, axis: int) -> np.ndarray:
    """As scipy's, which costs ten times as much on small matrices."""
    top = x.max(axis, keepdims=True)
    return np.log(np.exp(x - top).sum(axis)) + top.squeeze(axis)

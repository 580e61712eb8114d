"""Preprocessing of features before quantisation; part of a tokenizer's saved state, or new items could not be encoded.

`none`        features as they are
`l2`          rows to unit length (a zero row stays zero)
`standardize` every dimension to mean 0, variance 1 (a constant dimension becomes 0); what keeps RQ-VAE alive
`pca_whiten`  `dim` principal components at variance 1 (OPQ papers use 128 to 512)
"""

from typing import Self

import numpy as np

MODES = ("none", "l2", "standardize", "pca_whiten")


def check_features(features: np.ndarray, dim: int | None = None) -> np.ndarray:
    """The features as contiguous float32 `[N, D]`; no copy where they are that already, as a memory map may be.

    Raises:
        ValueError: not a matrix, no rows, NaN or inf (names the row), or another width than `dim`.
    """
    features = np.ascontiguousarray(features, dtype=np.float32)
    if features.ndim != 2 or 0 in features.shape:
        raise ValueError(f"features must be a non-empty matrix [items, dimensions], not of shape {features.shape}")
    # The least and the greatest number of a block tell, without a matrix of truth values.
    suspect = [block for block in blocks(len(features)) if not np.isfinite(_extremes(features[block])).all()]
    if suspect:
        bad = [block.start + np.flatnonzero(~np.isfinite(features[block]).all(1)) for block in suspect]
        first, count = bad[0][0], sum(map(len, bad))
        raise ValueError(f"features of row {first} hold NaN or inf ({count} such rows): mend or drop these items")
    if dim is not None and features.shape[1] != dim:
        raise ValueError(f"features have {features.shape[1]} dimensions, the item tokenizer was fitted with {dim}")
    return features


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
    from hashlib import blake2b

    # Equal rows begin with equal numbers: the others, which is nearly all of them, need no second look.
    _, inverse, counts = np.unique(rows[:, 0].view(f"u{rows.itemsize}"), return_inverse=True, return_counts=True)
    first: dict[bytes, int] = {}
    keep = np.ones(len(rows), bool)
    for i in np.flatnonzero(counts[inverse] > 1):
        keep[i] = first.setdefault(blake2b(rows[i].tobytes(), digest_size=16).digest(), i) == i
    return np.flatnonzero(keep)


class Preprocess:
    """One of `MODES`, fitted.

    Args:
        mode (`str`): see the module docstring.
        dim (`int`, *optional*): number of components, for `pca_whiten` only.
    """

    def __init__(self, mode: str = "none", dim: int | None = None):
        if mode not in MODES:
            raise ValueError(f"preprocess {mode!r} is not one of {', '.join(MODES)}")
        if (mode == "pca_whiten") != (dim is not None):
            raise ValueError("preprocess_dim belongs to preprocess='pca_whiten', which needs it")
        self.mode = mode
        self.dim = dim
        self.state: dict[str, np.ndarray] = {}

    def fit(self, features: np.ndarray) -> Self:
        """Learns from float32 `[N, D]`; raises `ValueError` where the features have fewer directions than `dim`."""
        if self.mode == "standardize":
            scale = features.std(0, dtype=np.float64)
            mean = features.mean(0, dtype=np.float64)
            # A column of equal numbers has a tiny deviation from rounding: dividing by it would make noise a feature.
            constant = scale <= 1e-6 * np.abs(features).max(0)
            self.state = {"mean": mean, "scale": np.where(constant, np.inf, scale)}
        elif self.mode == "pca_whiten":
            from sklearn.decomposition import PCA

            if self.dim > min(features.shape):
                raise ValueError(f"preprocess_dim={self.dim} exceeds the features' {features.shape}: lower it")
            pca = PCA(self.dim, svd_solver="full").fit(features.astype(np.float64))
            variance = pca.explained_variance_
            held = int((variance > 1e-10 * variance[0]).sum()) if variance[0] > 0 else 0
            if held < self.dim:
                raise ValueError(f"the features vary in {held} directions only: lower preprocess_dim={self.dim}")
            self.state = {"mean": pca.mean_, "components": pca.components_ / np.sqrt(variance)[:, None]}
        return self

    def __call__(self, features: np.ndarray) -> np.ndarray:
        """float32 `[N, D]` to float32 `[N, D or dim]`; computed in float64, so that a row's result does not depend on
        the rows beside it."""
        if self.mode == "none":
            return features
        if self.mode == "l2":
            return l2_normalize(features.astype(np.float64)).astype(np.float32)
        centred = features.astype(np.float64) - self.state["mean"]
        if self.mode == "standardize":
            return (centred / self.state["scale"]).astype(np.float32)
        return (centred @ self.state["components"].T).astype(np.float32)

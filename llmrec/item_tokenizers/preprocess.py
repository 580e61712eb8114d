"""Preprocessing of features before quantisation; part of a tokenizer's saved state, or new items could not be encoded.

`none`        features as they are
`l2`          rows to unit length (a zero row stays zero)
`standardize` every dimension to mean 0, variance 1 (a constant dimension becomes 0); what keeps RQ-VAE alive
`pca_whiten`  `dim` principal components at variance 1 (OPQ papers use 128 to 512)
"""

from typing import Self

import numpy as np

MODES = ("none", "l2", "standardize", "pca_whiten")
_RESOLUTION = 2e-7  # of float32: what two neighbouring numbers differ by, as a share of them, and a little more


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
            # Some columns at a time: numpy takes a float64 copy of what it computes a deviation of.
            parts = [features[:, some] for some in blocks(features.shape[1], 64)]
            scale = np.concatenate([part.std(0, dtype=np.float64) for part in parts])
            # A column of numbers that float32 can hardly tell apart: dividing by it would make noise a feature.
            constant = scale <= _RESOLUTION * np.maximum(features.max(0), -features.min(0))
            self.state = {
                "mean": features.mean(0, dtype=np.float64),
                "scale": np.where(constant, np.inf, scale),
            }
        elif self.mode == "pca_whiten":
            if self.dim > min(features.shape):
                raise ValueError(f"preprocess_dim={self.dim} exceeds the features' {features.shape}: lower it")
            mean, components, variance = _principal(features, self.dim)
            held = int((variance > 1e-10 * variance[0]).sum()) if variance[0] > 0 else 0
            if held < self.dim:
                raise ValueError(f"the features vary in {held} directions only: lower preprocess_dim={self.dim}")
            self.state = {"mean": mean, "components": components / np.sqrt(variance)[:, None]}
        return self

    def __call__(self, features: np.ndarray) -> np.ndarray:
        """float32 `[N, D]` to float32 `[N, D or dim]`; computed in float64, so that a row's result does not depend on
        the rows beside it, and block by block, so that no float64 copy of all rows is held."""
        if self.mode == "none":
            return features
        width = len(self.state["components"]) if self.mode == "pca_whiten" else features.shape[1]
        result = np.empty((len(features), width), np.float32)
        for block in blocks(len(features)):
            result[block] = self._rows(features[block].astype(np.float64))
        return result

    def _rows(self, rows: np.ndarray) -> np.ndarray:
        if self.mode == "l2":
            return l2_normalize(rows)
        rows -= self.state["mean"]
        return rows / self.state["scale"] if self.mode == "standardize" else rows @ self.state["components"].T


def _principal(features: np.ndarray, dim: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean `[D]`, the first components `[dim, D]` and their variances `[dim]`, float64.

    From the covariance, summed up block by block: sklearn's PCA holds several float64 copies of all rows. The largest
    number of every component is positive, as there.
    """
    from scipy.linalg import eigh

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

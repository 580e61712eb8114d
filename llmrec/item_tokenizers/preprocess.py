"""Preprocessing of features before quantisation; part of a tokenizer's saved state, or new items could not be encoded.

`none`        features as they are
`l2`          rows to unit length (a zero row stays zero)
`standardize` every dimension to mean 0, variance 1 (a constant dimension becomes 0); what keeps RQ-VAE alive
`pca_whiten`  `dim` principal components at variance 1 (OPQ papers use 128 to 512)
"""

from typing import Self

import numpy as np

from llmrec.arguments import one_of
from llmrec.arrays import blocks, l2_normalize, principal_components

MODES = ("none", "l2", "standardize", "pca_whiten")


class Preprocess:
    """One of `MODES` (see the module docstring), fitted; `dim` components belong to `pca_whiten` only."""

    def __init__(self, mode: str = "none", dim: int | None = None):
        one_of(mode, MODES, "preprocess")
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
            # Numbers that float32 (resolution 1.2e-7) can hardly tell apart: dividing would make noise a feature.
            constant = scale <= 2e-7 * np.maximum(features.max(0), -features.min(0))
            mean = features.mean(0, dtype=np.float64)
            self.state = {"mean": mean, "scale": np.where(constant, np.inf, scale)}
        elif self.mode == "pca_whiten":
            if self.dim > min(features.shape):
                raise ValueError(f"preprocess_dim={self.dim} exceeds the features' {features.shape}: lower it")
            mean, components, variance = principal_components(features, self.dim)
            directions = int((variance > 1e-10 * variance[0]).sum()) if variance[0] > 0 else 0
            if directions < self.dim:
                raise ValueError(f"the features vary in {directions} directions only: lower preprocess_dim={self.dim}")
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

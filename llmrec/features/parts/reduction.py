"""`reduce: {pca: 64, whiten: true}` of any part: principal components, fitted on training items, saved with the state.

Zero rows mean "nothing is known": they teach nothing and stay zero, where plain PCA would move them to minus the mean.
"""

from typing import Self

import numpy as np


class Reduction:
    """PCA.

    Args:
        pca (`int`): components that are kept.
        whiten (`bool`): every component at variance 1, so that small differences count as much as large ones.
    """

    def __init__(self, pca: int, whiten: bool = False):
        if not isinstance(pca, int) or pca < 1:
            raise ValueError(f"reduce: pca={pca!r} must be a positive whole number")
        self.config = {"pca": pca, "whiten": bool(whiten)}
        self.mean = self.components = np.empty(0)

    def fit(self, rows: np.ndarray, seed: int) -> Self:
        """Learns from `[N, D]`; raises `ValueError` where the rows vary in fewer than `pca` directions."""
        from sklearn.decomposition import PCA

        dim = self.config["pca"]
        rows = rows[rows.any(1)].astype(np.float64)
        directions = 0
        if dim <= min(rows.shape):
            pca = PCA(dim, random_state=seed).fit(rows)
            variance = pca.explained_variance_
            directions = int((variance > max(1e-10 * variance[0], 1e-12 * (rows**2).mean())).sum())
        if directions < dim:
            raise ValueError(
                f"reduce: pca={dim} needs {dim} directions; {len(rows)} training rows of {rows.shape[1]} dimensions "
                f"that are not zero have {directions or 'fewer'}: lower it"
            )
        scale = np.sqrt(variance) if self.config["whiten"] else np.ones(dim)
        self.mean, self.components = pca.mean_, pca.components_ / scale[:, None]
        return self

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        """`[N, D]` to float32 `[N, pca]`."""
        reduced = (rows.astype(np.float64) - self.mean) @ self.components.T
        return np.where(rows.any(1, keepdims=True), reduced, 0).astype(np.float32)

    def arrays(self) -> dict[str, np.ndarray]:
        return {"mean": self.mean, "components": self.components}

    def restore(self, arrays: dict[str, np.ndarray]) -> None:
        self.mean, self.components = arrays["mean"], arrays["components"]

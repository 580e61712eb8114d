"""RQ-KMeans: k-means on the features, then on what is left over, level by level (GRID's RK-Means, CIKM 2025,
2507.22224; OneRec, 2502.18965).

Runs on `faiss.Kmeans`: deterministic for a seed (on one machine), seconds on a CPU. Residuals are normalised to unit
length before every level, as GRID does and OneRec does not. Codebooks are learned from distinct rows: an item that is
listed a hundred times pulls no centroid, and a residual of zero (an item alone in its cluster) none at the next level.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Self

import numpy as np

from llmrec.item_tokenizers.preprocess import Preprocess, check_features, l2_normalize, unique_rows
from llmrec.item_tokenizers.protocol import load_state, part_of, save_state
from llmrec.item_tokenizers.residual import encode_residuals, last_level_costs, nearest, next_residual


class RQKMeans:
    """Residual k-means.

    Args:
        codebook_sizes (sequence of `int`): codes per level, coarse to fine.
        normalize_residuals (`bool`): scale residuals to unit length before every level.
        preprocess (`str`), preprocess_dim (`int`, *optional*): see `llmrec.item_tokenizers.preprocess`.
        niter (`int`), nredo (`int`): iterations of k-means, and restarts of which the best is kept.
    """

    name = "rq_kmeans"
    ordered = True
    fixed_length = True
    contextual = False
    adds_tokens = True
    decodes_to_vector = True

    def __init__(
        self,
        codebook_sizes: Sequence[int] = (256, 256, 256),
        normalize_residuals: bool = True,
        preprocess: str = "none",
        preprocess_dim: int | None = None,
        niter: int = 25,
        nredo: int = 1,
    ):
        self.codebook_sizes = tuple(int(size) for size in codebook_sizes)
        if not self.codebook_sizes or min(self.codebook_sizes) < 1:
            raise ValueError(f"codebook_sizes={list(codebook_sizes)} must be one or more positive numbers")
        self.normalize_residuals = normalize_residuals
        self.preprocess = Preprocess(preprocess, preprocess_dim)
        self.niter = niter
        self.nredo = nredo
        self.dim: int | None = None
        self.codebooks: list[np.ndarray] = []

    @property
    def config(self) -> dict:
        return {
            "codebook_sizes": list(self.codebook_sizes),
            "normalize_residuals": self.normalize_residuals,
            "preprocess": self.preprocess.mode,
            "preprocess_dim": self.preprocess.dim,
            "niter": self.niter,
            "nredo": self.nredo,
        }

    def fit(self, features: np.ndarray, seed: int = 0) -> Self:
        features = check_features(features)
        self.dim = features.shape[1]
        residual = self.preprocess.fit(features)(features)
        residual = residual[unique_rows(residual)]
        self.codebooks = []
        for level, size in enumerate(self.codebook_sizes):
            residual = l2_normalize(residual) if self.normalize_residuals else residual
            self.codebooks.append(self._kmeans(residual, size, level, seed))
            vectors = self.codebooks[-1][nearest(residual, self.codebooks[-1])]
            residual = next_residual(residual, vectors)
            residual = residual[residual.any(1)]
        return self

    def _kmeans(self, rows: np.ndarray, size: int, level: int, seed: int) -> np.ndarray:
        import faiss

        if len(rows) < size:
            what = "distinct items" if level == 0 else "items that the levels before leave a rest of"
            raise ValueError(f"level {level} has {size} codes for {len(rows)} {what}: lower codebook_sizes[{level}]")
        kmeans = faiss.Kmeans(
            rows.shape[1], size, niter=self.niter, nredo=self.nredo, seed=seed + level, min_points_per_centroid=1
        )
        kmeans.train(rows)
        return kmeans.centroids.copy()

    def encode(self, features: np.ndarray) -> np.ndarray:
        return encode_residuals(self._transform(features), self.codebooks, self.normalize_residuals)

    def last_level_costs(self, features: np.ndarray, codes: np.ndarray) -> np.ndarray:
        return last_level_costs(self._transform(features), codes, self.codebooks, self.normalize_residuals)

    def _transform(self, features: np.ndarray) -> np.ndarray:
        if not self.codebooks:
            raise ValueError("this item tokenizer is not fitted: call fit(features) first")
        return self.preprocess(check_features(features, self.dim))

    def save_pretrained(self, folder: str | Path) -> None:
        if not self.codebooks:
            raise ValueError("this item tokenizer is not fitted: there is nothing to save")
        arrays = {f"codebooks.{level}": codebook for level, codebook in enumerate(self.codebooks)}
        arrays |= {f"preprocess.{name}": array for name, array in self.preprocess.state.items()}
        save_state(folder, {"name": self.name, **self.config, "dim": self.dim}, arrays)

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> Self:
        config, arrays = load_state(folder)
        del config["name"]
        dim = config.pop("dim")
        tokenizer = cls(**config)
        tokenizer.dim = dim
        tokenizer.codebooks = [arrays[f"codebooks.{level}"] for level in range(len(tokenizer.codebook_sizes))]
        tokenizer.preprocess.state = part_of(arrays, "preprocess.")
        return tokenizer

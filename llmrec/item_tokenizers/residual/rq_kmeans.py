"""RQ-KMeans: k-means on the features, then on what is left over, level by level (GRID's RK-Means, CIKM 2025,
2507.22224; OneRec, 2502.18965).

Runs on `faiss.Kmeans`: deterministic for a seed (on one machine), seconds on a CPU. Residuals are normalised to unit
length before every level, as GRID does and OneRec does not. The first centroids are drawn far from each other
(AFK-MC2, which is k-means++ by a Markov chain, at no cost in time); OneRec and OpenOneRec draw them at random.
"""

from collections.abc import Sequence

import numpy as np

from llmrec.item_tokenizers.residual.balance import BALANCES, balanced_kmeans
from llmrec.item_tokenizers.residual.quantizer import ResidualCodebooks


class RQKMeans(ResidualCodebooks):
    """Residual k-means.

    Args:
        codebook_sizes (sequence of `int`): codes per level, coarse to fine.
        normalize_residuals (`bool`): scale residuals to unit length before every level.
        preprocess (`str`), preprocess_dim (`int`, *optional*): see `llmrec.item_tokenizers.preprocess`.
        niter (`int`), nredo (`int`): iterations of k-means, and restarts of which the best is kept.
        balance (`str`): `none`, or how clusters are made equally large: `greedy`, `sinkhorn` or `constrained`, see
            `balance.py`. Fitted items keep their balanced codes, new ones go to the nearest.
    """

    name = "rq_kmeans"

    def __init__(
        self,
        codebook_sizes: Sequence[int] = (256, 256, 256),
        normalize_residuals: bool = True,
        preprocess: str = "none",
        preprocess_dim: int | None = None,
        niter: int = 25,
        nredo: int = 1,
        balance: str = "none",
    ):
        if balance not in BALANCES:
            raise ValueError(f"balance {balance!r} is not one of {', '.join(BALANCES)}")
        super().__init__(codebook_sizes, normalize_residuals, preprocess, preprocess_dim, balance != "none")
        self.niter = niter
        self.nredo = nredo
        self.balance = balance

    @property
    def config(self) -> dict:
        return {**super().config, "niter": self.niter, "nredo": self.nredo, "balance": self.balance}

    def learn_codebook(self, rows: np.ndarray, size: int, seed: int) -> tuple[np.ndarray, np.ndarray | None]:
        import faiss

        kmeans = faiss.Kmeans(
            rows.shape[1],
            size,
            niter=self.niter,
            nredo=self.nredo,
            seed=seed,
            min_points_per_centroid=1,
            init_method=faiss.ClusteringInitMethod_AFK_MC2,
        )
        kmeans.train(rows)
        centroids = kmeans.centroids.copy()
        if self.balance == "none":
            return centroids, None
        return balanced_kmeans(self.balance, rows, centroids, self.niter, seed)

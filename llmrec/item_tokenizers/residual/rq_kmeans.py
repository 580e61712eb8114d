"""RQ-KMeans: k-means on the features, then on what is left over, level by level (GRID's RK-Means, CIKM 2025,
2507.22224; OneRec, 2502.18965).

Runs on `faiss.Kmeans`: deterministic for a seed (on one machine), seconds on a CPU. Residuals are normalised to unit
length before every level, as GRID does and OneRec does not. The first centroids are drawn far from each other; OneRec
and OpenOneRec draw them at random.
"""

from dataclasses import dataclass

import numpy as np

from llmrec.arguments import one_of
from llmrec.arrays import kmeans
from llmrec.item_tokenizers.residual.balance import BALANCES, balanced_kmeans
from llmrec.item_tokenizers.residual.quantizer import ResidualCodebooks


@dataclass(eq=False)
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

    niter: int = 25
    nredo: int = 1
    balance: str = "none"

    def __post_init__(self):
        super().__post_init__()
        one_of(self.balance, BALANCES, "balance")
        self.traits = self.traits._replace(nearest=self.balance == "none")

    def learn_codebook(self, rows: np.ndarray, size: int, seed: int) -> tuple[np.ndarray, np.ndarray | None]:
        centroids = kmeans(rows, size, seed, self.niter, self.nredo, far_apart=True)
        if self.balance == "none":
            return centroids, None
        return balanced_kmeans(self.balance, rows, centroids, self.niter, seed)

"""RQ-KMeans: k-means on the features, then on what is left over, level by level (GRID's RK-Means, CIKM 2025,
2507.22224; OneRec, 2502.18965).

Runs on `faiss.Kmeans`: deterministic for a seed (on one machine), seconds on a CPU. Residuals are normalised to unit
length before every level, as GRID does and OneRec does not. The first centroids are drawn far from each other; OneRec
and OpenOneRec draw them at random.

`balance` makes clusters of about the same number of rows, so that no token is rare:

`greedy`      OneRec's Algorithm 1: one cluster after the other takes the rows nearest to it. Sizes differ by one at
              most: the paper leaves N mod K rows over, here the first N mod K clusters take one more. Late clusters
              get what is left, however far away.
`sinkhorn`    optimal transport with equal mass on every code (LC-Rec's uniform mapping, 2311.09049) in every update.
              Balanced nearly, not exactly.
`constrained` the nearest exactly balanced assignment, by minimum cost flow; slow beyond some 20,000 rows. Needs the
              package k-means-constrained.

All of them begin with the centroids of plain k-means instead of random ones, and hold K x N distances in memory.
Balance costs reconstruction and makes no SemID unique: that is the collision policy's job.
"""

from dataclasses import dataclass
from functools import partial

import numpy as np
from scipy.sparse import csr_array

from llmrec.arguments import one_of
from llmrec.arrays import blocks, kmeans, logsumexp
from llmrec.item_tokenizers.residual.quantizer import ResidualCodebooks

BALANCES = ("none", "greedy", "sinkhorn", "constrained")


@dataclass(eq=False)
class RQKMeans(ResidualCodebooks):
    """Residual k-means.

    Args:
        codebook_sizes, normalize_residuals, preprocess, preprocess_dim: see `ResidualCodebooks`.
        niter, nredo: iterations of k-means, and restarts of which the best is kept.
        balance: one of `BALANCES`. Fitted items keep their balanced codes, new ones go to the nearest.
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


def balanced_kmeans(
    balance: str, rows: np.ndarray, centroids: np.ndarray, niter: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Centroids float32 `[K, d]` and codes int32 `[N]` of rows float32 `[N, d]`, N >= K.

    Args:
        balance: one of `BALANCES` but `none`. centroids: to begin with, float32 `[K, d]`.
        niter: updates at most; it ends when the codes stay.
    """
    if balance == "constrained":
        return _constrained(rows, centroids, niter, seed)
    assign = greedy if balance == "greedy" else partial(sinkhorn, prices=np.zeros(len(centroids), np.float32))
    codes = None
    for _ in range(max(niter, 1)):
        squared = np.vecdot(centroids, centroids)[:, None] - 2 * centroids @ rows.T + np.vecdot(rows, rows)
        before, codes = codes, assign(squared)
        if before is not None and (before == codes).all():
            break
        centroids = _means(rows, codes, centroids)
    return centroids, codes


def greedy(cost: np.ndarray) -> np.ndarray:
    """int32 `[N]` for costs `[K, N]`: every code in its turn takes the N / K cheapest rows that are left."""
    size, more = divmod(cost.shape[1], len(cost))
    codes = np.empty(cost.shape[1], np.int32)
    left = np.arange(cost.shape[1])
    for code, costs in enumerate(cost):
        take = size + (code < more)
        order = np.argpartition(costs[left], take - 1) if take < len(left) else np.arange(len(left))
        codes[left[order[:take]]] = code
        left = np.sort(left[order[take:]])
    return codes


def sinkhorn(cost: np.ndarray, prices: np.ndarray, epsilon: float = 0.01, rounds: int = 10) -> np.ndarray:
    """int32 `[N]` for costs `[K, N]`: the largest entry of every row's transport plan, all codes having equal mass.

    In the log domain, for costs scaled to [-1, 1]: exp(-1 / epsilon) is zero in float32. LC-Rec's epsilon is 0.003,
    which needs many more rounds. `prices` (the codes' potentials, float32 `[K]`) are updated in place: handed on from
    one update of the centroids to the next, they need few rounds each time.
    """
    low, high = cost.min(), cost.max()
    scale = np.float32(-2 / (max(high - low, 1e-20) * epsilon))  # all costs are equal where no residual is left
    for _ in range(rounds):
        mass = np.full(len(prices), -np.inf)
        for block in blocks(cost.shape[1]):
            plan = scale * (cost[:, block] - low) + prices[:, None]
            plan -= logsumexp(plan, 0)
            mass = np.logaddexp(mass, logsumexp(plan, 1))
        prices -= (mass - mass.mean()).astype(np.float32)
    codes = np.empty(cost.shape[1], np.int32)
    for block in blocks(cost.shape[1]):
        codes[block] = (scale * (cost[:, block] - low) + prices[:, None]).argmax(0)
    return codes


def _means(rows: np.ndarray, codes: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    """The mean of every cluster; an empty one keeps its centroid."""
    members = csr_array((np.ones(len(rows), np.float32), (codes, np.arange(len(rows)))), (len(centroids), len(rows)))
    counts = np.bincount(codes, minlength=len(centroids)).astype(np.float32)[:, None]
    return np.where(counts > 0, members @ rows / np.maximum(counts, 1), centroids)


def _constrained(rows: np.ndarray, centroids: np.ndarray, niter: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    try:
        from k_means_constrained import KMeansConstrained
    except ImportError as error:
        raise ValueError("balance='constrained' needs another package: pip install 'llmrec[balanced]'") from error
    least, more = divmod(len(rows), len(centroids))
    kmeans = KMeansConstrained(
        len(centroids),
        size_min=least,
        size_max=least + (more > 0),
        init=centroids,
        n_init=1,
        max_iter=niter,
        random_state=seed,
        n_jobs=1,
    ).fit(rows)
    return kmeans.cluster_centers_.astype(np.float32), kmeans.labels_.astype(np.int32)

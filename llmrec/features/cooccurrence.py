"""Item embeddings from who is consumed near whom: a truncated SVD of positive pointwise mutual information.

Levy and Goldberg (NeurIPS 2014): this factorises what word2vec (and item2vec) learns. Training sequences only.
"""

import logging
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
from scipy import sparse

from llmrec.arrays import l2_normalize
from llmrec.data.rows import lists_to_rows

logger = logging.getLogger(__name__)


def cooccurrence_embeddings(
    item_ids: list[str], train: pa.Table, dim: int = 64, window: int = 5, seed: int = 0
) -> np.ndarray:
    """float32 `[N, dim]` for the N items of a catalogue: rows of unit length, zero for an item without neighbours.

    Items at most `window` apart in a training sequence (`PreparedData.train`) count as a pair.
    Raises `ValueError` on fewer than `dim` + 1 items, an item that is not in the catalogue, or no pairs at all.
    """
    from sklearn.decomposition import TruncatedSVD

    if len(item_ids) <= dim:
        raise ValueError(f"cooccurrence features of {dim} dimensions need more than {len(item_ids)} items: lower dim")
    items, offsets = lists_to_rows(train["item_ids"], item_ids)
    counts = sparse.csr_matrix((len(item_ids), len(item_ids)), dtype=np.float64)
    for left, right in pairs_within(items, offsets, window):
        counts = counts + sparse.coo_matrix((np.ones(len(left)), (left, right)), shape=counts.shape).tocsr()
    counts = (counts + counts.T).tocoo()
    if not counts.nnz:
        raise ValueError("no training sequence holds two different items: there is nothing to learn neighbours from")
    total = counts.sum()
    frequency = np.asarray(counts.sum(1)).reshape(-1)
    # Context counts to the power 0.75 keep rare items from having the largest values (Levy et al., TACL 2015).
    context = frequency**0.75
    context *= total / context.sum()
    pmi = np.log(counts.data * total / (frequency[counts.row] * context[counts.col]))
    positive = pmi > 0
    matrix = sparse.csr_matrix((pmi[positive], (counts.row[positive], counts.col[positive])), shape=counts.shape)
    svd = TruncatedSVD(dim, random_state=seed)
    left = svd.fit_transform(matrix)
    logger.info("co-occurrence: %d pairs; %d items have neighbours", matrix.nnz, (frequency > 0).sum())
    left /= np.sqrt(np.maximum(svd.singular_values_, 1e-12))
    return l2_normalize(left).astype(np.float32)


def pairs_within(items: np.ndarray, offsets: np.ndarray, window: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """`(earlier, later)` int32 for every distance from 1 to `window`: different items so far apart in a sequence."""
    sequence = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    for distance in range(1, window + 1):
        left, right = items[:-distance], items[distance:]
        near = (sequence[:-distance] == sequence[distance:]) & (left != right)
        yield left[near], right[near]

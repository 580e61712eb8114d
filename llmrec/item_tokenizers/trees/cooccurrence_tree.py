"""Collaborative indexing (P5-CID: "How to Index Item IDs", 2305.06569): a tree of items that the same users consume.

The affinity of two items is the number of training users whose sequence holds both, in any order. Its graph is cut by
spectral clustering, and so is every cluster of more than `max_leaf` items. The SemID is the path, then the place in
the leaf.

Unlike the paper's code this never builds a dense matrix: the leading eigenvectors of the sparse normalised affinity
take seconds for ten thousand items, and pivoted QR makes clusters of them (Damle, Minden and Ying, 2019). A hundredth
of the mean degree is spread over all pairs (Amini et al., 2013), so parts without a link between them are no special
case. Where a cut leaves one cluster with nearly all items, they are cut in equal parts along the second eigenvector.
"""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from scipy import sparse
from scipy.linalg import eigh, polar, qr
from scipy.sparse.linalg import LinearOperator, eigsh
from tqdm.auto import tqdm

from llmrec.data.rows import lists_to_rows
from llmrec.item_tokenizers.by_item import KeyedByItem, hash_digits
from llmrec.item_tokenizers.protocol import Traits
from llmrec.item_tokenizers.trees.base import Leaf, leaf_codes, node_numbers


@dataclass(eq=False)
class CooccurrenceTree(KeyedByItem):
    """Tree of co-occurring items.

    An item without a neighbour in training, as any new one, gets the spare child of the root, then digits of a hash of
    its id: a code that depends on nothing else, and that few others have.

    Args:
        clusters: children of a node; the paper takes 10 or 20.
        max_leaf: the most items of a leaf; the paper takes 200 or 500.
        node_tokens: every inner node is a token of its own, as in the paper; otherwise a token is the number
            of a child, the same for all parents. Places in a leaf are the same tokens for all leaves.
    """

    name = "cooccurrence_tree"
    traits = Traits(fixed_length=False, decodes_to_vector=False, nearest=False, needs=("items", "train"))
    learned = ("codebook_sizes",)

    clusters: int = 20
    max_leaf: int = 200
    node_tokens: bool = True

    def __post_init__(self):
        if not 2 <= self.clusters < self.max_leaf:
            wrong = f"clusters={self.clusters} and max_leaf={self.max_leaf}"
            raise ValueError(f"{wrong}: write 2 <= clusters < max_leaf")

    def learn(self, features, items: pa.Table, train: pa.Table, seed: int) -> None:
        items = items.sort_by("item_id")
        counts = shared_users(items["item_id"], train)
        linked = np.flatnonzero(np.diff(counts.indptr))
        if not len(linked):
            raise ValueError("no training sequence holds two different items: there is nothing to cluster items by")
        codes = leaf_codes(self._grow(counts[linked][:, linked], seed), len(linked))
        if codes.shape[1] == 1:  # the root is a leaf; the spare child needs a level all the same
            codes = np.pad(codes, ((0, 0), (1, 0)), constant_values=-1)
        if self.node_tokens:
            codes[:, :-1] = node_numbers(codes[:, :-1])
        sizes = codes.max(0) + 1
        sizes[0] += 1
        self.codebook_sizes = tuple(sizes.tolist())
        self.remember(items.take(pa.array(linked)), codes)

    def _grow(self, counts, seed: int) -> list[Leaf]:
        nodes, leaves = [((), np.arange(counts.shape[0]))], []
        progress = tqdm(total=counts.shape[0], desc="co-occurrence tree", unit="item", delay=2)
        for path, members in nodes:
            if len(members) <= self.max_leaf:
                leaves.append((path, members))
                progress.update(len(members))
                continue
            labels = spectral_clusters(counts[members][:, members], self.clusters, seed)
            parts = [members[labels == label] for label in np.unique(labels)]
            nodes += [((*path, child), part) for child, part in enumerate(parts)]
        progress.close()
        return leaves

    def new_codes(self, features: np.ndarray, items: pa.Table) -> np.ndarray:
        codes = hash_digits(items["item_id"].to_pylist(), self.codebook_sizes)
        codes[:, 0] = self.codebook_sizes[0] - 1
        return codes


def shared_users(item_ids: pa.ChunkedArray, train: pa.Table):
    """Sparse float64 `[N, N]`, symmetric, diagonal empty: how many users' sequences hold both items."""
    rows, offsets = lists_to_rows(train["item_ids"], item_ids)
    users = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    holds = sparse.coo_matrix((np.ones(len(rows)), (users, rows)), shape=(len(offsets) - 1, len(item_ids))).tocsr()
    holds.data[:] = 1  # an item that a user consumed twice is still one
    counts = (holds.T @ holds).tocsr()
    counts.setdiag(0)
    counts.eliminate_zeros()
    return counts


def spectral_clusters(counts, clusters: int, seed: int = 0) -> np.ndarray:
    """int64 `[N]`: a cluster for every node of a graph, sparse symmetric `[N, N]` with N > clusters."""
    vectors = _leading_vectors(counts, clusters, seed)
    # The cluster of a row is the axis it is nearest to, after the axes were turned to the rows that differ most.
    pivots = qr(vectors.T, mode="economic", pivoting=True)[2][: vectors.shape[1]]
    labels = np.abs(vectors @ polar(vectors[pivots].T)[0]).argmax(1)
    # Such a cut would make the tree as deep as the catalogue is large.
    if np.bincount(labels).max() > 0.9 * len(labels):
        place = np.argsort(np.argsort(vectors[:, -2], kind="stable"))
        labels = place * clusters // len(place)
    return labels


def _leading_vectors(counts, number: int, seed: int) -> np.ndarray:
    """Eigenvectors `[N, number]` of the normalised affinity, ascending by eigenvalue."""
    size = counts.shape[0]
    degree = np.asarray(counts.sum(1)).reshape(-1)
    spread = 0.01 * degree.mean() + 1e-9
    scale = 1 / np.sqrt(degree + spread)
    if size <= 500:  # LAPACK is faster than ARPACK, and cannot fail to converge
        dense = (counts.toarray() + spread / size) * scale[:, None] * scale
        return eigh(dense, subset_by_index=[size - number, size - 1])[1]

    def product(x: np.ndarray) -> np.ndarray:
        scaled = scale * x.reshape(-1)
        return scale * (counts @ scaled + spread / size * scaled.sum())

    start = np.random.default_rng(seed).random(size)
    operator = LinearOperator((size, size), matvec=product, dtype=np.float64)
    return eigsh(operator, number, which="LA", v0=start, tol=1e-6)[1]

"""A balanced tree over the features (SEATER, SIGIR-AP 2024, 2309.13375): k-means with clusters of equal size, again
inside every cluster, until one holds no more items than a node has children.

As in SEATER every node is a token. It builds the tree on SASRec's item embeddings; here any features do, these too
(`features: [{kind: collaborative}]`). Its two further losses on the tokens are left out.

Items with equal features are one leaf. Balance is exact: the children of a node with n items have n // k or
n // k + 1. Who goes where is decided greedily: all items name their nearest cluster with room, a cluster that too many
name takes those that would lose most by their second choice, and the others choose again.
"""

from dataclasses import dataclass
from math import isqrt

import numpy as np
from tqdm.auto import tqdm

from llmrec.arrays import kmeans, row_digests, unique_rows
from llmrec.item_tokenizers.protocol import ItemTokenizer, Remembered, Traits
from llmrec.item_tokenizers.residual.quantizer import nearest
from llmrec.item_tokenizers.trees.base import leaf_codes, node_numbers


@dataclass(eq=False)
class BalancedTree(ItemTokenizer):
    """Balanced k-means tree.

    Fitted rows are known by content. A new row goes to the child with the nearest centroid, down to a leaf, and gets
    the code of the nearest item there: the collision policy tells the two apart.

    Args:
        branching: children of a node, and the most items of a leaf; SEATER takes 8 or 16. By default the square root
            of the items: one level of clusters above the items, two tokens an item.
        node_tokens: every node is a token of its own: as many tokens as items, and those of the inner nodes. Its
            vector (`codebooks`, which new embeddings start from) is the mean of the items under it. Without, a token
            is the number of a child, the same for all parents: `branching` tokens a level for any number of items,
            but a number means something else in every branch, which small models do not learn.
    """

    name = "balanced_tree"
    traits = Traits(fixed_length=False, decodes_to_vector=False, nearest=False)

    branching: int | None = None
    node_tokens: bool = True

    def __post_init__(self):
        if self.branching is not None and self.branching < 2:
            raise ValueError(f"branching={self.branching} must be at least 2")

    def _width(self, rows: int) -> int:
        return self.branching or max(2, isqrt(rows - 1) + 1)  # the root, rounded up

    def learn(self, features: np.ndarray, items, train, seed: int) -> None:
        rows = features[unique_rows(features)]
        width = self._width(len(rows))
        # Nodes from the root on, breadth first: their parents `[M]` and centroids `[M, D]`; the leaf of every row.
        parents, nodes, leaves = [-1], [((), np.arange(len(rows)))], []
        leaf_of = np.empty(len(rows), np.int64)
        progress = tqdm(total=len(rows), desc="balanced tree", unit="item", delay=2)
        for node, (path, members) in enumerate(nodes):
            if len(members) <= width:
                leaf_of[members] = node
                leaves.append((path, members))
                progress.update(len(members))
                continue
            cluster = balanced_clusters(rows[members], width, seed)
            for child in range(width):
                parents.append(node)
                nodes.append(((*path, child), members[cluster == child]))
        progress.close()
        centroids = np.stack([rows[members].mean(0, dtype=np.float64) for _, members in nodes]).astype(np.float32)
        codes = leaf_codes(leaves, len(rows))
        codes = node_numbers(codes) if self.node_tokens else codes
        self.remembered = Remembered(row_digests(rows), codes)
        self._adopt({"rows": rows, "leaf_of": leaf_of, "parents": np.array(parents), "centroids": centroids})

    def _adopt(self, arrays: dict[str, np.ndarray]) -> None:
        codes = self.remembered.codes
        width = self._width(len(arrays["rows"]))
        self.codebook_sizes = tuple((codes.max(0) + 1).tolist()) if self.node_tokens else (width,) * codes.shape[1]
        self._arrays, self.dim = arrays, arrays["rows"].shape[1]
        # Siblings and the members of a leaf stand in the order in which they were numbered.
        count = np.arange(len(arrays["parents"]) + 1)
        by_parent = np.argsort(arrays["parents"], kind="stable")
        self._children = np.split(by_parent, np.searchsorted(arrays["parents"][by_parent], count[:-1]))[1:]
        by_leaf = np.argsort(arrays["leaf_of"], kind="stable")
        leaves, starts = np.unique(arrays["leaf_of"][by_leaf], return_index=True)
        self._members = dict(zip(leaves.tolist(), np.split(by_leaf, starts[1:])))

    @property
    def codebooks(self) -> list[np.ndarray]:
        """float32 `[K_l, D]` per level: the mean of the items under every node; empty where nodes are no tokens."""
        if not self.node_tokens or not hasattr(self, "_arrays"):
            return []
        rows, means = self._arrays["rows"], []
        codes, _ = self.remembered.recall(rows)
        for size, column in zip(self.codebook_sizes, codes.T):
            sums, under = np.zeros((size, rows.shape[1])), column >= 0
            np.add.at(sums, column[under], rows[under])
            means.append((sums / np.bincount(column[under], minlength=size)[:, None]).astype(np.float32))
        return means

    def codes_of(self, features: np.ndarray, items) -> np.ndarray:
        codes, known = self.remembered.recall(features)
        waiting = [] if known.all() else [(0, np.flatnonzero(~known))]
        for node, here in waiting:
            if node in self._members:
                members = self._members[node]
                fitted = members[nearest(features[here], self._arrays["rows"][members])]
                codes[here] = self.remembered.codes[fitted]
                continue
            chosen = nearest(features[here], self._arrays["centroids"][self._children[node]])
            waiting += [(self._children[node][child], here[chosen == child]) for child in np.unique(chosen)]
        return codes

    def state(self) -> tuple[dict, dict[str, np.ndarray]]:
        values, arrays = super().state()
        return values, arrays | self._arrays

    def restore(self, values: dict, arrays: dict[str, np.ndarray]) -> None:
        super().restore(values, arrays)
        self._adopt({name: array for name, array in arrays.items() if not name.startswith("remembered.")})


def balanced_clusters(rows: np.ndarray, count: int, seed: int) -> np.ndarray:
    """int64 `[N]`: k-means clusters of float32 `[N, D]` whose sizes are N // count or N // count + 1."""
    centroids, wide = kmeans(rows, count, seed, niter=10).astype(np.float64), rows.astype(np.float64)
    clusters = np.full(len(rows), -1)
    for _ in range(10):  # most nodes settle before
        before = clusters
        clusters = assign_balanced((centroids**2).sum(1) - 2 * wide @ centroids.T)
        if (clusters == before).all():
            break
        centroids = np.stack([wide[clusters == cluster].mean(0) for cluster in range(count)])
    return clusters


def assign_balanced(costs: np.ndarray) -> np.ndarray:
    """int64 `[N]`: a column of `costs [N, K]` for every row, each column N // K or N // K + 1 times; greedy."""
    total, count = costs.shape
    room = np.full(count, total // count)
    wanted = np.bincount(costs.argmin(1), minlength=count)
    room[np.argsort(-wanted, kind="stable")[: total % count]] += 1
    result = np.full(total, -1)
    while len(free := np.flatnonzero(result < 0)):
        open_costs = np.where(room > 0, costs[free], np.inf)
        choice = open_costs.argmin(1)
        two = np.partition(open_costs, 1, axis=1) if count > 1 else open_costs
        order = np.argsort(two[:, 0] - two[:, 1], kind="stable")  # the greatest loss by a second choice first
        for column in np.unique(choice):
            taken = order[choice[order] == column][: room[column]]
            result[free[taken]] = column
            room[column] -= len(taken)
    return result

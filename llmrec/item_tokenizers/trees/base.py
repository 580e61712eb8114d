"""What trees share: items at the leaves.

A SemID is the path to a leaf, then the place in it. The place has its own, last level, so that paths may end early
and none is mistaken for the beginning of another.
"""

from collections.abc import Sequence

import numpy as np

Leaf = tuple[tuple[int, ...], np.ndarray]


def leaf_codes(leaves: Sequence[Leaf], count: int) -> np.ndarray:
    """int32 `[count, depth + 1]` from leaves `(path, rows)`: the path, -1 where it is shorter, and the row's place."""
    depth = max(len(path) for path, _ in leaves)
    codes = np.full((count, depth + 1), -1, np.int32)
    for path, rows in leaves:
        codes[rows, : len(path)] = path
        codes[rows, -1] = np.arange(len(rows))
    return codes


def node_numbers(codes: np.ndarray) -> np.ndarray:
    """Codes that number the children of a node, int32 `[N, L]`, as numbers of the nodes among all of their level."""
    numbers = codes.copy()
    for level in range(codes.shape[1]):
        here = codes[:, level] >= 0
        if here.any():
            numbers[here, level] = np.unique(codes[here, : level + 1], axis=0, return_inverse=True)[1].reshape(-1)
    return numbers

"""Codes of fitted items, found again by the content of their feature rows.

A balanced assignment, or a leaf of a tree, is no function of distances alone: an item keeps what it was given, and
only items that were not there are routed.
"""

import numpy as np

from llmrec.arrays import row_digests


class Remembered:
    """Feature rows and their codes.

    Args:
        digests (sequence of `bytes`, length M): of `row_digests`, distinct.
        codes (`np.ndarray`, int32, `[M, L]`).
    """

    def __init__(self, digests: list[bytes], codes: np.ndarray):
        self.codes = np.ascontiguousarray(codes, np.int32)
        self._row = {digest: row for row, digest in enumerate(digests)}

    def recall(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Codes of feature rows, int32 `[N, L]` (-1 throughout where a row is new), and which are known, bool."""
        found = np.array([self._row.get(digest, -1) for digest in row_digests(rows)], np.int64)
        codes = np.full((len(rows), self.codes.shape[1]), -1, np.int32)
        known = found >= 0
        codes[known] = self.codes[found[known]]
        return codes, known

    def arrays(self) -> dict[str, np.ndarray]:
        """What `of` reads, for a saved state."""
        digests = np.frombuffer(b"".join(self._row), np.uint8).reshape(-1, 16)
        return {"remembered.digests": digests, "remembered.codes": self.codes}

    @classmethod
    def of(cls, arrays: dict[str, np.ndarray]) -> "Remembered":
        digests = [row.tobytes() for row in arrays["remembered.digests"]]
        return cls(digests, arrays["remembered.codes"])

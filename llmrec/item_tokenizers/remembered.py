"""Codes of fitted items, found again by the content of their feature rows, or by a hash of their ids.

A balanced assignment, or a leaf of a tree, is no function of distances alone: an item keeps what it was given, and
only items that were not there are routed.
"""

from functools import cached_property

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

    @cached_property
    def semids(self) -> set[tuple[int, ...]]:
        """The codes without -1."""
        return {tuple(row[row >= 0].tolist()) for row in self.codes}

    def recall(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Codes of feature rows, int32 `[N, L]` (-1 throughout where a row is new), and which are known, bool."""
        place = np.array([self._row.get(digest, -1) for digest in row_digests(rows)], np.int64)
        codes = np.full((len(rows), self.codes.shape[1]), -1, np.int32)
        known = place >= 0
        codes[known] = self.codes[place[known]]
        return codes, known

    def arrays(self) -> dict[str, np.ndarray]:
        """What `of` reads, for a saved state."""
        digests = np.frombuffer(b"".join(self._row), np.uint8).reshape(-1, 16)
        return {"remembered.digests": digests, "remembered.codes": self.codes}

    @classmethod
    def of(cls, arrays: dict[str, np.ndarray]) -> "Remembered":
        return cls([row.tobytes() for row in arrays["remembered.digests"]], arrays["remembered.codes"])

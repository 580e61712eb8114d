"""Residual quantisation with given codebooks: r_1 = z; c_l = argmin_k ||r_l - e_k||^2; r_{l+1} = r_l - e_{c_l}.

With `normalize` every r_l is scaled to unit length first (GRID, 2507.22224): deeper levels then see directions of
equal weight, which fills their codebooks, but there is no additive reconstruction of z any more.

All arithmetic that decides a code is the same for one row and for a million, so encoding a training item again gives
the code it had.
"""

from collections.abc import Sequence

import numpy as np

from llmrec.item_tokenizers.preprocess import l2_normalize

_BLOCK = 65_536
# A residual this much shorter than the vector it came from is rounding noise; normalised, it would be a random code.
_NOISE = 1e-5


def nearest(rows: np.ndarray, codebook: np.ndarray) -> np.ndarray:
    """int32 `[N]`: the nearest row of `codebook [K, d]` for every row of `[N, d]`; the lower code wins a tie.

    Distances from a matrix product differ in the last digits with the number of rows and threads; where the best two
    are that close they are recomputed one by one in float64.
    """
    import faiss

    codes = np.empty(len(rows), np.int32)
    for start in range(0, len(rows), _BLOCK):
        block = np.ascontiguousarray(rows[start : start + _BLOCK])
        distances, best = faiss.knn(block, codebook, min(2, len(codebook)))
        if best.shape[1] == 2:
            scale = distances[:, 1] + (block.astype(np.float64) ** 2).sum(1)
            close = np.flatnonzero(distances[:, 1] - distances[:, 0] <= 1e-4 * scale)
            pair = np.sort(best[close], axis=1)
            exact = ((block[close, None].astype(np.float64) - codebook[pair]) ** 2).sum(2)
            best[close, 0] = pair[np.arange(len(close)), exact.argmin(1)]
        codes[start : start + _BLOCK] = best[:, 0]
    return codes


def next_residual(residual: np.ndarray, code_vectors: np.ndarray) -> np.ndarray:
    """`residual - code_vectors`, rounding noise set to zero."""
    after = residual - code_vectors
    noise = np.linalg.norm(after, axis=1) <= _NOISE * np.linalg.norm(residual, axis=1)
    after[noise] = 0
    return after


def encode_residuals(z: np.ndarray, codebooks: Sequence[np.ndarray], normalize: bool) -> np.ndarray:
    """int32 `[N, L]`: codes of float32 `z [N, d]`."""
    codes = np.empty((len(z), len(codebooks)), np.int32)
    residual = z
    for level, codebook in enumerate(codebooks):
        residual = l2_normalize(residual) if normalize else residual
        codes[:, level] = nearest(residual, codebook)
        residual = next_residual(residual, codebook[codes[:, level]])
    return codes


def last_level_costs(z: np.ndarray, codes: np.ndarray, codebooks: Sequence[np.ndarray], normalize: bool) -> np.ndarray:
    """float32 `[N, K_L]`: squared distances of the residual that codes `[:, :L-1]` leave to every last-level code."""
    residual = z
    for level, codebook in enumerate(codebooks):
        residual = l2_normalize(residual) if normalize else residual
        if level < len(codebooks) - 1:
            residual = next_residual(residual, codebook[codes[:, level]])
    last = codebooks[-1].astype(np.float64)
    residual = residual.astype(np.float64)
    squared = (residual**2).sum(1)[:, None] + (last**2).sum(1) - 2 * residual @ last.T
    return np.maximum(squared, 0).astype(np.float32)

"""Residual quantisation: r_1 = z; c_l = argmin_k ||r_l - e_k||^2; r_{l+1} = r_l - e_{c_l}.

With `normalize` every r_l is scaled to unit length first (GRID, 2507.22224): deeper levels then see directions of
equal weight, which fills their codebooks, but there is no additive reconstruction of z any more.

All arithmetic that decides a code is the same for one row and for a million, so encoding a training item again gives
the code it had. Rows are taken in blocks: nothing of the size of the features is held beside them.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from tqdm.auto import tqdm

from llmrec.arrays import blocks, l2_normalize, row_digests, unique_rows
from llmrec.item_tokenizers.preprocess import Preprocess
from llmrec.item_tokenizers.protocol import ItemTokenizer, Remembered, Traits, check_sizes

# A residual this much shorter than the vector it came from is rounding noise; normalised, it would be a random code.
_NOISE = 1e-5


def nearest(rows: np.ndarray, codebook: np.ndarray) -> np.ndarray:
    """int32 `[N]`: the nearest row of `codebook [K, d]` for every row of `[N, d]`; the lower code wins a tie.

    Distances from a matrix product differ in the last digits with the number of rows and threads; where the best two
    are that close all are computed again in float64, and what is closer than float64 can tell is a tie.
    """
    import faiss

    codes = np.empty(len(rows), np.int32)
    for part in blocks(len(rows)):
        block = np.ascontiguousarray(rows[part])
        distances, best = faiss.knn(block, codebook, min(2, len(codebook)))
        if best.shape[1] == 2:
            scale = distances[:, 1] + np.vecdot(block, block)
            close = np.flatnonzero(distances[:, 1] - distances[:, 0] <= 1e-4 * scale)
            for some in np.array_split(close, len(close) * len(codebook) // 2**22 + 1):
                best[some, 0] = _nearest_exactly(block[some], codebook)
        codes[part] = best[:, 0]
    return codes


def _nearest_exactly(rows: np.ndarray, codebook: np.ndarray) -> np.ndarray:
    rows, codebook = rows.astype(np.float64), codebook.astype(np.float64)
    squared = np.vecdot(rows, rows)[:, None] + np.vecdot(codebook, codebook) - 2 * rows @ codebook.T
    tie = 1e-10 * (np.vecdot(rows, rows)[:, None] + np.abs(squared).min(1, keepdims=True))
    return (squared <= squared.min(1, keepdims=True) + tie).argmax(1)


def next_residual(residual: np.ndarray, code_vectors: np.ndarray) -> np.ndarray:
    """`residual - code_vectors`, rounding noise set to zero."""
    after = residual - code_vectors
    after[np.vecdot(after, after) <= _NOISE**2 * np.vecdot(residual, residual)] = 0
    return after


def encode_residuals(z: np.ndarray, codebooks: Sequence[np.ndarray], normalize: bool) -> np.ndarray:
    """int32 `[N, L]`: codes of float32 `z [N, d]`."""
    codes = np.empty((len(z), len(codebooks)), np.int32)
    for block in blocks(len(z)):
        residual = z[block]
        for level, codebook in enumerate(codebooks):
            residual = l2_normalize(residual) if normalize else residual
            codes[block, level] = nearest(residual, codebook)
            if level < len(codebooks) - 1:
                residual = next_residual(residual, codebook[codes[block, level]])
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


def _taken(rows: np.ndarray, which: np.ndarray) -> np.ndarray:
    return rows if len(which) == len(rows) else rows[which]


@dataclass(eq=False)
class ResidualCodebooks(ItemTokenizer):
    """What tokenizers that learn one codebook after the other share: all but `learn_codebook`.

    Codebooks are learned from distinct rows: an item that is listed a hundred times pulls no centroid, and a residual
    of zero (an item alone in its cluster) none at the next level. Of more than 256 rows per code of the largest level
    a seeded sample of that size is taken: as in faiss, more hardly move a centroid. Neither holds where balanced: then
    every distinct row is assigned when fitting, and keeps the codes it got; other rows go to the nearest.

    `features` may be a memory map (`numpy.load(path, mmap_mode="r")`), and `encode` may be called for one batch of a
    file after the other: a row's codes do not depend on the rows beside it.

    Args:
        codebook_sizes: codes per level, coarse to fine.
        normalize_residuals: scale residuals to unit length before every level.
        preprocess, preprocess_dim: see `llmrec.item_tokenizers.preprocess`.
    """

    traits = Traits()

    codebook_sizes: Sequence[int] = (256, 256, 256)
    normalize_residuals: bool = True
    preprocess: str = "none"
    preprocess_dim: int | None = None

    def __post_init__(self):
        self.codebook_sizes = check_sizes(self.codebook_sizes)
        self.preprocessing = Preprocess(self.preprocess, self.preprocess_dim)

    def learn_codebook(self, rows: np.ndarray, size: int, seed: int) -> tuple[np.ndarray, np.ndarray | None]:
        """The codebook of a level, float32 `[size, d]`, and the codes int32 `[N]` of its rows `[N, d]` if balanced."""
        raise NotImplementedError

    def learn(self, features: np.ndarray, items, train, seed: int) -> None:
        balanced = not self.traits.nearest
        distinct, most = unique_rows(features), 256 * max(self.codebook_sizes)
        if len(distinct) > most and not balanced:
            distinct = np.sort(np.random.default_rng(seed).choice(distinct, most, replace=False))
            self.preprocessing.fit(features[distinct])
        else:
            self.preprocessing.fit(features)
        rows = features[distinct]
        digests = row_digests(rows) if balanced else []
        residual = self.preprocessing(rows)
        if not balanced:
            residual = _taken(residual, unique_rows(residual))  # unequal rows may have become equal
        self.codebooks, codes = [], []
        for level, size in enumerate(tqdm(self.codebook_sizes, desc="codebooks", unit="level", delay=2)):
            if self.normalize_residuals:
                for block in blocks(len(residual)):
                    residual[block] = l2_normalize(residual[block])
                if not balanced:
                    # Collinear rows differ by rounding noise: the first of each direction; + 0: no -0.0
                    directions = np.round(residual, int(-np.log10(_NOISE))) + np.float32(0)
                    residual = _taken(residual, unique_rows(directions))
            if len(residual) < size:
                what = "distinct items" if level == 0 else "items that the levels before leave a rest of"
                if self.normalize_residuals:
                    what += " (counted by direction, as normalize_residuals=True leaves no length)"
                raise ValueError(
                    f"level {level + 1} has {size} codes for {len(residual)} {what}: lower codebook_sizes[{level}]"
                )
            codebook, code = self.learn_codebook(residual, size, seed + level)
            self.codebooks.append(codebook)
            codes.append(code)
            if level < len(self.codebook_sizes) - 1:
                code = code if balanced else nearest(residual, codebook)
                for block in blocks(len(residual)):
                    residual[block] = next_residual(residual[block], codebook[code[block]])
                residual = residual if balanced else _taken(residual, np.flatnonzero(residual.any(1)))
        self.remembered = Remembered(digests, np.stack(codes, 1)) if balanced else None

    def codes_of(self, features: np.ndarray, items) -> np.ndarray:
        codes = np.empty((len(features), len(self.codebooks)), np.int32)
        for block in blocks(len(features)):
            z = self.preprocessing(features[block])
            codes[block] = encode_residuals(z, self.codebooks, self.normalize_residuals)
        if self.remembered is not None:
            remembered, known = self.remembered.recall(features)
            codes[known] = remembered[known]
        return codes

    def costs_of(self, features: np.ndarray, codes: np.ndarray) -> np.ndarray:
        return last_level_costs(self.preprocessing(features), codes, self.codebooks, self.normalize_residuals)

    def state(self) -> tuple[dict, dict[str, np.ndarray]]:
        values, arrays = super().state()
        return values, arrays | {f"codebooks.{level}": codebook for level, codebook in enumerate(self.codebooks)}

    def restore(self, values: dict, arrays: dict[str, np.ndarray]) -> None:
        super().restore(values, arrays)
        self.codebooks = [arrays[f"codebooks.{level}"] for level in range(len(self.codebook_sizes))]

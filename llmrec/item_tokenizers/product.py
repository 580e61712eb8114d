"""Product quantisation: the vector is cut into `digits` pieces, each with its own codebook (VQ-Rec, WWW 2023,
2210.12316); OPQ turns it first so that little is lost (Ge et al., CVPR 2013; RPG, KDD 2025, 2506.05781).

The digits have no order: each says something else about the item, none refines another. An LLM that writes them one
after the other suffers for it where there are many: 4 to 6 digits do well in TIGER, 16 to 64 do not; those are meant
for heads that predict all digits at once (RPG).

As RPG's, the codebooks are learned on whitened principal components; unlike there, k-means sees distinct rows only.
"""

from typing import Self

import numpy as np

from llmrec.arrays import blocks, check_features, unique_rows
from llmrec.files import part_of
from llmrec.item_tokenizers.preprocess import Preprocess
from llmrec.item_tokenizers.protocol import Saved, Traits, not_fitted
from llmrec.item_tokenizers.residual.quantizer import last_level_costs, nearest

_ROTATION_ITERATIONS = 10  # faiss's 50 take minutes on a few cores and move nothing after the first ten


def learn_rotation(rows: np.ndarray, digits: int, codebook_size: int, seed: int) -> np.ndarray:
    """float32 `[D, D]`: the rotation of optimised product quantisation, learned from float32 `[N, D]`."""
    import faiss

    width = rows.shape[1]
    quantizer = faiss.ProductQuantizer(width, digits, codebook_size.bit_length() - 1)
    quantizer.cp.seed, quantizer.cp.min_points_per_centroid = seed, 1
    transform = faiss.OPQMatrix(width, digits)
    transform.pq, transform.niter = quantizer, _ROTATION_ITERATIONS
    transform.train(rows)
    return faiss.vector_to_array(transform.A).reshape(width, width).copy()


def rotated(rows: np.ndarray, rotation: np.ndarray) -> np.ndarray:
    """float32 `[N, D]`; computed in float64, so that a row's result does not depend on the rows beside it."""
    return (rows.astype(np.float64) @ rotation.T.astype(np.float64)).astype(np.float32)


class PQ(Saved):
    """Product quantiser.

    Args:
        digits (`int`): pieces of the vector, the length of a SemID, 4 to 64.
        codebook_size (`int`): codes per digit; for `OPQ` a power of two.
        preprocess (`str`), preprocess_dim (`int`, *optional*): see `llmrec.item_tokenizers.preprocess`. Without a
            number `pca_whiten` takes about 128 components, at least four a digit where the features have as many.
        niter (`int`): iterations of k-means.
    """

    name = "pq"
    rotate = False
    traits = Traits(ordered=False)
    level_tokens = None

    def __init__(
        self,
        digits: int = 16,
        codebook_size: int = 256,
        preprocess: str = "pca_whiten",
        preprocess_dim: int | None = None,
        niter: int = 25,
    ):
        if not 4 <= digits <= 64:
            raise ValueError(f"digits={digits} must lie between 4 and 64")
        if codebook_size < 2:
            raise ValueError(f"codebook_size={codebook_size} must be at least 2")
        if self.rotate and codebook_size & (codebook_size - 1):
            raise ValueError(f"codebook_size={codebook_size} must be a power of two: faiss learns OPQ's rotation so")
        if preprocess_dim is not None and preprocess_dim % digits:
            raise ValueError(f"preprocess_dim={preprocess_dim} must be a multiple of digits={digits}")
        self.digits, self.codebook_size, self.niter = digits, codebook_size, niter
        self.preprocess_dim = preprocess_dim
        # Without a number the dimension is the features' affair: `fit` decides.
        self.preprocess = Preprocess(preprocess, preprocess_dim or (digits if preprocess == "pca_whiten" else None))
        self.dim: int | None = None
        self.rotation: np.ndarray | None = None
        self.codebooks: list[np.ndarray] = []

    @property
    def config(self) -> dict:
        return {
            "digits": self.digits,
            "codebook_size": self.codebook_size,
            "preprocess": self.preprocess.mode,
            "preprocess_dim": self.preprocess_dim,
            "niter": self.niter,
        }

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        return (self.codebook_size,) * self.digits

    def fit(self, features: np.ndarray, seed: int = 0, items=None, train=None) -> Self:
        features = check_features(features)
        distinct = features[unique_rows(features)]
        self._enough(len(distinct), "items")
        if self.preprocess.mode == "pca_whiten" and self.preprocess_dim is None:
            most = min(*distinct.shape, max(128, 4 * self.digits))
            self.preprocess.dim = max(most // self.digits, 1) * self.digits
        rows = self.preprocess.fit(features)(distinct)
        if rows.shape[1] % self.digits:
            raise ValueError(
                f"{rows.shape[1]} dimensions cannot be cut into digits={self.digits} equal pieces: "
                "choose a divisor, or preprocess='pca_whiten'"
            )
        self.dim = features.shape[1]
        self.rotation = learn_rotation(rows, self.digits, self.codebook_size, seed) if self.rotate else None
        pieces = self._pieces(self._rotated(rows))
        self.codebooks = [self._kmeans(piece, digit, seed) for digit, piece in enumerate(pieces)]
        return self

    def _kmeans(self, piece: np.ndarray, digit: int, seed: int) -> np.ndarray:
        import faiss

        self._enough(len(unique_rows(piece)), f"vectors at digit {digit}")
        kmeans = faiss.Kmeans(
            piece.shape[1], self.codebook_size, niter=self.niter, seed=seed + digit, min_points_per_centroid=1
        )
        kmeans.train(piece)
        return kmeans.centroids.copy()

    def _enough(self, distinct: int, what: str) -> None:
        if distinct < self.codebook_size:
            raise ValueError(
                f"{distinct} distinct {what} for {self.codebook_size} codes: "
                f"lower codebook_sizes (codebook_size={self.codebook_size})"
            )

    def _rotated(self, rows: np.ndarray) -> np.ndarray:
        return rows if self.rotation is None else rotated(rows, self.rotation)

    def _pieces(self, rows: np.ndarray) -> list[np.ndarray]:
        return [np.ascontiguousarray(piece) for piece in np.split(rows, self.digits, axis=1)]

    def encode(self, features: np.ndarray, items=None) -> np.ndarray:
        features = self._checked(features)
        codes = np.empty((len(features), self.digits), np.int32)
        for block in blocks(len(features)):
            pieces = self._transform(features[block])
            codes[block] = np.stack([nearest(piece, book) for piece, book in zip(pieces, self.codebooks)], axis=1)
        return codes

    def last_level_costs(self, features: np.ndarray, codes: np.ndarray) -> np.ndarray:
        features = self._checked(features)
        last = np.concatenate([self._transform(features[block])[-1] for block in blocks(len(features))])
        return last_level_costs(last, codes[:, -1:], self.codebooks[-1:], normalize=False)

    def _checked(self, features: np.ndarray) -> np.ndarray:
        if not self.codebooks:
            raise not_fitted()
        return check_features(features, self.dim)

    def _transform(self, features: np.ndarray) -> list[np.ndarray]:
        return self._pieces(self._rotated(self.preprocess(features)))

    def state(self) -> tuple[dict, dict[str, np.ndarray]]:
        if not self.codebooks:
            raise not_fitted()
        arrays = {"codebooks": np.stack(self.codebooks)}
        if self.rotation is not None:
            arrays["rotation"] = self.rotation
        return {"dim": self.dim}, arrays | {f"preprocess.{k}": array for k, array in self.preprocess.state.items()}

    def restore(self, values: dict, arrays: dict[str, np.ndarray]) -> None:
        self.dim = values["dim"]
        self.codebooks = list(arrays["codebooks"])
        self.rotation = arrays.get("rotation")
        self.preprocess.state = part_of(arrays, "preprocess.")


class OPQ(PQ):
    """`PQ` behind a learned rotation. Arguments as `PQ`."""

    name = "opq"
    rotate = True

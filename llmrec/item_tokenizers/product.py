"""Product quantisation: the vector is cut into `digits` pieces, each with its own codebook (VQ-Rec, WWW 2023,
2210.12316); OPQ turns it first so that little is lost (Ge et al., CVPR 2013; RPG, KDD 2025, 2506.05781).

The digits have no order: each says something else about the item, none refines another. An LLM that writes them one
after the other suffers for it where there are many: 4 to 6 digits do well in TIGER, 16 to 64 do not; those are meant
for heads that predict all digits at once (RPG).

As RPG's, the codebooks are learned on whitened principal components; unlike there, k-means sees distinct rows only.
"""

from dataclasses import dataclass

import numpy as np
from tqdm.auto import tqdm

from llmrec.arrays import blocks, kmeans, unique_rows
from llmrec.item_tokenizers.preprocess import Preprocess
from llmrec.item_tokenizers.protocol import ItemTokenizer, Traits
from llmrec.item_tokenizers.residual.quantizer import last_level_costs, nearest


def learn_rotation(rows: np.ndarray, digits: int, codebook_size: int, seed: int) -> np.ndarray:
    """float32 `[D, D]`: the rotation of optimised product quantisation, learned from float32 `[N, D]`."""
    import faiss

    width = rows.shape[1]
    quantizer = faiss.ProductQuantizer(width, digits, codebook_size.bit_length() - 1)
    quantizer.cp.seed, quantizer.cp.min_points_per_centroid = seed, 1
    transform = faiss.OPQMatrix(width, digits)
    transform.pq, transform.niter = quantizer, 10  # faiss's 50 take minutes, and move nothing after the first ten
    transform.train(rows)
    return faiss.vector_to_array(transform.A).reshape(width, width).copy()


def rotated(rows: np.ndarray, rotation: np.ndarray) -> np.ndarray:
    """float32 `[N, D]`; computed in float64, so that a row's result does not depend on the rows beside it."""
    return (rows.astype(np.float64) @ rotation.T.astype(np.float64)).astype(np.float32)


@dataclass(eq=False)
class PQ(ItemTokenizer):
    """Product quantiser.

    Args:
        digits: pieces of the vector, the length of a SemID, 4 to 64.
        codebook_size: codes per digit; for `OPQ` a power of two.
        preprocess, preprocess_dim: see `llmrec.item_tokenizers.preprocess`. Without a number `pca_whiten` takes about
            128 components, at least four a digit where the features have as many.
    """

    name = "pq"
    rotate = False
    traits = Traits(ordered=False)

    digits: int = 16
    codebook_size: int = 256
    preprocess: str = "pca_whiten"
    preprocess_dim: int | None = None
    niter: int = 25

    def __post_init__(self):
        if not 4 <= self.digits <= 64:
            raise ValueError(f"digits={self.digits} must lie between 4 and 64")
        size = f"codebook_size={self.codebook_size}"
        if self.codebook_size < 2:
            raise ValueError(f"{size} must be at least 2")
        if self.rotate and self.codebook_size & (self.codebook_size - 1):
            raise ValueError(f"{size} must be a power of two: faiss learns OPQ's rotation so")
        if self.preprocess_dim is not None and self.preprocess_dim % self.digits:
            raise ValueError(f"preprocess_dim={self.preprocess_dim} must be a multiple of digits={self.digits}")
        # Without a number the dimension is the features' affair: `fit` decides.
        dim = self.preprocess_dim or (self.digits if self.preprocess == "pca_whiten" else None)
        self.preprocessing = Preprocess(self.preprocess, dim)
        self.rotation: np.ndarray | None = None

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        return (self.codebook_size,) * self.digits

    def learn(self, features: np.ndarray, items, train, seed: int) -> None:
        distinct = features[unique_rows(features)]
        self._enough(len(distinct), "items")
        if self.preprocess == "pca_whiten" and self.preprocess_dim is None:
            most = min(*distinct.shape, max(128, 4 * self.digits))
            self.preprocessing.dim = max(most // self.digits, 1) * self.digits
        rows = self.preprocessing.fit(features)(distinct)
        if rows.shape[1] % self.digits:
            raise ValueError(
                f"{rows.shape[1]} dimensions cannot be cut into digits={self.digits} equal pieces: "
                "choose a divisor, or preprocess='pca_whiten'"
            )
        self.rotation = learn_rotation(rows, self.digits, self.codebook_size, seed) if self.rotate else None
        self.codebooks = []
        for digit, piece in enumerate(tqdm(self._pieces(rows), desc="codebooks", unit="digit", delay=2)):
            self._enough(len(unique_rows(piece)), f"vectors at digit {digit}")
            self.codebooks.append(kmeans(piece, self.codebook_size, seed + digit, self.niter))

    def _enough(self, distinct: int, what: str) -> None:
        if distinct < self.codebook_size:
            raise ValueError(
                f"{distinct} distinct {what} for {self.codebook_size} codes: "
                f"lower codebook_sizes (codebook_size={self.codebook_size})"
            )

    def _pieces(self, rows: np.ndarray) -> list[np.ndarray]:
        turned = rows if self.rotation is None else rotated(rows, self.rotation)
        return [np.ascontiguousarray(piece) for piece in np.split(turned, self.digits, axis=1)]

    def codes_of(self, features: np.ndarray, items) -> np.ndarray:
        codes = np.empty((len(features), self.digits), np.int32)
        for block in blocks(len(features)):
            pieces = self._pieces(self.preprocessing(features[block]))
            codes[block] = np.stack([nearest(piece, book) for piece, book in zip(pieces, self.codebooks)], axis=1)
        return codes

    def costs_of(self, features: np.ndarray, codes: np.ndarray) -> np.ndarray:
        last = [self._pieces(self.preprocessing(features[block]))[-1] for block in blocks(len(features))]
        return last_level_costs(np.concatenate(last), codes[:, -1:], self.codebooks[-1:], normalize=False)

    def state(self) -> tuple[dict, dict[str, np.ndarray]]:
        values, arrays = super().state()
        rotation = {} if self.rotation is None else {"rotation": self.rotation}
        return values, arrays | {"codebooks": np.stack(self.codebooks), **rotation}

    def restore(self, values: dict, arrays: dict[str, np.ndarray]) -> None:
        super().restore(values, arrays)
        self.codebooks, self.rotation = list(arrays["codebooks"]), arrays.get("rotation")


@dataclass(eq=False)
class OPQ(PQ):
    """`PQ` behind a learned rotation. Arguments as `PQ`."""

    name = "opq"
    rotate = True

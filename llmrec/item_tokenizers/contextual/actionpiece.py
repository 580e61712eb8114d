"""ActionPiece (ICML 2025, 2502.13581): an item is a set of features; features that often come together, in one item
or in neighbours, merge into pieces, so the same item reads differently beside different items.

A history is flattened (every set in a random order where a seed is given, else by number) and merged by rank, across
items too. A target stands alone, so its pieces cover its features exactly once. Unlike the paper, a random order of a
target is one of `covers` orders drawn at `fit`, and the pieces of a cover are listed by their lowest feature: these
are the SemIDs of `index()`, so constrained decoding can reach every target that training shows.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from llmrec.catalogue.semids import SemIDIndex
from llmrec.data.rows import lists_to_rows
from llmrec.features.parts.part import rows_in_training
from llmrec.item_tokenizers.contextual.actionpiece_vocabulary import Pieces, learn_merges
from llmrec.item_tokenizers.contextual.sequence_tokenizer import Histories, SequenceTokenizer
from llmrec.item_tokenizers.preprocess import Preprocess
from llmrec.item_tokenizers.product import learn_rotation, rotated
from llmrec.item_tokenizers.residual.quantizer import nearest


@dataclass(eq=False)
class ActionPiece(SequenceTokenizer):
    """A `SequenceTokenizer` of merged feature sets.

    `fit` also takes an integer matrix `[N, m]` as features: then row i holds the m features of item i as they are.

    Args:
        num_features, codes_per_feature (a power of two): an item's features are its codes of optimised product
            quantisation.
        pca_dim: features are first whitened to so many dimensions, a multiple of `num_features`.
        num_buckets: a last feature, drawn at random, tells items with equal codes apart: at most so many. Items of
            the training sequences draw first, so no other item changes what they get.
        vocabulary_size: features and pieces.
        covers: orders of an item's features that give its SemIDs, besides the order by number.
    """

    name = "actionpiece"
    traits = SequenceTokenizer.traits._replace(ordered=False)

    num_features: int = 4
    codes_per_feature: int = 256
    pca_dim: int | None = 128
    num_buckets: int = 128
    vocabulary_size: int = 40_000
    covers: int = 5

    def __post_init__(self):
        if self.codes_per_feature < 2 or self.codes_per_feature & (self.codes_per_feature - 1):
            raise ValueError(f"codes_per_feature={self.codes_per_feature} must be a power of two")
        if min(self.num_features, self.num_buckets) < 1 or self.covers < 0:
            raise ValueError("num_features and num_buckets must be at least 1, covers at least 0")
        if self.pca_dim is not None and self.pca_dim % self.num_features:
            raise ValueError(f"pca_dim={self.pca_dim} must be a multiple of num_features={self.num_features}")

    def checked(self, features: np.ndarray, dim: int | None = None) -> np.ndarray:
        if not np.issubdtype(np.asarray(features).dtype, np.integer):
            return super().checked(features, dim)
        codes = np.asarray(features)
        if codes.ndim != 2 or 0 in codes.shape or codes.min() < 0:
            raise ValueError(f"integer features must be a matrix [items, features], numbers from 0, not {codes.shape}")
        return codes

    def learn(self, features: np.ndarray, items: pa.Table, train: pa.Table, seed: int) -> None:
        self.item_ids, learned_from = self.item_ids_of(features, items), rows_in_training(items, train)
        if np.issubdtype(features.dtype, np.integer):
            codes, size = features, int(features.max()) + 1
        else:
            codes, size = self._quantise(features, learned_from, seed), self.codes_per_feature
        order = np.concatenate([learned_from, np.setdiff1d(np.arange(len(codes)), learned_from)])
        buckets = _random_buckets(codes, self.num_buckets, order, np.random.default_rng(seed))
        num_tokens = codes.shape[1] * size + self.num_buckets
        num_merges = self.vocabulary_size - num_tokens
        if num_merges < 0:
            raise ValueError(
                f"vocabulary_size={self.vocabulary_size} is less than the {num_tokens} features "
                f"({codes.shape[1]} x {size} codes, num_buckets={self.num_buckets}): raise it or lower those"
            )
        sets = np.concatenate([codes, buckets[:, None]], axis=1) + size * np.arange(codes.shape[1] + 1)
        values, offsets = lists_to_rows(train["item_ids"], self.item_ids)
        chains = (sets[values[start:end]].tolist() for start, end in zip(offsets[:-1], offsets[1:]))
        self._set(sets.astype(np.int32), learn_merges(chains, num_tokens, num_merges), num_tokens)
        self._covers = self._draw_covers(order, np.random.default_rng(seed))

    def _quantise(self, features: np.ndarray, rows: np.ndarray, seed: int) -> np.ndarray:
        import faiss

        parts, size, dim = self.num_features, self.codes_per_feature, self.pca_dim
        most = min(len(rows), features.shape[1])
        if dim is not None and dim > most:
            raise ValueError(
                f"pca_dim={dim} is more than {len(rows)} training items of {features.shape[1]} dimensions have: "
                f"set it to {most - most % parts} or less, a multiple of num_features={parts}"
            )
        preprocess = Preprocess("none" if dim is None else "pca_whiten", dim).fit(features[rows])
        vectors = preprocess(features)
        if vectors.shape[1] % parts:
            raise ValueError(f"features of {vectors.shape[1]} dimensions do not split in {parts}: set pca_dim")
        if len(rows) < size:
            raise ValueError(f"{len(rows)} training items for codes_per_feature={size}: lower codes_per_feature")
        quantizer = faiss.ProductQuantizer(vectors.shape[1], parts, size.bit_length() - 1)
        quantizer.cp.seed, quantizer.cp.min_points_per_centroid = seed, 1
        vectors = rotated(vectors, learn_rotation(vectors[rows], parts, size, seed))
        quantizer.train(vectors[rows])
        books = faiss.vector_to_array(quantizer.centroids).reshape(parts, size, -1)
        codes = [nearest(np.ascontiguousarray(part), book) for part, book in zip(np.split(vectors, parts, 1), books)]
        return np.stack(codes, axis=1)

    def _set(self, sets: np.ndarray, merges: np.ndarray, num_tokens: int) -> None:
        self.sets, self.merges = sets, merges
        self.pieces = Pieces(merges, num_tokens)
        self.tokens = [f"<p_{number}>" for number in range(len(self.pieces))]

    def _draw_covers(self, order: np.ndarray, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """The distinct covers of every item, which draw in this order: int32 `[R]` items and `[R, m]` pieces, -1 after
        the last."""
        covers: dict[tuple[int, ...], None] = {}
        times = self.covers, 1
        drawn = {row: generator.permuted(np.tile(self.sets[row], times), axis=1) for row in order.tolist()}
        for row, by_number in enumerate(self.sets):
            for features in [by_number, *drawn[row]]:
                pieces = sorted(self.pieces.apply(features.tolist()), key=self.pieces.contents.__getitem__)
                covers[(row, *pieces, *[-1] * (self.sets.shape[1] - len(pieces)))] = None
        table = np.array(list(covers), np.int32)
        return np.ascontiguousarray(table[:, 0]), np.ascontiguousarray(table[:, 1:])

    def encode_history(self, histories: Histories, seed: int | None = None) -> list[list[str]]:
        rows, offsets = self.rows_of(histories)
        result = []
        for history, start, end in zip(histories, offsets[:-1], offsets[1:]):
            sets = self.sets[rows[start:end]]
            if seed is not None:
                sets = self.generator_for(seed, history).permuted(sets, axis=1)
            result.append([self.tokens[piece] for piece in self.pieces.apply(sets.reshape(-1).tolist())])
        return result

    def encode_target(self, histories: Histories, targets: Sequence[str], seed: int | None = None) -> list[list[str]]:
        both = self.with_targets(histories, targets)
        rows, _ = self.rows_of([[target] for target in targets])
        first, stop = (np.searchsorted(self._covers[0], rows, side) for side in ("left", "right"))
        if seed is not None:
            draws = [self.generator_for(seed, ids).integers(count) for ids, count in zip(both, stop - first)]
            first += np.array(draws, np.int64)
        return [[self.tokens[piece] for piece in cover if piece >= 0] for cover in self._covers[1][first].tolist()]

    def index(self) -> SemIDIndex:
        self.check_fitted()
        items, codes = self._covers
        level_tokens = [self.tokens] * codes.shape[1]
        item_ids = [self.item_ids[row] for row in items]
        sizes = list(map(len, level_tokens))
        return SemIDIndex(item_ids, codes, sizes, level_tokens=level_tokens, info=self.index_info())

    def state(self) -> tuple[dict, dict[str, np.ndarray]]:
        values, _ = super().state()
        items, covers = self._covers
        arrays = {"sets": self.sets, "merges": self.merges, "cover_items": items, "covers": covers}
        return values | {"num_tokens": self.pieces.num_tokens}, arrays

    def restore(self, values: dict, arrays: dict[str, np.ndarray]) -> None:
        super().restore(values, arrays)
        self._set(arrays["sets"], arrays["merges"], values["num_tokens"])
        self._covers = arrays["cover_items"], arrays["covers"]


def _random_buckets(
    codes: np.ndarray, num_buckets: int, order: np.ndarray, generator: np.random.Generator
) -> np.ndarray:
    """int64 `[N]`: random numbers below `num_buckets`, distinct among equal rows, drawn in this order of the rows."""
    group, counts = np.unique(codes, axis=0, return_inverse=True, return_counts=True)[1:]
    if counts.max() > num_buckets:
        raise ValueError(f"{counts.max()} items have equal features, but num_buckets={num_buckets}: raise it")
    buckets = np.empty(len(codes), np.int64)
    draws: dict[int, Iterator[int]] = {}
    for row, equal in zip(order, group.reshape(-1)[order].tolist()):
        if equal not in draws:
            draws[equal] = iter(generator.permutation(num_buckets))
        buckets[row] = next(draws[equal])
    return buckets

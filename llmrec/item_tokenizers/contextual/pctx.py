"""Pctx: personalised context-aware SemIDs (Zhong et al., 2025, 2510.21276): an item has a few SemIDs, one for each
kind of context in which users come to it, and a user's own context picks among them.

A context is the hidden state of a sequential model, trained beforehand, after the user's items up to this one. Unlike
the paper this model is SASRec with a full softmax, not DuoRec; the number of clusters follows from an item's
interactions, not from groups of popularity; SemIDs of few interactions merge before the conflict digit is given, and
only items that collide get one.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from llmrec.arguments import one_of
from llmrec.arrays import blocks, kmeans, l2_normalize, unique_rows
from llmrec.catalogue.collisions import append
from llmrec.catalogue.semids import SemIDIndex
from llmrec.data.rows import lists_to_rows, offsets_of, ragged_arange
from llmrec.features.parts.part import rows_in_training
from llmrec.files import part_of
from llmrec.item_tokenizers.contextual.contexts import CooccurrenceContexts, SASRecContexts
from llmrec.item_tokenizers.contextual.sequence_tokenizer import Histories, SequenceTokenizer
from llmrec.item_tokenizers.protocol import check_sizes
from llmrec.item_tokenizers.residual.rq_kmeans import RQKMeans


@dataclass(eq=False)
class Pctx(SequenceTokenizer):
    """A `SequenceTokenizer` with several SemIDs per item.

    An item with n interactions has sqrt(n / 4) clusters of contexts, at least 1 and at most `max_clusters`. Every
    cluster gets residual k-means codes of half its mean context, half the item's features.

    Args:
        codebook_sizes: codes per level, coarse to fine; a level of conflict digits follows.
        contexts: `sasrec`, or `cooccurrence`, which trains no network: a decayed sum of the co-occurrence embeddings
            of the items before.
        context_dim: width of the contexts, even with `sasrec`.
        epochs: of the SASRec, at most.
        feature_dim: principal components of the features.
        decay: with `cooccurrence`, the weight in a context of an item against the one after it.
        max_clusters: of contexts, per item.
        min_share: a SemID that holds less of an item's interactions merges into the item's nearest one.
        augment: share of a history's items that get a random one of their SemIDs where a seed is given.
    """

    name = "pctx"

    codebook_sizes: Sequence[int] = (256, 256, 256)
    contexts: str = "sasrec"
    context_dim: int = 64
    epochs: int = 20
    feature_dim: int = 128
    decay: float = 0.8
    max_clusters: int = 8
    min_share: float = 0.2
    augment: float = 0.6

    def __post_init__(self):
        self.codebook_sizes = check_sizes(self.codebook_sizes)
        one_of(self.contexts, ("sasrec", "cooccurrence"), "contexts")
        if min(self.context_dim, self.epochs, self.feature_dim, self.max_clusters) < 1:
            raise ValueError("context_dim, epochs, feature_dim and max_clusters must be at least 1")
        if self.contexts == "sasrec" and self.context_dim % 2:
            raise ValueError(f"context_dim={self.context_dim} must be even: the SASRec has two heads")
        for name in ("decay", "min_share", "augment"):
            if not 0 <= (share := getattr(self, name)) <= 1:
                raise ValueError(f"{name}={share} must be between 0 and 1")

    def learn(self, features: np.ndarray, items: pa.Table, train: pa.Table, seed: int) -> None:
        item_ids = self.item_ids_of(features, items)
        seen = rows_in_training(items, train)
        if self.contexts == "sasrec":
            reader = SASRecContexts.fit(item_ids, seen, train, self.context_dim, self.epochs, seed)
        else:
            reader = CooccurrenceContexts.fit(item_ids, seen, train, self.context_dim, self.decay, seed)
        values, offsets = lists_to_rows(train["item_ids"], item_ids)
        contexts = reader(values, offsets)
        informed = contexts.any(1)
        values, contexts = values[informed], contexts[informed]
        centroids, clusters = _cluster_contexts(values, contexts, len(item_ids), self.max_clusters, seed)

        item = np.repeat(np.arange(len(item_ids)), np.diff(clusters))
        met = np.bincount(values, minlength=len(item_ids)) > 0
        context_part = _principal(centroids, np.flatnonzero(met[item]), self.context_dim)
        context_part[~met[item]] = 0  # of an item without contexts: the mean
        feature_part = _principal(features, seen, self.feature_dim)
        fused = np.concatenate([0.5 * context_part, 0.5 * feature_part[item]], axis=1)
        quantizer = RQKMeans(self.codebook_sizes)
        codes = quantizer.fit(fused[np.isin(item, seen)], seed=seed).encode(fused)
        counts = np.bincount(_nearest_cluster(values, contexts, centroids, clusters), minlength=len(item))
        rows = []
        semid_of_cluster = np.empty(len(item), np.int64)
        for start, stop in zip(clusters[:-1], clusters[1:]):
            of_item = slice(start, stop)
            keeper = _merge_rare(codes[of_item], counts[of_item], centroids[of_item], self.min_share)
            kept = sorted(set(keeper), key=lambda c: (-counts[of_item][np.equal(keeper, c)].sum(), c))
            semid_of_cluster[of_item] = [len(rows) + kept.index(c) for c in keeper]
            rows += [start + c for c in kept]
        # Conflict digits: items of the training sequences get theirs first, so no other item changes them.
        codes, in_training = codes[rows], np.isin(item[rows], seen)
        digits = np.full((len(codes), codes.shape[1] + 1), -1, np.int32)
        digits[in_training] = append(codes[in_training], None, digits[:0])
        digits[~in_training] = append(codes[~in_training], None, digits[in_training])
        arrays = {
            **reader.arrays,
            "centroids": centroids,
            "clusters": clusters,
            "semid_of_cluster": semid_of_cluster,
            "item_of_semid": item[rows],
            "codes": digits,
        }
        self.restore({"item_ids": item_ids}, arrays)

    def _semids(self, histories: Histories) -> tuple[np.ndarray, np.ndarray]:
        """Rows of the index for every interaction int64 `[n]`, and the offsets of the histories."""
        values, offsets = self.rows_of(histories)
        contexts = self._reader(values, offsets)
        semids = self._bounds[values]
        told = contexts.any(1)
        centroids, clusters = self.arrays["centroids"], self.arrays["clusters"]
        cluster = _nearest_cluster(values[told], contexts[told], centroids, clusters)
        semids[told] = self.arrays["semid_of_cluster"][cluster]
        return semids, offsets

    def encode_history(self, histories: Histories, seed: int | None = None) -> list[list[str]]:
        semids, offsets = self._semids(histories)
        result = []
        for history, start, stop in zip(histories, offsets[:-1], offsets[1:]):
            rows = semids[start:stop]
            if seed is not None:
                generator = self.generator_for(seed, history)
                items = self.arrays["item_of_semid"][rows]
                exchanged = generator.random(len(rows)) < self.augment
                rows = np.where(exchanged, generator.integers(self._bounds[items], self._bounds[items + 1]), rows)
            result.append([token for row in rows for token in self._tokens[row]])
        return result

    def encode_target(self, histories: Histories, targets: Sequence[str], seed: int | None = None) -> list[list[str]]:
        # A target has the SemID of its context, whatever the seed.
        semids, offsets = self._semids(self.with_targets(histories, targets))
        return [list(self._tokens[row]) for row in semids[offsets[1:] - 1]]

    def index(self) -> SemIDIndex:
        self.check_fitted()
        codes = self.arrays["codes"]
        return SemIDIndex(
            [self.item_ids[row] for row in self.arrays["item_of_semid"]],
            codes,
            [*self.codebook_sizes, max(1, int(codes[:, -1].max()) + 1)],
            info=self.index_info(),
        )

    def state(self) -> tuple[dict, dict[str, np.ndarray]]:
        return super().state()[0], self.arrays

    def restore(self, values: dict, arrays: dict[str, np.ndarray]) -> None:
        super().restore(values, arrays)
        self.arrays = arrays
        if network := part_of(arrays, "contexts."):
            self._reader = SASRecContexts.of(network)
        else:
            self.contexts = "cooccurrence"  # the only kind when older folders were written, which do not name it
            self._reader = CooccurrenceContexts(arrays["embeddings"], self.decay)
        # The SemIDs of item i are the rows from bounds[i] to bounds[i + 1].
        self._bounds = np.searchsorted(arrays["item_of_semid"], np.arange(len(self.item_ids) + 1))
        index = self.index()
        self._tokens = [index.tokens_of_row(row) for row in range(len(index))]


def _nearest_cluster(
    items: np.ndarray, contexts: np.ndarray, centroids: np.ndarray, clusters: np.ndarray
) -> np.ndarray:
    """int64 `[n]`: for each interaction, the cluster of its item whose centroid is nearest to its context."""
    result = np.empty(len(items), np.int64)
    for block in blocks(len(items), 65_536):
        firsts = clusters[items[block]]
        counts = clusters[items[block] + 1] - firsts
        row = np.repeat(np.arange(len(counts)), counts)
        cluster = ragged_arange(firsts, firsts + counts)
        distances = ((contexts[block.start + row] - centroids[cluster]) ** 2).sum(1)
        order = np.lexsort((cluster, distances, row))
        result[block] = cluster[order[offsets_of(counts)[:-1]]]
    return result


def _cluster_contexts(
    values: np.ndarray, contexts: np.ndarray, num_items: int, max_clusters: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Centroids float32 `[C, d]`, one zero vector for an item without contexts, and offsets int64 `[N + 1]`: which
    are whose."""
    order = np.argsort(values, kind="stable")
    bounds = np.searchsorted(values[order], np.arange(num_items + 1))
    groups = []
    for start, stop in zip(bounds[:-1], bounds[1:]):
        count = int(np.clip(np.sqrt((stop - start) / 4), 1, max_clusters))
        rows = contexts[order[start:stop]] if stop > start else np.zeros((1, contexts.shape[1]), np.float32)
        count = min(count, len(unique_rows(rows))) if count > 1 else 1
        if count > 1:
            groups.append(kmeans(np.ascontiguousarray(rows), count, seed, niter=20))
        else:
            groups.append(rows.mean(0, keepdims=True))
    return np.concatenate(groups), offsets_of(np.array([len(group) for group in groups]))


def _principal(rows: np.ndarray, learned_from: np.ndarray, dim: int) -> np.ndarray:
    """At most `dim` principal components, at unit length, float32."""
    from sklearn.decomposition import PCA

    sample = rows[learned_from].astype(np.float64)
    pca = PCA(min(dim, *sample.shape), svd_solver="full").fit(sample)
    return l2_normalize(pca.transform(rows.astype(np.float64))).astype(np.float32)


def _merge_rare(codes: np.ndarray, counts: np.ndarray, centroids: np.ndarray, min_share: float) -> list[int]:
    """For each cluster of one item, the cluster whose codes it gets.

    Clusters of equal codes are one SemID. While the smallest SemID holds too few of the interactions, it joins the
    one with the cluster nearest to one of its own.
    """
    keeper = [int(np.flatnonzero((codes == row).all(1))[0]) for row in codes]
    if len(set(keeper)) == 1:
        return keeper
    distances = ((centroids[:, None] - centroids) ** 2).sum(2)
    while len(set(keeper)) > 1:
        groups = {c: np.flatnonzero(np.equal(keeper, c)) for c in keeper}
        rare = min(groups, key=lambda c: (counts[groups[c]].sum(), c))
        if counts[groups[rare]].sum() >= min_share * counts.sum():
            break
        others = [c for c in groups if c != rare]
        nearest = min(others, key=lambda c: (distances[np.ix_(groups[rare], groups[c])].min(), c))
        keeper = [nearest if c == rare else c for c in keeper]
    return keeper

"""Features of kind `categorical`: columns of the catalogue as tokens, one-hot and multi-hot side by side.

HSTU (Zhai et al., ICML 2024, 2402.17152) merges categorical features and puts them in one sequence; `sequentialise`
does so per item. Nothing is hashed: the vocabulary is that of the training items, so every dimension has a name.
"""

import logging
from collections import Counter
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as types
from scipy import sparse

from llmrec.features.parts.part import FeaturePart, is_text, need_column, rows_in_training
from llmrec.files import part_of

logger = logging.getLogger(__name__)


class Categories:
    """Tokens `column=value` of items.

    A text with levels (`Beauty > Makeup`; several paths are apart by ` | `) gives a token for every level, a list one
    for every element, a boolean one, a number that of its quantile (of `bins`) among the training items. Empty, null
    and NaN give none; values of fewer than `min_count` training items are left out.
    """

    def __init__(self, columns: Sequence[str], min_count: int = 2, bins: int = 10):
        if isinstance(columns, str) or not columns:
            raise ValueError(f"columns={columns!r} must be a list with at least one column, e.g. [brand, categories]")
        self.columns, self.min_count, self.bins = list(columns), min_count, bins
        self.edges: dict[str, np.ndarray] = {}
        self.vocabulary: list[str] = []

    def fit(self, items: pa.Table) -> Self:
        """Learns quantiles and vocabulary; raises `ValueError` naming a column that is missing or tells nothing."""
        self.edges, self.vocabulary = {}, []
        for column in self.columns:
            if _is_number(need_column(items, column).type):
                self.edges[column] = _bin_edges(_numbers(items[column]), self.bins)
            counts = Counter(chain.from_iterable(self._tokens(items, column)))
            # What every item has tells nothing.
            known = sorted(token for token, n in counts.items() if self.min_count <= n < items.num_rows)
            if not known:
                raise ValueError(
                    f"column {column!r} tells the {items.num_rows} training items nothing: it holds no value of at "
                    f"least {self.min_count} (min_count) and not all of them"
                )
            self.vocabulary += known
        return self

    def tokens(self, items: pa.Table) -> list[list[list[str]]]:
        """Per column and item, the tokens that are in the vocabulary, coarse levels first."""
        known = set(self.vocabulary)
        return [
            [[token for token in tokens if token in known] for tokens in self._tokens(items, column)]
            for column in self.columns
        ]

    def _tokens(self, items: pa.Table, column: str) -> list[list[str]]:
        values = need_column(items, column)
        if column in self.edges:
            if not _is_number(values.type):
                raise ValueError(f"column {column!r} held numbers at fit and holds {values.type} now")
            numbers = _numbers(values)
            bins = np.searchsorted(self.edges[column], numbers)
            return [[f"{column}={b}"] if ok else [] for b, ok in zip(bins.tolist(), np.isfinite(numbers))]
        if types.is_list(values.type) or types.is_large_list(values.type):
            lists = values.to_pylist()
        elif is_text(values.type) or types.is_boolean(values.type) or _is_number(values.type):
            lists = [[] if value is None else [value] for value in values.to_pylist()]
        else:
            raise ValueError(f"column {column!r} holds {values.type}, not text, numbers, booleans or lists of text")
        levels = ([level for value in row or () if value is not None for level in _levels(value)] for row in lists)
        return [[f"{column}={level}" for level in dict.fromkeys(row)] for row in levels]


def sequentialise(
    items: pa.Table, columns: Sequence[str], train: pa.Table | None = None, min_count: int = 1, bins: int = 10
) -> list[list[str]]:
    """The tokens of every item in the order of the columns, e.g. `["brand=OPI", "categories=Beauty > Nails"]`.

    Vocabulary and quantiles are those of the training items (see `Categories`); unknown values are left out.
    """
    categories = Categories(columns, min_count, bins).fit(items.take(rows_in_training(items, train)))
    return [sum(row, []) for row in zip(*categories.tokens(items))]


class CategoricalFeatures(FeaturePart):
    """Columns as multi-hot rows, every column at unit length, then a truncated SVD; unknown values are zeros.

    The SVD has `dim` components; `None`, or no more values than this, keeps the rows as they are. The other arguments
    are those of `Categories`.
    """

    def __init__(
        self,
        columns: Sequence[str],
        min_count: int = 2,
        bins: int = 10,
        dim: int | None = 64,
        cache_dir: str | Path | None = None,
    ):
        self.categories = Categories(columns, min_count, bins)
        self.config = {"columns": self.categories.columns, "min_count": min_count, "bins": bins, "dim": dim}
        self.components: np.ndarray | None = None

    def fit(self, items: pa.Table, train: pa.Table | None, seed: int) -> Self:
        from sklearn.decomposition import TruncatedSVD

        seen = items.take(rows_in_training(items, train))
        self.categories.fit(seen)
        matrix = self._multi_hot(seen)
        dim = self.config["dim"]
        self.components = None
        if dim is not None and dim < min(matrix.shape):
            self.components = TruncatedSVD(dim, random_state=seed).fit(matrix).components_
        logger.info("categorical: %d values in %s", matrix.shape[1], ", ".join(self.categories.columns))
        return self

    def encode(self, items: pa.Table) -> np.ndarray:
        matrix = self._multi_hot(items)
        return (matrix.toarray() if self.components is None else matrix @ self.components.T).astype(np.float32)

    def _multi_hot(self, items: pa.Table) -> sparse.csr_matrix:
        place = {token: i for i, token in enumerate(self.categories.vocabulary)}
        entries = [
            (row, place[token], len(tokens) ** -0.5)
            for column in self.categories.tokens(items)
            for row, tokens in enumerate(column)
            for token in tokens
        ]
        rows, columns, values = zip(*entries) if entries else ((), (), ())
        return sparse.csr_matrix((values, (rows, columns)), (items.num_rows, len(place)), np.float64)

    def state(self) -> tuple[dict, dict[str, np.ndarray]]:
        arrays = {f"edges.{column}": edges for column, edges in self.categories.edges.items()}
        if self.components is not None:
            arrays["components"] = self.components
        return {"vocabulary": self.categories.vocabulary}, arrays

    def restore(self, values: dict, arrays: dict[str, np.ndarray]) -> None:
        self.categories.vocabulary = values["vocabulary"]
        self.categories.edges = part_of(arrays, "edges.")
        self.components = arrays.get("components")


def _levels(value) -> list[str]:
    """`"A > B | C"` to `["A", "A > B", "C"]`."""
    levels = []
    for path in str(value).split(" | "):
        names = [name.strip() for name in path.split(" > ")]
        levels += [" > ".join(names[: i + 1]) for i, name in enumerate(names) if name]
    return levels


def _numbers(values: pa.ChunkedArray) -> np.ndarray:
    return pc.fill_null(values.cast(pa.float64()), float("nan")).to_numpy()


def _bin_edges(values: np.ndarray, bins: int) -> np.ndarray:
    """Ascending, none twice: the greatest value of every bin but the last; few values get a bin each."""
    values = np.sort(values[np.isfinite(values)])
    distinct = np.unique(values)
    if len(distinct) <= bins:
        return distinct[:-1]
    last = (np.arange(1, bins) * len(values) + bins - 1) // bins - 1
    return np.unique(np.minimum(values[last], distinct[-2]))


def _is_number(kind: pa.DataType) -> bool:
    return types.is_integer(kind) or types.is_floating(kind) or types.is_decimal(kind)

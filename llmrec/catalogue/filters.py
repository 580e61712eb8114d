"""What a request allows: items seen, allowed, denied, or chosen by a predicate on catalogue columns.

A filter is data, so it travels through JSON as it is; predicates use the tuples that `pyarrow.parquet` and pandas
call `filters`, e.g. `[("price", "<", 20), ("brand", "==", "Acme")]` (all must hold).
"""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from llmrec.arguments import one_of
from llmrec.catalogue.semids import RowsOfItems

_OPERATORS = ("=", "==", "!=", "<", ">", "<=", ">=", "in", "not in")
_CACHED_MASKS, _CACHED_ROWS = 64, 2**28
_TOGETHER = 16  # conditions that Arrow gets as one expression, which it walks by recursion


@dataclass(frozen=True)
class Filter:
    """Which items a request may return.

    Args:
        exclude_seen: leave out the items of the history.
        allow, deny: only these item ids, none of these.
        where: conditions `(column, operator, value)`: only items for which all hold. Operators are `==`, `!=`, `<`,
            `>`, `<=`, `>=`, `in`, `not in`. An item whose column is null never passes.
        at_most: at most so many items of one value, e.g. `{"brand": 2}`. The best of a value stay, the places go to
            the next best items; nothing limits items whose column is null.
    """

    exclude_seen: bool = False
    allow: Sequence[str] | None = None
    deny: Sequence[str] | None = None
    where: Sequence[tuple] | None = None
    at_most: Mapping[str, int] | None = None


class Limit(NamedTuple):
    """At most `count` items of each group; `groups` is int64 [R], by row, -1 where nothing limits the item."""

    groups: np.ndarray
    count: int


class CatalogueFilter:
    """Turns a `Filter` into rows of one catalogue, in which ids may repeat (an item with several SemIDs).

    `rows` are those of its ids, where they are known.
    """

    def __init__(self, items: pa.Table, rows: RowsOfItems | None = None):
        self.items = items
        self.rows = RowsOfItems(items["item_id"].to_pylist()) if rows is None else rows
        self._masks: OrderedDict[str, np.ndarray] = OrderedDict()
        self._groups: dict[str, np.ndarray] = {}

    def __call__(self, request: Filter | None, history: Sequence[str] = ()) -> tuple[np.ndarray | None, np.ndarray]:
        """`(mask, denied)` of one request: `mask` is a bool array over all rows (`None` = all allowed; the array is
        shared between equal requests: do not write to it), `denied` the sorted rows (int64) to leave out besides.
        Raises `ValueError` on an unknown item in `allow` or `deny`, an unknown column or operator, a value of the
        wrong type.
        """
        request = request or Filter()
        mask = self._where(request.where) if request.where else None
        if request.allow is not None:
            allowed = np.zeros(self.items.num_rows, bool)
            allowed[self._rows_of(request.allow, "allow")] = True
            mask = allowed if mask is None else mask & allowed
        denied = self._rows_of(request.deny or (), "deny")
        if request.exclude_seen:
            seen = [row for item in history for row in self.rows[item]]
            denied = np.concatenate([denied, np.asarray(seen, np.int64)])
        return mask, np.unique(denied)

    def check(self, request: Filter | None) -> None:
        """Raises what the filter raises, without looking at the catalogue's rows."""
        request = request or Filter()
        if request.where:
            self._matches(self.items.slice(0, 0), request.where)
        for field in ("allow", "deny"):
            self._rows_of(getattr(request, field) or (), field)
        self._check_limits(request)

    def satisfied(self, request: Filter | None, item_ids: Sequence[str], history: Sequence[str] = ()) -> int:
        """How many of some items of the catalogue, best first, a filter allows; looked up in their own columns."""
        if request is None or not item_ids:
            return len(item_ids)
        # slices: `take` would put all chunks of a column together first
        rows = pa.concat_tables([self.items.slice(self.rows[item][0], 1) for item in item_ids])
        matches = self._matches(rows, request.where) if request.where else np.ones(len(item_ids), bool)
        out = {*(request.deny or ()), *(history if request.exclude_seen else ())}
        taken: dict[tuple, int] = {}
        count = 0
        for item, row, matched in zip(item_ids, rows.select(list(request.at_most or ())).to_pylist(), matches):
            for value in row.items():
                taken[value] = taken.get(value, 0) + 1
            within = all(taken[v] <= request.at_most[v[0]] for v in row.items() if v[1] is not None)
            listed = request.allow is None or item in request.allow
            count += bool(matched) and within and listed and item not in out
        return count

    def allowed(self, request: Filter | None, history: Sequence[str] = ()) -> np.ndarray:
        """bool [rows]: the same as one fresh mask, for recommenders that rank the whole catalogue."""
        mask, denied = self(request, history)
        mask = np.ones(self.items.num_rows, bool) if mask is None else mask.copy()
        mask[denied] = False
        return mask

    def limits(self, request: Filter | None) -> list[Limit]:
        """The limits of `at_most`; raises `ValueError` for an unknown column, or a count below 1."""
        limits = []
        self._check_limits(request)
        for column, count in ((request and request.at_most) or {}).items():
            if column not in self._groups:
                codes = self.items[column].combine_chunks().dictionary_encode()
                self._groups[column] = pc.fill_null(codes.indices, -1).to_numpy().astype(np.int64)
            limits.append(Limit(self._groups[column], count))
        return limits

    def _check_limits(self, request: Filter | None) -> None:
        for column, count in ((request and request.at_most) or {}).items():
            self._check_column(column)
            if not isinstance(count, int) or count < 1:
                raise ValueError(f"filter at_most[{column!r}] is {count!r}, it should be a whole number of at least 1")
            kind = self.items.schema.field(column).type
            if pa.types.is_nested(kind):
                raise ValueError(f"filter at_most: column {column!r} holds {kind}, which cannot be grouped")

    def _check_column(self, column: str) -> None:
        if column not in self.items.column_names:
            raise ValueError(f"filter column {column!r} is not in the catalogue; it has {self.items.column_names}")

    def _rows_of(self, item_ids: Sequence[str], field: str) -> np.ndarray:
        for item in item_ids:
            if item not in self.rows.first:
                raise ValueError(f"filter {field!r} names item {item!r}, which is not in the catalogue")
        return np.asarray([row for item in item_ids for row in self.rows[item]], np.int64)

    def _where(self, where: Sequence[tuple]) -> np.ndarray:
        key = repr([tuple(condition) for condition in where])
        mask = self._masks.get(key)
        if mask is None:
            mask = self._masks[key] = self._matches(self.items, where)
            if len(self._masks) > max(1, min(_CACHED_MASKS, _CACHED_ROWS // max(1, len(mask)))):
                self._masks.popitem(last=False)
        return mask

    def _matches(self, items: pa.Table, where: Sequence[tuple]) -> np.ndarray:
        conditions = [tuple(condition) for condition in where]
        for condition in conditions:
            if len(condition) != 3:
                raise ValueError(f"filter condition {condition!r} should be (column, operator, value)")
            column, operator, _ = condition
            self._check_column(column)
            one_of(operator, _OPERATORS, "filter operator")
        columns = list(dict.fromkeys(column for column, _, _ in conditions))
        matched = items.select(columns).append_column("__row__", pa.array(np.arange(items.num_rows)))
        for first in range(0, len(conditions), _TOGETHER):
            some = conditions[first : first + _TOGETHER]
            try:
                matched = matched.filter(pq.filters_to_expression(some))
            except (pa.ArrowException, TypeError) as error:
                raise ValueError(f"filter {_short(some)} does not fit the columns' types: {error}") from error
        mask = np.zeros(items.num_rows, bool)
        mask[pc.cast(matched["__row__"], pa.int64()).to_numpy()] = True
        return mask


def _short(value) -> str:
    """As Python writes it, cut where it is long."""
    text = repr(value)
    return text if len(text) <= 500 else f"{text[:500]}..."


def within_limits(rows: Sequence[int], limits: Sequence[Limit]) -> list[int]:
    """Places in `rows` (best first) that stay: those for which none of their groups is full yet."""
    taken: list[dict[int, int]] = [{} for _ in limits]
    kept = []
    for place, row in enumerate(rows):
        groups = [int(limit.groups[row]) for limit in limits]
        if all(group < 0 or count.get(group, 0) < limit.count for group, count, limit in zip(groups, taken, limits)):
            kept.append(place)
            for group, count in zip(groups, taken):
                count[group] = count.get(group, 0) + 1
    return kept


def most_within(limits: Sequence[Limit], rows: np.ndarray) -> int:
    """How many items can be taken at most, of which `rows` (int64) holds one allowed row each.

    It is exact with one limit, so that a search does not widen in vain, and too large at worst with several.
    """
    most = [len(rows)]
    for limit in limits:
        counts = np.bincount(limit.groups[rows] + 1, minlength=1)
        most.append(int(counts[0] + np.minimum(counts[1:], limit.count).sum()))
    return min(most)


def full_groups(limits: Sequence[Limit], taken: np.ndarray) -> np.ndarray:
    """bool [R]: rows that are no longer wanted, because a group of theirs is full of the rows that were taken."""
    out = np.zeros(len(limits[0].groups), bool)
    for limit in limits:
        counts = np.bincount(limit.groups[taken] + 1, minlength=1)
        counts[0] = 0
        out |= np.isin(limit.groups, np.flatnonzero(counts >= limit.count) - 1)
    out[taken] = False
    return out

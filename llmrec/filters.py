"""What a request allows: items seen, allowed, denied, or chosen by a predicate on catalogue columns.

A filter is data, so it travels through JSON as it is; predicates use the tuples that `pyarrow.parquet` and pandas
call `filters`, e.g. `[("price", "<", 20), ("brand", "==", "Acme")]` (all must hold).
"""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

_OPERATORS = ("=", "==", "!=", "<", ">", "<=", ">=", "in", "not in")
_CACHED_MASKS = 64


@dataclass(frozen=True)
class Filter:
    """Which items a request may return.

    Args:
        exclude_seen (`bool`): leave out the items of the history.
        allow (sequence of item ids, *optional*): only these.
        deny (sequence of item ids, *optional*): none of these.
        where (sequence of `(column, operator, value)`, *optional*): only items for which all hold. Operators are
            `==`, `!=`, `<`, `>`, `<=`, `>=`, `in`, `not in`. An item whose column is null never passes.
    """

    exclude_seen: bool = False
    allow: Sequence[str] | None = None
    deny: Sequence[str] | None = None
    where: Sequence[tuple] | None = None


class CatalogueFilter:
    """Turns a `Filter` into rows of one catalogue.

    Args:
        items (`pa.Table`): has `item_id`; repeated ids (an item with several SemIDs) are allowed.
    """

    def __init__(self, items: pa.Table):
        self.items = items
        self.rows: dict[str, list[int]] = {}
        for row, item in enumerate(items["item_id"].to_pylist()):
            self.rows.setdefault(item, []).append(row)
        self._masks: OrderedDict[str, np.ndarray] = OrderedDict()

    def __call__(self, request: Filter | None, history: Sequence[str] = ()) -> tuple[np.ndarray | None, np.ndarray]:
        """Rows of one request.

        Returns:
            `(mask, denied)`: `mask` is a bool array over all rows (`None` = all allowed; the array is shared between
            equal requests: do not write to it), `denied` the sorted rows (int64) to leave out besides.

        Raises:
            ValueError: an unknown item in `allow` or `deny`, an unknown column or operator, a value of the wrong type.
        """
        if request is None:
            return None, np.empty(0, np.int64)
        mask = self._where(request.where) if request.where else None
        if request.allow is not None:
            allowed = np.zeros(self.items.num_rows, bool)
            allowed[self._rows_of(request.allow, "allow")] = True
            mask = allowed if mask is None else mask & allowed
        denied = self._rows_of(request.deny or (), "deny")
        if request.exclude_seen:
            seen = [row for item in history for row in self.rows.get(item, ())]
            denied = np.concatenate([denied, np.asarray(seen, np.int64)])
        return mask, np.unique(denied)

    def allowed(self, request: Filter | None, history: Sequence[str] = ()) -> np.ndarray:
        """bool [rows]: the same as one fresh mask, for recommenders that rank the whole catalogue."""
        mask, denied = self(request, history)
        mask = np.ones(self.items.num_rows, bool) if mask is None else mask.copy()
        mask[denied] = False
        return mask

    def _rows_of(self, item_ids: Sequence[str], field: str) -> np.ndarray:
        unknown = next((item for item in item_ids if item not in self.rows), None)
        if unknown is not None:
            raise ValueError(f"filter {field!r} names item {unknown!r}, which is not in the catalogue")
        return np.asarray([row for item in item_ids for row in self.rows[item]], np.int64)

    def _where(self, where: Sequence[tuple]) -> np.ndarray:
        conditions = [tuple(condition) for condition in where]
        key = repr(conditions)
        if key not in self._masks:
            for condition in conditions:
                if len(condition) != 3:
                    raise ValueError(f"filter condition {condition!r} should be (column, operator, value)")
                column, operator, value = condition
                if column not in self.items.column_names:
                    raise ValueError(
                        f"filter column {column!r} is not in the catalogue; it has {self.items.column_names}"
                    )
                if operator not in _OPERATORS:
                    raise ValueError(f"filter operator {operator!r} is not one of {', '.join(_OPERATORS)}")
            try:
                matched = self.items.append_column("__row__", pa.array(np.arange(self.items.num_rows))).filter(
                    pq.filters_to_expression(conditions)
                )
            except (pa.ArrowException, TypeError) as error:
                raise ValueError(f"filter {conditions} does not fit the columns' types: {error}") from error
            mask = np.zeros(self.items.num_rows, bool)
            mask[pc.cast(matched["__row__"], pa.int64()).to_numpy()] = True
            self._masks[key] = mask
            if len(self._masks) > _CACHED_MASKS:
                self._masks.popitem(last=False)
        return self._masks[key]

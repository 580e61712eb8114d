"""Versions of a living catalogue, and the records that lead from one to the next.

A record is plain JSON, so whoever holds a version can make the next one from it, without an item tokenizer:

{"number": 7, "parent": 6, "time": "2026-01-31T12:00:00.000+00:00", "rollback_of": null,
 "remove": ["B01"],                                          items that go
 "put": [{"item_id": "B02", "columns": {"price": 3.0}},      a known item: these columns change
         {"item_id": "B99", "columns": {"title": "Lamp"}, "codes": [[12, 7, -1]]}],    a new one, with its Semantic IDs
 "order": [[0, 5], [7, 8], [5, 7]]}                          only where rows change places (after a rollback)

Numbers grow, but one may be left out: that of a version that was prepared and never made current.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.types as types

from llmrec.catalogue.lifecycle import VERSION_COLUMN
from llmrec.catalogue.semids import SemIDIndex
from llmrec.serving.living_catalogue.values import to_array, to_json


@dataclass(frozen=True)
class CatalogueVersion:
    """An immutable state of the catalogue: `items` has one row for every row of `index`, and `item_id` first.

    Version 0 is what the model folder holds.
    """

    number: int
    index: SemIDIndex
    items: pa.Table

    @classmethod
    def of_table(cls, number: int, index: SemIDIndex, table: pa.Table) -> "CatalogueVersion":
        """From a `semids.parquet`, whose rows are those of `index`."""
        items = table.drop_columns([name for name in ("semid", "codes") if name in table.column_names])
        plain = [
            field.with_type(field.type.value_type if types.is_dictionary(field.type) else field.type)
            for field in items.schema
        ]
        return cls(number, index, items.cast(pa.schema(plain)).replace_schema_metadata(None))


def apply_records(version: CatalogueVersion, records: Iterable[Mapping]) -> CatalogueVersion:
    """The version that records lead to from another, in one pass; where only columns change the index is the same.
    Raises `ValueError` for a record that does not follow the one before, or that does not fit the version."""
    replay = _Replay(version)
    for record in records:
        replay.step(record)
    return replay.result()


def difference(old: CatalogueVersion, new: CatalogueVersion) -> dict:
    """`put`, `remove` and `order` of the record that leads from one version to another; raises `ValueError` for a
    value that cannot be written as JSON."""
    removed = [item for item in old.index.items if item not in new.index]
    added = [item for item in new.index.items if item not in old.index]
    kept = [item for item in new.index.items if item in old.index]
    before = old.items.take(pa.array([old.index.row(item) for item in kept], pa.int64()))
    after = new.items.take(pa.array([new.index.row(item) for item in [*kept, *added]], pa.int64()))
    columns: dict[str, dict] = {item: {} for item in [*kept, *added]}
    for name in new.items.column_names[1:]:
        was, now = before[name].to_pylist(), after[name].to_pylist()
        rows = [row for row, value in enumerate(now) if row >= len(kept) or value != was[row]]
        for row, value in zip(rows, to_json(after[name].take(pa.array(rows, pa.int64())), name)):
            columns[after["item_id"][row].as_py()][name] = value
    put = [{"item_id": item, "columns": columns[item]} for item in kept if columns[item]]
    for item in added:
        codes = new.index.codes[new.index.rows(item)].tolist()
        put.append({"item_id": item, "columns": columns[item], "codes": codes})
    # The rows of `new`, as places among those that are left of `old` and the added ones after them.
    gone = set(removed)
    left = np.array([item not in gone for item in old.index.item_ids])
    place_left, places, end = np.cumsum(left) - 1, np.empty(len(new.index), np.int64), int(left.sum())
    for item in kept:
        places[new.index.rows(item)] = place_left[old.index.rows(item)]
    for item in added:
        rows = new.index.rows(item)
        places[rows] = range(end, end := end + len(rows))
    runs = np.split(places, np.flatnonzero(np.diff(places) != 1) + 1)
    order = [[int(run[0]), int(run[-1]) + 1] for run in runs]
    return {"put": put, "remove": removed} | ({"order": order} if len(order) > 1 else {})


class _Replay:
    """Many records in one pass: a row has a number for good, those of the version first, then the new ones."""

    def __init__(self, version: CatalogueVersion):
        self.version, self.number = version, version.number
        self.first_new = len(version.index)
        self.new_ids: list[str] = []
        self.new_codes: list[list[int]] = []
        self.rows: dict[str, list[int]] = {}  # of items that came or went
        self.alive: dict[int, None] | None = None  # all rows in their order, once they differ
        self.values: dict[str, dict[int, Any]] = {name: {} for name in version.items.column_names}
        self.reserved = dict(version.index.reserved)
        self.came = {item: number for item, number in version.index.reserved_versions.items() if number > 1}

    def step(self, record: Mapping) -> None:
        if record["parent"] != self.number:
            raise ValueError(
                f"the record of version {record['number']} follows version {record['parent']}, not {self.number}"
            )
        self.number = record["number"]
        if self.alive is None and (record["remove"] or "order" in record or any("codes" in p for p in record["put"])):
            self.alive = dict.fromkeys(range(self.first_new))
        for item in record["remove"]:
            self._remove(item)
        for put in record["put"]:
            self._put(put["item_id"], put["columns"], put.get("codes", ()))
        if "order" in record:
            rows = list(self.alive)
            self.alive = dict.fromkeys(rows[i] for start, stop in record["order"] for i in range(start, stop))

    def _remove(self, item: str) -> None:
        rows, index = self._rows_of(item), self.version.index
        self.reserved[item] = [
            index.codes[row].tolist() if row < self.first_new else self.new_codes[row - self.first_new] for row in rows
        ]
        if VERSION_COLUMN in self.values:
            changed, row = self.values[VERSION_COLUMN], rows[0]
            came = changed[row] if row in changed else self.version.items[VERSION_COLUMN][row].as_py()
            if (came or 1) > 1:
                self.came[item] = came
        for row in rows:
            del self.alive[row]
        self.rows[item] = []

    def _put(self, item: str, columns: Mapping, codes: Sequence[list[int]]) -> None:
        if codes:
            first = self.first_new + len(self.new_ids)
            self.rows[item] = list(range(first, first + len(codes)))
            self.alive.update(dict.fromkeys(self.rows[item]))
            self.new_ids += [item] * len(codes)
            self.new_codes += codes
            self.reserved.pop(item, None)
            self.came.pop(item, None)
            columns = {**columns, "item_id": item}
        for row in self._rows_of(item):
            for name, value in columns.items():
                if name not in self.values:
                    raise ValueError(f"version {self.number} changes column {name!r}, which the catalogue lacks")
                self.values[name][row] = value

    def _rows_of(self, item: str) -> Sequence[int]:
        index = self.version.index
        before = index.rows(item) if item in index else ()
        if not (rows := self.rows.get(item, before)):
            raise ValueError(f"version {self.number} changes item {item!r}, which is not in the version before")
        return rows

    def result(self) -> CatalogueVersion:
        old = self.version
        if self.alive is None:
            rows, index = np.arange(self.first_new), old.index
        else:
            rows = np.fromiter(self.alive, np.int64, len(self.alive))
            ids = [*old.index.item_ids, *self.new_ids]
            new_codes = np.array(self.new_codes, np.int32).reshape(-1, old.index.num_levels)
            codes = np.concatenate([old.index.codes, new_codes])
            info = {"reserved": self.reserved, "reserved_versions": self.came}
            index = old.index.replaced([ids[row] for row in rows], codes[rows], info)
            index.info.pop("collisions_after", None)  # of the items that were
        place = np.full(self.first_new + len(self.new_ids), -1)
        place[rows] = np.arange(len(rows))
        columns = {
            name: self._column(name, values, rows, place) if values or self.alive is not None else old.items[name]
            for name, values in self.values.items()
        }
        return CatalogueVersion(self.number, index, pa.table(columns, schema=old.items.schema))

    def _column(self, name: str, values: Mapping[int, Any], rows: np.ndarray, place: np.ndarray) -> pa.ChunkedArray:
        column = self.version.items[name]
        changed = [row for row in values if place[row] >= 0]
        new = to_array([values[row] for row in changed], column.type)
        source = np.where(rows < self.first_new, rows, -1)
        source[place[changed]] = self.first_new + np.arange(len(new))
        everything = pa.chunked_array([*column.chunks, new], column.type)
        return everything.take(pa.array(source, mask=source < 0))

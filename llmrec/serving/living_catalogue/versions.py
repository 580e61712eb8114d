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
    """An immutable state of the catalogue.

    Attributes:
        number (`int`): 0 is what the model folder holds.
        index (`SemIDIndex`): its rows.
        items (`pa.Table`): the items' columns, one row for every row of `index`, `item_id` first.
    """

    number: int
    index: SemIDIndex
    items: pa.Table

    @classmethod
    def of_table(cls, number: int, index: SemIDIndex, table: pa.Table) -> "CatalogueVersion":
        """From a `semids.parquet`, whose rows are those of `index`."""
        items = table.drop_columns([name for name in ("semid", "codes") if name in table.column_names])
        plain = [field.with_type(_decoded(field.type)) for field in items.schema]
        return cls(number, index, items.cast(pa.schema(plain)).replace_schema_metadata(None))

    @property
    def num_items(self) -> int:
        """Items, not rows."""
        return len(self.index.items)

    def has(self, item_id: str) -> bool:
        """Whether an item is in the catalogue."""
        return bool(self.rows_of(item_id))

    def rows_of(self, item_id: str) -> Sequence[int]:
        """The rows of an item, its primary Semantic ID first; none where it is not in the catalogue."""
        return self.index.rows(item_id) if item_id in self.index else ()


def apply_record(version: CatalogueVersion, record: Mapping) -> CatalogueVersion:
    """The version that a record describes, made from its parent; where only columns change the index is the same."""
    return apply_records(version, [record])


def apply_records(version: CatalogueVersion, records: Iterable[Mapping]) -> CatalogueVersion:
    """As `apply_record` one after the other, in one pass.

    Raises:
        ValueError: a record that does not follow the one before, or that does not fit the version.
    """
    replay = _Replay(version)
    for record in records:
        replay.step(record)
    return replay.result()


def difference(old: CatalogueVersion, new: CatalogueVersion) -> dict:
    """`put`, `remove` and `order` of the record that leads from one version to another.

    Raises:
        ValueError: a value that cannot be written as JSON.
    """
    removed = [item for item in old.index.items if not new.has(item)]
    added = [item for item in new.index.items if not old.has(item)]
    kept = [item for item in new.index.items if old.has(item)]
    before = old.items.take(pa.array([old.rows_of(item)[0] for item in kept], pa.int64()))
    after = new.items.take(pa.array([new.rows_of(item)[0] for item in [*kept, *added]], pa.int64()))
    columns: dict[str, dict] = {item: {} for item in [*kept, *added]}
    for name in new.items.column_names[1:]:
        was, now = before[name].to_pylist(), after[name].to_pylist()
        rows = [row for row, value in enumerate(now) if row >= len(kept) or value != was[row]]
        for row, value in zip(rows, to_json(after[name].take(pa.array(rows, pa.int64())), name)):
            columns[after["item_id"][row].as_py()][name] = value
    put = [{"item_id": item, "columns": columns[item]} for item in kept if columns[item]]
    for item in added:
        codes = new.index.codes[list(new.rows_of(item))].tolist()
        put.append({"item_id": item, "columns": columns[item], "codes": codes})
    gone = set(removed)
    appended = [item for item in added for _ in new.rows_of(item)]
    rows = _numbered([*(item for item in old.index.item_ids if item not in gone), *appended])
    place = {row: i for i, row in enumerate(rows)}
    order = _ranges([place[row] for row in _numbered(new.index.item_ids)])
    return {"put": put, "remove": removed} | ({"order": order} if len(order) > 1 else {})


class _Replay:
    """Many records in one pass: rows are numbered through, those of the version first, then the new ones."""

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
        for item in record["remove"]:
            self._remove(item)
        for put in record["put"]:
            self._put(put["item_id"], put["columns"], put.get("codes", ()))
        if "order" in record:
            rows = list(self._alive())
            self.alive = dict.fromkeys(rows[i] for start, stop in record["order"] for i in range(start, stop))

    def _alive(self) -> dict[int, None]:
        if self.alive is None:
            self.alive = dict.fromkeys(range(self.first_new))
        return self.alive

    def _rows_of(self, item: str) -> Sequence[int]:
        return self.rows[item] if item in self.rows else self.version.rows_of(item)

    def _codes(self, row: int) -> list[int]:
        old = row < self.first_new
        return self.version.index.codes[row].tolist() if old else self.new_codes[row - self.first_new]

    def _remove(self, item: str) -> None:
        rows = self._known(item)
        self.reserved[item] = [self._codes(row) for row in rows]
        if (came := self._came_with(rows[0])) > 1:
            self.came[item] = came
        for row in rows:
            del self._alive()[row]
        self.rows[item] = []

    def _came_with(self, row: int) -> int:
        versions = self.values.get(VERSION_COLUMN)
        if versions is None:
            return 1
        return (versions[row] if row in versions else self.version.items[VERSION_COLUMN][row].as_py()) or 1

    def _put(self, item: str, columns: Mapping, codes: Sequence[list[int]]) -> None:
        if codes:
            first = self.first_new + len(self.new_ids)
            self.rows[item] = list(range(first, first + len(codes)))
            self._alive().update(dict.fromkeys(self.rows[item]))
            self.new_ids += [item] * len(codes)
            self.new_codes += codes
            self.reserved.pop(item, None)
            self.came.pop(item, None)
            columns = {**columns, "item_id": item}
        for row in self._known(item):
            for name, value in columns.items():
                if name not in self.values:
                    raise ValueError(f"version {self.number} changes column {name!r}, which the catalogue lacks")
                self.values[name][row] = value

    def _known(self, item: str) -> Sequence[int]:
        if not (rows := self._rows_of(item)):
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
        items = pa.table(columns, schema=old.items.schema)
        return CatalogueVersion(self.number, index, items)

    def _column(self, name: str, values: Mapping[int, Any], rows: np.ndarray, place: np.ndarray) -> pa.ChunkedArray:
        column = self.version.items[name]
        changed = [row for row in values if place[row] >= 0]
        news = to_array([values[row] for row in changed], column.type)
        null = self.first_new + len(news)
        source = np.where(rows < self.first_new, rows, null)
        source[place[changed]] = self.first_new + np.arange(len(news))
        everything = pa.chunked_array([*column.chunks, news, pa.nulls(1, column.type)], column.type)
        return everything.take(pa.array(source))


def _decoded(kind: pa.DataType) -> pa.DataType:
    return kind.value_type if types.is_dictionary(kind) else kind


def _numbered(item_ids: Iterable[str]) -> list[tuple[str, int]]:
    """Every row as its item and the how manieth of the item it is."""
    count: dict[str, int] = {}
    rows = []
    for item in item_ids:
        rows.append((item, count.get(item, 0)))
        count[item] = count.get(item, 0) + 1
    return rows


def _ranges(places: Sequence[int]) -> list[list[int]]:
    """Half-open ranges that give these places one after the other."""
    places = np.asarray(places)
    starts = np.concatenate([[0], np.flatnonzero(np.diff(places) != 1) + 1])
    ends = np.concatenate([starts[1:], [len(places)]])
    return [[int(places[start]), int(places[end - 1]) + 1] for start, end in zip(starts, ends)]

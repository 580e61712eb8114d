"""What shall change in a living catalogue, checked before anything happens."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from llmrec.catalogue.lifecycle import VERSION_COLUMN
from llmrec.serving.living_catalogue.values import checked_values, to_array
from llmrec.serving.living_catalogue.versions import CatalogueVersion


@dataclass(frozen=True)
class Changes:
    """What shall change.

    Args:
        put: an item each: `item_id` and columns. Of a known item the given columns change and
            the others stay, as does its Semantic ID. A new item needs `title` and has null in columns that are not
            given. It may bring its Semantic ID (`semid`, a list of tokens) or its features (`embedding`, a list of
            numbers as the item tokenizer was fitted on); for a known item these say nothing new and may stand there.
            Texts are cleaned as those of prepared data.
    """

    put: Sequence[Mapping[str, Any]] = ()
    remove: Sequence[str] = ()


@dataclass(frozen=True)
class Put:
    item_id: str
    columns: dict
    is_new: bool
    embedding: Sequence[float] | None = None
    semid: Sequence[str] | None = None
    codes: list[list[int]] = field(default_factory=list)

    def written(self) -> dict:
        return {"item_id": self.item_id, "columns": self.columns} | ({"codes": self.codes} if self.is_new else {})


def checked(changes: Changes, version: CatalogueVersion) -> tuple[list[Put], list[str]]:
    """What is to be put and removed, fit to be written.

    Raises:
        ValueError: naming item and column: an unknown column or item, a value of the wrong type, an item twice, or
            nothing left.
    """
    removed = [_item_id(item, f"remove[{i}]") for i, item in enumerate(changes.remove)]
    puts = [_split(entry, i, version) for i, entry in enumerate(changes.put)]
    if not removed and not puts:
        raise ValueError("nothing to change: give items in put, in remove, or in both")
    for what, ids in (("put", [put.item_id for put in puts]), ("remove", removed)):
        twice = next((item for item, times in Counter(ids).items() if times > 1), None)
        if twice is not None:
            raise ValueError(f"item {twice!r} stands twice in {what}: name it once")
    gone = set(removed)
    for put in puts:
        if put.item_id in gone:
            raise ValueError(f"item {put.item_id!r} stands in put and in remove: leave it out of one of them")
    unknown = next((item for item in removed if item not in version.index), None)
    if unknown is not None:
        raise ValueError(f"item {unknown!r} is to be removed, but is not in the catalogue: leave it out of remove")
    if len(removed) == len(version.index.items) and not any(put.is_new for put in puts):
        raise ValueError("remove names all items: a catalogue needs at least one, so keep one or put another")
    kinds = {field.name: field.type for field in version.items.schema}
    for name in dict.fromkeys(name for put in puts for name in put.columns):
        given = [put for put in puts if name in put.columns]
        values = checked_values([(put.item_id, put.columns[name]) for put in given], name, kinds[name])
        for put, value in zip(given, values):
            put.columns[name] = value
    return puts, removed


def table_of(puts: Sequence[Put], schema: pa.Schema) -> pa.Table:
    """The columns of new items."""
    ids = pa.array([put.item_id for put in puts], schema.field("item_id").type)
    rest = {f.name: to_array([put.columns.get(f.name) for put in puts], f.type) for f in schema if f.name != "item_id"}
    return pa.table({"item_id": ids, **rest}, schema=schema)


def _split(entry: Mapping, position: int, version: CatalogueVersion) -> Put:
    """One entry of `put`; the columns' values are checked later, all together."""
    if not isinstance(entry, Mapping):
        raise ValueError(f"put[{position}] is {entry!r:.80}, it should be an item's columns: {{'item_id': ..., ...}}")
    columns = dict(entry)
    item = _item_id(columns.pop("item_id", None), f"put[{position}].item_id")
    names = version.items.column_names
    extra = {name: columns.pop(name, None) for name in ("embedding", "semid") if name not in names}
    unknown = next((name for name in columns if name not in names or name == VERSION_COLUMN), None)
    if unknown is not None:
        known = [name for name in names if name != VERSION_COLUMN]
        raise ValueError(f"item {item!r}, column {unknown!r}: the catalogue has {known}, and none can be added to it")
    is_new = item not in version.index
    if is_new and "title" not in columns and "title" in names:
        raise ValueError(f"item {item!r} is new and has no title: give it one")
    semid = extra.get("semid")
    if semid is not None and not (
        isinstance(semid, list | tuple) and semid and all(isinstance(token, str) for token in semid)
    ):
        raise ValueError(f"item {item!r}: semid is {semid!r:.80}, it should be a list of tokens")
    if not is_new and semid is not None:
        tokens = version.index.tokens_of_row(version.index.row(item))
        if list(semid) != tokens:
            raise ValueError(f"item {item!r} has the semid {tokens} and keeps it: leave semid out")
    if not is_new and not columns:
        raise ValueError(f"item {item!r} is known and no column of it is given: give one or leave the item out")
    return Put(item, columns, is_new, **extra)


def _item_id(item: Any, where: str) -> str:
    if not isinstance(item, str) or not item.strip() or item.encode(errors="replace").decode() != item:  # no UTF-8
        raise ValueError(f"{where} is {item!r:.80}, an item id should be a text that is not empty")
    return item

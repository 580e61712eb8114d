"""Semantic IDs that exist already, in a column or a file, for the items of a catalogue.

`llmrec.catalogue.semid_tokens` says which ways of writing them are known.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import pyarrow as pa

from llmrec.catalogue.collisions import collision_stats
from llmrec.catalogue.semid_tokens import mapping_of_semids
from llmrec.catalogue.semids import SemIDIndex
from llmrec.files import read_json, read_parquet


def ready_made_semids(
    items: pa.Table,
    source: str,
    codebook_sizes: Sequence[int] | None = None,
    pattern: str | None = None,
    keep_markers: bool = False,
) -> SemIDIndex:
    """Semantic IDs that exist already, for exactly the items of a catalogue; items may share one.

    `source` is a column of `items`, a `.json` of item id to SemID, or a `.parquet` with `item_id` and `semid` or
    `codes` (a `semids.parquet` of llmrec keeps all that it says). The other arguments are those of
    `SemIDIndex.from_semids`.
    Raises `ValueError` where it is none of these, for an item without SemID, or a token that does not fit the pattern.
    """
    where = f"column {source!r}" if source in items.column_names else Path(source).name
    semids = _read(items, source)
    if isinstance(semids, SemIDIndex):
        index = semids.aligned(items)
    else:
        semids = {item: semids.get(item) for item in items["item_id"].to_pylist()}
        for item, semid in semids.items():
            if semid in (None, "", []):
                raise ValueError(f"item {item!r} has no Semantic ID in {where}")
        index = SemIDIndex.from_semids(semids, codebook_sizes, pattern, keep_markers, {"source": where})
    index.info |= {"collision": "keep", "collisions_after": collision_stats(index.codes)}
    return index


def _read(items: pa.Table, source: str) -> Mapping | SemIDIndex:
    if source in items.column_names:
        return dict(zip(items["item_id"].to_pylist(), items[source].to_pylist()))
    if source.endswith(".json"):
        return mapping_of_semids(read_json(source, object), source)
    if source.endswith(".parquet"):
        table = read_parquet(source)
        if b"llmrec" in (table.schema.metadata or {}):
            return SemIDIndex.load(source)
        column = next((name for name in ("semid", "codes") if name in table.column_names), None)
        if column is None or "item_id" not in table.column_names:
            raise ValueError(f"{source} needs columns item_id and semid or codes; it has {table.column_names}")
        ids = table["item_id"].cast(pa.string()).to_pylist()
        return dict(zip(ids, table[column].to_pylist()))
    raise ValueError(
        f"ready-made SemIDs {source!r} are neither a column of the catalogue nor an index.json or .parquet"
    )

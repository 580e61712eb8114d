"""The life of a `SemIDIndex`: items come (`add_items` in `build.py`) and go, versions follow each other, nobody moves.

A Semantic ID is a word that a language model has learned. So the SemID of an item that was removed stays reserved: no
newcomer gets it, nor its number on the collision level, and the item itself gets it back if it returns. Only
`remove_items(..., reuse=True)` gives it free. The version that the item came with is kept beside it, so an item of the
first version is no newcomer when it returns.

Every index records its `version` (from 1 on), the fingerprint of its `parent` (the version before) and a `changelog`
(how many items came and went, by version).
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from llmrec.catalogue.collisions import collision_stats
from llmrec.catalogue.semids import SemIDIndex
from llmrec.data import PreparedData
from llmrec.data.cleaning import clean_items
from llmrec.data.convert import cast_column
from llmrec.data.rows import with_columns
from llmrec.data.validate import standard_items
from llmrec.files import files_fingerprint, fingerprint, read_parquet

FIRST_VERSION = {"version": 1, "parent": None, "changelog": []}
VERSION_COLUMN = "semid_version"


@dataclass(frozen=True)
class IndexDiff:
    """What changed between two indexes, by item; one with several SemIDs has them joined by a space."""

    added: dict[str, str]
    removed: dict[str, str]
    moved: dict[str, tuple[str, str]]  # the old and the new SemID

    def __str__(self) -> str:
        lines = [f"{len(self.added)} items added, {len(self.removed)} removed, {len(self.moved)} moved"]
        for sign, semids in (("+", self.added), ("-", self.removed)):
            lines += [f"  {sign} {semid}  {item}" for item, semid in list(semids.items())[:5]]
        lines += [f"  ! {old} -> {new}  {item}" for item, (old, new) in list(self.moved.items())[:5]]
        return "\n".join(lines)


def diff(old: SemIDIndex, new: SemIDIndex) -> IndexDiff:
    """What happened from one index to another, by item; the order of the items does not matter."""
    same_tokens = old.level_tokens == new.level_tokens and old.adds_tokens == new.adds_tokens
    moved = {}
    for item in old.items:
        before, after = old.rows_of_items[item], new.rows_of_items[item]
        if after and not (same_tokens and np.array_equal(old.codes[before], new.codes[after])):
            semids = _semids(old, item), _semids(new, item)
            if semids[0] != semids[1]:
                moved[item] = semids
    return IndexDiff(
        added={item: _semids(new, item) for item in new.items if item not in old},
        removed={item: _semids(old, item) for item in old.items if item not in new},
        moved=moved,
    )


def next_version(old: SemIDIndex, new: SemIDIndex) -> SemIDIndex:
    """`new` as the version that follows `old`; raises `ValueError` if an item's SemID differs."""
    changes = diff(old, new)
    if changes.moved:
        item, (before, after) = next(iter(changes.moved.items()))
        raise ValueError(f"item {item!r} would move from {before} to {after}: build a new index and train again")
    version = old.version + 1
    entry = {"version": version, "added": len(changes.added), "removed": len(changes.removed)}
    log = [*old.info.get("changelog", []), entry]
    return new.replaced(new.item_ids, new.codes, {"version": version, "parent": old.fingerprint, "changelog": log})


def check_updatable(index: SemIDIndex, folder: Path, adding: bool) -> None:
    """Raises `ValueError` where the Semantic IDs of a folder can have no next version, or (`adding`) no new items."""
    if domains := ", ".join(index.domains):
        raise ValueError(f"{folder} holds Semantic IDs of several domains: update {domains}, and join them again")
    if views := ", ".join(index.views):
        raise ValueError(f"{folder} holds joined Semantic IDs: update {views}, and join the views again")
    if adding and index.contextual:
        name = index.item_tokenizer
        raise ValueError(f"{folder}: item tokenizer {name!r} knows the items it was fitted with only: fit it again")
    if adding and not (folder / "item_tokenizer").is_dir():
        raise ValueError(
            f"{folder} has no item_tokenizer that could give new items Semantic IDs: bring those yourself"
        )


def update_inputs(index: SemIDIndex, given: pa.Table | None, model: str | None) -> dict[str, str | None]:
    """Fingerprints of what an update is made from: Semantic IDs in use and reserved, items, files of the model."""
    reserved = [index.reserved, index.reserved_versions]
    return {
        "semid_fingerprint": index.fingerprint,
        "reserved_fingerprint": fingerprint(json.dumps(reserved)) if any(reserved) else None,
        "items_fingerprint": None if given is None else fingerprint(given),
        "model_fingerprint": None if model is None else files_fingerprint([Path(model)]),
    }


def remove_items(
    index: SemIDIndex, item_ids: Sequence[str], reuse: bool = False, items: pa.Table | None = None
) -> SemIDIndex:
    """The next version of an index, without some items; the SemIDs of the others stay as they are.

    Args:
        reuse: let newcomers have the SemIDs that become free. A model that was trained before goes on taking them for
            the items it knew.
        items: the items' columns; `semid_version` says with which version an item came (without it: with the first).

    Raises:
        ValueError: an item that is not in `index`, or none would be left.
    """
    gone = dict.fromkeys(map(str, item_ids))
    for item in gone:
        if item not in index:
            raise ValueError(f"item {item!r} has no Semantic ID, so it cannot be removed")
    kept = [row for row, item in enumerate(index.item_ids) if item not in gone]
    if not kept:
        raise ValueError("an index needs at least one item: all of them would be removed")
    reserved, versions = index.reserved, index.reserved_versions
    if not reuse:
        reserved = {**reserved, **{item: index.codes[index.rows(item)].tolist() for item in gone}}
        if items is not None and VERSION_COLUMN in items.column_names:
            numbers = zip(items["item_id"].to_pylist(), items[VERSION_COLUMN].to_pylist())
            versions |= {item: number for item, number in numbers if item in gone}
    ids, codes = [index.item_ids[row] for row in kept], index.codes[kept]
    info = {**reservation(reserved, versions), "collisions_after": collision_stats(codes)}
    return next_version(index, index.replaced(ids, codes, info))


def reservation(reserved: Mapping[str, list], versions: Mapping[str, int]) -> dict:
    """What an index records of removed items: their codes, and the versions that they came with, if not the first."""
    later = {item: versions[item] for item in reserved if versions.get(item, 1) > 1}
    return {"reserved": dict(reserved), "reserved_versions": later}


def bring_back(index: SemIDIndex, item_ids: Sequence[str]) -> SemIDIndex:
    """The index with those of `item_ids` whose SemIDs are reserved; it is no version of its own yet."""
    reserved = dict(index.reserved)
    back = {item: reserved.pop(item) for item in item_ids if item in reserved}
    if not back:
        return index
    ids = [item for item, semids in back.items() for _ in semids]
    codes = np.array([codes for semids in back.values() for codes in semids], np.int32)
    joined = np.concatenate([index.codes, codes])
    info = {**reservation(reserved, index.reserved_versions), "collisions_after": collision_stats(joined)}
    return index.replaced([*index.item_ids, *ids], joined, info)


def taken_codes(index: SemIDIndex) -> np.ndarray:
    """int32 `[M, L]`: the codes of all SemIDs that no newcomer may get: those in use, and the reserved ones."""
    reserved = [codes for semids in index.reserved.values() for codes in semids]
    return np.concatenate([index.codes, np.array(reserved, np.int32).reshape(-1, index.num_levels)])


def read_catalogue(path: str | Path) -> pa.Table:
    """The clean items of a parquet, or those of a prepared data folder."""
    if Path(path).is_dir():
        return PreparedData.load(path).items
    return clean_items(standard_items(read_parquet(path), str(path)))


def next_catalogue(
    items: pa.Table,
    given: pa.Table | None = None,
    removed: Sequence[str] = (),
    version: int = 2,
    returning: Mapping[str, int] | None = None,
) -> pa.Table:
    """The items' columns for the next version.

    Rows of `given` come first, in its order, and replace those of the items that are there already (new prices, new
    titles); so a whole catalogue that is given keeps its order. The column `semid_version` says which version of the
    index an item came with.

    Args:
        items: the columns until now; without `semid_version` all items count as of version 1.
        given: new and changed items; columns that it lacks become null.
        returning: of `reserved_versions`: items that keep the version they first came with.

    Raises:
        ValueError: an item both given and removed, or a value of another type than its column had.
    """
    if VERSION_COLUMN not in items.column_names:
        items = items.append_column(VERSION_COLUMN, pa.array(np.ones(items.num_rows), pa.int32()))
    gone = set(removed)
    known = dict(zip(items["item_id"].to_pylist(), items[VERSION_COLUMN].to_pylist()))
    if given is None:
        return items.filter(pa.array([item not in gone for item in known]))
    ids = given["item_id"].to_pylist()
    for item in ids:
        if item in gone:
            raise ValueError(f"item {item!r} is to be removed, but stands among the items to add")
    given = given.select([name for name in given.column_names if name != VERSION_COLUMN])
    for field in given.schema:
        kind = items.schema.field(field.name).type if field.name in items.column_names else field.type
        if kind != field.type:
            given = with_columns(given, {field.name: cast_column(given[field.name], kind, "items", field.name)})
    came = {**(returning or {}), **known}
    versions = pa.array([came.get(item, version) for item in ids], pa.int32())
    left = set(ids) | gone
    rest = items.filter(pa.array([item not in left for item in known]))
    table = pa.concat_tables([given.append_column(VERSION_COLUMN, versions), rest], promote_options="default")
    return table.select([*items.column_names, *(n for n in given.column_names if n not in items.column_names)])


def _semids(index: SemIDIndex, item: str) -> str:
    return " ".join(map(index.semid_of_row, index.rows(item)))

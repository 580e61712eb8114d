"""The compact parquet form: items.parquet beside interactions.parquet, or beside ready windows.

- items.parquet: item_id, title, description, brand, categories, … (also `sid`, a list of ready-made SemID tokens)
- interactions.parquet: user_id, item_id, position in the user's sequence, split ("train", "valid", "test"), and
  optionally timestamp, rating
- or train.parquet, valid.parquet, test.parquet, one row per target: user_id, history, item_id, timestamp
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa

from llmrec.data.prepared import PreparedData
from llmrec.data.rows import events_of, numbered, ragged_arange, training_rows
from llmrec.data.sources.tables import read_file
from llmrec.data.validate import standard_interactions, standard_items
from llmrec.files import atomic_path, write_parquet

_SPLITS = ("train", "valid", "test")


def load_compact(folder: str, item_columns: Mapping | None = None) -> tuple[pa.Table, pa.Table]:
    """Loads a compact folder; ready windows are interactions with a `history` column.

    `item_columns` says standard name → the folder's own, e.g. `{"title": "keywords"}`.
    """
    folder = Path(folder)
    items = standard_items(read_file(folder / "items.parquet"), str(folder / "items.parquet"), item_columns)
    path = folder / "interactions.parquet"
    if path.exists():
        return standard_interactions(read_file(path), str(path), {"order": "position"}), items
    parts = []
    for split in _SPLITS:
        path = folder / f"{split}.parquet"
        raw = read_file(path)
        if "history" not in raw.column_names:
            raise ValueError(f"{path}: no column 'history'; it has {', '.join(raw.column_names)}")
        table = standard_interactions(raw, str(path))
        parts.append(table.append_column("split", pa.array([split] * len(table))))
    return pa.concat_tables(parts, promote_options="permissive"), items


def write_compact(data: PreparedData, folder: str | Path, window: int | None = None) -> None:
    """Writes prepared data in the compact form, whole or not at all.

    With `window` it writes windows with histories of at most this length. Without it interactions are written, which
    needs every user to have one training sequence (leave one out).
    """
    with atomic_path(folder) as temporary:
        temporary.mkdir()
        write_parquet(temporary / "items.parquet", data.items)
        if window is None:
            write_parquet(temporary / "interactions.parquet", _interactions(data))
            return
        for split, rows in zip(_SPLITS, (training_rows(data.train, window), data.valid, data.test)):
            write_parquet(temporary / f"{split}.parquet", rows.rename_columns({"target": "item_id"}))


def _interactions(data: PreparedData) -> pa.Table:
    users = data.train["user_id"].combine_chunks()
    if len(users.unique()) != len(users):
        raise ValueError("a user has several training sequences: give a window to write windows")
    parts = []
    for split in _SPLITS:
        events = events_of(getattr(data, split))
        parts.append(events.append_column("split", pa.array([split] * len(events))))
    table = pa.concat_tables(parts)
    # Rows of a user stand in order of time within and across the three parts, so a stable sort by user restores it.
    (codes,), _ = numbered(table["user_id"])
    counts = np.bincount(codes)
    position = ragged_arange(np.zeros_like(counts), counts)
    ordered = table.take(pa.array(np.argsort(codes, kind="stable")))
    return ordered.append_column("position", pa.array(position.astype(np.int32)))

"""The files of LC-Rec and of MiniOneRec, with their ready-made Semantic IDs.

LC-Rec (Zheng et al., ICDE 2024; also LETTER): `X.item.json` {item: {title, …}}, `X.inter.json` {user: [items in
order of time]} and, if there, `X.index.json` {item: [tokens]}.
MiniOneRec (arXiv 2510.24431): CSVs of ready windows for train, valid and test, `info/*.txt` ("semid \\t title \\t
item"), and LC-Rec's item.json and index.json.

Semantic IDs become a column `sid` (list of tokens) of the items; `SemIDIndex.load` reads the file itself.
"""

from itertools import chain
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from llmrec.data.convert import column_of
from llmrec.data.rows import offsets_of
from llmrec.data.sources.tables import read_fields, read_file
from llmrec.data.validate import INTERACTION_TYPES, standard_interactions, standard_items
from llmrec.files import read_json

# A Python list of plain ids: [3, 12], ['B01', 'B02'] or ["a", "b"]; no id holds a quote, a comma or a bracket.
_PLAIN_LIST = (
    r"""^\[\s*([^\[\]'",]+|'[^'",\[\]]*'|"[^'",\[\]]*")(\s*,\s*([^\[\]'",]+|'[^'",\[\]]*'|"[^'",\[\]]*"))*\s*\]$"""
)


def load_lcrec(folder: str, name: str) -> tuple[pa.Table, pa.Table]:
    """LC-Rec: `{folder}/{name}.inter.json`, `.item.json` and, if there, `.index.json`."""
    folder = Path(folder)
    items = _read_items(folder / f"{name}.item.json", folder / f"{name}.index.json")
    path = folder / f"{name}.inter.json"
    sequences = _mapping(path)
    for user, sequence in sequences.items():
        if not isinstance(sequence, list):
            raise ValueError(f"{path}: user {user!r} should have a list of items")
    lengths = np.fromiter(map(len, sequences.values()), np.int64, len(sequences))
    users = pa.array(list(sequences), pa.string()).take(pa.array(np.repeat(np.arange(len(lengths)), lengths)))
    order = np.arange(lengths.sum()) - np.repeat(offsets_of(lengths)[:-1], lengths)
    raw = {"user_id": users, "item_id": column_of(list(chain.from_iterable(sequences.values()))), "order": order}
    return standard_interactions(pa.table(raw), str(path)), items


def load_minionerec(
    train: str,
    valid: str,
    test: str,
    item_json: str | None = None,
    index_json: str | None = None,
    info: str | None = None,
) -> tuple[pa.Table, pa.Table]:
    """MiniOneRec: three CSVs, and the catalogue from `item_json` (all text) or `info` (titles only)."""
    if (item_json is None) == (info is None):
        raise ValueError("the catalogue comes from item_json or from info: give one of them")
    items = _read_items(Path(item_json), Path(index_json or "")) if item_json else _read_info(Path(info))
    parts = []
    for split, path in (("train", train), ("valid", valid), ("test", test)):
        raw = read_file(path)
        ours = [name for name in raw.column_names if name not in ("history", "split")]
        table = standard_interactions(raw.select(ours), path)
        table = table.append_column("history", _id_lists(raw, path))
        parts.append(table.append_column("split", pa.array([split] * len(table))))
    names = [name for name in INTERACTION_TYPES if all(name in part.column_names for part in parts)]
    return pa.concat_tables([part.select(names) for part in parts]), items


def _id_lists(raw: pa.Table, path: str) -> pa.ChunkedArray:
    if "history_item_id" not in raw.column_names:
        raise ValueError(f"{path}: no column 'history_item_id'; it has {', '.join(raw.column_names)}")
    text = pc.utf8_trim_whitespace(raw["history_item_id"])
    plain = pc.fill_null(pc.match_substring_regex(text, _PLAIN_LIST), False)
    row = pc.index(plain, False).as_py()
    if row >= 0:
        value = text[row].as_py()
        raise ValueError(f"{path}, column 'history_item_id', row {row + 1}: {value!r} is not a list of item ids")
    return pc.split_pattern(pc.replace_substring_regex(text, r"""[\[\]'"\s]""", ""), ",")


def _read_items(path: Path, index: Path) -> pa.Table:
    records = _mapping(path)
    for item, record in records.items():
        if not isinstance(record, dict):
            raise ValueError(f"{path}: item {item!r} should have an object with its title")
    names = dict.fromkeys(chain.from_iterable(records.values()))
    table = {"item_id": list(records)}
    table |= {name: column_of([record.get(name) for record in records.values()]) for name in names}
    items = standard_items(pa.table(table), str(path))
    if index.is_file():
        semids = _mapping(index)
        for item in records:
            if item not in semids:
                raise ValueError(f"{index}: item {item!r} of {path.name} has no Semantic ID")
        items = items.append_column("sid", pa.array([semids[item] for item in records], pa.list_(pa.string())))
    return items


def _read_info(path: Path) -> pa.Table:
    table = read_fields(path, "\t", ("semid", "title", "item"))
    items = standard_items(table.select(["item", "title"]), str(path), {"item_id": "item"})
    return items.append_column("sid", pc.split_pattern(pc.replace_substring(table["semid"], "><", "> <"), " "))


def _mapping(path: Path) -> dict:
    value = read_json(path, object)
    if not isinstance(value, dict) or not value:
        raise ValueError(f"{path} should hold a non-empty JSON object")
    return value

"""A `semids.parquet` as it is read: every field looked at before anything is made of it, whoever wrote the file."""

import json
import logging
from pathlib import Path

import numpy as np
import pyarrow as pa

from llmrec.catalogue.collisions import equal_rows
from llmrec.catalogue.record import check_info
from llmrec.files import read_parquet

logger = logging.getLogger(__name__)
_MOST_LEVELS = 1024
_KINDS = {
    "pattern": str,
    "codebook_sizes": list,
    "info": dict,
    "behaviours": list,
    "vocabularies": list,
    "vocabulary_of_level": list,
    "adds_tokens": bool,
}


def read_semids(path: Path) -> tuple[list[str], np.ndarray, dict]:
    """`(item ids, codes, header)` of a file that `SemIDIndex.save` wrote.

    `codes` are int32 `[R, L]`, -1 at levels where a row has none. Raises `ValueError` naming the file and the column
    or field: a header that is damaged or has a field that is none, ids that are no text, codes that are no int32, a
    row of more levels than there are, or an item with the same codes twice.
    """
    table = read_parquet(path, ["item_id", "codes"])
    header = _header(path, (table.schema.metadata or {}).get(b"llmrec"))
    if table.column_names != ["item_id", "codes"]:
        raise ValueError(f"{path} was not written by llmrec: it holds no SemID codes")
    for name, kind in (("item_id", pa.string()), ("codes", pa.list_(pa.int32()))):
        column = table[name]
        if column.type != kind and len(column):
            raise ValueError(f"{path}, column {name!r}: it holds {column.type}, it should hold {kind}")
        if column.null_count:
            row = column.combine_chunks().is_null().index(True).as_py()
            raise ValueError(f"{path}, column {name!r}: row {row} is null")
    lists = table["codes"].cast(pa.list_(pa.int32())).combine_chunks()
    item_ids, lengths, values = table["item_id"].to_pylist(), lists.value_lengths().to_numpy(), lists.flatten()
    if values.null_count:
        raise ValueError(f"{path}, column 'codes': a code is null")
    levels = len(header["codebook_sizes"])
    if len(lengths) and lengths.max() > levels:
        row = int(lengths.argmax())
        message = f"item {item_ids[row]!r} has {lengths[row]} codes, codebook_sizes has {levels} levels"
        raise ValueError(f"{path}, column 'codes': {message}")
    codes = np.full((len(lists), levels), -1, np.int32)
    codes[np.arange(levels) < lengths[:, None]] = values.to_numpy()
    _check_repeated(path, item_ids, codes)
    return item_ids, codes, header


def _check_repeated(path: Path, item_ids: list[str], codes: np.ndarray) -> None:
    numbers = {item: number for number, item in enumerate(dict.fromkeys(item_ids))}
    if len(numbers) == len(item_ids):
        return
    rows = np.stack([[numbers[item] for item in item_ids], equal_rows(codes)], 1)
    _, first, count = np.unique(rows, axis=0, return_index=True, return_counts=True)
    if count.max() > 1:
        item = item_ids[first[count.argmax()]]
        raise ValueError(f"{path}, column 'item_id': item {item!r} has the same Semantic ID in {count.max()} rows")


def _header(path: Path, written: bytes | None) -> dict:
    if written is None:
        raise ValueError(f"{path} was not written by llmrec: it holds no SemID codes")
    try:
        header = json.loads(written)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: its header is damaged ({error}): restore the file") from error
    if not isinstance(header, dict) or not {"pattern", "codebook_sizes", "info"} <= {*header} <= {*_KINDS}:
        fields = sorted(header) if isinstance(header, dict) else header
        raise ValueError(f"{path}: its header has the fields {fields!r:.200}, which llmrec does not write")
    for name, value in header.items():
        if not isinstance(value, _KINDS[name]):
            raise ValueError(f"{path}: {name} is {value!r:.80}, it should be a {_KINDS[name].__name__}")
    sizes = header["codebook_sizes"]
    if len(sizes) > _MOST_LEVELS or not all(type(size) is int and size > 0 for size in sizes):
        raise ValueError(f"{path}: codebook_sizes {sizes!r:.80} should be at most {_MOST_LEVELS} positive numbers")
    texts = [header.get("behaviours", []), *header.get("vocabularies", [])]
    if not all(isinstance(words, list) and all(isinstance(word, str) for word in words) for words in texts):
        raise ValueError(f"{path}: behaviours and vocabularies should be lists of texts")
    numbers, known = header.get("vocabulary_of_level", []), range(len(header.get("vocabularies", [])))
    if not all(type(number) is int and number in known for number in numbers):
        raise ValueError(f"{path}: vocabulary_of_level {numbers!r:.80} names vocabularies that are not there")
    info = header["info"]
    if "streams" in info:
        logger.warning("%s was written before llmrec 0.2: what it calls a stream is a view now", path)
        info |= {"views": info.pop("streams"), "view_info": info.pop("stream_info", {})}
    check_info(info, sizes, str(path))
    return header

"""Raw Amazon Reviews files of 2014, 2018 and 2023: reviews and metadata, one object per line, gzipped or not.

2014 (McAuley et al., SIGIR 2015): `reviews_X_5.json.gz`, `meta_X.json.gz` (its lines are Python literals, not JSON).
2018 (Ni et al., EMNLP 2019): `X_5.json.gz`, `meta_X.json.gz`.
2023 (Hou et al., arXiv 2403.03952): `X.jsonl.gz`, `meta_X.jsonl.gz`; items are `parent_asin`, timestamps milliseconds.

The review files are read by arrow. Metadata lines have fields whose type changes from line to line, so they are
parsed one by one, and only those of reviewed items are kept. Where an item occurs twice, its first line counts.
"""

import ast
import gzip
import html
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.json

from llmrec.data.validate import ITEM_TYPES, standard_interactions

_BLOCK = 1 << 24
_FIELDS_2014_2018 = {
    "reviewerID": pa.string(),
    "asin": pa.string(),
    "unixReviewTime": pa.int64(),
    "overall": pa.float64(),
}
_COLUMNS_2014_2018 = {
    "user_id": "reviewerID",
    "item_id": "asin",
    "timestamp": "unixReviewTime",
    "rating": "overall",
}
_FIELDS_2023 = {"user_id": pa.string(), "parent_asin": pa.string(), "timestamp": pa.int64(), "rating": pa.float64()}


def load_amazon2014(reviews: str, metadata: str) -> tuple[pa.Table, pa.Table]:
    """Amazon Reviews 2014: `reviews_Beauty_5.json.gz` and `meta_Beauty.json.gz`."""
    interactions = _reviews(reviews, _FIELDS_2014_2018, _COLUMNS_2014_2018)
    return interactions, _metadata(metadata, ast.literal_eval, _item_2014, interactions)


def load_amazon2018(reviews: str, metadata: str) -> tuple[pa.Table, pa.Table]:
    """Amazon Reviews 2018: `Office_Products_5.json.gz` and `meta_Office_Products.json.gz`."""
    interactions = _reviews(reviews, _FIELDS_2014_2018, _COLUMNS_2014_2018)
    return interactions, _metadata(metadata, json.loads, _item_2018, interactions)


def load_amazon2023(reviews: str, metadata: str) -> tuple[pa.Table, pa.Table]:
    """Amazon Reviews 2023: `Video_Games.jsonl.gz` and `meta_Video_Games.jsonl.gz`."""
    interactions = _reviews(reviews, _FIELDS_2023, {"item_id": "parent_asin"}, timestamp_unit="ms")
    return interactions, _metadata(metadata, json.loads, _item_2023, interactions)


def load_review_texts(reviews: str) -> pa.Table:
    """What users wrote, of a review file of any of the three years: user_id, item_id, timestamp, text."""
    if "parent_asin" in next(_lines(reviews), ""):
        fields, columns, text, unit = _FIELDS_2023, {"item_id": "parent_asin"}, "text", "ms"
    else:
        fields, columns, text, unit = _FIELDS_2014_2018, _COLUMNS_2014_2018, "reviewText", "s"
    raw = _read(reviews, {**fields, text: pa.string()})
    known = standard_interactions(raw, reviews, columns, unit).select(["user_id", "item_id", "timestamp"])
    return known.append_column("text", raw[text])


def _reviews(path: str, fields: dict, columns: dict, timestamp_unit: str = "s") -> pa.Table:
    return standard_interactions(_read(path, fields), str(path), columns, timestamp_unit)


def _read(path: str, fields: dict) -> pa.Table:
    options = pa.json.ParseOptions(explicit_schema=pa.schema(fields), unexpected_field_behavior="ignore")
    try:
        return pa.json.read_json(path, pa.json.ReadOptions(block_size=_BLOCK), options)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error


def _metadata(path: str, parse: Callable, convert: Callable, interactions: pa.Table) -> pa.Table:
    wanted = set(interactions["item_id"].unique().to_pylist())
    items: dict[str, dict] = {}
    for number, line in enumerate(_lines(path), 1):
        try:
            record = parse(line)
            item = convert(record)
        except (ValueError, SyntaxError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path}, line {number}: not the metadata of an item: {error!r}") from error
        if item["item_id"] in wanted:
            items.setdefault(item["item_id"], item)
    if not items:
        raise ValueError(f"{path} describes none of the {len(wanted)} reviewed items: is it of the same category?")
    return pa.Table.from_pylist(list(items.values()), schema=pa.schema(ITEM_TYPES))


def _lines(path: str) -> Iterator[str]:
    opened = gzip.open if Path(path).suffix == ".gz" else open
    try:
        with opened(path, "rt", encoding="utf-8") as file:
            yield from (line for line in file if line.strip())
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error


def _item_2014(record: dict) -> dict:
    return {
        "item_id": record["asin"],
        "title": record.get("title") or "",
        "description": record.get("description") or "",
        "brand": record.get("brand") or "",
        "categories": " | ".join(" > ".join(path) for path in record.get("categories") or []),
        "price": _price(record.get("price")),
        "image": record.get("imUrl") or "",
    }


def _item_2018(record: dict) -> dict:
    images = record.get("imageURLHighRes") or record.get("imageURL") or record.get("image") or []
    return {
        "item_id": record["asin"],
        "title": record.get("title") or "",
        "description": _text(record.get("description")),
        "brand": record.get("brand") or "",
        "categories": " > ".join(_list(record.get("category"))),
        "price": _price(record.get("price")),
        "image": _list(images)[0] if images else "",
    }


def _item_2023(record: dict) -> dict:
    images = record.get("images") or []
    first = images[0] if images else {}
    return {
        "item_id": record["parent_asin"],
        "title": record.get("title") or "",
        "description": _text(record.get("description")) or _text(record.get("features")),
        "brand": record.get("store") or "",
        "categories": " > ".join(_list(record.get("categories"))),
        "price": _price(record.get("price")),
        "image": first.get("hi_res") or first.get("large") or "",
    }


def _list(value) -> list[str]:
    return [value] if isinstance(value, str) else [str(part) for part in value or []]


def _text(value) -> str:
    return " ".join(_list(value))


def _price(value) -> float | None:
    """12.99 from 12.99, "12.99" or "$1,299.00"; `None` for a range, a page fragment or nothing."""
    if isinstance(value, (int, float)):
        return float(value)
    match = re.fullmatch(r"\$?([\d,]+(?:\.\d+)?)", html.unescape(value).strip()) if isinstance(value, str) else None
    return float(match[1].replace(",", "")) if match else None

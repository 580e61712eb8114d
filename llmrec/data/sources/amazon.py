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
import io
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.json
from tqdm.auto import tqdm

from llmrec.data.convert import column_of
from llmrec.data.sources.tables import reading
from llmrec.data.sources.text_files import BLOCK, check_characters
from llmrec.data.validate import INTERACTION_TYPES, ITEM_TYPES, standard_interactions, standard_items

_REVIEWS_2014_2018 = {"user_id": "reviewerID", "item_id": "asin", "timestamp": "unixReviewTime", "rating": "overall"}
_REVIEWS_2023 = {"user_id": "user_id", "item_id": "parent_asin", "timestamp": "timestamp", "rating": "rating"}


def load_amazon2014(reviews: str, metadata: str) -> tuple[pa.Table, pa.Table]:
    """Amazon Reviews 2014: `reviews_Beauty_5.json.gz` and `meta_Beauty.json.gz`."""
    interactions = _reviews(reviews, _REVIEWS_2014_2018)
    return interactions, _metadata(metadata, ast.literal_eval, _item_2014, interactions)


def load_amazon2018(reviews: str, metadata: str) -> tuple[pa.Table, pa.Table]:
    """Amazon Reviews 2018: `Office_Products_5.json.gz` and `meta_Office_Products.json.gz`."""
    interactions = _reviews(reviews, _REVIEWS_2014_2018)
    return interactions, _metadata(metadata, json.loads, _item_2018, interactions)


def load_amazon2023(reviews: str, metadata: str) -> tuple[pa.Table, pa.Table]:
    """Amazon Reviews 2023: `Video_Games.jsonl.gz` and `meta_Video_Games.jsonl.gz`."""
    interactions = _reviews(reviews, _REVIEWS_2023, unit="ms")
    return interactions, _metadata(metadata, json.loads, _item_2023, interactions)


def load_review_texts(reviews: str) -> pa.Table:
    """What users wrote, of a review file of any of the three years: user_id, item_id, timestamp, text."""
    of_2023 = "parent_asin" in next(_lines(reviews), "")
    fields = (_REVIEWS_2023, "text", "ms") if of_2023 else (_REVIEWS_2014_2018, "reviewText")
    return _reviews(reviews, *fields).select(["user_id", "item_id", "timestamp", "text"])


def _reviews(path: str, fields: dict, text: str | None = None, unit: str = "s") -> pa.Table:
    """Interactions; a column `text` holds what users wrote, if its field is given."""
    schema = {field: INTERACTION_TYPES[name] for name, field in fields.items()} | ({text: pa.string()} if text else {})
    options = pa.json.ParseOptions(explicit_schema=pa.schema(schema), unexpected_field_behavior="ignore")
    with reading(path):
        raw = pa.json.read_json(path, pa.json.ReadOptions(block_size=BLOCK), options)
    table = standard_interactions(raw, str(path), fields, unit)
    return table.append_column("text", raw[text]) if text else table


def _metadata(path: str, parse: Callable, convert: Callable, interactions: pa.Table) -> pa.Table:
    wanted = set(interactions["item_id"].unique().to_pylist())
    items: dict[str, dict] = {}
    for number, line in enumerate(_lines(path), 1):
        try:
            record = parse(line)
            item = {"title": record.get("title"), **convert(record), "price": _price(record.get("price"))}
        except (ValueError, SyntaxError, KeyError, TypeError, AttributeError, RecursionError, MemoryError) as error:
            raise ValueError(f"{path}, line {number}: not the metadata of an item: {error!r}") from error
        if item["item_id"] in wanted:
            with reading(path):
                check_characters(line, item, f"line {number}")
            items.setdefault(item["item_id"], item)
    if not items:
        raise ValueError(f"{path} describes none of the {len(wanted)} reviewed items: is it of the same category?")
    columns = {name: column_of([item[name] for item in items.values()]) for name in ITEM_TYPES}
    return standard_items(pa.table(columns), str(path))


def _lines(path: str) -> Iterator[str]:
    with reading(path), Path(path).open("rb") as raw:
        plain = gzip.open(raw) if Path(path).suffix == ".gz" else raw
        size = {"total": Path(path).stat().st_size, "unit": "B", "unit_scale": True}
        with tqdm(desc=Path(path).name, leave=False, delay=2, **size) as progress:
            for number, line in enumerate(io.TextIOWrapper(plain, encoding="utf-8")):
                if number % 4096 == 0:
                    progress.update(raw.tell() - progress.n)
                if line.strip():
                    yield line


def _item_2014(record: dict) -> dict:
    return {
        "item_id": str(record["asin"]),
        "description": record.get("description"),
        "brand": record.get("brand"),
        "categories": record.get("categories"),
        "image": record.get("imUrl"),
    }


def _item_2018(record: dict) -> dict:
    images = (record.get("imageURLHighRes"), record.get("imageURL"), record.get("image"))
    return {
        "item_id": str(record["asin"]),
        "description": record.get("description"),
        "brand": record.get("brand"),
        "categories": record.get("category"),
        "image": next(_texts(images), None),
    }


def _item_2023(record: dict) -> dict:
    images = [image for image in record.get("images") or [] if isinstance(image, dict)]
    described = any(_texts(record.get("description")))
    return {
        "item_id": str(record["parent_asin"]),
        "description": record.get("description" if described else "features"),
        "brand": record.get("store"),
        "categories": record.get("categories"),
        "image": next((image.get("hi_res") or image.get("large") for image in images), None),
    }


def _texts(value) -> Iterator[str]:
    """The texts of a value, and of the lists in it, that are not empty."""
    if isinstance(value, (list, tuple)):
        for part in value:
            yield from _texts(part)
    elif isinstance(value, str) and value.strip():
        yield value


def _price(value) -> float | None:
    """12.99 from 12.99, "12.99" or "$1,299.00"; `None` for a range, a page fragment or nothing."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    match = re.fullmatch(r"\$?([\d,]+(?:\.\d+)?)", html.unescape(value).strip()) if isinstance(value, str) else None
    return float(match[1].replace(",", "")) if match else None

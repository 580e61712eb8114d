"""Numbers, prices and lists as shops write them in text: `12,50 EUR`, `1.299,00`, `["Office", "Pens"]`, `Office|Pens`.

Columns of other types than text are left as they are.
"""

import ast
import json
import logging
import re
import unicodedata
from collections.abc import Mapping, Sequence

import pyarrow as pa
import pyarrow.compute as pc

from llmrec.arguments import one_of
from llmrec.data.convert import MISSING_NUMBERS, TEXT, refuse
from llmrec.data.rows import with_columns
from llmrec.data.validate import ITEM_TYPES, price_advice

logger = logging.getLogger(__name__)

# A number with a decimal comma or point, thousands marked by the other or not at all.
_WITH = {
    ",": re.compile(r"[+-]?(\d+|\d{1,3}(\.\d{3})+)(,\d+)?"),
    ".": re.compile(r"[+-]?(\d+|\d{1,3}(,\d{3})+)(\.\d+)?"),
}
_BLANK = r"[\s\p{Z}]+"
_LIST = r"^\s*\[.*\]\s*$"
_PARTS = r"\S[|>]\S|^[^&]*\S;\S[^&]*$|^[^ ]+/[^ ]+$"  # no `;` of an HTML entity


def plain_numbers(column: pa.ChunkedArray, decimal: str | None, where: str, name: str) -> pa.ChunkedArray:
    """Text of numbers with a point and without marks between thousands, as `as_number` reads it.

    Without `decimal` it is seen from the values where they fit one way of writing alone (12,50, not 12,500), and said;
    else they stay as they are. Raises `ValueError` naming the row that is no number with the given `decimal`.
    """
    values = pc.utf8_trim_whitespace(column)
    values = pc.if_else(pc.is_in(values, MISSING_NUMBERS), None, values)
    distinct = values.unique().drop_null().to_pylist()
    if decimal is None:
        decimal = decimal_of(distinct)
        if decimal is None:
            return column
        example = next(value for value in distinct if "," in value)
        logger.warning(
            "%s, column %r: %r and all others are read as numbers with the decimal %r (decimal: %r says so)",
            where, name, example, decimal, decimal,
        )  # fmt: skip
    pattern = _WITH[one_of(decimal, _WITH, "decimal")]
    strange = {value for value in distinct if not pattern.fullmatch(value)}
    if strange:
        row = pc.index(pc.is_in(values, pa.array(sorted(strange))), True).as_py()
        refuse(column, row, f"is no number with the decimal {decimal!r}", where, name)
    values = pc.replace_substring(values, "." if decimal == "," else ",", "")
    return pc.replace_substring(values, decimal, ".")


def decimal_of(values: Sequence[str]) -> str | None:
    """The decimal sign of numbers that are text, where they hold a comma and fit one way of writing alone."""
    fit = [sign for sign, pattern in _WITH.items() if all(map(pattern.fullmatch, values))]
    return fit[0] if len(fit) == 1 and any("," in value for value in values) else None


def plain_prices(
    column: pa.ChunkedArray, price_format: str, decimal: str | None, where: str, name: str
) -> tuple[pa.ChunkedArray, str]:
    """`(text of plain numbers, currency)` of prices such as `12,50 EUR`; their format `{} EUR` holds the number's
    place. White space does not count. The currency is a sign or three capitals in the format, else empty. Raises
    `ValueError` naming the row of a price in another format, so that no other currency passes."""
    if price_format.count("{}") != 1:
        raise ValueError(f"price_format is {price_format!r}: it should hold {{}} once, for the number: '{{}} EUR'")
    before, after = (re.sub(r"\s+", "", part) for part in price_format.split("{}"))
    values = pc.replace_substring_regex(column, _BLANK, "")
    missing = pc.is_in(values, MISSING_NUMBERS)
    fits = pc.and_(pc.starts_with(values, before), pc.ends_with(values, after))
    row = pc.index(pc.or_(missing, pc.fill_null(fits, True)), False).as_py()
    if row >= 0:
        refuse(
            column, row, f"is not written as price_format: {price_format!r}{price_advice(column, row)}", where, name
        )
    numbers = pc.utf8_slice_codeunits(values, len(before))
    numbers = pc.replace_substring_regex(numbers, re.escape(after) + "$", "") if after else numbers
    words = price_format.replace("{}", " ").split()
    signs = [word for word in words if re.fullmatch("[A-Z]{3}", word) or unicodedata.category(word[-1]) == "Sc"]
    return plain_numbers(pc.if_else(missing, None, numbers), decimal, where, name), "".join(signs[:1])


def read_lists(column: pa.ChunkedArray, rule: Mapping, nested: bool, where: str, name: str) -> pa.ChunkedArray:
    """Text such as `["a", "b"]` or `a|b` as lists of text; lists of lists (several paths) where `nested`.

    Args:
        rule: `several` (things side by side) and/or `path` (from wide to narrow) → how it is written: `json`, also as
            Python writes it, or what separates the parts. `{several: "|", path: ">"}` reads `a>b|c`.

    Raises:
        ValueError: another rule, or a row that holds no JSON list.
    """
    rule = dict(rule) if isinstance(rule, Mapping) else {}
    if not rule or not {*rule} <= {"several", "path"} or not all(isinstance(v, str) and v for v in rule.values()):
        raise ValueError(f"item_lists, {name!r}: give {{several: '|'}}, {{path: '>'}}, {{several: json}} or both")

    def parts(value: str, written: str) -> list:
        if written != "json":
            return [part for part in map(str.strip, value.split(written)) if part]
        try:
            found = json.loads(value)
        except ValueError:
            found = ast.literal_eval(value)
        if not isinstance(found, list):
            raise ValueError("no list")
        return found

    def read(value: str | None) -> list | None:
        if not (value or "").strip():
            return None
        found = parts(value, rule["several"]) if "several" in rule else [value]
        if "path" in rule:
            found = [parts(one, rule["path"]) if isinstance(one, str) else one for one in found]
            found = found[0] if len(found) == 1 and any(isinstance(one, list) for one in found[0]) else found
        found = [[str(part) for part in (one if isinstance(one, list) else [one]) if part] for one in found]
        return found if nested else [part for one in found for part in one]

    encoded = column.combine_chunks().dictionary_encode()
    lists = []
    for place, value in enumerate(encoded.dictionary.to_pylist()):
        try:
            lists.append(read(value))
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError) as error:
            row = pc.index(encoded.indices, place).as_py()
            raise ValueError(f"{where}, column {name!r}, row {row + 1}: {value[:80]!r} is no list in JSON") from error
    kind = pa.list_(pa.list_(TEXT)) if nested else pa.list_(TEXT)
    return pa.chunked_array([pa.array(lists, kind).take(encoded.indices)])


def interactions_as_written(raw: pa.Table, where: str, columns: Mapping, decimal: str | None) -> pa.Table:
    """Interactions with ratings as plain numbers (`plain_numbers`)."""
    name = columns.get("rating", "rating")
    if name not in raw.column_names or raw[name].type != TEXT:
        return raw
    return with_columns(raw, {name: plain_numbers(raw[name], decimal, where, name)})


def items_as_written(
    raw: pa.Table,
    where: str,
    columns: Mapping,
    decimal: str | None = None,
    price_format: str | None = None,
    item_lists: Mapping | None = None,
) -> pa.Table:
    """Items with prices and, if `decimal` is given, own columns as plain numbers; text that `item_lists` (standard or
    own name → rule of `read_lists`) names as lists; and a column `currency` from the format of the prices, unless
    there is one. Text that looks like a list and has no rule is a warning with an example."""
    rules = {columns.get(name, name): rule for name, rule in (item_lists or {}).items()}
    for name in rules.keys() - {*raw.column_names}:
        raise ValueError(f"{where}: item_lists names {name!r}; the items have {', '.join(map(str, raw.column_names))}")
    standard = {columns.get(name, name): name for name in ITEM_TYPES}
    changed, currency = {}, ""
    for name in raw.column_names:
        column, meaning = raw[name], standard.get(name)
        if column.type != TEXT:
            continue
        if name in rules:
            changed[name] = read_lists(column, rules[name], meaning == "categories", where, name)
        elif meaning == "price" and price_format is not None:
            changed[name], currency = plain_prices(column, price_format, decimal, where, name)
        elif meaning == "price":
            changed[name] = plain_numbers(column, decimal, where, name)
        elif meaning in (None, "categories"):
            _warn_of_lists(column, meaning, where, name)
            values = column.unique().drop_null().to_pylist()
            if decimal == "," and all(_WITH[","].fullmatch(value) for value in values if value):
                changed[name] = plain_numbers(column, decimal, where, name)
    raw = with_columns(raw, changed)
    if currency and columns.get("currency", "currency") not in raw.column_names:
        raw = raw.append_column("currency", pa.array([currency] * raw.num_rows, TEXT))
    return raw


def lists_in(column: pa.ChunkedArray, meaning: str | None) -> tuple[str, str] | None:
    """Of text that looks like lists: an example, and `json` or what separates their parts (of categories, where that
    is plain); `None` for other text."""
    filled = column.filter(pc.fill_null(pc.not_equal(column, ""), False))
    if len(filled) and pc.all(pc.match_substring_regex(filled, _LIST)).as_py():
        return filled[0].as_py(), "json"
    if meaning == "categories" and pc.any(pc.match_substring_regex(filled, _PARTS)).as_py():
        value = filled.filter(pc.match_substring_regex(filled, _PARTS))[0].as_py()
        return value, next(sign for sign in "|;>/" if sign in value)
    return None


def _warn_of_lists(column: pa.ChunkedArray, meaning: str | None, where: str, name: str) -> None:
    found = lists_in(column, meaning)
    if found is None:
        return
    value, written = found
    rule = f"{{path: {written!r}}} if it goes from wide to narrow, {{several: {written!r}}} if not"
    if written == "json":
        rule = "{path: json} if it goes from wide to narrow, else {several: json}"
    logger.warning("%s, column %r: %.80r is read as one text; item_lists: {%s: …} reads a list: %s",
                   where, name, value, meaning or name, rule)  # fmt: skip

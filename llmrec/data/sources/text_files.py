"""CSV, TSV and JSON lines as tables in which text is what stands in the file.

Every column of a CSV or TSV is text, so that 007, NA and 1e5 keep their form; what should be numbers becomes so later
(`llmrec.data.convert`). Strings of JSON stay strings, whatever they look like.

A CSV may quote its values; a quote that is never closed, or is closed within a value, would swallow rows, so a second,
strict reader counts them. A TSV has no quotes, as search engines, Wikipedia and most exports write it; `quote_char`
says otherwise.
"""

import contextlib
import csv
import io
import json
import logging
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from typing import BinaryIO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.json

from llmrec.data.convert import column_of

logger = logging.getLogger(__name__)

# No line of a JSON file may be longer than a block.
BLOCK = 1 << 24
_VALUE = r"[+-]?\d+(\.\d*)?([eE][+-]?\d+)?|\d{4}-\d\d-\d\d.*"  # a number or a date, which hardly names a column


_SEPARATORS = ",;\t|"
_LOOKED_AT = 100  # records of a file that is asked what separates its values


def guess_delimiter(
    opened: Callable[[], BinaryIO],
    where: str,
    usual: str,
    encoding: str = "utf-8",
    quote_char: str | None = None,
    column_names: Sequence[str] | None = None,
) -> str:
    """What separates the values of a CSV: of a comma, a semicolon, a tab and a bar the one with which its header has
    the most fields and nearly all of its first records as many, which is logged where it is not the `usual` one; that
    where none is plain. The arguments are those of `read_csv`."""
    fields = dict.fromkeys((usual, *_SEPARATORS), 0)
    for separator in fields:
        quote = quote_char if quote_char is not None else "" if separator == "\t" else '"'
        with contextlib.suppress(csv.Error, UnicodeError, LookupError):
            records = _records(opened, separator, quote, encoding)
            lengths = [len(record) for record in islice(filter(None, records), _LOOKED_AT)]
            header = len(column_names) if column_names else lengths[0] if lengths else 0
            if header > 1 and lengths.count(header) >= 0.9 * len(lengths):
                fields[separator] = header
    found = max(fields, key=fields.__getitem__)
    if found != usual:
        logger.warning("%s: its values are separated by %r, %d a row (delimiter: %r says so)",
                       where, found, fields[found], found)  # fmt: skip
    return found


def read_csv(
    opened: Callable[[], BinaryIO],
    where: str,
    delimiter: str = ",",
    encoding: str = "utf-8",
    quote_char: str | None = None,
    column_names: Sequence[str] | None = None,
) -> pa.Table:
    """A CSV with every column as text.

    Args:
        opened: opens the file, uncompressed bytes; it is read twice or more.
        where: its name, for errors.
        quote_char: what quotes values, "" for nothing; by default `"`, and nothing where tabs separate.
        column_names: of a file that has no header.

    Raises:
        ValueError: a header of one name that another separator parts, a name that stands in it twice, or quotes that
            do not close as they should.
        pa.ArrowException, UnicodeDecodeError, LookupError: the file is no such CSV.
    """
    tabs = delimiter == "\t"
    quote = quote_char if quote_char is not None else "" if tabs else '"'
    quoted = bool(quote) and _holds(opened, quote)
    header = list(column_names or next(_records(opened, delimiter, quote, encoding), []))
    apart = next((sign for sign in _SEPARATORS if len(header) == 1 and sign in header[0]), None)
    if apart:
        raise ValueError(
            f"{where}: one column, called {header[0]!r}; say what separates the values, e.g. delimiter: {apart!r}"
        )
    for name, count in Counter(header).items():
        if count > 1:
            raise ValueError(
                f"{where}: the header has {name!r} {count} times; every column needs a name of its own; if it is no "
                "header but a row, give column_names (item_column_names for the items)"
            )

    def read(threads: bool) -> pa.Table:
        return pa.csv.read_csv(
            opened(),
            pa.csv.ReadOptions(encoding=encoding, use_threads=threads, column_names=column_names),
            pa.csv.ParseOptions(delimiter=delimiter, quote_char=quote or False, newlines_in_values=quoted),
            pa.csv.ConvertOptions(column_types=dict.fromkeys(header, pa.string())),
        )

    lines = _count_rows(opened, where, delimiter, quote, encoding, bool(column_names)) if quoted else None
    try:
        table = read(threads=True)
    except pa.ArrowInvalid:
        table = read(threads=False)  # the row of an error is known to the single-threaded reader only
    if quoted and lines != table.num_rows:
        raise ValueError(f"{where}: {table.num_rows} rows were read, but {lines} lines end outside of quotes")
    if tabs and quote_char is None and _holds(opened, '"'):
        _warn_of_quotes(table, where)
    return table


def check_header(table: pa.Table, where: str, columns: Mapping, needed: Sequence[str], ids: Sequence[str]) -> None:
    """Raises `ValueError` where the names of a CSV's columns are those of a row, or stand among the values.

    Args:
        columns: standard name → own name; `needed` and `ids` are standard names.
    """
    names = table.column_names
    values = [name for name in names if re.fullmatch(_VALUE, name)]
    chosen = {columns.get(name, name) for name in needed} | set(columns.values())
    if values and names != list(map(str, range(len(names)))) and (chosen - set(names) or chosen & set(values)):
        raise ValueError(
            f"{where}: the first line ({', '.join(names)}) looks like a row, not like names of columns; if the file "
            "has no header, give column_names (item_column_names for the items); if it is one, map what is needed, "
            f"e.g. columns: {{{needed[0]}: your_column}}"
        )
    for source in (columns.get(name, name) for name in ids):
        row = pc.index(table[source], source).as_py() if source in names else -1
        if row >= 0:
            raise ValueError(
                f"{where}, column {source!r}, row {row + 1}: the value is the column's own name; either the header "
                "stands in the file more than once, or it is a row: then give column_names (item_column_names)"
            )


def read_json_lines(opened: Callable[[], BinaryIO]) -> pa.Table:
    """One JSON object a line; columns of several kinds of values as `column_of` says. Raises `pa.ArrowException`."""

    def read(schema: pa.Schema | None = None) -> pa.Table:
        options = pa.json.ParseOptions(explicit_schema=schema)
        return pa.json.read_json(opened(), pa.json.ReadOptions(block_size=BLOCK), options)

    try:
        table = read()
    except pa.ArrowInvalid as error:
        try:
            return _read_mixed(opened)
        except (json.JSONDecodeError, UnicodeError, RecursionError):
            raise error from None  # it is no JSON, rather than of several kinds
    # Arrow takes text that looks like a moment for one.
    fields = [field.with_type(_moments_as_text(field.type)) for field in table.schema]
    changed = [field for field in fields if field != table.schema.field(field.name)]
    return read(pa.schema(changed)) if changed else table


def check_characters(line: str, row: dict, where: str) -> None:
    """Raises `pa.ArrowInvalid` where the row of a line holds half a character (a surrogate without the other)."""
    if "\\ud" in line.lower():
        try:
            json.dumps(row, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            half = ascii(error.object[error.start])
            raise pa.ArrowInvalid(f"{where} holds {half}, one half of a character; take it out") from error


def _moments_as_text(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_timestamp(kind):
        return pa.string()
    if pa.types.is_list(kind):
        return pa.list_(_moments_as_text(kind.value_type))
    if pa.types.is_struct(kind):
        return pa.struct([field.with_type(_moments_as_text(field.type)) for field in kind])
    return kind


def _read_mixed(opened: Callable[[], BinaryIO]) -> pa.Table:
    rows = []
    with io.TextIOWrapper(opened(), encoding="utf-8-sig") as lines:
        for line in filter(str.strip, lines):
            rows.append(json.loads(line, object_pairs_hook=_no_key_twice))
            if not isinstance(rows[-1], dict):
                raise pa.ArrowInvalid(f"line {len(rows)} is no JSON object")
            check_characters(line, rows[-1], f"row {len(rows)}")
    names = dict.fromkeys(name for row in rows for name in row)
    return pa.table({name: column_of([row.get(name) for row in rows]) for name in names})


def _no_key_twice(pairs: list[tuple]) -> dict:
    row = dict(pairs)
    if len(row) < len(pairs):
        twice = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        raise pa.ArrowInvalid(f"{twice!r} stands twice in one object")
    return row


def _holds(opened: Callable[[], BinaryIO], character: str) -> bool:
    with opened() as file:
        return any(character.encode() in block for block in iter(lambda: file.read(1 << 20), b""))


def _records(opened: Callable[[], BinaryIO], delimiter: str, quote: str, encoding: str) -> Iterator[list[str]]:
    csv.field_size_limit(sys.maxsize)
    quoting = {"quotechar": quote} if quote else {"quoting": csv.QUOTE_NONE}
    encoding = "utf-8-sig" if encoding.lower() in ("utf-8", "utf8") else encoding
    with io.TextIOWrapper(opened(), encoding=encoding, newline="") as text:
        yield from csv.reader(text, delimiter=delimiter, strict=True, **quoting)


def _count_rows(
    opened: Callable[[], BinaryIO], where: str, delimiter: str, quote: str, encoding: str, headless: bool
) -> int:
    """The number of rows of a reader that takes quotes strictly; raises `ValueError` with the first bad one."""
    count = 0 if headless else -1
    try:
        for record in _records(opened, delimiter, quote, encoding):
            count += bool(record)
    except csv.Error as error:
        raise ValueError(
            f"{where}, row {count + 1}: a value begins with {quote} and is not closed by one at its end ({error}); "
            f"write the value in quotes and quotes inside it twice, or set quote_char: '' if the file quotes nothing"
        ) from error
    return count


def _warn_of_quotes(table: pa.Table, where: str) -> None:
    for name in table.column_names:
        wrapped = pc.and_(pc.starts_with(table[name], '"'), pc.ends_with(table[name], '"'))
        row = pc.index(wrapped, True).as_py()
        if row >= 0:
            logger.warning(
                "%s, column %r, row %d: %.60r keeps its quotes, as a TSV has none; if the file quotes values, set "
                "quote_char: '\"'", where, name, row + 1, table[name][row].as_py(),
            )  # fmt: skip
            return

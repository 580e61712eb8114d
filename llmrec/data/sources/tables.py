"""The user's own tables: CSV, TSV, JSON lines or parquet, one file, a folder or a glob, read by arrow."""

import contextlib
import csv
import glob
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from llmrec.columns import plain_table
from llmrec.data.convert import TEXT, exact_numbers
from llmrec.data.rows import with_columns
from llmrec.data.sources.text_files import check_header, guess_delimiter, read_csv, read_json_lines
from llmrec.data.spelling import interactions_as_written, items_as_written
from llmrec.data.validate import ITEM_TYPES, items_without_text, standard_interactions, standard_items

_FORMATS = {".csv": "csv", ".tsv": "csv", ".jsonl": "json", ".ndjson": "json", ".json": "json", ".parquet": "parquet"}


def load_tables(
    interactions: str | list[str],
    items: str | list[str] | None = None,
    columns: Mapping | None = None,
    item_columns: Mapping | None = None,
    timestamp_unit: str = "s",
    encoding: str = "utf-8",
    quote_char: str | None = None,
    column_names: Sequence[str] | None = None,
    item_column_names: Sequence[str] | None = None,
    delimiter: str | None = None,
    decimal: str | None = None,
    price_format: str | None = None,
    item_lists: Mapping | None = None,
) -> tuple[pa.Table, pa.Table]:
    """Loads interactions and items from the user's own files.

    Args:
        interactions: a file, a folder, a glob or a list of these (.csv, .tsv, .jsonl, .parquet; also .gz).
        items: the same for the items; without it items have no text, only the ids that occur.
        columns, item_columns: standard name → own name, e.g. `{"user_id": "reviewerID"}`.
        timestamp_unit: of numeric timestamps: s, ms, us or ns; or the form of text, `"%d.%m.%Y %H:%M"`.
        encoding: of CSV and TSV files.
        quote_char: what quotes values in CSV and TSV files, "" for nothing; by default `"` in CSV, nothing in TSV.
        column_names, item_column_names: the names of all columns of CSV and TSV files without a header.
        delimiter: what separates values in CSV and TSV files; by default seen from each file and said.
        decimal: "," or "." in numbers that are text, thousands being marked by the other; by default seen from prices
            and ratings that fit one alone, and said.
        price_format: how prices that are text are written, `"{} EUR"`; what is written otherwise is refused.
        item_lists: columns of the items whose text holds lists, and how: `{"categories": {"several": "|"}}`
            (`llmrec.data.spelling.read_lists`).
    """
    columns, item_columns, parts = columns or {}, item_columns or {}, []
    written = {"decimal": decimal, "price_format": price_format, "item_lists": item_lists}
    for path in find_files(interactions):
        raw = read_file(path, encoding, quote_char, column_names, delimiter)
        if file_format(path) == "csv":
            check_header(raw, str(path), columns, ("user_id", "item_id"), ("user_id", "item_id"))
        raw = interactions_as_written(raw, str(path), columns, decimal)
        parts.append(standard_interactions(raw, str(path), columns, timestamp_unit))
    table = _concat(parts, str(interactions))
    if items is None:
        return table, items_without_text(table)
    parts, paths = [], find_files(items)
    for path in paths:
        raw = read_file(path, encoding, quote_char, item_column_names, delimiter)
        if file_format(path) == "csv":
            check_header(raw, str(path), item_columns, ("item_id", "title"), ("item_id",))
        parts.append(
            standard_items(items_as_written(raw, str(path), item_columns, **written), str(path), item_columns)
        )
    catalogue = _concat(parts, str(items))
    if all(file_format(path) == "csv" for path in paths):
        catalogue = with_own_numbers(catalogue, str(items))
    return table, standard_items(catalogue, str(items))


def with_own_numbers(items: pa.Table, where: str) -> pa.Table:
    """Items of text files: columns of the user's own become numbers where every value is written as one is."""
    own = [field.name for field in items.schema if field.name not in ITEM_TYPES and field.type == TEXT]
    return with_columns(items, {name: exact_numbers(items[name], where, name) for name in own})


@contextlib.contextmanager
def reading(path: str | Path, encoding: str | None = None) -> Iterator[None]:
    """What goes wrong with a file while it is read becomes a `ValueError` that names it, and an `encoding` that can be
    chosen where the file is in another."""
    try:
        yield
    except (pa.ArrowException, OSError, EOFError, UnicodeError, LookupError, csv.Error) as error:
        advice = ""
        if encoding and re.search("utf-?8", str(error), re.IGNORECASE):
            advice = f"; it is not {encoding}: say what it is, e.g. encoding: latin-1"
        raise ValueError(f"{path} cannot be read: {error}{advice}") from error


def read_fields(path: Path, separator: str, names: Sequence[str], encoding: str = "utf-8") -> pa.Table:
    """A text file of lines of as many fields as there are `names`, all as text."""
    with reading(path):
        lines = path.read_text(encoding=encoding).rstrip("\n").split("\n")  # titles may hold other line ends
    rows = [line.split(separator) for line in lines]
    for number, row in enumerate(rows, 1):
        if len(row) != len(names):
            fields = separator.replace("\t", " (tab) ").join(names)
            raise ValueError(f"{path}, line {number}: {lines[number - 1][:80]!r} is not {fields}")
    return pa.table({name: pa.array(column, pa.string()) for name, column in zip(names, zip(*rows))})


def find_files(where: str | Path | list) -> list[Path]:
    """The files behind a file name, a folder, a glob or a list of these; raises `ValueError` where there are none."""
    if isinstance(where, (list, tuple)):
        return [path for part in where for path in find_files(part)]
    path = Path(where)
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.is_file() and file_format(file))
    else:
        files = [path] if path.is_file() else sorted(Path(file) for file in glob.glob(str(where), recursive=True))
    if not files:
        raise ValueError(f"{where}: no such file, or a folder without {', '.join(_FORMATS)} files")
    return files


def read_file(
    path: str | Path,
    encoding: str = "utf-8",
    quote_char: str | None = None,
    column_names: Sequence[str] | None = None,
    delimiter: str | None = None,
) -> pa.Table:
    """Reads one file by its ending; the columns of a CSV or TSV are text (`llmrec.data.sources.text_files`), and
    without a `delimiter` the file shows it, first of all to be a comma, or a tab for .tsv. Raises
    `ValueError` on an unknown ending, a file that cannot be read, or text that is not in the encoding.
    """
    kind = file_format(path)
    if kind is None:
        raise ValueError(f"{path}: unknown ending; use one of {', '.join(_FORMATS)} (also with .gz, .bz2 or .zst)")
    tabs = ".tsv" in map(str.lower, Path(path).suffixes)
    try:
        if kind == "parquet":
            return plain_table(pq.read_table(path))
        if kind == "json":
            return read_json_lines(lambda: pa.input_stream(str(path)))
        how = (encoding, quote_char, column_names)

        def opened():
            return pa.input_stream(str(path))

        separator = delimiter or delimiter_of(path, *how)
        return read_csv(opened, str(path), separator, *how)
    except (pa.ArrowException, OSError, UnicodeError, LookupError, csv.Error) as error:
        advice = ""
        if kind == "csv" and re.search("utf-?8", str(error), re.IGNORECASE):
            advice = f"; it is not {encoding}: say what it is, e.g. encoding: latin-1"
        elif tabs and not quote_char and "columns, got" in str(error):
            advice = "; quotes have no meaning in a TSV unless you say so, e.g. quote_char: '\"'"
        elif kind == "csv" and "columns, got" in str(error):
            advice = "; write a value that holds what separates values in quotes"
        elif kind == "json" and Path(path).suffix == ".json":
            advice = "; it must hold one JSON object per line"
        raise ValueError(f"{path} cannot be read: {error}{advice}") from error


def delimiter_of(
    path: str | Path, encoding: str = "utf-8", quote_char: str | None = None, column_names: Sequence[str] | None = None
) -> str:
    """What separates the values of a CSV or TSV file (`guess_delimiter`)."""
    usual = "\t" if ".tsv" in map(str.lower, Path(path).suffixes) else ","
    return guess_delimiter(lambda: pa.input_stream(str(path)), str(path), usual, encoding, quote_char, column_names)


def file_format(path: str | Path) -> str | None:
    """csv (also for TSV), json or parquet, by a file's ending; `None` for another."""
    suffixes = [suffix.lower() for suffix in Path(path).suffixes]
    if suffixes and suffixes[-1] in (".gz", ".bz2", ".zst"):
        suffixes.pop()
    return _FORMATS.get(suffixes[-1]) if suffixes else None


def _concat(parts: list[pa.Table], where: str) -> pa.Table:
    names = parts[0].column_names
    for part in parts:
        if difference := sorted(set(names) ^ set(part.column_names)):
            raise ValueError(f"{where}: some files have the columns {', '.join(difference)} and some do not")
    try:
        return pa.concat_tables([part.select(names) for part in parts], promote_options="permissive")
    except pa.ArrowException as error:
        raise ValueError(f"{where}: the files' columns differ in type: {error}") from error

"""The user's own tables: CSV, TSV, JSON lines or parquet, one file, a folder or a glob, read by arrow."""

import contextlib
import glob
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet as pq

from llmrec.data.rows import with_columns
from llmrec.data.validate import cast_column, items_without_text, standard_interactions, standard_items

_FORMATS = {".csv": "csv", ".tsv": "csv", ".jsonl": "json", ".ndjson": "json", ".json": "json", ".parquet": "parquet"}
# No line of a JSON file may be longer than a block.
BLOCK = 1 << 24


def load_tables(
    interactions: str | list[str],
    items: str | list[str] | None = None,
    columns: Mapping | None = None,
    item_columns: Mapping | None = None,
    timestamp_unit: str = "s",
    encoding: str = "utf-8",
) -> tuple[pa.Table, pa.Table]:
    """Loads interactions and items from the user's own files.

    Args:
        interactions: a file, a folder, a glob or a list of these (.csv, .tsv, .jsonl, .parquet; also .gz).
        items: the same for the items; without it items have no text, only the ids that occur.
        columns, item_columns: standard name → own name, e.g. `{"user_id": "reviewerID"}`.
        timestamp_unit: of numeric timestamps: s, ms, us or ns.
        encoding: of CSV files.
    """
    parts = [
        standard_interactions(read_file(path, encoding, _ids(columns)), str(path), columns, timestamp_unit)
        for path in find_files(interactions)
    ]
    table = _concat(parts, str(interactions))
    if items is None:
        return table, items_without_text(table)
    parts = [
        standard_items(read_file(path, encoding, _ids(item_columns)), str(path), item_columns)
        for path in find_files(items)
    ]
    return table, standard_items(_concat(parts, str(items)), str(items))


@contextlib.contextmanager
def reading(path: str | Path) -> Iterator[None]:
    """What goes wrong with a file while it is read becomes a `ValueError` that names it."""
    try:
        yield
    except (pa.ArrowException, OSError, EOFError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error


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
        files = sorted(file for file in path.rglob("*") if file.is_file() and _format(file))
    else:
        files = [path] if path.is_file() else sorted(Path(file) for file in glob.glob(str(where), recursive=True))
    if not files:
        raise ValueError(f"{where}: no such file, or a folder without {', '.join(_FORMATS)} files")
    return files


def read_file(path: str | Path, encoding: str = "utf-8", text_columns: tuple[str, ...] = ()) -> pa.Table:
    """Reads one file by its ending; `text_columns` of a CSV are read as text, so that an id such as 007 keeps its
    zeros. Raises `ValueError` on an unknown ending, a file that cannot be read, or text that is not in the encoding.
    """
    kind = _format(path)
    if kind is None:
        raise ValueError(f"{path}: unknown ending; use one of {', '.join(_FORMATS)} (also with .gz, .bz2 or .zst)")
    try:
        if kind == "parquet":
            return pq.read_table(path)
        if kind == "json":
            return pa.json.read_json(path, read_options=pa.json.ReadOptions(block_size=BLOCK))
        return _read_csv(path, encoding, text_columns)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        advice = ""
        if kind == "csv" and re.search("utf-?8", str(error), re.IGNORECASE):
            advice = f"; it is not {encoding}: say what it is, e.g. encoding: latin-1"
        elif kind == "json" and Path(path).suffix == ".json":
            advice = "; it must hold one JSON object per line"
        raise ValueError(f"{path} cannot be read: {error}{advice}") from error


def _read_csv(path: str | Path, encoding: str, text_columns: tuple[str, ...], threads: bool = True) -> pa.Table:
    delimiter = "\t" if ".tsv" in Path(path).suffixes else ","
    try:
        table = pa.csv.read_csv(
            path,
            # The row of an error is known to the single-threaded reader only.
            read_options=pa.csv.ReadOptions(encoding=encoding, use_threads=threads),
            parse_options=pa.csv.ParseOptions(delimiter=delimiter, newlines_in_values=True),
            convert_options=pa.csv.ConvertOptions(column_types={name: pa.string() for name in text_columns}),
        )
    except pa.ArrowInvalid:
        if not threads:
            raise
        return _read_csv(path, encoding, text_columns, threads=False)
    # Arrow calls text that is not UTF-8 binary.
    names = [field.name for field in table.schema if pa.types.is_binary(field.type)]
    return with_columns(table, {name: cast_column(table[name], pa.string(), str(path), name) for name in names})


def _format(path: str | Path) -> str | None:
    suffixes = [suffix.lower() for suffix in Path(path).suffixes]
    if suffixes and suffixes[-1] in (".gz", ".bz2", ".zst"):
        suffixes.pop()
    return _FORMATS.get(suffixes[-1]) if suffixes else None


def _ids(columns: Mapping | None) -> tuple[str, ...]:
    return tuple((columns or {}).get(name, name) for name in ("user_id", "item_id"))


def _concat(parts: list[pa.Table], where: str) -> pa.Table:
    names = parts[0].column_names
    for part in parts:
        if difference := sorted(set(names) ^ set(part.column_names)):
            raise ValueError(f"{where}: some files have the columns {', '.join(difference)} and some do not")
    try:
        return pa.concat_tables([part.select(names) for part in parts], promote_options="permissive")
    except pa.ArrowException as error:
        raise ValueError(f"{where}: the files' columns differ in type: {error}") from error

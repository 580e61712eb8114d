"""A data set on the Hugging Face Hub (or a local folder that `datasets.load_dataset` can read).

CSV, TSV and JSON lines are found and downloaded by `datasets`, and read as the user's own files are
(`llmrec.data.sources.text_files`): pandas would make one user of 001 and 1, and nothing of a title NA.
"""

import csv
import logging
import re
from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa

from llmrec.columns import plain_table
from llmrec.data.sources.tables import file_format, reading, with_own_numbers
from llmrec.data.sources.text_files import check_header, read_csv, read_json_lines
from llmrec.data.spelling import interactions_as_written, items_as_written
from llmrec.data.validate import INTERACTION_TYPES, items_without_text, standard_interactions, standard_items

logger = logging.getLogger(__name__)

# What can be said of a CSV or JSON data set, in the arguments or in its card, and is heeded.
_KNOWN = {"name", "version", "data_dir", "data_files", "description", "features"} | {
    "sep", "delimiter", "names", "column_names", "encoding", "quotechar", "quoting"
}  # fmt: skip

_OF_LOADING = ("split", "num_proc", "keep_in_memory", "save_infos", "verification_mode")


def load_hub(
    interactions: Mapping,
    items: Mapping | None = None,
    columns: Mapping | None = None,
    item_columns: Mapping | None = None,
    timestamp_unit: str = "s",
    streaming: bool = False,
    decimal: str | None = None,
    price_format: str | None = None,
    item_lists: Mapping | None = None,
) -> tuple[pa.Table, pa.Table]:
    """Loads interactions and items with `datasets.load_dataset`.

    Args:
        interactions: keyword arguments of `load_dataset`, e.g. `{"path": "org/name", "name": "reviews"}`;
            `split` is "train" unless given. Of a CSV also `sep`, `encoding`, `quotechar` and, without a header,
            `column_names`.
        items: the same for the items; without it items have no text, only the ids that occur.
        columns, item_columns: standard name → own name.
        timestamp_unit: of numeric timestamps: s, ms, us or ns.
        streaming: read without the data set's copy on disk, keeping the needed columns only.
        decimal, price_format, item_lists: as of `load_tables`.
    """
    columns, item_columns = columns or {}, item_columns or {}
    wanted = {columns.get(name, name) for name in INTERACTION_TYPES}
    raw, is_csv = _read(interactions, streaming, wanted)
    if is_csv:
        check_header(raw, _name(interactions), columns, ("user_id", "item_id"), ("user_id", "item_id"))
    raw = interactions_as_written(raw, _name(interactions), columns, decimal)
    table = standard_interactions(raw, _name(interactions), columns, timestamp_unit)
    if items is None:
        return table, items_without_text(table)
    raw, is_csv = _read(items, streaming)
    if is_csv:
        check_header(raw, _name(items), item_columns, ("item_id", "title"), ("item_id",))
    raw = items_as_written(raw, _name(items), item_columns, decimal, price_format, item_lists)
    catalogue = standard_items(raw, _name(items), item_columns)
    return table, with_own_numbers(catalogue, _name(items)) if is_csv else catalogue


def _read(arguments: Mapping, streaming: bool, wanted: set[str] | None = None) -> tuple[pa.Table, bool]:
    """`(table, whether it comes from CSV files)`."""
    import datasets

    if "path" not in arguments:
        raise ValueError(f"a Hub data set needs a path, e.g. {{path: org/name}}; got {dict(arguments)}")
    try:
        text = _read_text_files(arguments)
        if text is not None:
            return text
        data = datasets.load_dataset(**{"split": "train", **arguments}, streaming=streaming).with_format("arrow")
        batches = data.iter(batch_size=100_000) if streaming else [data[:]]
        kept = [b.select([n for n in b.column_names if wanted is None or n in wanted]) for b in batches]
        return plain_table(pa.concat_tables(kept, promote_options="permissive")), False
    except (datasets.exceptions.DatasetsError, OSError, ValueError, csv.Error, pa.ArrowException) as error:
        raise ValueError(f"{_name(arguments)} cannot be loaded: {error}") from error


def _read_text_files(arguments: Mapping) -> tuple[pa.Table, bool] | None:
    """`(table, whether they are CSV)` of a data set of CSV, TSV or JSON lines files; `None` for any other."""
    import datasets
    from datasets.packaged_modules.csv.csv import Csv
    from datasets.packaged_modules.json.json import Json

    split = str(arguments.get("split", "train"))
    builder = datasets.load_dataset_builder(**{key: arguments[key] for key in arguments if key not in _OF_LOADING})
    config = builder.config
    _name_what_is_left_out(arguments, config.data_files or {})
    if not isinstance(builder, (Csv, Json)) or not config.data_files:
        return None
    is_csv, files = isinstance(builder, Csv), config.data_files
    set_otherwise = [key for key, value in vars(config).items() if value != getattr(type(config)(), key)]
    if unknown := sorted(set(set_otherwise) - _KNOWN):
        if not is_csv:
            return None
        raise ValueError(f"CSV files are read with {', '.join(sorted(_KNOWN))}; there is no {', '.join(unknown)}")
    tables = {}
    for part in (part for part in files if re.search(rf"(?<![\w.]){re.escape(str(part))}(?![\w.])", split)):
        download = datasets.DownloadConfig(
            cache_dir=arguments.get("cache_dir"), token=builder.token, storage_options=builder.storage_options
        )
        local = datasets.DownloadManager(download_config=download).download_and_extract(list(files[part]))
        read = []
        for name, path in zip(files[part], local):

            def opened(path=path):
                return pa.input_stream(str(path), compression=None)

            if is_csv:
                stated = config.quoting or config.quotechar != '"'
                quote = (config.quotechar if config.quoting != csv.QUOTE_NONE else "") if stated else None
                names = config.column_names or config.names
                separator, encoding = config.delimiter or config.sep, config.encoding or "utf-8"
                with reading(name, encoding):
                    read.append(read_csv(opened, str(name), separator, encoding, quote, names))
                continue
            with opened() as file:
                if file.read(1 << 10).lstrip()[:1] == b"[":
                    return None
            with reading(name):
                read.append(read_json_lines(opened))
        tables[str(part)] = pa.concat_tables(read, promote_options="permissive")
    lengths = {str(part): len(tables.get(str(part), ())) for part in files}
    ranges = datasets.ReadInstruction.from_spec(split).to_absolute(lengths)
    kept = [tables[each.splitname].slice(each.from_, each.to - each.from_) for each in ranges]
    return pa.concat_tables(kept, promote_options="permissive"), is_csv


def _name_what_is_left_out(arguments: Mapping, files: Mapping) -> None:
    """`load_dataset` reads the format that most files of a folder have, and says nothing of the others."""
    if "data_files" in arguments or not Path(arguments["path"]).is_dir():
        return
    read = {Path(file) for part in files.values() for file in part}
    beside = {file for folder in {file.parent for file in read} for file in folder.glob("*")}
    others = sorted(str(file) for file in beside if file_format(file) not in {None, *map(file_format, read)})
    if others:
        logger.warning("%s: only files of one format are read (choose with data_files); left out: %s",
                       _name(arguments), ", ".join(others))  # fmt: skip


def _name(arguments: Mapping) -> str:
    return " ".join(str(arguments[key]) for key in ("path", "name", "split") if key in arguments)

"""The prepared data folder: what every later stage reads, and nothing else.

items.parquet   item_id: string, title: string, then any of description, brand, categories: string,
                price: double, image: string, and the user's own columns
train.parquet   one row per training sequence, in order of time:
                user_id: string, item_ids: list<string>, timestamps: list<int64> (seconds; null where unknown),
                num_context: int32 (the first `num_context` items are context only; every later one is a target)
valid.parquet   one row per target: user_id: string, history: list<string> (oldest first), target: string,
test.parquet    timestamp: int64 (of the target; null where unknown)
dataset.json    name, source, rules (k-core, ties, repeats, split), statistics, behaviours, content (the fingerprint of
                the four tables as they are read)

Where interactions have a kind (view, cart, buy), the three tables of interactions have a column behaviours:
list<string> besides, parallel to `item_ids` or to `history`, and valid and test have target_behaviour: string.
"""

from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa

from llmrec.files import (
    atomic_path,
    check_folder,
    fingerprint,
    is_fingerprint_of,
    read_json,
    read_parquet,
    write_json,
    write_parquet,
)
from llmrec.hub import is_hub_name, local_folder, without_revision

SEQUENCES = pa.schema(
    {
        "user_id": pa.string(),
        "item_ids": pa.list_(pa.string()),
        "timestamps": pa.list_(pa.int64()),
        "num_context": pa.int32(),
    }
)
TARGETS = pa.schema(
    {
        "user_id": pa.string(),
        "history": pa.list_(pa.string()),
        "target": pa.string(),
        "timestamp": pa.int64(),
    }
)


def schema_of(name: str, behaviours: bool) -> pa.Schema:
    """The columns of train, valid or test, with those of the kinds of interaction where data have them."""
    schema = SEQUENCES if name == "train" else TARGETS
    if behaviours:
        schema = schema.append(pa.field("behaviours", pa.list_(pa.string())))
        if name != "train":
            schema = schema.append(pa.field("target_behaviour", pa.string()))
    return schema


def catalogue_fingerprint(items: pa.Table) -> str:
    """Changes whenever a catalogue's ids or their order change; model folders record it."""
    return fingerprint(items.select(["item_id"]))


@dataclass
class PreparedData:
    """A catalogue and its interactions, split and ready (see the module docstring for the columns)."""

    items: pa.Table
    train: pa.Table
    valid: pa.Table
    test: pa.Table
    info: dict = field(default_factory=dict)

    @property
    def fingerprint(self) -> str:
        """Changes whenever a row of any of the four tables changes."""
        return fingerprint(*self.tables)

    @property
    def tables(self) -> tuple[pa.Table, ...]:
        return self.items, self.train, self.valid, self.test

    @property
    def behaviours(self) -> list[str]:
        """The kinds of interaction, the one to recommend last; none where interactions have no kind."""
        return list(self.info.get("behaviours", []))

    @property
    def datasets(self) -> list[str]:
        """What it is called on the Hub, or what it was prepared from there; none where it comes from elsewhere."""
        settings = self.info.get("settings", {})
        source = settings.get("source_args", {}).get("interactions") if settings.get("source") == "hub" else None
        named = self.info.get("hub") or (source or {}).get("path")
        return [without_revision(named)] if named and is_hub_name(named) else []

    @property
    def catalogue_fingerprint(self) -> str:
        return catalogue_fingerprint(self.items)

    def save(self, folder: str | Path) -> None:
        """Writes the folder whole or not at all; one that `check_replaceable` refuses is left as it is."""
        check_replaceable(folder)
        with atomic_path(folder) as temporary:
            temporary.mkdir()
            for name in ("items", "train", "valid", "test"):
                write_parquet(temporary / f"{name}.parquet", getattr(self, name))
            content = PreparedData(**_tables(temporary)).fingerprint  # of what will be read
            write_json(temporary / "dataset.json", {**self.info, "content": content})

    @classmethod
    def load(cls, folder: str | Path, revision: str | None = None, token: str | bool | None = None) -> "PreparedData":
        """Reads a folder written by `save`, or a data set of the Hub that recipes/push_to_hub.py made: `owner/name`,
        `owner/name@revision`. Raises `ValueError` naming the file and column that is wrong, and where the tables are
        no longer those that were saved."""
        named = folder if is_hub_name(folder) else None
        folder = local_folder(folder, revision, token, kind="dataset")
        if not (folder / "dataset.json").exists():
            raise ValueError(f"{folder} holds no prepared data (no dataset.json): run recipes/prepare_data.py first")
        data = cls(**_tables(folder), info=read_json(folder / "dataset.json"))
        content = data.info.get("content")
        if content is not None and not is_fingerprint_of(content, *data.tables):
            raise ValueError(
                f"{folder}: the tables are not those that dataset.json was written with: prepare the data again "
                "(overwrite: true), or write changed tables with PreparedData.save"
            )
        if named is not None:
            data.info["hub"] = str(named)
        return data


def _tables(folder: Path) -> dict[str, pa.Table]:
    """The four tables of a folder, in the columns and types of `schema_of`; errors as of `PreparedData.load`."""
    tables = {name: read_parquet(folder / f"{name}.parquet") for name in ("items", "train", "valid", "test")}
    for column in ("item_id", "title"):
        if column not in tables["items"].column_names:
            raise ValueError(f"{folder / 'items.parquet'} has no column {column!r}")
    typed = "behaviours" in tables["train"].column_names
    for name in ("train", "valid", "test"):
        columns, schema = [], schema_of(name, typed)
        for wanted in schema:
            if wanted.name not in tables[name].column_names:
                raise ValueError(f"{folder / name}.parquet has no column {wanted.name!r}")
            try:
                columns.append(tables[name][wanted.name].cast(wanted.type))
            except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
                raise ValueError(f"{folder / name}.parquet, column {wanted.name!r}: {error}") from error
        tables[name] = pa.Table.from_arrays(columns, schema=schema)
    return tables


def check_replaceable(folder: str | Path) -> None:
    """Raises `ValueError` where `PreparedData.save` would remove what it did not write: a file, or a folder that holds
    anything but prepared data."""
    names = {"dataset.json", *(f"{name}.parquet" for name in ("items", "train", "valid", "test"))}
    foreign = {file.name for file in Path(folder).iterdir()} - names if check_folder(Path(folder)).exists() else ()
    if foreign:
        raise ValueError(
            f"{folder} holds files that are no prepared data ({min(foreign)}): move them, or choose another folder"
        )

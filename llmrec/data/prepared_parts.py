"""Prepared data in parts of the users, as `prepare_parts` makes them: one after the other is checked, counted and
written, so that the tables of all users are never in memory."""

import contextlib
import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from llmrec.columns import plain_table
from llmrec.data.leaks import check_no_leak, joined_checks
from llmrec.data.prepared import PreparedData, check_replaceable
from llmrec.data.statistics import Counts
from llmrec.files import atomic_path, fingerprint, parquet_writer, read_parquet, write_json, write_parquet

logger = logging.getLogger(__name__)
TABLES = ("train", "valid", "test")


@dataclass
class PreparedParts:
    """A catalogue, and train, valid and test of some users at a time; to be read once.

    `info` is that of `PreparedData`, whose statistics and leak check are there once all parts were read. `counted` are
    further statistics.
    """

    items: pa.Table
    parts: Iterable[dict[str, pa.Table]]
    info: dict
    counted: dict = field(default_factory=dict)
    begun: bool = field(default=False, init=False)

    def __iter__(self) -> Iterator[PreparedData]:
        """Parts in which nothing leaks; raises `ValueError` where something does, where no part holds anything, or
        where they were read before, perhaps not to their end."""
        if self.begun:
            raise ValueError("these parts were read already, which can be done once: prepare them again")
        self.begun = True
        counts, checks = Counts(self.items), []
        for tables in self.parts:
            part = PreparedData(self.items, **tables, info=self.info)
            checks.append(check_no_leak(part))
            counts.add(part)
            yield part
        rows = {"train": counts.totals["train_sequences"], **counts.rows}
        if not any(rows.values()):
            raise ValueError("nothing is left: every interaction is a target without any history before it")
        self.info["statistics"] = counts.result() | self.counted
        self.info["leak_check"] = joined_checks(checks)
        for name in TABLES:
            if not rows[name]:
                logger.warning("%s has no rows under split %r", name, self.info["rules"]["split"])

    def whole(self) -> PreparedData:
        """All of it, in memory."""
        parts = list(self)
        tables = {name: pa.concat_tables([getattr(part, name) for part in parts]) for name in TABLES}
        return PreparedData(self.items, **tables, info=self.info)

    def save(self, folder: str | Path, **more) -> None:
        """Writes what `PreparedData.save` would write, a row group or several a part; `more` is recorded besides."""
        check_replaceable(folder)
        with atomic_path(folder) as temporary:
            temporary.mkdir()
            write_parquet(temporary / "items.parquet", self.items)
            writers: dict[str, pq.ParquetWriter] = {}
            with contextlib.ExitStack() as stack:
                for part in self:
                    for name in TABLES:
                        table = getattr(part, name)
                        if name not in writers:
                            writer = parquet_writer(temporary / f"{name}.parquet", table.schema)
                            writers[name] = stack.enter_context(writer)
                        writers[name].write_table(table)
            written = [_row_groups(temporary / f"{name}.parquet", writers[name].schema) for name in TABLES]
            content = fingerprint(read_parquet(temporary / "items.parquet"), *written)
            write_json(temporary / "dataset.json", {**self.info, **more, "content": content})


def _row_groups(path: Path, schema: pa.Schema) -> Iterator[pa.Table]:
    yield schema.empty_table()
    with pq.ParquetFile(path, page_checksum_verification=True) as file:
        for group in range(file.num_row_groups):
            yield plain_table(file.read_row_group(group)).cast(schema)

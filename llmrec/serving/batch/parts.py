"""The rows of a parquet file in parts, as histories that a recommender can read (`recommend_file`)."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from llmrec.catalogue.filters import Filter
from llmrec.catalogue.semids import SemIDIndex
from llmrec.files import write_parquet
from llmrec.instructions.render import item_of
from llmrec.recommenders.protocol import Recommender


class Part(NamedTuple):
    """Some rows of one row group: `first` of the file (from 0) and those after it; `place` counts in the group."""

    number: int
    first: int
    rows: int
    group: int
    place: int


@dataclass(frozen=True)
class Job:
    """What is asked for all rows; see `llmrec.serving.batch.recommend_file.recommend_file`."""

    input: str
    output: str
    k: int = 10
    filters: Filter | None = None
    batch_size: int = 512
    part_rows: int = 8192
    on_unknown: str = "error"
    titles: bool = False
    options: dict = field(default_factory=dict)

    def __post_init__(self):
        for name in ("k", "batch_size", "part_rows"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, it should be at least 1")
        if self.on_unknown not in ("error", "drop"):
            raise ValueError(f"on_unknown is {self.on_unknown!r}, it should be error or drop")

    @property
    def folder(self) -> Path:
        """Where the parts go."""
        return Path(f"{self.output}.parts")

    def path(self, part: Part) -> Path:
        return self.folder / f"{part.number:06}.parquet"

    def new_columns(self) -> list[pa.Field]:
        """What the output has besides the columns of the input."""
        fields = [pa.field("items", pa.list_(pa.string())), pa.field("scores", pa.list_(pa.float32()))]
        return [*fields, pa.field("titles", pa.list_(pa.string()))] if self.titles else fields


class Known(NamedTuple):
    """What histories may hold, and the fingerprint of the Semantic IDs if there are any."""

    items: frozenset[str]
    behaviours: Sequence[str] = ()
    semids: str = ""

    @classmethod
    def of(cls, source: Recommender | SemIDIndex) -> "Known":
        """Of an index, a recommender that has one, or a baseline."""
        index = source if isinstance(source, SemIDIndex) else getattr(source, "index", None)
        if index is None:
            return cls(frozenset(source.item_ids))
        removed = index.reserved  # these still have a Semantic ID, for histories
        return cls(frozenset([*index.items, *removed]), index.behaviours, index.fingerprint)


class PartReader:
    """Reads parts, one in memory at a time; quick where they are asked for in ascending order.

    Args:
        columns (*optional*): only these, where the input has them.

    Raises:
        ValueError: no readable parquet file, or columns that are missing, of another type, or in the output's way.
    """

    def __init__(self, job: Job, known: Known, columns: Sequence[str] | None = None):
        self.job, self.known = job, known
        try:
            self.file = pq.ParquetFile(job.input, buffer_size=2**20, pre_buffer=False)
        except FileNotFoundError as error:
            raise ValueError(f"{job.input} does not exist") from error
        except (pa.ArrowException, OSError) as error:
            raise ValueError(f"{job.input} is not a readable parquet file: {error}") from error
        self.schema = self.file.schema_arrow
        names = self.schema.names
        self.columns = None if columns is None else [name for name in columns if name in names]
        self.paired = bool(known.behaviours) and "behaviours" in names
        for name in ("history", "behaviours")[: 1 + self.paired]:
            if name not in names:
                raise ValueError(f"{job.input} has no column {name!r} (lists of item ids); it has {names}")
            kind = self.schema.field(name).type
            if not (_is_list(kind) and _is_string(kind.value_type)):
                raise ValueError(f"{job.input}: column {name!r} is {kind}, it should be list<string>")
        taken = next((one.name for one in job.new_columns() if one.name in names), None)
        if taken is not None:
            raise ValueError(f"{job.input} has a column {taken!r} already: rename it, the output has one of its own")
        self._group, self._place, self._batches = -1, 0, iter(())

    def parts(self) -> list[Part]:
        """All parts, in the order of the rows."""
        parts, first, size = [], 0, self.job.part_rows
        for group in range(self.file.num_row_groups):
            rows = self.file.metadata.row_group(group).num_rows
            for place, start in enumerate(range(0, rows, size)):
                parts.append(Part(len(parts), first + start, min(size, rows - start), group, place))
            first += rows
        return parts

    def read(self, part: Part) -> pa.Table:
        """The rows of a part."""
        try:
            if part.group != self._group or part.place < self._place:
                self._group, self._place = part.group, 0
                size = self.job.part_rows
                self._batches = self.file.iter_batches(size, row_groups=[part.group], columns=self.columns)
            batch = next(islice(self._batches, part.place - self._place, None))
        except (pa.ArrowException, OSError) as error:
            raise ValueError(f"{self.job.input} is damaged in row {part.first} or after it: {error}") from error
        self._place = part.place + 1
        return pa.Table.from_batches([batch])

    def histories(self, rows: pa.Table, part: Part) -> tuple[list[list], int]:
        """What a recommender reads of each row, and how many unknown items were dropped.

        Raises:
            ValueError: a null, an item or a behaviour that is not known, or lists of different lengths.
        """
        histories, dropped = [], 0
        kinds = rows["behaviours"].to_pylist() if self.paired else []
        for number, history in enumerate(rows["history"].to_pylist()):
            if history is None or None in history:
                raise self._error("history", part.first + number, "a null, where an empty list is allowed")
            unknown = [item for item in history if item not in self.known.items]
            if unknown and self.job.on_unknown == "error":
                advice = "on_unknown drop leaves such items out"
                raise self._error("history", part.first + number, f"{unknown[0]!r} is not in the catalogue; {advice}")
            if self.paired:
                history = self._pairs(history, kinds[number], part.first + number)
            if unknown:
                history = [entry for entry in history if item_of(entry) in self.known.items]
                dropped += len(unknown)
            histories.append(history)
        return histories, dropped

    def _pairs(self, history: list[str], kinds: list[str] | None, row: int) -> list[tuple[str, str]]:
        if kinds is None or len(kinds) != len(history):
            raise self._error("behaviours", row, f"{len(kinds or ())} of them for {len(history)} items of the history")
        strange = next((kind for kind in kinds if kind not in self.known.behaviours), self)
        if strange is not self:
            raise self._error("behaviours", row, f"{strange!r} is not one of {', '.join(self.known.behaviours)}")
        return list(zip(history, kinds))

    def _error(self, column: str, row: int, what: str) -> ValueError:
        return ValueError(f"{self.job.input}, column {column!r}, row {row} (counted from 0): {what}")


class PartWorker:
    """Reads a part, recommends for its rows and writes its file."""

    def __init__(self, recommender: Recommender, job: Job):
        self.recommender, self.job = recommender, job
        self.reader = PartReader(job, Known.of(recommender))

    def __call__(self, part: Part) -> int:
        """The number of rows that are done; a part whose file is there is left as it is."""
        job, path = self.job, self.job.path(part)
        if path.exists():
            return part.rows
        rows = self.reader.read(part)
        histories, _ = self.reader.histories(rows, part)
        lists = []
        for start in range(0, len(histories), job.batch_size):
            batch = histories[start : start + job.batch_size]
            lists += self.recommender.recommend(batch, job.k, job.filters, **job.options)
        parts_of = {"items": "item_id", "scores": "score", "titles": "title"}
        for one in job.new_columns():
            values = [[getattr(item, parts_of[one.name]) for item in items] for items in lists]
            rows = rows.append_column(one, pa.array(values, one.type))
        write_parquet(path, rows)
        return part.rows


def _is_list(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind)


def _is_string(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)

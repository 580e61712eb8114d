"""The parts of a parquet file (`recommend_file`): read as histories that a recommender knows, and given its lists,
here or by actors on a Ray cluster (`RayActors`)."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import compress
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import types

from llmrec.arguments import one_of
from llmrec.catalogue.filters import CatalogueFilter, Filter
from llmrec.devices import on_actors
from llmrec.models.folder import RecommenderConfig, load_index, semids_table
from llmrec.recommenders import LLMRecommender, load_recommender
from llmrec.recommenders.protocol import Recommender
from llmrec.serving.vllm.recommender import VLLMRecommender


def load(model: str | Path, backend: str = "hf", **engine) -> Recommender:
    """The recommender of a folder, on the GPU where there is one.

    Args:
        model: a model folder, or with `"hf"` a model of the Hub or the folder of a baseline.
        engine: of vLLM's `LLM` or of `LLMRecommender.from_pretrained`, such as `dtype` or `device`.
    """
    if one_of(backend, ("hf", "vllm"), "backend") == "vllm":
        return VLLMRecommender.from_pretrained(model, **engine)
    return LLMRecommender.from_pretrained(model, **engine) if engine else load_recommender(model)


@dataclass(frozen=True)
class Job:
    """What is asked for all rows; see `llmrec.serving.batch.recommend_file.recommend_file`."""

    input: str
    k: int
    filters: Filter | None
    batch_size: int
    part_rows: int
    on_unknown: str
    titles: bool
    options: dict

    def __post_init__(self):
        for name in ("k", "batch_size", "part_rows"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, it should be at least 1")
        one_of(self.on_unknown, ("error", "drop"), "on_unknown")

    def new_columns(self) -> list[pa.Field]:
        kinds = {"items": pa.string(), "scores": pa.float32()} | ({"titles": pa.string()} if self.titles else {})
        return [pa.field(name, pa.list_(kind)) for name, kind in kinds.items()]


class Part(NamedTuple):
    """Some rows of one row group, of which `first` is the number in the file (from 0)."""

    number: int
    first: int
    rows: pa.Table


class PartMaker:
    """Reads and checks parts, and adds a recommender's lists to them; only for these it needs more than its `index`.

    `semids` is the fingerprint of the Semantic IDs, if there are any.
    """

    def __init__(self, recommender: Recommender, job: Job):
        self.recommender, self.job = recommender, job
        index = getattr(recommender, "index", None)
        if index is None:
            self.items, self.behaviours, self.semids = frozenset(recommender.item_ids), (), ""
        else:  # removed items still have a Semantic ID, for histories
            self.items = frozenset([*index.items, *index.reserved])
            self.behaviours, self.semids = index.behaviours, index.fingerprint

    def open(self) -> pq.ParquetFile:
        """Raises `ValueError` where it is no parquet file, or columns are missing, of another type, or in the way."""
        path = self.job.input
        try:
            file = pq.ParquetFile(path, buffer_size=2**20, pre_buffer=False)
        except FileNotFoundError as error:
            raise ValueError(f"{path} does not exist") from error
        except (pa.ArrowException, OSError) as error:
            raise ValueError(f"{path} is not a readable parquet file: {error}") from error
        names, kinds = file.schema_arrow.names, file.schema_arrow.types
        for name in self._columns(names):
            if name not in names:
                raise ValueError(f"{path} has no column {name!r} (lists of item ids); it has {names}")
            if names.count(name) > 1:
                raise ValueError(f"{path} has {names.count(name)} columns {name!r}: leave one")
            if not _holds_texts(kind := kinds[names.index(name)]):
                raise ValueError(f"{path}: column {name!r} is {kind}, it should be list<string>")
        for name in (column.name for column in self.job.new_columns()):
            if name in names:
                raise ValueError(f"{path} has a column {name!r} already: rename it, the output has one of its own")
        return file

    def read(self, whole: bool = True) -> Iterator[Part]:
        """All parts in the order of the rows, one in memory at a time, `whole` or with what histories are made of."""
        file, number, first = self.open(), 0, 0
        columns = None if whole else self._columns(file.schema_arrow.names)
        try:
            for group in range(file.num_row_groups):
                for batch in file.iter_batches(self.job.part_rows, row_groups=[group], columns=columns):
                    yield Part(number, first, pa.Table.from_batches([batch]))
                    number, first = number + 1, first + len(batch)
        except (pa.ArrowException, OSError) as error:
            raise ValueError(f"{self.job.input} is damaged in row {first} or after it: {error}") from error

    def histories(self, part: Part) -> tuple[list[list], int]:
        """What a recommender reads of each row (raises `ValueError` naming it), and how many items were dropped."""
        columns = self._columns(part.rows.column_names)
        histories, dropped = [], 0
        for row, (history, *kinds) in enumerate(zip(*(part.rows[name].to_pylist() for name in columns)), part.first):
            if history is None or None in history:
                raise self._error("history", row, "a null, where an empty list is allowed")
            known = [item in self.items for item in history]
            if not all(known) and self.job.on_unknown == "error":
                unknown = history[known.index(False)]
                message = f"{unknown!r} is not in the catalogue; on_unknown drop leaves such items out"
                raise self._error("history", row, message)
            entries = self._pairs(history, kinds[0] or [], row) if kinds else history
            histories.append([*compress(entries, known)])
            dropped += known.count(False)
        return histories, dropped

    def make(self, part: Part) -> Part:
        job, (histories, _) = self.job, self.histories(part)
        lists = []
        for start in range(0, len(histories), job.batch_size):
            batch = histories[start : start + job.batch_size]
            lists += self.recommender.recommend(batch, job.k, job.filters, **job.options)
        values = {
            "items": [[item.item_id for item in items] for items in lists],
            "scores": [[item.score for item in items] for items in lists],
            "titles": [[item.title for item in items] for items in lists],
        }
        rows = part.rows
        for column in job.new_columns():
            rows = rows.append_column(column, pa.array(values[column.name], column.type))
        return part._replace(rows=rows)

    def _columns(self, names: list[str]) -> list[str]:
        return ["history", "behaviours"] if self.behaviours and "behaviours" in names else ["history"]

    def _pairs(self, history: list[str], kinds: list[str], row: int) -> list[tuple[str, str]]:
        if len(kinds) != len(history):
            raise self._error("behaviours", row, f"{len(kinds)} of them for {len(history)} items of the history")
        for kind in kinds:
            if kind not in self.behaviours:
                raise self._error("behaviours", row, f"{kind!r} is not one of {', '.join(self.behaviours)}")
        return list(zip(history, kinds))

    def _error(self, column: str, row: int, what: str) -> ValueError:
        return ValueError(f"{self.job.input}, column {column!r}, row {row} (counted from 0): {what}")


@dataclass
class RayActors:
    """Takes the place of a recommender in `recommend_file`, on the cluster that `ray.init` or `RAY_ADDRESS` names.

    The process that asks reads the parts and writes their files, so a run that goes on needs nothing else, and other
    nodes need to see the model folder alone, under the same path. Checked with ray 2.60.

    Example:
        >>> recommend_file(RayActors("out/industrial/model", actors=8), "users.parquet", "lists.parquet", k=10)

    Args:
        model: a model folder; raises `ValueError` for another one.
        actors: how many, each with a model of its own; the cluster must have room for all.
        gpus_per_actor: what Ray gives to each; 0 on CPUs.
    """

    model: str | Path
    backend: str = "vllm"
    engine: dict = field(default_factory=dict)
    actors: int = 1
    gpus_per_actor: float = 1

    def __post_init__(self):
        self.index = load_index(self.model, RecommenderConfig.load(self.model))
        self.filter = CatalogueFilter(semids_table(self.model))

    def make(self, job: Job, parts: Iterable[Part]) -> Iterator[Part]:
        """Parts with their lists, in any order; raises as `on_actors` does."""
        source = str(Path(self.model).resolve()), self.backend, self.engine

        def name(part: Part) -> str:
            return f"{job.input}, rows {part.first} to {part.first + len(part.rows) - 1} (counted from 0)"

        return on_actors(_Actor, (job, *source), parts, self.actors, self.gpus_per_actor, name)


class _Actor(PartMaker):
    def __init__(self, job: Job, model: str, backend: str, engine: dict):
        super().__init__(load(model, backend, **engine), job)


def _holds_texts(kind: pa.DataType) -> bool:
    if not (types.is_list(kind) or types.is_large_list(kind)):
        return False
    return types.is_string(kind.value_type) or types.is_large_string(kind.value_type)

"""Training rows that are rendered when they are read.

What is held is identities: a few numbers per row. Text and tokens come into being in the data loader, so an epoch of
any size costs no memory, its templates are fresh, and which rows a fraction of a task holds is drawn anew. Everything
follows from the seed, the epoch and the place of a row, so a resumed run reads what it would have read.
"""

import hashlib
import logging
from collections.abc import Callable, Sequence

import numpy as np
import pyarrow as pa
import torch
from datasets import Dataset

from llmrec.catalogue.filters import CatalogueFilter, Filter
from llmrec.data import PreparedData
from llmrec.data.rows import ids_to_rows
from llmrec.instructions.mixture import TaskMix
from llmrec.instructions.prompts import Prompt
from llmrec.instructions.render import Renderer
from llmrec.instructions.spans import Sequences

logger = logging.getLogger(__name__)
IGNORED = -100
PROBED = 200  # rows of a task that are rendered first, to estimate lengths and to find bad ones early
COLUMNS = ("place", "length")  # what lies in the data set; everything else is rendered
_ONE_MIXTURE = "give build_dataset one mixture with all tasks, or put rows together that `map` has rendered"

Weigh = Callable[[dict, list[int]], list[float]]


class MixturePart:
    def __init__(self, mix: TaskMix, data: PreparedData, whole: Sequences, max_history: int, seed: list[int]):
        self.mix, self.seed, self.items = mix, seed, None
        self.table, self.train = mix.rows(data, max_history, np.random.default_rng([*seed, 0]))
        self.in_order = self.train is data.train
        self.sequences = whole if self.in_order else Sequences(self.train)
        if mix.where is not None:
            allowed, _ = CatalogueFilter(data.items)(Filter(where=mix.where))
            self.table = self.table.filter(pa.array(allowed[self._answers(data.items)]))
        if mix.max_per_item is not None:
            self.items = self._answers(data.items)
        self.size = len(self.draw(0))

    def _answers(self, items: pa.Table) -> np.ndarray:
        """int [rows]: the catalogue row of the first item of each answer, or of the item that the row is about."""
        if "targets" not in self.table.column_names:
            first = self.sequences.targets(self.table)
            return ids_to_rows(first.dictionary, items["item_id"])[first.indices.to_numpy()]
        pairs = zip(self.table["targets"].to_pylist(), self.table["about"].to_pylist())
        first = [targets[0] if targets else about for targets, about in pairs]
        return ids_to_rows(pa.array(first, pa.string()), items["item_id"])

    def draw(self, epoch: int) -> np.ndarray:
        return self.mix.draw(self.table.num_rows, self.items, [*self.seed, 1, epoch])

    def rows(self, numbers: np.ndarray) -> list[dict]:
        table = self.table.take(pa.array(numbers, pa.int64()))
        rows = self.sequences.rows(table)
        if self.in_order and "middle" in table.column_names:
            for row, place in zip(rows, table["middle"].to_pylist()):
                row["first_target"] = place
        return rows


class RowReader:
    """The transform of a training set: places → rows, rendered and tokenised (`Dataset.with_transform`).

    Attributes:
        lengths (int32 [rows]): the estimated number of tokens of every row.
        columns: the names that every row has.
    """

    def __init__(
        self, parts: list[MixturePart], renderer: Renderer, max_length: int, seed: int, weigh: Weigh | None = None
    ):
        self.parts, self.renderer, self.max_length, self.seed, self.weigh = parts, renderer, max_length, seed, weigh
        # Shared, so that workers of the data loader that outlive an epoch see the next one, and their counts are seen.
        self._epoch = torch.zeros(1, dtype=torch.long).share_memory_()
        self._counts = torch.zeros(2, dtype=torch.long).share_memory_()
        self._drawn: tuple[int, list[np.ndarray]] | None = None
        self.starts = np.concatenate([[0], np.cumsum([part.size for part in parts], dtype=np.int64)])
        self.columns: dict[str, None] = {}
        self._longest: list[np.ndarray] = []  # of every part the places whose items have the longest texts
        lengths = [self._estimate(number) for number in range(len(parts))]
        self.lengths = np.concatenate([np.zeros(0, np.int32), *lengths])
        self._counts.zero_()

    def __deepcopy__(self, memo) -> "RowReader":
        return self  # copies of a data set (`with_format`, `map`) share it, as they share their tables

    def __eq__(self, other: object) -> bool:
        """`concatenate_datasets` asks, and would drop two readers that differ without a word."""
        if isinstance(other, RowReader) and other is not self:
            raise ValueError(f"two training sets cannot be put together as they are: {_ONE_MIXTURE}")
        return self is other

    __hash__ = object.__hash__

    @property
    def truncated(self) -> int:
        """Rows read so far that were cut to fit `max_length`; `read` is how many were read."""
        return int(self._counts[1])

    @property
    def read(self) -> int:
        return int(self._counts[0])

    def limit(self, max_length: int) -> None:
        """No row gets longer than this, either. Raises `ValueError` where one without a history would."""
        if max_length < self.max_length:
            self.max_length, counts = max_length, self._counts.clone()
            for places in self._longest:
                self.rows(places)
            self._counts.copy_(counts)

    def set_epoch(self, epoch: int) -> None:
        """Fresh templates and draws; the trainer calls it at the beginning of every epoch."""
        self._epoch[0] = epoch

    def __call__(self, batch: dict[str, list]) -> dict[str, list]:
        if "place" not in batch:  # `map` has removed our columns: the rows are its own
            return batch
        rows = self.rows(np.array(batch["place"], np.int64))
        columns = {name: [row.get(name) for row in rows] for name in self.columns}
        return columns | {name: values for name, values in batch.items() if name not in COLUMNS}  # of `map`

    def rows(self, places: np.ndarray) -> list[dict]:
        numbers = np.searchsorted(self.starts, places, side="right") - 1
        rows: list[dict] = [{}] * len(places)
        for number in np.unique(numbers):
            here = np.flatnonzero(numbers == number)
            for place, row in zip(here, self._identities(number, places[here] - self.starts[number])):
                rows[place] = row
        # All at once, whatever their tasks: the tokenizer is called once a batch.
        mixes = [self.parts[number].mix for number in numbers]
        read = _encode(rows, mixes, self.renderer, self.max_length, self.weigh)
        self._counts += torch.tensor([len(read), sum(row.pop("cut") for row in read)])
        return read

    def _identities(self, number: int, places: np.ndarray) -> list[dict]:
        epoch, part = int(self._epoch[0]), self.parts[number]
        if self._drawn is None or self._drawn[0] != epoch:
            self._drawn = epoch, [one.draw(epoch) for one in self.parts]
        rows = part.rows(self._drawn[1][number][places])
        for row, place in zip(rows, places):
            # A real hash: with a checksum the templates of one epoch would follow from those of the other.
            digest = hashlib.blake2b(f"{self.seed}/{number}/{epoch}/{place}".encode(), digest_size=4).digest()
            row["variation"] = int.from_bytes(digest) >> 1
        return rows

    def _estimate(self, number: int) -> np.ndarray:
        """int32: about how many tokens every row of a part has, from a few that are rendered: a + b x its items."""
        part, start = self.parts[number], self.starts[number]
        if not part.size:
            return np.zeros(0, np.int32)
        probe = np.unique(np.linspace(0, part.size - 1, min(part.size, PROBED)).astype(np.int64))
        rows = self.rows(start + probe)
        self.columns |= dict.fromkeys(rows[0])
        tokens, drawn = np.array([len(row["input_ids"]) for row in rows], float), self._drawn[1][number]
        if "about" in part.table.column_names:
            texts = self.renderer.catalogue.text_lengths
            size = np.array([texts.get(item, 0) for item in part.table["about"].to_pylist()])[drawn]
            self._longest.append(start + np.argsort(-size, kind="stable")[:20])
            self.rows(self._longest[-1])  # they may be too long
        if "start" not in part.table.column_names:
            return np.full(part.size, round(tokens.mean()), np.int32)
        items = (part.table["stop"].to_numpy() - part.table["start"].to_numpy())[drawn].astype(float)
        slope, base = np.polyfit(items[probe], tokens, 1) if np.ptp(items[probe]) else (0.0, tokens.mean())
        return np.maximum(np.rint(base + slope * items), 1).astype(np.int32)


def reader_of(rows: Dataset | None) -> RowReader | None:
    """What reads the rows of `build_dataset`, also after `select`, `shuffle` or `filter`; `None` for other rows.
    Raises `ValueError` where `datasets` has dropped it."""
    transform = rows.format["format_kwargs"].get("transform") if isinstance(rows, Dataset) else None
    if isinstance(transform, RowReader):
        return transform
    if isinstance(rows, Dataset) and "place" in rows.column_names and "input_ids" not in rows.column_names:
        raise ValueError(f"these rows have lost what renders them, as another format or other rows do: {_ONE_MIXTURE}")
    return None


def build_dataset(
    data: PreparedData,
    mixture: list[TaskMix],
    renderer: Renderer,
    max_history: int,
    max_length: int,
    seed: int = 0,
    weigh: Weigh | None = None,
) -> Dataset:
    """A mixture of tasks over the training split.

    Rows are dicts with `input_ids` and `labels` (lists of int; only answer tokens carry labels), `weights` (list of
    float beside the labels, with `weigh`), `task` (str), and the identities: `history`, `targets`, `first_target`
    (where that stands in the training sequences laid end to end), ...; `None` where a task has none. What lies in the
    data set is the place of each row and `length`, its estimated number of tokens (`with_format(None)["length"]`), so
    `select`, `shuffle`, `filter` and `map` cost what they render.

    Args:
        max_history: items of a history that a prompt shows, the newest ones.
        max_length: tokens of a row; a longer one loses the oldest items of its history, never a part of its
            instruction or answer; general conversations lose the end of the answer and, where that is not enough,
            the beginning. `reader_of(rows).truncated` counts them.
        weigh (*optional*): (row, ids of the answer) → a weight for each of its tokens.

    Raises:
        ValueError: a row that is too long without its history, or a mixture without rows.
    """
    whole = Sequences(data.train)  # laid out once for all entries that read it as it is
    parts = [MixturePart(mix, data, whole, max_history, [seed, number]) for number, mix in enumerate(mixture)]
    reader = RowReader(parts, renderer, max_length, seed, weigh)
    for part in parts:
        logger.info("task %s: %d rows an epoch of %d", part.mix.prompt.task, part.size, part.table.num_rows)
    if not len(reader.lengths):
        raise ValueError("the task mixture has no rows: check the weights and the training split")
    rows = Dataset.from_dict({"place": np.arange(len(reader.lengths)), "length": reader.lengths})
    return rows.with_transform(reader)


def encode_rows(rows: list[dict], prompt: Prompt, renderer: Renderer, max_length: int) -> Dataset:
    """Renders and tokenises rows of one task at once, with the first template (see `build_dataset`).

    Where an item tokenizer writes a history in several ways, each is written in a random one, as in training."""
    varied = renderer.catalogue.sequence_tokenizer is not None and prompt.format != "stream"
    way = {"variation": 0} if varied else {}
    read = _encode([way | row for row in rows], [TaskMix(prompt)] * len(rows), renderer, max_length, None, template=0)
    columns = {name: [row.get(name) for row in read] for name in (read[0] if read else ()) if name != "cut"}
    return Dataset.from_dict(columns)


def target_rows(targets: pa.Table, max_history: int) -> list[dict]:
    """Rows of valid or test (`history`, `target`) as rows of a next-item task, to measure the loss on them."""
    names = ("user_id", "history", "target", "behaviours", "target_behaviour")
    rows = targets.select([name for name in names if name in targets.column_names]).to_pylist()
    for row in rows:
        row |= {"history": row["history"][-max_history:], "targets": [row.pop("target")]}
        if "behaviours" in row:
            row |= {"behaviours": row["behaviours"][-max_history:], "target_behaviours": [row.pop("target_behaviour")]}
    return rows


def _encode(
    rows: list[dict],
    mixes: list[TaskMix],
    renderer: Renderer,
    max_length: int,
    weigh: Weigh | None,
    template: int | None = None,
) -> list[dict]:
    """Rows of tasks (one of `mixes` each) with their tokens, and `cut`: whether their history was."""

    def texts(row: dict, mix: TaskMix) -> tuple[str, str]:
        if mix.chat is not None:
            return renderer.chat(mix.chat.rows[row["conversation"]]["messages"])
        wording = row["variation"] % len(mix.prompt.templates) if template is None else template
        return renderer.render(mix.prompt, row, wording)

    def tokens_of(numbers: Sequence[int]) -> tuple[list[list[int]], list[list[int]]]:
        prompts, answers = map(list, zip(*(texts(rows[n], mixes[n]) for n in numbers)))
        return renderer.token_ids(prompts), renderer.answer_ids(answers)

    prompts, answers = tokens_of(range(len(rows))) if rows else ([], [])
    cut = [False] * len(rows)
    chats = [n for n in range(len(rows)) if mixes[n].chat is not None]
    for n in (n for n in chats if len(prompts[n]) + len(answers[n]) > max_length):
        # The answer keeps its beginning; a question that fills more than the half keeps its end.
        kept = min(len(prompts[n]), max(max_length - len(answers[n]), max_length // 2))
        begin = len(renderer.start)
        prompts[n], cut[n] = prompts[n][:begin] + prompts[n][len(prompts[n]) - kept + begin :], True
        answers[n] = answers[n][: max_length - kept]
    while over := [n for n in range(len(rows)) if len(prompts[n]) + len(answers[n]) > max_length]:
        for n in over:
            row, excess = rows[n], len(prompts[n]) + len(answers[n]) - max_length
            if not row.get("history"):
                about = f" about item {row['about']!r}" if row.get("about") else ""
                raise ValueError(
                    f"a row of task {mixes[n].prompt.task!r}{about} has {excess + max_length} tokens without a "
                    f"history, more than max_length {max_length}: raise max_length, or, where the model has no more "
                    "positions, shorten the texts of the item"
                )
            # At least one item, and about as many as are too many.
            per_item = max(1, len(prompts[n]) // len(row["history"]))
            kept = max(0, len(row["history"]) - max(1, excess // per_item))
            for name in {"history", "behaviours"} & set(row):
                row[name] = row[name][len(row[name]) - kept :]
            cut[n] = True
        for n, ids, answer in zip(over, *tokens_of(over)):
            prompts[n], answers[n] = ids, answer
    for row, mix, ids, answer, was_cut in zip(rows, mixes, prompts, answers, cut):
        row |= {
            "input_ids": ids + answer,
            "labels": [IGNORED] * len(ids) + answer,
            "length": len(ids) + len(answer),
            "task": mix.prompt.task,
            "cut": was_cut,
        }
        if weigh is not None:
            row["weights"] = [0.0] * len(ids) + list(weigh(row, answer))
    return rows

"""Training rows that are rendered when they are read.

What is held is identities: a few numbers per row. Text and tokens come into being in the data loader, so an epoch of
any size costs no memory, its templates are fresh, and which rows a fraction of a task holds is drawn anew. Everything
follows from the seed, the epoch and the place of a row, so a resumed run reads what it would have read.
"""

import hashlib
import logging
from collections.abc import Callable, Iterator

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
LONGEST = 20  # rows about the items with the longest texts, which are rendered first as well

Weigh = Callable[[dict, list[int]], list[float]]


class MixturePart:
    """One entry of the mixture with its rows."""

    def __init__(self, mix: TaskMix, data: PreparedData, whole: Sequences, max_history: int, seed: list[int]):
        self.mix, self.seed = mix, seed
        self.table, self.train, self.sequences, self.items = None, None, None, None
        self.count = len(mix.chat) if mix.chat is not None else 0
        if mix.chat is None:
            self.table, self.train = mix.rows(data, max_history, np.random.default_rng([*seed, 0]))
            self.sequences = whole if self.train is data.train else Sequences(self.train)
            if mix.where is not None:
                allowed, _ = CatalogueFilter(data.items)(Filter(where=mix.where))
                self.table = self.table.filter(pa.array(allowed[self._answers(data.items)]))
            if mix.max_per_item is not None:
                self.items = self._answers(data.items)
            self.count = self.table.num_rows
        self.size = len(self.draw(0))

    def _answers(self, items: pa.Table) -> np.ndarray:
        """int [rows]: the catalogue row of the first item of each answer, or of the item that the row is about."""
        if "targets" not in self.table.column_names:
            first = self.sequences.at(self.table["middle"].to_numpy())
            return ids_to_rows(first.dictionary, items["item_id"])[first.indices.to_numpy()]
        pairs = zip(self.table["targets"].to_pylist(), self.table["about"].to_pylist())
        first = [targets[0] if targets else about for targets, about in pairs]
        return ids_to_rows(pa.array(first, pa.string()), items["item_id"])

    def draw(self, epoch: int) -> np.ndarray:
        return self.mix.draw(self.count, self.items, [*self.seed, 1, epoch])

    def rows(self, numbers: list[int]) -> list[dict]:
        if self.mix.chat is not None:
            return [{"messages": self.mix.chat.messages(number)} for number in numbers]
        return self.sequences.rows(self.table.take(pa.array(numbers, pa.int64())))


class InstructionDataset(Dataset):
    """A `datasets.Dataset` of task rows, each rendered and tokenised when it is read.

    Rows are dicts with `input_ids` and `labels` (lists of int; only answer tokens carry labels), `weights` (list of
    float beside the labels, with `weigh`), `task` (str), and the identities: `history`, `targets`, .... The columns
    that lie in it are the place of each row and `length`, its estimated number of tokens.

    Args:
        parts: the entries of the mixture.
        renderer (`Renderer`), max_length (`int`), weigh (callable, *optional*): see `build_dataset`.
    """

    def __init__(
        self, parts: list[MixturePart], renderer: Renderer, max_length: int, seed: int, weigh: Weigh | None = None
    ):
        self.parts, self.renderer, self.max_length, self.seed, self.weigh = parts, renderer, max_length, seed, weigh
        # Shared, so that workers of the data loader that outlive an epoch see the next one, and their counts are seen.
        self._epoch = torch.zeros(1, dtype=torch.long).share_memory_()
        self._counts = torch.zeros(2, dtype=torch.long).share_memory_()
        self._drawn: tuple[int, list[np.ndarray]] | None = None
        sizes = [part.size for part in parts]
        self.starts = np.concatenate([[0], np.cumsum(sizes)])
        lengths = [self._estimate(number) for number in range(len(parts))]
        lengths = np.concatenate([np.zeros(0, np.int32), *lengths])
        super().__init__(Dataset.from_dict({"length": lengths}).data)
        self._counts.zero_()

    @property
    def truncated(self) -> int:
        """Rows read so far that were cut to fit `max_length`; `read` is how many were read."""
        return int(self._counts[1])

    @property
    def read(self) -> int:
        return int(self._counts[0])

    def set_epoch(self, epoch: int) -> None:
        """Fresh templates and draws; the trainer calls it at the beginning of every epoch."""
        self._epoch[0] = epoch

    def select(self, *args, **kwargs):
        """Refused, like the other methods that would give a data set of lengths alone."""
        raise ValueError("rows are rendered when they are read: take a list of them, or build another mixture")

    shuffle = map = filter = select

    def __getitem__(self, key):
        if isinstance(key, str):  # a list: the lazy column of datasets would render a row to look up its length
            return self.data[key].to_pylist() if key in self.column_names else [row.get(key) for row in self]
        if isinstance(key, slice):
            key = range(*key.indices(len(self)))
        if isinstance(key, (int, np.integer)):
            return self.__getitems__([int(key)])[0]
        rows = self.__getitems__(list(key))
        return {name: [row.get(name) for row in rows] for name in (rows[0] if rows else ())}

    def __iter__(self) -> Iterator[dict]:
        for start in range(0, len(self), 256):
            yield from self.__getitems__(range(start, min(start + 256, len(self))))

    def __getitems__(self, keys) -> list[dict]:
        keys = np.asarray(keys, np.int64)
        if len(keys) and not (-len(self) <= keys.min() and keys.max() < len(self)):
            raise IndexError(f"row {keys.max()} of {len(self)}")
        keys = keys % max(len(self), 1)
        numbers = np.searchsorted(self.starts, keys, side="right") - 1
        return self._read(numbers, keys - self.starts[numbers])

    def _read(self, numbers: np.ndarray, places: np.ndarray) -> list[dict]:
        """Rows of the parts `numbers`, by their places in this epoch of the part."""
        rows: list[dict] = [{}] * len(numbers)
        for number in np.unique(numbers):
            own = np.flatnonzero(numbers == number)
            for place, row in zip(own, self._identities(number, places[own])):
                rows[place] = row
        # All at once, whatever their tasks: the tokenizer is called once a batch.
        read = _encode(
            rows, [self.parts[number].mix for number in numbers], self.renderer, self.max_length, self.weigh
        )
        self._counts += torch.tensor([len(read), sum(row.pop("cut") for row in read)])
        return read

    def _identities(self, number: int, places: np.ndarray) -> list[dict]:
        """Rows of one part without their text, by their places in this epoch."""
        epoch, part = int(self._epoch[0]), self.parts[number]
        if self._drawn is None or self._drawn[0] != epoch:
            self._drawn = epoch, [one.draw(epoch) for one in self.parts]
        picked = self._drawn[1][number][places]
        rows = part.rows(picked.tolist())
        for row, place in zip(rows, places):
            # A real hash: with a checksum the templates of one epoch would follow from those of the other.
            digest = hashlib.blake2b(f"{self.seed}/{number}/{epoch}/{place}".encode(), digest_size=4).digest()
            row["variation"] = int.from_bytes(digest) >> 1
        return rows

    def _estimate(self, number: int) -> np.ndarray:
        """int32: about how many tokens every row has, from a few that are rendered: a + b x its items."""
        part = self.parts[number]
        if not part.size:
            return np.zeros(0, np.int32)
        probe = np.unique(np.linspace(0, part.size - 1, min(part.size, PROBED)).astype(np.int64))
        tokens = np.array([len(row["input_ids"]) for row in self._read(np.full(len(probe), number), probe)], float)
        picked = self._drawn[1][number]
        if part.table is not None and "about" in part.table.column_names:
            texts = self.renderer.catalogue.text_lengths
            size = np.array([texts.get(item, 0) for item in part.table["about"].to_pylist()])[picked]
            longest = np.argsort(-size, kind="stable")[:LONGEST]
            self._read(np.full(len(longest), number), longest)
        if part.table is None or "start" not in part.table.column_names:
            return np.full(part.size, round(tokens.mean()), np.int32)
        items = (part.table["stop"].to_numpy() - part.table["start"].to_numpy())[picked].astype(float)
        slope, base = np.polyfit(items[probe], tokens, 1) if np.ptp(items[probe]) else (0.0, tokens.mean())
        return np.maximum(np.rint(base + slope * items), 1).astype(np.int32)


def build_dataset(
    data: PreparedData,
    mixture: list[TaskMix],
    renderer: Renderer,
    max_history: int,
    max_length: int,
    seed: int = 0,
    weigh: Weigh | None = None,
) -> InstructionDataset:
    """A mixture of tasks over the training split.

    Args:
        max_history (`int`): items of a history that a prompt shows, the newest ones.
        max_length (`int`): tokens of a row; a longer one loses the oldest items of its history, never a part of its
            instruction or answer; general conversations lose the end of the answer and, where that is not enough,
            the beginning. `InstructionDataset.truncated` counts them.
        weigh (callable, *optional*): (row, ids of the answer) → a weight for each of its tokens.

    Raises:
        ValueError: a row that is too long without its history, or a mixture without rows.
    """
    whole = Sequences(data.train)  # laid out once for all entries that read it as it is
    parts = [MixturePart(mix, data, whole, max_history, [seed, number]) for number, mix in enumerate(mixture)]
    dataset = InstructionDataset(parts, renderer, max_length, seed, weigh)
    for part in parts:
        logger.info("task %s: %d rows an epoch of %d", part.mix.prompt.task, part.size, part.count)
    if not len(dataset):
        raise ValueError("the task mixture has no rows: check the weights and the training split")
    return dataset


def encode_rows(rows: list[dict], prompt: Prompt, renderer: Renderer, max_length: int) -> Dataset:
    """Renders and tokenises rows of one task at once, with the first template (see `InstructionDataset`)."""
    read = _encode([dict(row) for row in rows], [TaskMix(prompt)] * len(rows), renderer, max_length, None, template=0)
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
            return renderer.chat(row["messages"])
        wording = row["variation"] % len(mix.prompt.templates) if template is None else template
        return renderer.render(mix.prompt, row, wording)

    def texts_of(numbers: list[int]) -> tuple[list[list[int]], list[list[int]]]:
        pairs = [texts(rows[n], mixes[n]) for n in numbers]
        prompts, answers = zip(*pairs)
        ids = renderer.tokenizer([*prompts, *answers], add_special_tokens=False)["input_ids"]
        return ids[: len(pairs)], ids[len(pairs) :]

    prompts, answers = texts_of(list(range(len(rows)))) if rows else ([], [])
    cut = [False] * len(rows)
    chats = [n for n in range(len(rows)) if mixes[n].chat is not None]
    for n in (n for n in chats if len(prompts[n]) + len(answers[n]) > max_length):
        # The answer keeps its beginning; a question that fills more than the half keeps its end.
        kept = min(len(prompts[n]), max(max_length - len(answers[n]), max_length // 2))
        prompts[n], cut[n] = prompts[n][len(prompts[n]) - kept :], True
        answers[n] = answers[n][: max_length - kept]
    while over := [n for n in range(len(rows)) if len(prompts[n]) + len(answers[n]) > max_length]:
        for n in over:
            row, excess = rows[n], len(prompts[n]) + len(answers[n]) - max_length
            if not row.get("history"):
                about = f" about item {row['about']!r}" if row.get("about") else ""
                raise ValueError(
                    f"a row of task {mixes[n].prompt.task!r}{about} has {excess + max_length} tokens without a "
                    f"history, more than max_length {max_length}: raise max_length"
                )
            # At least one item, and about as many as are too many.
            per_item = max(1, len(prompts[n]) // len(row["history"]))
            kept = max(0, len(row["history"]) - max(1, excess // per_item))
            for name in {"history", "behaviours"} & set(row):
                row[name] = row[name][len(row[name]) - kept :]
            cut[n] = True
        for n, ids, answer in zip(over, *texts_of(over)):
            prompts[n], answers[n] = ids, answer
    read = []
    for row, mix, ids, answer, was_cut in zip(rows, mixes, prompts, answers, cut):
        row.pop("messages", None)
        row |= {
            "input_ids": ids + answer,
            "labels": [IGNORED] * len(ids) + answer,
            "length": len(ids) + len(answer),
            "task": mix.prompt.task,
            "cut": was_cut,
        }
        if weigh is not None:
            row["weights"] = [0.0] * len(ids) + list(weigh(row, answer))
        read.append(row)
    return read

"""Mixture of tasks → a `datasets.Dataset` of token ids and labels for TRL."""

import dataclasses
import datetime
import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset, concatenate_datasets

from llmrec.data import PreparedData
from llmrec.data.rows import flatten_lists
from llmrec.instructions.prompts import Prompt, load_prompt
from llmrec.instructions.render import Renderer
from llmrec.instructions.tasks import TASKS
from llmrec.item_tokenizers.streams import stream_names, stream_rows
from llmrec.semids import SemIDIndex

logger = logging.getLogger(__name__)
IGNORED = -100
# What the slots of a task may look at.
ROW = ("history", "targets", "behaviours", "target_behaviours", "variation")


@dataclass
class TaskMix:
    """One entry of the mixture.

    Args:
        prompt (`Prompt`): the task and its wordings.
        weight (`float`): how many of the task's rows an epoch holds; 1.0 is each once.
        since (`str`, *optional*): a date (`2016-01-31`); only training sequences that reach it take part, undated
            ones do not. A second entry with `since` makes what is recent count more.
    """

    prompt: Prompt
    weight: float = 1.0
    since: str | None = None

    @classmethod
    def parse(cls, entry: str | dict) -> "TaskMix":
        """From a YAML entry: `"stream"`, `"stream:0.5"` or `{prompt: my/file.yaml, weight: 2, since: 2016-01-31}`.

        `{prompt: stream, semids: collaborative}` writes the Semantic IDs of that stream (`Prompt.semids`).
        """
        if isinstance(entry, str):
            name, _, weight = entry.rpartition(":") if entry.rpartition(":")[0] else (entry, "", "1")
            entry = {"prompt": name, "weight": weight}
        unknown = sorted(set(entry) - {*cls.__dataclass_fields__, "semids"})
        if unknown or "prompt" not in entry:
            raise ValueError(f"task mixture entry {entry!r}: write prompt and, if you like, weight, since and semids")
        since = None if entry.get("since") is None else str(entry["since"])
        try:
            weight = float(entry.get("weight", 1.0))
            if not 0 <= weight < float("inf"):
                raise ValueError(f"weight {weight}")
            if since is not None:
                datetime.date.fromisoformat(since)
        except ValueError as error:
            raise ValueError(
                f"task mixture entry {entry!r}: weight should be a number, since a date YYYY-MM-DD"
            ) from error
        prompt = load_prompt(entry["prompt"])
        if prompt.task not in TASKS:
            raise ValueError(f"prompt {entry['prompt']!r}: task {prompt.task!r} is not one of {', '.join(TASKS)}")
        semids = prompt.semids if entry.get("semids") is None else str(entry["semids"])
        return cls(dataclasses.replace(prompt, semids=semids), weight, since)

    def rows(self, data: PreparedData, max_history: int) -> pa.Table:
        """The task's rows, each once."""
        if self.since is not None:
            data = dataclasses.replace(data, train=_since(data.train, self.since))
        return TASKS[self.prompt.task].rows(data, max_history)


def parse_mixture(
    entries: list[str | dict], prompt: Prompt, index: SemIDIndex, streams: Sequence[str] = ()
) -> list[TaskMix]:
    """A mixture that teaches what will be asked.

    Args:
        entries: see `TaskMix.parse`.
        prompt (`Prompt`): asks for the next item later, in the Semantic IDs of each of `streams` (if any).

    Raises:
        ValueError: a bad entry, a stream that the index does not have or that is asked for twice, or no entry that
            teaches the prompt.
    """
    if len(set(streams)) < len(streams):
        raise ValueError(f"the streams to fuse are {list(streams)}: name each of them once")
    mixture = [TaskMix.parse(entry) for entry in entries]
    primary = next(iter(stream_names(index)), "")
    taught = [dataclasses.replace(mix.prompt, semids=mix.prompt.semids or primary) for mix in mixture]
    for name in [*streams, *(mix.prompt.semids for mix in mixture)]:
        if name:
            stream_rows(index, name)
    for name in streams or [prompt.semids or primary]:
        if dataclasses.replace(prompt, semids=name) not in taught:
            where = f" with semids {name!r}" if name else ""
            raise ValueError(f"the prompt that asks for the next item{where} is none of the tasks {entries}")
    return mixture


def build_dataset(
    data: PreparedData,
    mixture: list[TaskMix],
    renderer: Renderer,
    max_history: int,
    max_length: int,
    seed: int = 0,
) -> Dataset:
    """Renders and tokenises a mixture of tasks over the training split.

    Returns:
        Rows with `input_ids` and `labels` (lists of int; only answer tokens carry labels), `length` (int), and the
        identities `task` (str), `history`, `targets` (lists of item ids), and, where interactions have kinds,
        `behaviours` and `target_behaviours` (lists of str). Equal arguments give equal rows. A `SequenceTokenizer`
        writes every row in a random one of its ways (`variation`, its seed): a task of weight 4 shows four.

    Raises:
        ValueError: a row longer than `max_length` (histories are cut by `max_history`, never by tokens, so that no
            instruction or answer is ever cut in two), or a mixture without rows.
    """
    rng = np.random.default_rng(seed)
    parts = []
    for mix in mixture:
        rows = mix.rows(data, max_history)
        rows = rows.take(pa.array(_draw(rows.num_rows, mix.weight, rng)))
        wording = rng.integers(len(mix.prompt.templates), size=rows.num_rows)
        if renderer.catalogue.sequence_tokenizer is not None:
            rows = rows.append_column("variation", pa.array(rng.integers(2**31, size=rows.num_rows), pa.int64()))
        parts.append(encode_rows(rows, mix.prompt, renderer, max_length, wording))
        logger.info("task %s: %d rows", mix.prompt.task, rows.num_rows)
    dataset = concatenate_datasets(parts)
    if not len(dataset):
        raise ValueError("the task mixture has no rows: check the weights and the training split")
    return dataset


def target_rows(targets: pa.Table, max_history: int) -> pa.Table:
    """Rows of valid or test (`history`, `target`) as rows of a next-item task, to measure the loss on them."""
    rows = [{"history": h[-max_history:], "targets": [t]} for h, t in zip(*_lists(targets, "history", "target"))]
    if "behaviours" in targets.column_names:
        for row, kinds, kind in zip(rows, *_lists(targets, "behaviours", "target_behaviour")):
            row |= {"behaviours": kinds[-max_history:], "target_behaviours": [kind]}
    return pa.Table.from_pylist(rows)


def _lists(table: pa.Table, *columns: str) -> list[list]:
    return [table[column].to_pylist() for column in columns]


def encode_rows(
    rows: pa.Table, prompt: Prompt, renderer: Renderer, max_length: int, wording: np.ndarray | None = None
) -> Dataset:
    """Renders and tokenises rows of one task (see `build_dataset`); `wording` int [n] picks templates (default: 0)."""
    wording = np.zeros(rows.num_rows, np.int32) if wording is None else wording
    dataset = Dataset(rows.append_column("wording", pa.array(wording, pa.int32()))).map(
        _encode,
        batched=True,
        fn_kwargs={"prompt": prompt, "renderer": renderer},
        remove_columns=["wording"],
        desc=f"Rendering {prompt.task}",
        load_from_cache_file=False,
    )
    if len(dataset) and max(dataset["length"]) > max_length:
        raise ValueError(
            f"a row of task {prompt.task!r} has {max(dataset['length'])} tokens, more than max_length {max_length}: "
            "lower max_history or raise max_length"
        )
    return dataset


def _since(train: pa.Table, date: str) -> pa.Table:
    """The sequences whose last timestamp is not before a date (UTC)."""
    first = datetime.datetime.fromisoformat(date).replace(tzinfo=datetime.UTC).timestamp()
    values, offsets = flatten_lists(train["timestamps"])
    filled = np.flatnonzero(np.diff(offsets))
    reached = pc.fill_null(pc.greater_equal(values.take(pa.array(offsets[1:][filled] - 1)), int(first)), False)
    return train.take(pa.array(filled)).filter(reached)


def _draw(count: int, weight: float, rng: np.random.Generator) -> np.ndarray:
    """Row numbers of an epoch: every row floor(weight) times, and a random share for the rest."""
    whole = np.tile(np.arange(count), int(weight))
    rest = rng.permutation(count)[: round((weight - int(weight)) * count)]
    return np.concatenate([whole, np.sort(rest)]).astype(np.int64)


def _encode(batch: dict, prompt: Prompt, renderer: Renderer) -> dict:
    names = [name for name in ROW if name in batch]
    rows = [dict(zip(names, values)) for values in zip(*(batch[name] for name in names))]
    prompts = [renderer.prompt(prompt, row, wording) for row, wording in zip(rows, batch["wording"])]
    answers = [renderer.completion(prompt, row, wording) for row, wording in zip(rows, batch["wording"])]
    tokenize = renderer.tokenizer
    prompt_ids = tokenize(prompts, add_special_tokens=False)["input_ids"]
    answer_ids = tokenize(answers, add_special_tokens=False)["input_ids"]
    return {
        "input_ids": [p + a for p, a in zip(prompt_ids, answer_ids)],
        "labels": [[IGNORED] * len(p) + a for p, a in zip(prompt_ids, answer_ids)],
        "length": [len(p) + len(a) for p, a in zip(prompt_ids, answer_ids)],
        "task": [prompt.task] * len(rows),
    }

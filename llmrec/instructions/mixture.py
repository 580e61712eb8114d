"""A mixture of tasks: which rows of which task an epoch holds."""

import dataclasses
import datetime
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset, load_dataset

from llmrec.catalogue.semids import SemIDIndex
from llmrec.catalogue.views import view_rows
from llmrec.data import PreparedData
from llmrec.data.rows import flatten_lists
from llmrec.files import fingerprint
from llmrec.instructions.prompts import Prompt, Template, load_prompt
from llmrec.instructions.tasks import TASKS, check_prompt, check_recommends
from llmrec.instructions.wishes import kinds_of

_CHOICES = ("weight", "cap", "max_per_item", "where", "wishes", "since", "semids")
CHAT = "chat"  # the task of general conversations
_CHAT = ("chat", "split", "weight", "cap")
_ROLES = ("system", "user", "assistant")


class ChatData:
    """General conversations beside the tasks, against forgetting: a data set of the Hub, or a local parquet, json or
    jsonl file, with a column `messages` (list of `{"role", "content"}`).

    A system message may begin one; then user and assistant take turns, and the assistant's last turn alone is learned.
    Another order (chat templates refuse it, or lose turns), or no such data set or column
    raises `ValueError`.
    """

    def __init__(self, path: str, split: str = "train"):
        self.path, self.split = path, split
        # Stands where a task's prompt stands; its texts come from the data, so a local file's content is part of it.
        content = fingerprint(Path(path).read_bytes()) if Path(path).is_file() else ""
        self.prompt = Prompt(CHAT, (Template(f"{path} {content}", split),))

    @cached_property
    def rows(self) -> Dataset:
        kind = {".parquet": "parquet", ".json": "json", ".jsonl": "json"}.get(Path(self.path).suffix)
        try:
            rows = load_dataset(kind or self.path, data_files=self.path if kind else None, split=self.split)
        except Exception as error:
            raise ValueError(f"chat data {self.path!r}, split {self.split!r}: {error}") from error
        if "messages" not in rows.column_names:
            raise ValueError(f"chat data {self.path!r} has no column 'messages', only {', '.join(rows.column_names)}")
        rows = rows.select_columns(["messages"])
        for number, row in enumerate(rows):
            if (wrong := _wrong(row["messages"])) is not None:
                raise ValueError(f"chat data {self.path!r}, row {number + 1}: {wrong}")
        return rows


def _wrong(messages) -> str | None:
    turns = messages if isinstance(messages, list) else [messages]
    if messages and not all(isinstance(turn, dict) and {"role", "content"} <= {*turn} for turn in turns):
        return f"messages should be a list of {{role, content}}, not {messages!r:.80}"
    if not messages or messages[-1]["role"] != "assistant":
        return "it should end with the assistant's turn"
    for message in messages:
        if message["role"] not in _ROLES:
            return f"role {message['role']!r} is not one of {', '.join(_ROLES)}"
        if not isinstance(message["content"], str):
            return f"a turn of the {message['role']} has no text: leave such conversations (tool calls, ...) out"
    roles = [message["role"] for message in messages]
    turns = roles[roles[0] == "system" :]
    if turns != ["user", "assistant"] * (len(turns) // 2):
        return f"user and assistant should take turns after any system message, not {', '.join(roles)}"
    return None


@dataclass
class TaskMix:
    """One entry of the mixture.

    Args:
        weight: how many of the task's rows an epoch holds; 1.0 is each once. Which rows a fraction holds is drawn anew
            for every epoch.
        cap: at most so many rows in an epoch.
        max_per_item: at most so many rows in an epoch whose answer begins with one item, so that popular items do not
            drown the others.
        where (`(column, operator, value)` each): only rows whose answer begins with an item for which all hold
            (`llmrec.Filter`), or, where the answer is in words, that are about one: the domains of joined data get
            weights of their own this way.
        wishes: of a task with wishes, only rows with one of these kinds, such as `other_brand`
            (`llmrec.instructions.wishes`): the kinds that are hard to learn get weights of their own.
        since: a date (`2016-01-31`); only training sequences that reach it take part, undated ones do not. A second
            entry with `since` makes what is recent count more.
    """

    prompt: Prompt
    weight: float = 1.0
    cap: int | None = None
    max_per_item: int | None = None
    where: Sequence[tuple] | None = None
    wishes: Sequence[str] | None = None
    since: str | None = None
    chat: ChatData | None = None

    @classmethod
    def parse(cls, entry: str | dict) -> "TaskMix":
        """From a YAML entry: `"stream"`, `"stream:0.5"` or `{prompt: my/file.yaml, weight: 2, since: 2016-01-31}`.

        `{prompt: stream, semids: collaborative}` writes the Semantic IDs of that view (`Prompt.semids`);
        `{chat: HuggingFaceH4/no_robots, split: train, cap: 5000}` mixes general conversations in.
        """
        if isinstance(entry, str):
            name, _, weight = entry.rpartition(":") if entry.rpartition(":")[0] else (entry, "", None)
            entry = {"prompt": name} | ({} if weight is None else {"weight": weight})
        known = _CHAT if "chat" in entry else ("prompt", *_CHOICES)
        if set(entry) - set(known) or not {"prompt", "chat"} & set(entry):
            raise ValueError(
                f"task mixture entry {entry!r}: write prompt and, if you like, {', '.join(_CHOICES)}; or chat and, if "
                f"you like, {', '.join(_CHAT[1:])}"
            )
        since = None if entry.get("since") is None else str(entry["since"])
        where = [tuple(condition) for condition in entry["where"]] if entry.get("where") else None
        whole = {name: None if entry.get(name) is None else int(entry[name]) for name in ("cap", "max_per_item")}
        try:
            if since is not None:
                datetime.date.fromisoformat(since)
            chat = ChatData(entry["chat"], entry.get("split", "train")) if "chat" in entry else None
            prompt = load_prompt(entry["prompt"]) if chat is None else chat.prompt
            weight = float(prompt.weight if entry.get("weight") is None else entry["weight"])
            if not 0 <= weight < float("inf") or any(n is not None and n < 1 for n in whole.values()):
                raise ValueError(f"weight {weight}, {whole}")
        except ValueError as error:
            raise ValueError(
                f"task mixture entry {entry!r}: {error}; weight should be a number, cap and max_per_item positive "
                "integers, since a date YYYY-MM-DD"
            ) from error
        if chat is None:
            check_prompt(prompt)
        semids = prompt.semids if entry.get("semids") is None else str(entry["semids"])
        if isinstance(entry.get("wishes"), str):
            raise ValueError(f"task mixture entry {entry!r}: wishes is a list, [{entry['wishes']}]")
        choices = {"where": where, "wishes": entry.get("wishes"), "since": since, "chat": chat}
        return cls(dataclasses.replace(prompt, semids=semids), weight, **whole, **choices)

    def rows(self, data: PreparedData, max_history: int, rng: np.random.Generator) -> tuple[pa.Table, pa.Table]:
        """The task's rows, each once, and the training sequences that they are spans of; of chats their numbers."""
        if self.chat is not None:
            return pa.table({"conversation": range(len(self.chat.rows))}), data.train
        train = data.train if self.since is None else _since(data.train, self.since)
        rows = TASKS[self.prompt.task].rows(dataclasses.replace(data, train=train), max_history, rng)
        if self.wishes is not None:
            if "wish" not in rows.column_names:
                raise ValueError(f"wishes {list(self.wishes)}: task {self.prompt.task!r} has none")
            kinds = [kinds_of(wish) in self.wishes for wish in rows["wish"].to_pylist()]
            rows = rows.filter(pa.array(kinds, pa.bool_()))
            if not rows.num_rows:
                raise ValueError(f"wishes {list(self.wishes)}: task {self.prompt.task!r} has no row with one of them")
        return rows, train

    def draw(self, count: int, items: np.ndarray | None, seed: Sequence[int]) -> np.ndarray:
        """int64: of `count` rows those of an epoch, in order; every one floor(weight) times and a random share for the
        rest. `items` (int [count]) has the item of each, for `max_per_item`."""
        rng = np.random.default_rng(seed)
        size = int(self.weight) * count + round((self.weight - int(self.weight)) * count)
        size = size if self.cap is None else min(size, self.cap)
        if self.max_per_item is not None and items is not None:
            order = rng.permutation(np.repeat(np.arange(count), int(np.ceil(self.weight))))
            kept = order[_number_in_group(items[order]) < self.max_per_item]
            return np.sort(kept[:size])
        whole = np.tile(np.arange(count), size // count if count else 0)
        return np.concatenate([whole, np.sort(rng.permutation(count)[: size - len(whole)])]).astype(np.int64)


def parse_mixture(
    entries: list[str | dict], prompt: Prompt, index: SemIDIndex, views: Sequence[str] = ()
) -> list[TaskMix]:
    """A mixture (`TaskMix.parse`) that teaches what `prompt` will ask, in the Semantic IDs of each of `views`. Raises
    `ValueError`: a bad entry, a prompt that the search cannot answer (`check_recommends`), a view that the index does
    not have or that is asked for twice, or no entry that teaches the prompt."""
    check_recommends(prompt)
    if len(set(views)) < len(views):
        raise ValueError(f"the views to fuse are {list(views)}: name each of them once")
    mixture = [TaskMix.parse(entry) for entry in entries]
    primary = next(iter(index.views), "")
    taught = [dataclasses.replace(mix.prompt, semids=mix.prompt.semids or primary) for mix in mixture]
    for name in [*views, *(mix.prompt.semids for mix in mixture)]:
        if name:
            view_rows(index, name)
    for name in views or [prompt.semids or primary]:
        if dataclasses.replace(prompt, semids=name) not in taught:
            where = f" with semids {name!r}" if name else ""
            raise ValueError(f"the prompt that asks for the next item{where} is none of the tasks {entries}")
    return mixture


def _number_in_group(groups: np.ndarray) -> np.ndarray:
    counts = np.unique(groups, return_counts=True)[1]
    number = np.empty(len(groups), np.int64)
    number[np.argsort(groups, kind="stable")] = np.arange(len(groups)) - np.repeat(counts.cumsum() - counts, counts)
    return number


def _since(train: pa.Table, date: str) -> pa.Table:
    """The sequences whose last timestamp is not before a date (UTC)."""
    first = datetime.datetime.fromisoformat(date).replace(tzinfo=datetime.UTC).timestamp()
    values, offsets = flatten_lists(train["timestamps"])
    filled = np.flatnonzero(np.diff(offsets))
    reached = pc.fill_null(pc.greater_equal(values.take(pa.array(offsets[1:][filled] - 1)), int(first)), False)
    return train.take(pa.array(filled)).filter(reached)

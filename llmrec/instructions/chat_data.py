"""General conversations beside the tasks, against forgetting: any chat data set of the Hub or a local file."""

from functools import cached_property
from pathlib import Path

from datasets import Dataset, load_dataset

from llmrec.files import fingerprint
from llmrec.instructions.prompts import Prompt, Template

ROLES = ("system", "user", "assistant")
KINDS = {".parquet": "parquet", ".json": "json", ".jsonl": "json"}


class ChatData:
    """Conversations that end with the assistant's turn, which alone is learned.

    Args:
        path (`str`): a data set of the Hub, or a local parquet, json or jsonl file, with a column `messages` (list of
            `{"role", "content"}`).
        split (`str`): of the data set.

    Raises:
        ValueError: no such data set or column, or a conversation that does not end with the assistant's turn.
    """

    def __init__(self, path: str, split: str = "train"):
        self.path, self.split = path, split
        # Stands where a task's prompt stands; its texts come from the data, so a local file's content is part of it.
        content = fingerprint(Path(path).read_bytes()) if Path(path).is_file() else ""
        self.prompt = Prompt("chat", (Template(f"{path} {content}", split),))

    @cached_property
    def rows(self) -> Dataset:
        kind = KINDS.get(Path(self.path).suffix)
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

    def messages(self, number: int) -> list[dict[str, str]]:
        return self.rows[number]["messages"]


def _wrong(messages: list[dict] | None) -> str | None:
    """What keeps a conversation from being learned."""
    if not messages or messages[-1]["role"] != "assistant":
        return "it should end with the assistant's turn"
    for message in messages:
        if message["role"] not in ROLES:
            return f"role {message['role']!r} is not one of {', '.join(ROLES)}"
        if not isinstance(message["content"], str):
            return f"a turn of the {message['role']} has no text: leave such conversations (tool calls, ...) out"
    return None

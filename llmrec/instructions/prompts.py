"""Prompt templates: one YAML file per task in `prompts/`, data and not code."""

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from string import Formatter

import yaml

from llmrec.arguments import did_you_mean, one_of
from llmrec.shipped import find, folder


@lru_cache(maxsize=4096)
def pieces_of(wording: str) -> tuple[tuple[str, str | None], ...]:
    """`(text, name of the slot after it or None)` of a wording in turn; `{{` is a brace. `ValueError`: a slot that is
    no plain name."""
    pieces = []
    for text, name, form, conversion in Formatter().parse(wording):
        if name is not None and (not name.isidentifier() or form or conversion):
            raise ValueError(f"{wording!r}: a slot is a name in braces, such as {{history}}; write {{{{ for a brace")
        pieces.append((text, name))
    return tuple(pieces)


def slots_of(wording: str) -> list[str]:
    return [name for _, name in pieces_of(wording) if name is not None]


def fill(wording: str, slots: dict[str, str]) -> str:
    """A wording with its slots filled."""
    return "".join(text + (slots[name] if name is not None else "") for text, name in pieces_of(wording))


@dataclass(frozen=True)
class Template:
    """One wording of a task; `{slots}` are filled from a row.

    `prompt` is the user's message, or the turns of a conversation: user, assistant, ..., the last one the user's.
    """

    prompt: str | tuple[str, ...]
    completion: str

    def __post_init__(self):
        if isinstance(self.prompt, list):
            object.__setattr__(self, "prompt", tuple(self.prompt))
        if not self.turns or not all(isinstance(turn, str) for turn in (*self.turns, self.completion)):
            raise ValueError("prompt should be a text or a list of texts, completion a text")
        if len(self.turns) % 2 == 0:
            raise ValueError(f"a conversation of {len(self.turns)} turns does not end with the user's")

    @property
    def turns(self) -> tuple[str, ...]:
        return (self.prompt,) if isinstance(self.prompt, str) else self.prompt


@dataclass(frozen=True)
class Prompt:
    """A task's wordings.

    Args:
        task: the task function that fills the slots (`llmrec.instructions.tasks.TASKS`).
        templates: the first one is used for evaluation and serving.
        unseen: wordings that no training row uses, to measure robustness.
        format: `"chat"`: the history stands in the user's message, one answer per row. `"stream"`: the history is the
            beginning of the assistant's own turn, so that every item of it can be a target.
        thinking: the answer begins with a `<think>` block; chat templates that know the switch leave it on.
        separator: between the Semantic IDs of a history.
        semids: the view whose Semantic IDs are written, where there are several (`llmrec.catalogue.views`); empty for
            the primary ones.
        weight: how many of the task's rows an epoch holds, where a mixture does not say.
        where: the file that it was read from, for messages; no part of what the prompt is.
    """

    task: str
    templates: tuple[Template, ...]
    unseen: tuple[Template, ...] = ()
    system: str = ""
    format: str = "chat"
    thinking: bool = False
    separator: str = ""
    semids: str = ""
    weight: float = 1.0
    where: str = field(default="", compare=False, repr=False)

    def __post_init__(self):
        for name in ("task", "system", "format", "separator", "semids"):
            if not isinstance(getattr(self, name), str):
                raise ValueError(f"{name} should be a text, not {getattr(self, name)!r}: put it in quotes")
        if not isinstance(self.thinking, bool):
            raise ValueError(f"thinking should be true or false, not {self.thinking!r}")
        if isinstance(self.weight, bool) or not isinstance(self.weight, (int, float)):
            raise ValueError(f"weight should be a number, not {self.weight!r}")
        one_of(self.format, ("chat", "stream"), f"prompt of task {self.task!r}: format")
        if not self.templates:
            raise ValueError(f"prompt of task {self.task!r} has no templates")
        if self.format == "stream" and any(len(t.turns) > 1 for t in (*self.templates, *self.unseen)):
            raise ValueError(f"prompt of task {self.task!r}: format stream has no conversations")

    def to_dict(self) -> dict:
        """Without what is at its default, so that a model folder does not depend on fields that it does not use."""
        fields = json.loads(json.dumps(asdict(self)))  # lists, as YAML and JSON have them, and no tuples
        left_out = ("where", self.where), ("weight", 1.0)
        return {name: value for name, value in fields.items() if value and (name, value) not in left_out}

    @classmethod
    def from_dict(cls, fields: dict, where: str = "") -> "Prompt":
        """Raises `ValueError` naming the field that is unknown, missing or of another type."""
        known = [name for name in cls.__dataclass_fields__ if name != "where"]
        unknown = sorted(set(fields) - set(known))
        missing = sorted({"task", "templates"} - set(fields))
        if unknown or missing:
            near = did_you_mean(unknown[0], known) if unknown else ""
            raise ValueError(f"{where or 'prompt'}: unknown fields {unknown}, missing fields {missing}{near}")
        try:
            wordings = {
                name: tuple(Template(**each) for each in fields.get(name) or ()) for name in ("templates", "unseen")
            }
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"{where or 'prompt'}: every template needs exactly prompt and completion ({error})"
            ) from error
        try:
            return cls(**{**fields, **wordings}, where=where)
        except ValueError as error:
            raise ValueError(f"{where or 'prompt'}: {error}") from error


def prompts_folder() -> Path:
    """Templates and phrases: the folder that the variable LLMREC_PROMPTS names, a copy in another language for
    instance, or those shipped (`llmrec.shipped`)."""
    if own := os.environ.get("LLMREC_PROMPTS"):
        for file in ("phrases/wishes.yaml", "phrases/composed.yaml"):
            if not (Path(own) / file).is_file():
                raise ValueError(f"LLMREC_PROMPTS: {own} is no copy of the folder prompts: it has no {file}")
        return Path(own)
    return folder("prompts")


@lru_cache
def composed() -> dict[str, str]:
    """The phrases of `prompts/phrases/composed.yaml`, by name."""
    return yaml.safe_load((prompts_folder() / "phrases" / "composed.yaml").read_text(encoding="utf-8"))


def phrase(name: str, **values: str) -> str:
    """One of them, filled."""
    return fill(composed()[name], values)


def listing(words: Sequence[str]) -> str:
    """`a, b and c`."""
    return phrase("and").join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def load_prompt(name: "str | Path | Prompt") -> Prompt:
    """Reads a shipped template by its name (`"next_item"`) or any YAML file by its path; a `Prompt` is returned as it
    is. Raises `ValueError`: no such file, no valid YAML, unknown or missing fields."""
    if isinstance(name, Prompt):
        return name
    path = find(name) if str(name).endswith((".yaml", ".yml")) else prompts_folder() / f"{name}.yaml"
    if not path.exists():
        shipped = sorted(p.stem for p in prompts_folder().glob("*.yaml"))
        near = did_you_mean(str(name), shipped)
        raise ValueError(
            f"no prompt template {str(name)!r}: give a path to a YAML file or one of {', '.join(shipped)}{near}"
        )
    try:
        fields = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(fields, dict):
        raise ValueError(f"{path} should hold a mapping with task and templates")
    return Prompt.from_dict(fields, where=str(path))

"""Prompt templates: one YAML file per task in `prompts/`, data and not code."""

from dataclasses import asdict, dataclass
from pathlib import Path

import yaml

FORMATS = ("chat", "stream")


@dataclass(frozen=True)
class Template:
    """One wording of a task; `{slots}` are filled from a row.

    Args:
        prompt (`str` or `tuple` of `str`): the user's message, or the turns of a conversation: user, assistant, user,
            ..., the last one the user's.
        completion (`str`): the answer.
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
        task (`str`): the task function that fills the slots (`llmrec.instructions.tasks.TASKS`).
        templates (`tuple` of `Template`): the first one is used for evaluation and serving.
        unseen (`tuple` of `Template`): wordings that no training row uses, to measure robustness.
        system (`str`): the system message; empty for none.
        format (`str`): `"chat"`: the history stands in the user's message, one answer per row. `"stream"`: the
            history is the beginning of the assistant's own turn, so that every item of it can be a target.
        thinking (`bool`): the answer begins with a `<think>` block; chat templates that know the switch leave it on.
        separator (`str`): between the Semantic IDs of a history.
        semids (`str`): the view whose Semantic IDs are written, where there are several
            (`llmrec.catalogue.views`); empty for the primary ones.
        weight (`float`): how many of the task's rows an epoch holds, where a mixture does not say.
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

    def __post_init__(self):
        if self.format not in FORMATS:
            raise ValueError(f"prompt of task {self.task!r}: format {self.format!r} is not one of {FORMATS}")
        if not self.templates:
            raise ValueError(f"prompt of task {self.task!r} has no templates")
        if self.format == "stream" and any(len(t.turns) > 1 for t in (*self.templates, *self.unseen)):
            raise ValueError(f"prompt of task {self.task!r}: format stream has no conversations")

    def to_dict(self) -> dict:
        """Without what is at its default, so that a model folder does not depend on fields that it does not use."""
        fields = {name: value for name, value in asdict(self).items() if name in ("task", "templates") or value}
        if self.weight == 1.0:
            del fields["weight"]
        for name in {"templates", "unseen"} & set(fields):
            fields[name] = [{**t, "prompt": t["prompt"] if isinstance(t["prompt"], str) else list(t["prompt"])}
                            for t in fields[name]]  # fmt: skip
        return fields

    @classmethod
    def from_dict(cls, fields: dict, where: str = "prompt") -> "Prompt":
        """Raises `ValueError` naming the unknown or missing field."""
        unknown = sorted(set(fields) - set(cls.__dataclass_fields__))
        missing = sorted({"task", "templates"} - set(fields))
        if unknown or missing:
            raise ValueError(f"{where}: unknown fields {unknown}, missing fields {missing}")
        lists = {}
        for name in ("templates", "unseen"):
            try:
                lists[name] = tuple(Template(**template) for template in fields.get(name) or ())
            except (TypeError, ValueError) as error:
                raise ValueError(f"{where}: every template needs exactly prompt and completion ({error})") from error
        return cls(**{**fields, **lists})


def prompts_folder() -> Path:
    """The shipped templates: inside an installed package, or `prompts/` at the top of a checkout."""
    installed = Path(__file__).parents[1] / "prompts"
    return installed if installed.is_dir() else Path(__file__).parents[2] / "prompts"


def load_prompt(name: str | Path) -> Prompt:
    """Reads a shipped template by its name (`"next_item"`) or any YAML file by its path.

    Raises:
        ValueError: no such file, no valid YAML, unknown or missing fields.
    """
    path = Path(name) if str(name).endswith((".yaml", ".yml")) else prompts_folder() / f"{name}.yaml"
    if not path.exists():
        shipped = ", ".join(sorted(p.stem for p in prompts_folder().glob("*.yaml")))
        raise ValueError(f"no prompt template {str(name)!r}: give a path to a YAML file or one of {shipped}")
    try:
        fields = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(fields, dict):
        raise ValueError(f"{path} should hold a mapping with task and templates")
    return Prompt.from_dict(fields, where=str(path))

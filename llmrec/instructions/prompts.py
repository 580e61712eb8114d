"""Prompt templates: one YAML file per task in `prompts/`, data and not code."""

from dataclasses import asdict, dataclass
from pathlib import Path

import yaml

FORMATS = ("chat", "stream")


@dataclass(frozen=True)
class Template:
    """One wording of a task; `{slots}` are filled from a row."""

    prompt: str
    completion: str


@dataclass(frozen=True)
class Prompt:
    """A task's wordings.

    Args:
        task (`str`): the task function that fills the slots (`llmrec.instructions.tasks.TASKS`).
        templates (`tuple` of `Template`): the first one is used for evaluation and serving.
        system (`str`): the system message; empty for none.
        format (`str`): `"chat"`: the history stands in the user's message, one answer per row. `"stream"`: the
            history is the beginning of the assistant's own turn, so that every item of it can be a target.
        separator (`str`): between the Semantic IDs of a history.
        semids (`str`): the stream whose Semantic IDs are written, where there are several
            (`llmrec.item_tokenizers.streams`); empty for the primary ones.
    """

    task: str
    templates: tuple[Template, ...]
    system: str = ""
    format: str = "chat"
    separator: str = ""
    semids: str = ""

    def __post_init__(self):
        if self.format not in FORMATS:
            raise ValueError(f"prompt of task {self.task!r}: format {self.format!r} is not one of {FORMATS}")
        if not self.templates:
            raise ValueError(f"prompt of task {self.task!r} has no templates")

    def to_dict(self) -> dict:
        return asdict(self) | {"templates": [asdict(template) for template in self.templates]}

    @classmethod
    def from_dict(cls, fields: dict, where: str = "prompt") -> "Prompt":
        """Raises `ValueError` naming the unknown or missing field."""
        unknown = sorted(set(fields) - set(cls.__dataclass_fields__))
        missing = sorted({"task", "templates"} - set(fields))
        if unknown or missing:
            raise ValueError(f"{where}: unknown fields {unknown}, missing fields {missing}")
        try:
            templates = tuple(Template(**template) for template in fields["templates"])
        except TypeError as error:
            raise ValueError(f"{where}: every template needs exactly prompt and completion ({error})") from error
        return cls(**{**fields, "templates": templates})


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

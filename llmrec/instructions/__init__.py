"""Instructions: tasks (functions) × templates (`prompts/*.yaml`) → rows for TRL."""

from llmrec.instructions.build import TaskMix, build_dataset, encode_rows, parse_mixture, target_rows
from llmrec.instructions.prompts import Prompt, Template, load_prompt
from llmrec.instructions.render import Renderer
from llmrec.instructions.tasks import TASKS, Catalogue, Task

__all__ = [
    "TASKS",
    "Catalogue",
    "Prompt",
    "Renderer",
    "Task",
    "TaskMix",
    "Template",
    "build_dataset",
    "encode_rows",
    "load_prompt",
    "parse_mixture",
    "target_rows",
]

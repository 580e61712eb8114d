"""Instructions: tasks (functions) × templates (`prompts/*.yaml`) → rows for TRL."""

from llmrec.instructions.catalogue import Catalogue
from llmrec.instructions.dataset import build_dataset, encode_rows, reader_of, target_rows
from llmrec.instructions.mixture import TaskMix, parse_mixture
from llmrec.instructions.prompts import Prompt, Template, load_prompt
from llmrec.instructions.render import Renderer
from llmrec.instructions.tasks import TASKS, Task, in_words, task_rows
from llmrec.instructions.texts import Texts

__all__ = [
    "TASKS",
    "Catalogue",
    "Prompt",
    "Renderer",
    "Task",
    "TaskMix",
    "Template",
    "Texts",
    "build_dataset",
    "encode_rows",
    "in_words",
    "load_prompt",
    "parse_mixture",
    "reader_of",
    "target_rows",
    "task_rows",
]

"""Instructions: tasks (functions) × templates (`prompts/*.yaml`) → rows for TRL."""

from llmrec.instructions.catalogue import Catalogue
from llmrec.instructions.dataset import build_dataset, encode_rows, reader_of, target_rows
from llmrec.instructions.mixture import TaskMix, parse_mixture
from llmrec.instructions.prompts import Prompt, Template, load_prompt
from llmrec.instructions.render import Renderer
from llmrec.instructions.spans import target_spans
from llmrec.instructions.tasks import TASKS, Task, in_words, task_rows
from llmrec.instructions.tasks.items import item_rows
from llmrec.instructions.tasks.task import same_item, same_words
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
    "item_rows",
    "load_prompt",
    "parse_mixture",
    "reader_of",
    "same_item",
    "same_words",
    "target_rows",
    "target_spans",
    "task_rows",
]

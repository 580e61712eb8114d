"""Writes docs/reference/tasks.md: every task with its wordings counted and one sample, rendered on a generated store.

    python scripts/write_tasks.py [--output docs/reference/tasks.md]

The same bytes every time; a test asserts that the page is what this command writes now.
"""

import argparse
from pathlib import Path

import numpy as np
import pyarrow as pa

from llmrec.catalogue.semids import SemIDIndex
from llmrec.data import PreparedData, prepare
from llmrec.data.synthetic import generate_store
from llmrec.files import atomic_path
from llmrec.instructions import TASKS, Catalogue, Renderer, load_prompt, task_rows
from llmrec.instructions.item_words import category_path, leaf_category
from llmrec.instructions.prompts import prompts_folder
from llmrec.models.from_scratch import train_tokenizer

PAGE = Path(__file__).parents[1] / "docs" / "reference" / "tasks.md"
ITEMS, USERS, MAX_HISTORY = 300, 60, 4
KINDS = ["view", "cart", "buy"]
INTRO = """\
# All tasks, with samples

Written by `python scripts/write_tasks.py`; edit that script, the tasks or their prompts, not this page.

What tasks are, and how they are mixed: [tasks.md](../tasks.md). The samples come from the generated store
(`llmrec/data/synthetic.py`), shown with the chat template of a model made from scratch; a pretrained model brings its
own. Below every task stand its slots: a question may show the first, only an answer the others.

"""


def store(behaviours: bool = False) -> PreparedData:
    """The generated store with a column `domain`, the department."""
    interactions, items = generate_store(0, ITEMS, USERS, behaviours)
    domains = [category_path(categories)[0].lower() for categories in items["categories"].to_pylist()]
    items = items.append_column("domain", pa.array(domains))
    return prepare(interactions, items, behaviours=KINDS if behaviours else None, keep_all_items=True, name="store")


def plain_index(data: PreparedData) -> SemIDIndex:
    """Semantic IDs without training: the category's number, then the item's in it."""
    categories = [leaf_category(text) for text in data.items["categories"].to_pylist()]
    first = sorted(set(categories))
    seen: dict[str, int] = dict.fromkeys(first, -1)
    codes = []
    for category in categories:
        seen[category] += 1
        codes.append((first.index(category), seen[category]))
    index = SemIDIndex(data.items["item_id"].to_pylist(), np.array(codes), [len(first), max(seen.values()) + 1])
    return index.with_behaviours(data.behaviours)


def plain_renderer(data: PreparedData) -> Renderer:
    return Renderer(train_tokenizer([], 300), Catalogue(plain_index(data), data.items))


def about(task: str) -> str:
    """The comment on top of a task's YAML."""
    lines = (prompts_folder() / f"{task}.yaml").read_text(encoding="utf-8").splitlines()
    return "\n".join(line.removeprefix("#").strip() for line in lines[: lines.index(f"task: {task}")])


def page() -> str:
    """The whole page."""
    plain, typed = store(), store(behaviours=True)
    renderers = {id(data): plain_renderer(data) for data in (plain, typed)}
    table = ["| task | depends on | answer | templates | unseen |", "| --- | --- | --- | --- | --- |"]
    sections = []
    for name, task in TASKS.items():
        prompt = load_prompt(name)
        data = typed if "behaviour" in name else plain
        depends = [name for name in ("history", *task.given) if name != "history" or "history" in shown(prompt)]
        answer = "an item" if task.ends_with_item else "words"
        table.append(
            f"| [{name}](#{name}) | {', '.join(depends)} | {answer} | {len(prompt.templates)} | {len(prompt.unseen)} |"
        )
        rows = task_rows(name, data, MAX_HISTORY)
        row = next(row for row in rows if len(row["history"]) in (0, MAX_HISTORY, len(rows[-1]["history"])))
        text, said = renderers[id(data)].render(prompt, row)
        only = f"; only a completion {listed(task.answers)}" if task.answers else ""
        slots = (
            f"Slots: a prompt may say {listed(task.asks)}{only}." if task.asks else f"Slots: {listed(task.answers)}."
        )
        sections.append(f"## {name}\n\n{about(name)}\n\n{slots}\n\n```text\n{text}\n```\n\n```text\n{said}\n```\n")
    overview = "\n".join(table)
    return f"{INTRO}{overview}\n\n" + "\n".join(sections)


def listed(slots: tuple[str, ...]) -> str:
    return ", ".join(f"`{{{name}}}`" for name in slots)


def shown(prompt) -> set[str]:
    """What the wordings say of a user's history: `history`, if they do."""
    words = ("{history}", "{titles}", "{mixed}")
    text = " ".join(turn for template in prompt.templates for turn in template.turns)
    return {"history"} if prompt.format == "stream" or any(word in text for word in words) else set()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--output", type=Path, default=PAGE)
    args = parser.parse_args()
    with atomic_path(args.output) as path:
        path.write_text(page(), encoding="utf-8")
    print(f"Wrote {args.output}")


if __name__ == "__main__":
    main()

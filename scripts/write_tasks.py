"""Writes docs/tasks.md: every task with its wordings counted and one sample, rendered on a generated store.

    python scripts/write_tasks.py [--output docs/tasks.md]

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

PAGE = Path(__file__).parents[1] / "docs" / "tasks.md"
ITEMS, USERS, MAX_HISTORY = 300, 60, 4
KINDS = ["view", "cart", "buy"]
INTRO = """\
# Tasks

Written by `python scripts/write_tasks.py`; edit that script, the tasks or their prompts, not this page.

A task says what a row is about: which history, which target, which item or wish the prompt speaks of. Its wording is
a YAML file in `prompts/`. Rows hold ids; text is rendered when a row is read, by the renderer that evaluation and
serving use too. A prompt cannot depend on its target except through the columns that the task declares: every slot
stands on its side, and a wording that puts one of the answer's into the question is refused. The samples below come
from the generated store (`llmrec/data/synthetic.py`), shown with the chat template of a model made from scratch; a
pretrained model brings its own.

## A mixture

`tasks:` of `recipes/sft.py` is a list of entries, and an epoch holds the rows of all of them:

```yaml
tasks:
  - next_item # every row once
  - item_to_title:0.5 # half of the rows, another half in every epoch
  - {prompt: history_to_title, cap: 20000} # at most so many rows in an epoch
  - {prompt: query_to_item, max_per_item: 5} # at most so many rows whose answer begins with one item
  - {prompt: next_item, where: [[price, "<", 20]]} # only answers that satisfy this
  - {prompt: like_but, wishes: [other_brand], weight: 2} # wishes of exactly these kinds (prompts/phrases/wishes.yaml)
  - {prompt: next_item, since: 2017-01-01} # only sequences that reach this date
  - {prompt: next_item, semids: text} # the Semantic IDs of one view, where there are several
  - {prompt: my/own_wording.yaml, weight: 2} # a file of your own, every row twice
  - {chat: HuggingFaceH4/no_robots, split: train, cap: 2000} # general conversations, against forgetting
```

A weight that is not given is the one of the YAML file, 1 unless it says otherwise. `recipes/configs/mixtures/` holds
the published mixtures: `lcrec.yaml`, `minionerec.yaml`, `onerec_think_alignment.yaml`, `onerec_think_reasoning.yaml`.

Every row gets a fresh template in every epoch, and what else may vary (a query, the part of a title, the phrase of a
wish) varies with it. Seed, epoch and the place of a row decide, so a run can be repeated and resumed. A row longer
than `max_length` loses the oldest items of its history, never a part of its instruction or its answer; the data set
counts such rows in `truncated`. A row that is too long without any history is an error; a general conversation loses
the end of its answer instead. Only the answer is learned: words and lists of items end with the end token, and after
the one Semantic ID of an answer the end is forced, so it is left out.

## A task of your own

A task is a `Task` in a file of yours, named by its dotted path in a prompt: [own_task.md](own_task.md). To ship one,
put it into a module of `llmrec/instructions/tasks/` with a line in its `TASKS`, and its wordings into `prompts/`, the
file named as the task; the tests of `tests/instructions/test_tasks.py` hold for every task in `TASKS`, and this
command adds it to this page.

Another wording for an existing task is a YAML file alone. A slot is a name in braces; `{{` writes a brace.

## Texts are text

What users and catalogues write (titles, descriptions, queries, wishes, rationales, chats) is read as text, in
training, evaluation and serving alike. Where it spells a control token of the tokenizer or a Semantic ID, a space
is put behind the first character: `<|im_end|>` becomes `< |im_end|>`, which closes no turn, `<a_1>` becomes `< a_1>`.
Every other text is tokenised as it stands. Two things are taken at their word: in a chat (`messages`, chat data) and
in a thought of the model a Semantic ID names an item, and `recommend_after` and `/v1/completions` get prompts that are
rendered already.

The prompt is a conversation in the tokenizer's chat template. A template that has no place for a system message gets
its text at the head of the first user message. A template that prints the day gets 26 Jul 2024 written into it, in
the folder too, so that the list of a history is the same tomorrow. Without a chat template a prompt begins as the
tokenizer begins a text (BOS); folders of before 0.3 keep what they were trained with (`bos` in `llmrec_config.json`).
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
        sections.append(f"### {name}\n\n{about(name)}\n\n{slots}\n\n```text\n{text}\n```\n\n```text\n{said}\n```\n")
    overview = "\n".join(table)
    return f"{INTRO}\n## All tasks\n\n{overview}\n\n" + "\n".join(sections)


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

"""Wishes, conversations and explanations: answers that can be checked against the columns of the items.

Where interactions have kinds, the next item of a wished one is asked for, the kind, or both (MBGen, arXiv 2405.16871).
The demo of eugeneyan's semantic-ids-llm made people want this; here a wish is a predicate (`llmrec.instructions.
wishes`), so whether an answer satisfies it is a fact and not an opinion.
"""

import zlib
from collections.abc import Callable

import numpy as np
import pyarrow as pa

from llmrec.data import PreparedData
from llmrec.instructions.catalogue import Catalogue
from llmrec.instructions.prompts import listing, phrase
from llmrec.instructions.spans import Sequences, preceded_spans, target_spans
from llmrec.instructions.tasks.reasoning import with_about
from llmrec.instructions.tasks.sequential import HISTORY, TARGET, next_item_slots
from llmrec.instructions.tasks.task import ABOUT, Task, same_item, same_words
from llmrec.instructions.wishes import Wishes, say

ANSWERS = 3  # different answers to one wish about one item, in an epoch
SEVERAL = 3  # items of an answer that lists some


def _wanted(catalogue: Catalogue, wish: str, row: dict) -> str:
    # Hashed, for the template is chosen by the variation itself: every wording is to meet every phrase.
    number = 0 if row.get("variation") is None else zlib.crc32(f"wish{row['variation']}".encode())
    return say(wish, number, bool(row.get("unseen")), catalogue.currency)


def like_rows(answers_of: Callable[[np.ndarray], list]):
    """For every item and wish that compares with it, the answers that are made of the items that satisfy it."""

    def rows(data: PreparedData, max_history: int, rng: np.random.Generator) -> pa.Table:
        wishes, about, said, targets = Wishes(data.items), [], [], []
        for item in wishes.ids:
            for wish, satisfying in wishes.relative_to(item):
                for answer in () if wishes.held_out(wish, item) else answers_of(rng.permutation(satisfying)):
                    about.append(item)
                    said.append(wish)
                    targets.append([wishes.ids[row] for row in answer])
        _check(about, "an item with a category and a brand or a price that others in its category differ in")
        histories = pa.array([[]] * len(about), pa.list_(pa.string()))
        return pa.table({"about": about, "wish": said, "history": histories, "targets": targets})

    return rows


def _check(rows: list | pa.Table, needed: str) -> None:
    if not len(rows):
        raise ValueError(f"no row for this task: the items table has not {needed}")


def wish_rows(data: PreparedData, max_history: int, rng: np.random.Generator) -> pa.Table:
    """One row per training target whose columns say something, which is the `wish`."""
    return _described(data, max_history, rng, Wishes.describing)


def domain_rows(data: PreparedData, max_history: int, rng: np.random.Generator) -> pa.Table:
    """One row per training target; `wish` is its domain (recipes/join_domains.py)."""
    if "domain" not in data.items.column_names:
        raise ValueError("the items have no column 'domain', which this task speaks of: see recipes/join_domains.py")
    return _described(data, max_history, rng, lambda w, item: [f"domain={w.domain[w.place[item]]}"])


def _described(data: PreparedData, max_history: int, rng: np.random.Generator, describe) -> pa.Table:
    wishes, spans = Wishes(data.items), target_spans(data, max_history)
    targets = Sequences(data.train).targets(spans)
    options = [
        [wish for wish in describe(wishes, item) if not wishes.held_out(wish)]
        for item in targets.dictionary.to_pylist()
    ]
    codes, draws = targets.indices.to_numpy(), rng.random(len(targets))
    said = [o[int(draw * len(o))] if (o := options[code]) else None for code, draw in zip(codes, draws)]
    spans = spans.append_column("wish", pa.array(said, pa.string()).dictionary_encode())
    spans = spans.filter(spans["wish"].is_valid())
    _check(spans, "a column categories or brand with values")
    return spans


def conversation_rows(data: PreparedData, max_history: int, rng: np.random.Generator) -> pa.Table:
    """One row per training target: the assistant names it (`about`), the user asks for something like it but ...."""
    spans, wishes = with_about(data, target_spans(data, max_history)), Wishes(data.items)
    options = {
        item: [(wish, rows) for wish, rows in wishes.relative_to(item) if not wishes.held_out(wish, item)]
        for item in spans["about"].unique().to_pylist()
    }
    splits = [split.select(["user_id", "target"]).to_pydict().values() for split in (data.valid, data.test)]
    evaluated = {pair for columns in splits for pair in zip(*columns)}
    users = data.train["user_id"].take(spans["sequence"]).to_pylist()
    said, targets = [], []
    for user, item in zip(users, spans["about"].to_pylist()):
        wish, rows = options[item][rng.integers(len(options[item]))] if options[item] else (None, ())
        answer = wishes.ids[rng.choice(rows)] if len(rows) else None
        # Drawn from the whole catalogue, it may by chance be what the user is evaluated on.
        known = answer is not None and (user, answer) not in evaluated
        said.append(wish if known else None)
        targets.append([answer] if known else [])
    spans = spans.append_column("wish", pa.array(said, pa.string()))
    spans = spans.append_column("targets", pa.array(targets, pa.list_(pa.string())))
    spans = spans.filter(spans["wish"].is_valid())
    _check(spans, "a category and a brand or a price that others in the category differ in")
    return spans


def wish_slots(catalogue: Catalogue, row: dict, separator: str) -> dict[str, str]:
    """`{item}` and `{title}` are those of the item that the wish compares with; `{targets}` is a list."""
    about = row.get("about")
    return {
        "history": catalogue.history(row, separator) if row["history"] else "",
        "wish": _wanted(catalogue, row["wish"], row),
        "item": catalogue.semid(about) if about else "",
        "title": catalogue.title(about) if about else "",
        "target": catalogue.semid(row["targets"][0]) if row["targets"] else "",
        "targets": ", ".join(map(catalogue.semid, row["targets"])),
    }


def history_wish_slots(catalogue: Catalogue, row: dict, separator: str) -> dict[str, str]:
    return next_item_slots(catalogue, row, separator) | {"wish": _wanted(catalogue, row["wish"], row)}


def satisfies(catalogue: Catalogue, row: dict, answer: str) -> float:
    """1 for an item that satisfies the row's wish, compared with the item `about` where it has one; else 0."""
    return float(catalogue.wishes.satisfies(answer, row["wish"], row.get("about")))


def explained_rows(data: PreparedData, max_history: int, rng: np.random.Generator) -> pa.Table:
    """One row per training target after a history: why it (`about`) was recommended."""
    return with_about(data, preceded_spans(data, max_history))


def explanation(catalogue: Catalogue, history: list[str], item: str) -> str:
    """Why an item fits a history, in attributes that it really has."""
    facts = catalogue.facts(item)
    before = [catalogue.facts(other) for other in history]
    said = [phrase(f"has_{name}", value=value) for name, value in facts._asdict().items() if value]
    shared = []
    if facts.category and any(other.category == facts.category for other in before):
        shared.append(phrase("shared_category", category=facts.category))
    if facts.brand and any(other.brand == facts.brand for other in before):
        shared.append(phrase("shared_brand", brand=facts.brand))
    said = listing(said or [phrase("fits")])
    return phrase("explanation_shared" if shared else "explanation", facts=said, shared=listing(shared))


def explain_slots(catalogue: Catalogue, row: dict, separator: str) -> dict[str, str]:
    return {
        "history": catalogue.history(row, separator),
        "item": catalogue.semid(row["about"]),
        "title": catalogue.title(row["about"]),
        "explanation": explanation(catalogue, row["history"], row["about"]),
    }


def faithful(catalogue: Catalogue, row: dict, answer: str) -> float:
    """The share of the brands, categories and prices that a text names which are those of the item that it is `about`;
    0 where it names none of an item that has some."""
    named, true = catalogue.attributes.named(answer), catalogue.attributes.of_item[row["about"]]
    return len(named & true) / len(named) if named else float(not true)


def behaviour_rows(data: PreparedData, max_history: int, rng: np.random.Generator) -> pa.Table:
    """One row per training target; `wish` is the kind of the interaction that is asked for."""
    if "behaviours" not in data.train.column_names:
        raise ValueError("the interactions have no kinds (column 'behaviour'), which this task speaks of")
    spans = target_spans(data, max_history)
    kinds = Sequences(data.train).kinds.take(spans["middle"].combine_chunks())
    return spans.append_column("wish", kinds.dictionary_encode())


def next_behaviour_rows(data: PreparedData, max_history: int, rng: np.random.Generator) -> pa.Table:
    """As `behaviour_rows`, but the kind is asked and not given."""
    return behaviour_rows(data, max_history, rng).drop_columns(["wish"])


def behaviour_slots(catalogue: Catalogue, row: dict, separator: str) -> dict[str, str]:
    """`{behaviour}`: the target's kind as its token; `{target}`: the item without it; `{both}`: the kind, the item."""
    kind = row.get("wish") or (row["target_behaviours"][0] if row["target_behaviours"] else "")
    return {
        "history": catalogue.history(row, separator),
        "behaviour": catalogue.behaviour_token(kind) if kind else "",
        "target": catalogue.semid(row["targets"][0]) if row["targets"] else "",
        "both": catalogue.target(row, separator),
    }


COMPARED = ("about", "wish")
WISHED = ("history", "wish", "item", "title"), ("target", "targets")
BOTH = ("behaviour", "target", "both")
TASKS = {
    "like_but": Task(
        like_rows(lambda rows: [[row] for row in rows[:ANSWERS]]), wish_slots, True, *WISHED, COMPARED, satisfies
    ),
    "like_but_several": Task(  # the end of a list is learned
        like_rows(lambda rows: [rows[:SEVERAL]] if len(rows) >= SEVERAL else []), wish_slots, False, *WISHED, COMPARED
    ),
    "history_wish_to_item": Task(
        wish_rows, history_wish_slots, True, ("history", "wish"), TARGET, ("wish",), satisfies
    ),
    "domain_next_item": Task(domain_rows, history_wish_slots, True, ("history", "wish"), TARGET, ("wish",), satisfies),
    "conversation": Task(conversation_rows, wish_slots, True, *WISHED, COMPARED, satisfies),
    "explain": Task(
        explained_rows, explain_slots, False, ("history", "item", "title"), ("explanation",), ABOUT, faithful
    ),
    "next_behaviour": Task(
        next_behaviour_rows, behaviour_slots, False, HISTORY, BOTH, score=same_words(behaviour_slots, "behaviour")
    ),
    "item_for_behaviour": Task(
        behaviour_rows, behaviour_slots, True, ("history", "behaviour"), ("target", "both"), ("wish",), same_item
    ),
    "behaviour_and_item": Task(next_behaviour_rows, behaviour_slots, True, HISTORY, BOTH, score=same_item),
}

"""Wishes, conversations and explanations: answers that can be checked against the columns of the items.

The demo of eugeneyan's semantic-ids-llm made people want this; here a wish is a predicate (`llmrec.instructions.
wishes`), so whether an answer satisfies it is a fact and not an opinion.
"""

import zlib

import numpy as np
import pyarrow as pa

from llmrec.data import PreparedData
from llmrec.instructions.catalogue import Catalogue
from llmrec.instructions.item_words import listing
from llmrec.instructions.spans import Sequences, target_spans
from llmrec.instructions.tasks.search import next_preferring_rows, with_about
from llmrec.instructions.tasks.sequential import next_item_slots
from llmrec.instructions.tasks.task import ABOUT, Task
from llmrec.instructions.wishes import Wishes, say

ANSWERS = 3  # different answers to one wish about one item, in an epoch
SEVERAL = 3  # items of an answer that lists some
PAIR = ("user_id", "target")  # columns of an evaluation row


def _wanted(wish: str, row: dict) -> str:
    # Hashed, for the template is chosen by the variation itself: every wording is to meet every phrase.
    number = 0 if row.get("variation") is None else zlib.crc32(f"wish{row['variation']}".encode())
    return say(wish, number, bool(row.get("unseen")))


def like_rows(data: PreparedData, max_history: int, rng: np.random.Generator, held_out: bool = False) -> pa.Table:
    """For every item and wish that compares with it, up to `ANSWERS` of the items that satisfy it.

    `held_out` gives the combinations that training leaves out, for evaluation.
    """
    return _like_table(Wishes(data.items), rng, held_out, lambda rows: [[row] for row in rows[:ANSWERS]])


def like_several_rows(data: PreparedData, max_history: int, rng: np.random.Generator) -> pa.Table:
    """For every item and wish that at least `SEVERAL` items satisfy, a list of so many."""
    return _like_table(Wishes(data.items), rng, False, lambda rows: [rows[:SEVERAL]] if len(rows) >= SEVERAL else [])


def _like_table(wishes: Wishes, rng: np.random.Generator, held_out: bool, answers) -> pa.Table:
    about, said, targets = [], [], []
    for item in wishes.ids:
        for wish, rows in wishes.relative_to(item):
            if wishes.held_out(wish, item) == held_out:
                for answer in answers(rng.permutation(rows)):
                    about.append(item)
                    said.append(wish)
                    targets.append([wishes.ids[row] for row in answer])
    _check(about, "an item with a category and a brand or a price that others in its category differ in")
    ids = pa.list_(pa.string())
    return pa.table(
        {
            "about": pa.array(about, pa.string()),
            "wish": pa.array(said, pa.string()),
            "history": pa.array([[]] * len(about), ids),
            "targets": pa.array(targets, ids),
        }
    )


def _check(rows: list | pa.Table, needed: str) -> None:
    if not len(rows):
        raise ValueError(f"no row for this task: the items table has not {needed}")


def wish_rows(data: PreparedData, max_history: int, rng: np.random.Generator) -> pa.Table:
    """One row per training target whose columns say something; `wish` is one of the things that they say."""
    return _described(data, max_history, rng, lambda wishes, item: wishes.describing(item))


def domain_rows(data: PreparedData, max_history: int, rng: np.random.Generator) -> pa.Table:
    """One row per training target; `wish` is its domain (recipes/join_domains.py)."""
    if "domain" not in data.items.column_names:
        raise ValueError("the items have no column 'domain', which this task speaks of: see recipes/join_domains.py")
    return _described(data, max_history, rng, lambda w, item: [f"domain={w.domain[w.place[item]]}"])


def _described(data: PreparedData, max_history: int, rng: np.random.Generator, describe) -> pa.Table:
    wishes, spans = Wishes(data.items), target_spans(data.train, max_history)
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
    spans, wishes = with_about(data, target_spans(data.train, max_history)), Wishes(data.items)
    options = {
        item: [(wish, rows) for wish, rows in wishes.relative_to(item) if not wishes.held_out(wish, item)]
        for item in spans["about"].unique().to_pylist()
    }
    evaluated = {pair for split in (data.valid, data.test) for pair in zip(*(split[c].to_pylist() for c in PAIR))}
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
        "wish": _wanted(row["wish"], row),
        "item": catalogue.semid(about) if about else "",
        "title": catalogue.title(about) if about else "",
        "target": catalogue.semid(row["targets"][0]) if row["targets"] else "",
        "targets": ", ".join(map(catalogue.semid, row["targets"])),
    }


def history_wish_slots(catalogue: Catalogue, row: dict, separator: str) -> dict[str, str]:
    return next_item_slots(catalogue, row, separator) | {"wish": _wanted(row["wish"], row)}


def satisfies(catalogue: Catalogue, row: dict, answer: str) -> float:
    """1 for an item that satisfies the row's wish, compared with the item `about` where it has one; else 0."""
    return float(catalogue.wishes.satisfies(answer, row["wish"], row.get("about")))


def explained_rows(data: PreparedData, max_history: int, rng: np.random.Generator) -> pa.Table:
    """One row per training target after a history: why it (`about`) was recommended."""
    return with_about(data, next_preferring_rows(data, max_history, rng))


def explanation(catalogue: Catalogue, history: list[str], item: str) -> str:
    """Why an item fits a history, in attributes that it really has."""
    facts = catalogue.facts(item)
    before = [catalogue.facts(other) for other in history]
    said = [f"{verb} {value}" for verb, value in zip(("belongs to", "is made by", "costs"), facts) if value]
    text = f"It {listing(said or ['goes with what you chose'])}."
    shared = []
    if facts.category and any(other.category == facts.category for other in before):
        shared.append(f"you looked at {facts.category}")
    if facts.brand and any(other.brand == facts.brand for other in before):
        shared.append(f"you chose {facts.brand}")
    return f"{text} Before, {listing(shared)}." if shared else text


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


COMPARED = ("about", "wish")
TASKS = {
    "like_but": Task(like_rows, wish_slots, True, COMPARED, satisfies),
    "like_but_several": Task(like_several_rows, wish_slots, False, COMPARED),  # the end of a list is learned
    "history_wish_to_item": Task(wish_rows, history_wish_slots, True, ("wish",), satisfies),
    "domain_next_item": Task(domain_rows, history_wish_slots, True, ("wish",), satisfies),
    "conversation": Task(conversation_rows, wish_slots, True, COMPARED, satisfies),
    "explain": Task(explained_rows, explain_slots, False, ABOUT, faithful),
}

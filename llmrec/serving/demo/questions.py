"""What the person chose on the page as the body of `/v1/recommend`."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

MOST_ITEMS = 50
BEAMS = [("model's own", 0), *((str(beams), beams) for beams in (50, 100, 200, 512))]
TREE_ITEMS = 50  # the tree of fewer would be a twig; a search is at least so many beams wide
OPERATORS = ("==", "!=", "<", ">", "<=", ">=", "in", "not in")


class Question(NamedTuple):
    """Something to ask: the shipped prompt, the field that the typed text goes to, and how the page says it."""

    task: str = ""
    field: str = ""
    label: str = "Nothing to type for this question"
    example: str = ""


QUESTIONS = {
    "What comes next?": Question(),
    "Like the last item, but …": Question("like_but", "wish", "But …", "cheaper & other_brand"),
    "What comes next, with a wish": Question("history_wish_to_item", "wish", "Wish", "brand=3M"),
    "Search in words": Question("query_to_item", "query", "Query", "safety glasses"),
    "Search, with this history": Question("history_query_to_item", "query", "Query", "safety glasses"),
    "An intention, with this history": Question(
        "history_intention_to_item", "intention", "Intention", "paint a fence"
    ),
}


def typed(text: str, operator: str, kind: str):
    """The value of a condition as its column's type wants it; `in` and `not in` take several, with commas between.

    `kind` is named as in `/v1/catalogue`: `"double"`, `"int64"`, ... Raises `ValueError` for a text that does not fit.
    """
    if operator in ("in", "not in"):
        return [typed(part.strip(), "==", kind) for part in text.split(",")]
    try:
        if kind == "bool":
            return {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}[text.lower()]
        if kind.startswith(("int", "uint")):
            return int(text)
        if kind.startswith(("double", "float", "half")):
            if math.isfinite(number := float(text)):
                return number
            raise ValueError
    except (ValueError, KeyError):
        raise ValueError(f"“{text}” does not fit a column of type {kind}.") from None
    return text


def body(
    history: Sequence[Mapping],
    question: str,
    text: str,
    k: int,
    num_beams: int | None = None,
    exclude_seen: bool = False,
    where: Sequence[Sequence] = (),
    at_most: Mapping[str, int] | None = None,
) -> dict:
    """The request; it asks for `TREE_ITEMS` items at least.

    Args:
        history: `item_id` of each item, oldest first, and `behaviour` where it is known.

    Raises:
        ValueError: something to fill in first.
    """
    asked = QUESTIONS[question]
    needs_history = asked.task != "query_to_item"
    if needs_history and not history:
        raise ValueError("Add an item to the history first: search for it by its title.")
    if asked.field and not text.strip():
        raise ValueError(f"Type something into “{asked.label}” first, for example: {asked.example}")
    item_ids = [item["item_id"] for item in history]
    request = {
        "history": item_ids if needs_history else [],
        "k": max(k, TREE_ITEMS),
        "num_beams": num_beams,
        "filter": {
            "exclude_seen": exclude_seen,
            "where": [list(w) for w in where] or None,
            "at_most": at_most or None,
        },
    }
    if asked.task:
        request |= {"task": asked.task, asked.field: text.strip()}
    if asked.task == "like_but":
        request["about"] = item_ids[-1]
    if needs_history and all(item.get("behaviour") for item in history):
        request["behaviours"] = [item["behaviour"] for item in history]
    return request

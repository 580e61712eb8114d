"""From the body of a request to recommendations: what it says is checked against one catalogue version, then searched.

Everything here blocks, and runs in a thread.
"""

import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache

import pyarrow as pa
import pyarrow.compute as pc

from llmrec.catalogue.filters import Filter
from llmrec.instructions import TASKS, Prompt, load_prompt
from llmrec.instructions.prompts import prompts_folder
from llmrec.recommenders.protocol import Recommendation
from llmrec.serving.http.errors import ApiError
from llmrec.serving.http.schemas import RecommendRequest
from llmrec.serving.http.service import Served
from llmrec.serving.http.settings import Settings

_BAD_FILTER = (ValueError, TypeError, ArithmeticError, pa.ArrowException)
_TASK_FIELDS = ("about", "wish", "query", "intention")


@dataclass
class Asked:
    """A request that fits the catalogue.

    Args:
        history: item ids, or (item id, behaviour) pairs.
        prompt (`str`): what the model reads.
        follows (`bool`): whether items are searched right after `prompt`; otherwise by the recommender's own prompt.
    """

    body: RecommendRequest
    history: list
    filter: Filter | None
    prompt: str
    follows: bool
    num_beams: int


@dataclass
class Found:
    """What a request gets, and the seconds that the search took."""

    items: list[Recommendation]
    valid: int
    thoughts: list[str] | None
    search_s: float


@cache
def item_prompts() -> dict[str, Prompt]:
    """The shipped prompts that `task` may name: those answered by an item, without a thought, from given fields."""
    prompts = {path.stem: load_prompt(path.stem) for path in sorted(prompts_folder().glob("*.yaml"))}
    return {
        name: prompt
        for name, prompt in prompts.items()
        if TASKS[prompt.task].ends_with_item
        and not prompt.thinking
        and set(TASKS[prompt.task].given) <= {*_TASK_FIELDS}
    }


def read_request(body: RecommendRequest, served: Served, settings: Settings) -> Asked:
    """Checks a request against a version; raises `ApiError` (400) naming the field that does not fit."""
    recommender = served.recommender
    beams = max(body.num_beams or recommender.config.num_beams, body.k)
    for name, value, most in (
        ("k", body.k, settings.max_k),
        ("num_beams", body.num_beams or 1, settings.max_beams),
        ("history", len(body.history), settings.max_history),
    ):
        if value > most:
            what = f"has {value} items" if name == "history" else f"is {value}"
            raise ApiError(400, f"{name} {what}, the limit here is {most}", name)
    if body.messages is not None and (body.history or body.task):
        raise ApiError(400, "messages stand instead of history and task: give one of them", "messages")
    if body.messages is None and body.task is None and not body.history:
        raise ApiError(400, "history is empty: give at least one item, or messages, or a task", "history")
    if body.task is None and (given := [name for name in _TASK_FIELDS if getattr(body, name) is not None]):
        raise ApiError(400, f"{given[0]} belongs to a task: name it in task", given[0])
    history, alike = _history(body, served)
    chosen = _filter(body, served, alike)
    prompt = _prompt(body, served, history)
    follows = body.messages is not None or body.task is not None
    if settings.max_prompt_tokens is not None:
        length = len(recommender.tokenizer(prompt, add_special_tokens=False)["input_ids"])
        if length > settings.max_prompt_tokens:
            field = "messages" if body.messages is not None else "task" if body.task is not None else "history"
            message = f"the prompt of {field} has {length} tokens, the limit here is {settings.max_prompt_tokens}"
            raise ApiError(400, message, field)
    return Asked(body, history, chosen, prompt, follows, beams)


def search(asked: Sequence[Asked], served: Served) -> list[Found | Exception]:
    """Searches requests together where they can be; where that fails, the error takes the place of the answer."""
    results: list[Found | Exception | None] = [None] * len(asked)
    groups: dict[tuple, list[int]] = defaultdict(list)
    for number, one in enumerate(asked):
        groups[one.follows, one.body.num_beams, one.body.think, one.body.return_prompt].append(number)
    for (follows, num_beams, think, _), numbers in groups.items():
        began = time.perf_counter()
        try:
            group = [asked[number] for number in numbers]
            found, thoughts = _search(group, follows, num_beams, think, served)
            took = time.perf_counter() - began
            for number, one, items, thought in zip(numbers, group, found, thoughts):
                results[number] = Found(items, _count_valid(one, items, served), thought, took)
        except Exception as error:
            for number in numbers:
                results[number] = error
    return results


def _search(group: list[Asked], follows: bool, num_beams: int | None, think: bool, served: Served):
    recommender, histories = served.recommender, [one.history for one in group]
    ks, filters = [one.body.k for one in group], [one.filter for one in group]
    thoughts: list[list[str] | None] = [None] * len(group)
    if follows:
        found = recommender.recommend_after([one.prompt for one in group], ks, filters, histories, num_beams)
        return found, thoughts
    behaviours = [one.body.behaviour or _wanted(served) for one in group] if recommender.behaviours else None
    if think and recommender.block is not None and recommender.config.thoughts and group[0].body.return_prompt:
        thoughts = recommender.think(histories, behaviours)
    return recommender.recommend(histories, ks, filters, behaviours, think, num_beams), thoughts


def shortage(one: Asked, found: Found) -> str | None:
    """Why there are fewer items than asked for; `None` where there are enough."""
    if (number := len(found.items)) == one.body.k:
        return None
    items = "1 item is" if number == 1 else f"{number} items are" if number else "no item is"
    where = "by this filter" if one.filter is not None else "in this catalogue"
    if one.filter is not None and len(one.filter.at_most or ()) > 1:
        where += ", which takes the best items first for several limits at once"
    return f"only {items} allowed {where}, k is {one.body.k}" if number else f"{items} allowed {where}"


def _item(entry) -> str:
    return entry if isinstance(entry, str) else entry[0]


def _wanted(served: Served) -> str:
    return served.recommender.config.behaviour or served.recommender.behaviours[-1]


def _history(body: RecommendRequest, served: Served) -> tuple[list, list[str]]:
    """Its entries, and other items that have been seen where one has: those of the same Semantic ID."""
    alike: list[str] = []
    if body.history_format == "title":
        items = _items_of_titles(body.history, served)
    elif body.history_format == "semid":
        items = []
        for place, semid in enumerate(body.history):
            first, *others = served.items_with(semid) or [None]
            if first is None:
                raise ApiError(400, f"no item of the catalogue has the Semantic ID {semid!r}", f"history[{place}]")
            items.append(first)
            alike += others
    else:
        items = body.history
        reserved = served.version.index.reserved  # of removed items, which histories still hold
        known = [served.version.has(item) or item in reserved for item in items]
        if not all(known):
            place = known.index(False)
            message = f"item {items[place]!r} is not in the catalogue: leave it out, or find items at /v1/items?query="
            raise ApiError(400, message, f"history[{place}]", "unknown_item")
    behaviours = served.recommender.behaviours
    if body.behaviour is not None and body.behaviour not in behaviours:
        known = f"it knows {', '.join(behaviours)}" if behaviours else "it knows none: leave behaviour out"
        raise ApiError(400, f"behaviour {body.behaviour!r} is none of this model's; {known}", "behaviour")
    if body.behaviours is None:
        if behaviours and body.task is not None and items:
            raise ApiError(400, "a task with a history needs behaviours, one for each of its items", "behaviours")
        return items, alike
    if not behaviours:
        raise ApiError(400, "this model knows no kinds of interaction: leave behaviours out", "behaviours")
    if len(body.behaviours) != len(items):
        message = f"behaviours has {len(body.behaviours)} entries, history has {len(items)}: give one for each item"
        raise ApiError(400, message, "behaviours")
    for place, kind in enumerate(body.behaviours):
        if kind not in behaviours:
            message = f"behaviour {kind!r} is none of this model's: {', '.join(behaviours)}"
            raise ApiError(400, message, f"behaviours[{place}]")
    return list(zip(items, body.behaviours)), alike


def _items_of_titles(titles: list[str], served: Served) -> list[str]:
    table = served.version.items.select(["item_id", "title"])
    table = table.filter(pc.is_in(table["title"], value_set=pa.array(titles, pa.string())))
    items_of: dict[str, dict[str, None]] = defaultdict(dict)
    for item, title in zip(table["item_id"].to_pylist(), table["title"].to_pylist()):
        items_of[title][item] = None
    for place, title in enumerate(titles):
        found = list(items_of[title])
        if not found:
            message = f"no item has the title {title!r}: find the exact one at /v1/items?query="
            raise ApiError(400, message, f"history[{place}]", "unknown_item")
        if len(found) > 1:
            some = ", ".join(map(repr, found[:5])) + (", ..." if len(found) > 5 else "")
            message = (
                f"{len(found)} items have the title {title!r}: give the item_id of the one that is meant ({some})"
            )
            raise ApiError(400, message, f"history[{place}]", "ambiguous_title")
    return [next(iter(items_of[title])) for title in titles]


def _filter(body: RecommendRequest, served: Served, alike: list[str]) -> Filter | None:
    chosen = None if body.filter is None else Filter(**body.filter.model_dump())
    check = served.recommender.filter
    if chosen is not None:
        if chosen.exclude_seen and alike:
            chosen = replace(chosen, deny=[*(chosen.deny or ()), *alike])
        try:
            check.check(chosen)
        except _BAD_FILTER as error:
            raise ApiError(400, str(error), "filter") from error
    if body.domain is None:
        return chosen
    if "domain" not in served.version.items.column_names:
        raise ApiError(400, "this catalogue has no column domain: leave domain out", "domain")
    condition = ("domain", "==", body.domain)
    try:
        known = check(Filter(where=[condition]))[0].any()
    except _BAD_FILTER as error:
        raise ApiError(400, f"domain does not fit its column: {error}", "domain") from error
    if not known:
        raise ApiError(400, f"no item of the catalogue is of domain {body.domain!r}", "domain")
    chosen = chosen or Filter()
    return replace(chosen, where=[*(chosen.where or ()), condition])


def _prompt(body: RecommendRequest, served: Served, history: list) -> str:
    recommender = served.recommender
    if body.messages is not None:
        return _chat(body, served)
    if body.task is None:
        return recommender.prompts([history], behaviour=[body.behaviour] if body.behaviour else None)[0]
    if body.task not in item_prompts():
        raise ApiError(400, f"task {body.task!r} is none of {', '.join(item_prompts())}", "task")
    prompt = item_prompts()[body.task]
    if body.about is not None and not served.version.has(body.about):
        raise ApiError(400, f"item {body.about!r} is not in the catalogue", "about", "unknown_item")
    row = {name: getattr(body, name) for name in _TASK_FIELDS if getattr(body, name) is not None}
    row["history"] = [*map(_item, history)]
    if body.behaviours is not None:
        row["behaviours"] = body.behaviours
    if body.behaviour is not None:
        row["behaviour"] = body.behaviour
    try:
        return recommender.task_prompts(prompt, [row])[0]
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise ApiError(400, f"task {body.task!r} cannot be asked like this: {error}", "task") from error


def _chat(body: RecommendRequest, served: Served) -> str:
    from jinja2 import TemplateError

    tokenizer = served.recommender.tokenizer
    if not tokenizer.chat_template:
        raise ApiError(400, "this model has no chat template: give history or a task", "messages")
    turns = [message.model_dump() for message in body.messages]
    try:
        text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True, enable_thinking=False)
    except (TemplateError, ValueError) as error:
        raise ApiError(400, f"the model's chat template refuses these messages: {error}", "messages") from error
    if not served.recommender.behaviours:
        return text
    return text + served.version.index.behaviour_token(body.behaviour or _wanted(served))


def _count_valid(one: Asked, items: list[Recommendation], served: Served) -> int:
    """How many of the items are in the version's catalogue and allowed."""
    known = [item.item_id for item in items if served.version.has(item.item_id)]
    return served.recommender.filter.satisfied(one.filter, known, [*map(_item, one.history)])

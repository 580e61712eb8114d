"""From the body of a request to recommendations: what it says is checked against one catalogue version, then searched.

Everything here blocks, and runs in a thread.
"""

import logging
import time
from collections import defaultdict
from concurrent.futures import CancelledError
from dataclasses import dataclass, replace
from functools import cache

import pyarrow as pa
import pyarrow.compute as pc

from llmrec.catalogue.filters import Filter
from llmrec.instructions import TASKS, Prompt, load_prompt
from llmrec.instructions.prompts import prompts_folder
from llmrec.instructions.render import item_of
from llmrec.serving.http.errors import ApiError, engine_failed
from llmrec.serving.http.schemas import RecommendRequest
from llmrec.serving.http.service import Served
from llmrec.serving.http.settings import Settings
from llmrec.tokens import conversation

logger = logging.getLogger("llmrec.serving")

_BAD_FILTER = (ValueError, TypeError, ArithmeticError, pa.ArrowException)
_LETTERS = 4  # of a token, about
_TASK_FIELDS = ("about", "wish", "query", "intention")
_UNKNOWN = {
    "item_id": ("item {!r} is not in the catalogue: leave it out, or find items at /v1/items?query=", "unknown_item"),
    "semid": ("no item of the catalogue has the Semantic ID {!r}", None),
    "title": ("no item has the title {!r}: find the exact one at /v1/items?query=", "unknown_item"),
}


@dataclass
class Asked:
    """A request that fits the catalogue.

    Args:
        history: item ids, or (item id, behaviour) pairs.
        direct: whether items are searched right after `prompt`. Otherwise the recommender makes more of the history: a
            thought after the prompt, or a prompt for each of several ways to write it.
    """

    body: RecommendRequest
    history: list
    filter: Filter | None
    prompt: str
    prompt_ids: list[int]
    direct: bool
    num_beams: int


@dataclass
class Found:
    """What a request gets: (item id, score) pairs, best first; `valid` counts those in the catalogue and allowed."""

    items: list[tuple[str, float]]
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


def cost(body: RecommendRequest, served: Served, settings: Settings) -> float:
    """About how many tokens the model runs: those of the prompt, and of the beams at every level but the last."""
    config, levels = served.recommender.config, served.version.index.num_levels
    texts = (body.wish, body.query, body.intention, *(message.content for message in body.messages or ()))
    words = sum(len(text) for text in texts if text) / _LETTERS
    prompt = min(len(body.history), config.max_history) * levels + min(words, settings.max_prompt_tokens or words)
    beams = min(settings.max_beams, max(body.num_beams or config.num_beams, body.k))
    return (1 + prompt + beams * (levels - 1)) * len(served.recommender.ways())


def read_request(body: RecommendRequest, served: Served, settings: Settings) -> Asked:
    """Checks a request against a version; raises `ApiError` (400) naming the field that does not fit."""
    recommender = served.recommender
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
    items, alike = _history(body, served)
    history, allowed = _with_behaviours(body, items, served), _filter(body, served, alike)
    source = "messages" if body.messages is not None else "task" if body.task is not None else "history"
    prompt = _prompt(body, served, history)
    if body.task is not None:
        allowed = TASKS[item_prompts()[body.task].task].narrowed(allowed, body.about)
    [prompt_ids] = recommender.token_ids([prompt])
    most = settings.max_prompt_tokens
    if most is not None and len(prompt_ids) > most:
        message = f"the prompt of {source} has {len(prompt_ids)} tokens, the limit here is {most}"
        raise ApiError(400, message, source)
    dense = _dense(body, served, source)
    direct = source != "history" or (recommender.block is None and len(recommender.ways()) == 1 and not dense)
    num_beams = max(body.num_beams or recommender.config.num_beams, body.k)
    return Asked(body, history, allowed, prompt, prompt_ids, direct, num_beams)


def search(asked: Asked, served: Served) -> Found | ApiError:
    """What a request gets; an error where the search failed."""
    began = time.perf_counter()
    try:
        items, thoughts = _search(asked, served)
        known = [item_id for item_id, _ in items if item_id in served.version.index]
        valid = served.recommender.filter.satisfied(asked.filter, known, [*map(item_of, asked.history)])
        return Found(items, valid, thoughts, time.perf_counter() - began)
    except Exception as error:
        if not isinstance(error, CancelledError):  # nobody waits for it any more
            logger.exception("a search failed")
        return engine_failed()


def _search(asked: Asked, served: Served) -> tuple[list[tuple[str, float]], list[str] | None]:
    """(item id, score) pairs, and the thoughts that are to be shown."""
    recommender, body = served.recommender, asked.body
    histories, ks, filters, thoughts = [asked.history], [body.k], [asked.filter], None
    if asked.direct:
        [hits] = recommender.search([asked.prompt_ids], ks, histories, filters, num_beams=body.num_beams)
        return [(served.version.index.items[hit.item], hit.score) for hit in hits], None
    behaviours = [body.behaviour or _wanted(served)] if recommender.behaviours else None
    if body.think and body.return_prompt and recommender.block is not None and recommender.config.thoughts:
        [thoughts] = recommender.think(histories, behaviours)
    more = {"num_beams": body.num_beams, "dense": body.dense}
    [hits] = recommender.recommend(histories, ks, filters, behaviours, body.think, **more)
    return [(hit.item_id, hit.score) for hit in hits], thoughts


def shortage(one: Asked, found: Found) -> str | None:
    """Why there are fewer items than asked for; `None` where there are enough."""
    if (number := len(found.items)) == one.body.k:
        return None
    items = "1 item is" if number == 1 else f"{number} items are" if number else "no item is"
    where = "by this filter" if one.filter is not None else "in this catalogue"
    if one.filter is not None and len(one.filter.at_most or ()) > 1:
        where += ", which takes the best items first for several limits at once"
    return f"only {items} allowed {where}, k is {one.body.k}" if number else f"{items} allowed {where}"


def _wanted(served: Served) -> str:
    return served.recommender.config.behaviour or served.recommender.behaviours[-1]


def _history(body: RecommendRequest, served: Served) -> tuple[list[str], list[str]]:
    """Its items, and other items that have been seen where one has: those of the same Semantic ID."""
    if body.history_format == "title":
        candidates = _items_of_titles(body.history, served)
    elif body.history_format == "semid":
        candidates = [served.items_with(semid) for semid in body.history]
    else:
        reserved = served.version.index.reserved  # of removed items, which histories still hold
        known = (item in served.version.index or item in reserved for item in body.history)
        candidates = [[item] if is_known else [] for item, is_known in zip(body.history, known)]
    items, alike = [], []
    for place, (entry, same) in enumerate(zip(body.history, candidates)):
        if not same:
            message, code = _UNKNOWN[body.history_format]
            raise ApiError(400, message.format(entry), f"history[{place}]", code)
        if len(same) > 1 and body.history_format == "title":
            some = ", ".join(map(repr, same[:5])) + (", ..." if len(same) > 5 else "")
            message = f"{len(same)} items have the title {entry!r}: give the item_id of the one that is meant ({some})"
            raise ApiError(400, message, f"history[{place}]", "ambiguous_title")
        items.append(same[0])
        alike += same[1:]
    return items, alike


def _items_of_titles(titles: list[str], served: Served) -> list[list[str]]:
    table = served.version.items.select(["item_id", "title"])
    table = table.filter(pc.is_in(table["title"], value_set=pa.array(titles, pa.string())))
    items_of: dict[str, dict[str, None]] = defaultdict(dict)
    for item, title in zip(table["item_id"].to_pylist(), table["title"].to_pylist()):
        items_of[title][item] = None
    return [list(items_of[title]) for title in titles]


def _with_behaviours(body: RecommendRequest, items: list[str], served: Served) -> list:
    """The history as the recommender takes it: items, or pairs with their behaviours."""
    behaviours = served.recommender.behaviours
    if body.behaviour is not None and body.behaviour not in behaviours:
        known = f"it knows {', '.join(behaviours)}" if behaviours else "it knows none: leave behaviour out"
        raise ApiError(400, f"behaviour {body.behaviour!r} is none of this model's; {known}", "behaviour")
    if body.behaviours is None:
        if behaviours and body.task is not None and items:
            raise ApiError(400, "a task with a history needs behaviours, one for each of its items", "behaviours")
        return items
    if not behaviours:
        raise ApiError(400, "this model knows no kinds of interaction: leave behaviours out", "behaviours")
    if len(body.behaviours) != len(items):
        message = f"behaviours has {len(body.behaviours)} entries, history has {len(items)}: give one for each item"
        raise ApiError(400, message, "behaviours")
    for place, kind in enumerate(body.behaviours):
        if kind not in behaviours:
            message = f"behaviour {kind!r} is none of this model's: {', '.join(behaviours)}"
            raise ApiError(400, message, f"behaviours[{place}]")
    return list(zip(items, body.behaviours))


def _filter(body: RecommendRequest, served: Served, alike: list[str]) -> Filter | None:
    """What the request allows. Filters are checked here: what the engine gets fits the catalogue."""
    allowed, catalogue = None, served.recommender.filter
    if body.filter is not None:
        allowed = Filter(**body.filter.model_dump())
        if allowed.exclude_seen and alike:
            allowed = replace(allowed, deny=[*(allowed.deny or ()), *alike])
        try:
            catalogue.check(allowed)
        except _BAD_FILTER as error:
            raise ApiError(400, str(error), "filter") from error
    if body.domain is None:
        return allowed
    if "domain" not in served.version.items.column_names:
        raise ApiError(400, "this catalogue has no column domain: leave domain out", "domain")
    condition = ("domain", "==", body.domain)
    try:
        known = catalogue(Filter(where=[condition]))[0].any()
    except _BAD_FILTER as error:
        raise ApiError(400, f"domain does not fit its column: {error}", "domain") from error
    if not known:
        raise ApiError(400, f"no item of the catalogue is of domain {body.domain!r}", "domain")
    allowed = allowed or Filter()
    return replace(allowed, where=[*(allowed.where or ()), condition])


def _prompt(body: RecommendRequest, served: Served, history: list) -> str:
    if body.messages is not None:
        return _chat(body, served)
    if body.task is None:
        return served.recommender.prompts([history], behaviour=[body.behaviour] if body.behaviour else None)[0]
    if body.task not in item_prompts():
        raise ApiError(400, f"task {body.task!r} is none of {', '.join(item_prompts())}", "task")
    if body.about is not None and body.about not in served.version.index:
        raise ApiError(400, f"item {body.about!r} is not in the catalogue", "about", "unknown_item")
    names = (*_TASK_FIELDS, "behaviours", "behaviour")
    row = {name: getattr(body, name) for name in names if getattr(body, name) is not None}
    row["history"] = [*map(item_of, history)]
    try:
        return served.recommender.task_prompts(item_prompts()[body.task], [row])[0]
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise ApiError(400, f"task {body.task!r} cannot be asked like this: {error}", "task") from error


def _dense(body: RecommendRequest, served: Served, source: str) -> str:
    """What is done with dense scores; the head was fitted on histories, so nothing else may ask for them."""
    if source != "history":
        if body.dense:
            raise ApiError(400, f"dense is for a history: leave it out beside {source}", "dense")
        return ""
    try:
        return served.recommender.dense_mode(body.dense)
    except ValueError as error:
        raise ApiError(400, str(error), "dense") from error


def _chat(body: RecommendRequest, served: Served) -> str:
    tokenizer = served.recommender.tokenizer
    if not tokenizer.chat_template:
        raise ApiError(400, "this model has no chat template: give history or a task", "messages")
    try:
        turns = served.recommender.renderer.chat_messages([message.model_dump() for message in body.messages])
        text = conversation(tokenizer, turns)
    except ValueError as error:
        raise ApiError(400, f"the model's chat template refuses these messages: {error}", "messages") from error
    if not served.recommender.behaviours:
        return text
    return text + served.version.index.behaviour_token(body.behaviour or _wanted(served))

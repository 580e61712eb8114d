"""HTML of the page's parts. Every text of the server goes through `escape`."""

import html
import math
import re
from collections.abc import Mapping, Sequence

TOKEN = re.compile(r"<[^<>]+>")
_TEMPLATE = str.maketrans({"{": "&#123;", "}": "&#125;", "$": "&#36;", "`": "&#96;", "\\": "&#92;"})


def escape(text: object) -> str:
    """A text of the server for HTML, also inside attributes and Gradio's own templates."""
    return html.escape(str(text), quote=True).translate(_TEMPLATE)


def shortened(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1].rstrip() + "…"


def percent(share: float) -> str:
    """A share in [0, 1] for people, as HTML."""
    if share < 0.001:
        return "&lt; 0.1 %"
    return f"{100 * share:.0f} %" if share >= 0.0995 else f"{100 * share:.1f} %"


def shares(scores: Sequence[float]) -> list[float]:
    """The softmax of scores: what part of the list's probability each item has; they sum to 1."""
    best = max(scores, default=0)
    masses = [math.exp(score - best) for score in scores]
    return [mass / sum(masses) for mass in masses]


def tokens_of(semid: str) -> list[str]:
    """`"<a_12><b_7>"` → `["<a_12>", "<b_7>"]`; a Semantic ID of another form is one token."""
    return TOKEN.findall(semid) if "".join(TOKEN.findall(semid)) == semid and semid else [semid]


def bare(token: str, length: int) -> str:
    """`<a_12>` → `a_12`, cut to a length."""
    return shortened(token.strip("<>|"), length)


def codes(semid: str) -> str:
    """A Semantic ID as small coloured tokens, one colour per level."""
    tokens = enumerate(tokens_of(semid), start=1)
    return "".join(f'<code class="c{level}">{escape(bare(token, 12))}</code>' for level, token in tokens)


def notice(text: str, kind: str = "info") -> str:
    """A message in words; `kind` is info, warning or error."""
    return f'<div class="notice {kind}" role="{"alert" if kind == "error" else "status"}">{escape(text)}</div>'


def empty(title: str, text: str) -> str:
    return f'<div class="empty"><b>{escape(title)}</b><span>{escape(text)}</span></div>'


def quiet(text: str) -> str:
    return f'<p class="quiet">{escape(text)}</p>'


def explanation(title: str, words: str) -> str:
    return f"<blockquote><b>{escape(title)}</b><p>{escape(words)}</p></blockquote>"


def header(model: str, items: int | None = None, version: int | None = None, alive: bool = True) -> str:
    facts = [f"{items:,} items", f"catalogue version {version}"] if items is not None else []
    state = '<i class="dot up"></i>online' if alive else '<i class="dot down"></i>not connected'
    tags = "".join(f"<span>{escape(fact)}</span>" for fact in facts)
    return (
        f'<header><div><h1>llmrec</h1><p>{escape(model)}</p></div><div class="facts">{tags}<span>{state}</span></div>'
        '<button class="theme" data-action="theme" aria-label="light or dark">◐</button></header>'
    )


def heading(name: str, named: bool) -> str:
    """Of a list; with the model's name where there are several."""
    return f"<h2>{escape(name) if named else 'Recommendations'}</h2>"


def ranks_in(lists: Sequence[Sequence[dict]], k: int) -> dict[str, int]:
    """item id → its best rank in the first k of other lists."""
    found: dict[str, int] = {}
    for items in lists:
        for rank, item in enumerate(items[:k], start=1):
            found[item["item_id"]] = min(rank, found.get(item["item_id"], rank))
    return found


def named(item: dict) -> str:
    """The title of an item on one line; the whole of it appears under the pointer."""
    return f'<span title="{escape(item["title"])}">{escape(item["title"] or item["item_id"])}</span>'


def found(items: Sequence[dict], query: str) -> str:
    if not items:
        return empty(f"Nothing is called “{query}”", "Try fewer or other words of a title.")
    rows = "".join(
        f'<li><button data-action="add" data-item="{escape(item["item_id"])}" data-title="{escape(item["title"])}" '
        f'aria-label="add">+</button>{named(item)}</li>'
        for item in items
    )
    return f'<ul class="found">{rows}</ul>'


def history(items: Sequence[dict]) -> str:
    if not items:
        return empty("No history yet", "Search for items and add them, oldest first.")
    rows = "".join(
        f"<li><em>{place + 1}</em>{named(item)}"
        f'<button data-action="remove" data-place="{place}" aria-label="remove">×</button></li>'
        for place, item in enumerate(items)
    )
    return f'<ol class="history">{rows}</ol>'


def conditions(where: Sequence[Sequence]) -> str:
    chips = "".join(
        f"<li><span>{escape(column)} {escape(operator)} {escape(value)}</span>"
        f'<button data-action="drop" data-place="{place}" aria-label="remove">×</button></li>'
        for place, (column, operator, value) in enumerate(where)
    )
    return f'<ul class="chips">{chips}</ul>' if chips else quiet("No conditions.")


def recommendations(
    items: Sequence[dict],
    k: int,
    target: str | None = None,
    explains: bool = False,
    ranks: Mapping[str, int] | None = None,
) -> str:
    """The first k of the items, best first; shares are of all. The item with the id `target` is marked, and those of
    `ranks` with their rank in the list beside."""
    rows = ""
    of_list = shares([item["score"] for item in items])
    for rank, (item, share) in enumerate(zip(items[:k], of_list), start=1):
        hit, other = item["item_id"] == target, (ranks or {}).get(item["item_id"])
        beside = f'<span class="there">#{other} beside</span>' if other else ""
        why = f'<button class="why" data-action="why" data-item="{escape(item["item_id"])}">Why?</button>'
        rows += (
            f'<li class="{"hit" if hit else ""}"><em>{rank}</em>'
            f'<div class="what"><b title="{escape(item["title"])}">{"★ " if hit else ""}'
            f"{escape(item['title'] or item['item_id'])}</b>"
            f'<small><span class="id">{escape(item["item_id"])}</span>{codes(item["semid"])}{beside}</small></div>'
            f'<div class="score"><span>{percent(share)}</span><small>log p {item["score"]:.2f}</small>'
            f'<i style="--share:{share / max(of_list):.3f}"></i></div>{why if explains else ""}</li>'
        )
    return f'<ol class="recommendations">{rows}</ol>'


def outcome(answer: dict, k: int, target: dict | None, ranks: Mapping[str, int] | None = None) -> str:
    """One line above the list: how long it took, what is missing, how much of it is in the list beside, where the true
    next item stands."""
    items = answer["items"]
    parts = [f"the first {k} of {len(items)}" if len(items) > k else f"{len(items)} items"]
    if total := (answer.get("timings_ms") or {}).get("total"):
        parts.append(f"{total:.0f} ms")
    if ranks is not None:
        parts.append(f"{sum(item['item_id'] in ranks for item in items[:k])} in both")
    if target:
        rank = next((i for i, item in enumerate(items, start=1) if item["item_id"] == target["item_id"]), None)
        place = f"rank {rank}" if rank else f"not among these {len(items)}"
        true = f"★ Chosen next: {shortened(target['title'] or target['item_id'], 70)} ({place})"
    line = f'<p class="outcome">{escape(" · ".join(parts))}</p>'
    line += f'<p class="outcome next">{escape(true)}</p>' if target else ""
    message = answer.get("message") if len(items) < k else None
    return (notice(message, "warning") if message else "") + line

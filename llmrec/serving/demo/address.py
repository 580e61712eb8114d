"""What is asked on the page as the query of its address: a reload, a bookmark and a link ask the same again."""

import json
from collections.abc import Mapping, Sequence
from typing import NamedTuple
from urllib.parse import parse_qsl, urlencode

from llmrec.serving.demo.questions import BEAMS, MOST_ITEMS, OPERATORS, QUESTIONS

_BY_TASK = {asked.task: question for question, asked in QUESTIONS.items()}
_MANY = ("item", "kind", "where")  # names that may stand several times


class Asked(NamedTuple):
    """The fields of the page. `item`, `kind` and `next` are the ids of the history, its behaviours, and the true next
    item's id; `where` and `each` the conditions and the column of the limit `most`."""

    item: Sequence[str] = ()
    kind: Sequence[str] = ()
    next: str = ""
    ask: str = ""
    text: str = ""
    k: int = 10
    beams: int = 0
    seen: int = 0
    where: Sequence[Sequence] = ()
    most: int = 2
    each: str = ""

    @property
    def question(self) -> str:
        return _BY_TASK[self.ask]


def write(
    history: Sequence[Mapping], target: Mapping | None, question: str, text: str, k, beams, seen, where, most, group
):
    """`"?item=B01&k=5"`; what has its default is left out, and nothing at all is `""`."""
    kinds = [item.get("behaviour") for item in history]
    asked = Asked(
        item=[item["item_id"] for item in history],
        kind=kinds if all(kinds) else (),
        next=target["item_id"] if target else "",
        ask=QUESTIONS[question].task,
        text=text or "",
        k=int(k),
        beams=beams or 0,
        seen=int(seen),
        where=[json.dumps(condition, ensure_ascii=False) for condition in where],
        most=int(most or 1) if group else 2,
        each=group or "",
    )
    changed = {
        name: value for name, value in asked._asdict().items() if value and value != Asked._field_defaults[name]
    }
    return f"?{urlencode(changed, doseq=True)}" if changed else ""


def read(query: str, columns: Mapping[str, str]) -> Asked:
    """The fields that an address names.

    Args:
        columns: those that a condition may be about.

    Raises:
        ValueError: a part that does not fit, by name.
    """
    fields: dict = {}
    for name, value in parse_qsl(query.lstrip("?"), keep_blank_values=True):
        if name in _MANY:
            fields.setdefault(name, []).append(value)
        elif name in Asked._fields:
            fields[name] = value
    for name in ("k", "beams", "seen", "most"):
        if name in fields:
            fields[name] = int(fields[name]) if fields[name].isdecimal() else -1
    if "where" in fields:
        fields["where"] = [_condition(text, columns) for text in fields["where"]]
    asked = Asked(**fields)
    fits = {
        "ask": asked.ask in _BY_TASK,
        "k": 1 <= asked.k <= MOST_ITEMS,
        "beams": asked.beams in dict(BEAMS).values(),
        "seen": asked.seen in (0, 1),
        "most": asked.most >= 1,
        "each": asked.each in ("", *columns),
        "kind": len(asked.kind) in (0, len(asked.item)),
    }
    for name in (name for name, good in fits.items() if not good):
        raise ValueError(f"The address of this page says {name}={fields[name]}, which this page cannot show.")
    return asked


def _condition(text: str, columns: Mapping[str, str]) -> list:
    try:
        column, operator, value = json.loads(text)
        if column in columns and operator in OPERATORS:
            return [column, operator, value]
    except (ValueError, TypeError):
        pass
    raise ValueError(f"The address of this page says where={text}, which is no condition on this catalogue.")

"""Random hostile requests to the whole front on a tiny real model, in a process that may die of them.

    python tests/serving/hostile_requests.py <model folder> <scratch folder> <seed> <requests>

Prints how often each status came, as JSON. The body that is sent lies in `<scratch folder>/body` meanwhile, so that it
can be sent again where the process dies.
"""

import json
import random
import sys
from collections import Counter
from pathlib import Path

from http_fixtures import serving

ITEMS = [f"item-{number:02d}" for number in range(24)]
COLUMNS = ["price", "brand", "title", "categories", "item_id", "nothing", ""]
TEXTS = [
    "",
    "\0",
    "\ud800",
    "{code.__class__}",
    "%s%n",
    '\n{"status": 200}',
    "<a_1><b_1>",
    "<|assistant|>",
    "e\u0301" * 9,
]
NUMBERS = [0, -1, 1, 1.5, -0.0, 1e308, 2**31, 2**63 - 1, 2**63, 10**400, True, None]
DEEP = "@deep@"  # stands for lists or mappings in each other, which `json.dumps` cannot write


def many(value, count: int) -> list:
    """A list of it, of some megabytes at most."""
    text = json.dumps(value)
    return [value] * max(1, min(count, 2**21 // (len(text) + 10**5 * text.count(DEEP))))


class Hostile:
    def __init__(self, seed: int):
        self.random = random.Random(seed)

    def text(self) -> str:
        one = self.random
        return one.choice([one.choice(TEXTS), one.choice(ITEMS), one.choice(TEXTS) * one.choice([10, 10**4, 10**5])])

    def value(self):
        one = self.random
        long = many(one.choice([one.choice(TEXTS), one.choice(NUMBERS)]), one.choice([2, 100, 10**4, 10**5]))
        keys = {f"{key}": 1 for key in range(one.choice([1, 100, 10**4]))}
        return one.choice([self.text(), one.choice(NUMBERS), long, keys, DEEP, [[]], {}])

    def condition(self) -> list:
        one = self.random
        operator = one.choice(["=", "==", "!=", "<", ">", "<=", ">=", "in", "not in", "like"])
        value = one.choice([self.value(), 3.0, "brand 1", ["brand 1", "brand 2"], [1, 2.5, 3]])
        return [one.choice(COLUMNS), operator, value]

    def filter(self) -> dict:
        one = self.random
        few, many = one.choice([1, 2, 16, 64]), one.choice([1, 65, 5000, 15_000])
        plain = [["price", one.choice(["<", ">=", "!="]), 7.5]]
        fields = {
            "exclude_seen": True,
            "allow": one.choice([ITEMS, ITEMS * 400, [self.text()], self.value()]),
            "deny": one.choice([ITEMS[3:], ITEMS * 1000, self.value()]),
            "where": one.choice([plain * many, [self.condition() for _ in range(few)], plain * 64, self.value()]),
            "at_most": one.choice([{one.choice(COLUMNS): one.choice([1, 2, 0])}, self.value()]),
        }
        return {name: fields[name] for name in one.sample([*fields], one.randint(1, 3))}

    def request(self) -> dict:
        one = self.random
        body = one.choice(
            [
                {"history": one.choice([ITEMS[:3], ITEMS * 40, ITEMS * 50, self.value()])},
                {"history": ["red gadget number 3", self.text()], "history_format": "title"},
                {"history": ["<a_1><b_0><c_0>", self.text()], "history_format": "semid"},
                {"messages": many({"role": "user", "content": self.text()}, one.choice([1, 3, 300]))},
                {"task": "like_but", "about": "item-05", "wish": one.choice(["cheaper", self.text()])},
                {"task": "query_to_item", "query": self.text()},
            ]
        )
        more = {
            "filter": self.filter(),
            "k": one.choice([1, 24, 200, 10**400, one.choice(NUMBERS)]),
            "num_beams": one.choice([1, 50, 10**400, one.choice(NUMBERS)]),
            "return_prompt": True,
            "domain": self.text(),
            one.choice(["history", "k", "extra", "\ud800"]): self.value(),
        }
        return body | {name: more[name] for name in one.sample([*more], one.randint(0, 3))}

    def change(self) -> dict:
        one = self.random
        put = {
            "item_id": one.choice([one.choice(ITEMS), self.text()]),
            one.choice(["title", "price", "x"]): self.value(),
        }
        return {"put": one.choice([[put], many(put, 300), self.value()]), "remove": one.choice([[], [self.text()]])}

    def call(self) -> tuple[str, bytes]:
        """A path and a body."""
        one = self.random
        path, body = one.choice(
            [
                ("recommend", self.request()),
                ("recommend/batch", {"requests": [self.request() for _ in range(one.choice([1, 3]))]}),
                ("catalogue", self.change()),
                ("catalogue/rollback", {"version": self.value()}),
            ]
        )
        depth, (left, right) = one.choice([10, 900, 20_000]), one.choice([("[", "]"), ('{"a":', "}")])
        text = json.dumps(body).replace(json.dumps(DEEP), left * depth + "1" + right * depth)
        return f"/v1/{path}", text.encode()


def main(folder: str, scratch: str, seed: str, requests: str) -> None:
    hostile, answered = Hostile(int(seed)), Counter()
    with serving(Path(folder), Path(scratch) / "log") as (_, client):
        for _ in range(int(requests)):
            path, content = hostile.call()
            Path(scratch, "body").write_bytes(path.encode() + b"\n" + content)
            answer = client.post(path, content=content, headers={"content-type": "application/json"})
            assert answer.status_code < 500, answer.text
            answered[answer.status_code] += 1
        known = client.post("/v1/recommend", json={"history": ["item-03"], "k": 5})
        assert known.status_code == 200 and len(known.json()["items"]) == 5, known.text
    sys.stdout.write(json.dumps(answered))


if __name__ == "__main__":
    main(*sys.argv[1:])

"""Wishes that can be checked: what a user asks for, the items that satisfy it, and how it is said.

A wish is a string of conditions joined by ` & `. Some compare with an item X: `cheaper`, `pricier` and `other_brand`
stay in X's narrowest category, `same_brand` leaves it, `with=word` stays in it and wants a word in the title. Others
stand alone: `category=`, `brand=`, `below=` (a price), `domain=`. The phrases stand in `prompts/phrases/wishes.yaml`.

One in five combinations of X's category and the wish's kinds is held out of training (`Wishes.held_out`), so that
steering is measured on combinations that no row has shown.
"""

import random
import re
import zlib
from collections.abc import Iterator
from functools import lru_cache, partial, reduce

import numpy as np
import pyarrow as pa
import yaml

from llmrec.arguments import did_you_mean
from llmrec.instructions.item_words import DOLLAR, leaf_category, with_currency
from llmrec.instructions.prompts import phrase, prompts_folder

RELATIVE = ("cheaper", "pricier", "other_brand", "same_brand", "cheaper & other_brand")
MOST_WORDS = 3  # of a title that `with=` wishes are made of
_AND = re.compile(r" & (?=(?:cheaper|pricier|other_brand|same_brand)(?: & |$)|(?:with|category|brand|below|domain)=)")


@lru_cache
def phrases() -> dict[str, dict[str, list[str]]]:
    return yaml.safe_load((prompts_folder() / "phrases" / "wishes.yaml").read_text(encoding="utf-8"))


def say(wish: str, number: int = 0, unseen: bool = False, currency: str = DOLLAR) -> str:
    """A wish in words; `number` picks the phrases, `unseen` those that no training row uses.

    What is no condition is said as it is: users wish in their own words.
    """
    said = []
    for place, condition in enumerate(conditions_of(wish)):
        kind, _, value = condition.partition("=")
        if kind not in phrases():
            said.append(condition)
            continue
        options = phrases()[kind]["unseen" if unseen else "templates"]
        value = with_currency(value, currency) if kind == "below" else value
        said.append(options[(number >> 4 * place) % len(options)].format(value=value))
    return phrase("and").join(said)


def kinds_of(wish: str) -> str:
    """The wish without its values: `with=red & cheaper` → `with & cheaper`."""
    return " & ".join(condition.partition("=")[0] for condition in conditions_of(wish))


def conditions_of(wish: str) -> list[str]:
    """`"category=Health & Care & cheaper"` → `["category=Health & Care", "cheaper"]`: values may hold an ` & `."""
    return _AND.split(wish)


def _rows_by_value(values: np.ndarray) -> dict[str, np.ndarray]:
    rows: dict[str, list[int]] = {}
    for row, value in enumerate(values):
        if value:
            rows.setdefault(value, []).append(row)
    return {value: np.array(members) for value, members in rows.items()}


class Wishes:
    """The attributes of a catalogue as arrays, and what satisfies a wish.

    Items have `item_id`, `title`, and any of `brand`, `categories`, `price`, `domain`; a wish about a column that is
    missing or empty is satisfied by nothing.
    """

    def __init__(self, items: pa.Table):
        def strings(name: str) -> list[str]:
            return [str(v or "") for v in items[name].to_pylist()] if name in items.column_names else [""] * len(items)

        self.ids = items["item_id"].to_pylist()
        self.place = {item: number for number, item in enumerate(self.ids)}
        self.category = np.array([leaf_category(text) for text in strings("categories")], object)
        self.brand, self.domain = (np.array(strings(name), object) for name in ("brand", "domain"))
        self.price = np.full(len(items), np.nan)
        if "price" in items.column_names:
            self.price = np.array([np.nan if p is None else p for p in items["price"].to_pylist()], float)
        self.words = [[w for w in title.replace(",", " ").split() if len(w) > 2] for title in strings("title")]
        self._spoken: dict[str, dict[str, tuple[str, np.ndarray]]] = {}
        self._last: tuple[tuple[str, str | None] | None, set[int]] = None, set()
        self._of_category, self._of_brand = map(_rows_by_value, (self.category, self.brand))

    def satisfying(self, wish: str, about: str | None = None) -> np.ndarray:
        """int64: rows of the items that satisfy a wish, compared with the item `about` where it needs one. Raises
        `ValueError`: an unknown condition, or one that compares without an item."""
        of_conditions = (self._condition(condition, about) for condition in conditions_of(wish))
        rows = reduce(partial(np.intersect1d, assume_unique=True), of_conditions)
        return rows if about is None else rows[rows != self.place[about]]

    def satisfies(self, item: str, wish: str, about: str | None = None) -> bool:
        """Whether an item is one of those; quick where one wish is asked of many items in turn."""
        asked, rows = self._last
        if asked != (wish, about):
            rows = set(self.satisfying(wish, about).tolist())
            self._last = (wish, about), rows
        return self.place[item] in rows

    def _condition(self, condition: str, about: str | None) -> np.ndarray:
        kind, _, value = condition.partition("=")
        nothing = np.zeros(0, np.int64)
        if kind in ("cheaper", "pricier", "other_brand", "same_brand", "with"):
            if about is None:
                raise ValueError(f"wish {condition!r} compares with an item: say which")
            x = self.place[about]
            if kind == "same_brand":
                rows = self._of_brand.get(self.brand[x], nothing)
                return rows[self.category[rows] != self.category[x]]
            rows = self._of_category.get(self.category[x], nothing)
            if kind == "with":
                return self._words_of(self.category[x]).get(value.lower(), ("", nothing))[1]
            if kind == "other_brand":
                return rows[(self.brand[rows] != self.brand[x]) & (self.brand[rows] != "") & (self.brand[x] != "")]
            return rows[self.price[rows] < self.price[x] if kind == "cheaper" else self.price[rows] > self.price[x]]
        if kind == "category":
            return self._of_category.get(value, nothing)
        if kind == "brand":
            return self._of_brand.get(value, nothing)
        if kind == "below":
            return np.flatnonzero(self.price < float(value))
        if kind == "domain":
            return np.flatnonzero(self.domain == value)
        raise ValueError(f"wish {condition!r} is not one of {', '.join(phrases())}{did_you_mean(kind, phrases())}")

    def _words_of(self, category: str) -> dict[str, tuple[str, np.ndarray]]:
        """Lower-case words of the titles in a category → as they are written, and the rows of their items (int64)."""
        if category not in self._spoken:
            rows: dict[str, tuple[str, list[int]]] = {}
            for row in self._of_category.get(category, ()):
                for lower, word in {word.lower(): word for word in self.words[row]}.items():
                    if "&" not in word and "=" not in word:
                        rows.setdefault(lower, (word, []))[1].append(row)
            self._spoken[category] = {lower: (word, np.array(members)) for lower, (word, members) in rows.items()}
        return self._spoken[category]

    def relative_to(self, item: str) -> Iterator[tuple[str, np.ndarray]]:
        """The wishes that compare with an item and that something satisfies, with what does."""
        of_item = {word.lower() for word in self.words[self.place[item]]}
        words = self._words_of(self.category[self.place[item]])
        some = random.Random(item).sample(list(words), min(len(words), MOST_WORDS + len(of_item)))
        some = [words[word][0] for word in some if word not in of_item][:MOST_WORDS]
        for wish in (*RELATIVE, *(f"with={word}" for word in some)):
            rows = self.satisfying(wish, item)
            if len(rows):
                yield wish, rows

    def describing(self, item: str) -> list[str]:
        """The wishes that stand alone and that an item satisfies."""
        x = self.place[item]
        category, brand, price = self.category[x], self.brand[x], self.price[x]
        wishes = [f"{kind}={value}" for kind, value in (("category", category), ("brand", brand)) if value]
        if category and brand:
            wishes.append(f"category={category} & brand={brand}")
        if category and price == price:
            ceiling = float(f"{price * 1.25:.1g}")
            wishes.append(f"category={category} & below={max(ceiling, np.floor(price) + 1):g}")
        return wishes

    def held_out(self, wish: str, about: str | None = None) -> bool:
        """Whether training leaves out a combination: category and kinds, or the values of a wish that stands alone."""
        what = wish if about is None else f"{self.category[self.place[about]]}|{kinds_of(wish)}"
        return (about is not None or len(conditions_of(wish)) > 1) and zlib.crc32(what.encode()) % 5 == 0

"""Words about items from their columns: categories, prices, short descriptions; and which of them a text names."""

import re
from collections import Counter
from collections.abc import Iterable
from functools import lru_cache

import pyarrow as pa

DOLLAR = "$"  # of prices without a currency


@lru_cache(maxsize=100_000)
def short_text(text: str | None, words: int = 48) -> str:
    """The first words of a text on one line, at most 8 characters each on average: some languages write no spaces."""
    return " ".join((text or "").split()[:words])[: 8 * words].rstrip()


@lru_cache(maxsize=100_000)
def category_path(categories: str | None) -> tuple[str, ...]:
    """`"A > B > C | D > E"` → `("A", "B", "C")`: the first path, widest category first."""
    first = (categories or "").split(" | ")[0]
    return tuple(part.strip() for part in first.split(" > ") if part.strip())


def leaf_category(categories: str | None) -> str:
    """The narrowest category of the first path; empty where there is none."""
    path = category_path(categories)
    return path[-1] if path else ""


def currency_of(items: pa.Table) -> str:
    """The currency of a catalogue's prices: the first in the column `currency`, `$` where there is none."""
    column = items["currency"].unique().to_pylist() if "currency" in items.column_names else []
    return next((str(value).strip() for value in column if value and str(value).strip()), DOLLAR)


def with_currency(amount: str, currency: str = DOLLAR) -> str:
    """`$12.50` and `€12.50`, but `12.50 EUR`: a sign stands before the amount, a word behind it."""
    return f"{amount} {currency}" if currency[-1].isalpha() else f"{currency}{amount}"


def price_text(price: float | None, currency: str = DOLLAR) -> str:
    """`12.5` → `$12.50`; empty for none."""
    return "" if price is None or price != price else with_currency(f"{price:,.2f}", currency)


def most_common(values: Iterable[str], count: int) -> list[str]:
    """The most frequent values that are not empty, the earlier one first among equals."""
    return [value for value, _ in Counter(value for value in values if value).most_common(count)]


def same_text(text: str, reference: str) -> bool:
    """Whether a text is the reference, whatever the case and white space."""
    return text.lower().split() == reference.lower().split()


def token_f1(text: str, reference: str) -> float:
    """F1 over the words of both as bags, whatever the case and punctuation (as SQuAD, arXiv 1606.05250, has it)."""
    words, wanted = (Counter(re.findall(r"\w+", one.lower())) for one in (text, reference))
    common = sum((words & wanted).values())
    return 2 * common / (sum(words.values()) + sum(wanted.values())) if common else 0.0


def says(text: str, name: str) -> bool:
    """Whether a text names something (a title, a Semantic ID) as it stands, whatever the case and white space."""
    plain, whole = " ".join(name.lower().split()), " ".join(text.lower().split())
    # Most texts do not hold the name at all, and a pattern for every name costs more than that look.
    return bool(plain) and plain in whole and re.search(rf"(?<!\w){re.escape(plain)}(?!\w)", whole) is not None


class Attributes:
    """The brands, categories (`"A > B | C"`) and prices of a catalogue, where the items have these columns.

    Brands and categories (of every width) are found as whole words in their own case, the longest first: in "Acme
    Kids Bikes" the category "Kids Bikes" is named and the category "Bikes" is not. Every price ($12.50, in the
    catalogue's currency) in a text counts, known or not.
    """

    def __init__(self, items: pa.Table):
        brands, categories, prices = (
            items[name].to_pylist() if name in items.column_names else [None] * items.num_rows
            for name in ("brand", "categories", "price")
        )
        currency = currency_of(items)
        amount = r"\d[\d,]*(?:\.\d+)?"
        self._price = re.compile(re.escape(with_currency("0", currency)).replace("0", amount))
        self.of_item: dict[str, set[str]] = {}
        self.names: set[str] = set()
        for item, brand, paths, price in zip(items["item_id"].to_pylist(), brands, categories, prices):
            names = {_plain(name) for name in (str(brand or ""), *re.split(r" > | \| ", paths or ""))} - {""}
            self.names |= names
            self.of_item[item] = names | ({price_text(price, currency)} - {""})
        self._longest = max(map(len, self.names), default=0)

    def named(self, text: str) -> set[str]:
        text = " ".join(text.split())
        named = set(self._price.findall(text))
        ends = [match.end() for match in re.finditer(r"\w(?!\w)", text)]
        passed = 0
        for start in (match.start() for match in re.finditer(r"(?<!\w)\w", text)):
            if start < passed:
                continue
            for end in reversed([end for end in ends if start < end <= start + self._longest]):
                if text[start:end] in self.names:
                    named.add(text[start:end])
                    passed = end
                    break
        return named


def _plain(name: str) -> str:
    return re.sub(r"^\W+|\W+$", "", " ".join(name.split()))

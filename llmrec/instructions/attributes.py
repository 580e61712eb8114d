"""Which brands, categories and prices a text about an item names, and which of them are the item's own."""

import re

import pyarrow as pa

from llmrec.instructions.item_words import price_text

_PRICE = re.compile(r"\$\d[\d,]*(?:\.\d+)?")


class Attributes:
    """The brands, categories and prices of a catalogue.

    Brands and categories (of every width) are found as whole words in their own case, the longest first: in "Acme
    Kids Bikes" the category "Kids Bikes" is named and the category "Bikes" is not. Every price ($12.50) in a text
    counts, known or not.

    Args:
        items (`pa.Table`): `item_id`, and any of `brand`, `categories` (`"A > B | C"`) and `price`.
    """

    def __init__(self, items: pa.Table):
        brands, categories, prices = (
            items[name].to_pylist() if name in items.column_names else [None] * items.num_rows
            for name in ("brand", "categories", "price")
        )
        self.of_item: dict[str, set[str]] = {}
        self.names: set[str] = set()
        for item, brand, paths, price in zip(items["item_id"].to_pylist(), brands, categories, prices):
            names = {_plain(name) for name in (str(brand or ""), *re.split(r" > | \| ", paths or ""))} - {""}
            self.names |= names
            self.of_item[item] = names | ({price_text(price)} - {""})
        self._longest = max(map(len, self.names), default=0)

    def named(self, text: str) -> set[str]:
        """What a text names."""
        text = " ".join(text.split())
        named = set(_PRICE.findall(text))
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
    """A name as it can stand between word boundaries: no white space or punctuation around it."""
    return re.sub(r"^\W+|\W+$", "", " ".join(name.split()))

"""What tasks may say about items: Semantic IDs, columns of the items table, and texts that were made of them."""

import copy
import secrets
import zlib
from collections.abc import Sequence
from functools import cached_property
from typing import NamedTuple, TypeVar

import pyarrow as pa

from llmrec.catalogue.semids import SemIDIndex
from llmrec.catalogue.views import view_rows as rows_of_view
from llmrec.instructions.item_words import Attributes, currency_of, leaf_category, price_text, short_text
from llmrec.instructions.texts import Texts, leaks
from llmrec.instructions.wishes import Wishes
from llmrec.item_tokenizers.contextual.sequence_tokenizer import SequenceTokenizer

T = TypeVar("T")


def choose(options: Sequence[T], row: dict, salt: str = "") -> T:
    """One of several ways to say something: by the row's `variation`, the first where it has none (evaluation)."""
    if row.get("variation") is None:
        return options[0]
    return options[zlib.crc32(f"{salt}{row['variation']}".encode()) % len(options)]


class ItemFacts(NamedTuple):
    """Narrowest category, brand and price of an item in words; empty where they are not known."""

    category: str
    brand: str
    price: str


class Catalogue:
    """Ids → Semantic IDs, titles and other columns.

    Where an item's tokens depend on what stands before it, a `sequence_tokenizer` writes them. Without `texts` that
    were made before tasks compose some from the columns.

    Attributes:
        mark (`str`): stands before and after each Semantic ID that tasks are given; empty but for `marked`.

    Raises:
        ValueError: a query or an intention among the texts that gives its item away, or behaviours that an item
            tokenizer cannot write.
    """

    def __init__(
        self,
        index: SemIDIndex,
        items: pa.Table,
        sequence_tokenizer: SequenceTokenizer | None = None,
        texts: Texts | None = None,
    ):
        if sequence_tokenizer is not None and index.behaviours:
            raise ValueError(f"item tokenizer {sequence_tokenizer.name!r} cannot write behaviours between items")
        self.mark = ""
        self.index = index
        self.items = items
        self.sequence_tokenizer = sequence_tokenizer
        self.texts = texts
        self._columns: dict[str, dict] = {}
        self.titles = self.column("title")
        self._semids: dict[str, str] = {}
        self._views: dict[str, Catalogue] = {}
        self.composed: dict[tuple[str, str], list[str]] = {}  # what tasks made up about an item, by kind and item
        if texts is not None:
            texts.check_leaks(index, self.leaks)

    def column(self, name: str) -> dict[str, object]:
        """Item id → value of a column of the items table; empty where the table has no such column."""
        if name not in self._columns:
            values = self.items[name].to_pylist() if name in self.items.column_names else ()
            self._columns[name] = dict(zip(self.items["item_id"].to_pylist(), values))
        return self._columns[name]

    def title(self, item: str) -> str:
        """Empty for an item without one."""
        return self.titles.get(item) or ""

    def facts(self, item: str) -> ItemFacts:
        category, brand, price = (self.column(name).get(item) for name in ("categories", "brand", "price"))
        return ItemFacts(leaf_category(category), str(brand or ""), self.price_text(price))

    @cached_property
    def currency(self) -> str:
        return currency_of(self.items)

    def price_text(self, price: float | None) -> str:
        """A price in the catalogue's currency; empty for none."""
        return price_text(price, self.currency)

    @cached_property
    def text_lengths(self) -> dict[str, int]:
        """Item id → characters that tasks may quote of its title and description."""
        descriptions = self.column("description")
        return {
            item: len(title or "") + len(short_text(descriptions.get(item))) for item, title in self.titles.items()
        }

    @cached_property
    def wishes(self) -> Wishes:
        return Wishes(self.items)

    @cached_property
    def attributes(self) -> Attributes:
        return Attributes(self.items)

    def text(self, kind: str, item_id: str, row: dict) -> str | None:
        """A text that was made before of a row's user; one of several by its variation, `None` where there is none."""
        made = self.texts.get(kind, row.get("user_id") or "", item_id) if self.texts is not None else []
        return choose(made, row, kind) if made else None

    def leaks(self, kind: str, text: str, item_id: str) -> bool:
        return leaks(kind, text, self._semid(item_id), self.title(item_id))

    def marked(self) -> "Catalogue":
        """The same with marks around its Semantic IDs, which no text that somebody wrote can have."""
        other = copy.copy(self)
        other.mark, other._views = f"\ue000{secrets.token_hex(8)}\ue000", {}
        return other

    def view(self, name: str) -> "Catalogue":
        """The same items in the Semantic IDs of one view; `""` is the primary one. Unknown: `ValueError`."""
        if not name:
            return self
        if name not in self._views:
            other = self._views[name] = copy.copy(self)
            other.index, other._semids = self.index.rows_at(rows_of_view(self.index, name)), {}
        return self._views[name]

    def ours(self, tokens: str) -> str:
        """Tokens of Semantic IDs or behaviours between marks, if this catalogue has marks."""
        return f"{self.mark}{tokens}{self.mark}"

    def behaviour_token(self, behaviour: str) -> str:
        return self.ours(self.index.behaviour_token(behaviour))

    def semid(self, item_id: str) -> str:
        return self.ours(self._semid(item_id))

    def _semid(self, item_id: str) -> str:
        if item_id not in self._semids:
            self._semids[item_id] = self.index.encode(item_id)
        return self._semids[item_id]

    def semids(
        self,
        item_ids: Sequence[str],
        separator: str,
        behaviours: Sequence[str] | None = None,
        variation: int | None = None,
    ) -> str:
        """Items in order, each after the token of its behaviour where the index has tokens for them.

        `variation` is the seed of a `SequenceTokenizer`, which may write a history in several ways.
        """
        if self.sequence_tokenizer is not None:
            return "".join(map(self.ours, self.sequence_tokenizer.encode_history([item_ids], variation)[0]))
        if behaviours is None or not self.index.behaviours:
            return self.ours(separator.join(map(self._semid, item_ids)))
        pairs = zip(behaviours, item_ids, strict=True)
        return self.ours(separator.join(self.index.behaviour_token(kind) + self._semid(item) for kind, item in pairs))

    def history(self, row: dict, separator: str) -> str:
        return self.semids(row["history"], separator, row.get("behaviours"), row.get("variation"))

    def following(self, row: dict, separator: str) -> str:
        """The targets of a row, as they read after its history."""
        targets = row["targets"]
        if self.sequence_tokenizer is None:
            return self.semids(targets, separator, row.get("target_behaviours"))
        before = [[*row["history"], *targets[:place]] for place in range(len(targets))]
        tokens = self.sequence_tokenizer.encode_target(before, targets, row.get("variation")) if targets else []
        return "".join(self.ours(token) for target in tokens for token in target)

    def target(self, row: dict, separator: str) -> str:
        """The first target of a row, as it reads after its history."""
        return self.following({**row, "targets": row["targets"][:1]}, separator)

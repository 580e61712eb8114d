"""Semantic IDs for items that come while serving: those they had, those they bring, or the item tokenizer's."""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa

from llmrec.catalogue.lifecycle import check_updatable, taken_codes
from llmrec.catalogue.semids import SemIDIndex
from llmrec.features import ItemFeatures
from llmrec.item_tokenizers import ItemTokenizer, add_items, load_item_tokenizer
from llmrec.models.folder import ITEM_TOKENIZER
from llmrec.serving.living_catalogue.changes import Put, table_of
from llmrec.serving.writers import give_writer


class NewSemIDs:
    """Gives new items the codes of a model folder's Semantic IDs.

    Tokenizer and encoder are read when needed: for items that bring no Semantic ID.
    """

    def __init__(self, folder: Path):
        self.folder = folder

    @cached_property
    def tokenizer(self) -> ItemTokenizer:
        return give_writer(load_item_tokenizer(self.folder / ITEM_TOKENIZER))

    @cached_property
    def features(self) -> ItemFeatures:
        return ItemFeatures.from_pretrained(self.folder / ITEM_TOKENIZER / "features")

    def __call__(self, index: SemIDIndex, puts: Sequence[Put], schema: pa.Schema) -> dict[str, list[list[int]]]:
        """The codes of new items, one list for each of an item's Semantic IDs; `index` stays as it is.

        Raises:
            ValueError: naming the item: a Semantic ID that is no row of the model's tokens, or that another item has
                or had; features that do not fit; a folder that cannot give the item a Semantic ID.
        """
        for put in puts:
            if put.embedding is not None:
                _check_embedding(put)
        reserved = index.reserved
        codes = {put.item_id: reserved[put.item_id] for put in puts if put.item_id in reserved}
        for put in puts:
            if put.item_id in codes and put.semid is not None:
                first = enumerate(codes[put.item_id][0])
                tokens = [index.token(level, code) for level, code in first if code >= 0]
                if list(put.semid) != tokens:
                    raise ValueError(f"item {put.item_id!r} had the semid {tokens} and gets it back: leave semid out")
        if brought := [put for put in puts if put.semid is not None and put.item_id not in codes]:
            codes |= self._brought(index, brought)
        if rest := [put for put in puts if put.item_id not in codes]:
            # To whoever makes codes, those in use and those reserved are alike: taken. An index without items is cheap
            # to continue.
            taken = [
                *index.codes.tolist(),
                *(row for item, rows in codes.items() if item not in reserved for row in rows),
            ]
            info = {"reserved": {**reserved, "": taken}}
            codes |= self._made(index.replaced([], index.codes[:0], info), rest, schema)
        return codes

    def _brought(self, index: SemIDIndex, puts: Sequence[Put]) -> dict[str, list[list[int]]]:
        if index.views:
            raise ValueError(
                f"item {puts[0].item_id!r}: the model's items have a Semantic ID in each of several views, so none "
                "can be brought: update the views and join them again (docs/lifecycle.md)"
            )
        rows = [_codes_of(index, put) for put in puts]
        news = index.replaced([put.item_id for put in puts], np.array(rows))
        before = [item for item, semids in index.reserved.items() for _ in semids]
        taken = index.replaced([*index.item_ids, *before], taken_codes(index))
        if index.has_given_tokens:  # levels may share tokens, so that other codes read the same
            suspects = range(len(taken))
        else:
            suspects = np.flatnonzero(np.isin(taken.codes, news.codes).all(1))
        owners = {taken.semid_of_row(row): taken.item_ids[row] for row in suspects}
        for row, item in enumerate(news.item_ids):
            owner = owners.setdefault(news.semid_of_row(row), item)
            if owner != item:
                raise ValueError(f"item {item!r}: item {owner!r} has or had its semid; give it a free one")
        return {put.item_id: [row] for put, row in zip(puts, rows)}

    def _made(self, index: SemIDIndex, puts: Sequence[Put], schema: pa.Schema) -> dict[str, list[list[int]]]:
        ids = [put.item_id for put in puts]
        try:
            check_updatable(index, self.folder, adding=True)
        except ValueError as error:
            raise ValueError(f"item {ids[0]!r} needs a semid of its own: {error}") from error
        try:
            items = table_of(puts, schema)
            later = add_items(index, self.tokenizer, self._features(puts, items), ids, items)
        except ValueError as error:
            others = f" (or one of the {len(ids) - 1} items beside it)" if len(ids) > 1 else ""
            raise ValueError(f"item {ids[0]!r}{others} gets no Semantic ID: {error}") from error
        return {item: [later.codes[later.row(item)].tolist()] for item in ids}

    def _features(self, puts: Sequence[Put], items: pa.Table) -> np.ndarray:
        without = [row for row, put in enumerate(puts) if put.embedding is None]
        if without and not (self.folder / ITEM_TOKENIZER / "features").is_dir():
            raise ValueError(
                f"{self.folder} has no encoder ({ITEM_TOKENIZER}/features): give item {puts[without[0]].item_id!r} "
                "an embedding or a semid"
            )
        made = dict(zip(without, self.features.encode(items.take(pa.array(without))) if without else ()))
        rows = [made[row] if row in made else put.embedding for row, put in enumerate(puts)]
        width = len(made[without[0]]) if made else len(rows[0])
        for put, row in zip(puts, rows):
            if len(row) != width:
                raise ValueError(f"item {put.item_id!r}: its embedding holds {len(row)} numbers, not {width}")
        return np.asarray(rows, np.float32)


def _codes_of(index: SemIDIndex, put: Put) -> list[int]:
    """The codes of a list of tokens: every token is of the first level after the one before that has it."""
    codes, level = [-1] * index.num_levels, 0
    for token in put.semid:
        while level < index.num_levels and token not in index.level_tokens[level]:
            level += 1
        if level == index.num_levels:
            raise ValueError(
                f"item {put.item_id!r}: {token!r} of its semid is no token of a level after the ones before it; a "
                f"semid reads like {index.tokens_of_row(0)}"
            )
        codes[level] = index.level_tokens[level].index(token)
        level += 1
    return codes


def _check_embedding(put: Put) -> None:
    values = put.embedding.tolist() if isinstance(put.embedding, np.ndarray) else put.embedding
    largest = float(np.finfo(np.float32).max)
    if not (isinstance(values, list | tuple) and values) or not all(
        isinstance(value, int | float) and -largest <= value <= largest for value in values
    ):
        raise ValueError(f"item {put.item_id!r}: embedding is {values!r:.80}, it should be a list of finite numbers")

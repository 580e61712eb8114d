"""`SequenceTokenizer`: item tokenizers whose tokens for an item depend on what the user did before.

Here item to SemID is no function, so the contract encodes histories and targets instead of items. What comes out is
still known beforehand: `index()` lists every SemID that a target can have, several rows an item, for constrained
decoding and for everything else that reads a `SemIDIndex`.
"""

import zlib
from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from llmrec.catalogue.semids import SemIDIndex
from llmrec.data.rows import lists_to_rows
from llmrec.item_tokenizers.protocol import BaseTokenizer, Traits, tokenizer_fingerprint

Histories = Sequence[Sequence[str]]
VARIATIONS = 5  # seeds of a history that are asked where nothing else is said, as in ActionPiece's and Pctx's code


class SequenceTokenizer(BaseTokenizer):
    """Histories and targets to tokens.

    `fit` learns from the items in training sequences and gives SemIDs to the whole catalogue, which `features` and
    `items` hold here. `traits.contextual` is true.
    """

    traits = Traits(
        fixed_length=False,
        contextual=True,
        decodes_to_vector=False,
        nearest=False,
        needs=("features", "items", "train"),
    )
    learned = ("item_ids",)

    def encode_history(self, histories: Histories, seed: int | None = None) -> list[list[str]]:
        """The tokens of every history (item ids, oldest first), one flat list each; an empty one has none.

        A seed varies the tokens at random: training shows every row in another way, and a recommender asks in several
        and fuses what it finds. The same seed and history give the same tokens, whatever stands beside it. Raises
        `ValueError` where not fitted, or for an item that is not in the catalogue.
        """
        raise NotImplementedError

    def encode_target(self, histories: Histories, targets: Sequence[str], seed: int | None = None) -> list[list[str]]:
        """The tokens of the item that follows each history: always one of the item's SemIDs in `index()`. `ValueError`
        as `encode_history`, or for a different number of targets and histories."""
        raise NotImplementedError

    def index(self) -> SemIDIndex:
        """Every SemID of every item of the catalogue, the primary one first; raises `ValueError` before `fit`."""
        raise NotImplementedError

    def index_info(self) -> dict:
        made_by = {"name": self.name, **self.config}
        return {"item_tokenizer": made_by, "item_tokenizer_fingerprint": tokenizer_fingerprint(self)}

    def item_ids_of(self, features: np.ndarray, items: pa.Table) -> list[str]:
        """The catalogue's item ids; raises `ValueError` unless there is one feature row for each."""
        if len(features) != items.num_rows:
            raise ValueError(f"features hold {len(features)} rows for a catalogue of {items.num_rows} items")
        return items["item_id"].cast(pa.string()).to_pylist()

    def rows_of(self, histories: Histories) -> tuple[np.ndarray, np.ndarray]:
        """The items of histories as rows of the catalogue, and offsets; see `lists_to_rows`."""
        self.check_fitted()
        return lists_to_rows(pa.array(histories, pa.list_(pa.string())), self.item_ids)

    @staticmethod
    def generator_for(seed: int, item_ids: Sequence[str]) -> np.random.Generator:
        """Random numbers that depend on a seed and a history alone, not on its place in a batch."""
        return np.random.default_rng([seed, zlib.crc32("\0".join(item_ids).encode())])

    @staticmethod
    def with_targets(histories: Histories, targets: Sequence[str]) -> list[list[str]]:
        """Every history with its target at the end; raises `ValueError` where their numbers differ."""
        if len(histories) != len(targets):
            raise ValueError(f"{len(histories)} histories for {len(targets)} targets")
        return [[*history, target] for history, target in zip(histories, targets)]

"""`ItemTokenizer`: what turns items into codes. Everything after it sees only codes.

`Traits` say what a tokenizer can do, so that decoders and policies refuse the impossible instead of failing late.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Protocol, Self

import numpy as np
import pyarrow as pa

from llmrec.files import fingerprint, load_state, save_state


class Traits(NamedTuple):
    """What a tokenizer is.

    Attributes:
        ordered (`bool`): the levels have an order (coarse to fine), so a prefix means something.
        fixed_length (`bool`): every item gets a code at every level.
        contextual (`bool`): the tokens of an item depend on the user's history (see `SequenceTokenizer`).
        adds_tokens (`bool`): codes are new tokens of the LLM; otherwise they are words it knows.
        decodes_to_vector (`bool`): `codebooks` holds a vector for every code, and `last_level_costs` exists.
        nearest (`bool`): an item's last code is the nearest one; balanced assignments are not.
        needs (`tuple` of `str`): what `fit` looks at, of "features", "items" (the catalogue's columns) and "train"
            (training sequences).
    """

    ordered: bool = True
    fixed_length: bool = True
    contextual: bool = False
    adds_tokens: bool = True
    decodes_to_vector: bool = True
    nearest: bool = True
    needs: tuple[str, ...] = ("features",)


class ItemTokenizer(Protocol):
    """Items to codes.

    Attributes:
        name (`str`): its key in `TOKENIZERS`, recorded in `config.json`.
        traits (`Traits`).
        config (`dict`): the constructor's arguments, plain JSON.
        codebook_sizes (`tuple[int, ...]`, length L): codes per level; where they depend on the data, known after
            `fit`.
        codebooks (list of L `np.ndarray`, float32, `[K_l, d]`): the vector of every code; empty before `fit` and
            where `decodes_to_vector` is false. They initialise the LLM's new embeddings.
        level_tokens (list of L lists of `str`, or `None`): the strings that codes stand for, where the index's token
            pattern does not name them: words, or pieces that several levels share.
    """

    name: str
    traits: Traits
    config: dict
    codebook_sizes: tuple[int, ...]
    codebooks: list[np.ndarray]
    level_tokens: list[list[str]] | None

    def fit(
        self, features: np.ndarray, seed: int = 0, items: pa.Table | None = None, train: pa.Table | None = None
    ) -> Self:
        """Learns from the items of the training split; equal input and seed give an equal tokenizer.

        Args:
            features (`np.ndarray`, float32, `[N, D]`).
            items (`pa.Table`, *optional*): the same N items' columns, `item_id` among them.
            train (`pa.Table`, *optional*): training sequences, `item_ids: list<string>` (`PreparedData.train`).

        Raises:
            ValueError: NaN or inf (names the row), fewer distinct items than codes in a level, or something in
                `traits.needs` is missing.
        """
        ...

    def encode(self, features: np.ndarray, items: pa.Table | None = None) -> np.ndarray:
        """Codes of any items, int32 `[N, L]`; -1 where an item has no code at a level.

        Items that were fitted get the codes they had then. A row's codes do not depend on the rows beside it.

        Raises:
            ValueError: not fitted, NaN or inf, or another D than at `fit`.
        """
        ...

    def last_level_costs(self, features: np.ndarray, codes: np.ndarray) -> np.ndarray:
        """float32 `[N, K_L]`: squared distance of each item's last residual (after codes `[:, :-1]`) to every
        code of the last level, where `decodes_to_vector`. Collision policies find the next best code with it."""
        ...

    def state(self) -> tuple[dict, dict[str, np.ndarray]]:
        """Everything that `fit` learned: plain JSON values, and arrays. Raises `ValueError` before `fit`."""
        ...

    def restore(self, values: dict, arrays: dict[str, np.ndarray]) -> None:
        """The inverse of `state`."""
        ...

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes `config.json` and `model.safetensors`; the state survives exactly."""
        ...

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> Self:
        """Reads a folder written by `save_pretrained`."""
        ...


class Saved:
    """`save_pretrained` and `from_pretrained` from `name`, `config`, `state` and `restore`."""

    def save_pretrained(self, folder: str | Path) -> None:
        values, arrays = self.state()
        save_state(folder, {"name": self.name, "config": self.config, "state": values}, arrays)

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> Self:
        saved, arrays = load_state(folder)
        tokenizer = cls(**saved["config"])
        tokenizer.restore(saved["state"], arrays)
        return tokenizer


def not_fitted() -> ValueError:
    return ValueError("this item tokenizer is not fitted: call fit(features) first")


def check_sizes(codebook_sizes: Sequence[int]) -> tuple[int, ...]:
    """Codebook sizes as a tuple; raises `ValueError` unless they are one or more positive numbers."""
    if not isinstance(codebook_sizes, Sequence | np.ndarray) or isinstance(codebook_sizes, str):
        raise ValueError(f"codebook_sizes={codebook_sizes!r} must be a list with a number for every level: [256, 256]")
    sizes = tuple(int(size) for size in codebook_sizes)
    if not sizes or min(sizes) < 1:
        raise ValueError(f"codebook_sizes={list(codebook_sizes)} must be one or more positive numbers")
    return sizes


def require(tokenizer: ItemTokenizer, **given) -> None:
    """Raises `ValueError` naming the first of `items` and `train` that a tokenizer needs and did not get."""
    for name in tokenizer.traits.needs:
        if name in given and given[name] is None:
            raise ValueError(f"item tokenizer {tokenizer.name!r} needs {name}: pass {name}=... to fit")


def tokenizer_fingerprint(tokenizer: ItemTokenizer) -> str:
    """Changes with the settings and the learned state of a tokenizer."""
    values, arrays = tokenizer.state()
    header = json.dumps([tokenizer.name, tokenizer.config, values], sort_keys=True)
    return fingerprint(header, *(part for name in sorted(arrays) for part in (name, arrays[name].tobytes())))

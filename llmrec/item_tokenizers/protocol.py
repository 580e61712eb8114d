"""`ItemTokenizer`: what turns items into codes. Everything after it sees only codes.

`Traits` say what a tokenizer can do, so that decoders and policies refuse the impossible instead of failing late.
"""

import json
from collections.abc import Sequence
from dataclasses import fields
from functools import cached_property
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np
import pyarrow as pa

from llmrec.arrays import check_features, row_digests
from llmrec.files import fingerprint, load_state, part_of, save_state
from llmrec.item_tokenizers.preprocess import Preprocess


class Traits(NamedTuple):
    """What a tokenizer is.

    Attributes:
        ordered (`bool`): the levels have an order (coarse to fine), so a prefix means something.
        fixed_length (`bool`): every item gets a code at every level.
        contextual (`bool`): the tokens of an item depend on the user's history (see `SequenceTokenizer`).
        adds_tokens (`bool`): codes are new tokens of the LLM; otherwise they are words it knows.
        decodes_to_vector (`bool`): the vectors of an item's codes (`codebooks`) make its own, and `last_level_costs`
            exists.
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


class Remembered:
    """Codes (int32 `[M, L]`) of fitted items, found again by `row_digests` of their feature rows, or of hashes of ids.

    A balanced assignment, or a leaf of a tree, is no function of distances alone: an item keeps what it was given, and
    only items that were not there are routed.
    """

    def __init__(self, digests: list[bytes], codes: np.ndarray):
        self.codes = np.ascontiguousarray(codes, np.int32)
        self.row_of = {digest: row for row, digest in enumerate(digests)}

    @cached_property
    def semids(self) -> set[tuple[int, ...]]:
        """The codes without -1."""
        return {tuple(row[row >= 0].tolist()) for row in self.codes}

    def recall(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Codes of feature rows, int32 `[N, L]` (-1 throughout where a row is new), and which are known, bool."""
        place = np.array([self.row_of.get(digest, -1) for digest in row_digests(rows)], np.int64)
        known = place >= 0
        codes = np.full((len(rows), self.codes.shape[1]), -1, np.int32)
        codes[known] = self.codes[place[known]]
        return codes, known


class BaseTokenizer:
    """What is fitted on a catalogue and saved: `ItemTokenizer` and `SequenceTokenizer`.

    A subclass is a dataclass of its settings with a `name`, `traits` and `learn`: `fit`, of checked input. What that
    leaves in `dim`, `preprocessing`, `remembered` and the attributes that `learned` names is saved here, the rest
    by the subclass's `state` and `restore`.

    Attributes:
        name (`str`): its key in `TOKENIZERS` or `SEQUENCE_TOKENIZERS`, recorded in `config.json`.
        traits (`Traits`).
        learned (`tuple` of `str`): attributes of plain JSON values.
        gone (`tuple` of `str`): settings that folders of older versions hold and that say nothing any more.
        dim (`int`, *optional*): width of the features that it was fitted with.
    """

    name: str
    traits: Traits
    learned: tuple[str, ...] = ()
    gone: tuple[str, ...] = ()
    dim: int | None = None
    preprocessing: Preprocess | None = None
    remembered: Remembered | None = None
    fitted: bool = False

    @property
    def config(self) -> dict:
        """The settings, plain JSON: arguments of the constructor."""
        # Where files lie and what computes is no part of what a tokenizer is.
        names = [each.name for each in fields(self) if each.init and each.name not in ("device", "cache_dir", "write")]
        values = {name: vars(self)[name] for name in names}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}

    def fit(
        self, features: np.ndarray, items: pa.Table | None = None, train: pa.Table | None = None, seed: int = 0
    ) -> Self:
        """Learns from the items of the training split; equal input and seed give an equal tokenizer.

        Args:
            features: float32 `[N, D]`.
            items: the same N items' columns, `item_id` among them.
            train: training sequences, `item_ids: list<string>` (`PreparedData.train`).

        Raises:
            ValueError: NaN or inf (names the row), fewer distinct items than codes in a level, or something in
                `traits.needs` is missing.
        """
        for name, table in (("items", items), ("train", train)):
            if table is not None and not isinstance(table, pa.Table):
                raise ValueError(f"{name} must be a table, not {table!r}: fit takes features, items, train, seed")
            if name in self.traits.needs:
                self.require(name, table)
        if "features" in self.traits.needs:
            features = self.checked(features)
            self.dim = features.shape[1]
        self.learn(features, items, train, seed)
        self.fitted = True
        return self

    def learn(self, features: np.ndarray, items: pa.Table | None, train: pa.Table | None, seed: int) -> None:
        raise NotImplementedError

    def checked(self, features: np.ndarray, dim: int | None = None) -> np.ndarray:
        return check_features(features, dim)

    def require(self, name: str, table: pa.Table | None) -> None:
        if table is None:
            raise ValueError(f"item tokenizer {self.name!r} needs {name}: pass {name}=...")

    def check_fitted(self) -> None:
        if not self.fitted:
            raise ValueError("this item tokenizer is not fitted: call fit(features) first")

    def state(self) -> tuple[dict, dict[str, np.ndarray]]:
        """Everything that `fit` learned: plain JSON values, and arrays. Raises `ValueError` before `fit`."""
        self.check_fitted()
        values, arrays = {name: vars(self)[name] for name in self.learned}, {}
        if self.preprocessing is not None:
            values["dim"] = self.dim
            arrays |= {f"preprocess.{name}": array for name, array in self.preprocessing.state.items()}
        if self.remembered is not None:
            digests = np.frombuffer(b"".join(self.remembered.row_of), np.uint8).reshape(-1, 16)
            arrays |= {"remembered.digests": digests, "remembered.codes": self.remembered.codes}
        return values, arrays

    def restore(self, values: dict, arrays: dict[str, np.ndarray]) -> None:
        vars(self).update({name: values[name] for name in self.learned})
        if self.preprocessing is not None:
            self.dim = values["dim"]
            self.preprocessing.state = part_of(arrays, "preprocess.")
        if "remembered.codes" in arrays:
            digests = [row.tobytes() for row in arrays["remembered.digests"]]
            self.remembered = Remembered(digests, arrays["remembered.codes"])
        self.fitted = True

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes `config.json` and `model.safetensors`; the state survives exactly."""
        values, arrays = self.state()
        save_state(folder, {"name": self.name, "config": self.config, "state": values}, arrays)

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> Self:
        saved, arrays = load_state(folder)
        tokenizer = cls(**{name: value for name, value in saved["config"].items() if name not in cls.gone})
        tokenizer.restore(saved["state"], arrays)
        return tokenizer


class ItemTokenizer(BaseTokenizer):
    """Items to codes. A subclass has `codes_of` and, where codes have vectors, `costs_of`: `encode` and
    `last_level_costs`, of checked input.

    Attributes:
        codebook_sizes (`tuple[int, ...]`, length L): codes per level; where they depend on the data, known after
            `fit`.
        codebooks (list of L `np.ndarray`, float32, `[K_l, d]`): the vector of every code; empty before `fit` and
            where codes have none. They initialise the LLM's new embeddings.
        level_tokens (list of L lists of `str`, or `None`): the strings that codes stand for, where the index's token
            pattern does not name them: words, or pieces that several levels share.
    """

    codebook_sizes: Sequence[int] = ()
    codebooks: list[np.ndarray] = []
    level_tokens: list[list[str]] | None = None

    def encode(self, features: np.ndarray, items: pa.Table | None = None) -> np.ndarray:
        """Codes of any items, int32 `[N, L]`; -1 where an item has no code at a level.

        Items that were fitted get the codes they had then. A row's codes do not depend on the rows beside it. Raises
        `ValueError` where not fitted, for NaN or inf, or another D than at `fit`.
        """
        self.check_fitted()
        if "features" in self.traits.needs:
            features = self.checked(features, self.dim)
        return self.codes_of(features, items)

    def codes_of(self, features: np.ndarray, items: pa.Table | None) -> np.ndarray:
        raise NotImplementedError

    def last_level_costs(self, features: np.ndarray, codes: np.ndarray) -> np.ndarray:
        """float32 `[N, K_L]`: squared distance of each item's last residual (after codes `[:, :-1]`) to every
        code of the last level. Collision policies find the next best code with it. `ValueError` as `encode`, or from
        a tokenizer that does not `decodes_to_vector`."""
        if not self.traits.decodes_to_vector:
            raise ValueError(f"item tokenizer {self.name!r} has no vectors at a last level, so no distances")
        self.check_fitted()
        return self.costs_of(self.checked(features, self.dim), codes)

    def costs_of(self, features: np.ndarray, codes: np.ndarray) -> np.ndarray:
        raise NotImplementedError


def check_sizes(codebook_sizes: Sequence[int]) -> tuple[int, ...]:
    """Codebook sizes as a tuple; raises `ValueError` unless they are one or more positive numbers."""
    if not isinstance(codebook_sizes, Sequence | np.ndarray) or isinstance(codebook_sizes, str):
        raise ValueError(f"codebook_sizes={codebook_sizes!r} must be a list with a number for every level: [256, 256]")
    sizes = tuple(int(size) for size in codebook_sizes)
    if not sizes or min(sizes) < 1:
        raise ValueError(f"codebook_sizes={list(codebook_sizes)} must be one or more positive numbers")
    return sizes


def tokenizer_fingerprint(tokenizer: BaseTokenizer) -> str:
    """Changes with the settings and the learned state of a tokenizer."""
    values, arrays = tokenizer.state()
    header = json.dumps([tokenizer.name, tokenizer.config, values], sort_keys=True)
    return fingerprint(header, *(part for name in sorted(arrays) for part in (name, arrays[name].tobytes())))

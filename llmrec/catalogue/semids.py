"""`SemIDIndex`: which item has which Semantic ID, the contract between item tokenizers and everything after them.

Rows are (item, SemID) pairs: an item may have several SemIDs (the first is its primary one), several items may
share one (collision policy "keep"), and SemIDs may be ragged: a row has codes at some of the levels, and its SemID is
their tokens one after the other.

Kinds of interaction (view, cart, buy) may have tokens of their own beside them; they are no part of a SemID.

Tokens are named by a pattern, one codebook a level (`<a_12><b_7>`), or given as strings: pieces that several levels
share, or words that the LLM knows, which are not added to it.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa

from llmrec.files import fingerprint, read_json, read_parquet, write_parquet

PATTERNS = {
    "default": "<{level}_{code}>",
    "openonerec": "<s_{level}_{code}>",
    "eugeneyan": "<|sid_{code}|>",
}
CONTEXTUAL = ("actionpiece", "pctx")  # item tokenizers whose tokens for an item depend on the history
_LETTERS = "abcdefghijklmnopqrstuvwxyz"


class RowsOfItems:
    """Where items stand in a list of ids that may repeat; small for ids that do not.

    Attributes:
        first (`dict[str, int]`): item → its first row, in order of first appearance.
    """

    def __init__(self, item_ids: Sequence[str]):
        self.first: dict[str, int] = {}
        self._others: dict[str, list[int]] = {}
        for row, item in enumerate(item_ids):
            if self.first.setdefault(item, row) != row:
                self._others.setdefault(item, []).append(row)

    def __getitem__(self, item_id: str) -> list[int]:
        """All its rows; none for an unknown item."""
        row = self.first.get(item_id)
        return [] if row is None else [row, *self._others.get(item_id, ())]


class SemIDIndex:
    """Item ids and their Semantic IDs.

    Args:
        item_ids (sequence of `str`, length R): the item of every row.
        codes (`np.ndarray`, int32, shape [R, L]): the codes of every row, -1 at levels where it has none.
        codebook_sizes (sequence of `int`, length L): size of every level; the *full* codebooks become tokens.
        pattern (`str`, *optional*): a name in `PATTERNS` or a template with `{level}` (a letter) and/or `{code}`.
            Without `{level}` codes are numbered through all levels.
        info (`dict`, *optional*): how the SemIDs were made (tokenizer, features, collision policy, hashes).
        level_tokens (list of L lists of `str`, *optional*): the token of every code, instead of the pattern; levels
            may share tokens.
        adds_tokens (`bool`): whether the tokens are to be new tokens of the LLM. Otherwise they are text in its own
            words, such as `" red"` and `" lamp"`, and every SemID closes with `;`, so that none begins another.
        behaviours (sequence of `str`): kinds of interaction, the one to recommend last; each is a new token of the
            LLM, e.g. `<|buy|>` (MBGen).

    Raises:
        ValueError: a code outside its codebook, an empty SemID, codes of equal tokens, or a repeated behaviour.
    """

    def __init__(
        self,
        item_ids: Sequence[str],
        codes: np.ndarray,
        codebook_sizes: Sequence[int],
        pattern: str = "default",
        info: Mapping | None = None,
        level_tokens: Sequence[Sequence[str]] | None = None,
        adds_tokens: bool = True,
        behaviours: Sequence[str] = (),
    ):
        self.item_ids = [str(item) for item in item_ids]
        self.codes = np.ascontiguousarray(codes, dtype=np.int32)
        self.codebook_sizes = tuple(int(size) for size in codebook_sizes)
        self.pattern = PATTERNS.get(pattern, pattern)
        self.info = dict(info or {})
        if self.codes.ndim != 2 or len(self.codes) != len(self.item_ids):
            raise ValueError(f"codes has shape {self.codes.shape}, but there are {len(self.item_ids)} item ids")
        if self.codes.shape[1] != len(self.codebook_sizes):
            raise ValueError(f"codes has {self.codes.shape[1]} levels, codebook_sizes has {len(self.codebook_sizes)}")
        if "{code}" not in self.pattern:
            raise ValueError(f"SemID pattern {self.pattern!r} has no {{code}}")
        for level, size in enumerate(self.codebook_sizes):
            column = self.codes[:, level]
            bad = np.flatnonzero((column >= size) | (column < -1))
            if len(bad):
                row = int(bad[0])
                raise ValueError(
                    f"item {self.item_ids[row]!r}: code {column[row]} at level {level} is outside 0..{size - 1}"
                )
        held = self.codes >= 0
        if len(held) and not held.any(1).all():
            raise ValueError(f"item {self.item_ids[int(np.argmin(held.any(1)))]!r} has an empty SemID")
        self.lengths = held.sum(1).astype(np.int32)
        self.adds_tokens = adds_tokens
        self._given = level_tokens is not None
        if self._given:
            self._level_tokens = [list(map(str, tokens)) for tokens in level_tokens]
            self._check_tokens()
        else:
            self._level_tokens = [
                [self.token(level, code) for code in range(size)] for level, size in enumerate(self.codebook_sizes)
            ]
            if len({token for tokens in self._level_tokens for token in tokens}) != sum(self.codebook_sizes):
                raise ValueError(
                    f"SemID pattern {self.pattern!r} gives equal tokens to different codes: add {{level}}"
                )
        self.behaviours = [str(behaviour) for behaviour in behaviours]
        if len(set(self.tokens)) != len(self.tokens):
            raise ValueError(f"behaviours {self.behaviours} repeat, or read like tokens of the Semantic IDs")
        self.rows_of_items = RowsOfItems(self.item_ids)
        self._rows_of_semid: dict[str, list[int]] | None = None

    # Tokens

    def _check_tokens(self) -> None:
        if list(map(len, self._level_tokens)) != list(self.codebook_sizes):
            raise ValueError(f"level_tokens has {list(map(len, self._level_tokens))} tokens for {self.codebook_sizes}")
        for level, tokens in enumerate(self._level_tokens):
            if len(set(tokens)) != len(tokens) or not all(tokens):
                raise ValueError(f"level_tokens[{level}] holds an empty token, or one twice")

    def token(self, level: int, code: int) -> str:
        """The token string of a code, e.g. `<b_7>`."""
        if self._given:
            return self._level_tokens[level][code]
        if "{level}" not in self.pattern:
            return self.pattern.format(code=code + sum(self.codebook_sizes[:level]))
        letter = _LETTERS[level] if len(self.codebook_sizes) <= len(_LETTERS) else f"s{level}"
        return self.pattern.format(level=letter, code=code)

    def behaviour_token(self, behaviour: str) -> str:
        """The token of a kind of interaction; raises `ValueError` for one that is none of `behaviours`."""
        if behaviour not in self.behaviours:
            known = ", ".join(self.behaviours) or "none at all"
            raise ValueError(f"behaviour {behaviour!r} has no token; the model knows {known}")
        return f"<|{behaviour}|>"

    @property
    def has_given_tokens(self) -> bool:
        """Whether the tokens were given as strings, not named by the pattern."""
        return self._given

    @property
    def num_levels(self) -> int:
        return len(self.codebook_sizes)

    @property
    def level_tokens(self) -> list[list[str]]:
        """All token strings by level: the full codebooks, used or not."""
        return self._level_tokens

    @property
    def tokens(self) -> list[str]:
        """The distinct token strings that become new tokens of the LLM: by level and code, then the behaviours."""
        codes = dict.fromkeys(t for level in self._level_tokens for t in level) if self.adds_tokens else ()
        return [*codes, *map(self.behaviour_token, self.behaviours)]

    # What is recorded of how it was made

    @property
    def reserved(self) -> dict[str, list[list[int]]]:
        """Removed item → the codes of the SemIDs that are kept for it."""
        return self.info.get("reserved", {})

    @property
    def reserved_versions(self) -> dict[str, int]:
        """Removed item → the version that it came with."""
        came = self.info.get("reserved_versions", {})  # the later ones
        return {item: came.get(item, 1) for item in self.reserved}

    @property
    def views(self) -> dict[str, list[int]]:
        """View → [first level, last level + 1], the primary view first; none where nothing was joined."""
        return self.info.get("views", {})

    @property
    def domains(self) -> dict[str, list[int]]:
        """Domain → its codebook sizes, by the codes of the first level; none where nothing was joined."""
        return self.info.get("domains", {})

    @property
    def version(self) -> int:
        """From 1 on; see `llmrec.catalogue.lifecycle`."""
        return self.info.get("version", 1)

    @property
    def ordered(self) -> bool:
        """Whether the levels have an order, coarse to fine."""
        return self.info.get("ordered", True)

    @property
    def contextual(self) -> bool:
        """Whether the tokens of an item depend on the history: a `SequenceTokenizer` made them."""
        return self.info.get("item_tokenizer", {}).get("name") in CONTEXTUAL

    # Look-up

    def __len__(self) -> int:
        return len(self.item_ids)

    @cached_property
    def items(self) -> list[str]:
        """Distinct item ids in order of first appearance."""
        return list(self.rows_of_items.first)

    def __contains__(self, item_id: str) -> bool:
        return item_id in self.rows_of_items.first

    def rows(self, item_id: str) -> list[int]:
        """The rows of an item, that of its primary SemID first; raises `ValueError` for an unknown item."""
        if item_id not in self:
            raise ValueError(f"item {item_id!r} has no Semantic ID: is it in the catalogue?")
        return self.rows_of_items[item_id]

    def row(self, item_id: str) -> int:
        """The row of an item's primary SemID; raises `ValueError` for an unknown item."""
        return self.rows(item_id)[0]

    def tokens_of_row(self, row: int) -> list[str]:
        """The tokens of a row's SemID."""
        return self._tokens_of(self.codes[row].tolist())

    def semid_of_row(self, row: int) -> str:
        return self._joined(self.tokens_of_row(row))

    def encode(self, item_id: str) -> str:
        """The primary SemID of an item as one string, e.g. `<a_12><b_7><c_201>`.

        An item that was removed still has the one that is reserved for it, so that histories with it can be read.
        """
        if item_id in self.reserved and item_id not in self:
            return self._joined(self._tokens_of(self.reserved[item_id][0]))
        return self.semid_of_row(self.row(item_id))

    def _tokens_of(self, codes: Sequence[int]) -> list[str]:
        return [self._level_tokens[level][code] for level, code in enumerate(codes) if code >= 0]

    def _joined(self, tokens: Sequence[str]) -> str:
        return "".join(tokens) + ("" if self.adds_tokens else ";")

    def decode(self, semid: str) -> list[str]:
        """The items that have this SemID (several under policy "keep"); an unknown SemID gives an empty list."""
        if self._rows_of_semid is None:
            rows: dict[str, list[int]] = {}
            for row in range(len(self)):
                rows.setdefault(self.semid_of_row(row), []).append(row)
            self._rows_of_semid = rows  # whole: other threads may read it
        return [self.item_ids[row] for row in self._rows_of_semid.get(semid, [])]

    def groups(self) -> np.ndarray:
        """int64 [R]: rows with the same SemID share a group number."""
        return np.unique(self.codes, axis=0, return_inverse=True)[1].reshape(-1)

    def aligned(self, items: pa.Table) -> "SemIDIndex":
        """The same SemIDs for exactly the items of a catalogue, in its order; raises `ValueError` if one has none."""
        wanted = items["item_id"].to_pylist()
        without = [item for item in wanted if item not in self]
        if without:
            raise ValueError(
                f"item {without[0]!r} of the catalogue has no Semantic ID here ({len(without)} such items): "
                "these Semantic IDs were made for other items"
            )
        return self.rows_at([row for item in wanted for row in self.rows(item)])

    def rows_at(self, rows: Sequence[int]) -> "SemIDIndex":
        """The same index with these rows, in this order."""
        return self.replaced([self.item_ids[row] for row in rows], self.codes[rows])

    def replaced(self, item_ids: Sequence[str], codes: np.ndarray, info: Mapping | None = None) -> "SemIDIndex":
        """An index with the same tokens for other rows; `info` is added to what is recorded."""
        tokens = self._level_tokens if self._given else None
        sizes, info = self.codebook_sizes, {**self.info, **(info or {})}
        return SemIDIndex(item_ids, codes, sizes, self.pattern, info, tokens, self.adds_tokens, self.behaviours)

    def with_behaviours(self, behaviours: Sequence[str]) -> "SemIDIndex":
        """The same SemIDs beside the tokens of these kinds of interaction, the one to recommend last."""
        tokens = self._level_tokens if self._given else None
        rest = self.pattern, self.info, tokens, self.adds_tokens, behaviours
        return SemIDIndex(self.item_ids, self.codes, self.codebook_sizes, *rest)

    def shuffled(self, seed: int) -> "SemIDIndex":
        """A control: the same SemIDs, exchanged between random items, so that they carry no meaning."""
        items = self.items
        givers = [items[i] for i in np.random.default_rng(seed).permutation(len(items))]
        rows = [row for giver in givers for row in self.rows_of_items[giver]]
        takers = [item for item, giver in zip(items, givers) for _ in self.rows_of_items[giver]]
        return self.replaced(takers, self.codes[rows], {"shuffled": seed})

    @property
    def fingerprint(self) -> str:
        """Changes with any assignment, codebook size, token pattern or behaviour; model folders record it."""
        names = self.pattern if not self._given else json.dumps([self._level_tokens, self.adds_tokens])
        names += json.dumps(self.behaviours) if self.behaviours else ""
        return fingerprint(names, str(self.codebook_sizes), "\n".join(self.item_ids), self.codes.tobytes())

    # Files

    def save(self, path: str | Path, items: pa.Table | None = None) -> None:
        """Writes `semids.parquet`: item_id, semid (list of token strings), codes, and the columns of `items`.

        Args:
            items (`pa.Table`, *optional*): the catalogue (with `item_id`); its columns travel with the SemIDs.
        """
        last = self.codes.shape[1] - np.argmax(self.codes[:, ::-1] >= 0, axis=1)  # codes after it are left out
        lists = [codes[:end].tolist() for codes, end in zip(self.codes, last)]
        table = pa.table(
            {
                "item_id": pa.array(self.item_ids, pa.string()),
                "semid": pa.array(map(self.tokens_of_row, range(len(self))), pa.list_(pa.string())),
                "codes": pa.array(lists, pa.list_(pa.int32())),
            }
        )
        if items is not None:
            position = {item: i for i, item in enumerate(items["item_id"].to_pylist())}
            missing = next((item for item in self.item_ids if item not in position), None)
            if missing is not None:
                raise ValueError(f"item {missing!r} has a Semantic ID but is not in the catalogue")
            rest = items.drop_columns(["item_id"]).take(pa.array([position[item] for item in self.item_ids]))
            for name in rest.column_names:
                if name not in table.column_names:
                    table = table.append_column(name, rest[name])
        header = {"pattern": self.pattern, "codebook_sizes": list(self.codebook_sizes), "info": self.info}
        if self.behaviours:
            header["behaviours"] = self.behaviours
        if self._given:
            # Levels often share their tokens: each list is written once.
            distinct = list(dict.fromkeys(map(tuple, self._level_tokens)))
            numbers = [distinct.index(tuple(tokens)) for tokens in self._level_tokens]
            header |= {"vocabularies": distinct, "vocabulary_of_level": numbers, "adds_tokens": self.adds_tokens}
        write_parquet(path, table.replace_schema_metadata({b"llmrec": json.dumps(header).encode()}))

    @classmethod
    def load(cls, path: str | Path) -> "SemIDIndex":
        """Reads a file written by `save`, or an LC-Rec / MiniOneRec `index.json` (by its ending)."""
        if str(path).endswith(".json"):
            return cls.from_index_json(path)
        table = read_parquet(path, ["item_id", "codes"])
        header = (table.schema.metadata or {}).get(b"llmrec")
        if header is None or table.column_names != ["item_id", "codes"]:
            raise ValueError(f"{path} was not written by llmrec: it holds no SemID codes")
        header = json.loads(header)
        info = header["info"]
        if "streams" in info:  # written before 0.2
            info |= {"views": info.pop("streams"), "view_info": info.pop("stream_info", {})}
        lists = table["codes"].combine_chunks()
        codes = np.full((len(lists), len(header["codebook_sizes"])), -1, np.int32)
        held = np.arange(codes.shape[1]) < lists.value_lengths().to_numpy()[:, None]
        codes[held] = lists.flatten().to_numpy()
        ids, sizes, pattern = table["item_id"].to_pylist(), header["codebook_sizes"], header["pattern"]
        behaviours = header.get("behaviours", ())
        if "vocabularies" not in header:
            return cls(ids, codes, sizes, pattern, header["info"], behaviours=behaviours)
        tokens = [header["vocabularies"][number] for number in header["vocabulary_of_level"]]
        return cls(ids, codes, sizes, pattern, header["info"], tokens, header["adds_tokens"], behaviours)

    @classmethod
    def from_index_json(cls, path: str | Path, codebook_sizes: Sequence[int] | None = None) -> "SemIDIndex":
        """Reads `{"0": ["<a_1>", "<b_2>", ...], ...}` as LC-Rec, LETTER, MiniOneRec and torch-rechub write it."""
        return cls.from_tokens(read_json(path), codebook_sizes, info={"source": Path(path).name})

    @classmethod
    def from_tokens(
        cls,
        semids: Mapping[str, Iterable[str]],
        codebook_sizes: Sequence[int] | None = None,
        info: Mapping | None = None,
    ) -> "SemIDIndex":
        """From ready-made token lists `{item_id: ["<a_1>", "<b_2>", ...]}`.

        Args:
            codebook_sizes (*optional*): defaults to the largest code of each level + 1, at least 256.

        Raises:
            ValueError: a token that does not read `<letter_number>`, or whose letter is not that of its level.
        """
        if not isinstance(semids, Mapping) or not semids:
            raise ValueError("ready-made SemIDs must be a non-empty mapping of item id to a list of tokens")
        rows = []
        for item, tokens in semids.items():
            codes = []
            for level, token in enumerate(tokens):
                match = re.fullmatch(r"<([a-z])_(\d+)>", str(token))
                if match is None or match[1] != _LETTERS[level]:
                    expected = f"<{_LETTERS[level]}_N>"
                    raise ValueError(f"item {item!r}: token {token!r} at level {level} should read {expected}")
                codes.append(int(match[2]))
            rows.append(codes)
        depth = max(map(len, rows))
        codes = np.full((len(rows), depth), -1, np.int32)
        for row, values in enumerate(rows):
            codes[row, : len(values)] = values
        if codebook_sizes is None:
            codebook_sizes = [max(256, int(column.max()) + 1) for column in codes.T]
        return cls(list(semids), codes, codebook_sizes, info=info)

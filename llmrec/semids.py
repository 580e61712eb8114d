"""`SemIDIndex`: which item has which Semantic ID, the contract between item tokenizers and everything after them.

Rows are (item, SemID) pairs: an item may have several SemIDs (the first is its primary one), several items may
share one (collision policy "keep"), and SemIDs may be ragged (a further token only where items collide).
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from llmrec.files import fingerprint, read_json, read_parquet, write_parquet

PATTERNS = {
    "default": "<{level}_{code}>",
    "openonerec": "<s_{level}_{code}>",
    "eugeneyan": "<|sid_{code}|>",
}
_LETTERS = "abcdefghijklmnopqrstuvwxyz"


class SemIDIndex:
    """Item ids and their Semantic IDs.

    Args:
        item_ids (sequence of `str`, length R): the item of every row.
        codes (`np.ndarray`, int32, shape [R, L]): the codes of every row, padded with -1 on the right.
        codebook_sizes (sequence of `int`, length L): size of every level; the *full* codebooks become tokens.
        pattern (`str`, *optional*): a name in `PATTERNS` or a template with `{level}` (a letter) and/or `{code}`.
            Without `{level}` codes are numbered through all levels.
        info (`dict`, *optional*): how the SemIDs were made (tokenizer, features, collision policy, hashes).

    Raises:
        ValueError: a code outside its codebook, a gap inside a SemID, an empty SemID, or two levels with equal tokens.
    """

    def __init__(
        self,
        item_ids: Sequence[str],
        codes: np.ndarray,
        codebook_sizes: Sequence[int],
        pattern: str = "default",
        info: Mapping | None = None,
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
        if len(held) and not held[:, 0].all():
            raise ValueError(f"item {self.item_ids[int(np.argmin(held[:, 0]))]!r} has an empty SemID")
        gap = (held[:, 1:] & ~held[:, :-1]).any(1)
        if gap.any():
            raise ValueError(f"item {self.item_ids[int(np.argmax(gap))]!r} has a gap inside its SemID")
        self.lengths = held.sum(1).astype(np.int32)
        self._level_tokens = [
            [self.token(level, code) for code in range(size)] for level, size in enumerate(self.codebook_sizes)
        ]
        if len(set(self.tokens)) != len(self.tokens):
            raise ValueError(f"SemID pattern {self.pattern!r} gives equal tokens to different codes: add {{level}}")
        self._rows_of_item: dict[str, list[int]] = {}
        for row, item in enumerate(self.item_ids):
            self._rows_of_item.setdefault(item, []).append(row)
        self._rows_of_semid: dict[str, list[int]] | None = None

    # Tokens

    def token(self, level: int, code: int) -> str:
        """The token string of a code, e.g. `<b_7>`."""
        if "{level}" not in self.pattern:
            return self.pattern.format(code=code + sum(self.codebook_sizes[:level]))
        letter = _LETTERS[level] if len(self.codebook_sizes) <= len(_LETTERS) else f"s{level}"
        return self.pattern.format(level=letter, code=code)

    @property
    def num_levels(self) -> int:
        return len(self.codebook_sizes)

    @property
    def level_tokens(self) -> list[list[str]]:
        """All token strings by level: the full codebooks, used or not."""
        return self._level_tokens

    @property
    def tokens(self) -> list[str]:
        """All token strings in order of level and code; these become new tokens of the LLM."""
        return [token for level in self._level_tokens for token in level]

    # Look-up

    def __len__(self) -> int:
        return len(self.item_ids)

    @property
    def items(self) -> list[str]:
        """Distinct item ids in order of first appearance."""
        return list(self._rows_of_item)

    def _rows(self, item_id: str) -> list[int]:
        try:
            return self._rows_of_item[item_id]
        except KeyError:
            raise ValueError(f"item {item_id!r} has no Semantic ID: is it in the catalogue?") from None

    def row(self, item_id: str) -> int:
        """The row of an item's primary SemID; raises `ValueError` for an unknown item."""
        return self._rows(item_id)[0]

    def semid_of_row(self, row: int) -> str:
        return "".join(
            self._level_tokens[level][code] for level, code in enumerate(self.codes[row, : self.lengths[row]])
        )

    def encode(self, item_id: str) -> str:
        """The primary SemID of an item as one string, e.g. `<a_12><b_7><c_201>`."""
        return self.semid_of_row(self.row(item_id))

    def decode(self, semid: str) -> list[str]:
        """The items that have this SemID (several under policy "keep"); an unknown SemID gives an empty list."""
        if self._rows_of_semid is None:
            self._rows_of_semid = {}
            for row in range(len(self)):
                self._rows_of_semid.setdefault(self.semid_of_row(row), []).append(row)
        return [self.item_ids[row] for row in self._rows_of_semid.get(semid, [])]

    def groups(self) -> np.ndarray:
        """int64 [R]: rows with the same SemID share a group number."""
        return np.unique(self.codes, axis=0, return_inverse=True)[1].reshape(-1)

    def aligned(self, items: pa.Table) -> "SemIDIndex":
        """The same SemIDs for exactly the items of a catalogue, in its order; raises `ValueError` if one has none."""
        rows = [row for item in items["item_id"].to_pylist() for row in self._rows(item)]
        names = [self.item_ids[row] for row in rows]
        return SemIDIndex(names, self.codes[rows], self.codebook_sizes, self.pattern, self.info)

    def shuffled(self, seed: int) -> "SemIDIndex":
        """A control: the same SemIDs, exchanged between random items, so that they carry no meaning."""
        codes = self.codes[np.random.default_rng(seed).permutation(len(self))]
        return SemIDIndex(self.item_ids, codes, self.codebook_sizes, self.pattern, {**self.info, "shuffled": seed})

    @property
    def fingerprint(self) -> str:
        """Changes with any assignment, codebook size or token pattern; model folders record it."""
        return fingerprint(self.pattern, str(self.codebook_sizes), "\n".join(self.item_ids), self.codes.tobytes())

    # Files

    def save(self, path: str | Path, items: pa.Table | None = None) -> None:
        """Writes `semids.parquet`: item_id, semid (list of token strings), codes, and the columns of `items`.

        Args:
            items (`pa.Table`, *optional*): the catalogue (with `item_id`); its columns travel with the SemIDs.
        """
        lists = [self.codes[row, : self.lengths[row]].tolist() for row in range(len(self))]
        table = pa.table(
            {
                "item_id": pa.array(self.item_ids, pa.string()),
                "semid": pa.array(
                    [[self._level_tokens[level][code] for level, code in enumerate(codes)] for codes in lists],
                    pa.list_(pa.string()),
                ),
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
        write_parquet(path, table.replace_schema_metadata({b"llmrec": json.dumps(header).encode()}))

    @classmethod
    def load(cls, path: str | Path) -> "SemIDIndex":
        """Reads a file written by `save`, or an LC-Rec / MiniOneRec `index.json` (by its ending)."""
        if str(path).endswith(".json"):
            return cls.from_index_json(path)
        table = read_parquet(path)
        header = (table.schema.metadata or {}).get(b"llmrec")
        if header is None or "codes" not in table.column_names:
            raise ValueError(f"{path} was not written by llmrec: it holds no SemID codes")
        header = json.loads(header)
        lists = table["codes"].to_pylist()
        codes = np.full((len(lists), len(header["codebook_sizes"])), -1, np.int32)
        for row, values in enumerate(lists):
            codes[row, : len(values)] = values
        return cls(table["item_id"].to_pylist(), codes, header["codebook_sizes"], header["pattern"], header["info"])

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

"""`SemIDIndex`: which item has which Semantic ID, the contract between item tokenizers and everything after them.

Rows are (item, SemID) pairs: an item may have several SemIDs (the first is its primary one), several items may
share one (collision policy "keep"), and SemIDs may be ragged: a row has codes at some of the levels, and its SemID is
their tokens one after the other.

Kinds of interaction (view, cart, buy) may have tokens of their own beside them; they are no part of a SemID.

Tokens are named by a pattern, one codebook a level (`<a_12><b_7>`), or given as strings: pieces that several levels
share, or words that the LLM knows, which are not added to it.
"""

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from llmrec.catalogue.collisions import equal_rows
from llmrec.catalogue.record import Record
from llmrec.catalogue.semid_tokens import mapping_of_semids, parse_semids, pattern_tokens, template_of
from llmrec.catalogue.semids_file import read_semids
from llmrec.data.rows import list_array, offsets_of
from llmrec.files import fingerprint, read_json, write_parquet
from llmrec.hub import without_paths
from llmrec.stages import unfinished


class RowsOfItems:
    """Where items stand in a list of ids that may repeat; small for ids that do not."""

    def __init__(self, item_ids: Sequence[str]):
        self.first: dict[str, int] = {}  # in order of first appearance
        self._others: dict[str, list[int]] = {}
        for row, item in enumerate(item_ids):
            if self.first.setdefault(item, row) != row:
                self._others.setdefault(item, []).append(row)

    def __getitem__(self, item_id: str) -> list[int]:
        """All its rows; none for an unknown item."""
        row = self.first.get(item_id)
        return [] if row is None else [row, *self._others.get(item_id, ())]


class SemIDIndex(Record):
    """Item ids and their Semantic IDs.

    Args:
        item_ids: the item of every row.
        codes: int32 `[R, L]`, -1 at levels where a row has none.
        codebook_sizes: of the L levels; the *full* codebooks become tokens.
        pattern: a name in `PATTERNS` or a template with `{level}` (a letter) and/or `{code}`. Without `{level}` codes
            are numbered through all levels.
        info: how the SemIDs were made; what is read of it has a property (`Record`).
        level_tokens: by level, the token of every code, used or not, instead of the pattern (`has_given_tokens`);
            levels may share tokens.
        adds_tokens: whether the tokens are to be new tokens of the LLM. Otherwise they are text in its own words, such
            as `" red"` and `" lamp"`, and every SemID closes with `;`, so that none begins another.
        behaviours: kinds of interaction, the one to recommend last; each is a new token of the LLM, e.g. `<|buy|>`
            (MBGen).

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
        self.pattern = template_of(pattern)
        self.info = dict(info or {})
        if self.codes.ndim != 2 or len(self.codes) != len(self.item_ids):
            raise ValueError(f"codes has shape {self.codes.shape}, but there are {len(self.item_ids)} item ids")
        if self.codes.shape[1] != len(self.codebook_sizes):
            raise ValueError(f"codes has {self.codes.shape[1]} levels, codebook_sizes has {len(self.codebook_sizes)}")
        outside = (self.codes.T < -1) | (self.codes.T >= np.array(self.codebook_sizes)[:, None])
        if outside.any():
            level, row = np.argwhere(outside)[0]
            what = f"code {self.codes[row, level]} at level {level}"
            raise ValueError(f"item {self.item_ids[row]!r}: {what} is outside 0..{self.codebook_sizes[level] - 1}")
        self.lengths = (self.codes >= 0).sum(1).astype(np.int32)
        if len(self.codes) and not self.lengths.all():
            raise ValueError(f"item {self.item_ids[int(np.argmin(self.lengths))]!r} has an empty SemID")
        self.adds_tokens = adds_tokens
        self.has_given_tokens = level_tokens is not None
        if self.has_given_tokens:
            self.level_tokens = [list(map(str, tokens)) for tokens in level_tokens]
            if (sizes := tuple(map(len, self.level_tokens))) != self.codebook_sizes:
                raise ValueError(f"level_tokens has {list(sizes)} tokens for {self.codebook_sizes}")
            for level, tokens in enumerate(self.level_tokens):
                if len(set(tokens)) != len(tokens) or not all(tokens):
                    raise ValueError(f"level_tokens[{level}] holds an empty token, or one twice")
        else:
            self.level_tokens = pattern_tokens(self.pattern, self.codebook_sizes)
            if len(set().union(*self.level_tokens)) != sum(self.codebook_sizes):
                raise ValueError(
                    f"SemID pattern {self.pattern!r} gives equal tokens to different codes: add {{level}}"
                )
        self.behaviours = [str(behaviour) for behaviour in behaviours]
        if len(set(self.tokens)) != len(self.tokens):
            raise ValueError(f"behaviours {self.behaviours} repeat, or read like tokens of the Semantic IDs")
        self.rows_of_items = RowsOfItems(self.item_ids)

    def token(self, level: int, code: int) -> str:
        """The token string of a code, e.g. `<b_7>`."""
        return self.level_tokens[level][code]

    def behaviour_token(self, behaviour: str) -> str:
        """The token of a kind of interaction; raises `ValueError` for one that is none of `behaviours`."""
        if behaviour not in self.behaviours:
            known = ", ".join(self.behaviours) or "none at all"
            raise ValueError(f"behaviour {behaviour!r} has no token; the model knows {known}")
        return f"<|{behaviour}|>"

    @property
    def num_levels(self) -> int:
        return len(self.codebook_sizes)

    @property
    def tokens(self) -> list[str]:
        """The distinct token strings that become new tokens of the LLM: by level and code, then the behaviours."""
        codes = dict.fromkeys(t for level in self.level_tokens for t in level) if self.adds_tokens else ()
        return [*codes, *map(self.behaviour_token, self.behaviours)]

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
        return [self.level_tokens[level][code] for level, code in enumerate(codes) if code >= 0]

    def _joined(self, tokens: Sequence[str]) -> str:
        return "".join(tokens) + ("" if self.adds_tokens else ";")

    @cached_property
    def _items_of_semid(self) -> dict[str, list[str]]:
        items = defaultdict(list)
        for row, item in enumerate(self.item_ids):
            items[self.semid_of_row(row)].append(item)
        return items

    def decode(self, semid: str) -> list[str]:
        """The items that have this SemID (several under policy "keep"); an unknown SemID gives an empty list."""
        return list(self._items_of_semid.get(semid, ()))

    def groups(self) -> np.ndarray:
        """int64 [R]: rows with the same SemID share a group number."""
        return equal_rows(self.codes)

    def aligned(self, items: pa.Table) -> "SemIDIndex":
        """The same SemIDs for exactly the items of a catalogue, in its order; raises `ValueError` if one has none."""
        wanted = items["item_id"].to_pylist()
        if without := [item for item in wanted if item not in self]:
            raise ValueError(
                f"item {without[0]!r} of the catalogue has no Semantic ID here ({len(without)} such items): "
                "these Semantic IDs were made for other items"
            )
        return self.rows_at([row for item in wanted for row in self.rows(item)])

    def rows_at(self, rows: Sequence[int]) -> "SemIDIndex":
        """The same index with these rows, in this order."""
        return self.replaced([self.item_ids[row] for row in rows], self.codes[rows])

    def replaced(
        self,
        item_ids: Sequence[str],
        codes: np.ndarray,
        info: Mapping | None = None,
        behaviours: Sequence[str] | None = None,
    ) -> "SemIDIndex":
        """An index with the same tokens for other rows; `info` is added to what is recorded."""
        tokens = self.level_tokens if self.has_given_tokens else None
        naming = self.pattern, {**self.info, **(info or {})}, tokens, self.adds_tokens
        behaviours = self.behaviours if behaviours is None else behaviours
        return SemIDIndex(item_ids, codes, self.codebook_sizes, *naming, behaviours)

    def with_behaviours(self, behaviours: Sequence[str]) -> "SemIDIndex":
        """The same SemIDs beside the tokens of these kinds of interaction, the one to recommend last."""
        return self.replaced(self.item_ids, self.codes, behaviours=behaviours)

    def shuffled(self, seed: int) -> "SemIDIndex":
        """A control: the same SemIDs, exchanged between random items, so that they carry no meaning."""
        givers = [self.items[i] for i in np.random.default_rng(seed).permutation(len(self.items))]
        rows = [row for giver in givers for row in self.rows_of_items[giver]]
        takers = [item for item, giver in zip(self.items, givers) for _ in self.rows_of_items[giver]]
        return self.replaced(takers, self.codes[rows], {"shuffled": seed})

    @property
    def fingerprint(self) -> str:
        """Changes with any assignment, codebook size, token pattern or behaviour; model folders record it."""
        names = json.dumps([self.level_tokens, self.adds_tokens]) if self.has_given_tokens else self.pattern
        names += json.dumps(self.behaviours) if self.behaviours else ""
        return fingerprint(names, str(self.codebook_sizes), "\n".join(self.item_ids), self.codes.tobytes())

    def save(self, path: str | Path, items: pa.Table | None = None) -> None:
        """Writes `semids.parquet`: item_id, semid (list of token strings), codes, and the columns of `items`. It goes
        where its models go, so what it was made from is named without paths of this machine."""
        last = self.codes.shape[1] - np.argmax(self.codes[:, ::-1] >= 0, axis=1)  # codes after it are left out
        levels, used = np.arange(self.num_levels), self.codes >= 0
        tokens = pa.array([token for level in self.level_tokens for token in level], pa.string())
        numbers = (self.codes + offsets_of(self.codebook_sizes)[:-1])[used]
        ids = pa.array(self.item_ids, pa.string())
        columns: dict[str, pa.Array | pa.ChunkedArray] = {
            "item_id": ids,
            "semid": list_array(tokens.take(pa.array(numbers)), offsets_of(self.lengths)),
            "codes": list_array(pa.array(self.codes[levels < last[:, None]]), offsets_of(last)),
        }
        if items is not None:
            rows = pc.index_in(ids, items["item_id"].cast(pa.string()).combine_chunks())
            if rows.null_count:
                missing = ids.filter(rows.is_null())[0].as_py()
                raise ValueError(f"item {missing!r} has a Semantic ID but is not in the catalogue")
            rest = items.take(rows)
            columns |= {name: rest[name] for name in rest.column_names if name not in columns}
        header = {
            "pattern": self.pattern,
            "codebook_sizes": list(self.codebook_sizes),
            "info": without_paths(self.info),
        }
        if self.behaviours:
            header["behaviours"] = self.behaviours
        if self.has_given_tokens:
            # Levels often share their tokens: each list is written once.
            distinct = list(dict.fromkeys(map(tuple, self.level_tokens)))
            numbers = [distinct.index(tuple(tokens)) for tokens in self.level_tokens]
            header |= {"vocabularies": distinct, "vocabulary_of_level": numbers, "adds_tokens": self.adds_tokens}
        write_parquet(path, pa.table(columns).replace_schema_metadata({b"llmrec": json.dumps(header).encode()}))

    @classmethod
    def load(cls, path: str | Path, codebook_sizes: Sequence[int] | None = None) -> "SemIDIndex":
        """Reads a file written by `save`, or an `index.json` of others (by its ending); `codebook_sizes` are for such
        a one, see `from_semids`. Raises `ValueError` that names the file and the field that does not fit."""
        path = Path(path)
        if not path.exists():
            missing = f"{path} does not exist: run recipes/tokenize_items.py first"
            raise ValueError((path.parent.is_dir() and unfinished(path.parent)) or missing)
        if path.suffix == ".json":
            semids = mapping_of_semids(read_json(path, object), str(path))
            return cls.from_semids(semids, codebook_sizes, info={"source": path.name})
        item_ids, codes, header = read_semids(path)
        tokens = [header["vocabularies"][number] for number in header.get("vocabulary_of_level", ())] or None
        naming = header["info"], tokens, header.get("adds_tokens", True), header.get("behaviours", ())
        try:
            return cls(item_ids, codes, header["codebook_sizes"], header["pattern"], *naming)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error

    @classmethod
    def from_semids(
        cls,
        semids: Mapping[str, str | Sequence],
        codebook_sizes: Sequence[int] | None = None,
        pattern: str | None = None,
        keep_markers: bool = False,
        info: Mapping | None = None,
    ) -> "SemIDIndex":
        """From Semantic IDs that exist already, `{item id: SemID}`; see `llmrec.catalogue.semid_tokens`.

        Args:
            codebook_sizes: by default the largest code of each level + 1, at least 256. Tokens that are numbered
                through all levels need it.
            pattern: of the tokens; found from the first token where it is one of `PATTERNS`. For codes it defaults to
                `"default"`.
            keep_markers: markers around every item become levels of one code.

        Raises:
            ValueError: an item without SemID, a token that does not fit the pattern, or other markers than the first.
        """
        semids = mapping_of_semids(semids, "semids")
        codes, sizes, pattern, tokens = parse_semids(semids, codebook_sizes, pattern, keep_markers)
        return cls(list(semids), codes, sizes, pattern, info, tokens)

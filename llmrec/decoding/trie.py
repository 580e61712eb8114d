"""`SemIDTrie`: the catalogue as one sorted matrix, the only statement of which SemIDs exist.

Rows are sorted lexicographically, so a prefix is a contiguous range of rows and every level is a CSR array. Nothing
here knows a model: the logits processor, the beam search and a vLLM plugin share it.

Every row is present at every level: a SemID that is over continues with *end* children. An end child that has
siblings (its SemID is a prefix of another) is scored as the EOS token; an only child is forced and scores 0.
"""

import weakref
from collections.abc import Sequence
from copy import copy
from itertools import count, zip_longest
from typing import NamedTuple

import numpy as np
import torch

from llmrec.catalogue.semids import SemIDIndex

END = DEAD = -1


class Children(NamedTuple):
    """Padded children of a batch of nodes; `W` is `trie.max_branch[level]`.

    Attributes:
        node (int64 [..., W]): nodes of the next level, in lexicographic order; 0 in the padding.
        column (int64 [..., W]): which entry of `trie.vocab[level]` leads there; 0 in the padding.
        valid (bool [..., W]): False in the padding.
    """

    node: torch.Tensor
    column: torch.Tensor
    valid: torch.Tensor


class SemIDTrie:
    """A trie over SemIDs given as token ids.

    A node is an int64 index within its level; level 0 holds the root, node 0. `DEAD` (-1) has no children. Node ids
    grow in lexicographic order (by token id, the end first), and the ids of siblings are consecutive.

    Args:
        token_ids (int, shape [R, L]): one row per (item, SemID) pair, padded with -1 on the right. Equal rows share a
            leaf.
        eos_token_id (`int`, *optional*): scored where a SemID is a prefix of another, forced after a complete one by
            the logits processor.

    Attributes:
        vocab (list of int64 [T]): by level, the sorted tokens used there; `END` comes first where SemIDs are over.
        head_ids (list of int64 [T]): `vocab` with the EOS token in place of `END`: rows of the model's head.
        has_end (list of `bool`): whether `vocab[level]` starts with `END`.
        ends_are_scored (`bool`): whether a SemID is a prefix of another.
        max_branch (list of `int`): the largest number of children of a node, by level.
        last_token (`int`): the largest of `head_ids`.
        order (int32 [R]): original row of every sorted row; rows with equal SemIDs stay in their order. `host_order`
            is the same in numpy, wherever the trie is.
        position (int32 [R], numpy): the inverse of `host_order`.
    """

    def __init__(self, token_ids: np.ndarray | torch.Tensor, eos_token_id: int | None = None):
        matrix = np.asarray(token_ids)
        if matrix.ndim != 2 or not matrix.size:
            raise ValueError(f"token_ids has shape {matrix.shape}; a trie needs at least one SemID of one token")
        filled = matrix >= 0
        if not filled[:, 0].all():
            raise ValueError(f"row {int(np.argmin(filled[:, 0]))} of token_ids is an empty SemID")
        gap = (filled[:, 1:] & ~filled[:, :-1]).any(1)
        if gap.any():
            raise ValueError(f"row {int(np.argmax(gap))} of token_ids has a gap")
        if len(matrix) >= 2**31 or matrix.max() >= 2**31 - 1 or matrix.min() < END:
            raise ValueError("token_ids must lie between -1 and 2**31 - 2, and rows must number below 2**31")
        self.num_rows, self.depth = matrix.shape
        self.device = torch.device("cpu")
        self._cumsums: dict[int, tuple[weakref.ref, torch.Tensor]] = {}
        self.ends_are_scored = self._build(matrix)
        if eos_token_id is not None and any(bool((vocab == eos_token_id).any()) for vocab in self.vocab):
            raise ValueError(f"the EOS token {eos_token_id} is also a SemID token")
        if eos_token_id is None and self.ends_are_scored:
            raise ValueError("a SemID is a prefix of another: give eos_token_id, the token that ends it")
        self._end_with(eos_token_id)
        self.last_token = max(int(ids.max()) for ids in self.head_ids)

    def _end_with(self, eos_token_id: int | None) -> None:
        self.eos_token_id = eos_token_id
        self.head_ids = [vocab.masked_fill(vocab == END, eos_token_id or 0) for vocab in self.vocab]

    def with_an_end(self) -> "SemIDTrie":
        """This trie, or one over the same tensors whose `eos_token_id` is a token of no SemID: for searches that need
        a token where all ends are forced."""
        if self.eos_token_id is not None:
            return self
        used, ended = set(torch.cat(self.vocab).tolist()), copy(self)
        ended._end_with(next(token for token in count() if token not in used))
        return ended

    def _build(self, matrix: np.ndarray) -> bool:
        """Sorts the rows and makes the arrays of every level; is a SemID a prefix of another?"""
        vocab, columns = zip(*(_compact(matrix[:, level]) for level in range(self.depth)))
        order = _argsort_rows(columns, [len(tokens) for tokens in vocab])
        self.host_order = order.astype(np.int32)
        self.order = torch.from_numpy(self.host_order)
        self.position = np.empty(self.num_rows, np.int32)
        self.position[order] = np.arange(self.num_rows, dtype=np.int32)
        self.vocab = [torch.from_numpy(tokens) for tokens in vocab]
        self.has_end = [bool(tokens[0] == END) for tokens in vocab]
        self._start = [torch.tensor([0, self.num_rows], dtype=torch.int32)]  # [n + 1]: first sorted row of each node
        self._first_child = []  # [n + 1]: first child of each node of this level
        self._column = []  # [n of the next level]: entry of vocab on the edge that leads there
        self.max_branch = []
        ends_are_scored = False
        new = np.zeros(self.num_rows, bool)
        new[0] = True
        for level in range(self.depth):
            column = columns[level][order]
            new[1:] |= column[1:] != column[:-1]
            start = np.flatnonzero(new)
            number = np.cumsum(new, dtype=np.int32)  # nodes of the next level up to and including this row
            parents = self._start[-1].numpy()
            first = np.append(number[parents[:-1]] - 1, len(start)).astype(np.int32)
            self._first_child.append(torch.from_numpy(first))
            self._column.append(torch.from_numpy(column[start]))
            self._start.append(torch.from_numpy(np.append(start, self.num_rows).astype(np.int32)))
            branch = np.diff(first)
            self.max_branch.append(int(branch.max()))
            if self.has_end[level]:
                ends_are_scored |= bool(((column[start][first[:-1]] == 0) & (branch > 1)).any())
        return ends_are_scored

    @classmethod
    def from_index(cls, index: SemIDIndex, tokenizer) -> "SemIDTrie":
        """The trie of a `SemIDIndex` in the token ids of a tokenizer that has its tokens; rows keep their order."""
        if not index.adds_tokens:
            texts = [index.semid_of_row(row) for row in range(len(index))]
            lists = tokenizer(texts, add_special_tokens=False)["input_ids"]
            columns = zip_longest(*lists, fillvalue=END)
            return cls(np.array(list(columns), np.int64).T, tokenizer.eos_token_id)
        token_ids = np.full(index.codes.shape, END, np.int64)
        for level, tokens in enumerate(index.level_tokens):
            ids = tokenizer.convert_tokens_to_ids(tokens)
            for token, token_id in zip(tokens, ids):
                if token_id is None or token_id == tokenizer.unk_token_id:
                    raise ValueError(f"the tokenizer does not know SemID token {token!r}: extend its vocabulary first")
            column = index.codes[:, level]
            token_ids[:, level] = np.where(column >= 0, np.asarray(ids)[column], END)
        # Levels without a code take no place in the SemID.
        token_ids = np.take_along_axis(token_ids, np.argsort(token_ids == END, axis=1, kind="stable"), axis=1)
        token_ids = token_ids[:, : index.lengths.max()]
        return cls(token_ids, tokenizer.eos_token_id)

    def to(self, device: torch.device | str) -> "SemIDTrie":
        """Moves the tensors to `device`, like `torch.nn.Module.to`, and returns the trie."""
        device = torch.empty(0, device=device).device  # "cuda" gets its number
        if device != self.device:
            for name, value in vars(self).items():
                if isinstance(value, torch.Tensor):
                    setattr(self, name, value.to(device))
                elif isinstance(value, list) and isinstance(value[0], torch.Tensor):
                    setattr(self, name, [tensor.to(device) for tensor in value])
            self.device = device
            self._cumsums = {}
        return self

    @property
    def num_leaves(self) -> int:
        """How many distinct SemIDs there are."""
        return len(self._start[-1]) - 1

    @property
    def nbytes(self) -> int:
        tensors = [self.order, self.position, *self.vocab, *self.head_ids]
        tensors += [*self._start, *self._first_child, *self._column]
        return sum(tensor.nbytes for tensor in tensors)

    # Walking

    def children(self, nodes: torch.Tensor, level: int) -> Children:
        """All children of `nodes` (int64 [...], nodes of `level`), padded to a static width."""
        first, count = self._span(nodes, level)
        offset = torch.arange(self.max_branch[level], device=nodes.device)
        valid = offset < count[..., None]
        node = torch.where(valid, first[..., None] + offset, 0)
        return Children(node, self._column[level][node].long(), valid)

    def step(self, nodes: torch.Tensor, tokens: torch.Tensor, level: int) -> torch.Tensor:
        """The child of each of `nodes` (int64 [...], of `level`) by its token id (int64 [...]; EOS or `END` where a
        SemID is over), `DEAD` where there is none."""
        if self.has_end[level] and self.eos_token_id is not None:
            tokens = tokens.masked_fill(tokens == self.eos_token_id, END)
        vocab = self.vocab[level]
        wanted = torch.searchsorted(vocab, tokens.contiguous()).clamp(max=len(vocab) - 1)
        return torch.where(vocab[wanted] == tokens, self.child(nodes, wanted, level), DEAD)

    def child(self, nodes: torch.Tensor, columns: torch.Tensor, level: int) -> torch.Tensor:
        """The child of each of `nodes` by its entry of `vocab[level]` (int64 [...]), `DEAD` where there is none."""
        if level == 0:  # the root has a child for every entry
            return torch.where(nodes == 0, columns, DEAD)
        low, count = self._span(nodes, level)
        end = low + count
        high, column = end, self._column[level]
        last = len(column) - 1
        for _ in range(self.max_branch[level].bit_length()):  # binary search among the siblings
            middle = (low + high) // 2
            right = (low < high) & (column[middle.clamp(max=last)] < columns)
            low, high = torch.where(right, middle + 1, low), torch.where(right, high, middle)
        return torch.where((low < end) & (column[low.clamp(max=last)] == columns), low, DEAD)

    def walk(self, tokens: torch.Tensor) -> torch.Tensor:
        """The node (int64 [N]) that each row of token ids (int64 [N, T]) leads to from the root, or `DEAD`."""
        nodes = torch.zeros_like(tokens[:, :1].sum(1))
        for level in range(tokens.shape[1]):
            nodes = self.step(nodes, tokens[:, level], level)
        return nodes

    def token(self, nodes: torch.Tensor, level: int) -> torch.Tensor:
        """The token (`END` included) on the edge from a node of `level` to each of `nodes`; `END` for `DEAD`."""
        token = self.vocab[level][self._column[level][nodes.clamp(min=0)].long()]
        return token.masked_fill(nodes < 0, END)

    def rows(self, nodes: torch.Tensor, level: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The range `[low, high)` of *sorted* rows under nodes of `level` (0 is the root); empty for `DEAD`."""
        start, dead = self._start[level], nodes < 0
        nodes = nodes.clamp(min=0)
        low = start[nodes].long()
        return low, torch.where(dead, low, start[nodes + 1].long())

    def node_above(self, rows: torch.Tensor, level: int) -> torch.Tensor:
        """The node of `level` (0 is the root) that each of some *sorted* rows (int64 [N]) lies under."""
        return torch.searchsorted(self._start[level], rows.to(torch.int32), right=True) - 1

    def complete(self, nodes: torch.Tensor, level: int) -> torch.Tensor:
        """bool [...]: whether nothing but the end can follow these nodes of `level`; False for `DEAD`."""
        if level == self.depth:
            return nodes >= 0
        if not self.has_end[level]:
            return torch.zeros_like(nodes, dtype=torch.bool)
        first, count = self._span(nodes, level)
        return (count == 1) & (self._column[level][first.clamp(max=len(self._column[level]) - 1)] == 0)

    def _span(self, nodes: torch.Tensor, level: int) -> tuple[torch.Tensor, torch.Tensor]:
        table, alive = self._first_child[level], nodes >= 0
        nodes = nodes.clamp(min=0)
        first = table[nodes].long()
        return first, torch.where(alive, table[nodes + 1].long() - first, 0)

    # Filters

    def cumsum(self, mask: np.ndarray) -> torch.Tensor:
        """int32 [R + 1]: how many allowed rows stand before each sorted row; kept while the mask (bool [R]) lives."""
        kept = self._cumsums.get(id(mask))
        if kept is None or kept[0]() is not mask:
            if mask.shape != (self.num_rows,) or mask.dtype != bool:
                raise ValueError(f"a mask must be bool [{self.num_rows}], not {mask.dtype} {list(mask.shape)}")
            sums = torch.zeros(self.num_rows + 1, dtype=torch.int32, device=self.device)
            allowed = torch.from_numpy(mask).to(self.device, non_blocking=True).index_select(0, self.order)
            torch.cumsum(allowed, 0, dtype=torch.int32, out=sums[1:])
            for dead in [key for key, (reference, _) in self._cumsums.items() if reference() is None]:
                del self._cumsums[dead]
            kept = self._cumsums[id(mask)] = (weakref.ref(mask), sums)
        return kept[1]


class RowFilter:
    """Which rows each of N requests may still reach.

    Args:
        masks (N of bool [R] or `None`): allowed original rows; `None` allows all. Equal masks should be one object.
        denied (N of int64, *optional*): original rows to leave out besides; costs its length, not the catalogue.
    """

    def __init__(
        self, trie: SemIDTrie, masks: Sequence[np.ndarray | None] | None, denied: Sequence[np.ndarray] | None
    ):
        size = len(masks if masks is not None else denied)
        self.masks = list(masks) if masks is not None else [None] * size
        self.denied = [np.unique(rows) for rows in denied] if denied is not None else [np.empty(0, np.int64)] * size
        if len(self.denied) != size:
            raise ValueError(f"{size} masks but {len(self.denied)} deny lists")
        self.trie = trie
        distinct = {id(mask): mask for mask in self.masks if mask is not None}
        self._groups = [
            (self._moved(torch.tensor([i for i, mask in enumerate(self.masks) if mask is wanted])), wanted)
            for wanted in distinct.values()
        ]
        # What the mask rules out must not count twice.
        left = [rows if mask is None else rows[mask[rows]] for mask, rows in zip(self.masks, self.denied)]
        positions = np.full((size, max(map(len, left), default=0)), trie.num_rows, np.int64)
        for row, rows in zip(positions, left):
            row[: len(rows)] = np.sort(trie.position[rows])
        self._denied = self._moved(torch.from_numpy(positions)) if positions.size else None

    def _moved(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.to(self.trie.device, non_blocking=True)  # nobody waits for what the device has begun

    def count(self, low: torch.Tensor, high: torch.Tensor) -> torch.Tensor:
        """int64 [N, M]: allowed rows in ranges of sorted rows (int64 [N, M] each)."""
        count = high - low
        for requests, mask in self._groups:
            sums = self.trie.cumsum(mask)
            count[requests] = (sums[high[requests]] - sums[low[requests]]).long()
        if self._denied is not None:
            count -= torch.searchsorted(self._denied, high) - torch.searchsorted(self._denied, low)
        return count

    def keep(self, request: int, rows: np.ndarray) -> np.ndarray:
        """bool [len(rows)]: which original rows this request may return."""
        kept = ~np.isin(rows, self.denied[request])
        return kept if self.masks[request] is None else kept & self.masks[request][rows]

    def select(self, requests: Sequence[int]) -> "RowFilter":
        return RowFilter(self.trie, [self.masks[i] for i in requests], [self.denied[i] for i in requests])


def _compact(column: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sorted distinct values of a column (int64 [T]) and the place of every row among them (int32 [R])."""
    present = np.zeros(int(column.max()) + 2, bool)
    present[column + 1] = True
    place = np.cumsum(present, dtype=np.int32) - 1
    return np.flatnonzero(present) - 1, place[column + 1].astype(np.int32)


def _argsort_rows(columns: Sequence[np.ndarray], sizes: Sequence[int]) -> np.ndarray:
    """Stable lexicographic order of rows given as columns of numbers below `sizes`.

    Columns are packed into 64-bit words; where the row number fits beside them, sorting plain words is ten times
    faster than an argsort.
    """
    words, room = [], 0
    for column, size in zip(columns, sizes):
        width = max(1, (size - 1).bit_length())
        if width > room:
            words.append(np.zeros(len(column), np.uint64))
            room = 64
        words[-1] <<= np.uint64(width)
        words[-1] |= column.astype(np.uint64)
        room -= width
    rows = np.arange(len(columns[0]), dtype=np.uint64)
    width = len(rows).bit_length()
    if len(words) > 1 or width > room:
        return np.lexsort(words[::-1])
    return (np.sort((words[0] << np.uint64(width)) | rows) & np.uint64(2**width - 1)).astype(np.int64)

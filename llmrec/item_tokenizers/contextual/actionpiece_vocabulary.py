"""ActionPiece's vocabulary: which features of one item, or of two neighbours, merge into a piece (2502.13581).

A sequence is a chain of cells: even cells are items, as sorted lists of tokens, the odd cells between them are context
slots, empty at first. Two tokens meet inside an item (weight 2/|A|: how often a random order of A makes them
neighbours), across two items with an empty slot between them (1/(|A||B|)), or in an item and the slot beside it
(1/|A|). The heaviest pair becomes a piece: in its item when both tokens were there, else in the slot.

The paper leaves these open: in a sequence pairs inside items merge first, then those across, from the left; equal
weights are decided by the lower token numbers; an item whose tokens all went to its slots stays as a barrier.
Weights are integers, multiples of 1 / lcm(1..m)^2, so counts that are kept up to date equal counts made anew.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from heapq import heapify, heappop, heappush
from itertools import combinations

import numpy as np
from tqdm.auto import tqdm

Chain = list[list[int]]


def make_chain(sets: Iterable[Iterable[int]]) -> Chain:
    return [cell for tokens in sets for cell in (sorted(tokens), [])][:-1]


def add_weights(chain: Chain, first: int, last: int, unit: int, base: int, weights: dict[int, int]) -> None:
    """Adds to `weights` what the items `first` to `last` (even cells) and the slots beside them weigh.

    Args:
        unit: what 1 is counted as; negative to subtract.
        base: the pair of tokens a <= b has the key a * base + b.
    """
    for x in range(first, last + 1, 2):
        item = chain[x]
        if len(item) > 1:
            weight = 2 * unit // len(item)
            for a, b in combinations(item, 2):
                key = a * base + b
                weights[key] = weights.get(key, 0) + weight
    for slot in range(max(1, first - 1), min(len(chain), last + 2), 2):
        left, middle, right = chain[slot - 1 : slot + 2]
        for one, other in ((left, middle), (middle, right)) if middle else ((left, right),):
            if one and other:
                weight = unit // (len(one) * len(other))
                for a in one:
                    for b in other:
                        key = a * base + b if a < b else b * base + a
                        weights[key] = weights.get(key, 0) + weight


def find_pair(chain: Chain, a: int, b: int) -> tuple[int, int] | None:
    """The cells of the first place where tokens a and b meet."""
    if a != b:
        for x in range(0, len(chain), 2):
            if a in chain[x] and b in chain[x]:
                return x, x
    for slot in range(1, len(chain), 2):
        for x, y in ((slot - 1, slot), (slot, slot + 1)) if chain[slot] else ((slot - 1, slot + 1),):
            if a in chain[x] and b in chain[y]:
                return x, y
            if b in chain[x] and a in chain[y]:
                return y, x
    return None


def merge_pair(chain: Chain, x: int, y: int, a: int, b: int, piece: int) -> int:
    """Replaces a in cell x and b in cell y by a piece, whose number must be the highest, and returns its cell."""
    chain[x].remove(a)
    chain[y].remove(b)
    cell = x if x == y or x % 2 else y if y % 2 else (x + y) // 2
    chain[cell].append(piece)
    return cell


def beside(chain: Chain, cell: int) -> list[int]:
    """The tokens that meet the last one of a cell."""
    if cell % 2:
        return chain[cell - 1] + chain[cell + 1]
    left = chain[cell - 1] or chain[cell - 2] if cell else []
    right = chain[cell + 1] or chain[cell + 2] if cell + 1 < len(chain) else []
    return chain[cell][:-1] + left + right


def weight_unit(chains: Iterable[Chain]) -> int:
    """An integer that every weight of these chains is a multiple of when 1 is counted as it."""
    largest = max((len(item) for chain in chains for item in chain[::2]), default=1)
    return math.lcm(*range(1, largest + 1)) ** 2


def learn_merges(sequences: Iterable[Iterable[Iterable[int]]], num_tokens: int, num_merges: int) -> np.ndarray:
    """The pairs that merge, in order; pair r makes piece `num_tokens + r`.

    A heap holds for every pair at least its weight (a stale entry is put back or dropped when it comes up), an index
    the sequences that hold or held it, and a merge recounts only the cells it touches.

    Args:
        sequences: per sequence, per item, its distinct tokens, numbers below `num_tokens`.
        num_merges: at most; fewer where no pair is left.

    Returns:
        int32 `[M, 2]`: token or piece numbers, the lower first.
    """
    chains = [make_chain(sets) for sets in sequences]
    unit, base = weight_unit(chains), num_tokens + num_merges
    counts: dict[int, int] = defaultdict(int)
    holders: dict[int, list[int]] = defaultdict(list)
    for number, chain in enumerate(chains):
        weights: dict[int, int] = {}
        add_weights(chain, 0, len(chain) - 1, unit, base, weights)
        for key, weight in weights.items():
            counts[key] += weight
            holders[key].append(number)
    heap = [(-weight, key) for key, weight in counts.items()]
    heapify(heap)
    merges: list[tuple[int, int]] = []
    progress = tqdm(total=num_merges, desc="merges", delay=2)
    while heap and len(merges) < num_merges:
        weight, key = heappop(heap)
        now = counts.get(key, 0)
        if now != -weight:
            if 0 < now < -weight:
                heappush(heap, (-now, key))
            continue
        a, b = divmod(key, base)
        piece = num_tokens + len(merges)
        merges.append((a, b))
        progress.update()
        change: dict[int, int] = {}
        for number in dict.fromkeys(holders.pop(key)):
            chain = chains[number]
            while (place := find_pair(chain, a, b)) is not None:
                items = [x for x in place if x % 2 == 0]
                add_weights(chain, min(items), max(items), -unit, base, change)
                cell = merge_pair(chain, *place, a, b, piece)
                add_weights(chain, min(items), max(items), unit, base, change)
                for token in beside(chain, cell):
                    holders[token * base + piece].append(number)
        for pair, difference in change.items():
            counts[pair] += difference
            if difference > 0:
                heappush(heap, (-counts[pair], pair))
        del counts[key]
    progress.close()
    return np.array(merges, np.int32).reshape(-1, 2)


class Pieces:
    """Applies the merges of `learn_merges` to flat sequences, and knows what a piece is made of."""

    def __init__(self, merges: np.ndarray, num_tokens: int):
        self.num_tokens = num_tokens
        self._base = num_tokens + len(merges)
        self._rank = {a * self._base + b: rank for rank, (a, b) in enumerate(merges.tolist())}
        self.contents: list[tuple[int, ...]] = [(token,) for token in range(num_tokens)]
        for a, b in merges.tolist():
            self.contents.append(tuple(sorted(self.contents[a] + self.contents[b])))

    def __len__(self) -> int:
        return self._base

    def apply(self, tokens: Sequence[int]) -> list[int]:
        """Byte-pair encoding of unordered pairs: the merge that was learned first goes first, then the leftmost."""
        tokens = list(tokens)
        left, right = list(range(-1, len(tokens) - 1)), list(range(1, len(tokens) + 1))

        def rank_at(i: int) -> int | None:
            if i < 0 or right[i] == len(tokens):
                return None
            a, b = tokens[i], tokens[right[i]]
            return self._rank.get(a * self._base + b if a < b else b * self._base + a)

        heap = [(rank, i) for i in range(len(tokens)) if (rank := rank_at(i)) is not None]
        heapify(heap)
        while heap:
            rank, i = heappop(heap)
            if tokens[i] < 0 or rank_at(i) != rank:
                continue  # one of the two has merged meanwhile
            j = right[i]
            tokens[i], tokens[j], right[i] = self.num_tokens + rank, -1, right[j]
            if right[i] < len(tokens):
                left[right[i]] = i
            for start in (left[i], i):
                if (rank := rank_at(start)) is not None:
                    heappush(heap, (rank, start))
        return [token for token in tokens if token >= 0]

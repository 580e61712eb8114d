"""Collision policies: what happens when a tokenizer gives two items the same codes.

A policy is a function `(codes [N, L], costs, taken [M, L + 1]) -> [N, L + 1]`, -1 where an item has no further code:
`costs(rows)` are squared distances float32 `[len(rows), K_L]` of these rows to the codes of the last level, `taken`
the codes that are in use already and never change. Building an index is adding all items to an empty one.
All policies but `keep` end with distinct codes; all are deterministic in the order of the items.

| policy | rule | origin |
|---|---|---|
| `keep` | items share a SemID | OpenOneRec |
| `append` | a further code 0, 1, 2, ... for every member of a colliding group | MiniOneRec |
| `append_all` | a further code for every item | TIGER (2305.05065) |
| `reassign_last` | other last codes at least total cost, per prefix; `append` where it is full | linear assignment |
| `sinkhorn_last` | other last codes by balanced assignment of each group, at most 20 rounds, then `append` | LC-Rec |
"""

from collections.abc import Callable

import numpy as np
from scipy.optimize import linear_sum_assignment

from llmrec.arrays import sinkhorn

Costs = Callable[[np.ndarray], np.ndarray]


def keep(codes: np.ndarray, costs: Costs, taken: np.ndarray) -> np.ndarray:
    return np.pad(codes, ((0, 0), (0, 1)), constant_values=-1)


def append(codes: np.ndarray, costs: Costs, taken: np.ndarray) -> np.ndarray:
    return _number(codes, taken, everyone=False)


def append_all(codes: np.ndarray, costs: Costs, taken: np.ndarray) -> np.ndarray:
    return _number(codes, taken, everyone=True)


def reassign_last(codes: np.ndarray, costs: Costs, taken: np.ndarray) -> np.ndarray:
    """In every prefix with a collision all (new) items get distinct free codes of the last level, at the least sum of
    squared distances. Items beyond the number of free codes keep theirs and get a further code."""
    codes = codes.copy()
    for rows, used in _colliding_prefixes(codes, taken):
        cost = costs(rows)
        free = np.setdiff1d(np.arange(cost.shape[1]), used)
        chosen, code = linear_sum_assignment(cost[:, free])
        codes[rows[chosen], -1] = free[code]
    return _number(codes, taken, everyone=False)


def sinkhorn_last(codes: np.ndarray, costs: Costs, taken: np.ndarray) -> np.ndarray:
    """Every colliding group is assigned anew among the last-level codes that nobody else in its prefix has, by optimal
    transport with equal mass on every code (LC-Rec's uniform mapping, here in the log domain). Unlike there a moved
    item cannot hit another group. Shares of equal items stay equal, hence the final `append`."""
    codes = codes.copy()
    for rows, used in _colliding_prefixes(codes, taken):
        cost = costs(rows)
        for _ in range(20):
            last = codes[rows, -1]
            values, counts = np.unique(last, return_counts=True)
            clash = values[counts + np.isin(values, used) > 1]
            distinct = len(np.union1d(last, used))
            for code in clash:
                group = np.flatnonzero(last == code)
                others = np.concatenate([used, np.delete(last, group)])
                free = np.setdiff1d(np.arange(cost.shape[1]), others)
                if len(free):
                    last[group] = free[sinkhorn(cost[np.ix_(group, free)]).argmax(1)]
            if len(np.union1d(last, used)) == distinct:
                break  # no collision, or nothing left to win: equal items move together
            codes[rows, -1] = last
    return _number(codes, taken, everyone=False)


COLLISION_POLICIES: dict[str, Callable[[np.ndarray, Costs, np.ndarray], np.ndarray]] = {
    "keep": keep,
    "append": append,
    "append_all": append_all,
    "reassign_last": reassign_last,
    "sinkhorn_last": sinkhorn_last,
}


def collision_stats(codes: np.ndarray) -> dict:
    """How far codes `[N, L]` are from unique: `unique` IDs U, `collision_rate` 1 - U/N, `colliding_items` (share of
    items that are not alone), `largest_group`, `group_sizes` (size: number of groups)."""
    counts = np.bincount(equal_rows(codes))
    shared = counts[counts > 1]
    return {
        "items": len(codes),
        "unique": len(counts),
        "collision_rate": 1 - len(counts) / len(codes),
        "colliding_items": int(shared.sum()) / len(codes),
        "largest_group": int(counts.max()),
        "group_sizes": {str(size): int((counts == size).sum()) for size in np.unique(counts)},
    }


def equal_rows(codes: np.ndarray) -> np.ndarray:
    """int64 `[N]`: a number from 0 on for every row of a matrix of codes (-1 or more), in their order; equal rows have
    the same."""
    sizes = codes.max(0, initial=-1).astype(object) + 2
    if np.prod(sizes, initial=1) < 2**63:  # a row is one number, which sorts as the row does
        numbers = np.zeros(len(codes), np.int64)
        for column, size in zip(codes.T, sizes):
            numbers = numbers * int(size) + column + 1
        return np.unique(numbers, return_inverse=True)[1]
    return np.unique(codes, axis=0, return_inverse=True)[1].reshape(-1)


def _number(codes: np.ndarray, taken: np.ndarray, everyone: bool) -> np.ndarray:
    """A further code for the items that collide (or for everyone): the next number that its group has not used."""
    result = np.pad(codes, ((0, 0), (0, 1)), constant_values=-1)
    group, group_of_taken = np.split(equal_rows(np.concatenate([codes, taken[:, :-1]])), [len(codes)])
    total = np.bincount(np.concatenate([group, group_of_taken]))
    next_number = np.zeros(len(total), np.int64)
    np.maximum.at(next_number, group_of_taken, taken[:, -1].astype(np.int64) + 1)
    order = np.argsort(group, kind="stable")
    starts = np.searchsorted(group[order], group[order], side="left")
    running = np.empty(len(group), np.int64)
    running[order] = np.arange(len(group)) - starts
    further = np.ones(len(group), bool) if everyone else total[group] > 1
    result[further, -1] = (next_number[group] + running)[further]
    return result


def _colliding_prefixes(codes: np.ndarray, taken: np.ndarray):
    """For every prefix `[:, :L-1]` in which an item collides: its rows, and the last codes already in use there."""
    both, new = np.concatenate([codes, taken[:, :-1]]), np.arange(len(codes) + len(taken)) < len(codes)
    group, prefix = equal_rows(both), equal_rows(both[:, :-1])
    collides = new & (np.bincount(group)[group] > 1)
    by_prefix = np.argsort(prefix, kind="stable")
    bounds = np.searchsorted(prefix[by_prefix], np.arange(len(both) + 1))
    for number in np.unique(prefix[collides]):
        rows = by_prefix[bounds[number] : bounds[number + 1]]
        yield rows[new[rows]], np.unique(both[rows[~new[rows]], -1])

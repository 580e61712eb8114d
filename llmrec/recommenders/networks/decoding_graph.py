"""Ranking by digits that are predicted all at once, over the whole catalogue or along a graph of similar items (RPG,
KDD 2025, arXiv:2506.05781).

A score is the mean over an item's m digits of one number per digit: of its log-probability (`item_scores` of what the
network says), or of its similarity to the digit of another item (`item_scores` of that item, which makes the graph).
Throughout `codes` are int32 `[N, m]` with digit d's codes numbered from d * K on, and a table is float `[b, m * K]`.

Notable: `walk` visits few items, and scores those as `item_scores` does, so only which items it finds is approximate;
along a complete graph it finds them all.
"""

import numpy as np
import torch
import torch.nn.functional as F

from llmrec.arrays import blocks

ONE_CELL = 2**14  # items; beyond, neighbours are looked for in near cells only
CELL = 512  # items of a cell, on average
NEAR = 16  # cells in which an item looks for its neighbours, at least


def item_scores(tables: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
    """float [b, N]: the mean of every item's m numbers in each of b tables, by one gather over the catalogue."""
    wide = F.pad(tables, (0, 0, 0, max(0, 16 - len(tables))))  # narrow rows are gathered one number at a time
    return F.embedding_bag(codes, wide.T.contiguous(), mode="mean").T[: len(tables)].contiguous()


def digit_similarity(vectors: torch.Tensor) -> torch.Tensor:
    """float [m * K, K]: (cosine + 1) / 2 of the vectors (float [m, K, D]) of the codes of one digit."""
    unit = F.normalize(vectors, dim=-1)
    return ((unit @ unit.mT + 1) / 2).flatten(0, 1)


@torch.no_grad()
def decoding_graph(similarity: torch.Tensor, codes: torch.Tensor, edges: int, seed: int = 0) -> torch.Tensor:
    """int32 [N, min(edges, N - 1)]: the items that are most similar to each, nearest first, without itself.

    Exact up to `ONE_CELL` items. Beyond, random items become centres of cells of about `CELL` items, every item
    belongs to the most similar centre, and its neighbours are the most similar items of at least `NEAR` near cells:
    10^6 items take minutes where all pairs take hours.

    Args:
        similarity: float [m * K, K], as `digit_similarity` gives it.
    """
    count = len(codes)
    edges = min(edges, count - 1)
    everyone = torch.arange(count, device=codes.device)
    if count <= ONE_CELL:
        cells, near = [everyone], [everyone]
    else:
        cells, near = _cells(similarity, codes, 2 * edges, seed)
    graph = torch.empty(count, edges, dtype=torch.int32, device=codes.device)
    for members, candidates in zip(cells, near):
        for part in blocks(len(members), 256):
            rows = members[part]
            scores = _similarities(similarity, codes[rows], codes[candidates])
            scores.masked_fill_(rows[:, None] == candidates, -torch.inf)
            graph[rows] = candidates[scores.topk(edges).indices].int()
    return graph


def _similarities(similarity: torch.Tensor, codes_b: torch.Tensor, codes_N: torch.Tensor) -> torch.Tensor:
    """float [b, N]: of each of b items to each of N."""
    return item_scores(similarity[codes_b.long()].flatten(1), codes_N)


def _cells(similarity, codes, least: int, seed: int) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Items by cell, and the items of the cells near it: at least `NEAR` cells, and `least` items beside one's own."""
    count = len(codes)
    picked = np.random.default_rng(seed).choice(count, count // CELL, replace=False)
    centres = codes[torch.from_numpy(picked).to(codes.device)]
    cell_of = torch.cat([_similarities(similarity, codes[part], centres).argmax(1) for part in blocks(count, 4096)])
    order, sizes = cell_of.argsort(stable=True), cell_of.bincount(minlength=len(centres))
    cells = list(order.split(sizes.tolist()))
    near = []
    for part in blocks(len(centres), 256):
        for number, row in enumerate(_similarities(similarity, centres[part], centres), part.start):
            row[number] = torch.inf  # its own cell first
            nearest = row.argsort(descending=True)
            needed = int((sizes[nearest].cumsum(0) <= least).sum()) + 1
            near.append(torch.cat([cells[cell] for cell in nearest[: max(needed, NEAR)].tolist()]))
    return cells, near


@torch.no_grad()
def walk(
    tables: torch.Tensor, codes: torch.Tensor, graph: torch.Tensor, starts: torch.Tensor, beam: int, rounds: int
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Items visited for each of b tables, ascending, and their scores (int64 [v], float32 [v]).

    From `starts` (int64 [s], distinct), in each of `rounds` rounds the best `beam` items seen so far are expanded by
    their neighbours. Who was expanded before adds nothing and costs nothing.
    """
    (b, width), count, device = tables.shape, len(codes), tables.device
    seen = torch.zeros(b * count, dtype=torch.bool, device=device)
    numbers = torch.arange(b, device=device)
    keys = (numbers[:, None] * count + starts).flatten()  # table and item in one number
    kept_keys = torch.empty(b, 0, dtype=torch.int64, device=device)
    kept_scores = torch.empty(b, 0, device=device)
    visited: list[tuple[torch.Tensor, torch.Tensor]] = []
    for step in range(rounds + 1):
        seen[keys] = True
        table, item = keys.div(count, rounding_mode="floor"), keys % count
        scores = tables.flatten()[(table * width)[:, None] + codes[item]].mean(1)
        visited.append((keys, scores))
        if step == rounds:
            break
        # The new ones as a matrix, and the best of it and of what was kept.
        sizes = table.bincount(minlength=b)
        place = torch.arange(len(keys), device=device) - (sizes.cumsum(0) - sizes)[table]
        new_scores = torch.full((b, int(sizes.max())), -torch.inf, device=device)
        new_keys = torch.full(new_scores.shape, -1, device=device)
        new_scores[table, place], new_keys[table, place] = scores, keys
        kept_scores, new_keys = torch.cat([kept_scores, new_scores], 1), torch.cat([kept_keys, new_keys], 1)
        kept_scores, best = kept_scores.topk(min(beam, kept_scores.shape[1]))
        kept_keys = new_keys.gather(1, best)
        fresh = kept_keys[(best >= new_keys.shape[1] - new_scores.shape[1]) & (kept_keys >= 0)]
        keys = (fresh - fresh % count)[:, None] + graph[fresh % count]
        keys = keys[~seen[keys]].unique()
        if not len(keys):
            break
    keys, order = torch.cat([keys for keys, _ in visited]).sort()
    scores = torch.cat([scores for _, scores in visited])[order]
    sizes = keys.div(count, rounding_mode="floor").bincount(minlength=b).tolist()
    parts = zip((keys % count).cpu().split(sizes), scores.cpu().split(sizes))
    return [(rows.numpy(), of.numpy()) for rows, of in parts]

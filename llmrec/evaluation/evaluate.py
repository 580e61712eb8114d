"""`evaluate`: full ranking of the whole catalogue for every row, at item level and at SemID level."""

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from tqdm import tqdm

from llmrec.catalogue.semids import SemIDIndex
from llmrec.data import PreparedData, ids_to_rows, lists_to_rows
from llmrec.data.rows import list_array, offsets_of
from llmrec.evaluation.bootstrap import intervals_of, paired_difference
from llmrec.evaluation.metrics import KS, first_occurrences, first_positions, list_metrics, row_metrics
from llmrec.evaluation.slices import behaviour_slices, popularity_classes, row_slices
from llmrec.recommenders.protocol import Recommender, requests_of

logger = logging.getLogger(__name__)
_SLICE_K = 10


@dataclass
class EvaluationResult:
    """What one recommender did on one set of rows.

    Attributes:
        metrics: recall, ndcg and mrr @k at item level, the same at SemID level under `semid/`, valid and coverage @k,
            users_per_second and items_per_second (recommended items, wall time of `recommend` alone).
        ci: 95 % bootstrap intervals over users, `[low, high]`, of those that are means over rows.
        slices: one dict per slice with `slice`, `rows`, recall@10, ndcg@10 and `ci`.
        exposure: share of the places 1 to 10 that popularity classes of items get, and of the targets.
        predictions: one row per test row: user_id, target, item_ids, scores, rank (from 1, 0 = absent; where the
            target's SemID group starts), group_size, semid_rank (0 = absent or no SemIDs).
    """

    name: str
    metrics: dict[str, float]
    ci: dict[str, list[float]]
    slices: list[dict]
    exposure: dict[str, dict[str, float]]
    seconds: float
    predictions: pa.Table = field(repr=False)

    def to_dict(self) -> dict:
        figures = {name: getattr(self, name) for name in ("metrics", "ci", "slices", "exposure")}
        return {"rows": self.predictions.num_rows, "seconds": round(self.seconds, 3)} | figures


def evaluate(
    recommender: Recommender,
    rows: pa.Table,
    data: PreparedData,
    name: str,
    ks: Sequence[int] = KS,
    batch_size: int = 256,
    index: SemIDIndex | None = None,
    bootstrap: int = 1000,
    seed: int = 0,
) -> EvaluationResult:
    """Recommends for every row and measures where the target stands.

    Args:
        recommender: a recommender with an attribute `index` decodes SemIDs: its item-level metrics are expectations
            over a random order of items that share a SemID (see `llmrec.evaluation.metrics`).
        rows (`pa.Table`): user_id, history, target (`llmrec.data.prepared.TARGETS`); repeated items may be targets.
        index (*optional*): SemIDs for the SemID level; by default the recommender's own, and none without one. A
            list of k items holds at most k SemIDs, so the SemID level at the largest k is a lower bound.
        bootstrap: resamples of the users; 0 leaves the intervals out.

    Raises:
        ValueError: no rows, an item outside the catalogue, or a SemID index over other items.
    """
    if rows.num_rows == 0:
        raise ValueError("there is no row to evaluate")
    histories, offsets = lists_to_rows(rows["history"], data.items["item_id"])
    targets = ids_to_rows(rows["target"], data.items["item_id"]).astype(np.int64)
    trained, _ = lists_to_rows(data.train["item_ids"], data.items["item_id"])
    counts = np.bincount(trained, minlength=data.items.num_rows)

    own_index = getattr(recommender, "index", None)
    groups = np.arange(data.items.num_rows) if own_index is None else semid_groups(own_index, data.items["item_id"])
    length = max(*ks, _SLICE_K)
    item_ids, scores, list_offsets, seconds = _recommend(recommender, rows, length, batch_size, name)
    lists = _matrix(item_ids, list_offsets, data.items["item_id"], length)

    sizes = np.bincount(groups)[groups[targets]]
    ranks = first_positions(_grouped(lists, groups), groups[targets])
    per_row = row_metrics(ranks, sizes, ks)

    semid_ranks = np.zeros_like(ranks)
    if index is not None or own_index is not None:
        semids = semid_groups(index or own_index, data.items["item_id"])
        grouped = _grouped(lists, semids)
        # The rank among distinct SemIDs: places before the target's that name a SemID for the first time.
        place = np.cumsum(first_occurrences(grouped), axis=1)
        first = first_positions(grouped, semids[targets])
        semid_ranks = np.where(first > 0, place[np.arange(len(first)), first - 1], 0)
        per_row |= {f"semid/{key}": value for key, value in row_metrics(semid_ranks, None, ks).items()}

    values, users = np.stack(list(per_row.values()), 1), rows["user_id"]
    metrics = dict(zip(per_row, values.mean(0).tolist())) | list_metrics(lists, data.items.num_rows, ks)
    metrics |= {"users_per_second": rows.num_rows / seconds, "items_per_second": len(item_ids) / seconds}
    sliced = row_slices(histories, offsets, targets, counts)
    if "target_behaviour" in rows.column_names:
        sliced |= behaviour_slices(rows["target_behaviour"])
    return EvaluationResult(
        name=name,
        metrics=metrics,
        ci=intervals_of(per_row, users, bootstrap, seed),
        slices=[_slice(label, mask, ranks, sizes, users, bootstrap, seed) for label, mask in sliced.items()],
        exposure=_exposure(lists, targets, counts),
        seconds=seconds,
        predictions=pa.table(
            {
                "user_id": rows["user_id"],
                "target": rows["target"],
                "item_ids": list_array(item_ids, list_offsets),
                "scores": list_array(scores, list_offsets),
                "rank": pa.array(ranks, pa.int32()),
                "group_size": pa.array(sizes, pa.int32()),
                "semid_rank": pa.array(semid_ranks, pa.int32()),
            }
        ),
    )


def compare(ours: EvaluationResult, theirs: EvaluationResult, bootstrap: int = 1000, seed: int = 0) -> dict:
    """Paired differences (ours - theirs) at item level: `{"recall@10": {"difference", "low", "high", "p"}, ...}`.
    Raises `ValueError`: the two were not evaluated on the same rows."""
    tables = [result.predictions for result in (ours, theirs)]
    if not tables[0].select(["user_id", "target"]).equals(tables[1].select(["user_id", "target"])):
        raise ValueError(f"{ours.name} and {theirs.name} were evaluated on different rows")
    values = [row_metrics(table["rank"].to_numpy(), table["group_size"].to_numpy(), (_SLICE_K,)) for table in tables]
    stacked = [np.stack(list(metrics.values()), 1) for metrics in values]
    result = paired_difference(*stacked, tables[0]["user_id"], bootstrap, seed)
    return {key: {part: float(result[part][i]) for part in result} for i, key in enumerate(values[0])}


def semid_groups(index: SemIDIndex, item_ids: pa.ChunkedArray) -> np.ndarray:
    """int64 [items]: items that no SemID tells apart (all of their SemIDs are equal) share a number; an item without a
    SemID stands alone. Raises `ValueError`: the index holds an item that is not in `item_ids`."""
    foreign = sorted(set(index.items) - set(item_ids.to_pylist()))
    if foreign:
        raise ValueError(
            f"the Semantic IDs hold item {foreign[0]!r}, which the data lacks ({len(foreign)} such items): "
            "evaluate a model on data that has all of its items"
        )
    rows = ids_to_rows(pa.array(index.item_ids, pa.string()), item_ids)
    semids: dict[int, set[int]] = {}
    for item, semid in zip(rows.tolist(), index.groups().tolist()):
        semids.setdefault(item, set()).add(semid)
    groups = np.full(len(item_ids), -1, np.int64)
    numbers: dict[frozenset[int], int] = {}
    for item, of_item in semids.items():
        groups[item] = numbers.setdefault(frozenset(of_item), len(numbers))
    alone = groups < 0
    groups[alone] = len(numbers) + np.arange(alone.sum())
    return groups


def _recommend(recommender, rows, length, batch_size, name):
    """`(item ids, scores, offsets int64 [n + 1], seconds)` of all lists."""
    item_ids, scores, lengths, seconds = [], [], [], 0.0
    with tqdm(total=rows.num_rows, desc=f"evaluate {name}", unit="row") as progress:
        for start in range(0, rows.num_rows, batch_size):
            batch, wishes = requests_of(recommender, rows.slice(start, batch_size))
            began = time.perf_counter()
            lists = recommender.recommend(batch, length, **wishes)
            seconds += time.perf_counter() - began
            for recommended in lists:
                lengths.append(len(recommended))
                item_ids.extend(one.item_id for one in recommended)
                scores.extend(one.score for one in recommended)
            progress.update(len(batch))
    return pa.array(item_ids, pa.string()), pa.array(scores, pa.float32()), offsets_of(np.asarray(lengths)), seconds


def _matrix(item_ids: pa.Array, offsets: np.ndarray, catalogue: pa.ChunkedArray, length: int) -> np.ndarray:
    """int64 [n, length]: catalogue rows of the lists; -1 = no such item in the catalogue or the list has ended."""
    rows = pc.index_in(item_ids, catalogue.combine_chunks()).fill_null(-1).to_numpy()
    filled = np.arange(length) < np.diff(offsets)[:, None]
    matrix = np.full(filled.shape, -1, np.int64)
    matrix[filled] = rows
    return matrix


def _grouped(lists: np.ndarray, groups: np.ndarray) -> np.ndarray:
    return np.where(lists >= 0, groups[lists], -1)


def _slice(label, mask, ranks, sizes, users, bootstrap, seed) -> dict:
    per_row = row_metrics(ranks[mask], sizes[mask], (_SLICE_K,))
    means = {key: float(value.mean()) for key, value in per_row.items()}
    ci = intervals_of(per_row, users.filter(pa.array(mask)), bootstrap, seed)
    return {"slice": label, "rows": int(mask.sum()), **means, "ci": ci}


def _exposure(lists: np.ndarray, targets: np.ndarray, counts: np.ndarray) -> dict[str, dict[str, float]]:
    classes, meaning = popularity_classes(counts)
    top = lists[:, :_SLICE_K]
    parts = {"recommended": classes[top[top >= 0]], "targets": classes[targets], "catalogue": classes}
    return {
        part: {name: float((of_part == name).mean()) if len(of_part) else 0.0 for name in meaning}
        for part, of_part in parts.items()
    }

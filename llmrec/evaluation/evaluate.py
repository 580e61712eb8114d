"""`evaluate`: full ranking of the whole catalogue for every row, at item level and at SemID level."""

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from tqdm import tqdm

from llmrec.catalogue.filters import Filter
from llmrec.catalogue.semids import SemIDIndex
from llmrec.data import PreparedData, excludes_seen, ids_to_rows, lists_to_rows
from llmrec.data.rows import list_array, offsets_of
from llmrec.data.seen import repeats
from llmrec.evaluation.bootstrap import intervals_of, paired_difference
from llmrec.evaluation.metrics import (
    KS,
    first_occurrences,
    first_positions,
    list_metrics,
    row_metrics,
    seen_items,
    target_ranks,
)
from llmrec.evaluation.slices import behaviour_slices, popularity_classes, row_slices
from llmrec.recommenders import LLMRecommender
from llmrec.recommenders.length import check_histories
from llmrec.recommenders.protocol import Recommender, requests_of, with_times

logger = logging.getLogger(__name__)
_SLICE_K = 10


@dataclass
class EvaluationResult:
    """What one recommender did on one set of rows.

    Attributes:
        metrics: recall, ndcg and mrr @k at item level, the same at SemID level under `semid/`, valid and coverage @k,
            users_per_second and items_per_second (recommended items, wall time of `recommend` alone). Where `auto`
            left the items of histories out, recall@10 and ndcg@10 of lists that keep them stand under `kept/`, and
            `kept/seen@1` is the share of the first places that they take there.
        ci: 95 % bootstrap intervals over users, `[low, high]`, of those that are means over rows.
        slices: one dict per slice with `slice`, `rows`, recall@10, ndcg@10 and `ci`.
        masks: of the same slices, bool [rows] each.
        exclude_seen: whether lists leave out the items of the history.
        exposure: share of the places 1 to 10 that popularity classes of items get, and of the targets.
        predictions: one row per test row: user_id, target, item_ids, scores, rank (from 1, 0 = absent; where the
            target's SemID group starts), group_size, semid_rank (0 = absent or no SemIDs); with `kept/` figures also
            kept_rank and kept_group_size.
    """

    name: str
    metrics: dict[str, float]
    ci: dict[str, list[float]]
    slices: list[dict]
    masks: dict[str, np.ndarray] = field(repr=False)
    exposure: dict[str, dict[str, float]]
    seconds: float
    exclude_seen: bool
    predictions: pa.Table = field(repr=False)

    def to_dict(self) -> dict:
        figures = {name: getattr(self, name) for name in ("metrics", "ci", "slices", "exposure")}
        facts = {
            "rows": self.predictions.num_rows,
            "seconds": round(self.seconds, 3),
            "exclude_seen": self.exclude_seen,
        }
        return facts | figures


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
    exclude_seen: str | bool = "auto",
) -> EvaluationResult:
    """Recommends for every row and measures where the target stands.

    Args:
        recommender: a recommender with an attribute `index` decodes SemIDs: its item-level metrics are expectations
            over a random order of items that share a SemID (see `llmrec.evaluation.metrics`).
        rows (`pa.Table`): user_id, history, target (`llmrec.data.prepared.TARGETS`); repeated items may be targets.
        index (*optional*): SemIDs for the SemID level; by default the recommender's own, and none without one. A
            list of k items holds at most k SemIDs, so the SemID level at the largest k is a lower bound.
        bootstrap: resamples of the users; 0 leaves the intervals out.
        exclude_seen: whether lists leave out the items of the history, by the recommender's own filter
            (`llmrec.data.excludes_seen`, where `rows` count too).

    Raises:
        ValueError: no rows, no `ks`, an item outside the catalogue, a SemID index over other items, or a recommender
            that lists items of the history though it was asked to leave them out.
    """
    if len(ks) == 0:
        raise ValueError("ks is empty: give at least one length of list")
    if rows.num_rows == 0:
        raise ValueError("there is no row to evaluate")
    rows = with_times(recommender, rows, data)
    seen = lists_to_rows(rows["history"], data.items["item_id"])
    repeated = repeats(rows, data.items["item_id"])
    excluded = excludes_seen(exclude_seen, data, rows)
    if excluded and repeated.any():
        text = "%s: lists leave out the items of histories, but the target is one in %d of %d rows: never found there"
        logger.warning(text, name, repeated.sum(), len(repeated))
    targets = ids_to_rows(rows["target"], data.items["item_id"]).astype(np.int64)
    trained, _ = lists_to_rows(data.train["item_ids"], data.items["item_id"])
    counts = np.bincount(trained, minlength=data.items.num_rows)

    own_index = getattr(recommender, "index", None)
    groups = np.arange(data.items.num_rows) if own_index is None else semid_groups(own_index, data.items["item_id"])
    length = max(*ks, _SLICE_K)
    asked = {"filters": Filter(exclude_seen=True)} if excluded else {}
    item_ids, scores, list_offsets, seconds = _recommend(recommender, rows, length, batch_size, name, asked)
    lists = _matrix(item_ids, list_offsets, data.items["item_id"], length)
    if excluded and (again := _holds_seen(lists, seen)).any():
        raise ValueError(
            f"{name} lists items of the history in {again.sum()} of {len(lists)} rows, though it was asked to leave "
            "them out: it should heed Filter(exclude_seen=True), or evaluate with exclude_seen: false"
        )

    ranks, sizes = target_ranks(lists, targets, groups, seen if excluded else None)
    places = {"rank": ranks, "group_size": sizes}
    also_kept = excluded and str(exclude_seen).lower() == "auto"
    if also_kept:
        kept = _recommend(recommender, rows, _SLICE_K, batch_size, f"{name}, seen items kept", {})
        kept_lists = _matrix(kept[0], kept[2], data.items["item_id"], _SLICE_K)
        places |= dict(zip(("kept_rank", "kept_group_size"), target_ranks(kept_lists, targets, groups)))
    per_row = row_figures(pa.table(places), ks)
    if also_kept:
        per_row["kept/seen@1"] = _holds_seen(kept_lists[:, :1], seen).astype(float)

    semid_ranks = np.zeros_like(ranks)
    if index is not None or own_index is not None:
        semids = semid_groups(index or own_index, data.items["item_id"])
        grouped = np.where(lists >= 0, semids[lists], -1)
        # The rank among distinct SemIDs: places before the target's that name a SemID for the first time.
        place = np.cumsum(first_occurrences(grouped), axis=1)
        first = first_positions(grouped, semids[targets])
        semid_ranks = np.where(first > 0, place[np.arange(len(first)), first - 1], 0)
        per_row |= {f"semid/{key}": value for key, value in row_metrics(semid_ranks, None, ks).items()}

    places["semid_rank"] = semid_ranks
    left_out = np.bincount(seen_items(*seen, data.items.num_rows)[0], minlength=rows.num_rows) if excluded else 0
    values, users = np.stack(list(per_row.values()), 1), rows["user_id"]
    metrics = dict(zip(per_row, values.mean(0).tolist())) | list_metrics(lists, data.items.num_rows, ks, left_out)
    metrics |= {"users_per_second": rows.num_rows / seconds, "items_per_second": len(item_ids) / seconds}
    sliced = row_slices(np.diff(seen[1]), repeated, targets, counts)
    if "target_behaviour" in rows.column_names:
        sliced |= behaviour_slices(rows["target_behaviour"])
    return EvaluationResult(
        name=name,
        metrics=metrics,
        ci=intervals_of(per_row, users, bootstrap, seed),
        slices=[_slice(label, mask, ranks, sizes, users, bootstrap, seed) for label, mask in sliced.items()],
        masks=sliced,
        exposure=_exposure(lists, targets, counts),
        seconds=seconds,
        exclude_seen=excluded,
        predictions=pa.table(
            {
                "user_id": rows["user_id"],
                "target": rows["target"],
                "item_ids": list_array(item_ids, list_offsets),
                "scores": list_array(scores, list_offsets),
                **{column: pa.array(one, pa.int32()) for column, one in places.items()},
            }
        ),
    )


def row_figures(predictions: pa.Table, ks: Sequence[int] = KS) -> dict[str, np.ndarray]:
    """What `evaluate` found at item level, row by row, from its predictions: `row_metrics`, and where lists were asked
    for that keep the items of histories `kept/recall@10` and `kept/ndcg@10`; float64 [rows] each."""
    figures = row_metrics(predictions["rank"].to_numpy(), predictions["group_size"].to_numpy(), ks)
    if "kept_rank" in predictions.column_names:
        places = (predictions[name].to_numpy() for name in ("kept_rank", "kept_group_size"))
        of_kept = row_metrics(*places, (_SLICE_K,))
        figures |= {f"kept/{name}": of_kept[name] for name in (f"recall@{_SLICE_K}", f"ndcg@{_SLICE_K}")}
    return figures


def compare(
    ours: EvaluationResult,
    theirs: EvaluationResult,
    bootstrap: int = 1000,
    seed: int = 0,
    mask: np.ndarray | None = None,
) -> dict:
    """Paired differences (ours - theirs) at item level: `{"recall@10": {"difference", "low", "high", "p"}, ...}`, over
    the rows of a mask (bool [rows], such as one of `masks`) or all. Raises `ValueError`: the two were not evaluated on
    the same rows, or one of them without the items of histories."""
    tables = [result.predictions for result in (ours, theirs)]
    if not tables[0].select(["user_id", "target"]).equals(tables[1].select(["user_id", "target"])):
        raise ValueError(f"{ours.name} and {theirs.name} were evaluated on different rows")
    if ours.exclude_seen != theirs.exclude_seen:
        raise ValueError(f"of {ours.name} and {theirs.name} one was evaluated with exclude_seen: set it for both")
    if mask is not None:
        tables = [table.filter(pa.array(mask)) for table in tables]
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


def _recommend(recommender, rows, length, batch_size, name, asked):
    """`(item ids, scores, offsets int64 [n + 1], seconds)` of all lists; `asked` are arguments of every request."""
    item_ids, scores, lengths, seconds = [], [], [], 0.0
    if isinstance(recommender, LLMRecommender):  # what it has no positions for is refused before anything is computed
        histories, wishes = requests_of(recommender, rows)
        check_histories(recommender, histories, wishes.get("behaviour"))
    with tqdm(total=rows.num_rows, desc=f"evaluate {name}", unit="row") as progress:
        for start in range(0, rows.num_rows, batch_size):
            batch, wishes = requests_of(recommender, rows.slice(start, batch_size))
            began = time.perf_counter()
            lists = recommender.recommend(batch, length, **asked, **wishes)
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


def _holds_seen(lists: np.ndarray, seen: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """bool [n]: whether a list (catalogue rows, int [n, K]) holds an item of its history."""
    values, offsets = seen
    row = np.repeat(np.arange(len(lists)), np.diff(offsets))
    again = (lists[row] == values[:, None]).any(1)
    return np.bincount(row[again], minlength=len(lists)) > 0


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

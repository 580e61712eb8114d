"""Cold start: how well are items recommended that nobody had touched when everything was trained?

`hold_out_items` takes every interaction with some items out of training and validation. All that is learned then
(features, codebooks, models, baselines, the choice of a checkpoint) is learned without them, while the catalogue still
has them: they get Semantic IDs from an item tokenizer that has never seen them, and may be recommended. One exception:
for a model from scratch recipes/init_model.py learns how to split words from the titles of the whole catalogue.

`evaluate_cold` shows three views of the test rows: targets that are cold, ranked in the whole catalogue (what a shop
would see) and among the cold items alone (can it tell them apart at all?), and the other targets beside them.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from llmrec.data import PreparedData, ids_to_rows, lists_to_rows, training_rows
from llmrec.data.rows import flatten_lists, list_array, offsets_of
from llmrec.data.statistics import statistics
from llmrec.evaluation.evaluate import EvaluationResult, evaluate
from llmrec.evaluation.metrics import KS
from llmrec.evaluation.report import write_report
from llmrec.files import atomic_path, write_json
from llmrec.filters import Filter
from llmrec.recommender import Recommendation, Recommender

COLD, COLD_ONLY, WARM = "cold targets", "cold targets, cold items only", "warm targets"
_K = 10
_COLUMNS = (f"recall@{_K}", f"ndcg@{_K}")


def hold_out_items(
    data: PreparedData, fraction: float = 0.05, seed: int = 0, from_training: bool = False
) -> PreparedData:
    """The same data as if some items had come after training.

    - Items are drawn from those in training, evenly over popularity: one of every 1 / `fraction` neighbours in order
      of their count. Items that training does not hold afterwards are all cold.
    - Training sequences and validation histories lose the cold items; validation rows with a cold target become test
      rows, since checkpoints are chosen on validation.
    - Test histories stay whole: by then the items are in the shop.

    Args:
        fraction (`float`): share of the training items that becomes cold.
        from_training (`bool`): cold targets cut out of training sequences become test rows, too. There are many, but
            what the user did after them was trained on.

    Returns:
        Data with all items; `info["cold_items"]` lists the cold ones, `info["rules"]["hold_out"]` how they were drawn.

    Raises:
        ValueError: a fraction that leaves no item, or data without items in training.
    """
    catalogue = data.items["item_id"]
    trained, _ = lists_to_rows(data.train["item_ids"], catalogue)
    counts = np.bincount(trained, minlength=data.items.num_rows)
    seen = np.flatnonzero(counts)
    number = round(fraction * len(seen))
    if not 1 <= number < len(seen):
        raise ValueError(f"fraction {fraction} of {len(seen)} items in training holds out {number}: it should be some")
    rng = np.random.default_rng(seed)
    by_count = seen[np.lexsort((rng.permutation(len(seen)), counts[seen]))]
    cold = np.zeros(data.items.num_rows, bool)
    cold[[rng.choice(block) for block in np.array_split(by_count, number)]] = True
    train = _without_items(data.train, cold[trained])
    cold[:] = True
    cold[lists_to_rows(train["item_ids"], catalogue)[0]] = False

    of_valid = cold[ids_to_rows(data.valid["target"], catalogue)]
    tests = [data.test, data.valid.filter(pa.array(of_valid))]
    rules = data.info.get("rules", {})
    if from_training:
        rows = training_rows(data.train, rules.get("max_history"))
        rows = rows.filter(pa.array(cold[ids_to_rows(rows["target"], catalogue)]))
        rows = rows.filter(pa.array(np.diff(flatten_lists(rows["history"])[1]) > 0))
        tests.append(rows.select(data.test.column_names).cast(data.test.schema))
    valid = _warm_histories(data.valid.filter(pa.array(~of_valid)), cold, catalogue)
    info = {key: value for key, value in data.info.items() if key not in ("settings", "inputs_fingerprint")}
    hold_out = {"fraction": fraction, "seed": seed, "from_training": from_training, "of": data.fingerprint}
    info |= {"name": f"{info.get('name', 'data')}_cold", "rules": {**rules, "hold_out": hold_out}}
    info["cold_items"] = data.items.filter(pa.array(cold))["item_id"].to_pylist()
    held = PreparedData(data.items, train, valid, pa.concat_tables(tests), info)
    check_cold(held)
    held.info["statistics"] = statistics(held)
    return held


def check_cold(data: PreparedData) -> list[str]:
    """The cold items of a folder; raises `ValueError` if there are none, or training or validation holds one."""
    cold_items = data.info.get("cold_items")
    if not cold_items:
        raise ValueError("the data names no cold items: make it with recipes/cold_start.py --step hold_out")
    cold = np.zeros(data.items.num_rows, bool)
    cold[ids_to_rows(pa.array(cold_items), data.items["item_id"])] = True
    for name, column in (
        ("train", data.train["item_ids"]),
        ("validation histories", data.valid["history"]),
    ):
        values, _ = lists_to_rows(column, data.items["item_id"])
        if cold[values].any():
            item = data.items["item_id"][int(values[cold[values].argmax()])].as_py()
            raise ValueError(f"leak: cold item {item!r} stands in {name}")
    if cold[ids_to_rows(data.valid["target"], data.items["item_id"])].any():
        raise ValueError("leak: a validation target is a cold item")
    return cold_items


def _without_items(train: pa.Table, out: np.ndarray) -> pa.Table:
    """Training sequences without some of their elements (bool [elements]); empty ones disappear."""
    lengths = np.diff(flatten_lists(train["item_ids"])[1])
    sequence = np.repeat(np.arange(len(lengths)), lengths)
    place = np.arange(len(out)) - (np.cumsum(lengths) - lengths)[sequence]
    context = train["num_context"].to_numpy()
    # The first item was context, so the first that is left is: a target needs a history.
    shown = np.bincount(sequence[~out & (place < context[sequence])], minlength=len(lengths))
    shown = pa.array(np.maximum(shown, np.minimum(context, 1)).astype(np.int32))
    train = train.set_column(train.column_names.index("num_context"), train.schema.field("num_context"), shown)
    return _shorter_lists(train, "item_ids", ~out)


def _warm_histories(rows: pa.Table, cold: np.ndarray, catalogue: pa.ChunkedArray) -> pa.Table:
    """Rows without the cold items of their histories; those without history disappear."""
    return _shorter_lists(rows, "history", ~cold[lists_to_rows(rows["history"], catalogue)[0]])


def _shorter_lists(table: pa.Table, name: str, stays: np.ndarray) -> pa.Table:
    """Only these elements (bool [elements]) of a list column and of the lists beside it, which are parallel to it;
    rows whose list is empty disappear."""
    offsets = flatten_lists(table[name])[1]
    row = np.repeat(np.arange(table.num_rows), np.diff(offsets))
    left = np.bincount(row[stays], minlength=table.num_rows)
    for number, field in enumerate(table.schema):
        if pa.types.is_list(field.type):
            values = flatten_lists(table[field.name])[0].filter(pa.array(stays))
            table = table.set_column(number, field, list_array(values, offsets_of(left)).cast(field.type))
    return table.filter(pa.array(left > 0))


class Restricted:
    """A recommender that may only recommend some items."""

    def __init__(self, recommender: Recommender, item_ids: Sequence[str]):
        self.recommender = recommender
        self.allow = Filter(allow=list(item_ids))
        self.index = getattr(recommender, "index", None)
        self.behaviours = getattr(recommender, "behaviours", ())

    def recommend(self, histories, k=10, filters=None, **wishes) -> list[list[Recommendation]]:
        if filters is not None:
            raise ValueError("a restricted recommender has its filter already")
        return self.recommender.recommend(histories, k, self.allow, **wishes)


def evaluate_cold(
    recommenders: Mapping[str, Recommender],
    data: PreparedData,
    max_warm: int | None = None,
    ks: Sequence[int] = KS,
    **options,
) -> dict[str, list[EvaluationResult]]:
    """Every recommender in the three views, `{COLD: [...], COLD_ONLY: [...], WARM: [...]}` (see the module docstring).

    Args:
        data: of `hold_out_items`.
        max_warm (`int`, *optional*): a random sample of this many warm rows.
        ks: of `evaluate`; the table needs 10, which is added.
        options: `batch_size`, `bootstrap` and `seed` of `evaluate`.

    Raises:
        ValueError: training or validation holds a cold item, or there is no cold or no warm row.
    """
    cold_items = check_cold(data)
    of_cold = np.isin(ids_to_rows(data.test["target"], data.items["item_id"]),
                      ids_to_rows(pa.array(cold_items), data.items["item_id"]))  # fmt: skip
    warm = np.random.default_rng(options.get("seed", 0)).permutation(np.flatnonzero(~of_cold))[:max_warm]
    rows = {COLD: data.test.filter(pa.array(of_cold)), WARM: data.test.take(pa.array(np.sort(warm)))}
    rows = {COLD: rows[COLD], COLD_ONLY: rows[COLD], WARM: rows[WARM]}
    views: dict[str, list[EvaluationResult]] = {view: [] for view in rows}
    for name, recommender in recommenders.items():
        for view, table in rows.items():
            chosen = Restricted(recommender, cold_items) if view == COLD_ONLY else recommender
            views[view].append(evaluate(chosen, table, data, name, ks=sorted({*ks, _K}), **options))
    return views


def cold_lines(
    views: Mapping[str, Sequence[EvaluationResult]], cold_items: Sequence[str], num_items: int
) -> list[str]:
    """One Markdown table: a line per recommender, its recall and ndcg in the three views, and how often it dares to
    recommend a cold item at all."""
    columns = [(view, column) for view in views for column in _COLUMNS]
    head = ["recommender", *(f"{view}: {column}" for view, column in columns), "cold items in warm users' top 10"]
    lines = [" | ".join(["", *head, ""]).strip(), "|---|" + "---:|" * (len(head) - 1)]
    for number, result in enumerate(views[COLD]):
        cells = [_cell(views[view][number], column) for view, column in columns]
        cells.append(f"{cold_share(views[WARM][number], cold_items):.2%}")
        lines.append(" | ".join(["", result.name, *cells, ""]).strip())
    rows = {view: results[0].predictions.num_rows for view, results in views.items()}
    share = f"{len(cold_items)} of {num_items} items are cold ({len(cold_items) / num_items:.1%})"
    return [f"{share}; {rows[COLD]} test rows have a cold target, {rows[WARM]} a warm one.", "", *lines]


def cold_share(result: EvaluationResult, cold_items: Sequence[str], k: int = _K) -> float:
    """Share of the places 1 to k that cold items hold; their share of the catalogue would be chance."""
    cold = set(cold_items)
    shown = [item for items in result.predictions["item_ids"].to_pylist() for item in items[:k]]
    return sum(item in cold for item in shown) / max(1, len(shown))


def _cell(result: EvaluationResult, column: str) -> str:
    text = f"{result.metrics[column]:.4f}"
    return text + " [{:.4f}, {:.4f}]".format(*result.ci[column]) if column in result.ci else text


def write_cold_report(
    views: Mapping[str, Sequence[EvaluationResult]], data: PreparedData, folder: str | Path, facts: Mapping, **options
) -> list[str]:
    """Writes report.md and cold_start.json, and a whole report of every view into a folder of its own.

    Args:
        facts: what the reader should know; enters all reports.
        options: `reference`, `bootstrap` and `seed` of `llmrec.evaluation.report.write_report`.

    Returns:
        The lines of the table.
    """
    folder = Path(folder)
    lines = cold_lines(views, data.info["cold_items"], data.items.num_rows)
    summary: dict = {"facts": dict(facts), "cold_items": len(data.info["cold_items"]), "views": {}}
    links = []
    for view, results in views.items():
        name = view.replace(",", "").replace(" ", "_")
        summary["views"][view] = {result.name: result.to_dict() for result in results}
        write_report(results, folder / name, f"{data.info.get('name', 'data')}: {view}", facts=dict(facts), **options)
        links.append(f"- {view}: [{name}/report.md]({name}/report.md)")
    with atomic_path(folder / "report.md") as path:
        path.write_text("\n".join(["# Cold start", "", *lines, "", *links, ""]), encoding="utf-8")
    write_json(folder / "cold_start.json", summary)  # last: it marks a finished report
    return lines

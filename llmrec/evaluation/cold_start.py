"""Cold start: how well are items recommended that nobody had touched when everything was trained?

`hold_out_items` takes every interaction with some items out of training and validation. All that is learned then
(features, codebooks, models, baselines, the choice of a checkpoint) is learned without them, while the catalogue still
has them: they get Semantic IDs from an item tokenizer that has never seen them, and may be recommended. One exception:
for a model from scratch recipes/init_model.py learns how to split words from the titles of the whole catalogue.

`evaluate_cold` cuts the test rows in three: targets that are cold, ranked in the whole catalogue (what a shop
would see) and among the cold items alone (can it tell them apart at all?), and the other targets beside them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from llmrec.catalogue.filters import Filter
from llmrec.data import PreparedData, ids_to_rows
from llmrec.data.cold_items import check_cold
from llmrec.evaluation.evaluate import EvaluationResult, evaluate
from llmrec.evaluation.metrics import KS
from llmrec.evaluation.report import cell, markdown_table, write_report
from llmrec.files import atomic_path, write_json
from llmrec.recommenders.protocol import Recommendation, Recommender

COLD, COLD_ONLY, WARM = "cold targets", "cold targets, cold items only", "warm targets"
_K = 10
_COLUMNS = (f"recall@{_K}", f"ndcg@{_K}")


class Restricted:
    def __init__(self, recommender: Recommender, item_ids: Sequence[str]):
        self.recommender = recommender
        self.allow = Filter(allow=list(item_ids))
        self.index = getattr(recommender, "index", None)
        self.behaviours = getattr(recommender, "behaviours", ())
        self.timed = getattr(recommender, "timed", False)

    def recommend(self, histories, k=10, filters=None, **wishes) -> list[list[Recommendation]]:
        allow = self.allow if filters is None else replace(filters, allow=self.allow.allow)
        return self.recommender.recommend(histories, k, allow, **wishes)


def evaluate_cold(
    recommenders: Mapping[str, Recommender],
    data: PreparedData,
    max_warm: int | None = None,
    ks: Sequence[int] = KS,
    **options,
) -> dict[str, list[EvaluationResult]]:
    """Every recommender on the three cuts, `{COLD: [...], COLD_ONLY: [...], WARM: [...]}` (see the module docstring).

    Args:
        max_warm (*optional*): a random sample of this many warm rows.
        ks: of `evaluate`; the table needs 10, which is added.
        options: `batch_size`, `bootstrap`, `seed` and `exclude_seen` of `evaluate`.

    Raises:
        ValueError: training or validation holds a cold item, or there is no cold or no warm row.
    """
    cold_items = check_cold(data)
    of_cold = np.isin(ids_to_rows(data.test["target"], data.items["item_id"]),
                      ids_to_rows(pa.array(cold_items), data.items["item_id"]))  # fmt: skip
    warm = np.random.default_rng(options.get("seed", 0)).permutation(np.flatnonzero(~of_cold))[:max_warm]
    cold_rows = data.test.filter(pa.array(of_cold))
    rows = {COLD: cold_rows, COLD_ONLY: cold_rows, WARM: data.test.take(pa.array(np.sort(warm)))}
    cuts: dict[str, list[EvaluationResult]] = {cut: [] for cut in rows}
    for name, recommender in recommenders.items():
        for cut, table in rows.items():
            chosen = Restricted(recommender, cold_items) if cut == COLD_ONLY else recommender
            cuts[cut].append(evaluate(chosen, table, data, name, ks=sorted({*ks, _K}), **options))
    return cuts


def cold_lines(cuts: Mapping[str, Sequence[EvaluationResult]], cold_items: Sequence[str], num_items: int) -> list[str]:
    """One Markdown table: a line per recommender, its recall and ndcg in the three cuts, and how often it dares to
    recommend a cold item at all (their share of the catalogue would be chance)."""
    columns = [(cut, column) for cut in cuts for column in _COLUMNS]
    header = ["recommender", *(f"{cut}: {column}" for cut, column in columns), "cold items in warm users' top 10"]
    rows, cold_set = [], set(cold_items)
    for number, result in enumerate(cuts[COLD]):
        of_cuts = {cut: results[number] for cut, results in cuts.items()}
        cells = [cell(of_cuts[cut].metrics, of_cuts[cut].ci, column) for cut, column in columns]
        shown = [item for items in of_cuts[WARM].predictions["item_ids"].to_pylist() for item in items[:_K]]
        rows.append([result.name, *cells, f"{sum(item in cold_set for item in shown) / max(1, len(shown)):.2%}"])
    cold, warm = (cuts[cut][0].predictions.num_rows for cut in (COLD, WARM))
    share = f"{len(cold_items)} of {num_items} items are cold ({len(cold_items) / num_items:.1%})"
    table = markdown_table(header, rows)
    return [f"{share}; {cold} test rows have a cold target, {warm} a warm one.", "", *table]


def write_cold_report(
    cuts: Mapping[str, Sequence[EvaluationResult]], data: PreparedData, folder: str | Path, facts: Mapping, **options
) -> list[str]:
    """Writes report.md and cold_start.json, and a whole report of every cut (`write_report` with `facts` and
    `options`) into a folder of its own. Returns the lines of the table."""
    folder = Path(folder)
    cold_items = check_cold(data)
    lines = cold_lines(cuts, cold_items, data.items.num_rows)
    summary: dict = {"facts": dict(facts), "cold_items": len(cold_items), "views": {}}
    links = []
    for cut, results in cuts.items():
        name = cut.replace(",", "").replace(" ", "_")
        summary["views"][cut] = {result.name: result.to_dict() for result in results}
        write_report(results, folder / name, f"{data.info.get('name', 'data')}: {cut}", facts=dict(facts), **options)
        links.append(f"- {cut}: [{name}/report.md]({name}/report.md)")
    with atomic_path(folder / "report.md") as path:
        path.write_text("\n".join(["# Cold start", "", *lines, "", *links, ""]), encoding="utf-8")
    write_json(folder / "cold_start.json", summary)  # last: it marks a finished report
    return lines

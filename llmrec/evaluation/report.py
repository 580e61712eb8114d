"""metrics.json, predictions, and one report (Markdown and self-contained HTML) over any number of recommenders."""

import base64
import logging
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import jinja2

from llmrec.evaluation.evaluate import EvaluationResult, compare
from llmrec.evaluation.plots import exposure_bars, metric_curves, slice_bars
from llmrec.files import atomic_path, check_whole, read_json, write_json, write_parquet

logger = logging.getLogger(__name__)
_METRICS = (  # title, columns, note
    (
        "Item level",
        ("recall@5", "recall@10", "recall@50", "ndcg@5", "ndcg@10", "mrr@10"),
        "Every row has one target, so recall@k is the hit rate. [95 % bootstrap interval over users]",
    ),
    (
        "With the items of the history",
        ("kept/recall@10", "kept/ndcg@10", "kept/seen@1"),
        "The same rows where lists keep the items that a user already has. All other figures leave these out, since "
        "no target of validation or test is one. kept/seen@1: share of the first places that they take.",
    ),
    (
        "SemID level",
        ("semid/recall@5", "semid/recall@10", "semid/ndcg@10"),
        "Items that share a Semantic ID all count as the target: compare with SemID-level figures only.",
    ),
    (
        "Lists",
        ("valid@10", "coverage@10", "users_per_second", "items_per_second"),
        "valid@k: places that hold a distinct item of the catalogue. coverage@k: share of the catalogue shown.",
    ),
)
PROTOCOLS = {
    "seen_removed": "lists leave out the items of the history",
    "seen_kept": "lists may hold items of the history",
}
_FAMILIES = ("target popularity", "history length", "target in history")
_ALIGNMENT_NOTE = (
    "Items: constrained beam over the whole catalogue; words: greedy. [95 % bootstrap interval over users or items]. "
    "docs/alignment.md says what each figure means."
)
_STEERING_NOTE = (
    "Share of the first 10 items that satisfy a wish, unfiltered: held-out combinations, phrases and templates that "
    "training did not show. sequential: the same model, asked for the next item without a wish. chance: share of the "
    "catalogue that satisfies. Rows that fewer than 10 items satisfy count under 'all' only, beside what was possible."
)


def with_interval(mean: float, interval: Sequence[float] | None = None) -> str:
    """`0.1680 [0.1533, 0.1822]`."""
    return f"{mean:.4f}" if interval is None else "{:.4f} [{:.4f}, {:.4f}]".format(mean, *interval)


def cell(figures: Mapping[str, float], intervals: Mapping[str, Sequence[float]], name: str) -> str:
    """A figure with its interval if there is one; a dash where there is no such figure."""
    if name not in figures:
        return "–"
    if name.endswith("_per_second"):
        return f"{figures[name]:,.0f}"
    return with_interval(figures[name], intervals.get(name))


def protocols_of(result: Mapping) -> dict[str, str]:
    """By which of `PROTOCOLS` a recommender in metrics.json was measured: protocol → how the names of its figures
    begin."""
    if not result["exclude_seen"]:
        return {"seen_kept": ""}
    return {"seen_removed": ""} | ({"seen_kept": "kept/"} if "kept/recall@10" in result["metrics"] else {})


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]], left: Collection[int] = (0,)) -> list[str]:
    """The lines of a table; columns but those of `left` are flush right."""
    rule = "".join("---|" if place in left else "---:|" for place in range(len(header)))
    lines = [f"| {' | '.join(row)} |" for row in (header, *rows)]
    return [lines[0], f"|{rule}", *lines[1:]]


def plain_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    rows = [header, *rows]
    widths = [max(map(len, column)) for column in zip(*rows)]
    return "\n".join("  ".join(text.ljust(width) for text, width in zip(row, widths)).rstrip() for row in rows)


def write_report(
    results: Sequence[EvaluationResult],
    folder: str | Path,
    title: str,
    reference: str | None = None,
    facts: dict | None = None,
    bootstrap: int = 1000,
    seed: int = 0,
    alignment: Mapping[str, dict] | None = None,
) -> dict:
    """Writes metrics.json, predictions/<name>.parquet, plots/*.png, report.md and report.html into `folder`.

    Args:
        reference (*optional*): name of the recommender that all others are compared with, row by row.
        facts (*optional*): what the reader should know (data set, split, seed); stands at the top and in metrics.json.
        alignment (*optional*): name → what `llmrec.evaluation.alignment.Aligner` returned; written to alignment.json.

    Returns:
        What metrics.json holds: `{"facts", "recommenders": {name: ...}, "reference", "differences": {name: ...},
        "slice_differences": {name: {slice: ...}}}`; the slices are those of the reference.

    Raises:
        ValueError: no results, two with one name, an unknown reference, or results of different rows.
    """
    names = [result.name for result in results]
    if not names or len(set(names)) != len(names):
        raise ValueError(f"a report needs results with distinct names, got {names}")
    if reference is not None and reference not in names:
        raise ValueError(f"reference {reference!r} is not one of the recommenders {names}")
    by_name = dict(zip(names, results))
    differences, of_slices = {}, {}
    if reference is not None and bootstrap:
        other = by_name[reference]
        for one in results:
            if one is not other:
                differences[one.name] = compare(one, other, bootstrap, seed)
                masks = other.masks.items()
                of_slices[one.name] = {label: compare(one, other, bootstrap, seed, mask) for label, mask in masks}
    summary = {
        "facts": facts or {},
        "recommenders": {result.name: result.to_dict() for result in results},
        "reference": reference,
        "differences": differences,
        "slice_differences": of_slices,
    }
    folder = Path(folder)
    plots = {"recall": metric_curves(results, "recall"), "ndcg": metric_curves(results, "ndcg")}
    families = [f for f in _FAMILIES if any(one["slice"].startswith(f) for one in results[0].slices)]
    plots |= {family.replace(" ", "_"): slice_bars(results, family) for family in families}
    plots["exposure"] = exposure_bars(results)
    for name, png in plots.items():
        with atomic_path(folder / "plots" / f"{name}.png") as temporary:
            temporary.write_bytes(png)
    for result in results:
        file = re.sub(r"[^\w.-]+", "_", result.name)
        write_parquet(folder / "predictions" / f"{file}.parquet", result.predictions)
    context = {
        "title": title,
        "facts": summary["facts"],
        "tables": _tables(results, differences, of_slices, reference)
        + (alignment_tables(alignment) if alignment else []),
        "plots": plots,
        "images": {name: base64.b64encode(png).decode() for name, png in plots.items()},
    }
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=lambda name: name is not None and ".html" in name,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    for ending in ("md", "html"):
        with atomic_path(folder / f"report.{ending}") as temporary:
            text = environment.get_template(f"report.{ending}.jinja").render(context)
            temporary.write_text(text, encoding="utf-8")
    (folder / "alignment.json").unlink(missing_ok=True)
    if alignment:
        write_json(folder / "alignment.json", {"facts": summary["facts"], "models": dict(alignment)})
    write_json(folder / "metrics.json", summary)  # last: it marks a finished report
    return summary


def is_report_of(folder: str | Path, inputs: str) -> bool:
    """Whether a folder holds the whole report of these inputs (`facts["inputs fingerprint"]`)."""
    try:
        check_whole(folder)
        return read_json(Path(folder) / "metrics.json")["facts"]["inputs fingerprint"] == inputs
    except (ValueError, TypeError, KeyError) as error:
        if Path(folder).exists():
            logger.warning("The report in %s is not reused: %s", folder, error)
        return False


def headline(summary: dict) -> str:
    """A plain-text table of the main figures with their intervals, from what metrics.json holds."""
    columns = ("recall@10", "ndcg@10")
    rows = [
        [name, *(cell(result["metrics"], result["ci"], column) for column in columns)]
        for name, result in summary["recommenders"].items()
    ]
    return plain_table(["recommender", *columns], rows)


def alignment_text(folder: str | Path) -> str:
    """The tables of the alignment report in plain text, if there is one in the folder of a report."""
    path = Path(folder) / "alignment.json"
    tables = alignment_tables(read_json(path)["models"]) if path.exists() else []
    return "".join(f"\n{one['title']}\n\n{plain_table(one['header'], one['rows'])}\n" for one in tables)


def alignment_tables(alignments: Mapping[str, dict]) -> list[dict]:
    """One table of all figures, a column per model, and one of the wishes for each model."""
    rows = []
    for section in dict.fromkeys(name for one in alignments.values() for name in one["sections"]):
        parts = [one["sections"].get(section, {"rows": 0, "figures": {}, "ci": {}}) for one in alignments.values()]
        for name in dict.fromkeys(name for part in parts for name in part["figures"]):
            cells = [cell(part["figures"], part["ci"], name) for part in parts]
            rows.append([f"{section}: {name}", str(max(part["rows"] for part in parts)), *cells])
    left_out = {f"{section} ({why})": None for one in alignments.values() for section, why in one["left_out"].items()}
    note = f"{_ALIGNMENT_NOTE} Left out: {'; '.join(left_out)}." if left_out else _ALIGNMENT_NOTE
    tables = [{"title": "Alignment", "note": note, "header": ["figure", "rows", *alignments], "rows": rows}]
    for name, one in alignments.items():
        if "steering" in one["sections"]:
            tables.append(_steering_table(name, one["sections"]["steering"]))
    return tables


def _steering_table(name: str, steering: dict) -> dict:
    figures = ("precision@10", "sequential@10", "chance")
    header = ["wish", "rows", *figures, "all rows", *(f"{figure}, all" for figure in figures), "possible, all"]

    def cells(part: dict) -> list[str]:
        return [str(part["rows"]), *(cell(part["figures"], part["ci"], figure) for figure in figures)]

    rows = [
        [kind, *cells(part), *cells(part["all"]), f"{part['all']['figures']['possible']:.4f}"]
        for kind, part in (*steering["kinds"].items(), ("any", steering))
    ]
    note = f"{_STEERING_NOTE} Templates: {steering['wordings']}."
    return {"title": f"Steering: {name}", "note": note, "header": header, "rows": rows}


def _tables(results, differences, of_slices, reference) -> list[dict]:
    """Tables as `{"title", "note", "header", "rows"}`, the same for Markdown and HTML; none without rows."""
    tables = []  # as tuples of these four
    for title, columns, note in _METRICS:
        known = [column for column in columns if any(column in result.metrics for result in results)]
        rows = [[one.name, *(cell(one.metrics, one.ci, column) for column in known)] for one in results]
        tables.append((title, note, ["recommender", *known], rows if known else []))
    rows = [
        [name, metric, f"{one['difference']:+.4f}", f"[{one['low']:+.4f}, {one['high']:+.4f}]", f"{one['p']:.3f}"]
        for name, metrics in differences.items()
        for metric, one in metrics.items()
    ]
    header = ["recommender", "metric", f"minus {reference}", "95 % interval", "p"]
    note = "Paired bootstrap over the users of the same rows, item level."
    tables.append((f"Difference to {reference}", note, header, rows))
    sliced = [{one["slice"]: one for one in result.slices} for result in results]
    rows = []
    for one in results[0].slices:
        of_label = [slices.get(one["slice"], {"ci": {}}) for slices in sliced]
        rows.append([one["slice"], str(one["rows"]), *(cell(each, each["ci"], "recall@10") for each in of_label)])
    header = ["slice", "rows", *(result.name for result in results)]
    tables.append(("recall@10 by slice", "", header, rows))
    paired = "{difference:+.4f} [{low:+.4f}, {high:+.4f}]".format_map
    rows = [
        [label, *(paired(one[label]["recall@10"]) for one in of_slices.values())]
        for label in next(iter(of_slices.values()), ())
    ]
    tables.append((f"recall@10 by slice minus {reference}", note, ["slice", *of_slices], rows))
    return [dict(zip(("title", "note", "header", "rows"), one)) for one in tables if one[-1]]

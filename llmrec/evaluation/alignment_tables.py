"""The alignment report as tables, in the shape of `llmrec.evaluation.report`."""

from collections.abc import Mapping

from llmrec.evaluation.tables import cell

_NOTE = (
    "Items: constrained beam over the whole catalogue; words: greedy. [95 % bootstrap interval]. "
    "docs/alignment.md says what each figure means."
)
_STEERING_NOTE = (
    "Share of the first 10 items that satisfy a wish, unfiltered: held-out combinations, phrases and templates that "
    "training did not show. sequential: the same model, asked for the next item without a wish. chance: share of the "
    "catalogue that satisfies. Rows that fewer than 10 items satisfy count under 'all' only, beside what was possible."
)


def alignment_tables(alignments: Mapping[str, dict]) -> list[dict]:
    """One table of all figures, a column per model, and one of the wishes for each model.

    Args:
        alignments: name → what `llmrec.evaluation.alignment.Aligner` returned.
    """
    rows = []
    for section in dict.fromkeys(name for one in alignments.values() for name in one["sections"]):
        parts = [one["sections"].get(section, {"rows": 0, "figures": {}, "ci": {}}) for one in alignments.values()]
        for name in dict.fromkeys(name for part in parts for name in part["figures"]):
            cells = [cell(part["figures"], part["ci"], name) for part in parts]
            rows.append([f"{section}: {name}", str(max(part["rows"] for part in parts)), *cells])
    left_out = {f"{section} ({why})": None for one in alignments.values() for section, why in one["left_out"].items()}
    note = f"{_NOTE} Left out: {'; '.join(left_out)}." if left_out else _NOTE
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

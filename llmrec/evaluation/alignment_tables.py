"""The alignment report as tables, in the shape of `llmrec.evaluation.report`."""

from collections.abc import Mapping

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
        alignments: name → what `llmrec.evaluation.alignment.align` returned.
    """
    sections = dict.fromkeys(name for one in alignments.values() for name in one["sections"])
    rows = []
    for section in sections:
        held = [one["sections"].get(section, {"rows": 0, "figures": {}, "ci": {}}) for one in alignments.values()]
        for figure in dict.fromkeys(figure for one in held for figure in one["figures"]):
            count = max(one["rows"] for one in held)
            rows.append([f"{section}: {figure}", str(count), *(_cell(one, figure) for one in held)])
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
    rows = []
    for kind, one in [*steering["kinds"].items(), ("any", steering)]:
        whole = one["all"]
        cells = [*(_cell(one, figure) for figure in figures), str(whole["rows"])]
        cells += [*(_cell(whole, figure) for figure in figures), f"{whole['figures']['possible']:.4f}"]
        rows.append([kind, str(one["rows"]), *cells])
    note = f"{_STEERING_NOTE} Templates: {steering['wordings']}."
    return {"title": f"Steering: {name}", "note": note, "header": header, "rows": rows}


def plain_table(header: list[str], rows: list[list[str]]) -> str:
    """Columns side by side, for a terminal."""
    rows = [header, *rows]
    widths = [max(len(row[i]) for row in rows) for i in range(len(header))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows)


def _cell(part: dict, figure: str) -> str:
    if figure not in part["figures"]:
        return "–"
    text = f"{part['figures'][figure]:.4f}"
    return text + " [{:.4f}, {:.4f}]".format(*part["ci"][figure]) if figure in part["ci"] else text

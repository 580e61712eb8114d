"""A leaderboard as text: its tables, published figures beside them, and its section of a page of documentation."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from llmrec.arguments import construct, one_of
from llmrec.catalogue.report_parts import draw_lines
from llmrec.commands import read_yaml
from llmrec.evaluation.leaderboard import Run, curve_of
from llmrec.evaluation.report import PROTOCOLS, cell, markdown_table, protocols_of
from llmrec.files import atomic_path

NOT_SAID = "not said"
FIGURES = ("recall@5", "ndcg@5", "recall@10", "ndcg@10")
_COSTS = ("parameters", "seconds", "updates", "best_update")


@dataclass(frozen=True)
class Published:
    """Figures that others published.

    Attributes:
        protocol: seen_removed, seen_kept or "not said".
        figures: metric → value, as they stand in the source.
        paper (*optional*): arXiv id.
        beside (*optional*): the member that is to be compared with it.
    """

    name: str
    protocol: str
    figures: dict[str, float]
    source: str
    paper: str = ""
    beside: str = ""

    def __post_init__(self):
        one_of(self.protocol, (*PROTOCOLS, NOT_SAID), "protocol")
        for metric, value in self.figures.items():
            one_of(metric, FIGURES, "metric")
            if not isinstance(value, float) or not 0 < value < 1:
                raise ValueError(f"{metric} is {value!r}, it should be a share between 0 and 1")
        if not isinstance(self.paper, str):
            raise ValueError(f"paper is {self.paper!r}, it should be text: write it in quotes")


def published_figures(path: str | Path, members: Sequence[str]) -> list[Published]:
    """Reads the list `published` of a YAML; raises `ValueError` that names the file and the entry."""
    entries, found = [], read_yaml(path).get("published")
    if not isinstance(found, list):
        raise ValueError(f"{path} has no list `published`")
    for number, fields in enumerate(found, 1):
        entry = construct(Published, fields, f"{path}, entry {number}")
        if entry.beside:
            one_of(entry.beside, members, f"{path}, {entry.name}: beside")
        entries.append(entry)
    return entries


def leaderboard_lines(summary: Mapping, published: Sequence[Published] = ()) -> list[str]:
    """Markdown of what `standings` returned: a table for each protocol, one of cost, and one of published figures."""
    recommenders, lines = summary["recommenders"], []
    if recommenders:
        first = next(iter(recommenders.values()))
        rows = f"{summary['facts']['items']:,} items, {first['rows']:,} test rows."
        means = "Means over seeds [95 % bootstrap interval over users]; spread: largest minus smallest recall@10."
        lines += [f"{rows} {means}"]
        protocols = protocols_of(first)
        if "seen_removed" not in protocols:
            lines += ["", "Targets repeat items of the history here, so these are not left out."]
        for protocol, start in protocols.items():
            lines += ["", f"`{protocol}`, {PROTOCOLS[protocol]}:", "", *_protocol_table(summary, start)]
        lines += ["", "What it took, in means over seeds:", "", *_cost_table(recommenders)]
    if summary["missing"]:
        lines += ["", f"Not run to the end, or not evaluated since: {', '.join(summary['missing'])}."]
    if published:
        lines += ["", *_published_table(published, recommenders)]
    return lines


def _protocol_table(summary: Mapping, start: str) -> list[str]:
    recommenders, differences = summary["recommenders"], summary["differences"]
    known = [metric for metric in FIGURES if all(start + metric in one["metrics"] for one in recommenders.values())]
    header = ["recommender", "seeds", *known, "spread"]
    header += [f"recall@10 minus {summary['reference']}"] if differences else []
    rows = []
    for name, one in recommenders.items():
        row = [name, str(len(one["runs"])), *(cell(one["metrics"], one["ci"], start + metric) for metric in known)]
        row.append(f"{one['spread'][f'{start}recall@10']:.4f}" if len(one["runs"]) > 1 else "–")
        if differences:
            against = differences.get(name, {}).get(f"{start}recall@10")
            row.append("{difference:+.4f} [{low:+.4f}, {high:+.4f}]".format_map(against) if against else "–")
        rows.append(row)
    return markdown_table(header, rows)


def _cost_table(recommenders: Mapping[str, Mapping]) -> list[str]:
    header = ["recommender", "parameters", "seconds of training", "updates", "best after", "users a second"]
    rows = []
    for name, one in recommenders.items():
        means = (np.mean([run[key] for run in one["runs"]]) for key in _COSTS)
        numbers = (*means, one["metrics"]["users_per_second"])
        rows.append([name, *(f"{number:,.0f}" if number else "–" for number in numbers)])
    return markdown_table(header, rows)


def _published_table(published: Sequence[Published], recommenders: Mapping[str, Mapping]) -> list[str]:
    header = ["published", "protocol", *FIGURES, "source", "beside", "recall@10 here", "ndcg@10 here"]
    rows = []
    for entry in published:
        figures = (f"{entry.figures[metric]:.4f}" if metric in entry.figures else "–" for metric in FIGURES)
        paper = [f"[{entry.paper}](https://arxiv.org/abs/{entry.paper})"] if entry.paper else []
        ours, here = recommenders.get(entry.beside), ["–", "–"]
        start = protocols_of(ours).get(entry.protocol.replace(NOT_SAID, "seen_kept")) if ours else None
        if start is not None:
            here = [cell(ours["metrics"], {}, start + metric) for metric in ("recall@10", "ndcg@10")]
        source = ", ".join([entry.source, *paper])
        rows.append([entry.name, entry.protocol, *figures, source, entry.beside or "–", *here])
    note = (
        "Published figures, as they stand in their sources, and ours by the same protocol (kept where none is said):"
    )
    return [note, "", *markdown_table(header, rows, left=(0, 1, header.index("source"), header.index("beside")))]


def draw_curves(runs: Sequence[Run], path: str | Path) -> bool:
    """Draws validation ndcg@10 over updates of all runs that have a curve, finished or not; false where none has."""
    curves = {run.label: curve for run in runs if (curve := curve_of(run.folder))}
    if curves:
        draw_lines(path, {"validation ndcg@10": curves}, "updates")
    return bool(curves)


def write_section(page: str | Path, name: str, lines: Sequence[str]) -> None:
    """Writes a section of a Markdown page, between two comments that name it; all else on the page stays as it is. A
    page or section that is not there is begun. Raises `ValueError` where a section does not end."""
    page = Path(page)
    begin, end = f"<!-- {name}: written by recipes/leaderboard.py -->", f"<!-- end of {name} -->"
    text = page.read_text(encoding="utf-8") if page.exists() else "# Benchmarks\n"
    before, found, rest = text.partition(begin)
    inside, ended, after = rest.partition(end)
    if found and not ended:
        raise ValueError(f"{page}: {begin} has no {end} after it: add that, or remove both")
    if not found:
        before, after = f"{text.rstrip()}\n\n", "\n"
    with atomic_path(page) as temporary:
        temporary.write_text("\n".join([before + begin, *lines, end + after]), encoding="utf-8")

"""What the reports of this room share: Markdown tables, panels of plots, and the folder that they are written to."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from llmrec.files import atomic_path, write_json


def markdown_table(head: str, rows: Iterable[str]) -> list[str]:
    """The lines of a table whose cells are parted by ` | `; the first column stands left, the others right."""
    return [f"| {head} |", "|---|" + "---:|" * head.count(" | "), *(f"| {row} |" for row in rows)]


def panels(count: int, columns: int, width: float, height: float) -> tuple[Figure, list[Axes]]:
    """A figure with `count` plots of this size (in inches), at most `columns` of them side by side."""
    columns = max(1, min(count, columns))
    rows = max(1, -(-count // columns))
    figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).reshape(-1)
    for unused in axes[count:]:
        unused.set_axis_off()
    return figure, list(axes[:count])


def draw_lines(
    path: str | Path, drawn: Mapping[str, Mapping[str, Iterable[tuple[float, float]]]], xlabel: str, columns: int = 3
) -> None:
    """Draws `{title: {label: (x, y) points}}`, a plot for every title, into a `.png`, written whole or not at all; few
    points are marked."""
    figure, grid = panels(len(drawn), columns, 5, 3.5)
    for axes, (title, lines) in zip(grid, drawn.items()):
        for label, line in lines.items():
            points = list(line)
            marker = "." if len(points) < 50 else None
            axes.plot([x for x, _ in points], [y for _, y in points], label=label, marker=marker)
        axes.set(xlabel=xlabel, title=title)
        axes.legend()
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)


def write_report_folder(folder: str | Path, report: dict, text: Sequence[str], plots: Mapping[str, Figure]) -> None:
    """Writes report.json, report.md and a PNG per plot, whole or not at all."""
    with atomic_path(folder) as temporary:
        temporary.mkdir()
        write_json(temporary / "report.json", report)
        (temporary / "report.md").write_text("\n".join(text), encoding="utf-8")
        for name, figure in plots.items():
            figure.savefig(temporary / f"{name}.png", dpi=130)

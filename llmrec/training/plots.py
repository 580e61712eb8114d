"""The curve of a run as a picture."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from llmrec.catalogue.report_parts import panels as panels_of
from llmrec.files import atomic_path

PANELS = {"loss": ("loss", "eval_loss"), "ranking on the validation sample": ("eval_recall@10", "eval_ndcg@10")}


def plot_training(
    history: Sequence[dict], path: str | Path, panels: Mapping[str, Sequence[str]] = PANELS, columns: int = 3
) -> None:
    """Draws the figures of `panels` (title → names) over the steps of `trainer.state.log_history` into a `.png`,
    written whole or not at all; without any figure to draw there is none."""
    drawn = {}
    for title, names in panels.items():
        lines = {name: [(log["step"], log[name]) for log in history if name in log] for name in names}
        lines = {name: points for name, points in lines.items() if points}
        if lines:
            drawn[title] = lines
    if not drawn:
        return
    figure, grid = panels_of(len(drawn), columns, 5, 3.5)
    for axes, (title, lines) in zip(grid, drawn.items()):
        for name, points in lines.items():
            axes.plot(*zip(*points), label=name, marker="." if len(points) < 50 else None)
        axes.set(xlabel="step", title=title)
        axes.legend()
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)

"""The curve of a run as a picture."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from llmrec.files import atomic_path

PANELS = {"loss": ("loss", "eval_loss"), "ranking on the validation sample": ("eval_recall@10", "eval_ndcg@10")}


def plot_training(
    history: Sequence[dict], path: str | Path, panels: Mapping[str, Sequence[str]] = PANELS, columns: int = 3
) -> None:
    """Draws losses and ranking metrics over steps.

    Args:
        history: `trainer.state.log_history`: dicts with `step` and figures by name.
        path: a `.png`; written whole or not at all. Without any figure to draw there is none.
        panels: title → names of the figures in it.
        columns (`int`): panels beside each other.
    """
    drawn = {}
    for title, names in panels.items():
        lines = {name: [(log["step"], log[name]) for log in history if name in log] for name in names}
        lines = {name: points for name, points in lines.items() if points}
        if lines:
            drawn[title] = lines
    if not drawn:
        return
    columns = min(columns, len(drawn))
    rows = -(-len(drawn) // columns)
    figure = Figure(figsize=(5 * columns, 3.5 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in grid[len(drawn) :]:
        axes.remove()
    for axes, (title, lines) in zip(grid, drawn.items()):
        for name, points in lines.items():
            axes.plot(*zip(*points), label=name, marker="." if len(points) < 50 else None)
        axes.set(xlabel="step", title=title)
        axes.legend()
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)

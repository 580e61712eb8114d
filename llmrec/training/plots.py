"""The curve of a run as a picture."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from llmrec.files import atomic_path

PANELS = {"loss": ("loss", "eval_loss"), "ranking on the validation sample": ("eval_recall@10", "eval_ndcg@10")}


def plot_training(history: Sequence[dict], path: str | Path) -> None:
    """Draws losses and ranking metrics over steps.

    Args:
        history: `trainer.state.log_history`: dicts with `step` and figures by name.
        path: a `.png`; written whole or not at all. Without any figure to draw there is none.
    """
    panels = {}
    for title, names in PANELS.items():
        lines = {name: [(log["step"], log[name]) for log in history if name in log] for name in names}
        lines = {name: points for name, points in lines.items() if points}
        if lines:
            panels[title] = lines
    if not panels:
        return
    figure = Figure(figsize=(5 * len(panels), 3.5), layout="constrained")
    for axes, (title, lines) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items()):
        for name, points in lines.items():
            axes.plot(*zip(*points), label=name, marker="." if len(points) < 50 else None)
        axes.set(xlabel="step", title=title)
        axes.legend()
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)

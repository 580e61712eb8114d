"""Item tokenizers side by side: their reports as one table and one picture, and what a model made of them.

Which figures to trust: none of them ranks tokenizers by recommendation quality. Entropy and usage were measured not
to (SID-Repro, 2609.24430); the others say what is broken and what a SemID keeps. Only the downstream part ranks.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from llmrec.evaluation.report import markdown_table, with_interval
from llmrec.files import read_json

NOTE = (
    "Usage, entropy, collisions, reconstruction and neighbours tell broken Semantic IDs from sound ones. Entropy and "
    "usage have been found *not* to predict ranking quality (level-1 entropy against NDCG@10: correlation -0.02, "
    "SID-Repro, 2609.24430), and no other figure here has been shown to: do not choose a tokenizer by them."
)


def tokenizer_figures(folder: str | Path) -> dict:
    """One row of the table, from a folder that recipes/tokenize_items.py wrote.

    Returns:
        `tokens` and `bits` per item, `collision_rate`, `colliding_items`, `largest_group` (before the policy), `usage`
        (lowest of the levels that all items have), `entropy` (list, per level), `purity` and `purity_control` of the
        first level, `error` of the best additive reconstruction and its control, `neighbours` kept and their control,
        `fit_seconds`, `memory_gib` (peak of the whole stage).
    """
    report = read_json(Path(folder) / "report" / "report.json")
    results = read_json(Path(folder) / "stage.json")["results"]
    before = report["collisions"]["before"]
    full = [level for level in report["levels"] if level["held"] == 1] or report["levels"][:1]
    return {
        **{name: report[name] for name in ("tokens", "bits")},
        **{name: before[name] for name in ("collision_rate", "colliding_items", "largest_group")},
        "usage": min(level["usage"] for level in full),
        "entropy": [level["entropy"] for level in report["levels"] if level["used"]],
        **{name: report["prefixes"][0].get(name) for name in ("purity", "purity_control")},
        "error": report["reconstruction"]["error"],
        "error_control": report["reconstruction"]["control"],
        "neighbours": report["neighbours"]["kept"],
        "neighbours_control": report["neighbours"]["control"],
        **{name: results[name] for name in ("fit_seconds", "memory_gib")},
    }


def comparison_lines(rows: Mapping[str, dict]) -> list[str]:
    header = ["tokenizer", "tokens", "bits", "collisions (1 - U/N)", "largest group", "usage", "entropy by level"]
    header += ["purity 1 (random)", "error (random)", "neighbours@10 (random)", "fit s", "peak GiB"]
    cells = []
    for name, row in rows.items():
        entropy = " ".join(f"{abs(value):.2f}" for value in row["entropy"][:4])
        cells.append(
            [
                name,
                f"{row['tokens']:.2f}",
                f"{row['bits']:.0f}",
                f"{row['collision_rate']:.2%}",
                str(row["largest_group"]),
                f"{row['usage']:.0%}",
                entropy + (" ..." if len(row["entropy"]) > 4 else ""),
                *(_pair(row[figure], row[f"{figure}_control"]) for figure in ("purity", "error", "neighbours")),
                f"{row['fit_seconds']:.1f}",
                f"{row['memory_gib']:.1f}",
            ]
        )
    return markdown_table(header, cells, left=(0, header.index("entropy by level")))


def _pair(value: float | None, control: float | None) -> str:
    return "-" if value is None else f"{value:.3f} ({control:.3f})"


def downstream_lines(rows: Sequence[dict], reference: str) -> list[str]:
    header = ["tokenizer", "seeds", "recall@10", "ndcg@10", "over seeds", f"ndcg@10 against {reference}"]
    cells = []
    for row in rows:
        recall, ndcg = row["recall@10"], row["ndcg@10"]
        spread = "-" if row["seeds"] == 1 else f"{ndcg['spread']:.4f}"
        against = "-" if row["name"] == reference else "[{:+.4f}, {:+.4f}]".format(*ndcg["against_ci"])
        figures = [with_interval(one["mean"], one["ci"]) for one in (recall, ndcg)]
        cells.append([row["name"], str(row["seeds"]), *figures, spread, against])
    return markdown_table(header, cells)


def plot_comparison(rows: Mapping[str, dict], downstream: Sequence[dict] = ()) -> Figure:
    """One bar per tokenizer and figure, random SemIDs as a tick; ndcg@10 with its interval where there is one."""
    names = list(rows)
    panels = [
        ("collisions before the policy (1 - U/N)", "collision_rate", None),
        ("first-level purity", "purity", "purity_control"),
        ("missed by the best sum of codes", "error", "error_control"),
        ("neighbours@10 kept", "neighbours", "neighbours_control"),
    ]
    figure = Figure(figsize=(3.1 * (len(panels) + bool(downstream)), 0.6 + 0.3 * len(names)), layout="constrained")
    axes = figure.subplots(1, len(panels) + bool(downstream), sharey=True, squeeze=False)[0]
    places = np.arange(len(names))[::-1]
    for panel, (title, key, control) in zip(axes, panels):
        # None becomes nan: a figure that a tokenizer does not have is not drawn, rather than as the best one.
        panel.barh(places, np.array([row[key] for row in rows.values()], float), 0.7, color="#274c77")
        if control:
            random = np.array([row[control] for row in rows.values()], float)
            panel.scatter(random, places, marker="|", s=90, color="#e8998d", zorder=3)
        panel.set_title(title, fontsize=9)
    if downstream:
        place_of = dict(zip(names, places))
        for row in (row for row in downstream if row["name"] in place_of):
            place, ndcg = place_of[row["name"]], row["ndcg@10"]
            axes[-1].plot(ndcg["ci"], [place, place], color="#a3cef1", lw=4)
            axes[-1].plot(ndcg["mean"], place, "o", color="#274c77")
        axes[-1].set_title("ndcg@10 of the same small model", fontsize=9)
    axes[0].set_yticks(places, names)
    for panel in axes:
        panel.tick_params(labelsize=8)
        panel.spines[["top", "right"]].set_visible(False)
    return figure

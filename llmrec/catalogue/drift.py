"""Have newcomers drifted away from the Semantic IDs that were made without them? When to make new ones.

Everything is measured against the items that the tokenizer was made for ("old" items), and needs the SemIDs and the
features only, so it works for every tokenizer and for ready-made SemIDs:

- How far an item lies from its nearest old item, and from what its codes stand for. A code stands for the mean of
  what the codes before it leave of the old items that have it. An old item is measured as if it had been a newcomer:
  it counts for no mean and is not its own neighbour. So without drift one newcomer in twenty lies beyond the 95th
  percentile of the old items.
- Which codes are used for the first time (a model has not learned their tokens), and where room runs out: full
  prefixes, the collision level.

The bounds of the verdict are rules of thumb, not measured optima.
"""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from scipy import sparse

from llmrec.catalogue.collisions import collision_stats, equal_rows
from llmrec.catalogue.report_parts import markdown_table, panels, write_report_folder
from llmrec.catalogue.semids import SemIDIndex

_SAMPLE = 5_000
# What is measured: (worth watching, time for new SemIDs)
BOUNDS = {
    "far": (0.10, 0.25),  # newcomers beyond the 95th percentile of the old items
    "fresh": (0.01, 0.10),  # newcomers with a code that no old item has
    "full": (0.05, 0.25),  # newcomers in prefixes without a free last code
    "collision": (0.50, 0.80),  # of the collision level's spare numbers are used
    "new": (0.30, 1.00),  # newcomers in the catalogue
}


def drift_report(index: SemIDIndex, features: np.ndarray, newcomers: np.ndarray) -> dict:
    """Compares newcomers (bool `[N]`: who came since the item tokenizer was fitted) with the items that were there
    before; `features`, float32 `[N, D]`, stand in the order of the items of `index`.

    Returns:
        `items`, `distances` (a row per measure, with `histogram`), `codes` (a row per level), `groups`, `prefixes`,
        `collision_level` (`None` without one), `verdict` ("keep", "watch" or "refit") and its `reasons`.

    Raises:
        ValueError: lengths that differ, or no old item is left.
    """
    if len(index.items) < len(index):
        index = index.rows_at([index.row(item) for item in index.items])
    if not len(index) == len(features) == len(newcomers):
        raise ValueError(f"{len(index)} items, {len(features)} rows of features, {len(newcomers)} marks of newcomers")
    old = ~np.asarray(newcomers, bool)
    if not old.any():
        raise ValueError("no item is left that the item tokenizer was made for: make new Semantic IDs")
    numbered = index.collision != "keep"
    levels = index.num_levels - numbered
    codes, new = index.codes[:, :levels], ~old
    fresh = (codes >= 0) & ~np.stack([np.isin(column, column[old]) for column in codes.T], axis=1)
    count = int(new.sum())
    report = {
        "items": {"old": int(old.sum()), "new": count, "share_new": count / len(old)},
        "distances": _distances(features, codes, old) if count and old.sum() > 1 else [],
        "codes": [_level(*each, old) for each in zip(codes.T, index.codebook_sizes, fresh.T)],
        "groups": {
            "before": collision_stats(codes[old])["largest_group"],
            "now": collision_stats(codes)["largest_group"],
        },
        "prefixes": _full_prefixes(codes, index.codebook_sizes[levels - 1], new),
        "collision_level": _collision_level(index, old) if numbered else None,
        "newcomers_with_fresh_codes": int(fresh.any(1).sum()),
    }
    report["verdict"], report["reasons"] = _verdict(report)
    return report


def code_distances(features: np.ndarray, codes: np.ndarray, old: np.ndarray) -> np.ndarray:
    """float32 `[N, L]`: what is left of every item after its codes up to each level (see the module docstring)."""
    plain = features.astype(np.float32) - features[old].mean(0)
    apart = plain.copy()  # as if the item itself had not been there
    distances = np.empty(codes.shape, np.float32)
    for level, column in enumerate(codes.T):
        member = np.flatnonzero((column >= 0) & old)
        size = int(column.max(initial=0)) + 1
        onehot = sparse.csr_array(
            (np.ones(len(member), np.float32), (column[member], np.arange(len(member)))), (size, len(member))
        )
        sums, counts = onehot @ plain[member], np.bincount(column[member], minlength=size)
        rows = np.flatnonzero(column >= 0)
        itself = old[rows, None] * plain[rows]
        others = counts[column[rows]] - old[rows]
        apart[rows] -= (sums[column[rows]] - itself) / np.maximum(others, 1)[:, None]
        plain[rows] -= sums[column[rows]] / np.maximum(counts[column[rows]], 1)[:, None]
        distances[:, level] = np.linalg.norm(apart, axis=1)
    return distances


def nearest_distances(features: np.ndarray, old: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """float32 `[len(rows)]`: distance of these items to their nearest old item other than themselves."""
    import faiss

    base = np.ascontiguousarray(features[old], np.float32)
    nearest = faiss.knn(np.ascontiguousarray(features[rows], np.float32), base, min(2, len(base)))[0]
    # An old item finds itself (or an equal one) first.
    squared = np.where(old[rows], nearest[:, -1], nearest[:, 0])
    return np.sqrt(np.maximum(squared, 0))


def _distances(features, codes, old) -> list[dict]:
    shuffled = np.random.default_rng(0).permutation(len(old))
    sample = np.concatenate([shuffled[old[shuffled]][:_SAMPLE], shuffled[~old[shuffled]][:_SAMPLE]])
    by_level = code_distances(features, codes, old)[sample]
    measures = {"nearest old item": nearest_distances(features, old, sample)}
    measures |= {f"codes up to level {level + 1}": column for level, column in enumerate(by_level.T)}
    return [_compared(name, values[old[sample]], values[~old[sample]]) for name, values in measures.items()]


def _compared(name: str, old: np.ndarray, new: np.ndarray) -> dict:
    median, p95, p99 = np.quantile(old, [0.5, 0.95, 0.99])
    edges = np.linspace(0, max(old.max(), new.max(), 1e-6) * 1.0001, 31)
    # Rounding apart: distances of equal items differ in the last digits.
    beyond = [float((new > bound * (1 + 1e-5) + 1e-6).mean()) for bound in (p95, p99)]
    return {
        "measure": name,
        "old_median": float(median),
        "old_p95": float(p95),
        "old_p99": float(p99),
        "new_median": float(np.median(new)),
        "beyond_p95": beyond[0],
        "beyond_p99": beyond[1],
        "histogram": {
            "edges": edges.tolist(),
            "old": (np.histogram(old, edges)[0] / len(old)).tolist(),
            "new": (np.histogram(new, edges)[0] / len(new)).tolist(),
        },
    }


def _level(column: np.ndarray, size: int, fresh: np.ndarray, old: np.ndarray) -> dict:
    before, now = (len(np.unique(part[part >= 0])) for part in (column[old], column))
    return {
        "size": size,
        "used_before": before,
        "used_now": now,
        "fresh_codes": now - before,
        "newcomers_with_them": int(fresh.sum()),
    }


def _full_prefixes(codes: np.ndarray, size: int, newcomers: np.ndarray) -> dict:
    """Prefixes in which every code of the last level is used, and how many items have them."""
    whole, prefix = codes[:, -1] >= 0, equal_rows(codes[:, :-1])
    counts = np.bincount(np.unique(np.stack([prefix, codes[:, -1]], 1)[whole], axis=0)[:, 0])
    full = np.flatnonzero(counts >= size)
    inside = whole & np.isin(prefix, full)
    return {
        "all": int((counts > 0).sum()),
        "full": len(full),
        "items": int(inside.sum()),
        "newcomers": int((inside & newcomers).sum()),
    }


def _collision_level(index: SemIDIndex, old: np.ndarray) -> dict:
    column, size = index.codes[:, -1], index.codebook_sizes[-1]
    # Numbers of removed items stay taken; those of old ones were taken before.
    came, reserved = index.reserved_versions, index.reserved
    numbers = {item: max(codes[-1] for codes in semids) for item, semids in reserved.items()}
    before = max([int(column[old].max(initial=-1)), *(n for item, n in numbers.items() if came[item] == 1)]) + 1
    now = max([int(column.max(initial=-1)), *numbers.values()]) + 1
    return {
        "size": size,
        "numbers_before": before,
        "numbers_now": now,
        "spare_used": (now - before) / max(1, size - before),
        "items_before": int((column[old] >= 0).sum()),
        "items_now": int((column >= 0).sum()),
    }


def _verdict(report: dict) -> tuple[str, list[str]]:
    count, reasons, measured = report["items"]["new"], [], []
    if not count:
        return "keep", ["there are no newcomers"]
    if count < 20:
        reasons.append(f"{count} newcomers are too few to judge their distances")
    else:
        for row in report["distances"]:
            text = f"{row['beyond_p95']:.0%} of the newcomers lie beyond the 95th percentile: {row['measure']}"
            measured.append(("far", row["beyond_p95"], text))
        fresh, full = report["newcomers_with_fresh_codes"] / count, report["prefixes"]["newcomers"] / count
        text = f"{fresh:.0%} of the newcomers have a code that no old item has: its token is untrained"
        measured.append(("fresh", fresh, text))
        measured.append(("full", full, f"{full:.0%} of the newcomers are in prefixes without a free last code"))
    if report["collision_level"] is not None:
        used = report["collision_level"]["spare_used"]
        text = f"newcomers have used {used:.0%} of the spare numbers of the collision level"
        measured.append(("collision", used, text))
    new = report["items"]["share_new"]
    measured.append(("new", new, f"{new:.0%} of the catalogue are newcomers"))
    grades = [sum(value > bound for bound in BOUNDS[kind]) for kind, value, _ in measured]
    reasons += [text for grade, (_, _, text) in zip(grades, measured) if grade]
    return ("keep", "watch", "refit")[max(grades)], reasons


def drift_lines(report: dict) -> list[str]:
    """The figures as Markdown, a line each; the verdict comes first."""
    items = report["items"]
    advice = {
        "keep": "Keep the Semantic IDs.",
        "watch": "Keep the Semantic IDs for now; make new ones with the next training of the model.",
        "refit": "Make new Semantic IDs (recipes/tokenize_items.py) and train the model again.",
    }
    lines = [f"**{advice[report['verdict']]}**", "", *(f"- {reason}" for reason in report["reasons"])]
    lines += ["", f"{items['old']} old items, {items['new']} newcomers ({items['share_new']:.1%}).", ""]
    if report["distances"]:
        lines += markdown_table(
            "distance to | old: median | 95 % | new: median | beyond 95 % | beyond 99 %",
            (
                f"{row['measure']} | {row['old_median']:.3f} | {row['old_p95']:.3f} | {row['new_median']:.3f} "
                f"| {row['beyond_p95']:.1%} | {row['beyond_p99']:.1%}"
                for row in report["distances"]
            ),
        )
        lines += ["", "Without drift 5 % and 1 % of the newcomers lie beyond.", ""]
    lines += markdown_table(
        "level | codes used before | now | used for the first time | newcomers with them",
        (
            f"{level} | {row['used_before']} of {row['size']} | {row['used_now']} | {row['fresh_codes']} "
            f"| {row['newcomers_with_them']}"
            for level, row in enumerate(report["codes"], 1)
        ),
    )
    groups, prefixes, level = report["groups"], report["prefixes"], report["collision_level"]
    lines += ["", f"Largest group of equal codes: {groups['before']} before, {groups['now']} now."]
    inside = f"{prefixes['items']} items, {prefixes['newcomers']} of them newcomers"
    lines.append(f"Prefixes without a free last code: {prefixes['full']} of {prefixes['all']}; {inside}.")
    if level is not None:
        numbers = f"{level['numbers_before']} of {level['size']} numbers used before, {level['numbers_now']} now"
        lines.append(f"Collision level: {numbers}, by {level['items_now']} items ({level['items_before']} before).")
    return lines


def plot_drift(report: dict) -> Figure:
    """Distances of old items and newcomers, one panel per measure; the line is the old items' 95th percentile."""
    rows = report["distances"]
    figure, axes = panels(len(rows), 4, 3.4, 2.8)
    for panel, row in zip(axes, rows):
        histogram = row["histogram"]
        for name, colour in (("old", "#a3cef1"), ("new", "#274c77")):
            panel.stairs(histogram[name], histogram["edges"], color=colour, fill=name == "old", label=name, lw=1.5)
        panel.axvline(row["old_p95"], color="#e8998d", lw=1)
        panel.set(title=row["measure"], xlabel="distance", ylabel="share of items")
    if rows:
        axes[0].legend(frameon=False)
    return figure


def write_drift_report(report: dict, folder: str | Path) -> None:
    """Writes report.json, report.md and drift.png, whole or not at all."""
    text = ["# Drift of the Semantic IDs", "", *drift_lines(report), "", "![Distances](drift.png)", ""]
    write_report_folder(folder, report, text, {"drift": plot_drift(report)})

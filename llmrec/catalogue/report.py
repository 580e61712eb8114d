"""How good are Semantic IDs before any LLM has seen them: a smoke alarm, not a ranking.

Entropy and usage say when something is broken; they do not predict recommendation quality (SID-Repro, 2609.24430:
correlation of level-1 entropy with NDCG@10 is -0.02). Figures with a `control` are the same for SemIDs that are
exchanged between random items.
"""

import importlib.util
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
from matplotlib import colormaps
from matplotlib.figure import Figure
from scipy import sparse

from llmrec.arrays import l2_normalize, unique_rows
from llmrec.catalogue.collisions import collision_stats, equal_rows
from llmrec.catalogue.report_parts import markdown_table, panels, write_report_folder
from llmrec.catalogue.semids import SemIDIndex
from llmrec.hub import without_paths

logger = logging.getLogger(__name__)
_COMPARED = 2**18


def semid_report(
    index: SemIDIndex, features: np.ndarray, items: pa.Table, k: int = 10, sample: int = 1000, seed: int = 0
) -> dict:
    """Figures of an index; where an item has several SemIDs, of its primary one.

    `features` (float32 `[N, D]`) and `items` stand in the order of the items of `index`. The `k` nearest neighbours of
    `sample` items are compared. Of more than 2^18 items purity, neighbours and reconstruction are those of a seeded
    sample of so many.

    Returns:
        `collisions` before and after the policy (see `collision_stats`), `levels` (see `level_figures`), `prefixes`
        by depth (`unique`; `purity` of categories and its `purity_control`), `adds_tokens`, `shared_tokens` (levels
        draw on the same words, so none can use them all), `neighbours` (see `neighbours_kept`),
        `reconstruction` (see `additive_error`) and its `control`, `tokens` (mean per item) and `bits` (mean, of the
        full codebooks), `features` (distinct rows), `compared` (size of the sample, if there is one), `warnings` (list
        of `str`, also logged).
    """
    if len(index.items) < len(index):
        index = index.rows_at([index.row(item) for item in index.items])
    all_codes, part, distinct = index.codes, index, len(unique_rows(features))
    if len(index) > _COMPARED:
        rows = np.sort(np.random.default_rng(seed).choice(len(index), _COMPARED, replace=False))
        part, features, items = index.rows_at(rows), features[rows], items.take(rows)
    codes, shuffled = part.codes, part.shuffled(seed).codes
    after = collision_stats(all_codes)
    near = nearest_neighbours(features, k, sample, seed)
    report = {
        "items": len(index),
        "codebook_sizes": list(index.codebook_sizes),
        "fingerprint": index.fingerprint,
        "info": without_paths({key: value for key, value in index.info.items() if not key.startswith("collisions_")}),
        "features": {"dimensions": features.shape[1], "distinct": distinct},
        "collisions": {"before": index.info.get("collisions_before", after), "after": after},
        "levels": [level_figures(all_codes[:, level], size) for level, size in enumerate(index.codebook_sizes)],
        "adds_tokens": index.adds_tokens,
        "shared_tokens": index.num_levels > 1 and not set(index.level_tokens[0]).isdisjoint(index.level_tokens[1]),
        "prefixes": [],
        "neighbours": {
            "k": k,
            "kept": neighbours_kept(codes, *near, index.ordered),
            "control": neighbours_kept(shuffled, *near, index.ordered),
        },
        "reconstruction": {
            "error": additive_error(codes, index.codebook_sizes, features),
            "control": additive_error(shuffled, index.codebook_sizes, features),
        },
        "tokens": float(index.lengths.mean()),
        "bits": float(((all_codes >= 0) * np.log2(index.codebook_sizes)).sum(1).mean()),
    }
    if part is not index:
        report["compared"] = len(part)
    labels = category_labels(items)
    for depth in range(1, index.num_levels + 1):
        row = {"depth": depth, "unique": int(equal_rows(all_codes[:, :depth]).max()) + 1}
        if labels is not None:
            row["purity"] = purity(codes[:, :depth], labels)
            row["purity_control"] = purity(shuffled[:, :depth], labels)
        report["prefixes"].append(row)
    report["warnings"] = _warnings(report)
    for warning in report["warnings"]:
        logger.warning("Semantic IDs: %s", warning)
    return report


def level_figures(column: np.ndarray, size: int) -> dict:
    """Of one level (int `[N]`, -1 where an item has no code): `held` (share of items with a code), `used` codes,
    `usage` of the codebook, `entropy` (of 1 = uniform over the codebook), `perplexity`, `largest_share`."""
    counts = np.bincount(column[column >= 0], minlength=size)
    total = int(counts.sum())
    p = counts[counts > 0] / max(total, 1)
    entropy = max(0.0, float(-(p * np.log(p)).sum()))
    return {
        "size": size,
        "held": total / len(column),
        "used": len(p),
        "usage": len(p) / size,
        "entropy": entropy / np.log(size) if size > 1 else 1.0,
        "perplexity": float(np.exp(entropy)) if total else 0.0,
        "largest_share": float(p.max(initial=0)),
    }


def nearest_neighbours(features: np.ndarray, k: int, sample: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A random sample of rows, int64 `[S]`, and the k nearest other rows of each by cosine, int64 `[S, k]`."""
    unit = l2_normalize(features)
    chosen = np.random.default_rng(seed).permutation(len(unit))[:sample]
    nearest = np.empty((len(chosen), min(k, len(unit) - 1)), np.int64)
    for start in range(0, len(chosen), 64):
        rows = chosen[start : start + 64]
        similarity = unit[rows] @ unit.T
        similarity[np.arange(len(rows)), rows] = -np.inf
        if nearest.shape[1]:
            part = np.argpartition(-similarity, nearest.shape[1] - 1, axis=1)
            nearest[start : start + 64] = part[:, : nearest.shape[1]]
    return chosen, nearest


def neighbours_kept(codes: np.ndarray, chosen: np.ndarray, nearest: np.ndarray, ordered: bool = True) -> float:
    """Mean share of an item's k nearest items (see `nearest_neighbours`) that are also among its k nearest by length
    of the common SemID prefix (by number of common codes where their order means nothing). Equal lengths count with
    the probability that a random order would choose them."""
    k = nearest.shape[1]
    if k == 0:
        return 1.0
    kept, levels = 0.0, np.ascontiguousarray(codes.T)
    for item, neighbours in zip(chosen, nearest):
        common, equal = np.zeros(len(codes), np.int16), np.ones(len(codes), bool)
        for column in levels:
            same = column == column[item]
            equal = equal & same if ordered else same
            common += equal
        common[item] = -1
        at_least = np.cumsum(np.bincount(common + 1)[::-1])[::-1]  # items with so long a common prefix, from -1 on
        bar = np.flatnonzero(at_least >= k)[-1] - 1
        above, at = (common > bar).sum(), (common == bar).sum()
        of_neighbours = common[neighbours]
        kept += ((of_neighbours > bar) + (of_neighbours == bar) * (k - above) / at).mean()
    return float(kept / len(chosen))


def additive_error(codes: np.ndarray, codebook_sizes: Sequence[int], features: np.ndarray) -> float | None:
    """What the best sum of one vector per code misses of the features: squared error over variance, by least squares
    (with a whiff of ridge) from one-hot codes. Defined for every tokenizer, also where codes have no vectors; with
    many codes random SemIDs explain something too (see the control). `None` beyond 4,096 codes in use."""
    used, column = np.unique(codes + np.append(0, np.cumsum(codebook_sizes)[:-1]) * (codes >= 0), return_inverse=True)
    if len(used) > 4096:
        return None
    present = codes >= 0
    place = np.nonzero(present)[0], column.reshape(codes.shape)[present]
    onehot = sparse.csr_matrix((np.ones(len(place[0])), place), shape=(len(codes), len(used)))
    centred = features.astype(np.float64) - features.mean(0, dtype=np.float64)
    gram = (onehot.T @ onehot).toarray()
    vectors = np.linalg.solve(gram + 1e-3 * np.eye(len(used)), onehot.T @ centred)
    total = (centred**2).sum()
    return float(((centred - onehot @ vectors) ** 2).sum() / total) if total > 0 else 0.0


def category_labels(items: pa.Table) -> np.ndarray | None:
    """int64 `[N]`: the first three levels of every item's first category path, -1 without; `None` if there are not
    two of them. Levels are joined by ` > `, paths by ` | `."""
    if "categories" not in items.column_names:
        return None
    paths = [str(text or "").split(" | ")[0].split(" > ")[:3] for text in items["categories"].to_pylist()]
    names, labels = np.unique([" > ".join(path) for path in paths], return_inverse=True)
    labels = np.where(names[labels] == "", -1, labels)
    return labels if len(np.unique(labels[labels >= 0])) > 1 else None


def purity(prefixes: np.ndarray, labels: np.ndarray) -> float:
    """Share of items whose category is the commonest one of their prefix `[N, depth]`. Grows with depth by itself
    (a group of one is pure), so compare it with the control."""
    known = labels >= 0
    group = equal_rows(prefixes[known])
    pairs, counts = np.unique(np.stack([group, labels[known]], 1), axis=0, return_counts=True)
    best = np.zeros(group.max() + 1, np.int64)
    np.maximum.at(best, pairs[:, 0], counts)
    return float(best.sum() / known.sum())


def _warnings(report: dict) -> list[str]:
    warnings = []
    before, after = report["collisions"]["before"], report["collisions"]["after"]
    first = report["levels"][0]
    if first["usage"] < 0.5 and not report["shared_tokens"]:
        warnings.append(
            f"level 1 uses {first['used']} of {first['size']} codes: the codebook has collapsed or is too large"
        )
    for level, figures in enumerate(report["levels"], 1):
        if report["adds_tokens"] and figures["held"] == 1 and figures["largest_share"] > 0.2 and figures["size"] > 10:
            warnings.append(f"one code of level {level} holds {figures['largest_share']:.0%} of the items")
    if before["collision_rate"] > 0.2:
        warnings.append(
            f"{before['colliding_items']:.0%} of the items shared a SemID before the collision policy: "
            "use larger codebooks, one more level or features that tell items apart"
        )
    if after["largest_group"] > 1:
        warnings.append(f"up to {after['largest_group']} items share one SemID: only item-level metrics mean anything")
    distinct = report["features"]["distinct"]
    if distinct < 0.9 * report["items"]:
        warnings.append(f"only {distinct} of {report['items']} items differ in their features (equal text?)")
    kept, control = report["neighbours"]["kept"], report["neighbours"]["control"]
    alone = first["used"] > 0.9 * report["items"]  # a token an item shares nothing, so there is nothing to keep
    if report["items"] >= 100 and kept < 2 * control and not alone:
        warnings.append("SemIDs keep hardly more neighbours than random ones do")
    return warnings


def report_lines(report: dict) -> list[str]:
    """The figures as Markdown tables, a line each."""
    levels = []
    for level, row in enumerate(report["levels"], 1):
        used = f"{row['used']} of {row['size']}"
        if not row["used"]:
            levels.append(f"{level} (spare, for new items) | {used} | - | - | -")
            continue
        some = "" if row["held"] == 1 else f" ({row['held']:.1%} of items)"
        figures = f"{row['entropy']:.3f} | {row['perplexity']:.1f} | {row['largest_share']:.1%}"
        levels.append(f"{level}{some} | {used} | {figures}")
    prefixes = []
    for row in report["prefixes"]:
        purities = [f"{row[key]:.3f}" if key in row else "-" for key in ("purity", "purity_control")]
        prefixes.append(f"{row['depth']} | {row['unique']} | {' | '.join(purities)}")
    collisions = (
        f"{when} the policy | {row['unique']} of {row['items']} | {row['collision_rate']:.2%} "
        f"| {row['colliding_items']:.2%} | {row['largest_group']}"
        for when, row in report["collisions"].items()
    )
    lines = markdown_table("level | codes used | entropy | perplexity | largest code", levels)
    lines += ["", *markdown_table("depth | prefixes | category purity | of random SemIDs", prefixes), ""]
    lines += markdown_table("collisions | distinct SemIDs | 1 - U/N | items sharing | largest group", collisions)
    if "compared" in report:
        lines += ["", f"Purity, neighbours and reconstruction are those of a sample of {report['compared']:,} items."]
    near = report["neighbours"]
    lines += ["", f"Neighbours kept (overlap@{near['k']}): {near['kept']:.3f}; random SemIDs: {near['control']:.3f}"]
    rebuilt = report["reconstruction"]
    if rebuilt["error"] is not None:
        figures = f"{rebuilt['error']:.3f}; random SemIDs: {rebuilt['control']:.3f}"
        lines.append(f"Missed by the best sum of code vectors: {figures}")
    lines.append(f"Tokens per item: {report['tokens']:.2f}; bits: {report['bits']:.1f}")
    return lines + [f"\n**Warning: {warning}.**" for warning in report["warnings"]]


def plot_codes(index: SemIDIndex) -> Figure:
    """Items per code, commonest first, one panel per level; flat is good, a cliff is a collapsed codebook."""
    figure, panels_of_levels = panels(index.num_levels, 8, 3.2, 3)
    for level, (axes, column, size) in enumerate(zip(panels_of_levels, index.codes.T, index.codebook_sizes)):
        counts = np.sort(np.bincount(column[column >= 0], minlength=size))[::-1]
        axes.fill_between(np.arange(size + 1), np.append(counts, 0), step="post", color="#274c77", lw=0)
        axes.axhline(counts.sum() / size, color="#e8998d", lw=1)
        axes.set(title=f"level {level + 1}: {(counts > 0).sum()} of {size} used", xlabel="code", ylabel="items")
    return figure


def plot_map(index: SemIDIndex, features: np.ndarray) -> Figure:
    """Items in two dimensions (UMAP if installed, else PCA), coloured by the first code where it is a common one."""
    rows = np.random.default_rng(0).permutation(len(features))[:20_000]
    if importlib.util.find_spec("umap") and len(rows) > 15:
        from umap import UMAP

        name, points = "UMAP", UMAP(random_state=0, n_jobs=1).fit_transform(features[rows])
    else:
        from sklearn.decomposition import PCA

        name = "PCA"
        points = PCA(min(2, *features[rows].shape), random_state=0).fit_transform(features[rows])
    points = np.pad(points, ((0, 0), (0, 2 - points.shape[1])))
    figure = Figure(figsize=(6, 5.4), layout="constrained")
    axes = figure.add_subplot()
    codes = index.codes[rows]
    first = codes[np.arange(len(codes)), np.argmax(codes >= 0, axis=1)]
    common = np.argsort(-np.bincount(first), kind="stable")[:20]
    axes.scatter(*points.T, color="#dddddd", s=4, linewidths=0)
    # Hundreds of colours would tell nothing apart.
    for number, code in enumerate(common):
        axes.scatter(*points[first == code].T, color=colormaps["tab20"](number), s=9, linewidths=0)
    title = f"{len(rows)} items, {name}; the {len(common)} commonest first codes in colour"
    axes.set(title=title, xticks=[], yticks=[])
    return figure


def plot_groups(collisions: dict) -> Figure:
    """How many items share their SemID with how many others, before and after the policy."""
    figure = Figure(figsize=(6, 3.4), layout="constrained")
    axes = figure.add_subplot()
    for (when, stats), shift, colour in zip(collisions.items(), (-0.2, 0.2), ("#a3cef1", "#274c77")):
        sizes = np.array([(int(size), count) for size, count in stats["group_sizes"].items()])
        axes.bar(sizes[:, 0] + shift, sizes.prod(1), 0.4, color=colour, label=when)
    axes.set(xlabel="items with one SemID", ylabel="items", yscale="log")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.legend(title="collision policy", frameon=False)
    return figure


def write_report(report: dict, folder: str | Path, index: SemIDIndex, features: np.ndarray) -> None:
    """Writes report.json, report.md and three plots, whole or not at all."""
    settings = [f"- {key}: `{value}`" for key, value in report["info"].items()]
    shown = ["![Items per code](codes.png)", "![Map of the items](map.png)", "![Items that share a SemID](groups.png)"]
    note = "These figures tell broken Semantic IDs from sound ones; they do not predict which will recommend best."
    text = ["# Semantic IDs", "", *report_lines(report), "", note, "", *shown, "", *settings, ""]
    plots = {"codes": plot_codes(index), "map": plot_map(index, features), "groups": plot_groups(report["collisions"])}
    write_report_folder(folder, report, text, plots)

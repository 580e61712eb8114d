"""The SemID report's plots, as matplotlib figures (no display needed)."""

import importlib.util

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure

from llmrec.catalogue.report_parts import panels
from llmrec.catalogue.semids import SemIDIndex

_MAP_POINTS = 20_000
_MAP_COLOURS = 20


def plot_codes(index: SemIDIndex) -> Figure:
    """Items per code, commonest first, one panel per level; flat is good, a cliff is a collapsed codebook."""
    figure, panels_of_levels = panels(index.num_levels, 8, 3.2, 3)
    for level, (axes, column, size) in enumerate(zip(panels_of_levels, index.codes.T, index.codebook_sizes)):
        counts = np.sort(np.bincount(column[column >= 0], minlength=size))[::-1]
        axes.fill_between(np.arange(size + 1), np.append(counts, 0), step="post", color="#274c77", lw=0)
        axes.axhline(counts.sum() / size, color="#e8998d", lw=1)
        axes.set(title=f"level {level + 1}: {(counts > 0).sum()} of {size} used", xlabel="code", ylabel="items")
    return figure


def plot_map(index: SemIDIndex, features: np.ndarray, seed: int = 0) -> Figure:
    """Items in two dimensions (UMAP if installed, else PCA), coloured by the first code where it is a common one."""
    rows = np.random.default_rng(seed).permutation(len(features))[:_MAP_POINTS]
    if importlib.util.find_spec("umap") and len(rows) > 15:
        from umap import UMAP

        name, points = "UMAP", UMAP(random_state=seed, n_jobs=1).fit_transform(features[rows])
    else:
        from sklearn.decomposition import PCA

        name = "PCA"
        points = PCA(min(2, *features[rows].shape), random_state=seed).fit_transform(features[rows])
    points = np.pad(points, ((0, 0), (0, 2 - points.shape[1])))
    figure = Figure(figsize=(6, 5.4), layout="constrained")
    axes = figure.add_subplot()
    codes = index.codes[rows]
    first = codes[np.arange(len(codes)), np.argmax(codes >= 0, axis=1)]
    common = np.argsort(-np.bincount(first), kind="stable")[:_MAP_COLOURS]
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
        sizes = {int(size): count for size, count in stats["group_sizes"].items()}
        axes.bar(
            [size + shift for size in sizes], [size * n for size, n in sizes.items()], 0.4, color=colour, label=when
        )
    axes.set(xlabel="items with one SemID", ylabel="items", yscale="log")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.legend(title="collision policy", frameon=False)
    return figure

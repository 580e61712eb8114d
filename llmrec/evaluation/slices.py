"""Slices of test rows: how popular the target is, how long the history, whether the target is a repeat."""

import numpy as np
import pyarrow as pa

HISTORY_BUCKETS = ((0, 0), (1, 1), (2, 3), (4, 6), (7, 10), (11, 20), (21, None))


def popularity_classes(counts: np.ndarray) -> tuple[np.ndarray, dict[str, str]]:
    """Sorts items into head, mid, tail and cold by their count in train: `(classes, meaning)`, names [items] and what
    each name means here, e.g. `{"head": ">= 31 in train"}`.

    Head is the tenth of the seen items with the highest counts, mid reaches down to the median, tail is the rest and
    cold was never seen in train; equal counts share a class, so the shares are approximate.
    """
    seen = counts[counts > 0]
    head, mid = np.quantile(seen, [0.9, 0.5], method="higher") if len(seen) else (1, 1)
    classes = np.select([counts == 0, counts >= head, counts >= mid], ["cold", "head", "mid"], "tail")
    meaning = {
        "head": f">= {head:.0f} in train",
        "mid": f"{mid:.0f} to {head - 1:.0f} in train",
        "tail": f"1 to {mid - 1:.0f} in train",
        "cold": "not in train",
    }
    return classes, meaning


def row_slices(
    lengths: np.ndarray, repeat: np.ndarray, targets: np.ndarray, counts: np.ndarray
) -> dict[str, np.ndarray]:
    """Masks over test rows, `{"target popularity / head (>= 31 in train)": bool [n], ...}`; empty slices are left out.

    Args:
        lengths: int [n], of the histories.
        repeat: bool [n], whether the target is in the history.
        targets: int [n], rows of the catalogue.
        counts: int [items], in train.
    """
    classes, meaning = popularity_classes(counts)
    slices = {f"target popularity / {name} ({text})": classes[targets] == name for name, text in meaning.items()}
    for low, high in HISTORY_BUCKETS:
        name = f"{low}" if low == high else f"{low} or more" if high is None else f"{low} to {high}"
        slices[f"history length / {name}"] = (lengths >= low) & (lengths <= (high if high is not None else np.inf))
    slices |= {"target in history / yes": repeat, "target in history / no": ~repeat}
    return {name: mask for name, mask in slices.items() if mask.any()}


def behaviour_slices(behaviours: pa.ChunkedArray) -> dict[str, np.ndarray]:
    """Named masks over test rows by the kind of interaction that the target is, e.g. `"target behaviour / buy"`."""
    values = np.asarray(behaviours.to_pylist())
    return {f"target behaviour / {kind}": values == kind for kind in np.unique(values)}

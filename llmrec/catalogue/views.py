"""Several views of Semantic IDs side by side: what an item is (semantic) and who uses it (collaborative).

EAGER (arXiv 2406.14017) and SC-Rec (arXiv 2408.08686) give an item one Semantic ID per view and fuse the views when
they decode. Here a joined index is an ordinary `SemIDIndex`: the levels of the views follow each other, and a row
has codes at the levels of its view alone. EAGER has two decoders; here one language model learns both views, each
by its own prompts (`Prompt.semids`), and `llmrec.decoding.fusion` fuses the lists.
"""

from collections.abc import Mapping

import numpy as np

from llmrec.catalogue.semids import SemIDIndex


def join_views(indexes: Mapping[str, SemIDIndex]) -> SemIDIndex:
    """One index with the Semantic IDs of several, of the same items; the first view is the primary one.

    Views of one token pattern number their levels through (`<a_..>` to `<d_..>`, then `<e_..>`); otherwise each
    keeps its tokens. The same indexes give the same tokens, also after items were added to each of them. The rows of
    the first view come first, then those of the next.
    Raises `ValueError` on fewer than two views, other items, items that share a Semantic ID, contextual views, views
    that write words, or that share tokens.
    """
    if len(indexes) < 2:
        raise ValueError(f"two views or more can be joined, not {len(indexes)}")
    names, parts = list(indexes), list(indexes.values())
    items = set(parts[0].items)
    for name, index in indexes.items():
        if odd := items.symmetric_difference(index.items):
            raise ValueError(f"view {name!r} has other items than {names[0]!r}, e.g. {min(odd)!r}")
        if index.contextual:
            raise ValueError(f"view {name!r} has Semantic IDs that depend on the history: they stand alone")
        if len(index.items) > len(set(index.groups().tolist())):
            raise ValueError(f"items share Semantic IDs in view {name!r}: make them distinct (any policy but 'keep')")
        if not index.adds_tokens:
            raise ValueError(f"view {name!r} writes words of the LLM, which cannot tell views apart")
        if not name or index.views:
            raise ValueError(f"view {name!r}: views need a name, and are no joined Semantic IDs themselves")
    ends = np.cumsum([index.num_levels for index in parts]).tolist()
    views = {name: [end - index.num_levels, end] for (name, index), end in zip(indexes.items(), ends)}
    codes = np.full((sum(map(len, parts)), ends[-1]), -1, np.int32)
    row = 0
    for index, (first, last) in zip(parts, views.values()):
        codes[row : row + len(index), first:last] = index.codes
        row += len(index)
    level_tokens = None
    if any(index.has_given_tokens for index in parts) or len({index.pattern for index in parts}) > 1:
        level_tokens = [tokens for index in parts for tokens in index.level_tokens]
        if len(set().union(*(index.tokens for index in parts))) < sum(len(index.tokens) for index in parts):
            raise ValueError(f"the views {', '.join(names)} share tokens: give one another pattern")
    return SemIDIndex(
        [item for index in parts for item in index.item_ids],
        codes,
        [size for index in parts for size in index.codebook_sizes],
        parts[0].pattern,
        {"views": views, "view_info": {name: index.info for name, index in indexes.items()}},
        level_tokens,
    )


def view_rows(index: SemIDIndex, name: str) -> np.ndarray:
    """int64: the rows of one view; raises `ValueError` for a view that the index does not have."""
    if name not in index.views:
        known = ", ".join(index.views) or "no views (join them with recipes/join_semids.py)"
        raise ValueError(f"there is no view {name!r} of Semantic IDs; there are {known}")
    first, last = index.views[name]
    return np.flatnonzero((index.codes[:, first:last] >= 0).any(1))

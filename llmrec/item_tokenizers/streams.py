"""Several streams of Semantic IDs side by side: what an item is (semantic) and who uses it (collaborative).

EAGER (arXiv 2406.14017) and SC-Rec (arXiv 2408.08686) give an item one Semantic ID per view and fuse the views when
they decode. Here a joined index is an ordinary `SemIDIndex`: the levels of the streams follow each other, and a row
has codes at the levels of its stream alone. EAGER has two decoders; here one language model learns both streams, each
by its own prompts (`Prompt.semids`), and `llmrec.decoding.fusion` fuses the lists.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from llmrec.item_tokenizers.domains import domain_names, load_domain_codebooks
from llmrec.semids import SemIDIndex


def join_streams(indexes: Mapping[str, SemIDIndex]) -> SemIDIndex:
    """One index with the Semantic IDs of several.

    Streams of one token pattern number their levels through (`<a_..>` to `<d_..>`, then `<e_..>`); otherwise each
    keeps its tokens. The same indexes give the same tokens, also after items were added to each of them.

    Args:
        indexes (mapping of stream name → index): of the same items; the first stream is the primary one.

    Returns:
        The rows of the first stream, then those of the next; `info["streams"]` says name → [first level, last level
        + 1].

    Raises:
        ValueError: fewer than two streams, other items, items that share a Semantic ID, contextual streams, streams
            that write words, or that share tokens.
    """
    from llmrec.item_tokenizers import is_contextual

    if len(indexes) < 2:
        raise ValueError(f"two streams or more can be joined, not {len(indexes)}")
    names, parts = list(indexes), list(indexes.values())
    items = set(parts[0].items)
    for name, index in indexes.items():
        if odd := items.symmetric_difference(index.items):
            raise ValueError(f"stream {name!r} has other items than {names[0]!r}, e.g. {min(odd)!r}")
        if is_contextual(index):
            raise ValueError(f"stream {name!r} has Semantic IDs that depend on the history: they stand alone")
        if len(index.items) > len(set(index.groups().tolist())):
            raise ValueError(
                f"items share Semantic IDs in stream {name!r}: make them distinct (any policy but 'keep')"
            )
        if not index.adds_tokens:
            raise ValueError(f"stream {name!r} writes words of the LLM, which cannot tell streams apart")
        if not name or "streams" in index.info:
            raise ValueError(f"stream {name!r}: streams need a name, and are no joined Semantic IDs themselves")
    ends = np.cumsum([index.num_levels for index in parts]).tolist()
    streams = {name: [end - index.num_levels, end] for (name, index), end in zip(indexes.items(), ends)}
    codes = np.full((sum(map(len, parts)), ends[-1]), -1, np.int32)
    row = 0
    for index, (first, last) in zip(parts, streams.values()):
        codes[row : row + len(index), first:last] = index.codes
        row += len(index)
    level_tokens = None
    if any(index.has_given_tokens for index in parts) or len({index.pattern for index in parts}) > 1:
        level_tokens = [tokens for index in parts for tokens in index.level_tokens]
        if len(set().union(*(index.tokens for index in parts))) < sum(len(index.tokens) for index in parts):
            raise ValueError(f"the streams {', '.join(names)} share tokens: give one another pattern")
    return SemIDIndex(
        [item for index in parts for item in index.item_ids],
        codes,
        [size for index in parts for size in index.codebook_sizes],
        parts[0].pattern,
        {"streams": streams, "stream_info": {name: index.info for name, index in indexes.items()}},
        level_tokens,
    )


def stream_names(index: SemIDIndex) -> list[str]:
    """The streams of an index, the primary one first; none where nothing was joined."""
    return list(index.info.get("streams", {}))


def stream_rows(index: SemIDIndex, name: str) -> np.ndarray:
    """int64: the rows of one stream; raises `ValueError` for a stream that the index does not have."""
    if name not in stream_names(index):
        held = ", ".join(stream_names(index)) or "no streams (join them with recipes/join_semids.py)"
        raise ValueError(f"there is no stream {name!r} of Semantic IDs; there are {held}")
    first, last = index.info["streams"][name]
    return np.flatnonzero((index.codes[:, first:last] >= 0).any(1))


def load_codebooks(folder: str | Path, index: SemIDIndex) -> list[np.ndarray | None] | None:
    """The codebooks behind the levels of an index, from its `item_tokenizer/` (one folder per stream or
    domain, if joined).

    Returns:
        float32 [K_l, d] per level, `None` for levels without; `None` where there is no item tokenizer.
    """
    from llmrec.item_tokenizers import load_item_tokenizer

    folder = Path(folder)
    if not folder.is_dir():
        return None
    if domain_names(index):
        return load_domain_codebooks(folder, index)
    if not stream_names(index):
        return getattr(load_item_tokenizer(folder), "codebooks", None)  # contextual ones have none
    codebooks: list[np.ndarray | None] = [None] * index.num_levels
    for name, (first, _) in index.info["streams"].items():
        if (folder / name).is_dir():
            for level, codebook in enumerate(load_item_tokenizer(folder / name).codebooks or ()):
                codebooks[first + level] = codebook
    return codebooks

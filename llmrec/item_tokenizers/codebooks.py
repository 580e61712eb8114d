"""The vectors behind the codes of an index, from the item tokenizers that made it: a start for new embeddings."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from llmrec.catalogue.domains import first_codes
from llmrec.catalogue.semids import SemIDIndex
from llmrec.item_tokenizers import load_item_tokenizer


def load_codebooks(folder: str | Path, index: SemIDIndex) -> list[np.ndarray | None] | None:
    """The codebooks behind the levels of an index, from its `item_tokenizer/` (one folder per stream or
    domain, if joined): float32 [K_l, d] per level, `None` for levels without; `None` where there is no item tokenizer.
    """
    folder = Path(folder)
    if not folder.is_dir():
        return None
    if index.domains:
        folders = {name: folder / name for name in index.domains if (folder / name).is_dir()}
        return domain_codebooks({name: load_item_tokenizer(path).codebooks for name, path in folders.items()}, index)
    if not index.views:
        tokenizer = load_item_tokenizer(folder)
        return None if tokenizer.traits.contextual else tokenizer.codebooks
    codebooks: list[np.ndarray | None] = [None] * index.num_levels
    for name, (first, _) in index.views.items():
        if (folder / name).is_dir():
            for level, codebook in enumerate(load_item_tokenizer(folder / name).codebooks):
                codebooks[first + level] = codebook
    return codebooks


def domain_codebooks(codebooks: Mapping[str, list], index: SemIDIndex) -> list[np.ndarray | None]:
    """The vectors behind the levels of a joined index.

    Every domain's vectors of a level are centred and scaled to a mean length of 1, because domains measure in units of
    their own; short ones are filled up with zeros, and a code without a vector gets zeros.
    `codebooks` are those of a domain, where it has any, and so is the result: float32 `[K_l, d]` per level, `None` for
    levels where no domain has vectors.
    """
    levels: list[np.ndarray | None] = [None] * index.num_levels
    widest = max((book.shape[1] for books in codebooks.values() for book in books), default=0)
    for name, firsts in first_codes(index.domains).items():
        for level, (book, first) in enumerate(zip(codebooks.get(name, ()), firsts), start=1):
            vectors = np.asarray(book, np.float64) - np.mean(book, 0, dtype=np.float64)
            length = np.linalg.norm(vectors, axis=1).mean()
            if levels[level] is None:
                levels[level] = np.zeros((index.codebook_sizes[level], widest), np.float32)
            levels[level][first : first + len(book), : book.shape[1]] = vectors / (length or 1.0)
    return levels

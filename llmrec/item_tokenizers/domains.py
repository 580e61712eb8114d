"""Semantic IDs of several domains in one index: the first token says the domain, the others are the domain's own.

`<a_0>` is the first domain, `<a_1>` the second; a domain's codes follow one level deeper, and no two domains share a
token. So one trie holds all catalogues, the first step of a search chooses the domain, and the domains keep the item
tokenizers that fit them. The same indexes in the same order give the same tokens; a domain that is added last changes
none of the others'.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from llmrec.data.domains import check_domain_names
from llmrec.semids import SemIDIndex


def join_domain_semids(indexes: Mapping[str, SemIDIndex]) -> SemIDIndex:
    """One index for the items of `llmrec.data.domains.join_domains`, whose ids are `<domain>/<id>`.

    Args:
        indexes (mapping of domain → index): the token pattern is that of the first. SemIDs may be ragged, shared by
            items (policy "keep"), and several for one item.

    Returns:
        Levels: the domain, then the domains' levels side by side (sizes are sums over the domains).
        `info["domains"]` says name → codebook sizes; SemIDs that are reserved for removed items stay reserved.

    Raises:
        ValueError: fewer than two domains; Semantic IDs with tokens of their own (words, pieces), joined, contextual
            or with behaviours.
    """
    from llmrec.item_tokenizers import is_contextual

    check_domain_names(list(indexes))
    for name, index in indexes.items():
        for problem, found in (
            ("depend on the history", is_contextual(index)),
            ("are joined ones already", "streams" in index.info or "domains" in index.info),
            ("write tokens of their own (words, pieces), which cannot be numbered by domain", index.has_given_tokens),
            ("hold behaviours: join them without, recipes/init_model.py adds those of the data", index.behaviours),
        ):
            if found:
                raise ValueError(f"domain {name!r}: its Semantic IDs {problem}")
    sizes = {name: list(index.codebook_sizes) for name, index in indexes.items()}
    num_levels, firsts = 1 + max(map(len, sizes.values())), _first_codes(sizes)

    def tagged(name: str, codes: np.ndarray) -> np.ndarray:
        rows = np.full((len(codes), num_levels), -1, np.int32)
        rows[:, 0] = list(indexes).index(name)
        rows[:, 1 : 1 + codes.shape[1]] = np.where(codes >= 0, codes + np.array(firsts[name], np.int32), -1)
        return rows

    reserved, came = {}, {}
    for name, index in indexes.items():
        for item, semids in index.info.get("reserved", {}).items():
            reserved[f"{name}/{item}"] = tagged(name, np.array(semids, np.int32)).tolist()
        came |= {f"{name}/{item}": version for item, version in index.info.get("reserved_versions", {}).items()}
    summed = [sum(part[level] for part in sizes.values() if level < len(part)) for level in range(num_levels - 1)]
    return SemIDIndex(
        [f"{name}/{item}" for name, index in indexes.items() for item in index.item_ids],
        np.concatenate([tagged(name, index.codes) for name, index in indexes.items()]),
        [len(indexes), *summed],
        next(iter(indexes.values())).pattern,
        {
            "domains": sizes,
            "domain_info": {name: index.info for name, index in indexes.items()},
            "ordered": all(index.info.get("ordered", True) for index in indexes.values()),
            "reserved": reserved,
            "reserved_versions": came,
        },
    )


def domain_names(index: SemIDIndex) -> list[str]:
    """The domains of an index by the codes of its first level; none where nothing was joined."""
    return list(index.info.get("domains", {}))


def domain_codebooks(codebooks: Mapping[str, list], index: SemIDIndex) -> list[np.ndarray | None]:
    """The vectors behind the levels of a joined index.

    Every domain's vectors of a level are centred and scaled to a mean length of 1, because domains measure in units of
    their own; short ones are filled up with zeros, and a code without a vector gets zeros.

    Args:
        codebooks (mapping of domain → list of float32 `[K_l, d]`): of the item tokenizers, where they have any.

    Returns:
        float32 `[K_l, d]` per level, `None` for levels where no domain has vectors.
    """
    sizes = index.info["domains"]
    levels: list[np.ndarray | None] = [None] * index.num_levels
    widest = max((book.shape[1] for books in codebooks.values() for book in books), default=0)
    for name, firsts in _first_codes(sizes).items():
        for level, (book, first) in enumerate(zip(codebooks.get(name, ()), firsts), start=1):
            vectors = np.asarray(book, np.float64) - np.mean(book, 0, dtype=np.float64)
            length = np.linalg.norm(vectors, axis=1).mean()
            if levels[level] is None:
                levels[level] = np.zeros((index.codebook_sizes[level], widest), np.float32)
            levels[level][first : first + len(book), : book.shape[1]] = vectors / (length or 1.0)
    return levels


def load_domain_codebooks(folder: str | Path, index: SemIDIndex) -> list[np.ndarray | None]:
    """`domain_codebooks` of the item tokenizers in `<folder>/<domain>`, where there are such folders."""
    from llmrec.item_tokenizers import load_item_tokenizer

    folders = {name: Path(folder) / name for name in domain_names(index)}
    books = {name: load_item_tokenizer(path).codebooks or [] for name, path in folders.items() if path.is_dir()}
    return domain_codebooks(books, index)


def _first_codes(sizes: Mapping[str, list[int]]) -> dict[str, list[int]]:
    """The first code of every domain at each of its levels: after those of the domains before it."""
    firsts, used = {}, [0] * max(map(len, sizes.values()))
    for name, own in sizes.items():
        firsts[name] = used[: len(own)]
        used = [taken + (own[level] if level < len(own) else 0) for level, taken in enumerate(used)]
    return firsts

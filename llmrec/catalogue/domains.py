"""Semantic IDs of several domains in one index: the first token says the domain, the others are the domain's own.

`<a_0>` is the first domain, `<a_1>` the second; a domain's codes follow one level deeper, and no two domains share a
token. So one trie holds all catalogues, the first step of a search chooses the domain, and the domains keep the item
tokenizers that fit them. The same indexes in the same order give the same tokens; a domain that is added last changes
none of the others'.
"""

from collections.abc import Mapping

import numpy as np

from llmrec.catalogue.lifecycle import reservation
from llmrec.catalogue.semids import SemIDIndex
from llmrec.data.domains import check_domain_names


def join_domain_semids(indexes: Mapping[str, SemIDIndex]) -> SemIDIndex:
    """One index for the items of `llmrec.data.domains.join_domains`, whose ids are `<domain>/<id>`.

    Levels are the domain, then the domains' levels side by side (sizes are sums over the domains); the token pattern
    is that of the first. SemIDs may be ragged, shared by items (policy "keep"), and several for one item; those that
    are reserved for removed items stay reserved.
    Raises `ValueError` on fewer than two domains; Semantic IDs with tokens of their own (words, pieces), joined,
    contextual or with behaviours.
    """
    check_domain_names(list(indexes))
    for name, index in indexes.items():
        for problem, applies in (
            ("depend on the history", index.contextual),
            ("are joined ones already", bool(index.views or index.domains)),
            ("write tokens of their own (words, pieces), which cannot be numbered by domain", index.has_given_tokens),
            ("hold behaviours: join them without, recipes/init_model.py adds those of the data", index.behaviours),
        ):
            if applies:
                raise ValueError(f"domain {name!r}: its Semantic IDs {problem}")
    sizes = {name: list(index.codebook_sizes) for name, index in indexes.items()}
    num_levels, firsts = 1 + max(map(len, sizes.values())), first_codes(sizes)

    def tagged(name: str, codes: np.ndarray) -> np.ndarray:
        rows = np.full((len(codes), num_levels), -1, np.int32)
        rows[:, 0] = list(indexes).index(name)
        rows[:, 1 : 1 + codes.shape[1]] = np.where(codes >= 0, codes + np.array(firsts[name], np.int32), -1)
        return rows

    reserved, versions = {}, {}
    for name, index in indexes.items():
        for item, semids in index.reserved.items():
            reserved[f"{name}/{item}"] = tagged(name, np.array(semids, np.int32)).tolist()
            versions[f"{name}/{item}"] = index.reserved_versions[item]
    summed = [sum(part[level] for part in sizes.values() if level < len(part)) for level in range(num_levels - 1)]
    return SemIDIndex(
        [f"{name}/{item}" for name, index in indexes.items() for item in index.item_ids],
        np.concatenate([tagged(name, index.codes) for name, index in indexes.items()]),
        [len(indexes), *summed],
        next(iter(indexes.values())).pattern,
        {
            "domains": sizes,
            "domain_info": {name: index.info for name, index in indexes.items()},
            "ordered": all(index.ordered for index in indexes.values()),
            **reservation(reserved, versions),
        },
    )


def first_codes(sizes: Mapping[str, list[int]]) -> dict[str, list[int]]:
    """The first code of every domain at each of its levels: after those of the domains before it."""
    firsts, used = {}, [0] * max(map(len, sizes.values()))
    for name, part in sizes.items():
        firsts[name] = used[: len(part)]
        used = [taken + (part[level] if level < len(part) else 0) for level, taken in enumerate(used)]
    return firsts

"""From features and a fitted item tokenizer to a `SemIDIndex`, and adding items to it later."""

import logging
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa

from llmrec.arguments import one_of
from llmrec.arrays import check_features
from llmrec.catalogue.collisions import COLLISION_POLICIES, collision_stats
from llmrec.catalogue.lifecycle import FIRST_VERSION, bring_back, next_version, taken_codes
from llmrec.catalogue.semids import SemIDIndex
from llmrec.features.parts.part import rows_in_training
from llmrec.files import fingerprint
from llmrec.item_tokenizers.contextual.sequence_tokenizer import SequenceTokenizer
from llmrec.item_tokenizers.protocol import ItemTokenizer, tokenizer_fingerprint

logger = logging.getLogger(__name__)


def build_semids(
    item_ids: Sequence[str],
    features: np.ndarray,
    tokenizer: ItemTokenizer,
    collision: str = "auto",
    collision_reserve: int = 32,
    pattern: str = "default",
    info: Mapping | None = None,
    items: pa.Table | None = None,
    first: np.ndarray | None = None,
) -> SemIDIndex:
    """Semantic IDs for a catalogue.

    Args:
        item_ids: N distinct ids, in the order of `features`, float32 `[N, D]`.
        collision: see `check_collision`.
        collision_reserve: unused tokens kept on the collision level, so that items added later never resize the
            model. Every policy but `keep` has this level, even where no item collides yet.
        info: recorded in the index (how the features were made).
        items: the items' columns, for tokenizers that look at them.
        first: rows (int64) that get their SemIDs before the others, which then are newcomers to them as in
            `add_items`: these SemIDs are the same whatever else the catalogue holds.

    Raises:
        ValueError: an unknown policy or one that does not fit the tokenizer, an unfitted tokenizer, repeated ids, or
            lengths that differ.
    """
    features = check_features(features)
    item_ids = _distinct_ids(item_ids, features)
    collision = check_collision(collision, tokenizer)
    codes = tokenizer.encode(features, items)
    resolved = np.empty((len(codes), codes.shape[1] + 1), np.int32)
    taken = resolved[:0]
    everyone = np.arange(len(codes))
    for part in [everyone] if first is None else [first, np.setdiff1d(everyone, first)]:
        resolved[part] = _resolved(collision, tokenizer, features, part, codes[part], taken)
        taken = resolved[part]
    sizes, tokens = list(tokenizer.codebook_sizes), tokenizer.level_tokens
    if collision == "keep":
        resolved = resolved[:, :-1]
    else:
        sizes.append(max(int(resolved[:, -1].max()) + 1 + collision_reserve, 1))
        if tokens is not None:
            further = "<further_{}>" if tokenizer.traits.adds_tokens else " {}"
            tokens = [*tokens, [further.format(number) for number in range(sizes[-1])]]
    return SemIDIndex(
        item_ids,
        resolved,
        sizes,
        pattern,
        level_tokens=tokens,
        adds_tokens=tokenizer.traits.adds_tokens,
        info={
            **(info or {}),
            **FIRST_VERSION,
            "ordered": tokenizer.traits.ordered,
            "item_tokenizer": {"name": tokenizer.name, **tokenizer.config},
            "item_tokenizer_fingerprint": tokenizer_fingerprint(tokenizer),
            "features_fingerprint": fingerprint(features.data),
            "collision": collision,
            "collisions_before": collision_stats(codes),
            "collisions_after": collision_stats(resolved),
        },
    )


def fit_semids(
    tokenizer: ItemTokenizer | SequenceTokenizer,
    features: np.ndarray,
    items: pa.Table,
    train: pa.Table | None,
    seed: int = 0,
    **naming,
) -> SemIDIndex:
    """Fits a tokenizer on the items of the training sequences, and gives all items of the catalogue their SemIDs;
    those of the training items do not depend on the others.

    Args:
        features, items: the catalogue, N rows (float32 `[N, D]`) and columns.
        train: training sequences; without them every item counts as seen.
        naming: `collision`, `collision_reserve`, `pattern` and `info` of `build_semids`. A `SequenceTokenizer` names
            and tells apart its items itself.
    """
    check_collision(naming.get("collision", "auto"), tokenizer)
    if tokenizer.traits.contextual:
        index = tokenizer.fit(features, items, train, seed).index()
        index.info = {**(naming.get("info") or {}), **index.info}
        return index
    rows = rows_in_training(items, train)
    if not len(rows):
        raise ValueError("no training sequence holds an item of the catalogue: there is nothing to fit")
    if len(rows) == len(features):  # nothing is copied
        tokenizer.fit(features, items, train, seed)
    else:
        tokenizer.fit(features[rows], items.take(rows), train, seed)
    return build_semids(items["item_id"].to_pylist(), features, tokenizer, items=items, first=rows, **naming)


def add_items(
    index: SemIDIndex,
    tokenizer: ItemTokenizer,
    features: np.ndarray,
    item_ids: Sequence[str],
    items: pa.Table | None = None,
) -> SemIDIndex:
    """The next version of an index, with further items; the SemIDs of the items in `index` stay as they are.

    The collision policy of the index is applied to the newcomers alone. One that meets an item without a further token
    gets one itself: the old SemID is then a prefix of the new one, which `SemIDTrie` handles. An item that was removed
    and comes back gets the SemID it had (see `llmrec.catalogue.lifecycle`).

    Args:
        features: float32 `[N, D]`, made as the features that `tokenizer` was fitted on.
        item_ids: N ids that are not in `index`.
        items: the items' columns, for tokenizers that look at them.

    Raises:
        ValueError: an id that exists, another tokenizer than the index was built with, or a full collision level.
    """
    features = check_features(features)
    item_ids = _distinct_ids(item_ids, features)
    known = set(index.items)
    if old := [item for item in item_ids if item in known]:
        raise ValueError(f"item {old[0]!r} has a Semantic ID already: SemIDs of existing items never change")
    if domains := ", ".join(index.domains):
        raise ValueError(f"these are Semantic IDs of several domains: add the items to {domains}, and join them again")
    if views := ", ".join(index.views):
        raise ValueError(f"these are joined Semantic IDs: add the items to {views}, and join the views again")
    if tokenizer.traits.contextual:
        raise ValueError(f"item tokenizer {tokenizer.name!r} knows the items it was fitted with only: fit it again")
    if index.item_tokenizer_fingerprint != tokenizer_fingerprint(tokenizer):
        raise ValueError("this index was not built with this item tokenizer: new items would get meaningless codes")
    grown = bring_back(index, item_ids)
    there = set(grown.items)
    new = [row for row, item in enumerate(item_ids) if item not in there]
    if new:
        columns = None if items is None else items.take(pa.array(new))
        grown = _with_newcomers(grown, tokenizer, features[new], [item_ids[row] for row in new], columns)
    logger.info("added %d items to %d", len(item_ids), len(index))
    return next_version(index, grown)


def _with_newcomers(index: SemIDIndex, tokenizer: ItemTokenizer, features, item_ids, items) -> SemIDIndex:
    taken = taken_codes(index)
    if index.collision == "keep":
        taken = np.pad(taken, ((0, 0), (0, 1)), constant_values=-1)
    everyone, codes = np.arange(len(features)), tokenizer.encode(features, items)
    resolved = _resolved(index.collision, tokenizer, features, everyone, codes, taken)
    if index.collision == "keep":
        resolved = resolved[:, :-1]
    elif (full := resolved[:, -1] >= index.codebook_sizes[-1]).any():
        raise ValueError(
            f"item {item_ids[int(full.argmax())]!r} finds the collision level full "
            f"({index.codebook_sizes[-1]} tokens): build the index with a larger collision_reserve"
        )
    joined = np.concatenate([index.codes, resolved])
    return index.replaced([*index.item_ids, *item_ids], joined, {"collisions_after": collision_stats(joined)})


def _resolved(collision: str, tokenizer: ItemTokenizer, features, part, codes, taken: np.ndarray) -> np.ndarray:
    """What a collision policy makes of codes `[N, L]`, which rows `part [N]` of the features have, beside
    `taken [M, L + 1]`; nothing of nothing."""
    if not len(codes):
        return np.empty((0, codes.shape[1] + 1), np.int32)
    policy = COLLISION_POLICIES[collision]
    return policy(codes, lambda rows: tokenizer.last_level_costs(features[part[rows]], codes[rows]), taken)


def check_collision(collision: str, tokenizer: ItemTokenizer | SequenceTokenizer) -> str:
    """The collision policy that a tokenizer's SemIDs get: `"auto"` is `reassign_last` where the tokenizer knows
    distances at its last level, else `append`. Raises `ValueError`: unknown, or none for this tokenizer."""
    has_costs = tokenizer.traits.decodes_to_vector and tokenizer.traits.fixed_length
    if collision == "auto":
        return "reassign_last" if has_costs else "append"
    one_of(collision, ["auto", *COLLISION_POLICIES], "collision policy")
    if tokenizer.traits.contextual:
        raise ValueError(
            f"collision policy {collision!r}: item tokenizer {tokenizer.name!r} tells items apart itself: use 'auto'"
        )
    if collision.endswith("_last") and not has_costs:
        raise ValueError(
            f"collision policy {collision!r} needs distances at a last level, which item tokenizer "
            f"{tokenizer.name!r} does not have: use 'append', 'append_all' or 'keep'"
        )
    return collision


def _distinct_ids(item_ids: Sequence[str], features: np.ndarray) -> list[str]:
    item_ids = [str(item) for item in item_ids]
    if len(item_ids) != len(features):
        raise ValueError(f"{len(item_ids)} item ids for features of {len(features)} items")
    if len(set(item_ids)) != len(item_ids):
        raise ValueError(f"item id {Counter(item_ids).most_common(1)[0][0]!r} appears twice")
    return item_ids

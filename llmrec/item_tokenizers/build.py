"""From features and a fitted item tokenizer to a `SemIDIndex`, and adding items to it later."""

import logging
from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa

from llmrec.files import fingerprint
from llmrec.item_tokenizers.collisions import COLLISION_POLICIES, collision_stats
from llmrec.item_tokenizers.preprocess import check_features
from llmrec.item_tokenizers.protocol import ItemTokenizer
from llmrec.semids import SemIDIndex

logger = logging.getLogger(__name__)


def build_semids(
    item_ids: Sequence[str],
    features: np.ndarray,
    tokenizer: ItemTokenizer,
    collision: str = "reassign_last",
    collision_reserve: int = 32,
    pattern: str = "default",
    info: Mapping | None = None,
) -> SemIDIndex:
    """Semantic IDs for a catalogue.

    Args:
        item_ids (sequence of `str`, length N): in the order of `features`; ids are distinct.
        features (`np.ndarray`, float32, `[N, D]`).
        tokenizer (`ItemTokenizer`): fitted.
        collision (`str`): a key of `COLLISION_POLICIES`.
        collision_reserve (`int`): unused tokens kept on the collision level, so that items added later never resize
            the model. Every policy but `keep` has this level, even where no item collides yet.
        pattern (`str`): token pattern, see `SemIDIndex`.
        info (mapping, *optional*): recorded in the index (how the features were made).

    Raises:
        ValueError: an unknown policy, an unfitted tokenizer, repeated ids, or lengths that differ.
    """
    features = check_features(features)
    item_ids = _distinct_ids(item_ids, features)
    policy = _policy(collision, tokenizer)
    codes = tokenizer.encode(features)
    num_levels = codes.shape[1]
    taken = np.empty((0, num_levels + 1), np.int32)
    resolved = policy(codes, lambda rows: tokenizer.last_level_costs(features[rows], codes[rows]), taken)
    sizes = list(tokenizer.codebook_sizes)
    if collision == "keep":
        resolved = resolved[:, :num_levels]
    else:
        sizes.append(max(int(resolved[:, -1].max()) + 1 + collision_reserve, 1))
    return SemIDIndex(
        item_ids,
        resolved,
        sizes,
        pattern,
        info={
            **dict(info or {}),
            "item_tokenizer": {"name": tokenizer.name, **tokenizer.config},
            "item_tokenizer_fingerprint": tokenizer_fingerprint(tokenizer),
            "features_fingerprint": fingerprint(features.tobytes()),
            "collision": collision,
            "collisions_before": collision_stats(codes),
            "collisions_after": collision_stats(resolved),
        },
    )


def add_items(
    index: SemIDIndex, tokenizer: ItemTokenizer, features: np.ndarray, item_ids: Sequence[str]
) -> SemIDIndex:
    """A new index with further items; the SemIDs of the items in `index` stay as they are.

    The collision policy of the index is applied to the newcomers alone. One that meets an item without a further token
    gets one itself: the old SemID is then a prefix of the new one, which `SemIDTrie` handles.

    Args:
        features (`np.ndarray`, float32, `[N, D]`): made as the features that `tokenizer` was fitted on.
        item_ids (sequence of `str`, length N): ids that are not in `index`.

    Raises:
        ValueError: an id that exists, another tokenizer than the index was built with, or a full collision level.
    """
    features = check_features(features)
    item_ids = _distinct_ids(item_ids, features)
    known = set(index.items)
    old = next((item for item in item_ids if item in known), None)
    if old is not None:
        raise ValueError(f"item {old!r} has a Semantic ID already: SemIDs of existing items never change")
    if index.info.get("item_tokenizer_fingerprint") != tokenizer_fingerprint(tokenizer):
        raise ValueError("this index was not built with this item tokenizer: new items would get meaningless codes")
    collision = index.info["collision"]
    policy = _policy(collision, tokenizer)
    codes = tokenizer.encode(features)
    num_levels = codes.shape[1]
    taken = index.codes if collision != "keep" else np.pad(index.codes, ((0, 0), (0, 1)), constant_values=-1)
    resolved = policy(codes, lambda rows: tokenizer.last_level_costs(features[rows], codes[rows]), taken)
    if collision == "keep":
        resolved = resolved[:, :num_levels]
    elif (full := resolved[:, -1] >= index.codebook_sizes[-1]).any():
        raise ValueError(
            f"item {item_ids[int(full.argmax())]!r} finds the collision level full "
            f"({index.codebook_sizes[-1]} tokens): build the index with a larger collision_reserve"
        )
    logger.info("added %d items to %d", len(item_ids), len(index))
    joined = np.concatenate([index.codes, resolved])
    info = {**index.info, "collisions_after": collision_stats(joined)}
    info["items_added"] = info.get("items_added", 0) + len(item_ids)
    return SemIDIndex([*index.item_ids, *item_ids], joined, index.codebook_sizes, index.pattern, info)


def ready_made_semids(items: pa.Table, source: str, codebook_sizes: Sequence[int] | None = None) -> SemIDIndex:
    """Semantic IDs that exist already, for exactly the items of a catalogue; items may share one.

    Args:
        source (`str`): a column of `items` with lists of tokens such as `["<a_1>", "<b_2>"]`, or an `index.json`.
        codebook_sizes (*optional*): see `SemIDIndex.from_tokens`.

    Raises:
        ValueError: neither a column nor a file, an item without SemID, or tokens that do not read `<letter_number>`.
    """
    if source.endswith(".json"):
        index = SemIDIndex.from_index_json(source, codebook_sizes).aligned(items)
    elif source in items.column_names:
        lists = items[source].to_pylist()
        empty = next((i for i, tokens in enumerate(lists) if not tokens), None)
        if empty is not None:
            raise ValueError(f"item {items['item_id'][empty].as_py()!r} has no Semantic ID in column {source!r}")
        semids = dict(zip(items["item_id"].to_pylist(), lists))
        index = SemIDIndex.from_tokens(semids, codebook_sizes, info={"source": f"column {source}"})
    else:
        raise ValueError(f"ready-made SemIDs {source!r} are neither a column of the catalogue nor an index.json")
    index.info |= {"collision": "keep", "collisions_after": collision_stats(index.codes)}
    return index


def tokenizer_fingerprint(tokenizer: ItemTokenizer) -> str:
    """Changes with the settings and codebooks of a tokenizer."""
    return fingerprint(
        tokenizer.name, repr(sorted(tokenizer.config.items())), *(book.tobytes() for book in tokenizer.codebooks)
    )


def _policy(collision: str, tokenizer: ItemTokenizer):
    if collision not in COLLISION_POLICIES:
        raise ValueError(f"collision policy {collision!r} is not one of {', '.join(COLLISION_POLICIES)}")
    if collision != "keep" and not tokenizer.fixed_length:
        raise ValueError(
            f"collision policy {collision!r} needs SemIDs of equal length: use 'keep' with this tokenizer"
        )
    return COLLISION_POLICIES[collision]


def _distinct_ids(item_ids: Sequence[str], features: np.ndarray) -> list[str]:
    item_ids = [str(item) for item in item_ids]
    if len(item_ids) != len(features):
        raise ValueError(f"{len(item_ids)} item ids for features of {len(features)} items")
    if len(set(item_ids)) != len(item_ids):
        seen: set[str] = set()
        twice = next(item for item in item_ids if item in seen or seen.add(item))
        raise ValueError(f"item id {twice!r} appears twice")
    return item_ids

"""Rewards with TRL's signature, by name, and anyone's own by dotted path.

A reward is called with one entry per completion, the completions of a prompt side by side and best first:
`reward(prompts, completions, completion_ids, item, rank, target, history, ...) -> list of float`; `None` says nothing.
Beside TRL's arguments there are the columns of the rows (`history`, `target`: item ids; `wish`, `about` where a task
has them), `item` (the item that a completion is) and `rank` (its place in the group, from 0).

In the examples a group of four answers the target `t`; `[w1, t, w2, w3]` are its items.
"""

import importlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa

from llmrec.data.rows import flatten_lists
from llmrec.instructions.wishes import Wishes
from llmrec.semids import SemIDIndex

Reward = Callable[..., list[float | None]]


@dataclass(frozen=True)
class Facts:
    """What rewards know beside the rows.

    Args:
        index (`SemIDIndex`), items (`pa.Table`): the catalogue.
        train (`pa.Table`): the training split, for popularity.
        features (`str`): `features.npy` of a folder that recipes/tokenize_items.py wrote, rows as in `index`.
        sasrec (`str`): a folder that recipes/train_baseline.py wrote.
    """

    index: SemIDIndex
    items: pa.Table
    train: pa.Table
    features: str = ""
    sasrec: str = ""

    @cached_property
    def codes(self) -> dict[str, tuple[int, ...]]:
        """Item → the codes of its first Semantic ID."""
        rows = zip(self.index.item_ids, self.index.codes.tolist())
        return {item: tuple(code for code in codes if code >= 0) for item, codes in reversed(list(rows))}

    @cached_property
    def popularity(self) -> Counter:
        """Item → how often it is in the training sequences."""
        return Counter(flatten_lists(self.train["item_ids"])[0].to_pylist())

    @cached_property
    def vectors(self) -> dict[str, np.ndarray]:
        """Item → its features, of unit length (zeros stay zeros)."""
        if not self.features:
            raise ValueError(
                "reward semantic_similarity needs `features`: the features.npy of recipes/tokenize_items.py"
            )
        matrix = np.load(self.features, allow_pickle=False).astype(np.float32)
        if len(matrix) != self.items.num_rows:
            raise ValueError(
                f"{self.features} has {len(matrix)} rows, but the catalogue has {self.items.num_rows} items"
            )
        matrix /= np.maximum(np.linalg.norm(matrix, axis=1, keepdims=True), 1e-12)
        return dict(zip(self.items["item_id"].to_pylist(), matrix))

    @cached_property
    def baseline(self):
        """The SASRec that `collaborative` asks."""
        from llmrec.baselines import SASRec

        if not self.sasrec:
            raise ValueError("reward collaborative needs `sasrec`: a folder of recipes/train_baselines.py")
        return SASRec.from_pretrained(self.sasrec)


def exact_hit(facts: Facts) -> Reward:
    """1 for the target, or for an item that shares its Semantic ID; else 0 (MiniOneRec's rule).

    `[w1, t, w2, w3]` → `[0, 1, 0, 0]`.
    """

    def reward(item, target, **kwargs):
        return [float(facts.codes[i] == facts.codes[t]) for i, t in zip(item, target)]

    return reward


def rank_penalty(facts: Facts) -> Reward:
    """MiniOneRec's ranking reward: where the target is in the group, a wrong item loses the more the higher it stands.

    The wrong item of rank i gets -(1 / log2(i + 2)) / S, S the sum over the ranks of the group; the target 0. Without
    the target all get 0. `[w1, t, w2, w3]` → `[-.390, 0, -.195, -.168]`.
    """

    def reward(item, target, rank, **kwargs):
        hits = np.array([facts.codes[i] == facts.codes[t] for i, t in zip(item, target)])
        discount = 1 / np.log2(np.asarray(rank) + 2)
        groups = _groups(rank)
        present = hits.reshape(groups).any(1, keepdims=True)
        share = discount.reshape(groups) / discount.reshape(groups).sum(1, keepdims=True)
        return (-share * present * ~hits.reshape(groups)).ravel().tolist()

    return reward


def prefix_match(facts: Facts) -> Reward:
    """The share of the target's Semantic ID that an item's agrees with from the left.

    With three levels, `w1` of the same first code, `w2` of the same first two, `w3` of another: `[1/3, 1, 2/3, 0]`.
    """

    def reward(item, target, **kwargs):
        return [_common(facts.codes[i], facts.codes[t]) / len(facts.codes[t]) for i, t in zip(item, target)]

    return reward


def semantic_similarity(facts: Facts) -> Reward:
    """The cosine of the features of an item and of the target, in [-1, 1]: `[.4, 1, .8, -.1]`."""

    def reward(item, target, **kwargs):
        return [float(facts.vectors[i] @ facts.vectors[t]) for i, t in zip(item, target)]

    return reward


def collaborative(facts: Facts) -> Reward:
    """The share of the catalogue that a SASRec ranks below an item after the history; no target is asked.

    In a catalogue of 101, where SASRec's places of the four are 1, 3, 11 and 101: `[1, .98, .9, 0]`. Its first place
    is the maximiser.
    """

    def reward(item, history, rank, **kwargs):
        groups = _groups(rank)
        catalogue = facts.baseline.catalogue
        values, offsets = catalogue.rows(history[:: groups[1]])
        scores = facts.baseline.score(values, offsets)
        place, _ = catalogue.rows([item])
        own = np.take_along_axis(scores, place.reshape(groups), 1)
        return ((scores[:, None] < own[..., None]).sum(-1) / (len(catalogue) - 1)).ravel().tolist()

    return reward


def popularity_corrected_hit(facts: Facts) -> Reward:
    """A hit counts the more the rarer the target: 1 / sqrt(its interactions in training + 1); a miss is 0.

    With 8 interactions of `t`: `[0, 1/3, 0, 0]`.
    """

    def reward(item, target, **kwargs):
        hits = exact_hit(facts)(item=item, target=target)
        return [hit / (facts.popularity[t] + 1) ** 0.5 for hit, t in zip(hits, target)]

    return reward


def diversity(facts: Facts) -> Reward:
    """1 / (how many of the group share an item's first code): the group is best off where no two do.

    With first codes `[5, 5, 7, 9]`: `[.5, .5, 1, 1]`.
    """

    def reward(item, rank, **kwargs):
        first = np.array([facts.codes[i][0] for i in item]).reshape(_groups(rank))
        return (1 / (first[:, :, None] == first[:, None]).sum(-1)).ravel().tolist()

    return reward


def wish_satisfied(facts: Facts) -> Reward:
    """1 where an item satisfies the row's `wish` (compared with the item `about`), by its columns; else 0.

    "cheaper" than an item of $20, with prices `[15, 25, 19, 40]`: `[1, 0, 1, 0]`. Rows without a wish say nothing.
    """
    wishes = Wishes(facts.items)

    def reward(item, wish=None, about=None, **kwargs):
        rewards: list[float | None] = []
        for number, one in enumerate(item):
            said, of = wish[number] if wish else None, about[number] if about else None
            rewards.append(None if not said else float(wishes.place[one] in set(wishes.satisfying(said, of).tolist())))
        return rewards

    return reward


REWARDS: dict[str, Callable[[Facts], Reward]] = {
    "exact_hit": exact_hit,
    "rank_penalty": rank_penalty,
    "prefix_match": prefix_match,
    "semantic_similarity": semantic_similarity,
    "collaborative": collaborative,
    "popularity_corrected_hit": popularity_corrected_hit,
    "diversity": diversity,
    "wish_satisfied": wish_satisfied,
}


def load_rewards(entries: Sequence[str | dict], facts: Facts) -> tuple[list[Reward], list[float]]:
    """Rewards and their weights from a YAML list: `exact_hit`, `prefix_match:0.5`, `my_package.my_reward:2`.

    A dotted path names a function with TRL's signature, or one that takes `facts` alone and returns it
    (`my_package.make(facts)`).

    Raises:
        ValueError: an entry that names nothing, a weight that is no number, no entries, or one twice.
    """
    if not entries:
        raise ValueError(f"reward_funcs is empty: name some of {', '.join(REWARDS)} or your own by dotted path")
    rewards, weights = [], []
    for entry in entries:
        name, _, weight = entry.partition(":")
        try:
            weights.append(float(weight or 1))
        except ValueError:
            raise ValueError(f"reward_funcs: {weight!r} in {entry!r} is not a weight") from None
        reward = REWARDS[name](facts) if name in REWARDS else _imported(name)
        rewards.append(checked(reward, name))
    names = [reward.__name__ for reward in rewards]
    if len(set(names)) < len(names):
        raise ValueError(f"reward_funcs names one twice: {', '.join(names)}")
    return rewards, weights


def checked(reward: Reward, name: str) -> Reward:
    """The same reward; what it raises or returns wrongly is a `ValueError` that names it."""

    def call(prompts, **kwargs):
        try:
            values = reward(prompts=prompts, **kwargs)
        except Exception as error:
            raise ValueError(f"reward {name!r} failed: {type(error).__name__}: {error}") from error
        if not isinstance(values, Sequence) or len(values) != len(prompts):
            said = f"{len(values)} values" if isinstance(values, Sequence) else type(values).__name__
            raise ValueError(
                f"reward {name!r} returned {said} for {len(prompts)} completions: a list with one for each"
            )
        for number, value in enumerate(values):
            if value is not None and not np.isfinite(value):
                raise ValueError(f"reward {name!r} is {value} for completion {number} ({kwargs['item'][number]!r})")
        return values

    call.__name__ = name.rpartition(".")[2]
    return call


def _imported(path: str) -> Reward:
    module, _, name = path.rpartition(".")
    if not module:
        raise ValueError(f"reward {path!r} is not one of {', '.join(REWARDS)}, nor a dotted path to a function")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"reward {path!r} cannot be imported: {error}") from error


def _groups(rank: Sequence[int]) -> tuple[int, int]:
    """The shape (groups, completions of each)."""
    size = max(rank) + 1
    return len(rank) // size, size


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """Length of the common prefix."""
    return next((n for n, (a, b) in enumerate(zip(one, other)) if a != b), min(len(one), len(other)))

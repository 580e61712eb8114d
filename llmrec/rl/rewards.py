"""Rewards with TRL's signature, by name, and anyone's own by dotted path.

A reward is called with one entry per completion, the completions of a prompt side by side and best first:
`reward(prompts, completions, completion_ids, item, rank, target, history, ...) -> list of float`; `None` says nothing
(all that compare with `target` do where a row has none: a wish has many right answers).
Beside TRL's arguments there are the columns of the rows (`history`, `target`: item ids; `wish`, `about` where a task
has them), `item` (the item that a completion is), `semid` (the tokens that said it, one of the item's Semantic IDs)
and `rank` (its place in the group, from 0).

In the examples a group of four answers the target `t`; `[w1, t, w2, w3]` are its items.
"""

import contextlib
import inspect
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa

from llmrec.arguments import part_named
from llmrec.catalogue.semids import SemIDIndex
from llmrec.data.rows import flatten_lists, ids_to_rows, lists_to_rows
from llmrec.instructions import TASKS, Catalogue
from llmrec.recommenders.sasrec import SASRec
from llmrec.rl.credit import common_prefix

Reward = Callable[..., list[float | None]]


@dataclass(frozen=True)
class Facts:
    """What rewards know beside the rows.

    Args:
        train: the training split, for popularity.
        features: `features.npy` of a folder that recipes/tokenize_items.py wrote, rows as in `items`.
        sasrec: a folder that recipes/train_baselines.py wrote.
    """

    index: SemIDIndex
    items: pa.Table
    train: pa.Table
    features: str = ""
    sasrec: str = ""

    @cached_property
    def catalogue(self) -> Catalogue:
        return Catalogue(self.index, self.items)

    @cached_property
    def semids(self) -> dict[str, list[tuple[str, ...]]]:
        """Item → the tokens of its Semantic IDs."""
        tokens = self.index.tokens_of_row
        return {item: [tuple(tokens(row)) for row in self.index.rows(item)] for item in self.index.items}

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
    def baseline(self) -> SASRec:
        if not self.sasrec:
            raise ValueError("reward collaborative needs `sasrec`: a folder of recipes/train_baselines.py")
        return SASRec.from_pretrained(self.sasrec)


def exact_hit(facts: Facts) -> Reward:
    """1 for the target, or for an item that shares its Semantic ID; else 0: the score of task next_item.

    `[w1, t, w2, w3]` → `[0, 1, 0, 0]`.
    """
    return _of_target(lambda item, target: _hit(facts, item, target))


def rank_penalty(facts: Facts) -> Reward:
    """MiniOneRec's ranking reward: where the target is in the group, a wrong item loses the more the higher it stands.

    The wrong item of rank i gets -(1 / log2(i + 2)) / S, S the sum over the ranks of the group; the target 0. Without
    the target all get 0. `[w1, t, w2, w3]` → `[-.390, 0, -.195, -.168]`.
    """
    hit = exact_hit(facts)

    def reward(item, target, rank, **kwargs):
        said = hit(item=item, target=target)
        hits = np.array([one == 1 for one in said]).reshape(_groups(rank))
        discount = 1 / np.log2(np.reshape(rank, hits.shape) + 2)
        share = discount / discount.sum(1, keepdims=True)
        losses = np.where(hits.any(1, keepdims=True) & ~hits, -share, 0.0).ravel().tolist()
        return [None if one is None else loss for one, loss in zip(said, losses)]

    return reward


def prefix_match(facts: Facts) -> Reward:
    """The share of the target's Semantic ID that an item's agrees with from the left.

    With three levels, `w1` of the same first code, `w2` of the same first two, `w3` of another: `[1/3, 1, 2/3, 0]`.
    Of a target with several Semantic IDs the one counts that agrees most; of an item the one that was said, or, where
    that is not known, its best.
    """
    semids = facts.semids

    def share(offered: Sequence[tuple], target: str) -> float:
        return max(common_prefix(one, wanted) / len(wanted) for wanted in semids[target] for one in offered)

    def reward(item, target, semid=None, **kwargs):
        said = [semids[i] for i in item] if semid is None else [[one] for one in semid]
        return [None if t is None else share(offered, t) for offered, t in zip(said, target)]

    return reward


def semantic_similarity(facts: Facts) -> Reward:
    """The cosine of the features of an item and of the target, in [-1, 1]: `[.4, 1, .8, -.1]`."""
    vectors = facts.vectors
    return _of_target(lambda item, target: float(vectors[item] @ vectors[target]))


def collaborative(facts: Facts) -> Reward:
    """The share of the catalogue that a SASRec ranks below an item after the history; no target is asked.

    In a catalogue of 101, where SASRec's places of the four are 1, 3, 11 and 101: `[1, .98, .9, 0]`. Its first place
    is the maximiser.
    """
    baseline, item_ids = facts.baseline, facts.baseline.items["item_id"]

    def reward(item, history, rank, **kwargs):
        groups = _groups(rank)
        histories = pa.array(history[:: groups[1]], pa.list_(pa.string()))
        scores = baseline.score(*lists_to_rows(histories, item_ids))
        place = ids_to_rows(pa.array(item, pa.string()), item_ids)
        of_item = np.take_along_axis(scores, place.reshape(groups), 1)
        return ((scores[:, None] < of_item[..., None]).sum(-1) / (len(item_ids) - 1)).ravel().tolist()

    return reward


def popularity_corrected_hit(facts: Facts) -> Reward:
    """A hit counts the more the rarer the target: 1 / sqrt(its interactions in training + 1); a miss is 0.

    With 8 interactions of `t`: `[0, 1/3, 0, 0]`.
    """
    return _of_target(lambda item, target: _hit(facts, item, target) / (facts.popularity[target] + 1) ** 0.5)


def diversity(facts: Facts) -> Reward:
    """1 / (how many of the group share the first token of an item's Semantic ID): best where no two do.

    With first codes `[5, 5, 7, 9]`: `[.5, .5, 1, 1]`.
    """

    def reward(item, rank, semid=None, **kwargs):
        said = [facts.semids[i][0] for i in item] if semid is None else semid
        first = np.array([one[0] for one in said]).reshape(_groups(rank))
        return (1 / (first[:, :, None] == first[:, None]).sum(-1)).ravel().tolist()

    return reward


def wish_satisfied(facts: Facts) -> Reward:
    """1 where an item satisfies the row's `wish` (compared with the item `about`), by its columns; else 0: the score
    of the tasks with a wish.

    "cheaper" than an item of $20, with prices `[15, 25, 19, 40]`: `[1, 0, 1, 0]`. Rows without a wish say nothing.
    """
    score = TASKS["like_but"].score

    def reward(item, wish=None, about=None, **kwargs):
        nothing = [None] * len(item)
        rows = [{"wish": said, "about": other} for said, other in zip(wish or nothing, about or nothing)]
        return [score(facts.catalogue, row, one) if row["wish"] else None for one, row in zip(item, rows)]

    return reward


def beam_match(facts: Facts) -> Reward:
    """Of thoughts: the best prefix match of any item found after one (OneRec-Think's rollout beam, arXiv 2510.11639).

    With three levels, beams `[[w, w], [w, t], [w1, w], [w2, w]]`, `w1` and `w2` as in `prefix_match`:
    `[0, 1, 1/3, 2/3]`. `null` where a group is of items.
    """
    match = prefix_match(facts)

    def reward(item, target, beams=None, **kwargs):
        if beams is None:
            return [None] * len(item)
        return [
            None if t is None else max(match(item=items, target=[t] * len(items))) for items, t in zip(beams, target)
        ]

    return reward


def thought_format(facts: Facts) -> Reward:
    """Of thoughts: 1 for one that says something and that the model closed, 0 for one that is empty or was cut.

    `["They like drills.", "", "It is", "Tools."]`, the third cut: `[1, 0, 0, 1]`.
    """

    def reward(item, thought=None, closed=None, **kwargs):
        if thought is None:
            return [None] * len(item)
        return [float(bool(text.strip()) and end) for text, end in zip(thought, closed)]

    return reward


def thought_length(facts: Facts) -> Reward:
    """Of thoughts: the share of the allowed tokens (`max_thought_tokens`) that one left unused.

    Of 128 tokens, thoughts of 32, 0, 128 and 64: `[.75, 1, 0, .5]`. Beside `thought_format`, or silence is best.
    """

    def reward(item, thought_share=None, **kwargs):
        return [None] * len(item) if thought_share is None else [1 - share for share in thought_share]

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
    "beam_match": beam_match,
    "thought_format": thought_format,
    "thought_length": thought_length,
}


def load_rewards(entries: Sequence[str], facts: Facts) -> tuple[list[Reward], list[float]]:
    """Rewards and their weights from a YAML list: `exact_hit`, `prefix_match:0.5`, `my_package.my_reward:2`.

    A dotted path names a function with TRL's signature, or one that takes `facts` alone and returns it. What a reward
    needs (`features`, `sasrec`) is read here. Raises `ValueError`: an entry that names nothing, a weight that is no
    number, no entries, or one twice.
    """
    if not entries:
        raise ValueError(f"rewards is empty: name some of {', '.join(REWARDS)} or your own by dotted path")
    rewards, weights = [], []
    for entry in entries:
        if not isinstance(entry, str):  # YAML reads `exact_hit: 2` as a mapping
            raise ValueError(f"rewards: {entry!r} is not text; write name:weight without a space")
        name, _, weight = entry.partition(":")
        weights.append(_weight(weight, entry))
        made = part_named(name, REWARDS, "reward")
        if not callable(made):
            raise ValueError(f"reward {name!r} is {type(made).__name__}, no function")
        of_facts = name in REWARDS or list(inspect.signature(made).parameters) == ["facts"]
        rewards.append(checked(made(facts) if of_facts else made, name))
    names = [reward.__name__ for reward in rewards]
    if len(set(names)) < len(names):
        raise ValueError(f"rewards names one twice: {', '.join(names)}")
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
            if value is not None and not _is_finite(value):
                raise ValueError(f"reward {name!r} is {value!r} for completion {number}, no finite number")
        return values

    call.__name__ = name.rpartition(".")[2]
    return call


def _is_finite(value) -> bool:
    try:
        return math.isfinite(value)
    except TypeError:
        return False


def _weight(text: str, entry: str) -> float:
    with contextlib.suppress(ValueError):
        if math.isfinite(weight := float(text or 1)):
            return weight
    raise ValueError(f"rewards: {text!r} in {entry!r} is not a weight")


def _hit(facts: Facts, item: str, target: str) -> float:
    return TASKS["next_item"].score(facts.catalogue, {"targets": [target]}, item)


def _of_target(score: Callable[[str, str], float]) -> Reward:
    """`score(item, target)` of every completion whose row has a target."""
    return lambda item, target, **kwargs: [None if t is None else score(i, t) for i, t in zip(item, target)]


def _groups(rank: Sequence[int]) -> tuple[int, int]:
    """The shape (groups, completions of each)."""
    size = max(rank) + 1
    return len(rank) // size, size

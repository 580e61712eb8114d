"""What a group is made of: items after a prompt, or thoughts with the items that are found after each.

A thinking prompt's group is of sampled thoughts, and the constrained beams after a thought say what it is worth
(OneRec-Think's rollout beam, arXiv 2510.11639): the reward goes to the thought, whose tokens are learned.
"""

import zlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from llmrec.catalogue.semids import SemIDIndex
from llmrec.decoding import SemIDTrie
from llmrec.decoding.thoughts import write_thoughts
from llmrec.recommenders import LLMRecommender
from llmrec.rl.policy import PolicyArguments
from llmrec.rl.rollout import RolloutEngine, completions, engine_roll_out, roll_out, semids_of, with_positives


class Member(NamedTuple):
    """One completion of a group.

    Attributes:
        prompt, completion (lists of `int`): token ids.
        weight (`float`): its importance weight, the weights of a group sum to 1.
        mass (`float`): the probability that the policy gives to the whole group; of thoughts, to the items found
            after this one.
        mask (list of `int`): 1 for each token of the completion that the policy chose; `None` for all.
    """

    prompt: list[int]
    completion: list[int]
    weight: float
    mass: float
    mask: list[int] | None = None


def searched_index(recommender: LLMRecommender) -> SemIDIndex:
    """The Semantic IDs of the view that is searched (of several the first)."""
    within = next(iter(recommender.views.values()))
    return recommender.index if within is None else recommender.index.rows_at(np.flatnonzero(within))


class RollOut:
    """Makes groups of `size` completions; `recommender` says how the model is asked, `temperature` is that of sampled
    items and thoughts. An `engine` searches in the place of the model."""

    def __init__(self, recommender: LLMRecommender, policy: PolicyArguments, size: int, temperature: float):
        self.recommender, self.policy, self.size, self.temperature = recommender, policy, size, temperature
        self.engine: RolloutEngine | None = None
        self.index = searched_index(recommender)
        self.trie = SemIDTrie.from_index(self.index, recommender.tokenizer)
        self.row = {item: row for row, item in reversed(list(enumerate(self.index.item_ids)))}
        self.thinks = recommender.block is not None
        self._tokens: dict[str, list[list[int]]] = {}

    @property
    def max_length(self) -> int:
        if not self.thinks:
            return self.trie.depth
        return self.recommender.thought_length

    def tokens(self, item: str) -> list[list[int]]:
        """The completions that an item is, one for each of its Semantic IDs."""
        if item not in self._tokens:
            self._tokens[item] = completions(semids_of(self.trie, self.index.rows(item))[1], self.trie)
        return self._tokens[item]

    @staticmethod
    def seed(*parts: int) -> int:
        return zlib.crc32(np.array(parts, np.int64).tobytes())

    def __call__(self, model, rows: Sequence[dict], seed: tuple[int, ...]) -> list[dict]:
        """A group for each row, `size` entries side by side; draws follow from `seed` and the row's number alone.

        Returns:
            dicts with `member`, `item` (an id; of a thought the best one found after it), `rank` (its place in the
            group) and, of an item, `semid` (the tokens that said it) or, of a thought, `beams` (item ids, best
            first), `thought` (its text), `closed` (whether the model closed it) and `thought_share` (its length, as a
            share of the longest).
        """
        prompts = self.recommender.token_ids([row["prompt"] for row in rows])
        seeds = [self.seed(*seed, row["row"]) for row in rows]
        return self._thoughts(model, prompts, seeds) if self.thinks else self._items(model, prompts, rows, seeds)

    def _items(self, model, prompts: list[list[int]], rows: Sequence[dict], seeds: list[int]) -> list[dict]:
        policy = self.policy
        if self.engine is not None:
            rollouts = engine_roll_out(self.engine, prompts, self.trie, self.size, policy.log_probs)
        else:
            asked = self.trie, self.size, policy, seeds, self.temperature, policy.log_probs
            rollouts = roll_out(model, prompts, *asked)
        if policy.log_positives:
            chosen = [[row["target"], *row["following"]][: policy.log_positives] for row in rows]
            places = [[self.row[item] for item in items if item is not None] for items in chosen]
            rollouts = with_positives(rollouts, self.trie, places)
        ids = completions(rollouts.tokens.flatten(0, 1), self.trie)
        said = self.trie.order[rollouts.leaves.flatten()].tolist()  # rows of the index
        weights, mass = rollouts.weights.flatten().tolist(), rollouts.mass.tolist()
        entries = []
        for n, (row, completion, weight) in enumerate(zip(said, ids, weights)):
            member = Member(prompts[n // self.size], completion, weight, mass[n // self.size])
            semid = tuple(self.index.tokens_of_row(row))
            item = self.index.item_ids[row]
            entries.append({"member": member, "item": item, "rank": n % self.size, "semid": semid})
        return entries

    def _thoughts(self, model, prompts: list[list[int]], seeds: list[int]) -> list[dict]:
        recommender, block = self.recommender, self.recommender.block
        tokenizer, limit = recommender.tokenizer, recommender.config.max_thought_tokens
        was_training, recommender.model = model.training, model.eval()
        end = -1 if recommender.behaviours else None  # a behaviour's token stands after the thought
        asked = [ids[:end] for ids in prompts]
        thoughts = write_thoughts(
            recommender.write, tokenizer, asked, block, self.size, limit, self.temperature, seeds
        )
        texts, ends = zip(*[thought for group in thoughts for thought in group])
        blocks = recommender.block_ids(texts)
        opening, closing = (len(ids) for ids in self._ids([block.opening, block.closing]))
        of_prompt = [n // self.size for n in range(len(texts))]
        tails = [prompts[n][end:] if end else [] for n in of_prompt]
        after = [[*asked[n], *ids, *tail] for n, ids, tail in zip(of_prompt, blocks, tails)]
        hit_lists = recommender.search(after, [self.policy.thought_beams] * len(blocks))
        model.train(was_training)
        group, lengths = [], map(len, self._ids(list(texts)))
        for n, (ids, length, closed, hits) in enumerate(zip(blocks, lengths, ends, hit_lists)):
            beams = [recommender.item_ids[hit.item] for hit in hits]
            # The template opens a thought, and closes one that the model did not close.
            mask = [0] * opening + [1] * (len(ids) - opening - closing) + [int(closed)] * closing
            mass = float(np.exp([hit.score for hit in hits]).sum())
            group.append(
                {
                    "member": Member(asked[of_prompt[n]], ids, 1 / self.size, mass, mask),
                    "item": beams[0],
                    "rank": n % self.size,
                    "beams": beams,
                    "thought": texts[n],
                    "closed": closed,
                    "thought_share": min(1.0, length / limit),
                }
            )
        return group

    def _ids(self, texts: list[str]) -> list[list[int]]:
        return self.recommender.tokenizer(texts, add_special_tokens=False)["input_ids"]

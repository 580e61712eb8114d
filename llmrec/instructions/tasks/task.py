"""The contract of a task, and what most tasks call right."""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from llmrec.catalogue.filters import Filter
from llmrec.data import PreparedData
from llmrec.instructions.catalogue import Catalogue
from llmrec.instructions.item_words import token_f1

Slots = Callable[[Catalogue, dict, str], dict[str, str]]
ABOUT = ("about",)
Score = Callable[[Catalogue, dict, str], float]


class Task(NamedTuple):
    """One kind of instruction.

    Args:
        rows: (data, max_history, rng) → the table of identities, each row once.
        slots: (catalogue, row, separator) → the strings that templates name.
        ends_with_item: whether answers end with a Semantic ID, after which EOS is forced and not learned.
        given: the columns beside the history that a prompt may depend on.
        asks: the slots that a prompt may show, and an answer too.
        answers: the slots that only an answer may show: what they say follows from the targets, or is what the task
            asks for.
        score: (catalogue, row, answer) → how right an answer is, a float in [0, 1]; 1 for the row's own. The answer is
            an item id where answers end with an item, else a text. Rewards and the alignment report ask it. `None`
            where no column of the items can tell: a persona, a preference, a list.
    """

    rows: Callable[[PreparedData, int, np.random.Generator], pa.Table]
    slots: Slots
    ends_with_item: bool
    asks: tuple[str, ...]
    answers: tuple[str, ...]
    given: tuple[str, ...] = ()
    score: Score | None = None

    @property
    def recommends(self) -> bool:
        """Whether a history is all that it takes, and an item the answer."""
        return self.ends_with_item and not self.given

    def narrowed(self, allowed: Filter | None, about: str | None) -> Filter | None:
        """`allowed` without the item that a wish compares with, which never satisfies it; other tasks' as it is."""
        if about is None or not {"about", "wish"} <= {*self.given}:
            return allowed
        allowed = allowed or Filter()
        return dataclasses.replace(allowed, deny=[*(allowed.deny or ()), about])


def same_item(catalogue: Catalogue, row: dict, answer: str) -> float:
    """1 for the row's target, or for an item that shares its Semantic ID; else 0 (MiniOneRec's rule)."""
    return float(catalogue.semid(answer) == catalogue.semid(row["targets"][0]))


def same_words(slots: Slots, name: str) -> Score:
    """The token F1 of an answer and of what stands in a slot."""
    return lambda catalogue, row, answer: token_f1(answer, slots(catalogue, row, "")[name])

"""The contract of a task."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from llmrec.data import PreparedData
from llmrec.instructions.catalogue import Catalogue


class Task(NamedTuple):
    """One kind of instruction.

    Args:
        rows (callable): (data, max_history, rng) → the table of identities, each row once.
        slots (callable): (catalogue, row, separator) → the strings that templates name.
        ends_with_item (`bool`): whether answers end with a Semantic ID, after which EOS is forced and not learned.
        given (`tuple` of `str`): the columns beside the history that a prompt may depend on.
    """

    rows: Callable[[PreparedData, int, np.random.Generator], pa.Table]
    slots: Callable[[Catalogue, dict, str], dict[str, str]]
    ends_with_item: bool
    given: tuple[str, ...] = ()

    @property
    def recommends(self) -> bool:
        """Whether a history is all that it takes, and an item the answer."""
        return self.ends_with_item and not self.given

"""Ranking distillation: another recommender's distribution over the catalogue as soft targets, through the trie.

A cross-entropy knows one right item; a network that ranks better knows how likely all others were ("Distilling the
Knowledge in a Neural Network", arXiv 1503.02531; "Ranking Distillation", arXiv 1809.07428). The probability of a node
is the sum over the items below it, so the teacher says at every level of a target's Semantic ID how likely each
continuation is.
"""

import logging
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import torch
from torch.nn import functional as F
from tqdm.auto import tqdm

from llmrec.arrays import blocks
from llmrec.catalogue.semids import SemIDIndex
from llmrec.data import PreparedData, lists_to_rows
from llmrec.data.rows import ids_to_rows, ragged_arange
from llmrec.decoding.trie import SemIDTrie
from llmrec.instructions.spans import target_spans
from llmrec.recommenders.bsarec import BSARec
from llmrec.recommenders.loading import check_trained_on, load_recommender
from llmrec.recommenders.sasrec import SASRec
from llmrec.training.sft_arguments import SFTArguments

logger = logging.getLogger(__name__)
_LEAST = 1e-9  # what a node must have of the teacher's probability for its share of the children to be told


class SoftTargets:
    """What a teacher gives to the continuations of the prefixes of every training target.

    Args:
        weight: of the cross-entropy with the teacher; the rest is of the target itself.
        trie: of the catalogue.
        places (int64 [n]): of the targets in the training sequences laid end to end, ascending.
        positions (int64 [n]): of their Semantic IDs among the sorted rows of the trie.
        probabilities: blocks of float32 [b, R], n rows in all: of the sorted rows of the trie after the history of
            each target.

    Attributes:
        shares (list of float16 [n, W]): by level, of the children of the node before, as `SemIDTrie.children` has
            them.
    """

    def __init__(
        self,
        weight: float,
        trie: SemIDTrie,
        places: np.ndarray,
        positions: np.ndarray,
        probabilities: Iterator[torch.Tensor],
    ):
        self.weight, self.places = weight, torch.from_numpy(places)
        sorted_rows = torch.from_numpy(positions)
        self.nodes = [trie.node_above(sorted_rows, level) for level in range(trie.depth + 1)]
        self.shares = [torch.empty(len(places), width, dtype=torch.half) for width in trie.max_branch]
        start = 0
        for block in probabilities:
            here = slice(start, start := start + len(block))
            below = F.pad(block.double().cumsum(1), (1, 0))
            for level, shares in enumerate(self.shares):
                children = trie.children(self.nodes[level][here], level)
                low, high = trie.rows(children.node, level + 1)
                mass = (below.gather(1, high) - below.gather(1, low)).masked_fill(~children.valid, 0).clamp(min=0)
                whole, wanted = mass.sum(1, keepdim=True), children.node == self.nodes[level + 1][here, None]
                told = torch.where(whole < _LEAST, (wanted & children.valid).double(), mass / whole.clamp(min=_LEAST))
                shares[here] = told.half()

    def find(self, first: torch.Tensor, number: torch.Tensor) -> torch.Tensor:
        """int64, the shape of `number`: which target the `number`-th item is of rows whose first target stands at
        `first` (int64, broadcast against it; negative for rows without); -1 for none."""
        places = first + number
        found = torch.searchsorted(self.places, places.contiguous()).clamp(max=len(self.places) - 1)
        return torch.where((self.places[found] == places) & (first >= 0) & (number >= 0), found, -1)

    def losses(
        self, steps: torch.Tensor, columns: torch.Tensor, child: torch.Tensor, targets: torch.Tensor, level: int
    ) -> torch.Tensor:
        """float32 [M]: the loss of labels, with the teacher's part where it knows the target (int64 [M], of `find`).

        `steps` (float32 [M, W]) are log-probabilities of the children, -inf in the padding; a label is one of these
        (`columns`, int64 [M]) and leads to the node `child` (int64 [M]).
        """
        known = (targets >= 0) & (self.nodes[level + 1][targets] == child)
        hard = -steps.gather(1, columns[:, None])[:, 0]
        soft = -torch.linalg.vecdot(
            self.shares[level][targets].to(steps), steps.clamp(min=torch.finfo(steps.dtype).min)
        )
        return torch.where(known, (1 - self.weight) * hard + self.weight * soft, hard)

    def to(self, device: torch.device) -> "SoftTargets":
        """Moves what the losses read, and returns it."""
        if self.places.device != device:
            self.places = self.places.to(device)
            self.nodes, self.shares = ([one.to(device) for one in many] for many in (self.nodes, self.shares))
        return self


def teacher_of(sft: SFTArguments, data: PreparedData, index: SemIDIndex) -> SASRec | BSARec | None:
    """The recommender of `soft_targets_from`, on the CPU; `None` without one.

    Raises `ValueError`: a folder that is no SASRec or BSARec, or was trained on other data or another catalogue;
    several Semantic IDs of an item.
    """
    if not sft.soft_targets_from:
        return None
    where = f"soft_targets_from: {sft.soft_targets_from}"
    teacher = load_recommender(sft.soft_targets_from, "cpu")
    if not isinstance(teacher, (SASRec, BSARec)):
        raise ValueError(f"{where} is no sasrec or bsarec; only those say how likely every item is")
    check_trained_on(sft.soft_targets_from, data)
    if teacher.item_ids != data.items["item_id"].to_pylist():
        raise ValueError(f"{where} was trained on another catalogue: train it again on this data")
    if len(set(index.item_ids)) < len(index.item_ids):
        raise ValueError("soft_targets_from needs one Semantic ID for every item")
    return teacher


def soft_targets(
    teacher: SASRec | BSARec, weight: float, data: PreparedData, index: SemIDIndex, trie: SemIDTrie, max_history: int
) -> SoftTargets:
    """Asks a teacher (of `teacher_of`) about every training target, after the last `max_history` items before it."""
    values, _ = lists_to_rows(data.train["item_ids"], data.items["item_id"])
    spans = target_spans(data, max_history)
    start, places = spans["start"].to_numpy(), spans["middle"].to_numpy()
    told = places > start
    start, places = start[told], places[told]
    trie, semid_items = trie.to("cpu"), pa.array(index.item_ids, pa.string())
    columns = ids_to_rows(semid_items, data.items["item_id"])[trie.host_order]
    semid_rows = ids_to_rows(data.items["item_id"], semid_items)[values[places]]
    logger.info("the teacher is asked about %d training targets", len(places))

    def probabilities() -> Iterator[torch.Tensor]:
        for block in tqdm(blocks(len(places), max(1, 2**21 // len(columns))), desc="Soft targets", leave=False):
            flat = values[ragged_arange(start[block], places[block])]
            offsets = np.concatenate([[0], np.cumsum(places[block] - start[block])])
            yield torch.from_numpy(teacher.score(flat, offsets)).exp()[:, columns]

    positions = trie.position[semid_rows].astype(np.int64)
    return SoftTargets(weight, trie, places, positions, probabilities())

"""What each answer token counts in the loss: by its place in the Semantic ID, and by what its item is worth.

The second is the value-aware fine-tuning (VAFT) of GPR (Generative Pre-trained One-Model Paradigm for Large-Scale
Advertising Recommendation): interactions that bring more weigh more.
"""

import math
from collections.abc import Mapping, Sequence

import pyarrow as pa
from transformers import PreTrainedTokenizerBase

from llmrec.catalogue.semids import SemIDIndex
from llmrec.models.vocabulary import behaviour_token_ids, semid_token_ids
from llmrec.training.sft_arguments import SFTArguments


class LossWeights:
    """Called with a row and the tokens of its answer, gives one weight per token: place × value.

    A run of tokens that is some item's Semantic ID counts as that item. Where the target interactions of a
    row have kinds, the n-th Semantic ID of the answer (and the token of its kind before it) has the n-th kind. All
    other answer tokens are text, worth the mean value of the row's targets.

    Args:
        semids: token ids of a SemID → the items that have it; empty where SemIDs are no fixed tokens.
        level_weights: of a SemID's tokens in their order; the last one goes on. Empty: 1.
        item_values (*optional*): item id → value, mean 1 over the catalogue; an item without one has 1.
        behaviour_values (*optional*): kind of interaction → value.
    """

    def __init__(
        self,
        semids: Mapping[tuple[int, ...], Sequence[str]],
        level_weights: Sequence[float] = (),
        text_weight: float = 1.0,
        item_values: Mapping[str, float] | None = None,
        behaviour_values: Mapping[str, float] | None = None,
        behaviour_tokens: Sequence[int] = (),
    ):
        self.semids = semids
        self.lengths = sorted({len(tokens) for tokens in semids}, reverse=True)
        self.level_weights = list(level_weights) or [1.0]
        self.text_weight = text_weight
        self.item_values = item_values or {}
        self.behaviour_values = behaviour_values
        self.behaviour_tokens = frozenset(behaviour_tokens)

    def __call__(self, row: dict, answer: Sequence[int]) -> list[float]:
        """Weights of an answer's token ids. The row has `targets` (item ids) and, where interactions have kinds,
        `target_behaviours`; a kind without a value raises `ValueError`."""
        targets, kinds = row.get("targets") or [], self._kinds(row)
        by_kind = [1.0] * len(targets) if kinds is None else kinds
        text = self.text_weight * _mean([self._value([t]) * k for t, k in zip(targets, by_kind)])
        weights, place, number = [0.0] * len(answer), 0, 0
        while place < len(answer):
            kind = 1.0 if kinds is None else kinds[min(number, len(kinds) - 1)] if kinds else 1.0
            starts = (tuple(answer[place : place + length]) for length in self.lengths)
            semid = next((tokens for tokens in starts if tokens in self.semids), None)
            if semid is not None:
                items = [item for item in self.semids[semid] if item in targets] or self.semids[semid]
                for level in range(len(semid)):
                    by_level = self.level_weights[min(level, len(self.level_weights) - 1)]
                    weights[place + level] = by_level * self._value(items) * kind
                place, number = place + len(semid), number + 1
            else:
                weights[place] = kind if answer[place] in self.behaviour_tokens else text
                place += 1
        return weights

    def _value(self, items: Sequence[str]) -> float:
        return _mean([self.item_values.get(item, 1.0) for item in items])

    def _kinds(self, row: dict) -> list[float] | None:
        if self.behaviour_values is None:
            return None
        kinds = row.get("target_behaviours") or []
        unknown = next((kind for kind in kinds if kind not in self.behaviour_values), None)
        if unknown is not None:
            raise ValueError(f"behaviour_values has no value for {unknown!r}; it has {sorted(self.behaviour_values)}")
        return [self.behaviour_values[kind] for kind in kinds]


def loss_weights(
    sft: SFTArguments, tokenizer: PreTrainedTokenizerBase, index: SemIDIndex, items: pa.Table
) -> LossWeights | None:
    """The weights that a stage's settings ask for; `None` where they ask for none. Raises `ValueError`: weights that
    are negative, no numbers or all zero; a column that the items do not have; kinds of interaction that the data does
    not have; weights of levels or of text for Semantic IDs that are no fixed new tokens, where the two cannot be told
    apart."""
    behaviours = sft.behaviour_values
    if not (sft.level_weights or sft.value_column or behaviours) and sft.text_weight == 1:
        return None
    for name, weights in (("level_weights", sft.level_weights), ("behaviour_values", [*(behaviours or {}).values()])):
        if any(not 0 <= weight < math.inf for weight in weights) or (weights and not any(weights)):
            raise ValueError(f"{name}: {list(weights)} should be numbers from 0 on, and not all 0")
    if not 0 <= sft.text_weight < math.inf:
        raise ValueError(f"text_weight: {sft.text_weight} should be a number from 0 on")
    if behaviours and not index.behaviours:
        raise ValueError("behaviour_values needs interactions with kinds that have tokens (behaviour_tokens: true)")
    if behaviours and set(behaviours) != set(index.behaviours):
        raise ValueError(f"behaviour_values names {sorted(behaviours)}, the data has {sorted(index.behaviours)}")
    fixed = index.adds_tokens and not index.contextual
    if not fixed and (sft.level_weights or sft.text_weight != 1):
        raise ValueError(
            "level_weights and text_weight need Semantic IDs of fixed new tokens; these cannot be told from text: "
            "leave both out"
        )
    semids: dict[tuple[int, ...], list[str]] = {}
    if fixed:
        levels = semid_token_ids(tokenizer, index)
        for item, codes in zip(index.item_ids, index.codes.tolist()):
            tokens = tuple(int(levels[level][code]) for level, code in enumerate(codes) if code >= 0)
            semids.setdefault(tokens, []).append(item)
    values = log_values(items, sft.value_column) if sft.value_column else None
    kinds = behaviour_token_ids(tokenizer, index)
    return LossWeights(semids, sft.level_weights, sft.text_weight, values, behaviours, kinds)


def log_values(items: pa.Table, column: str) -> dict[str, float]:
    """log(1 + value) of a column of the items, divided by its mean; items without a value are left out. Raises
    `ValueError`: no such column, or it holds something other than numbers from 0 on."""
    if column not in items.column_names:
        raise ValueError(f"value_column: the items have no column {column!r}; they have {items.column_names}")
    values = {}
    for item, value in zip(items["item_id"].to_pylist(), items[column].to_pylist()):
        if value is None or (isinstance(value, float) and math.isnan(value)):
            continue
        if not isinstance(value, (int, float)) or not 0 <= value < math.inf:
            raise ValueError(f"value_column {column!r}: item {item!r} has {value!r}, not a number from 0 on")
        values[item] = math.log1p(value)
    mean = _mean(list(values.values())) if values else 0.0
    if not mean:
        raise ValueError(f"value_column {column!r} holds no value above 0")
    return {item: value / mean for item, value in values.items()}


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 1.0

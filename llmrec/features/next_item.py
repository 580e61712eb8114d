"""Networks that score the whole catalogue after a history of its rows: their rows, loss and validation.

Notable: the loss is cross-entropy over the whole catalogue, computed where there is a target; rows are padded on the
right, so position 0 is the oldest item; every training target is labelled exactly once an epoch.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import ClassVar, Protocol

import numpy as np
import torch
from torch import nn

from llmrec.arguments import at_least, one_of
from llmrec.data import PreparedData, lists_to_rows
from llmrec.data.known import check_behaviours, history_known, known_items, training_known
from llmrec.data.rows import ragged_arange
from llmrec.data.times import UNKNOWN
from llmrec.devices import best_device
from llmrec.features.network_training import NetworkConfig, Validation, train_network


@dataclass(frozen=True)
class NextItemConfig(NetworkConfig):
    """What the training of every `NextItemNetwork` has. One whose config is `timed` is told when items were taken, and
    one that names `behaviours` as what."""

    timed: ClassVar[bool] = False
    behaviours: ClassVar[list[str]] = []
    max_length: int = field(default=50, metadata={"help": "Items of a history that the network sees, the newest."})
    hidden_size: int = field(default=64, metadata={"help": "Width of embeddings and blocks."})
    rows: str = field(
        default="dense",
        metadata={"help": "dense: every item of a sequence is a target; prefix: each is, in a row of its own."},
    )

    def __post_init__(self):
        super().__post_init__()
        at_least(self, max_length=1, hidden_size=1)
        one_of(self.rows, ("dense", "prefix"), "rows")


class NextItemNetwork(Protocol):
    """An `nn.Module` that knows histories as rows of the catalogue."""

    def __call__(
        self, ids_BT: torch.Tensor, lengths_B: torch.Tensor, known_BTK: torch.Tensor, last: bool = False
    ) -> torch.Tensor:
        """int64 [B, T], padded on the right with any item, how many items of each are none of that (int64 [B]), and
        what is known of them (int64 [B, T, 3], as of `llmrec.data.known`), to float [B, T, hidden], or to the states
        after the `last` item of every row, float [B, hidden]."""
        ...

    def head(self, hidden: torch.Tensor) -> torch.Tensor:
        """float [..., hidden] to logits [..., items]."""
        ...

    def loss(self, states: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """The mean loss of targets (int64 [n]) after states (float [n, hidden])."""
        ...


def train_next_item(
    make: Callable[[], nn.Module],
    optimizer_of: Callable[[nn.Module], torch.optim.Optimizer],
    data: PreparedData,
    config: NextItemConfig,
    name: str,
    device: str | torch.device | None = None,
    folder: str | Path | None = None,
) -> nn.Module:
    """Makes a `NextItemNetwork` and trains it on `data.train`; `folder` as of `train_network`. Raises `ValueError` on
    no training target, no validation row, an item that is not in the catalogue, or other behaviours than the config's.
    """
    check_behaviours(config.behaviours, data, name)
    device = best_device(device)
    values, offsets = lists_to_rows(data.train["item_ids"], data.items["item_id"])
    known = training_known(data.train, config.timed, config.behaviours)
    windows = next_item_windows(offsets, data.train["num_context"].to_numpy(), config.max_length, config.rows)
    read = partial(history_known, data=data, timed=config.timed, behaviours=config.behaviours)
    valid = Validation.of(data, config, name, read)
    torch.manual_seed(config.seed)
    model = make().to(device)

    def score(values: np.ndarray, offsets: np.ndarray, beside: np.ndarray) -> torch.Tensor:
        return next_item_logits(model, values, offsets, beside, config.max_length)

    def validate() -> float:
        return valid.ndcg(score)

    def batches(generator: np.random.Generator) -> Iterator:
        return next_item_batches(values, known, windows, config.batch_size, generator)

    loss = partial(next_item_loss, model, last=config.rows == "prefix")
    train_network(model, optimizer_of(model), batches, loss, validate, config, name, folder)
    return model


def next_item_loss(model: NextItemNetwork, batch: tuple[np.ndarray, ...], last: bool) -> tuple[torch.Tensor, int]:
    """The mean loss of a batch of `next_item_batches`, and of how many targets. `last`: every row has one label, after
    its last item, so the last layer is computed there alone."""
    device = next(model.parameters()).device
    ids, labels, lengths, known = (torch.from_numpy(part).to(device) for part in batch)
    kept = labels >= 0
    states, wanted = model(ids, lengths, known, last=last), labels[kept]
    return model.loss(states if last else states[kept], wanted), len(wanted)


def next_item_windows(offsets: np.ndarray, context: np.ndarray, max_length: int, rows: str = "dense") -> np.ndarray:
    """int64 [n, 3]: the first place, the end and the first label's place of every training row, in the flat values of
    sequences (`offsets`, int64 [m + 1]) whose first `context` items (int32 [m]) are no targets.

    The last item of a row is a label only. Dense: long sequences overlap by half, no target comes twice. Prefix: a row
    ends with its one target. Raises `ValueError` where there is no target.
    """
    labelled = np.minimum(offsets[:-1] + np.maximum(1, context), offsets[1:])
    if rows == "prefix":
        targets = ragged_arange(labelled, offsets[1:])
        starts = np.repeat(offsets[:-1], offsets[1:] - labelled)
        windows = [np.stack([np.maximum(starts, targets - max_length), targets + 1, targets], 1)]
    else:
        windows = []
        for start, end, label in zip(offsets[:-1].tolist(), offsets[1:].tolist(), labelled.tolist()):
            stop = min(label + max_length, end) if label - start > max_length else start + max_length + 1
            while label < end:
                stop = min(stop, end)
                windows.append([[max(start, stop - 1 - max_length), stop, label]])
                label, stop = stop, stop + max(1, max_length // 2)
    if not sum(map(len, windows)):
        raise ValueError("train.parquet has no target: every sequence is shorter than two items or context only")
    return np.concatenate(windows, dtype=np.int64)


def next_item_batches(
    values: np.ndarray, known: np.ndarray, windows: np.ndarray, batch_size: int, generator: np.random.Generator
) -> Iterator[tuple[np.ndarray, ...]]:
    """Yields `(ids, labels, lengths, known)` in random order: int64 [B, T], lengths [B], known [B, T, 3]; -1 is no
    label. Windows of similar length share a batch."""
    order = generator.permutation(len(windows))
    lengths = windows[:, 1] - windows[:, 0] - 1
    pool = batch_size * 32
    chunks = np.split(order, range(pool, len(order), pool))
    order = np.concatenate([chunk[np.argsort(lengths[chunk], kind="stable")] for chunk in chunks])
    batches = np.split(order, range(batch_size, len(order), batch_size))
    for index in generator.permutation(len(batches)):
        batch = batches[index]
        first, _, label = windows[batch].T[:, :, None]
        steps = np.arange(lengths[batch].max())
        filled = steps < lengths[batch, None]
        places = np.where(filled, first + steps, 0)
        labels = np.where(filled & (places + 1 >= label), values[places + filled], -1)
        ids = np.where(filled, values[places], 0)
        yield ids.astype(np.int64), labels.astype(np.int64), lengths[batch], known[places]


@torch.no_grad()
def next_item_logits(
    model: nn.Module, values: np.ndarray, offsets: np.ndarray, known: np.ndarray | None, max_length: int
) -> torch.Tensor:
    """float [b, items] after the last item of every history (an empty one gives meaningless logits)."""
    return model.head(last_state(model, values, offsets, known, max_length))


@torch.no_grad()
def last_state(
    model: nn.Module, values: np.ndarray, offsets: np.ndarray, known: np.ndarray | None, max_length: int
) -> torch.Tensor:
    """float [b, hidden] at the last item of every history (an empty one gives a meaningless state)."""
    known = known_items(offsets) if known is None else known
    starts = np.maximum(offsets[:-1], offsets[1:] - max_length)
    lengths = offsets[1:] - starts
    steps = np.arange(max(1, lengths.max(initial=1)))
    filled = steps < lengths[:, None]
    ids, beside = np.zeros(filled.shape, np.int64), np.full((*filled.shape, known.shape[1]), UNKNOWN, np.int64)
    places = (starts[:, None] + steps)[filled]
    ids[filled], beside[filled] = values[places], known[places]
    device = next(model.parameters()).device
    ids, read, beside = (torch.from_numpy(part).to(device) for part in (ids, np.maximum(lengths, 1), beside))
    return model(ids, read, beside, last=True)

"""What a user was about at every interaction: the vectors by which `Pctx` chooses among an item's SemIDs.

Both kinds are learned from training sequences alone, and map sequences of item rows (see `llmrec.data.rows`) to
float32 `[interactions, dim]`, at unit length or zero. A vector depends on its own sequence up to its interaction, and
on no other sequence: a network reads them one by one, since a batch may change last bits.
"""

from typing import Self

import numpy as np
import pyarrow as pa
import torch

from llmrec.arrays import l2_normalize
from llmrec.features.cooccurrence import cooccurrence_embeddings
from llmrec.features.parts.collaborative import train_sasrec_on
from llmrec.features.sasrec_network import SASRecConfig, SASRecModel


class SASRecContexts:
    """The hidden states of a SASRec, which have seen the interaction's item and those before it."""

    def __init__(self, network: SASRecModel):
        self.network = network.cpu().eval()

    @classmethod
    def fit(cls, item_ids: list[str], known: np.ndarray, train: pa.Table, dim: int, epochs: int, seed: int) -> Self:
        """`known`: the rows of the items of the training sequences; the others count as nothing in a sequence."""
        config = SASRecConfig(hidden_size=dim, max_epochs=epochs, patience=3, seed=seed)
        trained = train_sasrec_on([item_ids[row] for row in known], train, config).cpu().state_dict()
        items = torch.zeros(len(item_ids), dim)
        items[known] = trained["items.weight"]
        return cls.of({name: value.numpy() for name, value in (trained | {"items.weight": items}).items()})

    @classmethod
    def of(cls, arrays: dict[str, np.ndarray]) -> Self:
        items, dim = arrays["items.weight"].shape
        network = SASRecModel(items, SASRecConfig(hidden_size=dim, max_length=len(arrays["positions.weight"])))
        network.load_state_dict({name: torch.from_numpy(array) for name, array in arrays.items()})
        return cls(network)

    @property
    def arrays(self) -> dict[str, np.ndarray]:
        return {f"contexts.{name}": value.numpy() for name, value in self.network.state_dict().items()}

    @torch.no_grad()
    def __call__(self, values: np.ndarray, offsets: np.ndarray) -> np.ndarray:
        length = self.network.positions.num_embeddings
        stride = length // 2
        states = [torch.zeros(0, self.network.items.embedding_dim)]
        for first, stop in zip(offsets[:-1], offsets[1:]):
            rows, read = torch.from_numpy(values[first:stop].astype(np.int64)), 0
            while read < len(rows):  # windows of a long sequence overlap by half
                start = max(0, read - length + stride)
                states.append(self.network(rows[None, start : start + length])[0, read - start :])
                read += len(states[-1])
        return l2_normalize(torch.cat(states).numpy()).astype(np.float32)


class CooccurrenceContexts:
    """A decayed sum of the co-occurrence embeddings of the items before: no network, and blind to the item itself."""

    def __init__(self, embeddings: np.ndarray, decay: float):
        self.embeddings, self.decay = embeddings, decay

    @classmethod
    def fit(cls, item_ids: list[str], known: np.ndarray, train: pa.Table, dim: int, decay: float, seed: int) -> Self:
        embeddings = np.zeros((len(item_ids), dim), np.float32)
        embeddings[known] = cooccurrence_embeddings([item_ids[row] for row in known], train, dim, seed=seed)
        return cls(embeddings, decay)

    @property
    def arrays(self) -> dict[str, np.ndarray]:
        return {"embeddings": self.embeddings}

    def __call__(self, values: np.ndarray, offsets: np.ndarray) -> np.ndarray:
        """The k-th last item before an interaction weighs `decay ** (k - 1)`; zero where nothing stands before it."""
        contexts = np.zeros((len(values), self.embeddings.shape[1]), np.float32)
        lengths = np.diff(offsets)
        state = np.zeros((len(lengths), self.embeddings.shape[1]), np.float32)
        for step in range(lengths.max(initial=0)):
            rows = np.flatnonzero(lengths > step)
            at = offsets[rows] + step
            contexts[at] = state[rows]
            state[rows] = self.decay * state[rows] + self.embeddings[values[at]]
        return l2_normalize(contexts).astype(np.float32)

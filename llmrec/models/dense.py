"""`DenseHead`: a small head on a trained model's states, and embeddings of the items that they are compared with.

dense/config.json          temperature, weight in a fused list, fingerprint of the items, figures of the fit
dense/model.safetensors    the head, `vectors` (float32 [I, D]) in the order of the catalogue, `cold` (bool [I])
dense/features/            what makes the features of new items (`ItemFeatures`)

The embedding of an item is `features @ project`, plus a vector of its own where it learned one, of unit length.
A newcomer has no such vector: its embedding follows from its columns. `llmrec.training.dense` fits all of it.
"""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Self

import numpy as np
import pyarrow as pa
import torch
import torch.nn.functional as F
from torch import nn

from llmrec.arrays import l2_normalize
from llmrec.features import ItemFeatures
from llmrec.files import atomic_path, fingerprint, load_state, part_of, save_state, well_formed
from llmrec.models.folder import DENSE


class StateHead(nn.Module):
    """float [..., hidden] of a language model to float32 [..., dim] of unit length."""

    def __init__(self, hidden_size: int, dim: int, dropout: float = 0.0):
        super().__init__()
        self.norm, self.dropout = nn.LayerNorm(hidden_size), nn.Dropout(dropout)
        self.out = nn.Linear(hidden_size, dim)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return F.normalize(self.out(self.dropout(self.norm(states.float()))), dim=-1)


class DenseHead:
    """Scores every item after a state; see the module docstring, and `llmrec.decoding.dense` for how lists are made.

    Args:
        head: follows the device of the states.
        project (float32 [F, D]): features to embeddings.
        item_ids: of the rows of `vectors` (float32 [I, D], of unit length) and `cold` (bool [I]).
        settings: `temperature`, `weight` and whatever else is worth keeping.
    """

    def __init__(
        self,
        head: StateHead,
        project: np.ndarray,
        item_ids: Sequence[str],
        vectors: np.ndarray,
        cold: np.ndarray,
        settings: dict,
        features: ItemFeatures | None = None,
    ):
        self.head, self.project, self.item_ids = head.eval().requires_grad_(False), project, list(item_ids)
        self.vectors, self.cold, self.settings = vectors, cold, settings
        self.folder: Path | None = None
        self.cache_dir: str | Path | None = None
        self._on: tuple[torch.Tensor, StateHead] | None = None
        if features is not None:
            self.features = features

    @cached_property
    def features(self) -> ItemFeatures:
        """Read when newcomers need it: whoever only recommends needs no text encoder."""
        return ItemFeatures.from_pretrained(self.folder / "features", self.cache_dir)

    @property
    def weight(self) -> float:
        return self.settings["weight"]

    @torch.no_grad()
    def log_probs(self, states: torch.Tensor) -> torch.Tensor:
        """float32 [N, I]: log-softmax over all items of cosine / temperature, of states (float [N, H])."""
        if self._on is None or self._on[0].device != states.device:
            self._on = torch.from_numpy(self.vectors).to(states.device), self.head.to(states.device)
        vectors, head = self._on
        if states.shape[-1] != head.norm.normalized_shape[0]:
            raise ValueError(f"the dense head reads states of {head.norm.normalized_shape[0]}, not {states.shape[-1]}")
        return (head(states) @ vectors.T / self.settings["temperature"]).log_softmax(-1)

    def for_items(self, items: pa.Table) -> "DenseHead":
        """The same head for another version of its catalogue: items that it knows keep their embeddings, the others
        (cold) get one from their columns.

        Args:
            items: one row per item, in the order of the catalogue.
        """
        place = {item: number for number, item in enumerate(self.item_ids)}
        item_ids = items["item_id"].to_pylist()
        rows = np.array([place.get(item, -1) for item in item_ids], np.int64)
        vectors, cold = self.vectors[rows], self.cold[rows]
        if (new := np.flatnonzero(rows < 0)).size:
            vectors[new], cold[new] = self.embed(items.take(pa.array(new))), True
        head = DenseHead(self.head, self.project, item_ids, vectors, cold, self.settings)
        head.folder, head.cache_dir = self.folder, self.cache_dir
        if "features" in vars(self):
            head.features = self.features
        return head

    def embed(self, items: pa.Table) -> np.ndarray:
        """float32 [n, D]: embeddings of items that training did not hold."""
        return l2_normalize(self.features.encode(items) @ self.project).astype(np.float32)

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes what `from_pretrained` reads, whole or not at all."""
        arrays = {f"head.{name}": value.cpu().numpy() for name, value in self.head.state_dict().items()}
        arrays |= {"project": self.project, "vectors": self.vectors, "cold": self.cold}
        with atomic_path(folder) as temporary:
            save_state(temporary, {**self.settings, "items": _fingerprint(self.item_ids)}, arrays)
            self.features.save_pretrained(temporary / "features")

    @classmethod
    def from_pretrained(cls, folder: str | Path, item_ids: Sequence[str], cache_dir: str | Path | None = None) -> Self:
        """Reads a head; `ValueError` where it is damaged, or was made for other items than `item_ids`."""
        settings, arrays = load_state(folder)
        if settings.pop("items") != _fingerprint(item_ids) or len(arrays["vectors"]) != len(item_ids):
            raise ValueError(f"{folder} was made for other items than its model has: run recipes/fit_dense.py again")
        weights = {name: torch.from_numpy(value) for name, value in part_of(arrays, "head.").items()}
        head = StateHead(weights["norm.weight"].shape[0], weights["out.weight"].shape[0])
        head.load_state_dict(weights)
        dense = cls(head, arrays["project"], item_ids, arrays["vectors"], arrays["cold"], settings)
        dense.folder, dense.cache_dir = Path(folder), cache_dir
        return dense


def load_dense(folder: str | Path, item_ids: Sequence[str], cache_dir: str | Path | None = None) -> DenseHead | None:
    """The dense head of a model folder with these items, `None` where it has none."""
    there = Path(folder) / DENSE
    with well_formed(there):
        return DenseHead.from_pretrained(there, item_ids, cache_dir) if there.is_dir() else None


def _fingerprint(item_ids: Sequence[str]) -> str:
    return fingerprint("\n".join(item_ids))

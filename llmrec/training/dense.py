"""Fits a dense head on a trained model whose weights stay as they are: states of training prompts, then a small loss.

The state of the model at the end of a prompt is projected to where the items lie, and a softmax over the cosines with
all items of the training sequences, divided by a temperature, is trained on the target. The embedding of an item is a
learned projection of its features; LIGER (arXiv:2411.18814) takes those of its text as they are. With `item_dropout`
below 1 every item of training has a vector of its own besides, which is hidden from this share of the items at every
step (DropoutNet, Volkovs et al. 2017), so that the features, which are all that newcomers have, learn to do without.

Cold items take no part: they are no negatives either, and features are fitted on the items of training.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
import torch.nn.functional as F
from torch import nn

from llmrec.arguments import at_least
from llmrec.arrays import blocks
from llmrec.data import PreparedData, ids_to_rows
from llmrec.data.rows import training_rows
from llmrec.decoding.dense import prompt_states
from llmrec.decoding.search import prompt_batches
from llmrec.devices import best_device
from llmrec.features import ItemFeatures
from llmrec.features.network_training import LoopConfig, adamw, ndcg_gains, train_network, validation_rows
from llmrec.features.parts.part import rows_in_training
from llmrec.models.dense import DenseHead, StateHead
from llmrec.recommenders import LLMRecommender
from llmrec.recommenders.protocol import requests_of


@dataclass(frozen=True)
class DenseConfig(LoopConfig):
    """Shape and training of a dense head."""

    dense_features: list[dict] = field(
        default_factory=lambda: [{"kind": "text"}],
        metadata={"help": "YAML: features of the items as in recipes/tokenize_items.py; newcomers must have them."},
    )
    dim: int = field(default=128, metadata={"help": "Width of the embeddings."})
    temperature: float = field(default=0.07, metadata={"help": "What cosines are divided by."})
    weight: float = field(
        default=0.9,
        metadata={"help": "Of dense probabilities in a fused list; 1: they alone rank it, as LIGER's."},
    )
    item_dropout: float = field(
        default=1.0,
        metadata={"help": "Share of items whose own vector is hidden in a step; 1: none has one."},
    )
    dropout: float = field(default=0.2, metadata={"help": "Of the states."})
    max_prompts: int = field(default=20_000, metadata={"help": "Training targets whose prompts are read, drawn."})
    validation_rows: int | None = field(default=2_000, metadata={"help": "Validate on so many random rows, not all."})
    learning_rate: float = field(default=2e-3, metadata={"help": "Of AdamW, constant."})
    weight_decay: float = field(default=0.01, metadata={"help": "Of AdamW."})
    batch_size: int = field(default=256, metadata={"help": "Prompts per step."})
    max_epochs: int = field(default=100, metadata={"help": "Early stopping usually ends training before."})
    patience: int = field(default=5, metadata={"help": "Epochs without a better validation ndcg@10."})

    def __post_init__(self):
        super().__post_init__()
        at_least(self, dim=1, max_prompts=1, item_dropout=0.0, dropout=0.0, weight=0.0, temperature=1e-3)
        for name in ("weight", "item_dropout", "dropout"):
            if getattr(self, name) > 1:
                raise ValueError(f"{name} is {getattr(self, name)}, it should be at most 1")


def dense_rows(data: PreparedData, config: DenseConfig) -> dict[str, pa.Table]:
    """The rows whose prompts are read: `train`, a draw of the training targets, and `valid`."""
    train, valid = training_rows(data.train), validation_rows(data, config, "a dense head")
    if not train.num_rows:
        raise ValueError("train.parquet has no target, and a dense head needs some")
    drawn = np.random.default_rng(config.seed).permutation(len(train))[: config.max_prompts]
    return {"train": train.take(pa.array(np.sort(drawn))), "valid": valid}


def states_of(recommender: LLMRecommender, rows: pa.Table) -> np.ndarray:
    """float32 [n, H]: the model's states after the prompts of rows (`TARGETS`)."""
    histories, wishes = requests_of(recommender, rows)
    prompts = recommender.token_ids(recommender.prompts(histories, **wishes))
    states: dict[int, np.ndarray] = {}
    for numbers, ids, mask in prompt_batches(prompts, recommender.batch_size, recommender.device):
        states |= zip(numbers, prompt_states(recommender.model, ids, mask).cpu().numpy())
    return np.stack([states[number] for number in range(len(prompts))])


def fit_dense(
    data: PreparedData,
    rows: dict[str, pa.Table],
    states: dict[str, np.ndarray],
    config: DenseConfig = DenseConfig(),
    cache_dir: str | None = None,
    device: str | torch.device | None = None,
    folder: str | Path | None = None,
) -> tuple[DenseHead, list[dict]]:
    """A head for `dense_rows` and their states (`states_of`), and its curve; `folder` as of `train_network`. It is
    fitted on a device, by default the GPU where there is one.

    Raises `ValueError` for features that do not fit, `FloatingPointError` for a loss that is not finite.
    """
    began = time.perf_counter()
    features = ItemFeatures(config.dense_features, cache_dir).fit(data.items, data.train, config.seed)
    matrix = features.encode(data.items)
    seen = rows_in_training(data.items, data.train)
    place = np.full(data.items.num_rows, -1)
    place[seen] = np.arange(len(seen))
    targets = {name: ids_to_rows(table["target"], data.items["item_id"]) for name, table in rows.items()}
    valid = place[targets["valid"]]  # cold ones are never found
    torch.manual_seed(config.seed)
    net = _Towers(states["train"].shape[1], torch.from_numpy(matrix[seen]), config).to(device := best_device(device))
    inputs, labels = torch.from_numpy(states["train"]), torch.from_numpy(place[targets["train"]])

    def batches(generator: np.random.Generator) -> Iterator[torch.Tensor]:
        return iter(torch.from_numpy(generator.permutation(len(inputs))).split(config.batch_size))

    def loss(batch: torch.Tensor) -> tuple[torch.Tensor, int]:
        return F.cross_entropy(net(inputs[batch].to(device)), labels[batch].to(device)), len(batch)

    optimizer = adamw(config, betas=(0.9, 0.999))(net)
    validate = partial(_ndcg, net, states["valid"], valid)
    curve = train_network(net, optimizer, batches, loss, validate, config, "dense head", folder)
    net.cpu().eval()
    cold = place < 0
    own = torch.zeros(len(matrix), config.dim)
    own[torch.from_numpy(seen)] = net.own.detach()
    with torch.no_grad():
        vectors = F.normalize(torch.from_numpy(matrix) @ net.project + own, dim=-1).numpy()
    settings = {
        "temperature": config.temperature,
        "weight": config.weight,
        "prompts": len(inputs),
        "ndcg@10": max(epoch["ndcg@10"] for epoch in curve),
        "seconds": round(time.perf_counter() - began, 1),
    }
    project, item_ids = net.project.detach().numpy(), data.items["item_id"].to_pylist()
    return DenseHead(net.head, project, item_ids, vectors, cold, settings, features), curve


class _Towers(nn.Module):
    """States (float [B, H]) to logits of the items of training [B, I]."""

    def __init__(self, hidden_size: int, features: torch.Tensor, config: DenseConfig):
        super().__init__()
        self.head = StateHead(hidden_size, config.dim, config.dropout)
        self.project = nn.Parameter(torch.empty(features.shape[1], config.dim))
        nn.init.orthogonal_(self.project)  # what is alike stays alike
        self.own = nn.Parameter(torch.zeros(len(features), config.dim))
        self.temperature, self.hidden = config.temperature, config.item_dropout
        self.register_buffer("features", features, persistent=False)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        own = self.own
        if self.training:
            own = own * (torch.rand(len(own), 1, device=own.device) >= self.hidden)
        items = F.normalize(self.features @ self.project + own, dim=-1)
        return self.head(states) @ items.T / self.temperature


@torch.no_grad()
def _ndcg(net: _Towers, states: np.ndarray, targets: np.ndarray) -> float:
    """Mean ndcg@10 among the items of training; a target of -1 is never found."""
    gains = []
    for block in blocks(len(states), 512):
        target = torch.from_numpy(targets[block])
        logits = net(torch.from_numpy(states[block]).to(net.own.device))
        gains.append(torch.where(target >= 0, ndcg_gains(logits, target.clamp(min=0)), 0.0))
    return torch.cat(gains).mean().item()

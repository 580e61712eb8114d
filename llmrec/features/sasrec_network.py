"""SASRec (Kang & McAuley 2018, arXiv:1808.09781) trained with cross-entropy over the whole catalogue: the network.

Its item embeddings are features of items; `llmrec.recommenders.sasrec` recommends with it. Notable: the loss is the
full softmax (Klenitskiy & Vasilev 2023, arXiv:2309.07602: with it SASRec beats BERT4Rec), not the paper's one sampled
negative; blocks are pre-norm; inputs are padded on the right, so position 0 is the oldest item; every training target
is labelled exactly once; early stopping reads validation ndcg@10 only.
"""

import logging
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from tqdm import tqdm

from llmrec.arguments import at_least
from llmrec.arrays import blocks, check_loss
from llmrec.data import PreparedData, excludes_seen, ids_to_rows, lists_to_rows
from llmrec.devices import best_device

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SASRecConfig:
    """Shape and training of a SASRec."""

    max_length: int = field(default=50, metadata={"help": "Items of a history that the network sees, the newest."})
    hidden_size: int = field(default=64, metadata={"help": "Width of embeddings and blocks."})
    num_layers: int = field(default=1, metadata={"help": "Transformer blocks."})
    num_heads: int = field(default=2, metadata={"help": "Attention heads; hidden_size is a multiple of it."})
    dropout: float = field(default=0.4, metadata={"help": "Of embeddings, attention and blocks."})
    learning_rate: float = field(default=2e-3, metadata={"help": "Of AdamW, constant."})
    weight_decay: float = field(default=0.01, metadata={"help": "Of AdamW, on all parameters."})
    batch_size: int = field(default=64, metadata={"help": "Training sequences per step."})
    max_epochs: int = field(default=200, metadata={"help": "Early stopping usually ends training before."})
    patience: int = field(default=6, metadata={"help": "Epochs without a better validation ndcg@10."})
    seed: int = field(default=0, metadata={"help": "Of weights, dropout and the order of batches."})
    exclude_seen: str = field(
        default="auto",
        metadata={"help": "Validate without items of the history: auto (docs/evaluation.md), true, false."},
    )

    def __post_init__(self):
        counts = ("max_length", "hidden_size", "num_layers", "num_heads", "batch_size", "max_epochs", "patience")
        at_least(self, **dict.fromkeys(counts, 1), dropout=0.0, learning_rate=0.0, weight_decay=0.0)
        if self.dropout >= 1:
            raise ValueError(f"dropout: {self.dropout} leaves nothing: it should be below 1")


class SASRecModel(nn.Module):
    """Causal transformer over items; `forward` gives one hidden state per position, `head` scores the catalogue."""

    def __init__(self, num_items: int, config: SASRecConfig):
        super().__init__()
        if config.hidden_size % config.num_heads:
            raise ValueError(f"hidden_size {config.hidden_size} is not a multiple of num_heads {config.num_heads}")
        self.items = nn.Embedding(num_items, config.hidden_size)
        self.positions = nn.Embedding(config.max_length, config.hidden_size)
        for table in (self.items, self.positions):
            nn.init.normal_(table.weight, std=config.hidden_size**-0.5)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList([_Block(config) for _ in range(config.num_layers)])
        self.norm = nn.LayerNorm(config.hidden_size)

    def forward(self, ids_BT: torch.Tensor) -> torch.Tensor:
        """int64 [B, T], padded on the right with any item, to float [B, T, hidden]."""
        positions = self.positions.weight[: ids_BT.shape[1]]
        x_BTH = self.dropout(self.items(ids_BT) + positions)
        for block in self.blocks:
            x_BTH = block(x_BTH)
        return self.norm(x_BTH)

    def head(self, hidden: torch.Tensor) -> torch.Tensor:
        """float [..., hidden] to logits [..., items]; the head is the item embedding (tied)."""
        return hidden @ self.items.weight.T


class _Block(nn.Module):
    def __init__(self, config: SASRecConfig):
        super().__init__()
        size = config.hidden_size
        self.num_heads, self.rate = config.num_heads, config.dropout
        self.norm1, self.norm2 = nn.LayerNorm(size), nn.LayerNorm(size)
        self.qkv, self.out = nn.Linear(size, 3 * size), nn.Linear(size, size)
        self.mlp = nn.Sequential(
            nn.Linear(size, 4 * size), nn.GELU(), nn.Dropout(config.dropout), nn.Linear(4 * size, size)
        )
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x_BTH: torch.Tensor) -> torch.Tensor:
        # Padding stands on the right, so the causal mask hides it from every real position.
        q, k, v = self.qkv(self.norm1(x_BTH)).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        rate = self.rate if self.training else 0.0
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True, dropout_p=rate).transpose(1, 2).flatten(2)
        x_BTH = x_BTH + self.dropout(self.out(mixed))
        return x_BTH + self.dropout(self.mlp(self.norm2(x_BTH)))


def train_sasrec(
    data: PreparedData, config: SASRecConfig = SASRecConfig(), device: str | torch.device | None = None
) -> SASRecModel:
    """Trains on `data.train`, stops on validation ndcg@10, gives the network with the best weights.
    Raises `ValueError` on no training target, no validation row, or an item that is not in the catalogue.
    """
    device = best_device(device)
    windows = _windows(data, config.max_length)
    valid, valid_offsets = lists_to_rows(data.valid["history"], data.items["item_id"])
    targets = ids_to_rows(data.valid["target"], data.items["item_id"])
    if not len(targets):
        raise ValueError("valid.parquet has no row: SASRec needs validation rows to stop early")
    excluded = excludes_seen(config.exclude_seen, data)
    generator = np.random.default_rng(config.seed)
    torch.manual_seed(config.seed)
    model = SASRecModel(data.items.num_rows, config).to(device)
    rates = {"lr": config.learning_rate, "weight_decay": config.weight_decay, "betas": (0.9, 0.98)}
    optimizer = torch.optim.AdamW(model.parameters(), **rates, fused=True)
    best, best_epoch, best_weights = -1.0, 0, None
    progress = tqdm(range(1, config.max_epochs + 1), desc="SASRec", unit="epoch")
    for epoch in progress:
        model.train()
        total = count = 0.0
        for batch in _batches(windows, config.batch_size, generator):
            ids, labels = (torch.from_numpy(part).to(device) for part in batch)
            kept = labels >= 0
            loss = F.cross_entropy(model.head(model(ids)[kept]), labels[kept])
            check_loss(value := loss.item(), "SASRec")
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            labelled = int(kept.sum())
            total += value * labelled
            count += labelled
        ndcg = _validate(model, valid, valid_offsets, targets, config.max_length, excluded)
        progress.set_postfix(loss=f"{total / count:.3f}", valid_ndcg10=f"{ndcg:.4f}", best=f"{best:.4f}")
        if ndcg > best:
            best, best_epoch = ndcg, epoch
            best_weights = {name: value.clone() for name, value in model.state_dict().items()}
        elif epoch - best_epoch >= config.patience:
            break
    progress.close()
    logger.info("SASRec: best validation ndcg@10 %.4f at epoch %d", best, best_epoch)
    model.load_state_dict(best_weights)
    return model


def _windows(data: PreparedData, max_length: int) -> list[tuple[np.ndarray, int]]:
    """`(inputs and last target, index of the first label)`; long sequences overlap by half, no target comes twice."""
    values, offsets = lists_to_rows(data.train["item_ids"], data.items["item_id"])
    windows = []
    for start, end, context in zip(offsets[:-1], offsets[1:], data.train["num_context"].to_numpy()):
        sequence = values[start:end]
        labelled = max(1, int(context))
        stop = min(labelled + max_length, len(sequence)) if labelled > max_length else max_length + 1
        while labelled < len(sequence):
            stop = min(stop, len(sequence))
            first = max(0, stop - 1 - max_length)
            windows.append((sequence[first:stop], labelled - first))
            labelled, stop = stop, stop + max(1, max_length // 2)
    if not windows:
        raise ValueError("train.parquet has no target: every sequence is shorter than two items or context only")
    return windows


def _batches(windows, batch_size: int, generator: np.random.Generator):
    """Yields `(ids, labels)` int64 [B, T] in random order; windows of similar length share a batch."""
    order = generator.permutation(len(windows))
    lengths = np.asarray([len(items) for items, _ in windows])
    pool = batch_size * 32
    chunks = np.split(order, range(pool, len(order), pool))
    order = np.concatenate([chunk[np.argsort(lengths[chunk], kind="stable")] for chunk in chunks])
    batches = np.split(order, range(batch_size, len(order), batch_size))
    for index in generator.permutation(len(batches)):
        batch = [windows[i] for i in batches[index]]
        width = max(len(items) for items, _ in batch) - 1
        ids = np.zeros((len(batch), width), np.int64)
        labels = np.full((len(batch), width), -1, np.int64)
        for row, (items, labelled) in enumerate(batch):
            ids[row, : len(items) - 1] = items[:-1]
            labels[row, labelled - 1 : len(items) - 1] = items[labelled:]
        yield ids, labels


@torch.no_grad()
def sasrec_logits(model: SASRecModel, values: np.ndarray, offsets: np.ndarray, max_length: int) -> torch.Tensor:
    """float [b, items] after the last item of every history (an empty one gives meaningless logits)."""
    starts = np.maximum(offsets[:-1], offsets[1:] - max_length)
    lengths = offsets[1:] - starts
    steps = np.arange(max(1, lengths.max(initial=1)))
    filled = steps < lengths[:, None]
    ids = np.zeros(filled.shape, np.int64)
    ids[filled] = values[(starts[:, None] + steps)[filled]]
    device = model.items.weight.device
    hidden = model(torch.from_numpy(ids).to(device))
    last = torch.from_numpy(np.maximum(lengths - 1, 0)).to(device)
    return model.head(hidden[torch.arange(len(last), device=device), last])


def _validate(model, values, offsets, targets, max_length: int, exclude_seen: bool) -> float:
    """Mean ndcg@10 of the targets in the whole catalogue, or in it without the history; ties in the catalogue's
    order."""
    model.eval()
    gains = []
    for batch in blocks(len(targets), 512):
        bounds = offsets[batch.start : batch.stop + 1]
        seen = values[bounds[0] : bounds[-1]]
        logits = sasrec_logits(model, seen, bounds - bounds[0], max_length)
        if exclude_seen:
            row = np.repeat(np.arange(len(logits)), np.diff(bounds))
            logits[torch.from_numpy(row), torch.from_numpy(seen.astype(np.int64))] = -torch.inf
        target = torch.from_numpy(targets[batch].astype(np.int64)).to(logits.device)[:, None]
        wanted = logits.gather(1, target)
        before = torch.arange(logits.shape[1], device=logits.device) < target
        rank = ((logits > wanted) | ((logits == wanted) & before)).sum(1)
        found = (rank < 10) & wanted[:, 0].isfinite()
        gains.append(torch.where(found, 1 / torch.log2(rank + 2.0), 0.0).cpu())
    return torch.cat(gains).mean().item()

"""ETEGRec: an RQ-VAE that is fine-tuned in turn with a recommender (SIGIR 2025, 2409.05546). Experimental.

After RQ-VAE training come cycles: some epochs of the recommender with the tokenizer frozen, then one epoch of the
tokenizer with the recommender frozen. Two losses tie them. SIA: the state of a sequence, mapped to an item, should get
the codes of the target item. PSA: it should be near the target item's reconstruction. The result is an RQ-VAE like any
other.

Differs from the paper: the recommender is a GRU over the items' quantised vectors that predicts a next item code by
code (there, T5 over code tokens); it is thrown away at the end; and it learns first in every cycle, as a tokenizer
aligned to a random recommender would learn noise. One state serves both losses, where T5 has an encoder's and a
decoder's. The RQ-VAE gets its usual input, not SASRec embeddings, unless the features are made so.

Fine-tuning moves items to other codes: do it before an LLM learns them, never after. `history` says how many moved.
"""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch
from torch import nn
from torch.nn import functional as F
from tqdm.auto import tqdm

from llmrec.arrays import check_loss
from llmrec.data.rows import lists_to_rows
from llmrec.devices import best_device
from llmrec.item_tokenizers.protocol import Traits
from llmrec.item_tokenizers.residual.rq_vae import RQVAE, WITH_TRAIN, RQVAEModule
from llmrec.item_tokenizers.residual.rq_vae_losses import in_batch, mse


@dataclass(eq=False)
class ETEGRec(RQVAE):
    """RQ-VAE, aligned with a recommender.

    Args: those of `RQVAE`, for the training before the cycles (`temperature` is also PSA's), and
        cycles, cycle_epochs: how many cycles, of how many epochs; the last one of each is the tokenizer's.
        max_length: items of a history, the latest. width: of the GRU.

    Attributes:
        history (list of `dict`): the epochs of RQ-VAE, then per cycle `recommendation`, `sia`, `psa`,
            `reconstruction`, `quantisation`, and `changed`: the share of items whose codes differ from RQ-VAE's.

    `fit` raises `ValueError` where the training sequences hold no two items in a row.
    """

    name = "etegrec"
    traits = Traits(needs=WITH_TRAIN)

    cycles: int = 4
    cycle_epochs: int = 2
    max_length: int = 20
    sequence_batch_size: int = 256
    width: int = 64
    tokenizer_learning_rate: float = 1e-4
    recommender_learning_rate: float = 1e-3
    sia_weight: float = 1e-3
    psa_weight: float = 1e-3

    def learn(self, features: np.ndarray, items: pa.Table, train: pa.Table, seed: int) -> None:
        super().learn(features, items, train, seed)
        windows = training_windows(train, items["item_id"].to_pylist(), self.max_length, self.name)
        rows = self.preprocessing(features)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.history += self.fine_tune(self._module, rows, windows, seed)
        self.adopt(self._module)

    def fine_tune(self, module: RQVAEModule, rows: np.ndarray, windows: torch.Tensor, seed: int) -> list[dict]:
        """Trains `module` in place on float32 `[N, D]` and the windows of `training_windows`; returns `history`."""
        device = best_device(self.device)
        generator = torch.Generator().manual_seed(seed)
        x, windows = torch.from_numpy(rows).to(device), windows.to(device)
        recommender = Recommender(
            module.codebooks[0].shape[1], x.shape[1], [len(b) for b in module.codebooks], self.width
        )
        module.to(device), recommender.to(device)
        optimizers = {
            "tokenizer": torch.optim.AdamW(module.parameters(), self.tokenizer_learning_rate),
            "recommender": torch.optim.AdamW(recommender.parameters(), self.recommender_learning_rate),
        }
        before, history = None, []
        for _ in tqdm(range(self.cycles), desc="ETEGRec"):
            entry: dict[str, float] = {}
            for turn in ["recommender"] * (self.cycle_epochs - 1) + ["tokenizer"]:
                module.requires_grad_(turn == "tokenizer")
                recommender.requires_grad_(turn == "recommender")
                codes, vectors = quantised_items(module, x, self.beta)
                before = codes if before is None else before
                sums: dict[str, float] = {}
                for batch in torch.randperm(len(windows), generator=generator).split(self.sequence_batch_size):
                    window = windows[batch.to(device)]
                    history_rows, next_rows = window[:, :-1].clamp(min=0), window[:, 1:]
                    states, _ = recommender.gru(vectors.sum(1)[history_rows])
                    # One target per sequence for the alignment, at a random place; all of them for the recommender.
                    lengths = (next_rows >= 0).sum(1)
                    place = (torch.rand(len(window), generator=generator).to(device) * lengths).long()
                    place = torch.minimum(place, lengths - 1)  # rounding
                    one = torch.arange(len(window), device=device)
                    targets = next_rows[one, place]
                    same = (targets[:, None] == targets).fill_diagonal_(False)
                    step = module(x[targets], self.beta)
                    sia, psa = alignment(module, recommender, states[one, place], step, same, self.temperature)
                    values = {"sia": sia, "psa": psa}
                    loss = self.sia_weight * sia + self.psa_weight * psa
                    if turn == "tokenizer":
                        values |= {"reconstruction": mse(step), "quantisation": step.quantisation}
                        loss = loss + values["reconstruction"] + values["quantisation"]
                    else:
                        there = next_rows >= 0
                        following = next_rows[there]
                        values["recommendation"] = recommender(states[there], codes[following], vectors[following])
                        loss = loss + values["recommendation"]
                    optimizers[turn].zero_grad(set_to_none=True)
                    loss.backward()
                    optimizers[turn].step()
                    for name, value in zip(values, torch.stack(list(values.values())).tolist()):
                        check_loss(value, f"ETEGRec, {name}")
                        sums[name] = sums.get(name, 0.0) + len(window) * value
                entry |= {name: total / len(windows) for name, total in sums.items()}
            changed = (quantised_items(module, x, self.beta)[0] != before).any(1)
            history.append({**entry, "changed": changed.float().mean().item()})
        module.requires_grad_(True).to("cpu")
        return history


class Recommender(nn.Module):
    """Next items from the quantised vectors (d = `latent_dim`) of a history, and items `[D]` from its states."""

    def __init__(self, latent_dim: int, dim: int, codebook_sizes, width: int):
        super().__init__()
        self.gru = nn.GRU(latent_dim, width, batch_first=True)
        self.prefix = nn.Linear(latent_dim, width, bias=False)
        self.heads = nn.ModuleList(nn.Linear(width, size) for size in codebook_sizes)
        self.to_item = nn.Linear(width, dim)
        self.to_reconstruction = nn.Linear(width, dim)

    def forward(self, states: torch.Tensor, codes: torch.Tensor, vectors: torch.Tensor) -> torch.Tensor:
        """Cross-entropy of next codes int64 `[M, L]`, each given its prefix, whose `vectors` are `[M, L, d]`."""
        before = vectors.cumsum(1) - vectors
        levels = [head(states + self.prefix(before[:, level])) for level, head in enumerate(self.heads)]
        return sum(F.cross_entropy(logits, codes[:, level]) for level, logits in enumerate(levels)) / len(levels)


def alignment(
    module, recommender: Recommender, states: torch.Tensor, step, same: torch.Tensor, temperature: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """SIA and PSA of B sequence states `[B, width]` and their targets' `Step`; `same` (bool `[B, B]`): two targets are
    one item."""
    guess = code_log_probabilities(module.codebooks, module.encoder(recommender.to_item(states)))
    target = code_log_probabilities(module.codebooks, module.encoder(step.x))
    sia = sum(((p.exp() - q.exp()) * (p - q)).sum(1).mean() for p, q in zip(guess, target))
    near = F.normalize(recommender.to_reconstruction(states), dim=1) @ F.normalize(step.decoded, dim=1).T
    logits = (near / temperature).masked_fill(same, -torch.inf)
    return sia, (in_batch(logits) + in_batch(logits.T)) / 2


def code_log_probabilities(codebooks, z: torch.Tensor) -> list[torch.Tensor]:
    """Per level float `[B, K_l]`: log softmax of minus the squared distances of the residuals of `z [B, d]`."""
    residual, levels = z, []
    for codebook in codebooks:
        distances = (residual**2).sum(1, keepdim=True) + (codebook**2).sum(1) - 2 * residual @ codebook.T
        levels.append(F.log_softmax(-distances, dim=1))
        residual = residual - codebook[distances.argmin(1)].detach()
    return levels


def training_windows(train, item_ids: list[str], length: int, name: str) -> torch.Tensor:
    """int64 `[S, length + 1]`: the last items of every training sequence of two or more, -1 behind them; `ValueError`
    where there is none, or an item that is not in `item_ids`."""
    rows, offsets = lists_to_rows(train["item_ids"], item_ids)
    lengths = np.minimum(np.diff(offsets), length + 1)
    place = np.arange(length + 1)
    index = (offsets[1:] - lengths)[:, None] + place
    windows = np.where(place < lengths[:, None], rows[np.minimum(index, max(len(rows) - 1, 0))], -1)[lengths > 1]
    if not len(windows):
        raise ValueError(f"item tokenizer {name!r} needs training sequences of two or more items: train has none")
    return torch.from_numpy(windows.astype(np.int64))


@torch.no_grad()
def quantised_items(module, x: torch.Tensor, beta: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes int64 `[N, L]` and their vectors float `[N, L, d]`."""
    steps = [module(block, beta) for block in x.split(16_384)]
    return torch.cat([step.codes for step in steps]), torch.cat([torch.stack(step.vectors, 1) for step in steps])

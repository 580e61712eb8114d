"""What RQ-VAE learns from beside its quantisation loss: reconstruction losses, and the two regularisers of LETTER.

Every loss is called with a `Step` and returns a scalar. Written from the papers; notable differences: LETTER's targets
are drawn in one tensor operation, a group of a single code has no target (their loop never ends there), and items
without neighbours in the training sequences take no part in the collaborative loss.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from llmrec.arrays import sinkhorn


class Step(NamedTuple):
    """What the network made of a batch of B rows.

    Attributes:
        decoded (float `[B, D]`): the reconstruction of `x`.
        quantisation (scalar): codebook + beta x commitment loss, summed over levels.
        codes (int64 `[B, L]`).
        residuals (list of L float `[B, d]`): what each level quantised, detached.
        vectors (list of L float `[B, d]`): the chosen codes, with the codebooks' gradient.
        quantised (float `[B, d]`): their sum; its gradient goes straight to the encoder.
        x (float `[B, D]`), rows (int64 `[B]`): the batch and where it stands in the features. epoch (`int`).
    """

    decoded: torch.Tensor
    quantisation: torch.Tensor
    codes: torch.Tensor
    residuals: list[torch.Tensor]
    vectors: list[torch.Tensor]
    quantised: torch.Tensor
    x: torch.Tensor
    rows: torch.Tensor | None = None
    epoch: int = 0


Loss = Callable[[Step], torch.Tensor]


def mse(step: Step) -> torch.Tensor:
    return F.mse_loss(step.decoded, step.x)


def cosine(step: Step) -> torch.Tensor:
    return 1 - F.cosine_similarity(step.decoded, step.x).mean()


def infonce(step: Step, temperature: float) -> torch.Tensor:
    """CoST (RecSys 2024, 2404.14774): a reconstruction is to be nearer to its own item than to others in the batch."""
    return in_batch(F.normalize(step.decoded, dim=1) @ F.normalize(step.x, dim=1).T / temperature)


def in_batch(logits: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of `logits [B, B]` whose right answers are on the diagonal."""
    return F.cross_entropy(logits, torch.arange(len(logits), device=logits.device))


class Collaborative(nn.Module):
    """LETTER's L_CF: cross-entropy of `quantised . e^T` inside the batch, e the items' collaborative `embeddings`
    (float32 `[N, d]`, as wide as the latent), zero where nothing is known."""

    def __init__(self, embeddings: np.ndarray):
        super().__init__()
        self.register_buffer("embeddings", torch.from_numpy(embeddings))

    def forward(self, step: Step) -> torch.Tensor:
        targets = self.embeddings[step.rows]
        known = targets.any(1)
        if not known.any():
            return step.quantised.new_zeros(())
        return in_batch(step.quantised[known] @ targets[known].T)


class Diversity:
    """LETTER's L_div: the codes of a level are clustered once per epoch into groups of about equal size; a chosen code
    is drawn to a random other code of its group rather than to the rest of the codebook. `codebooks` are live; there
    are at most half as many groups as codes, so that most codes have company."""

    def __init__(self, codebooks: list[torch.Tensor], seed: int, groups: int = 10):
        self.codebooks, self.count = codebooks, groups
        self.generator = torch.Generator().manual_seed(seed)
        self.epoch, self.groups = -1, []

    def __call__(self, step: Step) -> torch.Tensor:
        if step.epoch != self.epoch:
            self.epoch = step.epoch
            self.groups = [grouped(book.detach().cpu().numpy(), self.count) for book in self.codebooks]
        total = step.quantised.new_zeros(())
        for level, codebook in enumerate(self.codebooks):
            codes = step.codes[:, level]
            targets = self._targets(codes.cpu(), *self.groups[level]).to(codes.device)
            logits = (step.vectors[level] @ codebook.T).scatter(1, codes[:, None], -torch.inf)
            with_target = targets >= 0
            if with_target.any():
                total = total + F.cross_entropy(logits[with_target], targets[with_target])
        return total

    def _targets(self, codes, order, place, start, size) -> torch.Tensor:
        """int64 `[B]`: a random other code of every code's group; -1 where it is alone."""
        others = size[codes] - 1
        draw = torch.rand(len(codes), generator=self.generator, dtype=torch.float64)
        offset = 1 + (draw * others).long()
        target = order[start[codes] + (place[codes] + offset) % size[codes]]
        return torch.where(others > 0, target, -1)


def grouped(codebook: np.ndarray, groups: int, iterations: int = 5) -> tuple[torch.Tensor, ...]:
    """Balanced k-means of codes `[K, d]` by optimal transport.

    Returns:
        four int64 `[K]`: the codes, group after group; and for every code its place in its group, where that begins
        in the first one, and how many codes it holds.
    """
    groups = max(1, min(groups, len(codebook) // 2))
    centres = codebook[np.linspace(0, len(codebook) - 1, groups).astype(int)]
    for _ in range(iterations):
        squared = ((codebook[:, None] - centres) ** 2).sum(2)
        group = sinkhorn(squared).argmax(1)
        occupied = np.unique(group)
        centres[occupied] = [codebook[group == g].mean(0) for g in occupied]
    order = np.argsort(group, kind="stable")
    sizes = np.bincount(group, minlength=groups)
    starts = np.cumsum(sizes) - sizes
    place = np.empty(len(order), np.int64)
    place[order] = np.arange(len(order)) - starts[group[order]]
    return tuple(torch.from_numpy(array.astype(np.int64)) for array in (order, place, starts[group], sizes[group]))


def losses_of(settings: dict, module: nn.Module, collaborative: np.ndarray | None, seed: int) -> dict:
    """Losses by name, each with its weight; only those that count. `settings` are those of `RQVAE`."""
    kind = settings["reconstruction"]
    reconstruction = {"mse": mse, "cosine": cosine, "infonce": partial(infonce, temperature=settings["temperature"])}
    losses: dict[str, tuple[float, Loss]] = {"reconstruction": (1.0, reconstruction[kind])}
    if collaborative is not None:
        losses["collaborative"] = (settings["collaborative_weight"], Collaborative(collaborative))
    if settings["diversity_weight"] > 0:
        losses["diversity"] = (settings["diversity_weight"], Diversity(list(module.codebooks), seed))
    return losses

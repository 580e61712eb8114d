"""The network and training loop of RQ-VAE (torch side of `rq_vae.py`).

Differs from most public code in one line that matters: between levels the *detached* code is subtracted. With the
straight-through estimate inside every level the residual's gradient is zero, and the commitment terms of all levels
but the first never reach the encoder.
"""

import logging

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from tqdm.auto import tqdm

from llmrec.arrays import kmeans
from llmrec.item_tokenizers.residual.rq_vae_losses import Loss, Step

logger = logging.getLogger(__name__)


def mlp(sizes: list[int]) -> nn.Sequential:
    """Linear layers with ReLU between them."""
    layers: list[nn.Module] = []
    for i, (inner, outer) in enumerate(zip(sizes, sizes[1:])):
        layers += [nn.Linear(inner, outer)] + ([nn.ReLU()] if i < len(sizes) - 2 else [])
    return nn.Sequential(*layers)


def batches_of(count: int, batch_size: int, generator: torch.Generator) -> tuple[torch.Tensor, ...]:
    """An epoch: row numbers in a random order, int64, in the least number of batches of at most `batch_size`. Their
    sizes differ by one at most, so the last one is as good a sample as any."""
    return torch.randperm(count, generator=generator).tensor_split(-(-count // batch_size))


class Residual(nn.Module):
    """x + MLP(x), the last layer zero: the identity, until it is trained."""

    def __init__(self, sizes: list[int]):
        super().__init__()
        self.mlp = mlp(sizes)
        nn.init.zeros_(self.mlp[-1].weight)
        nn.init.zeros_(self.mlp[-1].bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.mlp(x)


class RQVAEModule(nn.Module):
    """MLP encoder and decoder around residual quantisation.

    Args:
        dim (`int`): D of the input. hidden (list of `int`), latent_dim (`int`, *optional*): layers of the encoder; the
            decoder is its mirror image. Without `latent_dim` both are `Residual` and the latent is as wide as the
            input. codebook_sizes (sequence of `int`).
    """

    def __init__(self, dim: int, hidden: list[int], latent_dim: int | None, codebook_sizes):
        super().__init__()
        kind, width = (mlp, latent_dim) if latent_dim is not None else (Residual, dim)
        self.encoder = kind([dim, *hidden, width])
        self.decoder = kind([width, *reversed(hidden), dim])
        self.codebooks = nn.ParameterList(nn.Parameter(torch.zeros(size, width)) for size in codebook_sizes)

    def forward(self, x: torch.Tensor, beta: float) -> Step:
        """Quantises and decodes rows `[B, D]`; `beta` weighs the commitment loss."""
        z = self.encoder(x)
        residual, quantised, loss = z, torch.zeros_like(z), z.new_zeros(())
        codes, residuals, vectors = [], [], []
        for codebook in self.codebooks:
            residuals.append(residual.detach())
            with torch.no_grad():
                # The nearest code; ||r||^2 is the same for all of them.
                code = torch.addmm((codebook**2).sum(1), residual, codebook.T, alpha=-2).argmin(1)
            vector = codebook[code]
            loss = loss + F.mse_loss(vector, residual.detach()) + beta * F.mse_loss(residual, vector.detach())
            residual = residual - vector.detach()
            quantised = quantised + vector.detach()
            codes.append(code)
            vectors.append(vector)
        quantised = z + (quantised - z).detach()
        return Step(self.decoder(quantised), loss, torch.stack(codes, 1), residuals, vectors, quantised, x)


@torch.no_grad()
def fit_codebooks(module: RQVAEModule, x: torch.Tensor, seed: int) -> None:
    """Sets the codebooks by k-means, level by level, on the residuals of the encoder's output for `x [N, D]`."""
    import faiss

    residual = module.encoder(x).float().cpu().numpy()
    for level, codebook in enumerate(module.codebooks):
        centroids = kmeans(residual, len(codebook), seed + level, niter=20)
        codebook.copy_(torch.from_numpy(centroids))
        residual = residual - centroids[faiss.knn(residual, centroids, 1)[1][:, 0]]


def train(
    module: RQVAEModule,
    features: np.ndarray,
    losses: dict[str, tuple[float, Loss]],
    *,
    epochs: int,
    batch_size: int,
    optimizer: str,
    learning_rate: float,
    weight_decay: float,
    beta: float,
    reset_every: int,
    refit: bool,
    device: str,
    seed: int,
) -> list[dict]:
    """Trains in place on float32 `[N, D]`; the matrix stays on the device, batches are slices of a permutation.

    Args:
        losses (`dict`): by name, weight and loss; added to the quantisation loss.

    Returns:
        one dict per epoch: the mean of every loss and `quantisation`, `usage` (share of codes in use, per level),
        `resets`.
    """
    generator = torch.Generator().manual_seed(seed)
    x = torch.from_numpy(features).to(device)
    module.to(device)
    extra = nn.ModuleList(loss for _, loss in losses.values() if isinstance(loss, nn.Module)).to(device)
    parameters = [*module.parameters(), *extra.parameters()]
    if optimizer == "adagrad":
        optimizer = torch.optim.Adagrad(parameters, learning_rate, weight_decay=weight_decay)
        schedule = None  # Adagrad's steps shrink by themselves
    else:
        optimizer = torch.optim.AdamW(parameters, learning_rate, weight_decay=weight_decay)
        steps = max(1, epochs * -(-len(x) // batch_size))
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    history: list[dict] = []
    with tqdm(range(epochs), desc="RQ-VAE") as progress:
        for epoch in progress:
            counts = [torch.zeros(len(book), dtype=torch.long, device=device) for book in module.codebooks]
            sums = np.zeros(1 + len(losses))
            for rows in batches_of(len(x), batch_size, generator):
                rows = rows.to(device)
                step = module(x[rows], beta)._replace(rows=rows, epoch=epoch)
                values = [step.quantisation, *(loss(step) for _, loss in losses.values())]
                weights = [1.0, *(weight for weight, _ in losses.values())]
                optimizer.zero_grad(set_to_none=True)
                sum(weight * value for weight, value in zip(weights, values)).backward()
                optimizer.step()
                if schedule is not None:
                    schedule.step()
                sums += len(rows) * np.array([value.item() for value in values])
                for level, count in enumerate(counts):
                    count += torch.bincount(step.codes[:, level], minlength=len(count))
            resets = 0
            if reset_every and (epoch + 1) % reset_every == 0 and epoch < 0.8 * epochs:
                resets = _reset_dead(module, optimizer, counts, step.residuals, generator)
            means = dict(zip(["quantisation", *losses], (sums / len(x)).tolist()))
            usage = [round(float((count > 0).float().mean()), 4) for count in counts]
            history.append({**means, "usage": usage, "resets": resets})
            progress.set_postfix(loss=f"{sum(means.values()):.4f}", usage=usage, refresh=False)
    if refit:
        # Codebooks that follow by gradient lag behind the encoder: k-means on the final latents uses them better.
        fit_codebooks(module, x, seed)
    module.to("cpu")
    return history


@torch.no_grad()
def _reset_dead(module, optimizer, counts, residuals, generator) -> int:
    """Codes that nobody chose in an epoch move to random residuals of the last batch, without old momentum."""
    resets = 0
    for codebook, count, residual in zip(module.codebooks, counts, residuals):
        dead = torch.nonzero(count == 0).flatten()
        if len(dead):
            chosen = torch.randint(len(residual), (len(dead),), generator=generator).to(residual.device)
            codebook[dead] = residual[chosen]
            for statistic in optimizer.state[codebook].values():
                if statistic.shape == codebook.shape:
                    statistic[dead] = 0
            resets += len(dead)
    return resets

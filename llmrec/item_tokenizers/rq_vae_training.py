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

logger = logging.getLogger(__name__)


def mlp(sizes: list[int]) -> nn.Sequential:
    """Linear layers with ReLU between them."""
    layers: list[nn.Module] = []
    for i, (inner, outer) in enumerate(zip(sizes, sizes[1:])):
        layers += [nn.Linear(inner, outer)] + ([nn.ReLU()] if i < len(sizes) - 2 else [])
    return nn.Sequential(*layers)


class RQVAEModule(nn.Module):
    """MLP encoder and decoder around residual quantisation.

    Args:
        dim (`int`): D of the input. hidden (list of `int`), latent_dim (`int`): layers of the encoder; the decoder is
            its mirror image. codebook_sizes (sequence of `int`).
    """

    def __init__(self, dim: int, hidden: list[int], latent_dim: int, codebook_sizes):
        super().__init__()
        self.encoder = mlp([dim, *hidden, latent_dim])
        self.decoder = mlp([latent_dim, *reversed(hidden), dim])
        self.codebooks = nn.ParameterList(nn.Parameter(torch.zeros(size, latent_dim)) for size in codebook_sizes)

    def forward(self, x: torch.Tensor, beta: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, list]:
        """Losses of rows `[B, D]`.

        Returns:
            reconstruction loss, quantisation loss (codebook + beta x commitment, summed over levels), codes int64
            `[B, L]`, and the residuals that each level quantised, detached `[B, d]`.
        """
        z = self.encoder(x)
        residual, quantised, loss, codes, residuals = z, torch.zeros_like(z), z.new_zeros(()), [], []
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
        reconstruction = F.mse_loss(self.decoder(z + (quantised - z).detach()), x)
        return reconstruction, loss, torch.stack(codes, 1), residuals


@torch.no_grad()
def fit_codebooks(module: RQVAEModule, x: torch.Tensor, seed: int) -> None:
    """Sets the codebooks by k-means, level by level, on the residuals of the encoder's output for `x [N, D]`."""
    import faiss

    residual = module.encoder(x).float().cpu().numpy()
    for level, codebook in enumerate(module.codebooks):
        kmeans = faiss.Kmeans(residual.shape[1], len(codebook), niter=20, seed=seed + level, min_points_per_centroid=1)
        kmeans.train(residual)
        codebook.copy_(torch.from_numpy(kmeans.centroids))
        residual = residual - kmeans.centroids[kmeans.assign(residual)[1]]


def train(
    module: RQVAEModule,
    features: np.ndarray,
    *,
    epochs: int,
    batch_size: int,
    learning_rate: float,
    weight_decay: float,
    beta: float,
    reset_every: int,
    device: str,
    seed: int,
) -> list[dict]:
    """Trains in place on float32 `[N, D]`; the matrix stays on the device, batches are slices of a permutation.

    Returns:
        one dict per epoch: `reconstruction`, `quantisation`, `usage` (share of codes in use, per level), `resets`.
    """
    generator = torch.Generator().manual_seed(seed)
    x = torch.from_numpy(features).to(device)
    module.to(device)
    fit_codebooks(module, x, seed)
    optimizer = torch.optim.AdamW(module.parameters(), learning_rate, weight_decay=weight_decay)
    steps = epochs * -(-len(x) // batch_size)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    history: list[dict] = []
    with tqdm(range(epochs), desc="RQ-VAE") as progress:
        for epoch in progress:
            counts = [torch.zeros(len(book), dtype=torch.long, device=device) for book in module.codebooks]
            sums = np.zeros(2)
            for rows in torch.randperm(len(x), generator=generator).split(batch_size):
                reconstruction, quantisation, codes, residuals = module(x[rows.to(device)], beta)
                optimizer.zero_grad(set_to_none=True)
                (reconstruction + quantisation).backward()
                optimizer.step()
                schedule.step()
                sums += len(rows) * np.array([reconstruction.item(), quantisation.item()])
                for level, count in enumerate(counts):
                    count += torch.bincount(codes[:, level], minlength=len(count))
            resets = 0
            if (epoch + 1) % reset_every == 0 and epoch < 0.8 * epochs:
                resets = _reset_dead(module, optimizer, counts, residuals, generator)
            means = (sums / len(x)).tolist()
            usage = [round(float((count > 0).float().mean()), 4) for count in counts]
            history.append({"reconstruction": means[0], "quantisation": means[1], "usage": usage, "resets": resets})
            progress.set_postfix(loss=f"{sum(means):.4f}", usage=usage, refresh=False)
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
            for statistic in ("exp_avg", "exp_avg_sq"):
                optimizer.state[codebook][statistic][dead] = 0
            resets += len(dead)
    return resets

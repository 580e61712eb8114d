"""The network of RQ-VAE.

Differs from most public code in one line that matters: between levels the *detached* code is subtracted. With the
straight-through estimate inside every level the residual's gradient is zero, and the commitment terms of all levels
but the first never reach the encoder.
"""

import torch
from torch import nn
from torch.nn import functional as F

from llmrec.arrays import kmeans
from llmrec.item_tokenizers.residual.autoencoder import mlp
from llmrec.item_tokenizers.residual.rq_vae_losses import Step


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


@torch.no_grad()
def reset_dead(
    module: RQVAEModule, optimizer: torch.optim.Optimizer, counts, residuals, generator: torch.Generator
) -> int:
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

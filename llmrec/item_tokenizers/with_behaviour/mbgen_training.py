"""The VQ-VAE of MBGen: one codebook that follows the encoder by moving averages (torch side of `mbgen.py`)."""

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from tqdm.auto import tqdm

from llmrec.arrays import kmeans
from llmrec.item_tokenizers.residual.rq_vae_training import batches_of, mlp


class VQVAEModule(nn.Module):
    """MLP encoder and decoder around one codebook, which is no parameter: no gradient moves it.

    Args:
        dim (`int`): D of the input. hidden (list of `int`), latent_dim (`int`): layers of the encoder; the decoder is
            its mirror image. size (`int`): codes.
    """

    def __init__(self, dim: int, hidden: list[int], latent_dim: int, size: int):
        super().__init__()
        self.encoder = mlp([dim, *hidden, latent_dim])
        self.decoder = mlp([latent_dim, *reversed(hidden), dim])
        self.register_buffer("codebook", torch.zeros(size, latent_dim))

    def codes(self, z: torch.Tensor) -> torch.Tensor:
        """int64 `[B]`: the nearest code of every latent `[B, d]`."""
        return torch.addmm((self.codebook**2).sum(1), z, self.codebook.T, alpha=-2).argmin(1)


def train(
    module: VQVAEModule,
    features: np.ndarray,
    *,
    epochs: int,
    batch_size: int,
    learning_rate: float,
    beta: float,
    decay: float,
    device: str,
    seed: int,
) -> list[dict]:
    """Trains in place on float32 `[N, D]`.

    The codebook starts from k-means on the first latents. N_k <- g N_k + (1 - g) n_k and m_k <- g m_k + (1 - g) sum z
    over every batch; a code is m_k / N_k, and moves to a random latent after an epoch in which nobody chose it.

    Returns:
        one dict per epoch: `reconstruction`, `commitment`, `usage` (share of codes in use).
    """
    generator = torch.Generator().manual_seed(seed)
    x = torch.from_numpy(features).to(device)
    module.to(device)
    book = module.codebook
    with torch.no_grad():
        z = module.encoder(x)
        book.copy_(torch.from_numpy(kmeans(z.float().cpu().numpy(), len(book), seed, niter=20)))
        batches = -(-len(x) // batch_size)
        counts = torch.bincount(module.codes(z), minlength=len(book)) / batches + 1e-5
        sums = book * counts[:, None]
    optimizer = torch.optim.AdamW(module.parameters(), learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * batches)
    history: list[dict] = []
    for epoch in tqdm(range(epochs), desc="MBGen VQ-VAE"):
        used = torch.zeros(len(book), dtype=torch.bool, device=device)
        losses = np.zeros(2)
        for rows in batches_of(len(x), batch_size, generator):
            batch = x[rows.to(device)]
            z = module.encoder(batch)
            codes = module.codes(z.detach())
            vectors = book[codes]
            reconstruction = F.mse_loss(module.decoder(z + (vectors - z).detach()), batch)
            commitment = F.mse_loss(z, vectors)
            optimizer.zero_grad(set_to_none=True)
            (reconstruction + beta * commitment).backward()
            optimizer.step()
            schedule.step()
            with torch.no_grad():
                chosen = F.one_hot(codes, len(book)).to(z.dtype)
                counts.mul_(decay).add_(chosen.sum(0), alpha=1 - decay)
                sums.mul_(decay).add_(chosen.T @ z.detach(), alpha=1 - decay)
                book.copy_(sums / counts[:, None])
            used |= chosen.any(0)
            losses += len(batch) * np.array([reconstruction.item(), commitment.item()])
        dead = torch.nonzero(~used).flatten()
        if len(dead) and epoch < 0.8 * epochs:
            anew = torch.randint(len(z), (len(dead),), generator=generator).to(device)
            book[dead], counts[dead] = z.detach()[anew], 1.0
            sums[dead] = book[dead]
        means = (losses / len(x)).tolist()
        history.append({"reconstruction": means[0], "commitment": means[1], "usage": float(used.float().mean())})
    module.to("cpu")
    return history

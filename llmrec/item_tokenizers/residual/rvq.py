"""R-VQ: residual quantisation whose codebooks are learned by gradient (GRID, CIKM 2025, 2507.22224).

Level by level, each on the normalised residuals of the levels before. There is no encoder, so of the VQ-VAE's losses
only the codebook's remains: mean ||e_c - r||^2, minimised by Adam from k-means++ centroids of a buffer of rows.
GRID trains with a constant learning rate; it falls to zero here, so that the codes end in the middle of their rows.
"""

from dataclasses import dataclass

import numpy as np
import torch
from tqdm.auto import tqdm

from llmrec.arrays import check_loss
from llmrec.item_tokenizers.residual.autoencoder import nearest_code
from llmrec.item_tokenizers.residual.quantizer import ResidualCodebooks


@dataclass(eq=False)
class RVQ(ResidualCodebooks):
    """Residual vector quantisation, trained by gradient.

    Args:
        codebook_sizes, normalize_residuals, preprocess, preprocess_dim: see `ResidualCodebooks`.
        steps, batch_size, learning_rate: of Adam, per level.
        buffer: rows that k-means++ chooses the first codes from, at least as many as there are codes.
    """

    name = "rvq"

    steps: int = 1000
    batch_size: int = 2048
    learning_rate: float = 1e-3
    buffer: int = 3072

    def learn_codebook(self, rows: np.ndarray, size: int, seed: int) -> tuple[np.ndarray, None]:
        from sklearn.cluster import kmeans_plusplus

        shuffled = np.random.default_rng(seed).permutation(len(rows))
        buffer = rows[shuffled[: max(self.buffer, size)]]
        codebook = torch.tensor(kmeans_plusplus(buffer, size, random_state=seed)[0], requires_grad=True)
        optimizer = torch.optim.Adam([codebook], self.learning_rate)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.steps)
        generator = torch.Generator().manual_seed(seed)
        x = torch.from_numpy(rows)
        for _ in tqdm(range(self.steps), desc="R-VQ", unit="step", leave=False, delay=2):
            batch = x[torch.randint(len(x), (min(self.batch_size, len(x)),), generator=generator)]
            loss = torch.nn.functional.mse_loss(codebook[nearest_code(batch, codebook)], batch)
            check_loss(loss.detach(), "R-VQ")
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
        return codebook.detach().numpy().copy(), None

"""R-VQ: residual quantisation whose codebooks are learned by gradient (GRID, CIKM 2025, 2507.22224).

Level by level, each on the normalised residuals of the levels before. There is no encoder, so of the VQ-VAE's losses
only the codebook's remains: mean ||e_c - r||^2, minimised by Adam from k-means++ centroids of a buffer of rows.
GRID trains with a constant learning rate; it falls to zero here, so that the codes end in the middle of their rows.
"""

from collections.abc import Sequence

import numpy as np

from llmrec.item_tokenizers.residual.quantizer import ResidualCodebooks


class RVQ(ResidualCodebooks):
    """Residual vector quantisation, trained by gradient.

    Args:
        codebook_sizes (sequence of `int`): codes per level, coarse to fine.
        normalize_residuals (`bool`): scale residuals to unit length before every level.
        preprocess (`str`), preprocess_dim (`int`, *optional*): see `llmrec.item_tokenizers.preprocess`.
        steps (`int`), batch_size (`int`), learning_rate (`float`): of Adam, per level.
        buffer (`int`): rows that k-means++ chooses the first codes from, at least as many as there are codes.
    """

    name = "rvq"

    def __init__(
        self,
        codebook_sizes: Sequence[int] = (256, 256, 256),
        normalize_residuals: bool = True,
        preprocess: str = "none",
        preprocess_dim: int | None = None,
        steps: int = 1000,
        batch_size: int = 2048,
        learning_rate: float = 1e-3,
        buffer: int = 3072,
    ):
        super().__init__(codebook_sizes, normalize_residuals, preprocess, preprocess_dim)
        self._settings = {
            "steps": steps,
            "batch_size": batch_size,
            "learning_rate": learning_rate,
            "buffer": buffer,
        }

    @property
    def config(self) -> dict:
        return {**super().config, **self._settings}

    def learn_codebook(self, rows: np.ndarray, size: int, seed: int) -> tuple[np.ndarray, None]:
        import torch
        from sklearn.cluster import kmeans_plusplus

        steps, batch_size = self._settings["steps"], self._settings["batch_size"]
        shuffled = np.random.default_rng(seed).permutation(len(rows))
        buffer = rows[shuffled[: max(self._settings["buffer"], size)]]
        codebook = torch.tensor(kmeans_plusplus(buffer, size, random_state=seed)[0], requires_grad=True)
        optimizer = torch.optim.Adam([codebook], self._settings["learning_rate"])
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        generator = torch.Generator().manual_seed(seed)
        x = torch.from_numpy(rows)
        for _ in range(steps):
            batch = x[torch.randint(len(x), (min(batch_size, len(x)),), generator=generator)]
            with torch.no_grad():
                code = torch.addmm(codebook.square().sum(1), batch, codebook.T, alpha=-2).argmin(1)
            loss = torch.nn.functional.mse_loss(codebook[code], batch)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
        return codebook.detach().numpy().copy(), None

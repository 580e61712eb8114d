"""RK-Means+: residual k-means that goes on learning as an RQ-VAE (GPR; also in MiniOneRec).

The encoder is x + MLP(x) with a last layer of zeros and the codebooks start as those of residual k-means, so training
starts exactly at `RQKMeans(normalize_residuals=False)`. Unlike MiniOneRec's, the decoder starts as the identity too,
so the first steps do not have to learn it while they move the codes.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from llmrec.item_tokenizers.residual.rq_kmeans import RQKMeans
from llmrec.item_tokenizers.residual.rq_vae import DEFAULT, RQVAE, RQVAEModule


@dataclass(eq=False)
class RQKMeansPlus(RQVAE):
    """Residual k-means, fine-tuned as an RQ-VAE whose latent is as wide as its input.

    Args: those of `RQVAE` but `latent_dim`, without presets, and `niter` (`int`): iterations of k-means.
    """

    name = "rq_kmeans_plus"
    presets = {"default": DEFAULT}

    preprocess: str = "none"
    hidden: Sequence[int] = (256,)
    latent_dim: None = field(default=None, init=False)
    batch_size: int = 2048
    learning_rate: float = 1e-4
    reset_every: int = 0
    refit: bool = False
    niter: int = 25

    def start(self, module: RQVAEModule, features: np.ndarray, rows: np.ndarray, seed: int) -> None:
        settings = {name: self.config[name] for name in ("codebook_sizes", "preprocess", "preprocess_dim", "niter")}
        kmeans = RQKMeans(**settings, normalize_residuals=False).fit(features, seed=seed)
        with torch.no_grad():
            for codebook, centroids in zip(module.codebooks, kmeans.codebooks):
                codebook.copy_(torch.from_numpy(centroids))

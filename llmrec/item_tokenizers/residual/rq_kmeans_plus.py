"""RK-Means+: residual k-means that goes on learning as an RQ-VAE (GPR; also in MiniOneRec).

The encoder is x + MLP(x) with a last layer of zeros and the codebooks start as those of residual k-means, so training
starts exactly at `RQKMeans(normalize_residuals=False)`. Unlike MiniOneRec's, the decoder starts as the identity too,
so the first steps do not have to learn it while they move the codes.
"""

import numpy as np

from llmrec.item_tokenizers.residual.rq_kmeans import RQKMeans
from llmrec.item_tokenizers.residual.rq_vae import DEFAULTS, RQVAE


class RQKMeansPlus(RQVAE):
    """Residual k-means, fine-tuned as an RQ-VAE whose latent is as wide as its input.

    Args: those of `RQVAE` but `preset` and `latent_dim`, with other defaults; `niter` (`int`): iterations of k-means.
    """

    name = "rq_kmeans_plus"
    presets = {"default": {}}
    defaults = {key: value for key, value in DEFAULTS.items() if key != "latent_dim"} | {
        "preprocess": "none",
        "hidden": (256,),
        "batch_size": 2048,
        "learning_rate": 1e-4,
        "reset_every": 0,
        "refit": False,
        "niter": 25,
    }

    def _start(self, module, features: np.ndarray, rows: np.ndarray, seed: int) -> None:
        import torch

        preprocess = {key: self._settings[key] for key in ("preprocess", "preprocess_dim", "niter")}
        start = RQKMeans(self.codebook_sizes, normalize_residuals=False, **preprocess).fit(features, seed)
        with torch.no_grad():
            for codebook, centroids in zip(module.codebooks, start.codebooks):
                codebook.copy_(torch.from_numpy(centroids))

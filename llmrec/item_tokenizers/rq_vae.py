"""RQ-VAE: an autoencoder whose latent is quantised residually (TIGER, NeurIPS 2023, 2305.05065).

The paper's recipe (Adagrad, learning rate 0.4, raw unit-norm inputs) collapsed to one code in an independent
reproduction; the defaults here are the stable one: standardised inputs, AdamW, k-means initialisation of every level,
reset of dead codes, and codebooks fitted once more on the final latents.
"""

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Self

import numpy as np

from llmrec.item_tokenizers.preprocess import Preprocess, check_features, unique_rows
from llmrec.item_tokenizers.protocol import load_state, part_of, save_state
from llmrec.item_tokenizers.residual import encode_residuals, last_level_costs


class RQVAE:
    """Residual-quantised variational autoencoder (deterministic, as everybody uses it).

    Args:
        codebook_sizes (sequence of `int`): codes per level, coarse to fine.
        hidden (sequence of `int`), latent_dim (`int`): layers of the encoder; the decoder mirrors them.
        preprocess (`str`), preprocess_dim (`int`, *optional*): see `llmrec.item_tokenizers.preprocess`.
        epochs, batch_size (`int`), learning_rate, weight_decay (`float`): of AdamW, cosine decay.
        beta (`float`): weight of the commitment loss.
        reset_every (`int`): epochs between two resets of unused codes.
        device (`str`): `"auto"` takes a GPU where there is one.

    Attributes:
        history (list of `dict`): per epoch `reconstruction`, `quantisation`, `usage` (per level), `resets`.
    """

    name = "rq_vae"
    ordered = True
    fixed_length = True
    contextual = False
    adds_tokens = True
    decodes_to_vector = True

    def __init__(
        self,
        codebook_sizes: Sequence[int] = (256, 256, 256),
        hidden: Sequence[int] = (256, 128),
        latent_dim: int = 32,
        preprocess: str = "standardize",
        preprocess_dim: int | None = None,
        epochs: int = 60,
        batch_size: int = 1024,
        learning_rate: float = 1e-3,
        weight_decay: float = 0.01,
        beta: float = 0.25,
        reset_every: int = 1,
        device: str = "auto",
    ):
        self.codebook_sizes = tuple(int(size) for size in codebook_sizes)
        if not self.codebook_sizes or min(self.codebook_sizes) < 1:
            raise ValueError(f"codebook_sizes={list(codebook_sizes)} must be one or more positive numbers")
        self.preprocess = Preprocess(preprocess, preprocess_dim)
        self._settings = {
            "hidden": list(hidden),
            "latent_dim": latent_dim,
            "epochs": epochs,
            "batch_size": batch_size,
            "learning_rate": learning_rate,
            "weight_decay": weight_decay,
            "beta": beta,
            "reset_every": reset_every,
        }
        self.device = device
        self.dim: int | None = None
        self.codebooks: list[np.ndarray] = []
        self.history: list[dict] = []
        self._module = self._encoder = None

    @property
    def config(self) -> dict:
        preprocess = {"preprocess": self.preprocess.mode, "preprocess_dim": self.preprocess.dim}
        return {"codebook_sizes": list(self.codebook_sizes), **preprocess, **self._settings}

    def fit(self, features: np.ndarray, seed: int = 0) -> Self:
        import torch

        from llmrec.item_tokenizers.rq_vae_training import train

        features = check_features(features)
        self.dim = features.shape[1]
        rows = self.preprocess.fit(features)(features)
        rows = rows[unique_rows(rows)]
        if len(rows) < max(self.codebook_sizes):
            raise ValueError(
                f"{len(rows)} distinct items cannot fill {max(self.codebook_sizes)} codes: lower codebook_sizes"
            )
        device = self.device
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        loop = {key: value for key, value in self._settings.items() if key not in ("hidden", "latent_dim")}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            module = self._new_module(rows.shape[1])
        self.history = train(module, rows, **loop, device=device, seed=seed)
        self._adopt(module)
        return self

    def encode(self, features: np.ndarray) -> np.ndarray:
        return encode_residuals(self._latent(features), self.codebooks, normalize=False)

    def last_level_costs(self, features: np.ndarray, codes: np.ndarray) -> np.ndarray:
        return last_level_costs(self._latent(features), codes, self.codebooks, normalize=False)

    def _latent(self, features: np.ndarray) -> np.ndarray:
        """float32 `[N, latent_dim]`; computed in float64, so that it does not depend on the rows beside it."""
        import torch

        if self._module is None:
            raise ValueError("this item tokenizer is not fitted: call fit(features) first")
        rows = self.preprocess(check_features(features, self.dim))
        with torch.no_grad():
            blocks = [self._encoder(block.double()).float() for block in torch.from_numpy(rows).split(65_536)]
        return torch.cat(blocks).numpy()

    def _new_module(self, dim: int):
        from llmrec.item_tokenizers.rq_vae_training import RQVAEModule

        return RQVAEModule(dim, self._settings["hidden"], self._settings["latent_dim"], self.codebook_sizes)

    def _adopt(self, module) -> None:
        self._module = module.eval()
        self._encoder = copy.deepcopy(module.encoder).double()
        self.codebooks = [codebook.detach().numpy().copy() for codebook in module.codebooks]

    def save_pretrained(self, folder: str | Path) -> None:
        if self._module is None:
            raise ValueError("this item tokenizer is not fitted: there is nothing to save")
        arrays = {f"module.{name}": tensor.numpy() for name, tensor in self._module.state_dict().items()}
        arrays |= {f"preprocess.{name}": array for name, array in self.preprocess.state.items()}
        save_state(folder, {"name": self.name, **self.config, "dim": self.dim, "history": self.history}, arrays)

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> Self:
        import torch

        config, arrays = load_state(folder)
        del config["name"]
        dim, history = config.pop("dim"), config.pop("history")
        tokenizer = cls(**config)
        tokenizer.dim, tokenizer.history = dim, history
        tokenizer.preprocess.state = part_of(arrays, "preprocess.")
        module = tokenizer._new_module(config["preprocess_dim"] or dim)
        module.load_state_dict({name: torch.from_numpy(a) for name, a in part_of(arrays, "module.").items()})
        tokenizer._adopt(module)
        return tokenizer

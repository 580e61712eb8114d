"""RQ-VAE: an autoencoder whose latent is quantised residually (TIGER, NeurIPS 2023, 2305.05065), and its variants with
further losses: LETTER (CIKM 2024, 2405.07314) and CoST (RecSys 2024, 2404.14774).

Both losses are means over dimensions, as in public code, where the paper sums squares: reconstruction of D dimensions
weighs D / d times less against quantisation of d than there.

The paper's recipe (Adagrad, learning rate 0.4, raw unit-norm inputs) collapsed to one code in an independent
reproduction; it is the preset `"tiger"`. The defaults are a stable recipe: standardised inputs, AdamW, k-means
initialisation of every level, reset of dead codes, and codebooks fitted once more on the final latents.

LETTER's collaborative embeddings come from SASRec in the paper, from co-occurrence in the training sequences here; its
start from constrained k-means and its Sinkhorn assignment at the last level are absent.
"""

import copy
from collections.abc import Sequence
from typing import Self

import numpy as np

from llmrec.arrays import blocks, check_features, unique_rows
from llmrec.features.cooccurrence import cooccurrence_embeddings
from llmrec.files import part_of
from llmrec.item_tokenizers.preprocess import Preprocess
from llmrec.item_tokenizers.protocol import Saved, Traits, check_sizes, not_fitted, require
from llmrec.item_tokenizers.residual.quantizer import encode_residuals, last_level_costs

WITH_TRAIN = ("features", "items", "train")
# What the training loop takes of the settings.
LOOP = ("epochs", "batch_size", "optimizer", "learning_rate", "weight_decay", "beta", "reset_every", "refit")


DEFAULTS = {
    "preprocess": "standardize",
    "preprocess_dim": None,
    "hidden": (256, 128),
    "latent_dim": 32,
    "epochs": 40,
    "batch_size": 1024,
    "optimizer": "adamw",
    "learning_rate": 1e-3,
    "weight_decay": 0.01,
    "beta": 0.25,
    "reset_every": 1,
    "refit": True,
    "reconstruction": "mse",
    "temperature": 0.1,
    "collaborative_weight": 0.0,
    "collaborative_dim": 32,
    "diversity_weight": 0.0,
}
TIGER = {
    "preprocess": "l2",
    "hidden": (512, 256, 128),
    "epochs": 20_000,
    "optimizer": "adagrad",
    "learning_rate": 0.4,
    "weight_decay": 0.0,
    "reset_every": 0,
    "refit": False,
}
PRESETS = {"default": {}, "tiger": TIGER}


class RQVAE(Saved):
    """Residual-quantised variational autoencoder (deterministic, as everybody uses it).

    Args:
        codebook_sizes (sequence of `int`): codes per level, coarse to fine.
        preset (`str`): `"default"`, or `"tiger"` for the paper's recipe: prone to collapse, and its 20,000 epochs are
            hours on a CPU. Every argument below overrides it.
        device (`str`): `"auto"` takes a GPU where there is one.
        preprocess (`str`), preprocess_dim (`int`, *optional*): see `llmrec.item_tokenizers.preprocess`.
        hidden (sequence of `int`), latent_dim (`int`): layers of the encoder; the decoder mirrors them.
        epochs, batch_size (`int`), learning_rate, weight_decay (`float`). More epochs reconstruct better and leave
            more collisions.
        optimizer (`str`): `"adamw"` with cosine decay, or `"adagrad"`.
        beta (`float`): weight of the commitment loss.
        reset_every (`int`): epochs between two resets of unused codes; 0 for none.
        refit (`bool`): k-means once more at the end.
        reconstruction (`str`), temperature (`float`): `"mse"`, `"cosine"`, or `"infonce"` of CoST, which alone has a
            temperature.
        collaborative_weight (`float`), collaborative_dim (`int`): of LETTER's loss that draws items together that
            are consumed together, and the width of their embeddings. Where it counts, `fit` needs items and train.
        diversity_weight (`float`): of LETTER's loss that spreads the codes.

    Attributes:
        history (list of `dict`): per epoch `reconstruction`, `quantisation`, further losses, `usage` (per level),
            `resets`.

    Raises:
        ValueError: an argument, preset, optimizer or reconstruction that does not exist.
    """

    name = "rq_vae"
    traits = Traits()
    level_tokens = None
    defaults = DEFAULTS
    presets = PRESETS

    def __init__(
        self,
        codebook_sizes: Sequence[int] = (256, 256, 256),
        preset: str = "default",
        device: str = "auto",
        **settings,
    ):
        self.codebook_sizes = check_sizes(codebook_sizes)
        _one_of("preset", preset, self.presets)
        self._preset = preset
        unknown = [key for key in settings if key not in self.defaults]
        if unknown:
            known = ", ".join(["codebook_sizes", "preset", "device", *self.defaults])
            raise ValueError(f"item tokenizer {self.name!r} has no argument {unknown[0]!r}; it has {known}")
        self._settings = {**self.defaults, **self.presets[preset], **settings}
        self._settings["hidden"] = list(self._settings["hidden"])
        _one_of("optimizer", self._settings["optimizer"], ("adamw", "adagrad"))
        _one_of("reconstruction", self._settings["reconstruction"], ("mse", "cosine", "infonce"))
        needs = WITH_TRAIN if self._settings["collaborative_weight"] > 0 else ("features",)
        self.traits = self.traits._replace(needs=needs)
        self.preprocess = Preprocess(self._settings["preprocess"], self._settings["preprocess_dim"])
        self.device = device
        self.dim: int | None = None
        self.codebooks: list[np.ndarray] = []
        self.history: list[dict] = []
        self._module = self._encoder = None

    @property
    def config(self) -> dict:
        return {"codebook_sizes": list(self.codebook_sizes), "preset": self._preset, **self._settings}

    def fit(self, features: np.ndarray, seed: int = 0, items=None, train=None) -> Self:
        import torch

        from llmrec.item_tokenizers.residual.rq_vae_losses import losses_of
        from llmrec.item_tokenizers.residual.rq_vae_training import train as train_module

        require(self, items=items, train=train)
        features = check_features(features)
        self.dim = features.shape[1]
        rows = self.preprocess.fit(features)(features)
        distinct = unique_rows(rows)
        if len(distinct) < max(self.codebook_sizes):
            raise ValueError(
                f"{len(distinct)} distinct items cannot fill {max(self.codebook_sizes)} codes: lower codebook_sizes"
            )
        collaborative = None
        if self._settings["collaborative_weight"] > 0:
            width = self._settings["collaborative_dim"]
            ids = items["item_id"].to_pylist()
            collaborative = cooccurrence_embeddings(ids, train, width, seed=seed)[distinct]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            module = self._new_module(rows.shape[1])
            losses = losses_of(self._settings, module, collaborative, seed)
        self._start(module, features, rows[distinct], seed)
        loop = {key: self._settings[key] for key in LOOP}
        self.history = train_module(module, rows[distinct], losses, **loop, device=self._device(), seed=seed)
        self._adopt(module)
        return self

    def _device(self) -> str:
        import torch

        if self.device == "auto":
            return "cuda" if torch.cuda.is_available() else "cpu"
        return self.device

    def _start(self, module, features: np.ndarray, rows: np.ndarray, seed: int) -> None:
        """Sets the codebooks before training; `rows` are the distinct rows of the preprocessed features."""
        import torch

        from llmrec.item_tokenizers.residual.rq_vae_training import fit_codebooks

        fit_codebooks(module, torch.from_numpy(rows), seed)

    def encode(self, features: np.ndarray, items=None) -> np.ndarray:
        return encode_residuals(self._latent(features), self.codebooks, normalize=False)

    def last_level_costs(self, features: np.ndarray, codes: np.ndarray) -> np.ndarray:
        return last_level_costs(self._latent(features), codes, self.codebooks, normalize=False)

    def _latent(self, features: np.ndarray) -> np.ndarray:
        """float32 `[N, latent_dim]`; computed in float64, so that it does not depend on the rows beside it."""
        import torch

        if self._module is None:
            raise not_fitted()
        features = check_features(features, self.dim)
        z = np.empty((len(features), self.codebooks[0].shape[1]), np.float32)
        with torch.no_grad():
            for block in blocks(len(features)):
                rows = torch.from_numpy(self.preprocess(features[block]))
                z[block] = self._encoder(rows.double()).numpy()
        return z

    def _new_module(self, dim: int):
        from llmrec.item_tokenizers.residual.rq_vae_training import RQVAEModule

        return RQVAEModule(dim, self._settings["hidden"], self._settings.get("latent_dim"), self.codebook_sizes)

    def _adopt(self, module) -> None:
        self._module = module.eval()
        self._encoder = copy.deepcopy(module.encoder).double()
        self.codebooks = [codebook.detach().numpy().copy() for codebook in module.codebooks]

    def state(self) -> tuple[dict, dict[str, np.ndarray]]:
        if self._module is None:
            raise not_fitted()
        arrays = {f"module.{name}": tensor.numpy() for name, tensor in self._module.state_dict().items()}
        arrays |= {f"preprocess.{name}": array for name, array in self.preprocess.state.items()}
        return {"dim": self.dim, "history": self.history}, arrays

    def restore(self, values: dict, arrays: dict[str, np.ndarray]) -> None:
        import torch

        self.dim, self.history = values["dim"], values["history"]
        self.preprocess.state = part_of(arrays, "preprocess.")
        module = self._new_module(self.preprocess.dim or self.dim)
        module.load_state_dict({name: torch.from_numpy(a) for name, a in part_of(arrays, "module.").items()})
        self._adopt(module)


class LETTER(RQVAE):
    """RQ-VAE with LETTER's two regularisers at the paper's weights; arguments as `RQVAE`. Three levels, as every
    tokenizer here; the paper has four."""

    name = "letter"
    traits = Traits(needs=WITH_TRAIN)
    defaults = DEFAULTS | {"collaborative_weight": 0.01, "diversity_weight": 1e-4}


class CoST(RQVAE):
    """RQ-VAE that tells items apart instead of copying their features (InfoNCE); arguments as `RQVAE`."""

    name = "cost"
    defaults = DEFAULTS | {"reconstruction": "infonce"}


def _one_of(argument: str, value: str, known) -> None:
    if value not in known:
        raise ValueError(f"{argument} {value!r} is not one of {', '.join(known)}")

"""RQ-VAE: an autoencoder whose latent is quantised residually (TIGER, NeurIPS 2023, 2305.05065), and its variants with
further losses: LETTER (CIKM 2024, 2405.07314) and CoST (RecSys 2024, 2404.14774).

Both losses are means over dimensions, as in public code, where the paper sums squares: reconstruction of D dimensions
weighs D / d times less against quantisation of d than there.

The paper's recipe (Adagrad, learning rate 0.4, raw unit-norm inputs) collapsed to one code in an independent
reproduction; it is the preset `"tiger"`. The defaults are a stable recipe: standardised inputs, AdamW, k-means
initialisation of every level, reset of dead codes, and codebooks fitted once more on the final latents.

The network differs from most public code in one line that matters: between levels the *detached* code is subtracted.
With the straight-through estimate inside every level the residual's gradient is zero, and the commitment terms of all
levels but the first never reach the encoder.

LETTER's collaborative embeddings are those of a SASRec of the training sequences, as wide as the latent, as long as it
learned them. Its start from constrained k-means and its Sinkhorn assignment at the last level are absent.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch
from torch import nn
from torch.nn import functional as F
from tqdm.auto import tqdm

from llmrec.arguments import one_of
from llmrec.arrays import check_loss, kmeans
from llmrec.devices import best_device
from llmrec.features.parts.collaborative import sasrec_embeddings
from llmrec.item_tokenizers.preprocess import Preprocess
from llmrec.item_tokenizers.protocol import Traits, check_sizes
from llmrec.item_tokenizers.residual.autoencoder import Autoencoder, batches_of, mlp, nearest_code
from llmrec.item_tokenizers.residual.quantizer import encode_residuals, last_level_costs
from llmrec.item_tokenizers.residual.rq_vae_losses import Loss, Step, losses_of

WITH_TRAIN = ("features", "items", "train")

DEFAULT = {
    "preprocess": "standardize",
    "hidden": (512,),
    "epochs": 40,
    "batch_size": 256,
    "optimizer": "adamw",
    "learning_rate": 3e-3,
    "weight_decay": 0.01,
    "reset_every": 1,
    "refit": True,
}
TIGER = {
    "preprocess": "l2",
    "hidden": (512, 256, 128),
    "epochs": 20_000,
    "batch_size": 1024,
    "optimizer": "adagrad",
    "learning_rate": 0.4,
    "weight_decay": 0.0,
    "reset_every": 0,
    "refit": False,
}


class RQVAEModule(nn.Module):
    """MLP encoder and decoder, its mirror image, around residual quantisation."""

    def __init__(self, dim: int, hidden: list[int], latent_dim: int, codebook_sizes):
        super().__init__()
        self.encoder = mlp([dim, *hidden, latent_dim])
        self.decoder = mlp([latent_dim, *reversed(hidden), dim])
        self.codebooks = nn.ParameterList(nn.Parameter(torch.zeros(size, latent_dim)) for size in codebook_sizes)

    def forward(self, x: torch.Tensor, beta: float) -> Step:
        """Quantises and decodes rows `[B, D]`; `beta` weighs the commitment loss."""
        z = self.encoder(x)
        residual, quantised, loss = z, torch.zeros_like(z), z.new_zeros(())
        codes, residuals, vectors = [], [], []
        for codebook in self.codebooks:
            residuals.append(residual.detach())
            code = nearest_code(residual, codebook)
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


@dataclass(eq=False)
class RQVAE(Autoencoder):
    """Residual-quantised variational autoencoder (deterministic, as everybody uses it).

    Args:
        codebook_sizes: codes per level, coarse to fine.
        preset: what arguments are that are `None`: those of `DEFAULT`, or `"tiger"` for the paper's recipe: prone to
            collapse, and its 20,000 epochs are hours on a CPU.
        device: `"auto"` takes a GPU where there is one.
        preprocess, preprocess_dim: see `llmrec.item_tokenizers.preprocess`.
        hidden, latent_dim: layers of the encoder, mirrored by the decoder. Latents of a collaborative loss are of an
            even width, as a SASRec's.
        epochs: more of them reconstruct better and leave more collisions.
        optimizer: `"adamw"` with cosine decay, or `"adagrad"`.
        beta: weight of the commitment loss.
        reset_every: epochs between two resets of unused codes; 0 for none.
        refit: k-means once more at the end.
        reconstruction, temperature: `"mse"`, `"cosine"`, or `"infonce"` of CoST, which alone has a temperature.
        collaborative_weight: of LETTER's loss that draws items together that are consumed together. Where it counts,
            `fit` needs items and train.
        diversity_weight: of LETTER's loss that spreads the codes.

    Attributes:
        history (list of `dict`): per epoch `reconstruction`, `quantisation`, further losses, `usage` (per level),
            `resets`.
    """

    name = "rq_vae"
    traits = Traits()
    presets = {"default": DEFAULT, "tiger": TIGER}
    gone = ("collaborative_dim",)

    codebook_sizes: Sequence[int] = (256, 256, 256)
    preset: str = "default"
    device: str = "auto"
    preprocess: str | None = None
    preprocess_dim: int | None = None
    hidden: Sequence[int] | None = None
    latent_dim: int = 32
    epochs: int | None = None
    batch_size: int | None = None
    optimizer: str | None = None
    learning_rate: float | None = None
    weight_decay: float | None = None
    beta: float = 0.25
    reset_every: int | None = None
    refit: bool | None = None
    reconstruction: str = "mse"
    temperature: float = 0.1
    collaborative_weight: float = 0.0
    diversity_weight: float = 0.0

    def __post_init__(self):
        given = {name: value for name, value in vars(self).items() if value is not None}
        vars(self).update(self.presets[one_of(self.preset, self.presets, "preset")] | given)
        self.codebook_sizes = check_sizes(self.codebook_sizes)
        self.hidden = list(self.hidden)
        one_of(self.optimizer, ("adamw", "adagrad"), "optimizer")
        one_of(self.reconstruction, ("mse", "cosine", "infonce"), "reconstruction")
        self.preprocessing = Preprocess(self.preprocess, self.preprocess_dim)
        if self.collaborative_weight > 0:
            self.traits = Traits(needs=WITH_TRAIN)
            if self.latent_dim % 2:
                raise ValueError(f"latent_dim={self.latent_dim} must be even where collaborative_weight counts")

    def learn(self, features: np.ndarray, items: pa.Table | None, train: pa.Table | None, seed: int) -> None:
        rows, distinct = self._distinct(features, max(self.codebook_sizes), "codebook_sizes")
        collaborative = None
        if self.collaborative_weight > 0:
            ids = items["item_id"].to_pylist()
            collaborative = sasrec_embeddings(ids, train, self.latent_dim, seed=seed)[distinct]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            module = self.new_module(rows.shape[1])
            losses = losses_of(self.config, module, collaborative, seed)
        fit_codebooks(module, torch.from_numpy(rows), seed)
        self.history = self.train(module, rows, losses, seed)
        self.adopt(module)

    def train(
        self, module: RQVAEModule, rows: np.ndarray, losses: dict[str, tuple[float, Loss]], seed: int
    ) -> list[dict]:
        """Trains in place on float32 `[N, D]`, and returns the `history`; `losses` (weight and loss by name) are added
        to the quantisation loss."""
        device = best_device(self.device)
        generator = torch.Generator().manual_seed(seed)
        x = torch.from_numpy(rows).to(device)
        module.to(device)
        extra = nn.ModuleList(loss for _, loss in losses.values() if isinstance(loss, nn.Module)).to(device)
        parameters = [*module.parameters(), *extra.parameters()]
        kind = {"adamw": torch.optim.AdamW, "adagrad": torch.optim.Adagrad}[self.optimizer]
        optimizer = kind(parameters, self.learning_rate, weight_decay=self.weight_decay)
        steps = max(1, self.epochs * -(-len(x) // self.batch_size))
        schedule = None  # Adagrad's steps shrink by themselves
        if self.optimizer == "adamw":
            schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        weights = [1.0, *(weight for weight, _ in losses.values())]
        history: list[dict] = []
        for epoch in (progress := tqdm(range(self.epochs), desc="RQ-VAE")):
            counts = [torch.zeros(len(book), dtype=torch.long, device=device) for book in module.codebooks]
            sums = np.zeros(1 + len(losses))
            for batch in batches_of(len(x), self.batch_size, generator):
                batch = batch.to(device)
                step = module(x[batch], self.beta)._replace(rows=batch, epoch=epoch)
                values = [step.quantisation, *(loss(step) for _, loss in losses.values())]
                optimizer.zero_grad(set_to_none=True)
                sum(weight * value for weight, value in zip(weights, values)).backward()
                optimizer.step()
                if schedule is not None:
                    schedule.step()
                numbers = torch.stack(values).tolist()
                check_loss(sum(numbers), self.name)
                sums += len(batch) * np.array(numbers)
                for level, count in enumerate(counts):
                    count += torch.bincount(step.codes[:, level], minlength=len(count))
            resets = 0
            if self.reset_every and (epoch + 1) % self.reset_every == 0 and epoch < 0.8 * self.epochs:
                resets = reset_dead(module, optimizer, counts, step.residuals, generator)
            means = dict(zip(["quantisation", *losses], (sums / len(x)).tolist()))
            usage = [round(float((count > 0).float().mean()), 4) for count in counts]
            history.append({**means, "usage": usage, "resets": resets})
            progress.set_postfix(loss=f"{sum(means.values()):.4f}", usage=usage, refresh=False)
        if self.refit:
            # Codebooks that follow by gradient lag behind the encoder: k-means on the final latents uses them better.
            fit_codebooks(module, x, seed)
        module.to("cpu")
        return history

    def new_module(self, dim: int) -> RQVAEModule:
        return RQVAEModule(dim, self.hidden, self.latent_dim, self.codebook_sizes)

    def adopt(self, module: RQVAEModule) -> None:
        super().adopt(module)
        self.codebooks = [codebook.detach().numpy().copy() for codebook in module.codebooks]

    def codes_of(self, features: np.ndarray, items) -> np.ndarray:
        return encode_residuals(self._latent(features), self.codebooks, normalize=False)

    def costs_of(self, features: np.ndarray, codes: np.ndarray) -> np.ndarray:
        return last_level_costs(self._latent(features), codes, self.codebooks, normalize=False)


@dataclass(eq=False)
class LETTER(RQVAE):
    """RQ-VAE with LETTER's two regularisers; arguments as `RQVAE`. Three levels, as every tokenizer here; the paper
    has four. Features are standardised here, which makes the reconstruction weigh some hundred times what it does on
    vectors of unit length: at the paper's .01 the collaborative loss does nothing, so it weighs .3."""

    name = "letter"

    collaborative_weight: float = 0.3
    diversity_weight: float = 1e-4


@dataclass(eq=False)
class CoST(RQVAE):
    """RQ-VAE that tells items apart instead of copying their features (InfoNCE); arguments as `RQVAE`."""

    name = "cost"

    reconstruction: str = "infonce"

"""MBGen's SemIDs: a VQ-VAE, k-means inside each of its codes, and a random number (CIKM 2024, 2405.16871).

Level 1 is the code of a VQ-VAE, level 2 the k-means cluster of the item's residual among the items of that code, so
its codes mean something below their first code only; level 3 is random, and different for all items of a prefix.
Fitted items are known by their ids. A new item takes the nearest clusters and, by the hash of its id, a number that is
free there; two new items may meet, which the collision policy settles.

The paper quantises item vectors of a sequential recommender, which text features are not: fit it on
`features: [{kind: collaborative, method: sasrec}]`, as recipes/configs/beauty/compare_tokenizers.yaml does. It trains
larger layers for 1,000 epochs of Adagrad; the defaults here take seconds. An item that no training sequence holds has
zeros for such features: all of these share two codes, and only their numbers differ.

In MBGen's sequences a token for the user's behaviour stands before every item; that is the sequences' matter, not the
tokenizer's (docs/several_semids.md, "Behaviour tokens").
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch
from torch import nn
from torch.nn import functional as F
from tqdm.auto import tqdm

from llmrec.arrays import check_loss, kmeans, unique_rows
from llmrec.devices import best_device
from llmrec.item_tokenizers.by_item import KeyedByItem, id_numbers
from llmrec.item_tokenizers.preprocess import Preprocess
from llmrec.item_tokenizers.protocol import Traits, check_sizes
from llmrec.item_tokenizers.residual.autoencoder import Autoencoder, batches_of, mlp, nearest_code
from llmrec.item_tokenizers.residual.quantizer import nearest


class VQVAEModule(nn.Module):
    """MLP encoder and decoder, its mirror image, around one codebook, which is no parameter: no gradient moves it."""

    def __init__(self, dim: int, hidden: list[int], latent_dim: int, size: int):
        super().__init__()
        self.encoder = mlp([dim, *hidden, latent_dim])
        self.decoder = mlp([latent_dim, *reversed(hidden), dim])
        self.register_buffer("codebook", torch.zeros(size, latent_dim))


@dataclass(eq=False)
class MBGen(KeyedByItem, Autoencoder):
    """VQ-VAE, k-means tree and random last level.

    Args:
        codebook_sizes: codes of the VQ-VAE, clusters inside each of them (fewer where it holds fewer different items),
            and numbers for the items of a cluster, at least as many as it has items.
        preprocess, preprocess_dim: see `llmrec.item_tokenizers.preprocess`.
        epochs, batch_size, learning_rate: of AdamW, cosine decay.
        beta: weight of the commitment loss.
        decay: of the codebook's moving averages.

    Attributes:
        history (list of `dict`): per epoch `reconstruction`, `commitment`, `usage`.
    """

    name = "mbgen"
    traits = Traits(decodes_to_vector=False, nearest=False, needs=("features", "items"))

    codebook_sizes: Sequence[int] = (64, 64, 128)
    hidden: Sequence[int] = (256, 128)
    latent_dim: int = 32
    preprocess: str = "standardize"
    preprocess_dim: int | None = None
    epochs: int = 60
    batch_size: int = 1024
    learning_rate: float = 1e-3
    beta: float = 0.25
    decay: float = 0.99
    device: str = "auto"

    def __post_init__(self):
        self.codebook_sizes, self.hidden = check_sizes(self.codebook_sizes), list(self.hidden)
        if len(self.codebook_sizes) != 3:
            raise ValueError(f"item tokenizer 'mbgen' has three levels, not {len(self.codebook_sizes)}")
        self.preprocessing = Preprocess(self.preprocess, self.preprocess_dim)
        self._clusters: list[np.ndarray] = []  # by first code, [k, d]; k is 0 where nobody has it

    def learn(self, features: np.ndarray, items: pa.Table, train, seed: int) -> None:
        rows, _ = self._distinct(features, self.codebook_sizes[0], "codebook_sizes[0]")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            module = self.new_module(rows.shape[1])
        self.history = self.train(module, rows, seed)
        self.adopt(module)
        z, book = self._latent(features), module.codebook.numpy()
        first = nearest(z, book)
        residual = z - book[first]
        self._clusters = []
        for code in range(self.codebook_sizes[0]):
            different = residual[first == code]
            different = different[unique_rows(different)]
            size = min(self.codebook_sizes[1], len(different))
            self._clusters.append(different[:1] if size < 2 else kmeans(different, size, seed + code))
        pairs = self._pairs(z)
        self.remember(items, np.column_stack([pairs, self._numbers(pairs, items, seed)]))

    def train(self, module: VQVAEModule, rows: np.ndarray, seed: int) -> list[dict]:
        """Trains in place on float32 `[N, D]`, and returns the `history`.

        The codebook starts from k-means on the first latents. N_k <- g N_k + (1 - g) n_k and
        m_k <- g m_k + (1 - g) sum z over every batch; a code is m_k / N_k, and moves to a random latent after an epoch
        in which nobody chose it.
        """
        device = best_device(self.device)
        generator = torch.Generator().manual_seed(seed)
        x = torch.from_numpy(rows).to(device)
        module.to(device)
        book = module.codebook
        with torch.no_grad():
            z = module.encoder(x)
            book.copy_(torch.from_numpy(kmeans(z.float().cpu().numpy(), len(book), seed, niter=20)))
            batches = -(-len(x) // self.batch_size)
            counts = torch.bincount(nearest_code(z, book), minlength=len(book)) / batches + 1e-5
            sums = book * counts[:, None]
        optimizer = torch.optim.AdamW(module.parameters(), self.learning_rate)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.epochs * batches)
        history: list[dict] = []
        for epoch in tqdm(range(self.epochs), desc="MBGen VQ-VAE"):
            used = torch.zeros(len(book), dtype=torch.bool, device=device)
            losses = np.zeros(2)
            for part in batches_of(len(x), self.batch_size, generator):
                batch = x[part.to(device)]
                z = module.encoder(batch)
                codes = nearest_code(z, book)
                vectors = book[codes]
                reconstruction = F.mse_loss(module.decoder(z + (vectors - z).detach()), batch)
                commitment = F.mse_loss(z, vectors)
                optimizer.zero_grad(set_to_none=True)
                (reconstruction + self.beta * commitment).backward()
                optimizer.step()
                schedule.step()
                with torch.no_grad():
                    chosen = F.one_hot(codes, len(book)).to(z.dtype)
                    counts.mul_(self.decay).add_(chosen.sum(0), alpha=1 - self.decay)
                    sums.mul_(self.decay).add_(chosen.T @ z.detach(), alpha=1 - self.decay)
                    book.copy_(sums / counts[:, None])
                used |= chosen.any(0)
                numbers = torch.stack([reconstruction, commitment]).tolist()
                check_loss(sum(numbers), "MBGen")
                losses += len(batch) * np.array(numbers)
            dead = torch.nonzero(~used).flatten()
            if len(dead) and epoch < 0.8 * self.epochs:
                anew = torch.randint(len(z), (len(dead),), generator=generator).to(device)
                book[dead], counts[dead] = z.detach()[anew], 1.0
                sums[dead] = book[dead]
            means = (losses / len(x)).tolist()
            history.append({"reconstruction": means[0], "commitment": means[1], "usage": float(used.float().mean())})
        module.to("cpu")
        return history

    def _pairs(self, z: np.ndarray) -> np.ndarray:
        """int32 `[N, 2]`: the nearest first code that has clusters, and the nearest cluster there."""
        used = np.flatnonzero([len(clusters) for clusters in self._clusters])
        book = self._module.codebook.numpy()
        first = used[nearest(z, book[used])]
        residual = z - book[first]
        second = np.empty(len(z), np.int32)
        for code in np.unique(first):
            second[first == code] = nearest(residual[first == code], self._clusters[code])
        return np.column_stack([first, second]).astype(np.int32)

    def _numbers(self, pairs: np.ndarray, items: pa.Table, seed: int) -> np.ndarray:
        """int32 `[N]`: different random numbers for the items of a prefix, whatever their order in the catalogue."""
        size = self.codebook_sizes[2]
        rng = np.random.default_rng(seed)
        numbers = np.empty(len(pairs), np.int32)
        prefixes, group, counts = np.unique(pairs, axis=0, return_inverse=True, return_counts=True)
        order = np.lexsort([items["item_id"].to_numpy(zero_copy_only=False).astype(str), group.reshape(-1)])
        for prefix, rows in zip(prefixes.tolist(), np.split(order, np.cumsum(counts)[:-1])):
            if len(rows) > size:
                raise ValueError(
                    f"{len(rows)} items share the codes {prefix}, and the last level has {size} numbers: raise "
                    "codebook_sizes[2] (or [0] and [1])"
                )
            numbers[rows] = rng.permutation(size)[: len(rows)]
        return numbers

    def new_codes(self, features: np.ndarray, items: pa.Table) -> np.ndarray:
        codes = np.column_stack([self._pairs(self._latent(features)), np.zeros(len(features), np.int32)])
        numbers, taken = range(self.codebook_sizes[2]), self.remembered.semids
        for row, hashed in enumerate(id_numbers(items)):
            pair = codes[row, :2].tolist()
            free = [number for number in numbers if (*pair, number) not in taken] or numbers
            codes[row, 2] = free[hashed % len(free)]
        return codes

    def new_module(self, dim: int) -> VQVAEModule:
        return VQVAEModule(dim, self.hidden, self.latent_dim, self.codebook_sizes[0])

    def state(self) -> tuple[dict, dict[str, np.ndarray]]:
        values, arrays = super().state()
        sizes = np.array(list(map(len, self._clusters)))
        return values, arrays | {"clusters": np.concatenate(self._clusters), "clusters.sizes": sizes}

    def restore(self, values: dict, arrays: dict[str, np.ndarray]) -> None:
        super().restore(values, arrays)
        self._clusters = np.split(arrays["clusters"], np.cumsum(arrays["clusters.sizes"])[:-1])

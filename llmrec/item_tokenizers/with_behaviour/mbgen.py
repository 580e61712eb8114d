"""MBGen's SemIDs: a VQ-VAE, k-means inside each of its codes, and a random number (CIKM 2024, 2405.16871).

Level 1 is the code of a VQ-VAE, level 2 the k-means cluster of the item's residual among the items of that code, so
its codes mean something below their first code only; level 3 is random, and different for all items of a prefix.
Fitted items are known by their ids. A new item takes the nearest clusters and, by the hash of its id, a number that is
free there; two new items may meet, which the collision policy settles.

The paper trains larger layers for 1,000 epochs of Adagrad, on item vectors of a sequential recommender; the defaults
here take seconds. In MBGen's sequences a token for the user's behaviour stands before every item; that is the
sequences' matter, not the tokenizer's.
"""

import copy
from collections import defaultdict
from collections.abc import Sequence
from typing import Self

import numpy as np
import pyarrow as pa

from llmrec.arrays import blocks, check_features, unique_rows
from llmrec.files import part_of
from llmrec.item_tokenizers.preprocess import Preprocess
from llmrec.item_tokenizers.protocol import Saved, Traits, check_sizes, not_fitted, require
from llmrec.item_tokenizers.remembered import Remembered
from llmrec.item_tokenizers.residual.quantizer import nearest
from llmrec.item_tokenizers.words.text_ids import id_rows, remember_items


class MBGen(Saved):
    """VQ-VAE, k-means tree and random last level.

    Args:
        codebook_sizes (three `int`): codes of the VQ-VAE, clusters inside each of them (fewer where it holds fewer
            different items), and numbers for the items of a cluster.
        hidden (sequence of `int`), latent_dim (`int`): layers of the encoder; the decoder mirrors them.
        preprocess (`str`), preprocess_dim (`int`, *optional*): see `llmrec.item_tokenizers.preprocess`.
        epochs, batch_size (`int`), learning_rate (`float`): of AdamW, cosine decay.
        beta (`float`): weight of the commitment loss.
        decay (`float`): of the codebook's moving averages.
        device (`str`): `"auto"` takes a GPU where there is one.

    Attributes:
        history (list of `dict`): per epoch `reconstruction`, `commitment`, `usage`.
    """

    name = "mbgen"
    traits = Traits(decodes_to_vector=False, nearest=False, needs=("features", "items"))
    level_tokens = None
    codebooks: list[np.ndarray] = []

    def __init__(
        self,
        codebook_sizes: Sequence[int] = (64, 64, 128),
        hidden: Sequence[int] = (256, 128),
        latent_dim: int = 32,
        preprocess: str = "standardize",
        preprocess_dim: int | None = None,
        epochs: int = 60,
        batch_size: int = 1024,
        learning_rate: float = 1e-3,
        beta: float = 0.25,
        decay: float = 0.99,
        device: str = "auto",
    ):
        self.codebook_sizes = check_sizes(codebook_sizes)
        if len(self.codebook_sizes) != 3:
            raise ValueError(f"item tokenizer 'mbgen' has three levels, not {len(self.codebook_sizes)}")
        self.preprocess = Preprocess(preprocess, preprocess_dim)
        self._layers = {"hidden": list(hidden), "latent_dim": latent_dim}
        self._loop = {
            "epochs": epochs,
            "batch_size": batch_size,
            "learning_rate": learning_rate,
            "beta": beta,
            "decay": decay,
        }
        self.device = device
        self.dim: int | None = None
        self.history: list[dict] = []
        self._module = self._encoder = self._remembered = None
        self._clusters: list[np.ndarray] = []  # by first code, [k, d]; k is 0 where nobody has it

    @property
    def config(self) -> dict:
        preprocess = {"preprocess": self.preprocess.mode, "preprocess_dim": self.preprocess.dim}
        return {"codebook_sizes": list(self.codebook_sizes), **self._layers, **preprocess, **self._loop}

    def fit(self, features: np.ndarray, seed: int = 0, items: pa.Table | None = None, train=None) -> Self:
        """See `ItemTokenizer.fit`; raises `ValueError` also where a cluster has more items than the last level has
        numbers."""
        import torch

        from llmrec.item_tokenizers.with_behaviour import mbgen_training

        require(self, items=items)
        features = check_features(features)
        self.dim = features.shape[1]
        rows = self.preprocess.fit(features)(features)
        rows = rows[unique_rows(rows)]
        if len(rows) < self.codebook_sizes[0]:
            raise ValueError(
                f"{len(rows)} distinct items cannot fill {self.codebook_sizes[0]} codes: lower codebook_sizes[0]"
            )
        device = self.device
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            module = self._new_module(rows.shape[1])
        self.history = mbgen_training.train(module, rows, **self._loop, device=device, seed=seed)
        self._adopt(module)
        z = self._latent(features)
        first = nearest(z, self._book)
        residual = z - self._book[first]
        self._clusters = [self._kmeans(residual[first == code], seed + code) for code in range(self.codebook_sizes[0])]
        pairs = self._pairs(z)
        self._remember(remember_items(items, np.column_stack([pairs, self._numbers(pairs, items, seed)])))
        return self

    def _kmeans(self, rows: np.ndarray, seed: int) -> np.ndarray:
        import faiss

        rows = rows[unique_rows(rows)]
        size = min(self.codebook_sizes[1], len(rows))
        if size < 2:
            return rows[:1]
        kmeans = faiss.Kmeans(rows.shape[1], size, niter=25, seed=seed, min_points_per_centroid=1)
        kmeans.train(rows)
        return kmeans.centroids.copy()

    def _pairs(self, z: np.ndarray) -> np.ndarray:
        """int32 `[N, 2]`: the nearest first code that has clusters, and the nearest cluster there."""
        used = np.flatnonzero([len(clusters) for clusters in self._clusters])
        first = used[nearest(z, self._book[used])]
        residual = z - self._book[first]
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

    def encode(self, features: np.ndarray, items: pa.Table | None = None) -> np.ndarray:
        if self._remembered is None:
            raise not_fitted()
        require(self, items=items)
        features = check_features(features, self.dim)
        rows = id_rows(items)
        codes, known = self._remembered.recall(rows)
        if not known.all():
            codes[~known, :2] = self._pairs(self._latent(features[~known]))
        for row in np.flatnonzero(~known):
            taken = self._taken[tuple(codes[row, :2].tolist())]
            free = [number for number in range(self.codebook_sizes[2]) if number not in taken]
            free = free or range(self.codebook_sizes[2])
            codes[row, 2] = free[int.from_bytes(rows[row].tobytes(), "little") % len(free)]
        return codes

    def last_level_costs(self, features: np.ndarray, codes: np.ndarray) -> np.ndarray:
        raise ValueError("item tokenizer 'mbgen' has a random last level, so no distances there")

    def _latent(self, features: np.ndarray) -> np.ndarray:
        """float32 `[N, latent_dim]`; computed in float64, so that it does not depend on the rows beside it."""
        import torch

        z = np.empty((len(features), self._layers["latent_dim"]), np.float32)
        with torch.no_grad():
            for block in blocks(len(features)):
                rows = torch.from_numpy(self.preprocess(features[block]))
                z[block] = self._encoder(rows.double()).numpy()
        return z

    def _new_module(self, dim: int):
        from llmrec.item_tokenizers.with_behaviour.mbgen_training import VQVAEModule

        return VQVAEModule(dim, self._layers["hidden"], self._layers["latent_dim"], self.codebook_sizes[0])

    def _adopt(self, module) -> None:
        self._module = module.eval()
        self._encoder = copy.deepcopy(module.encoder).double()
        self._book = module.codebook.numpy().copy()

    def _remember(self, remembered: Remembered) -> None:
        self._remembered = remembered
        self._taken: dict[tuple, set[int]] = defaultdict(set)
        for first, second, number in remembered.codes.tolist():
            self._taken[first, second].add(number)

    def state(self) -> tuple[dict, dict[str, np.ndarray]]:
        if self._remembered is None:
            raise not_fitted()
        arrays = {f"module.{name}": tensor.numpy() for name, tensor in self._module.state_dict().items()}
        arrays |= {f"preprocess.{name}": array for name, array in self.preprocess.state.items()}
        sizes = np.array(list(map(len, self._clusters)))
        arrays |= {"clusters": np.concatenate(self._clusters), "clusters.sizes": sizes}
        return {"dim": self.dim, "history": self.history}, arrays | self._remembered.arrays()

    def restore(self, values: dict, arrays: dict[str, np.ndarray]) -> None:
        import torch

        self.dim, self.history = values["dim"], values["history"]
        self.preprocess.state = part_of(arrays, "preprocess.")
        module = self._new_module(self.preprocess.dim or self.dim)
        module.load_state_dict({name: torch.from_numpy(a) for name, a in part_of(arrays, "module.").items()})
        self._adopt(module)
        self._clusters = np.split(arrays["clusters"], np.cumsum(arrays["clusters.sizes"])[:-1])
        self._remember(Remembered.of(arrays))

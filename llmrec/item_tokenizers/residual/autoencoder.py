"""What RQ-VAE and MBGen share: an encoder that is trained on distinct items, and saved with its decoder."""

import copy
from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from llmrec.arrays import blocks, unique_rows
from llmrec.files import part_of
from llmrec.item_tokenizers.protocol import ItemTokenizer


def mlp(sizes: list[int]) -> nn.Sequential:
    layers = [layer for inner, outer in zip(sizes, sizes[1:]) for layer in (nn.Linear(inner, outer), nn.ReLU())]
    return nn.Sequential(*layers[:-1])


@torch.no_grad()
def nearest_code(z: torch.Tensor, codebook: torch.Tensor) -> torch.Tensor:
    """int64 `[B]`: the nearest code of every latent `[B, d]`; its own length is the same for all of them."""
    return torch.addmm((codebook**2).sum(1), z, codebook.T, alpha=-2).argmin(1)


def batches_of(count: int, batch_size: int, generator: torch.Generator) -> tuple[torch.Tensor, ...]:
    """An epoch: row numbers in a random order, int64, in the least number of batches of at most `batch_size`. Their
    sizes differ by one at most, so the last one is as good a sample as any."""
    return torch.randperm(count, generator=generator).tensor_split(-(-count // batch_size))


class Autoencoder(ItemTokenizer):
    """Keeps a network that has an `encoder`; subclasses are dataclasses with `device`, `preprocess_dim` and
    `latent_dim`, and make the untrained network for preprocessed features `[N, dim]` in `new_module`."""

    learned = ("history",)
    history: Sequence[dict] = ()

    def new_module(self, dim: int) -> nn.Module:
        raise NotImplementedError

    def adopt(self, module: nn.Module) -> None:
        self._module = module.eval()
        self._encoder = copy.deepcopy(module.encoder).double()

    def _distinct(self, features: np.ndarray, least: int, setting: str) -> tuple[np.ndarray, np.ndarray]:
        """The distinct ones of the preprocessed features, and their rows; `ValueError` where they are fewer."""
        rows = self.preprocessing.fit(features)(features)
        distinct = unique_rows(rows)
        if len(distinct) < least:
            raise ValueError(f"{len(distinct)} distinct items cannot fill {least} codes: lower {setting}")
        return rows[distinct], distinct

    @torch.no_grad()
    def _latent(self, features: np.ndarray) -> np.ndarray:
        """float32 `[N, d]`; computed in float64, so that it does not depend on the rows beside it."""
        parts = (torch.from_numpy(self.preprocessing(features[block])) for block in blocks(len(features)))
        return np.concatenate([self._encoder(part.double()).float().numpy() for part in parts])

    def state(self) -> tuple[dict, dict[str, np.ndarray]]:
        values, arrays = super().state()
        arrays |= {f"module.{name}": tensor.numpy() for name, tensor in self._module.state_dict().items()}
        return values, arrays

    def restore(self, values: dict, arrays: dict[str, np.ndarray]) -> None:
        super().restore(values, arrays)
        module = self.new_module(self.preprocess_dim or self.dim)
        module.load_state_dict({name: torch.from_numpy(a) for name, a in part_of(arrays, "module.").items()})
        self.adopt(module)

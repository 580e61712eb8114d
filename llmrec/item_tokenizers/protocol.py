"""`ItemTokenizer`: what turns item features into codes. Everything after it sees only codes.

The flags say what a tokenizer can do, so that decoders refuse the impossible instead of failing late.
"""

from pathlib import Path
from typing import Protocol, Self

import numpy as np

from llmrec.files import atomic_path, read_json, write_json


class ItemTokenizer(Protocol):
    """Features of items to codes.

    Attributes:
        name (`str`): its key in `TOKENIZERS`, recorded in `config.json`.
        ordered (`bool`): the levels have an order (coarse to fine), so a prefix means something.
        fixed_length (`bool`): every item gets a code at every level.
        contextual (`bool`): the codes of an item depend on the user's history.
        adds_tokens (`bool`): codes are new tokens of the LLM (not words it knows).
        decodes_to_vector (`bool`): `codebooks` holds a vector for every code.
        config (`dict`): the constructor's arguments, plain JSON.
        codebook_sizes (`tuple[int, ...]`, length L): codes per level.
        codebooks (list of L `np.ndarray`, float32, `[K_l, d]`): the vector of every code; empty before `fit` and
            where `decodes_to_vector` is false. They initialise the LLM's new embeddings.
    """

    name: str
    ordered: bool
    fixed_length: bool
    contextual: bool
    adds_tokens: bool
    decodes_to_vector: bool
    config: dict
    codebook_sizes: tuple[int, ...]
    codebooks: list[np.ndarray]

    def fit(self, features: np.ndarray, seed: int = 0) -> Self:
        """Learns the codebooks from float32 `[N, D]`; equal input and seed give equal codebooks.

        Raises:
            ValueError: NaN or inf (names the row), or fewer distinct items than codes in a level.
        """
        ...

    def encode(self, features: np.ndarray) -> np.ndarray:
        """float32 `[N, D]` to codes, int32 `[N, L]`, padded with -1 on the right where not `fixed_length`.

        Raises:
            ValueError: not fitted, NaN or inf, or another D than at `fit`.
        """
        ...

    def last_level_costs(self, features: np.ndarray, codes: np.ndarray) -> np.ndarray:
        """float32 `[N, K_L]`: squared distance of each item's last residual (after codes `[:, :-1]`) to every
        code of the last level. Collision policies use it to find the next best code."""
        ...

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes `config.json` and `model.safetensors`; codebooks survive exactly."""
        ...

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> Self:
        """Reads a folder written by `save_pretrained`."""
        ...


def save_state(folder: str | Path, config: dict, arrays: dict[str, np.ndarray]) -> None:
    """Writes a folder of `config.json` and `model.safetensors`, whole or not at all."""
    from safetensors.numpy import save_file

    with atomic_path(folder) as temporary:
        temporary.mkdir()
        write_json(temporary / "config.json", config)
        save_file(
            {name: np.ascontiguousarray(array) for name, array in arrays.items()}, temporary / "model.safetensors"
        )


def part_of(arrays: dict[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    """The arrays whose names begin with `prefix`, without it."""
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}


def load_state(folder: str | Path) -> tuple[dict, dict[str, np.ndarray]]:
    """Reads a folder written by `save_state`; raises `ValueError` naming the file that is missing or damaged."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    folder = Path(folder)
    config = read_json(folder / "config.json")
    try:
        return config, load_file(folder / "model.safetensors")
    except (FileNotFoundError, SafetensorError) as error:
        raise ValueError(f"{folder / 'model.safetensors'} is missing or damaged: {error}") from error

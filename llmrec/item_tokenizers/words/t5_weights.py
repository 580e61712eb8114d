"""The weights of a T5 as arrays for a file: its words stand in its state under several names, and are kept once."""

import numpy as np
import torch
from torch import nn

from llmrec.files import part_of

_AGAIN = ("embed_tokens.weight", "lm_head.weight")  # the words of `shared` again
_PREFIX = "network."


def arrays_of(network: nn.Module) -> dict[str, np.ndarray]:
    """Of a network that is or holds one T5, on the CPU: `network.<name>` to array."""
    state = network.state_dict()
    return {f"{_PREFIX}{name}": value.numpy() for name, value in state.items() if not name.endswith(_AGAIN)}


def load_arrays(network: nn.Module, arrays: dict[str, np.ndarray]) -> None:
    """Puts what `arrays_of` gave back into a network of the same shape; other arrays are not looked at."""
    weights = {name: torch.from_numpy(array) for name, array in part_of(arrays, _PREFIX).items()}
    [words] = [name for name in network.state_dict() if name.endswith("shared.weight")]
    again = [name for name in network.state_dict() if name.endswith(_AGAIN)]
    network.load_state_dict(weights | dict.fromkeys(again, weights[words]))

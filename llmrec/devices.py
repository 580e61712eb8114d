"""Where models run."""

import torch


def best_device(device: str | torch.device | None = None) -> torch.device:
    """The device that is asked for; by default (`None`, `"auto"`) CUDA where there is a GPU, or the CPU."""
    if device in (None, "auto"):
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(device)

"""Where models run."""

import torch


def best_device(device: str | torch.device | None = None) -> torch.device:
    """The device that is asked for; by default the accelerator (CUDA, MPS, ...) where there is one, or the CPU."""
    if device is None:
        device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else "cpu"
    return torch.device(device)

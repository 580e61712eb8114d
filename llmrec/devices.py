"""Where models run."""

import torch


def best_device(device: str | torch.device | None = None) -> torch.device:
    """The device that is asked for; by default the accelerator (CUDA, MPS, ...) where there is one, or the CPU."""
    if device is not None:
        return torch.device(device)
    return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")

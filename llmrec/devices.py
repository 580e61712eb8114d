"""Where models run."""

import torch


def best_device(device: str | torch.device | None = None) -> torch.device:
    """The device that is asked for; by default (`None`, `"auto"`) CUDA where there is a GPU, or the CPU.

    Raises:
        ValueError: a name that PyTorch does not know, or a GPU that it does not find.
    """
    if device in (None, "auto"):
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"device {device!r} is none of PyTorch's: write cpu, cuda or cuda:1") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device {str(device)!r}: PyTorch finds no GPU here; leave it out, or install a CUDA build")
    return device

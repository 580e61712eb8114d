"""Where models run, and in which precision."""

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


def best_dtype(dtype: str | torch.dtype | None, device: torch.device) -> str | torch.dtype:
    """The dtype that is asked for; by default (`None`) that of the weights (`"auto"`), but float32 on a CPU, where a
    search in bfloat16 takes several times as long.

    Raises:
        ValueError: a name that PyTorch does not know.
    """
    if isinstance(dtype, str) and dtype != "auto" and not isinstance(getattr(torch, dtype, None), torch.dtype):
        raise ValueError(f"dtype {dtype!r} is none of PyTorch's: write auto, float32, bfloat16 or float16")
    return dtype or ("float32" if device.type == "cpu" else "auto")

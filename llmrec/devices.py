"""Where models run, and in which precision."""

from collections.abc import Iterable, Iterator

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


def on_actors(kind: type, arguments: tuple, calls: Iterable, actors: int, gpus_per_actor: float) -> Iterator:
    """What `kind(*arguments).make(call)` returns for every call, in any order, from actors on the Ray cluster that
    `ray.init` or RAY_ADDRESS names, spread over its nodes, with room for all of them. Calls are taken as actors become
    free.

    An actor that is lost is started again, and does again what it was at. Checked with ray 2.60. Raises
    `ray.exceptions.RayTaskError` for what failed in one, `ValueError` where Ray is not installed.
    """
    try:
        import ray
        from ray.util import ActorPool
    except ImportError as error:
        raise ValueError("actors need Ray: pip install 'llmrec[ray]', or set actors: 0") from error
    again = {"max_restarts": -1, "max_task_retries": -1}
    actor = ray.remote(num_gpus=gpus_per_actor, scheduling_strategy="SPREAD", **again)(kind)
    pool = ActorPool([actor.remote(*arguments) for _ in range(actors)])
    for call in calls:
        if not pool.has_free():
            yield pool.get_next_unordered()
        pool.submit(lambda free, call: free.make.remote(call), call)
    while pool.has_next():
        yield pool.get_next_unordered()

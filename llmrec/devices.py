"""Where models run, and in which precision."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch

_RESTARTS = 3  # of an actor that is lost, and of the call that it was at


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


def on_actors(
    kind: type, arguments: tuple, calls: Iterable, actors: int, gpus_per_actor: float, name: Callable[[Any], str]
) -> Iterator:
    """What `kind(*arguments).make(call)` returns for every call, in any order, from actors on the Ray cluster that
    `ray.init` or RAY_ADDRESS names, spread over its nodes; each has a CPU and `gpus_per_actor`. Calls are taken as
    actors become free; where others hold what the cluster has, this waits.

    An actor that is lost is started again, three times at most, and does again what it was at. `name(call)` is what
    errors call a call. Checked with ray 2.60.

    Raises:
        ValueError: Ray is not installed, or the cluster has no room for so many actors.
        RuntimeError: actors were lost too often, or could not be made.
        ray.exceptions.RayTaskError: what failed in one.
    """
    try:
        import ray
        from ray.exceptions import RayError, RayTaskError
    except ImportError as error:
        raise ValueError("actors need Ray: pip install 'llmrec[ray]', or set actors: 0") from error
    if not ray.is_initialized():
        ray.init()
    _check_room(actors, gpus_per_actor, [node["Resources"] for node in ray.nodes() if node["Alive"]])
    again = {"max_restarts": _RESTARTS, "max_task_retries": _RESTARTS}
    given = {"num_cpus": 1, "num_gpus": gpus_per_actor, "scheduling_strategy": "SPREAD"}
    actor = ray.remote(**given, **again)(kind)
    free, busy = [actor.remote(*arguments) for _ in range(actors)], {}  # busy: a reference → actor and call

    def first_made():
        (reference,), _ = ray.wait([*busy])
        one, call = busy.pop(reference)
        try:
            made = ray.get(reference)
        except RayTaskError:
            raise
        except RayError as error:
            how = "failed" if getattr(error, "actor_init_failed", False) else f"was lost, and again {_RESTARTS} times"
            raise RuntimeError(
                f"{name(call)}: the actor that should make it {how}; look at the memory of its node, and at what this "
                f"call holds: {error}"
            ) from error
        free.append(one)
        return made

    for call in calls:
        if not free:
            yield first_made()
        one = free.pop()
        busy[one.make.remote(call)] = one, call
    while busy:
        yield first_made()


def _check_room(actors: int, gpus_per_actor: float, nodes: list[dict[str, float]]) -> None:
    """Raises `ValueError` where nodes with these resources have no room for so many actors at once."""
    if actors < 1 or gpus_per_actor < 0 or (gpus_per_actor > 1 and gpus_per_actor % 1):
        raise ValueError(
            f"{actors} actors with {gpus_per_actor:g} GPUs each: give 1 or more, and a part of a GPU or whole ones"
        )
    room = 0
    for node in nodes:
        cpus, gpus = int(node.get("CPU", 0)), int(node.get("GPU", 0))
        if 0 < gpus_per_actor <= 1:
            cpus = min(cpus, gpus * int(1 / gpus_per_actor + 1e-6))
        elif gpus_per_actor:
            cpus = min(cpus, int(gpus // gpus_per_actor))
        room += cpus
    if actors > room:
        held = [sum(node.get(what, 0) for node in nodes) for what in ("CPU", "GPU")]
        raise ValueError(
            f"actors: {actors} with a CPU and {gpus_per_actor:g} GPUs each, but the Ray cluster, {len(nodes)} nodes "
            f"with {held[0]:g} CPUs and {held[1]:g} GPUs, has room for {room}: lower actors or gpus_per_actor, or add "
            "nodes before"
        )

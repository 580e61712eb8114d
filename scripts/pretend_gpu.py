"""A GPU that is none: tensors that say they are on a device and compute on the CPU, so that what a real one
would make slow or impossible is seen without one. `scripts/bench_decoding.py` counts with it, tests walk with it.

    with PretendGPU() as gpu:
        model.to(GPU)                       # everything that stays behind raises MixedDevices where the two meet
        ...
    gpu.syncs, gpu.launches                 # what waited for the device, and kernels

A wait is what PyTorch's own `torch.cuda.set_sync_debug_mode` calls one: a value that Python asks for (`.item()`,
`bool()`, `.tolist()`), a shape that depends on values (`nonzero`, a mask as an index), a copy to the CPU, and a copy
from it that is not `non_blocking`. No gradients; device guards are those of PyTorch's backends in Python (checked with
2.13).
"""

import traceback

import torch
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.backend_registration import _DummyBackendModule, _DummyDeviceGuard

aten = torch.ops.aten
# Without hooks and a name of its own: with them it would be PyTorch's accelerator, and others would choose it.
torch._register_device_module("privateuseone", _DummyBackendModule())
torch._C._acc.register_python_privateuseone_device_guard(_DummyDeviceGuard())
GPU = torch.device("privateuseone", 0)
_COPIES = {aten._to_copy.default, aten.copy_.default}
_WAIT = {aten._local_scalar_dense, aten.nonzero, aten.masked_select, aten._unique2, aten.unique_dim, aten.equal}
_WAIT |= {aten.unique_consecutive, aten.bincount}
_NO_KERNEL = {aten.empty, aten.empty_like, aten.empty_strided, aten.new_empty, aten.lift_fresh, aten.detach}


class MixedDevices(RuntimeError):
    """Tensors of the GPU and of the CPU met in one operation."""


class OnGPU(torch.Tensor):
    """A tensor of the device `GPU` whose values (a tensor) are on the CPU."""

    @staticmethod
    def __new__(cls, values: torch.Tensor):
        layout = {"strides": values.stride(), "storage_offset": values.storage_offset(), "dtype": values.dtype}
        return torch.Tensor._make_wrapper_subclass(cls, values.size(), device=GPU, **layout)

    def __init__(self, values: torch.Tensor):
        self.values = values

    def __repr__(self, **_) -> str:
        return f"OnGPU({self.values})"

    def tolist(self) -> list:
        return self.cpu().tolist()

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        raise RuntimeError(f"{function} outside of PretendGPU")


class _Functions(TorchFunctionMode):
    """What never arrives below as what it is."""

    def __init__(self, gpu: "PretendGPU"):
        super().__init__()
        self.gpu = gpu

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function is F.scaled_dot_product_attention and isinstance(args[0], OnGPU):  # one kernel there
            return self.gpu.compute(function, args, kwargs)
        if function in (torch.tensor, torch.as_tensor) and kwargs.get("device") is not None:
            device = kwargs.pop("device")
            return function(*args, **kwargs).to(device)
        return function(*args, **kwargs)


class PretendGPU(TorchDispatchMode):
    """While open, the device `GPU` exists.

    Attributes:
        syncs (list of `str`): what waited for the device, each with the line of code that asked.
        launches (`int`): kernels that were started there, about: views are none, a fused attention is one.
    """

    def __init__(self):
        super().__init__()
        self.syncs, self.launches, self._functions = [], 0, _Functions(self)

    def __enter__(self):
        self._functions.__enter__()
        return super().__enter__()

    def __exit__(self, *error):
        super().__exit__(*error)
        self._functions.__exit__(*error)

    def compute(self, function, args, kwargs, there: bool = True):
        """Runs a function on the values; its results are on the GPU or, if not `there`, on the CPU."""
        kept = {id(one.values): one for one in tree_leaves((args, kwargs)) if isinstance(one, OnGPU)}
        args, kwargs = tree_map_only(OnGPU, lambda one: one.values, (args, kwargs))
        results = function(*args, **kwargs)
        if not there:
            return results
        self.launches += 1
        return tree_map_only(torch.Tensor, lambda one: kept[id(one)] if id(one) in kept else OnGPU(one), results)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        tensors = [one for one in tree_leaves((args, kwargs)) if isinstance(one, torch.Tensor)]
        ours = [isinstance(one, OnGPU) for one in tensors]
        there = any(ours)
        if kwargs.get("device") is not None:
            there = torch.device(kwargs["device"]).type == GPU.type
            kwargs["device"] = torch.device("cpu")
        if function in _COPIES:
            there = there if function is aten._to_copy.default else ours[0]
            crosses = there != (ours[0] if function is aten._to_copy.default else ours[1])
            free = there and (kwargs.get("non_blocking") or True in args[2:])
            self._wait(function, crosses and not free and tensors[0].numel() > 0)
        elif any(ours) and any(one.dim() for one, on_gpu in zip(tensors, ours) if not on_gpu):
            raise MixedDevices(f"{function}: some of its tensors are on the GPU and some on the CPU")
        else:
            self._wait(function, any(ours) and _waits(function, args, kwargs))
        before = self.launches
        results = self.compute(function, args, kwargs, there)
        if function.is_view or function.overloadpacket in _NO_KERNEL:
            self.launches = before
        return results

    def _wait(self, function, waits: bool) -> None:
        if waits:
            stack = [
                one for one in traceback.extract_stack() if one.filename != __file__ and "/torch/" not in one.filename
            ]
            self.syncs.append(f"{function} at {stack[-1].filename}:{stack[-1].lineno}: {stack[-1].line}")


def _waits(function, args, kwargs) -> bool:
    packet = function.overloadpacket
    if packet in (aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_):
        return any(one is not None and one.dtype in (torch.bool, torch.uint8) for one in args[1])
    if packet is aten.repeat_interleave:
        return kwargs.get("output_size") is None and isinstance(args[-1], torch.Tensor)
    return packet in _WAIT

"""Runs of several processes: whether they hold parts of the weights, the whole model for a search, errors of one."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

from accelerate import Accelerator
from accelerate.utils import gather_object
from peft import PeftModel
from torch import nn
from torch.distributed.fsdp import FSDPModule
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled
from trl.models import unwrap_model_for_generation


def sharded() -> str:
    """`"FSDP"` or `"DeepSpeed ZeRO-3"` where accelerate launched a run whose processes hold parts of the weights."""
    if os.environ.get("ACCELERATE_USE_FSDP", "false") == "true":
        return "FSDP"
    zero = os.environ.get("ACCELERATE_USE_DEEPSPEED", "false") == "true"
    zero3 = zero and os.environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE") == "3"
    return "DeepSpeed ZeRO-3" if zero3 or is_deepspeed_zero3_enabled() else ""  # the latter: by a configuration file


@contextmanager
def sharded_together(model: nn.Module) -> Iterator[None]:
    """While accelerate (1.15) shards a model for FSDP2: embedding and head of an adapter's base stay with the root.
    PEFT's rows of new tokens hide that the two share a weight; accelerate would then put it into two groups, which
    PyTorch refuses."""
    names = ("get_input_embeddings", "get_output_embeddings")
    hidden = sharded() == "FSDP" and isinstance(model, PeftModel) and model.config.tie_word_embeddings
    try:
        for name in names if hidden else ():
            setattr(model, name, lambda: None)
        yield
    finally:
        for name in names if hidden else ():
            delattr(model, name)


@contextmanager
def whole(model: nn.Module, accelerator: Accelerator, gather: bool = True) -> Iterator[nn.Module]:
    """The model (the trainer's `model_wrapped`), unwrapped, with all its weights in every process.

    Searches of the processes run the model a different number of times, so no weight may be gathered while they do;
    each process needs the memory of the whole weights for so long, in the dtype that they compute in. `gather` is
    TRL's `ds3_gather_for_generation`, whose own gathering is used under ZeRO-3.
    """
    parts = {part: _reshards(part) for part in model.modules() if isinstance(part, FSDPModule)}
    with unwrap_model_for_generation(model, accelerator, gather_deepspeed3_params=gather) as unwrapped:
        try:
            for part in parts:
                part.set_reshard_after_forward(False, recurse=False)
                part.unshard()
            yield unwrapped
        finally:
            for part, reshards in parts.items():
                part.set_reshard_after_forward(reshards, recurse=False)
                part.reshard()


@contextmanager
def together() -> Iterator[None]:
    """What fails in one process fails in all, which would wait for that one at their next exchange: it raises what it
    was, the others `ValueError` with the same message."""
    failed = None
    try:
        yield
    except Exception as error:
        failed = error
    said = [text for text in gather_object([failed and (str(failed) or repr(failed))]) if text]
    if failed is not None:
        raise failed
    if said:
        raise ValueError(said[0])


def _reshards(part: FSDPModule) -> bool:
    """What `set_reshard_after_forward` was told, which torch (2.13) has no public name for."""
    group = part._get_fsdp_state()._fsdp_param_group
    return group is not None and group._reshard_after_forward

"""Loads the model that a run trains, quantised or with dropout if asked for."""

import torch
from accelerate import PartialState
from torch import nn
from transformers import PreTrainedModel
from trl import ModelConfig, SFTConfig, get_quantization_config

from llmrec.features.attention import dropout
from llmrec.models.weights import load_model


def load_base(
    base: str, model_args: ModelConfig, training_args: SFTConfig, hidden_dropout: float = 0.0
) -> PreTrainedModel:
    """The base with TRL's settings: dtype, attention, `model_init_kwargs`, and 4 or 8 bits of bitsandbytes.

    A quantised model lies on the device of its process (it cannot be moved later); one that is not is moved by the
    trainer.
    """
    settings = {
        "dtype": model_args.dtype,
        "attn_implementation": model_args.attn_implementation,
        **(training_args.model_init_kwargs or {}),
    }
    if (quantisation := get_quantization_config(model_args)) is not None:
        settings |= {"quantization_config": quantisation, "device_map": {"": PartialState().device}}
    model = load_model(base, **settings)
    if (name := not_finite(model)) is not None:
        raise ValueError(f"{base}: {name} holds NaN or inf, so nothing can be learned from it: use another checkpoint")
    training_args.model_init_kwargs = None  # used; TRL would say that it ignores them
    if hidden_dropout:
        add_dropout(model, hidden_dropout)
    return model


def not_finite(model: nn.Module) -> str | None:
    """The name of a weight that holds NaN or inf (of a sharded one, in the part that is here); `None` without any."""
    weights = {name: one for name, one in model.named_parameters() if one.is_floating_point() and one.numel()}
    local = {name: getattr(one.detach(), "_local_tensor", one.detach()) for name, one in weights.items()}
    if not local:
        return None
    finite = torch.stack([one.isfinite().all().cpu() for one in local.values()])
    return None if finite.all() else list(local)[int(finite.int().argmin())]


def add_dropout(model: nn.Module, probability: float) -> None:
    """Drops out embeddings and both residual branches of every layer while training, as GPT-2 and SASRec do: small
    models from scratch need it, and modern configs no longer have it. Hooks do it, so a reloaded folder has none.
    Raises `ValueError`: the model has no projections named `o_proj` and `down_proj` (Llama, Qwen and their relatives
    do)."""

    def drop(module, inputs, output):
        return dropout(output, probability) if module.training else output

    branches = [m for name, m in model.named_modules() if name.rpartition(".")[2] in ("o_proj", "down_proj")]
    if not branches:
        raise ValueError(
            "hidden_dropout needs layers named o_proj and down_proj; set hidden_dropout: 0 for this model"
        )
    for module in [model.get_input_embeddings(), *branches]:
        module.register_forward_hook(drop)


def without_dropout(model: nn.Module) -> None:
    """Switches off the dropout inside attention, a number of its own that TRL's `disable_dropout` does not find."""
    for module in model.modules():
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.0


def reload_base(base: str, model_args: ModelConfig) -> PreTrainedModel:
    """The base as it is to be merged into: in full precision (`dtype`), never quantised."""
    return load_model(base, dtype=model_args.dtype)

"""Regularisation that small from-scratch models need and modern LLM configs no longer have."""

from torch import nn


def add_dropout(model: nn.Module, probability: float) -> None:
    """Drops out embeddings and both residual branches of every layer while training, as GPT-2 and SASRec do.

    Hooks do it, so the model's class, config and weights stay those of transformers; a reloaded folder has none.

    Raises:
        ValueError: the model has no projections named `o_proj` and `down_proj` (Llama, Qwen and their relatives do).
    """

    def drop(module, inputs, output):
        return nn.functional.dropout(output, probability, module.training)

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

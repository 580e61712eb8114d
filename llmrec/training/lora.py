"""Adapters: LoRA whose new token rows learn too, those rows alone, and the merge into one plain model."""

import shutil
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.constants import DUMMY_TARGET_MODULES
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer
from trl import ModelConfig, get_peft_config

from llmrec.catalogue.semids import SemIDIndex
from llmrec.models.vocabulary import behaviour_token_ids, semid_token_ids
from llmrec.training.sharding import sharded


def lora_config(
    model_args: ModelConfig,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    index: SemIDIndex,
    train: str = "all",
) -> LoraConfig | None:
    """TRL's LoRA configuration, extended so that exactly the rows of the new tokens are trained besides.

    Both matrices are named, so that an untied output head learns them as well (PEFT keeps tied ones tied).

    `train="new_tokens"` gives an adapter of these rows alone, the vocabulary warm-up. PEFT holds them as a parameter
    of their own, so neither the optimizer nor weight decay reaches any other row, and no gradient hook is needed,
    which sharding (FSDP2, ZeRO) would lose. `None` without an adapter. Raises `ValueError`: `"new_tokens"` for
    Semantic IDs in words that the model knows.
    """
    levels = [*semid_token_ids(tokenizer, index), behaviour_token_ids(tokenizer, index)]
    ids = sorted({int(token) for level in levels for token in level})
    if train == "new_tokens":
        if not ids:
            raise ValueError(
                "train: new_tokens, but these Semantic IDs are words that the model knows and add no token: "
                "leave this stage out"
            )
        config = LoraConfig(task_type="CAUSAL_LM", target_modules=DUMMY_TARGET_MODULES)
    else:
        config = get_peft_config(model_args)
    if config is None or not ids:
        return config
    names = {module: name.rpartition(".")[2] for name, module in model.named_modules()}
    embeddings = [names[model.get_input_embeddings()], names[model.get_output_embeddings()]]
    config.trainable_token_indices = dict.fromkeys(embeddings, ids)
    return config


def is_quantised(model: PreTrainedModel | PeftModel) -> bool:
    """Whether bitsandbytes holds the weights in 4 or 8 bits."""
    return bool(getattr(model, "is_loaded_in_4bit", False) or getattr(model, "is_loaded_in_8bit", False))


def merged(model: PreTrainedModel | PeftModel) -> PreTrainedModel:
    """The model with its adapter folded in; a model without one as it is."""
    return model.merge_and_unload() if isinstance(model, PeftModel) else model


@torch.no_grad()
def merged_weights(model: PreTrainedModel | PeftModel) -> Iterator[tuple[str, torch.Tensor]]:
    """The weights of `merged(model)` by name, tied ones under each of their names, while the model stays as it is.

    A module with an adapter (LoRA, rows of new tokens) is copied and merged by PEFT when its turn comes: adding an
    adapter and taking it away again, as TRL does, would leave rounding errors in the model that learns. Other weights
    are the model's own memory. Raises `ValueError`: an adapter unties what the model ties.
    """
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    ends = (base.get_input_embeddings(), base.get_output_embeddings()) if base.config.tie_word_embeddings else ()
    inside, tied = "\0", None
    for path, module in base.named_modules(remove_duplicate=False):
        if path.startswith(inside):
            continue
        if isinstance(module, BaseTunerLayer | AuxiliaryTrainingWrapper):
            inside = f"{path}."
        plain = _merged_copy(module)
        for name, weight in plain.named_parameters(recurse=plain is not module):
            if module in ends:
                tied = weight if tied is None else tied
                if not torch.equal(tied, weight):
                    raise ValueError(
                        f"{path}: its adapter unties the head from the embedding: leave both out of "
                        "lora_target_modules, or out of use_vllm"
                    )
            yield f"{path}.{name}", weight.detach()


def _merged_copy(module: nn.Module) -> nn.Module:
    """What PEFT's `merge_and_unload` puts in the place of a module; one without an adapter is itself."""
    if isinstance(module, AuxiliaryTrainingWrapper):
        return deepcopy(module).unload_and_optionally_merge_module(merge=True, safe_merge=False, adapter_names=None)
    if isinstance(module, BaseTunerLayer):
        (copied := deepcopy(module)).merge()
        return copied.get_base_layer()
    return module


def save_final_model(trainer: Trainer, reload: Callable[[], PreTrainedModel]) -> dict[str, float]:
    """Evaluates what was trained and writes one plain model to the run's output folder, without an adapter.

    Where the model cannot be merged in place (quantised, sharded, or wrapped by DeepSpeed, which writes the names of
    what it wrapped), its adapter is saved, and merged onto the base as it is on disk. What is measured then is the
    merged model. `reload` loads the base model in full precision. Returns
    the metrics of `trainer.evaluate()`, or those of the ranking alone.
    """
    model = trainer.model
    if isinstance(model, PeftModel) and (is_quantised(model) or sharded() or trainer.is_deepspeed_enabled):
        metrics = _merge_from_disk(trainer, reload)
    else:
        metrics = trainer.evaluate()
        trainer.model = merged(model)
        trainer.save_model(_internal_call=True)
    if trainer.is_world_process_zero():
        # An adapter beside it, of an earlier run, would be applied to the merged model by transformers.
        for file in Path(trainer.args.output_dir).glob("adapter_*"):
            file.unlink()
    return metrics


def _merge_from_disk(trainer: Trainer, reload: Callable[[], PreTrainedModel]) -> dict[str, float]:
    output_dir = Path(trainer.args.output_dir)
    adapter = output_dir / "adapter"
    trainer.save_model(str(adapter), _internal_call=True)
    trainer.accelerator.wait_for_everyone()
    metrics = {}
    if trainer.is_world_process_zero() or trainer.sample is not None:
        device = torch.device("cpu") if trainer.sample is None else trainer.args.device
        trainer.model = trainer.model_wrapped = merged(PeftModel.from_pretrained(reload(), adapter)).to(device)
    if trainer.sample is not None:
        metrics = trainer.rank()
    trainer.accelerator.wait_for_everyone()
    if trainer.is_world_process_zero():
        trainer.model.save_pretrained(output_dir)
        trainer.processing_class.save_pretrained(output_dir)
        if trainer.write_sidecars is not None:
            trainer.write_sidecars(str(output_dir))
        shutil.rmtree(adapter)
    return metrics

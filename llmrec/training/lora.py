"""LoRA whose new token rows learn too, and its merge into one plain folder."""

from peft import LoraConfig, PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from trl import ModelConfig, get_peft_config

from llmrec.semids import SemIDIndex
from llmrec.vocabulary import behaviour_token_ids, semid_token_ids


def lora_config(
    model_args: ModelConfig, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, index: SemIDIndex
) -> LoraConfig | None:
    """TRL's LoRA configuration, extended so that exactly the rows of the new tokens are trained besides.

    Both matrices are named, so that an untied output head learns them as well (PEFT keeps tied ones tied).

    Returns:
        `None` without `use_peft`.
    """
    config = get_peft_config(model_args)
    if config is None:
        return None
    levels = [*semid_token_ids(tokenizer, index), behaviour_token_ids(tokenizer, index)]
    ids = sorted({int(token) for level in levels for token in level})
    if not ids:  # Semantic IDs in words that the model knows
        return config
    names = {module: name.rpartition(".")[2] for name, module in model.named_modules()}
    embeddings = [names[model.get_input_embeddings()], names[model.get_output_embeddings()]]
    config.trainable_token_indices = dict.fromkeys(embeddings, ids)
    return config


def merged(model: PreTrainedModel | PeftModel) -> PreTrainedModel:
    """The model with its adapter folded in; a model without one as it is."""
    return model.merge_and_unload() if isinstance(model, PeftModel) else model

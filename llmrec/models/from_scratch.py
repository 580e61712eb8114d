"""A small language model made on the spot: a BPE tokenizer trained on the catalogue and a model from a config.

It stands in for a pretrained LLM where none can be had (the quickstart, tests, comparisons of item tokenizers).
Everything after it treats the result like any model of the Hub.
"""

from collections.abc import Iterable

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from llmrec.arguments import did_you_mean
from llmrec.instructions.prompts import load_prompt, prompts_folder

_CHAT_TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}"
    "{% if m['role'] == 'assistant' %}<|end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def train_tokenizer(texts: Iterable[str], vocab_size: int = 2000) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer with a minimal chat template, trained on `texts` and the shipped prompts' words.

    `vocab_size` is an upper bound; 256 bytes and 5 control tokens are always there.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    control = ["<|pad|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=control,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    # Every training row holds a prompt, so its words should be whole tokens. Only the first wordings count often: all
    # of them would take the vocabulary away from the titles.
    prompts = [load_prompt(path) for path in sorted(prompts_folder().glob("*.yaml"))]
    first = [turn for prompt in prompts for turn in prompt.templates[0].turns]
    rest = [turn for prompt in prompts for template in prompt.templates[1:] for turn in template.turns]
    tokenizer.train_from_iterator([*texts, *first * 100, *rest], trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<|pad|>", eos_token="<|end|>")
    fast.chat_template = _CHAT_TEMPLATE
    return fast


def model_from_config(config: dict, tokenizer: PreTrainedTokenizerFast, seed: int = 0) -> PreTrainedModel:
    """A randomly initialised causal LM, e.g. from `{"model_type": "qwen3", "hidden_size": 192, ...}`; `ValueError`
    without `model_type`, or for a field that transformers does not accept."""
    if "model_type" not in config:
        raise ValueError("model_config has no model_type: write e.g. model_type: qwen3")
    if config["model_type"] not in CONFIG_MAPPING:
        near = did_you_mean(config["model_type"], CONFIG_MAPPING.keys())
        raise ValueError(f"model_config: transformers has no model_type {config['model_type']!r}{near}")
    fields = {key: value for key, value in config.items() if key != "model_type"}
    known = AutoConfig.for_model(config["model_type"])
    unknown = sorted(key for key in fields if not hasattr(known, key))
    if unknown:
        raise ValueError(f"model_config: {config['model_type']} has no field {', '.join(unknown)}")
    built = AutoConfig.for_model(
        config["model_type"],
        **fields,
        vocab_size=len(tokenizer),
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
    torch.manual_seed(seed)
    return AutoModelForCausalLM.from_config(built)

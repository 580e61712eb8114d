"""Short real runs of `SemIDSFTTrainer` on the tiny catalogue, for the tests of this folder."""

from pathlib import Path

from tiny import tiny_data, tiny_index, write_tiny_base
from transformers import AutoTokenizer
from trl import ModelConfig, SFTConfig

from llmrec.instructions import (
    Catalogue,
    Renderer,
    TaskMix,
    build_dataset,
    encode_rows,
    load_prompt,
    target_rows,
)
from llmrec.training import SemIDSFTTrainer, lora_config, packed
from llmrec.training.loading import load_base

DATA = tiny_data()
INDEX = tiny_index(DATA)


def base_folder(folder: Path, tied: bool = True, **config) -> Path:
    return write_tiny_base(folder, DATA, INDEX, tie_word_embeddings=tied, **config)


def settings(folder: Path, **changes) -> SFTConfig:
    fields = {
        "output_dir": str(folder),
        "max_length": 128,
        "max_steps": 3,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-2,
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "report_to": "none",
        "logging_steps": 1,
        "disable_tqdm": True,
        "save_strategy": "no",
    }
    return SFTConfig(**{**fields, **changes})


def evaluation_rows(tokenizer, count: int = 6):
    renderer = Renderer(tokenizer, Catalogue(INDEX, DATA.items))
    return encode_rows(target_rows(DATA.valid.slice(0, count), 20), load_prompt("stream"), renderer, 128)


def rows(tokenizer, weigh=None, prompt: str = "stream"):
    """The training rows of one task."""
    renderer = Renderer(tokenizer, Catalogue(INDEX, DATA.items))
    return build_dataset(DATA, [TaskMix(load_prompt(prompt))], renderer, 20, 128, 0, weigh)


def make_trainer(
    base: Path,
    arguments: SFTConfig,
    model_args: ModelConfig | None = None,
    train: str = "all",
    weigh=None,
    prompt: str = "stream",
    **more,
) -> SemIDSFTTrainer:
    """What recipes/sft.py builds, without its validation sample."""
    model_args = model_args or ModelConfig(model_name_or_path=str(base))
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = load_base(str(base), model_args, arguments)
    train_rows = rows(tokenizer, weigh, prompt)
    return SemIDSFTTrainer(
        model,
        arguments,
        train_dataset=packed(train_rows, arguments.max_length) if arguments.packing else train_rows,
        eval_dataset=evaluation_rows(tokenizer),
        processing_class=tokenizer,
        peft_config=lora_config(model_args, model, tokenizer, INDEX, train),
        **more,
    )

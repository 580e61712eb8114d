"""Supervised fine-tuning of a language model on a catalogue's Semantic IDs, with TRL.

    accelerate launch recipes/sft.py --config recipes/configs/quickstart/sft.yaml
    accelerate launch --config_file recipes/accelerate/cpu2.yaml recipes/sft.py --config ... --learning_rate 1e-3

Every field of TRL's `SFTConfig` works in the YAML and on the command line, as do dtype, attention, LoRA and QLoRA of
its `ModelConfig`; stages and weighted losses are fields of `llmrec.training.StageArguments` (docs/training.md). The
output folder is a recommender: `LLMRecommender.from_pretrained(output_dir)`. Killed? The same command goes on.
"""

import logging
from dataclasses import dataclass, field
from pathlib import Path

from accelerate import PartialState
from transformers import AutoTokenizer, set_seed
from trl import ModelConfig, SFTConfig, TrlParser

import llmrec.training as training
from llmrec.data import PreparedData
from llmrec.instructions import Texts, build_dataset, encode_rows, load_prompt, parse_mixture, target_rows
from llmrec.models.folder import ITEM_TOKENIZER, RecommenderConfig, load_parts, write_sidecars
from llmrec.recommenders import LLMRecommender
from llmrec.training import SemIDSFTTrainer, StageArguments, ValidationSample


@dataclass
class DataArguments:
    data_dir: str = field(metadata={"help": "Prepared data (recipes/prepare_data.py)."})
    tasks: list[str] = field(default_factory=lambda: ["stream"], metadata={"help": "The mixture (docs/tasks.md)."})
    texts: str | None = field(default=None, metadata={"help": "Texts to quote (recipes/generate_rationales.py)."})
    recommend_prompt: str = field(default="stream", metadata={"help": "The prompt that asks for the next item."})
    fuse: list[str] = field(default_factory=list, metadata={"help": "Views (Semantic IDs) to search and fuse."})
    behaviour: str = field(default="", metadata={"help": "The kind of interaction to recommend; its last by default."})
    max_history: int = field(default=20, metadata={"help": "Items of a history that a prompt shows."})
    num_beams: int = field(default=50, metadata={"help": "Width of the search, in evaluation and later."})
    normalize: str = field(default="vocabulary", metadata={"help": "Scores over the vocabulary or the catalogue."})
    validation_rows: int = field(default=500, metadata={"help": "Sample for recall and ndcg while training."})
    overwrite: bool = field(default=False, metadata={"help": "Replace a run with other settings."})


def main(args: DataArguments, stage: StageArguments, training_args: SFTConfig, model_args: ModelConfig) -> None:
    training.check_stage(stage, training_args, model_args)
    base, output_dir, state = model_args.model_name_or_path, training_args.output_dir, PartialState()
    data, base_config = PreparedData.load(args.data_dir), RecommenderConfig.load(base)
    base_config.check_catalogue(data.items, base)
    index, items, contextual = load_parts(base, base_config)
    if args.behaviour:
        index.behaviour_token(args.behaviour)
    prompt = load_prompt(args.recommend_prompt)
    texts = Texts.load(args.texts).without_repeats(data.train) if args.texts else None
    shown = {name: getattr(args, name) for name in ("max_history", "num_beams", "normalize", "fuse", "behaviour")}
    config = RecommenderConfig.of(data, index, prompt=prompt.to_dict(), **shown)
    mixture, limit = parse_mixture(args.tasks, prompt, index, args.fuse), training_args.max_length
    inputs = training.run_inputs(base, data, index, [prompt, *(mix.prompt for mix in mixture)], texts)
    arguments = (args, stage, training_args, model_args)
    found, checkpoint = training.begin_run(output_dir, *arguments, inputs=inputs, overwrite=args.overwrite)
    if found == "done":
        state.print(f"Reusing the model in {output_dir} (same settings, same data).")
        return
    state.print(f"Resuming from {checkpoint}." if checkpoint else f"Training {base}.")

    logging.getLogger("llmrec").setLevel(logging.INFO if state.is_main_process else logging.WARNING)
    set_seed(training_args.seed)
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = training.load_model(base, model_args, training_args, stage.hidden_dropout)
    recommender = LLMRecommender(model, tokenizer, index, items, config, sequence_tokenizer=contextual, texts=texts)
    weigh = training.loss_weights(stage, tokenizer, index, data.items)
    train = build_dataset(data, mixture, recommender.renderer, args.max_history, limit, training_args.seed, weigh)
    train = training.packed(train, limit) if training_args.packing else train
    sample = ValidationSample(recommender, data.valid, args.validation_rows, train=data.train)
    trainer = SemIDSFTTrainer(
        model,
        training_args,
        train_dataset=train,
        eval_dataset=encode_rows(target_rows(sample.rows, args.max_history), prompt, recommender.renderer, limit),
        processing_class=tokenizer,
        peft_config=training.lora_config(model_args, model, tokenizer, index, stage.train),
        callbacks=training.callbacks(stage, training_args),
        sample=sample,
        write_sidecars=lambda folder: write_sidecars(folder, config, index, items, Path(base) / ITEM_TOKENIZER),
    )
    state.print(f"{len(train):,} rows; checkpoints and the model go to {output_dir}")
    result = trainer.train(resume_from_checkpoint=checkpoint)
    results = {"train_loss": result.training_loss, "seconds": result.metrics["train_runtime"]}
    metrics = training.finish_run(trainer, config, index, args, model_args, **results)
    state.print(f"Validation: {metrics}\nWrote {output_dir}. Next: recipes/evaluate.py or recipes/recommend.py")


if __name__ == "__main__":
    logging.basicConfig(format="%(message)s")
    main(*TrlParser((DataArguments, StageArguments, SFTConfig, ModelConfig)).parse_args_and_config())

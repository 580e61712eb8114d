"""Supervised fine-tuning of a language model on a catalogue's Semantic IDs, with TRL.

    accelerate launch recipes/sft.py --config recipes/configs/quickstart/sft.yaml
    accelerate launch --config_file recipes/accelerate/cpu2.yaml recipes/sft.py --config ... --learning_rate 1e-3

Every field of TRL's `SFTConfig` works in the YAML and on the command line, as do dtype, attention, LoRA and QLoRA of
its `ModelConfig`; stages and weighted losses are fields of `llmrec.training.SFTArguments` (docs/training.md). Unless
set, learning_rate and hidden_dropout follow from the model, bf16 and use_cpu from the machine. The output folder is a
recommender: `LLMRecommender.from_pretrained(output_dir)`. Killed? The same command goes on.
"""

from dataclasses import dataclass, field

from trl import ModelConfig, SFTConfig

import llmrec.training as training
from llmrec.arguments import at_least
from llmrec.commands import run_script
from llmrec.instructions import Texts, build_dataset, encode_rows, load_prompt, parse_mixture, target_rows
from llmrec.models.folder import RecommenderConfig


@dataclass
class DataArguments:
    data_dir: str = field(metadata={"help": "Prepared data (recipes/prepare_data.py)."})
    tasks: list[str] = field(default_factory=lambda: ["stream"], metadata={"help": "The mixture (docs/tasks.md)."})
    texts: str | None = field(default=None, metadata={"help": "Texts to quote (recipes/generate_rationales.py)."})
    recommend_prompt: str = field(default="stream", metadata={"help": "The prompt that asks for the next item."})
    fuse: list[str] = field(default_factory=list, metadata={"help": "Views (Semantic IDs) to search and fuse."})
    variations: int | None = field(default=None, metadata={"help": "Ways of a history (docs/several_semids.md)."})
    behaviour: str = field(default="", metadata={"help": "The kind of interaction to recommend; its last by default."})
    max_history: int = field(default=20, metadata={"help": "Items of a history that a prompt shows."})
    num_beams: int = field(default=50, metadata={"help": "Width of the search, in evaluation and later."})
    normalize: str = field(default="", metadata={"help": "Scores over the vocabulary or the catalogue; as log_probs."})
    validation_rows: int = field(default=500, metadata={"help": "Sample for recall and ndcg while training."})
    exclude_seen: str = field(
        default="auto", metadata={"help": "Validate without items of the history: auto, true, false."}
    )
    overwrite: bool = field(default=False, metadata={"help": "Replace a run with other settings."})


def main(args: DataArguments, sft: training.SFTArguments, training_args: SFTConfig, model_args: ModelConfig) -> None:
    at_least(args, max_history=1, num_beams=1, validation_rows=1)
    training.check_sft(sft, training_args, model_args, args.normalize)
    run = training.TrainingRun(args, training_args, model_args)
    data, index, limit = run.data, run.index, training_args.max_length
    if args.behaviour:
        index.behaviour_token(args.behaviour)
    prompt = load_prompt(args.recommend_prompt)
    texts = Texts.load(args.texts).without_repeats(data.train) if args.texts else None
    names = ("max_history", "num_beams", "fuse", "variations", "behaviour")
    shown = {name: getattr(args, name) for name in names} | {"bos": run.config.bos}
    shown["normalize"] = args.normalize or sft.log_probs  # what is trained is what ranks
    run.config = RecommenderConfig.of(data, index, prompt=prompt.to_dict(), **shown)
    mixture, teacher = parse_mixture(args.tasks, prompt, index, args.fuse), training.teacher_of(sft, data, index)
    if not run.begin([prompt, *(mix.prompt for mix in mixture)], texts, more_args=(sft,)):
        return

    recommender = run.load_recommender(texts, sft.hidden_dropout)
    model, tokenizer, renderer = recommender.model, recommender.tokenizer, recommender.renderer
    weigh = training.loss_weights(sft, tokenizer, index, data.items)
    train = build_dataset(data, mixture, renderer, args.max_history, limit, training_args.seed, weigh)
    train = training.packed(train, limit) if training_args.packing else train
    soft = teacher and training.soft_targets(
        teacher, sft.soft_targets_weight, data, index, recommender.trie, args.max_history
    )
    sample = training.ValidationSample.of(recommender, data, args.validation_rows, args.exclude_seen)
    adapter = training.lora_config(model_args, model, tokenizer, index, sft.train)
    trainer = training.SemIDSFTTrainer(
        model,
        training_args,
        train_dataset=train,
        eval_dataset=encode_rows(target_rows(sample.rows, args.max_history), prompt, renderer, limit),
        processing_class=tokenizer,
        peft_config=adapter,
        distillation=training.distillation(sft, mixture, model, tokenizer, index, run.base, adapter is not None),
        catalogue_loss=training.catalogue_loss(sft, model, recommender.trie, soft),
        callbacks=training.callbacks(sft, training_args),
        sample=sample,
        write_sidecars=run.write_sidecars,
    )
    result = run.train(trainer)
    run.finish(trainer, train_loss=result.training_loss, seconds=result.metrics["train_runtime"])


if __name__ == "__main__":
    run_script(main, DataArguments, training.SFTArguments, SFTConfig, ModelConfig, defaults=training.sft_defaults)

"""Direct preference optimisation of a recommender (DPO, S-DPO) with sampled negatives, with TRL.

    accelerate launch recipes/dpo.py --config recipes/configs/quickstart/dpo.yaml
    accelerate launch --config_file recipes/accelerate/cpu2.yaml recipes/dpo.py --config ... --negatives beam

`model_name_or_path` is a folder of recipes/sft.py, and so is the output. Each target of the training split stands
beside `num_negatives` wrong items; with one it is DPO, with more S-DPO (arXiv 2406.09215). Every field of TRL's
`DPOConfig` that means something for items works in the YAML and on the command line. Killed? The same command goes on.
"""

import logging
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from accelerate import PartialState
from transformers import AutoTokenizer, set_seed
from trl import DPOConfig, ModelConfig, TrlParser

import llmrec.training as training
from llmrec.data import PreparedData
from llmrec.instructions import Prompt
from llmrec.models.folder import ITEM_TOKENIZER, RecommenderConfig, load_parts, write_sidecars
from llmrec.recommenders import LLMRecommender
from llmrec.rl import prompt_rows
from llmrec.rl.dpo import SemIDDPOTrainer, check_dpo, preference_rows, sample_rows
from llmrec.training import ValidationSample


@dataclass
class DataArguments:
    data_dir: str = field(metadata={"help": "Prepared data (recipes/prepare_data.py)."})
    num_negatives: int = field(default=3, metadata={"help": "Wrong items beside each target; 1 is DPO."})
    negatives: str = field(default="random", metadata={"help": "random, popularity, or beam: the model's best wrong."})
    log_probs: str = field(default="catalogue", metadata={"help": "Trained and searched: catalogue or vocabulary."})
    validation_rows: int = field(default=500, metadata={"help": "Sample for recall and ndcg while training."})
    overwrite: bool = field(default=False, metadata={"help": "Replace a run with other settings."})


def main(args: DataArguments, dpo_args: DPOConfig, model_args: ModelConfig) -> None:
    base, output_dir, state = model_args.model_name_or_path, dpo_args.output_dir, PartialState()
    data, config = PreparedData.load(args.data_dir), RecommenderConfig.load(base)
    config.check_catalogue(data.items, base)
    index, items, contextual = load_parts(base, config)
    config = replace(config, normalize=args.log_probs)  # what was trained is what ranks
    check_dpo(dpo_args, args.num_negatives, args.negatives, args.log_probs, index)
    inputs = training.run_inputs(base, data, index, [Prompt.from_dict(config.prompt)])
    arguments = (args, dpo_args, model_args)
    found, checkpoint = training.begin_run(output_dir, *arguments, inputs=inputs, overwrite=args.overwrite)
    if found == "done":
        state.print(f"Reusing the model in {output_dir} (same settings, same data).")
        return
    state.print(f"Resuming from {checkpoint}." if checkpoint else f"Training {base}.")

    logging.getLogger("llmrec").setLevel(logging.INFO if state.is_main_process else logging.WARNING)
    set_seed(dpo_args.seed)
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = training.load_model(base, model_args, dpo_args)
    recommender = LLMRecommender(model, tokenizer, index, items, config, sequence_tokenizer=contextual)
    sample = ValidationSample(recommender, data.valid, args.validation_rows, train=data.train)
    choice = {"num_negatives": args.num_negatives, "negatives": args.negatives, "seed": dpo_args.seed}
    prefer = partial(preference_rows, recommender=recommender, train=data.train, **choice)
    train = prefer(prompt_rows(data, recommender))
    trainer = SemIDDPOTrainer(
        model,
        dpo_args,
        trie=recommender.trie if args.log_probs == "catalogue" else None,
        train_dataset=train,
        eval_dataset=prefer(sample_rows(sample)),
        processing_class=tokenizer,
        peft_config=training.lora_config(model_args, model, tokenizer, index),
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
    main(*TrlParser((DataArguments, DPOConfig, ModelConfig)).parse_args_and_config())

"""Direct preference optimisation of a recommender (DPO, S-DPO) with sampled negatives, with TRL.

    accelerate launch recipes/dpo.py --config recipes/configs/quickstart/dpo.yaml
    accelerate launch --config_file recipes/accelerate/cpu2.yaml recipes/dpo.py --config ... --negatives beam

`model_name_or_path` is a folder of recipes/sft.py, and so is the output. Each target of the training split stands
beside `num_negatives` wrong items; with one it is DPO, with more S-DPO (arXiv 2406.09215). Every field of TRL's
`DPOConfig` that means something for items works in the YAML and on the command line. Killed? The same command goes on.
"""

from dataclasses import dataclass, field, replace
from functools import partial

from trl import DPOConfig, ModelConfig

import llmrec.training as training
from llmrec.arguments import at_least
from llmrec.commands import run_script
from llmrec.instructions import Prompt
from llmrec.rl import prompt_rows
from llmrec.rl.dpo import SemIDDPOTrainer, check_dpo, preference_rows, sample_rows


@dataclass
class DataArguments:
    data_dir: str = field(metadata={"help": "Prepared data (recipes/prepare_data.py)."})
    num_negatives: int = field(default=3, metadata={"help": "Wrong items beside each target; 1 is DPO."})
    negatives: str = field(default="random", metadata={"help": "random, popularity, or beam: the model's best wrong."})
    log_probs: str = field(default="catalogue", metadata={"help": "Trained and searched: catalogue or vocabulary."})
    validation_rows: int = field(default=500, metadata={"help": "Sample for recall and ndcg while training."})
    exclude_seen: str = field(
        default="auto", metadata={"help": "Validate without items of the history: auto, true, false."}
    )
    overwrite: bool = field(default=False, metadata={"help": "Replace a run with other settings."})


def main(args: DataArguments, dpo_args: DPOConfig, model_args: ModelConfig) -> None:
    at_least(args, validation_rows=1, num_negatives=1)
    run = training.TrainingRun(args, dpo_args, model_args)
    data = run.data
    run.config = replace(run.config, normalize=args.log_probs)  # what was trained is what ranks
    check_dpo(dpo_args, args.num_negatives, args.negatives, args.log_probs, run.index)
    if not run.begin([Prompt.from_dict(run.config.prompt)]):
        return

    recommender = run.load_recommender()
    model, tokenizer = recommender.model, recommender.tokenizer
    sample = training.ValidationSample.of(recommender, data, args.validation_rows, args.exclude_seen)
    choice = {"num_negatives": args.num_negatives, "negatives": args.negatives, "seed": dpo_args.seed}
    prefer = partial(preference_rows, recommender=recommender, train=data.train, **choice)
    trainer = SemIDDPOTrainer(
        model,
        dpo_args,
        trie=recommender.trie if args.log_probs == "catalogue" else None,
        train_dataset=prefer(prompt_rows(data, recommender)),
        eval_dataset=prefer(sample_rows(sample)),
        processing_class=tokenizer,
        peft_config=training.lora_config(model_args, model, tokenizer, run.index),
        sample=sample,
        write_sidecars=run.write_sidecars,
    )
    result = run.train(trainer)
    run.finish(trainer, train_loss=result.training_loss, seconds=result.metrics["train_runtime"])


if __name__ == "__main__":
    run_script(main, DataArguments, DPOConfig, ModelConfig)

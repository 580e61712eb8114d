"""Reinforcement learning of a recommender over the items of its catalogue, with TRL's GRPO.

    accelerate launch recipes/grpo.py --config recipes/configs/quickstart/grpo.yaml
    accelerate launch --config_file recipes/accelerate/cpu2.yaml recipes/grpo.py --config ... --loss_type dr_grpo

`model_name_or_path` is a folder of recipes/sft.py, and so is the output. Every field of TRL's `GRPOConfig` works in
the YAML and on the command line; rollouts, log-probabilities, dead groups and credit are fields of
`llmrec.rl.PolicyArguments`, and rewards are named in `rewards` (docs/grpo.md). Killed? The same command goes on.
"""

from dataclasses import dataclass, field, replace
from functools import partial

from trl import ModelConfig

import llmrec.rl as rl
import llmrec.training as training
from llmrec.arguments import at_least
from llmrec.commands import run_script
from llmrec.instructions import Prompt, TaskMix
from llmrec.serving.rollouts import start_rollouts


@dataclass
class DataArguments:
    data_dir: str = field(metadata={"help": "Prepared data (recipes/prepare_data.py)."})
    rewards: list[str] = field(
        default_factory=lambda: ["exact_hit", "prefix_match"], metadata={"help": "name:weight, or a dotted path."}
    )
    tasks: list[str] = field(
        default_factory=list, metadata={"help": "The mixture of prompts (docs/tasks.md); by default the model's own."}
    )
    features: str = field(default="", metadata={"help": "features.npy, for semantic_similarity."})
    sasrec: str = field(default="", metadata={"help": "A SASRec (recipes/train_baselines.py), for collaborative."})
    validation_rows: int = field(default=500, metadata={"help": "Sample that an evaluation ranks."})
    exclude_seen: str = field(
        default="auto", metadata={"help": "Validate without items of the history: auto, true, false."}
    )
    guard_drop: float = field(default=0.1, metadata={"help": "Loss of recall@50 or coverage@10 that is reported."})
    guard_stops: bool = field(default=False, metadata={"help": "Whether such a loss ends the run."})
    overwrite: bool = field(default=False, metadata={"help": "Replace a run with other settings."})


def main(args: DataArguments, policy: rl.PolicyArguments, grpo_args: rl.GRPOArguments, model_args: ModelConfig):
    at_least(args, validation_rows=1, guard_drop=0.0)
    at_least(policy, log_positives=0, thought_beams=1, vllm_sync_steps=1)
    run = training.TrainingRun(args, grpo_args, model_args)
    data, index = run.data, run.index
    if not run.config.prompt.get("thinking"):
        run.config = replace(run.config, normalize=policy.log_probs)  # what is trained is what ranks
    if grpo_args.reward_weights:
        raise ValueError("reward_weights: weights stand in rewards, as name:weight")
    grpo_args.eval_on_start = grpo_args.eval_strategy != "no"  # the guard compares with the start
    prompts = [Prompt.from_dict(run.config.prompt), *(TaskMix.parse(entry).prompt for entry in args.tasks)]
    if not run.begin(prompts, more_args=(policy,)):
        return

    recommender = run.load_recommender()
    facts = rl.Facts(rl.searched_index(recommender), data.items, data.train, args.features, args.sasrec)
    rewards, grpo_args.reward_weights = rl.load_rewards(args.rewards, facts)
    trainer = rl.SemIDGRPOTrainer(
        recommender.model,
        rewards,
        grpo_args,
        recommender=recommender,
        policy=policy,
        train_dataset=rl.prompt_rows(data, recommender, args.tasks, max(policy.log_positives - 1, 0), grpo_args.seed),
        processing_class=recommender.tokenizer,
        peft_config=training.lora_config(model_args, recommender.model, recommender.tokenizer, index),
        callbacks=[rl.Guard(args.guard_drop, args.guard_stops)],
        engine=partial(start_rollouts, run.base, recommender.model.dtype, grpo_args) if grpo_args.use_vllm else None,
        sample=training.ValidationSample.of(recommender, data, args.validation_rows, args.exclude_seen),
        write_sidecars=run.write_sidecars,
    )
    seconds = run.train(trainer).metrics["train_runtime"]
    run.finish(trainer, rl.plot_grpo, seconds=seconds)


if __name__ == "__main__":
    run_script(main, DataArguments, rl.PolicyArguments, rl.GRPOArguments, ModelConfig)

"""Reinforcement learning of a recommender (GRPO) over the items of its catalogue, with TRL.

    accelerate launch recipes/grpo.py --config recipes/configs/quickstart/grpo.yaml
    accelerate launch --config_file recipes/accelerate/cpu2.yaml recipes/grpo.py --config ... --loss_type dr_grpo

`model_name_or_path` is a folder of recipes/sft.py, and so is the output. Every field of TRL's `GRPOConfig` works in the
YAML and on the command line; rollouts, log-probabilities, dead groups and credit are fields of
`llmrec.rl.PolicyArguments`, rewards are named in `rewards` (docs/grpo.md). Killed? The same command goes on.
"""

import logging
from dataclasses import dataclass, field
from pathlib import Path

from accelerate import PartialState
from transformers import AutoTokenizer, set_seed
from trl import GRPOConfig, ModelConfig

import llmrec.training as training
from llmrec.data import PreparedData
from llmrec.decoding import SemIDTrie
from llmrec.model_folder import ITEM_TOKENIZER, RecommenderConfig, load_parts, write_sidecars
from llmrec.recommender import LLMRecommender
from llmrec.rl import Facts, Guard, PolicyArguments, SemIDGRPOTrainer, load_rewards, prompt_rows
from llmrec.training import ValidationSample


@dataclass
class DataArguments:
    data_dir: str = field(metadata={"help": "Prepared data (recipes/prepare_data.py)."})
    rewards: list[str] = field(
        default_factory=lambda: ["exact_hit", "rank_penalty"], metadata={"help": "name:weight, or a dotted path."}
    )
    tasks: list[str] = field(default_factory=list, metadata={"help": "Prompts; the model's own by default."})
    features: str = field(default="", metadata={"help": "features.npy, for semantic_similarity."})
    sasrec: str = field(default="", metadata={"help": "A SASRec (recipes/train_baselines.py), for collaborative."})
    validation_rows: int = field(default=500, metadata={"help": "Sample for recall, ndcg and coverage."})
    guard_drop: float = field(default=0.1, metadata={"help": "Loss of recall@50 or coverage@10 that is reported."})
    guard_stops: bool = field(default=False, metadata={"help": "Whether such a loss ends the run."})
    overwrite: bool = field(default=False, metadata={"help": "Replace a run with other settings."})


def main(args: DataArguments, policy: PolicyArguments, grpo_args: GRPOConfig, model_args: ModelConfig) -> None:
    base, output_dir, state = model_args.model_name_or_path, grpo_args.output_dir, PartialState()
    data, config = PreparedData.load(args.data_dir), RecommenderConfig.load(base)
    config.check_catalogue(data.items, base)
    index, items, contextual = load_parts(base, config)
    inputs = training.run_inputs(base, data, index, [config.next_prompt])
    found, checkpoint = training.begin_run(
        output_dir, args, policy, grpo_args, model_args, inputs=inputs, overwrite=args.overwrite
    )
    if found == "done":
        state.print(f"Reusing the model in {output_dir} (same settings, same data).")
        return
    state.print(f"Resuming from {checkpoint}." if checkpoint else f"Training {base}.")

    logging.getLogger("llmrec").setLevel(logging.INFO if state.is_main_process else logging.WARNING)
    set_seed(grpo_args.seed)
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = training.load_model(base, model_args, grpo_args)
    recommender = LLMRecommender(model, tokenizer, index, items, config, sequence_tokenizer=contextual)
    facts = Facts(index, data.items, data.train, args.features, args.sasrec)
    rewards, grpo_args.reward_weights = load_rewards(args.rewards, facts)
    sample = ValidationSample(recommender, data.valid, args.validation_rows)
    trainer = SemIDGRPOTrainer(
        model,
        rewards,
        grpo_args,
        index=index,
        trie=SemIDTrie.from_index(index, tokenizer),
        policy=policy,
        train_dataset=prompt_rows(data, recommender),
        processing_class=tokenizer,
        peft_config=training.lora_config(model_args, model, tokenizer, index, "all"),
        callbacks=[Guard(args.guard_drop, args.guard_stops)],
        sample=sample,
        write_sidecars=lambda folder: write_sidecars(folder, config, index, items, Path(base) / ITEM_TOKENIZER),
    )

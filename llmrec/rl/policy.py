"""The settings of a run beside TRL's own, and what is refused before it starts."""

from dataclasses import dataclass, field

from trl import GRPOConfig

from llmrec.decoding.trie import SemIDTrie
from llmrec.rl.rollout import RolloutArguments
from llmrec.training.loading import sharded

CHOICES = {
    "log_probs": ("catalogue", "vocabulary"),
    "dead_groups": ("keep", "skip", "resample"),
    "credit": ("item", "first_difference"),
}
# Fields of GRPOConfig that would change nothing, or something that is not there.
_REFUSED = {
    "use_vllm": False,
    "mask_truncated_completions": False,
    "use_liger_kernel": False,
    "use_transformers_continuous_batching": False,
    "top_p": 1.0,
    "top_k": 0,
    "min_p": None,
    "repetition_penalty": 1.0,
    "num_generations_eval": None,
    "generation_kwargs": None,
    "cache_implementation": None,
    "chat_template_kwargs": None,
}


@dataclass
class PolicyArguments(RolloutArguments):
    """Fields of recipes/grpo.py beside TRL's `GRPOConfig` and `ModelConfig`; a group has `num_generations`."""

    thought_beams: int = field(
        default=16, metadata={"help": "Of a thinking prompt, whose group is of thoughts: items searched after each."}
    )
    log_probs: str = field(
        default="catalogue", metadata={"help": "Over the tokens that the trie allows, or over the vocabulary."}
    )
    shared_prompts: bool = field(default=True, metadata={"help": "A group is one row; false: a row per completion."})
    dead_groups: str = field(
        default="keep", metadata={"help": "Groups of equal rewards: keep, skip, or resample (other rows instead)."}
    )
    credit: str = field(
        default="item", metadata={"help": "item, or first_difference: blame only where an item leaves the target's."}
    )


def check_settings(args: GRPOConfig, policy: PolicyArguments, trie: SemIDTrie, thinks: bool, rows: int) -> None:
    """Refuses settings that contradict each other or the catalogue.

    Args:
        thinks: whether the prompt asks for a thought before the item.
        rows: of the training set.

    Raises:
        ValueError: names the field and what to set instead.
    """
    group, items = args.num_generations, trie.num_leaves
    for name, known in CHOICES.items():
        if getattr(policy, name) not in known:
            raise ValueError(f"{name}: {getattr(policy, name)!r} is not one of {', '.join(known)}")
    for name, neutral in _REFUSED.items():
        if getattr(args, name) not in (neutral, group if name == "num_generations_eval" else neutral):
            raise ValueError(f"{name}: {getattr(args, name)} has no meaning over a catalogue: leave it out")
    if rows < (prompts := args.generation_batch_size // group):
        raise ValueError(
            f"per_device_train_batch_size: a step rolls out for {prompts} prompts, but there are {rows} rows: "
            "lower it, or gradient_accumulation_steps"
        )
    window = args.steps_per_generation * args.num_iterations
    if args.save_strategy == "steps" and args.save_steps * args.gradient_accumulation_steps % window:
        raise ValueError(
            f"save_steps: {args.save_steps:g} ends in the middle of a group's {args.num_iterations} iterations, where "
            f"no run can go on: make save_steps x gradient_accumulation_steps a multiple of {window}"
        )
    if args.per_device_train_batch_size % group:
        raise ValueError(
            f"per_device_train_batch_size: {args.per_device_train_batch_size} completions are no whole groups of "
            f"num_generations: {group}; set it to {group} or a multiple"
        )
    if not thinks:
        policy.check(group, trie)
    elif not 1 <= policy.thought_beams <= items:
        raise ValueError(f"thought_beams: {policy.thought_beams} of a catalogue of {items} Semantic IDs")
    if thinks and (policy.rollout != "beam" or policy.log_positives or policy.credit != "item"):
        raise ValueError(
            "the prompt thinks, so a group is of sampled thoughts: leave out rollout, log_positives, credit"
        )
    if sharded():
        raise ValueError(f"GRPO under {sharded()} is not supported: launch with ddp.yaml or deepspeed_zero2.yaml")

"""The settings of a run beside TRL's own, and what is refused before it starts."""

import math
from dataclasses import dataclass, field, fields

from trl import GRPOConfig

from llmrec.arguments import at_least, one_of
from llmrec.decoding.trie import SemIDTrie

_CHOICES = {
    "log_probs": ("catalogue", "vocabulary"),
    "dead_groups": ("keep", "skip", "resample"),
    "credit": ("item", "first_difference"),
}
# Fields of GRPOConfig that would change nothing, or something that is not there.
_REFUSED = {
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
# What is read of TRL's settings of vLLM, with "vllm_" before.
_OF_VLLM = (
    "mode gpu_memory_utilization max_model_length server_base_url server_host server_port server_timeout".split()
)


@dataclass
class GRPOArguments(GRPOConfig):
    """TRL's `GRPOConfig`, whose counts are looked at before it divides by them."""

    def __post_init__(self):
        at_least(self, num_generations=2, num_iterations=1, steps_per_generation=1, generation_batch_size=1)
        super().__post_init__()


@dataclass
class PolicyArguments:
    """Fields of recipes/grpo.py beside TRL's `GRPOConfig` and `ModelConfig`; a group has `num_generations`."""

    rollout: str = field(default="beam", metadata={"help": "beam, sample (without replacement) or mixed."})
    beam_share: float = field(default=0.5, metadata={"help": "The part of a mixed group that comes from the beam."})
    log_positives: int = field(
        default=0,
        metadata={"help": "Items that the user did choose, the target first, put in the last places of each group."},
    )
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
    vllm_sync_steps: int = field(
        default=1, metadata={"help": "Of use_vllm: optimizer steps after which its engine gets the weights again."}
    )

    def check(self, group: int, trie: SemIDTrie) -> None:
        """Raises `ValueError` naming the field of how a group of items is drawn."""
        one_of(self.rollout, ("beam", "sample", "mixed"), "rollout:")
        if group > trie.num_leaves:
            raise ValueError(
                f"num_generations: {group} distinct rollouts of a catalogue of {trie.num_leaves} Semantic IDs"
            )
        if not 0 <= self.log_positives < group:
            raise ValueError(f"log_positives: {self.log_positives} of a group of {group}; leave at least one rollout")
        if self.log_positives and self.rollout == "sample":
            raise ValueError("log_positives: they are no draws, so rollout: sample has no weight for them; use mixed")
        if not 0 < self.beam_share < 1:
            raise ValueError(f"beam_share: {self.beam_share} is not between 0 and 1; for one alone use beam or sample")


def check_settings(args: GRPOConfig, policy: PolicyArguments, trie: SemIDTrie, thinks: bool, rows: int) -> None:
    """Refuses settings that contradict each other or the catalogue, with a `ValueError` that names the field and what
    to set instead; `thinks`: the prompt asks for a thought before the item; `rows`: of the training set."""
    group, items = args.num_generations, trie.num_leaves
    for name, known in _CHOICES.items():
        one_of(getattr(policy, name), known, f"{name}:")
    for name, neutral in _REFUSED.items():
        if getattr(args, name) not in (neutral, group if name == "num_generations_eval" else neutral):
            raise ValueError(f"{name}: {getattr(args, name)} has no meaning over a catalogue: leave it out")
    if rows < (prompts := args.generation_batch_size // group):
        raise ValueError(
            f"per_device_train_batch_size: a step rolls out for {prompts} prompts, but there are {rows} rows: "
            "lower it, or gradient_accumulation_steps"
        )
    _check_saves(args, rows // prompts)
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


def _check_saves(args: GRPOConfig, rollouts: int) -> None:
    """Refuses checkpoints between steps that learn from one rollout, of which an epoch has `rollouts`; between epochs
    there is none."""
    name = {"steps": "save_steps", "best": "eval_steps"}.get(args.save_strategy)
    if name is None or name == "eval_steps" != f"eval_{args.eval_strategy.value}":
        return
    each, accumulated = args.steps_per_generation * args.num_iterations, args.gradient_accumulation_steps
    epoch = math.ceil(rollouts * each / accumulated)
    steps = args.max_steps if args.max_steps > 0 else math.ceil(args.num_train_epochs * epoch)
    given = getattr(args, name)
    every = math.ceil(steps * given) if given < 1 else given  # a share of the run
    for step in range(every, steps, every) if every > 0 else ():
        if step % epoch * accumulated % each:
            raise ValueError(
                f"{name}: {given:g} means a checkpoint after step {step}, in the middle of a rollout's steps, where "
                f"no run can go on: make it a multiple of {each // math.gcd(each, accumulated)}, or set "
                "save_strategy: epoch"
            )


def check_engine(
    args: GRPOConfig, policy: PolicyArguments, given: bool, thinks: bool, one_view: bool, quantised: bool
) -> None:
    """Refuses what rollouts through vLLM cannot do, as `check_settings` does; `given`: there is an engine; `one_view`:
    all Semantic IDs of the folder are searched; `quantised`: the model is, by bitsandbytes."""
    steps = policy.vllm_sync_steps
    if not args.use_vllm:
        if given or steps != 1:
            raise ValueError(f"vllm_sync_steps: {steps}, but there is no engine: set use_vllm: true, or leave it out")
        return
    if not given:
        raise ValueError("use_vllm: true without an engine: give the trainer one, as recipes/grpo.py does")
    for each in fields(GRPOConfig):
        kind, _, name = each.name.partition("_")
        if kind == "vllm" and name not in _OF_VLLM and getattr(args, each.name) != each.default:
            raise ValueError(f"{each.name}: {getattr(args, each.name)} does nothing here: leave it out")
    one_of(args.vllm_mode, ("colocate", "server"), "vllm_mode:")
    if policy.rollout != "beam":
        raise ValueError(f"rollout: {policy.rollout}, but vLLM's engine searches beams: set beam, or use_vllm: false")
    if thinks:
        raise ValueError("use_vllm: the prompt thinks, and the engine writes no thoughts: set it to false")
    if not one_view:
        raise ValueError("use_vllm: the folder has several views, and the engine searches all: set it to false")
    if quantised:
        raise ValueError("load_in_4bit, load_in_8bit: the engine needs whole weights: leave it out, or use_vllm")

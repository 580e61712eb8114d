"""`SemIDGRPOTrainer`: TRL's `GRPOTrainer` whose completions are items of a catalogue.

TRL stays in charge of sampling rows, rewards, advantages, losses, KL, logging and checkpoints. Four of its methods are
replaced, all that concern what a completion is (checked with trl 1.16; tests/rl/test_trl_contract.py fails where one
of them moves):

- `_generate_single_turn`: the rollouts of `llmrec.rl.rollout` instead of `generate`
- `_get_per_token_logps_and_entropies`: `llmrec.rl.log_probs`, groups as rows with one prompt
- `_prepare_inputs`: micro-batches of whole groups
- `_generate_and_score_completions`: rollouts before, weights and credit after TRL scored them
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from trl import GRPOConfig, GRPOTrainer
from trl.models import unwrap_model_for_generation
from trl.trainer.utils import split_tensor_dict

from llmrec.decoding.trie import SemIDTrie
from llmrec.rl.credit import first_difference, skip_dead, weighted
from llmrec.rl.log_probs import Groups, check_model, log_probs
from llmrec.rl.rollout import RolloutArguments, completions, roll_out, seeds_of, with_positives
from llmrec.semids import SemIDIndex
from llmrec.training import ValidationSample

LOG_PROBS = ("catalogue", "vocabulary")
DEAD_GROUPS = ("keep", "skip", "resample")
CREDITS = ("item", "first_difference")


@dataclass
class PolicyArguments(RolloutArguments):
    """Fields of recipes/grpo.py beside TRL's `GRPOConfig` and `ModelConfig`."""

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

    def check(self, group: int, trie: SemIDTrie) -> None:
        super().check(group, trie)
        for name, known in (("log_probs", LOG_PROBS), ("dead_groups", DEAD_GROUPS), ("credit", CREDITS)):
            if getattr(self, name) not in known:
                raise ValueError(f"{name}: {getattr(self, name)!r} is not one of {', '.join(known)}")


class SemIDGRPOTrainer(GRPOTrainer):
    """`GRPOTrainer` over a catalogue. Rows have `prompt` (text), `history`, `target` (item ids) and `row` (int).

    Args:
        model, reward_funcs, args, train_dataset, processing_class, peft_config, callbacks: see `GRPOTrainer`.
        index (`SemIDIndex`), trie (`SemIDTrie`): the catalogue, the trie's rows in the order of the index.
        policy (`PolicyArguments`): rollouts, log-probabilities, dead groups, credit.
        sample (`ValidationSample`, *optional*): what an evaluation measures; rewards are not evaluated.
        write_sidecars (callable, *optional*): called with every folder that receives weights, so that each
            checkpoint is a recommender.

    Raises:
        ValueError: settings that cannot work here, a target that is not in the catalogue.
    """

    def __init__(
        self,
        model,
        reward_funcs,
        args: GRPOConfig,
        *,
        index: SemIDIndex,
        trie: SemIDTrie,
        policy: PolicyArguments,
        sample: ValidationSample | None = None,
        write_sidecars: Callable[[str], None] | None = None,
        **kwargs,
    ):
        _check(args, policy, trie)
        super().__init__(model, reward_funcs, args, **kwargs)
        # TRL reads `head.bias`, which PEFT's wrapper of trained rows does not have.
        head = self.accelerator.unwrap_model(self.model).get_output_embeddings()
        if not hasattr(head, "bias"):
            head.bias = None
        if policy.shared_prompts:
            check_model(self.model)
        self.sample, self.write_sidecars = sample, write_sidecars
        self.index, self.trie, self.policy = index, trie.to(self.accelerator.device), policy
        self._rows = {item: row for row, item in reversed(list(enumerate(index.item_ids)))}
        self._drawn: tuple[list[list[int]], torch.Tensor] | None = None
        for row in self.train_dataset.select_columns(["target"]) if self.train_dataset is not None else ():
            if row["target"] not in self._rows:
                raise ValueError(f"target {row['target']!r} is not in the catalogue of the model folder")

    # Rollouts

    def _generate_and_score_completions(self, inputs: list[dict]) -> dict[str, torch.Tensor]:
        size = self._group_size
        ids, weights = self._roll_out(inputs)
        if self.policy.dead_groups == "resample" and self.model.training:
            inputs, ids, weights = self._with_live_groups(inputs, ids, weights)
        self._drawn = ids, weights
        output = super()._generate_and_score_completions(inputs)
        advantages = output["advantages"].view(-1, size)
        if self.policy.rollout == "sample":
            advantages = weighted(advantages, weights)
        if self.policy.dead_groups == "skip":
            advantages = skip_dead(advantages, self.accelerator)
        output["advantages"] = advantages.flatten()
        if self.policy.credit == "first_difference":
            targets = [self.index.codes[self._rows[row["target"]]] for row in inputs]
            own = [self.index.codes[self._rows[row["item"]]] for row in inputs]
            output["advantages"] = first_difference(output["advantages"], own, targets, output["completion_mask"])
        return output

    def _generate_single_turn(self, prompt_ids, images, multimodal_fields, num_generations, has_tool_images=False):
        ids, _ = self._drawn
        return ids, None

    @property
    def _group_size(self) -> int:
        return self.num_generations if self.model.training else self.num_generations_eval

    def _roll_out(self, inputs: list[dict]) -> tuple[list[list[int]], torch.Tensor]:
        """Token ids of every completion and importance weights [N, G]; rows get their `item` and `rank`."""
        size, policy = self._group_size, self.policy
        first = inputs[::size]
        if len(inputs) % size or any(row["row"] != inputs[n - n % size]["row"] for n, row in enumerate(inputs)):
            raise ValueError(f"a process holds {len(inputs)} completions, which are no whole groups of {size}")
        prompts = self._tokenizer([row["prompt"] for row in first], add_special_tokens=False)["input_ids"]
        seeds = seeds_of(self.args.seed, self.state.global_step, [row["row"] for row in first])
        with (
            unwrap_model_for_generation(
                self.model_wrapped, self.accelerator, gather_deepspeed3_params=self.args.ds3_gather_for_generation
            ) as model,
            torch.no_grad(),
            self._dist.summon_full_params(self.model_wrapped, recurse=False),
        ):
            pad = self._tokenizer.pad_token_id
            found = roll_out(model, prompts, self.trie, size, policy, seeds, self.temperature, pad)
        if policy.log_positives:
            chosen = [[row["target"], *row.get("following", [])][: policy.log_positives] for row in first]
            found = with_positives(found, self.trie, [[self._rows[item] for item in items] for items in chosen])
        order = self.trie.order[found.leaves.flatten()].tolist()
        for number, (row, place) in enumerate(zip(inputs, order)):
            row |= {"item": self.index.item_ids[place], "rank": number % size}
        return completions(found.tokens.flatten(0, 1), self.trie), found.weights

    def _with_live_groups(self, inputs, ids, weights, tries: int = 2):
        """Groups whose rewards are all equal give way to groups of other rows, where such are found."""
        size = self._group_size
        for attempt in range(tries):
            dead = [n for n, alive in enumerate(self._alive(inputs, ids)) if not alive]
            if not dead:
                break
            taken = {row["row"] for row in inputs}
            seeds = seeds_of(
                self.args.seed + 1 + attempt, self.state.global_step, [inputs[n * size]["row"] for n in dead]
            )
            fresh = [dict(self.train_dataset[seed % len(self.train_dataset)]) for seed in seeds]
            keep = [n for n, row in enumerate(fresh) if row["row"] not in taken]
            fresh, dead = [fresh[n] for n in keep], [dead[n] for n in keep]
            if not fresh:
                break
            others = [dict(row) for row in fresh for _ in range(size)]
            new_ids, new_weights = self._roll_out(others)
            for place, (group, alive) in enumerate(zip(dead, self._alive(others, new_ids))):
                if alive:
                    old, new = slice(group * size, (group + 1) * size), slice(place * size, (place + 1) * size)
                    inputs[old], ids[old], weights[group] = others[new], new_ids[new], new_weights[place]
        return inputs, ids, weights

    def _alive(self, inputs: list[dict], ids: list[list[int]]) -> list[bool]:
        """For each group, whether its rewards differ."""
        columns = {name: [row[name] for row in inputs] for name in inputs[0] if name != "prompt"}
        prompts = [row["prompt"] for row in inputs]
        texts = self._tokenizer.batch_decode(ids)
        total = torch.zeros(len(inputs))
        for weight, reward in zip(self.reward_weights.tolist(), self.reward_funcs):
            values = reward(prompts=prompts, completions=texts, completion_ids=ids, **columns)
            total += weight * torch.tensor([0.0 if value is None else value for value in values])
        return (
            ((total.view(-1, self._group_size) - total.view(-1, self._group_size)[:, :1]).abs() > 1e-8).any(1).tolist()
        )

    # Training

    def _prepare_inputs(self, generation_batch):
        """As in TRL, but whole groups are shuffled: a micro-batch holds every completion of its prompts."""
        if not self.model.training:
            return self._generate_and_score_completions(generation_batch)
        steps = self.args.steps_per_generation
        if self._step % (steps * self.num_iterations) == 0 or self._buffered_inputs is None:
            batch = self._generate_and_score_completions(generation_batch)
            order = torch.randperm(len(batch["prompt_ids"]) // self.num_generations)
            shuffled = {name: _by_group(value, order, self.num_generations) for name, value in batch.items()}
            self._buffered_inputs = split_tensor_dict(shuffled, steps)
        return self._buffered_inputs[self._step % steps]

    def _get_per_token_logps_and_entropies(
        self,
        model,
        input_ids,
        attention_mask,
        logits_to_keep,
        batch_size=None,
        compute_entropy=False,
        compute_aux_loss=False,
        **kwargs,
    ):
        size = self._group_size if self.policy.shared_prompts else 1
        trie = self.trie if self.policy.log_probs == "catalogue" else None
        found = []
        for ids, mask in zip(*(part.split(batch_size or len(input_ids)) for part in (input_ids, attention_mask))):
            with self.accelerator.autocast():
                groups = Groups.of(ids, mask, logits_to_keep, size)
                found.append(torch.stack(log_probs(model, groups, trie, self.temperature)).flatten(1, 2))
        logps, entropies = torch.cat(found, 1)
        return logps, entropies if compute_entropy else None, None

    # What a run says and writes

    def evaluate(self, *args, metric_key_prefix: str = "eval", **kwargs) -> dict[str, float]:
        """recall@k, ndcg@k, coverage and head share on the validation sample, and the seconds that it took."""
        start = time.perf_counter()
        metrics = self.sample.evaluate(self.model, self.accelerator) | {"runtime": time.perf_counter() - start}
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in metrics.items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def create_model_card(self, *args, **kwargs) -> None:
        """The recipe writes the card (`llmrec.model_card`); TRL's would replace it."""

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Writes the weights and what makes the folder a recommender."""
        super().save_model(output_dir, _internal_call)
        if self.write_sidecars is not None and self.args.should_save:
            self.write_sidecars(output_dir or self.args.output_dir)


def _by_group(value, order: torch.Tensor, size: int):
    """A tensor [N x G, ...] with its groups in another order; what has no rows stays."""
    if not isinstance(value, torch.Tensor) or value.ndim == 0:
        return value
    return value.unflatten(0, (-1, size))[order.to(value.device)].flatten(0, 1)


def _check(args: GRPOConfig, policy: PolicyArguments, trie: SemIDTrie) -> None:
    group = args.num_generations
    policy.check(group, trie)
    if args.per_device_train_batch_size % group:
        raise ValueError(
            f"per_device_train_batch_size: {args.per_device_train_batch_size} completions are no whole groups of "
            f"num_generations: {group}; set it to {group} or a multiple"
        )
    for name, wanted in (("use_vllm", False), ("mask_truncated_completions", False), ("top_entropy_quantile", 1.0)):
        if getattr(args, name) != wanted:
            raise ValueError(f"{name}: {getattr(args, name)} has no meaning for Semantic IDs: leave it out")

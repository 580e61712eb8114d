"""`SemIDGRPOTrainer`: TRL's `GRPOTrainer` whose completions are items of a catalogue, or thoughts about them.

TRL stays in charge of rows, rewards, advantages, losses, KL, logging and checkpoints. Rollouts come in by its public
`rollout_func`. Five of its methods are replaced (checked with trl 1.16; tests/rl/test_trl_contract.py fails where one
of them moves):

- `_generate_and_score_completions`: rollouts before, importance weights, dead groups and credit after TRL's scoring
- `_get_per_token_logps_and_entropies`: `llmrec.rl.log_probs`, groups as rows with one prompt
- `_prepare_inputs`: micro-batches of whole groups (TRL shuffles completions among them)
- `_get_train_sampler`: the order of rows follows from seed and epoch
- `_compute_loss`: the KL of samples has their importance weights
"""

import warnings
from collections.abc import Callable
from contextlib import nullcontext
from copy import copy

import torch
from datasets import Dataset
from transformers import TrainerCallback
from trl import GRPOConfig, GRPOTrainer
from trl.trainer.utils import split_tensor_dict

from llmrec.recommenders import LLMRecommender
from llmrec.rl.credit import WeightedBeta, first_difference, live_groups, skip_dead, weighted
from llmrec.rl.groups import Member, RollOut
from llmrec.rl.log_probs import Groups, check_model, log_probs
from llmrec.rl.monitor import KeptReference
from llmrec.rl.policy import PolicyArguments, check_engine, check_settings
from llmrec.rl.rollout import RolloutEngine
from llmrec.training import RecommenderTrainer, ValidationSample, is_quantised, merged_weights, without_dropout
from llmrec.training.sharding import together, whole


class _AnewAfterSaves(TrainerCallback):
    """A run that goes on from a checkpoint begins with its weights, so one that was not stopped does, too."""

    def __init__(self, trainer: "SemIDGRPOTrainer"):
        self.trainer = trainer

    def on_save(self, args, state, control, **kwargs):
        self.trainer._taken = None


class SemIDGRPOTrainer(RecommenderTrainer, GRPOTrainer):
    """`GRPOTrainer` over a catalogue. Rows have `prompt` (text), `history`, `target` (item ids) and `row` (int).

    Other arguments are those of `GRPOTrainer` and `RecommenderTrainer`; of `args`, which stay as they are, the trainer
    has a copy, whose `max_completion_length` is what a completion can have. An evaluation measures `sample`, never
    rewards. Settings that cannot work here, or a target that is not in the catalogue, raise `ValueError`.

    With `args.use_vllm` rollouts come from `engine()`, which is called once the settings have been looked at. It gets
    the weights of the model before its first search, again every `policy.vllm_sync_steps` optimizer steps, and after
    every checkpoint: `rollout/staleness` is how many steps ago that was.
    """

    def __init__(
        self,
        model,
        reward_funcs,
        args: GRPOConfig,
        *,
        recommender: LLMRecommender,
        policy: PolicyArguments,
        train_dataset: Dataset,
        sample: ValidationSample | None = None,
        engine: Callable[[], RolloutEngine] | None = None,
        **kwargs,
    ):
        args = copy(args)
        self.roll_out = RollOut(recommender, policy, args.num_generations, args.temperature)
        check_settings(args, policy, self.roll_out.trie, self.roll_out.thinks, len(train_dataset))
        one_view = len(self.roll_out.index) == len(recommender.index)
        check_engine(args, policy, engine is not None, self.roll_out.thinks, one_view, is_quantised(model))
        if getattr(model, "is_loaded_in_4bit", False) and model.device.type == "cpu":
            raise ValueError(
                "load_in_4bit on a CPU loses gradients once the model has rolled out (bitsandbytes repacks its "
                "weights): leave it out, or run on a GPU"
            )
        args.max_completion_length = self.roll_out.max_length
        args.disable_dropout = True  # or the policy that learns is not the one that rolled out
        if foreign := set(train_dataset.unique("target")) - {None, *recommender.item_ids}:
            raise ValueError(f"target {min(foreign)!r} is not in the catalogue of the model folder")
        self._taken: int | None = None  # the step whose weights the engine has
        if args.use_vllm:
            self.roll_out.engine, args.use_vllm = engine(), False  # TRL would start one of its own, that writes text
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*'rollout_func', which is an experimental feature")
            super().__init__(
                model,
                args,
                reward_funcs=reward_funcs,
                sample=sample,
                train_dataset=train_dataset,
                eval_dataset=None if sample is None else Dataset(sample.rows),
                rollout_func=lambda prompts, trainer: trainer._rollouts,
                **kwargs,
            )
        without_dropout(self.model)
        check_model(self.model)
        if self.aux_loss_enabled:
            raise ValueError("router_aux_loss_coef: the routers' loss is not there over a catalogue; set it to 0")
        if self.ref_model is not None and args.sync_ref_model:
            self.add_callback(KeptReference(self.ref_model))
        if self.roll_out.engine is not None:
            self.add_callback(_AnewAfterSaves(self))
        self.policy = policy
        self.roll_out.trie.to(self.accelerator.device)
        self._rollouts: dict[str, list] = {}

    def _generate_and_score_completions(self, inputs: list[dict]) -> dict[str, torch.Tensor]:
        size, policy = self.num_generations, self.policy
        self._add_members(inputs)
        if policy.dead_groups == "resample":
            self._resample(inputs)
        members: list[Member] = [row["member"] for row in inputs]
        self._metrics["train"]["rollout/mass"].append(self._mean([member.mass for member in members]))
        self._rollouts = {
            "prompt_ids": [member.prompt for member in members],
            "completion_ids": [member.completion for member in members],
            "logprobs": None,
            **({} if members[0].mask is None else {"env_mask": [member.mask for member in members]}),
        }
        output = super()._generate_and_score_completions(inputs)
        advantages = output["advantages"].view(-1, size)
        self._metrics["train"]["groups/dead"].append(1 - self._mean(live_groups(advantages)))
        if policy.rollout == "sample":
            weights = torch.tensor([member.weight for member in members], device=advantages.device)
            advantages = weighted(advantages, weights.view(-1, size))
            output["importance_weights"] = size * weights
        if policy.dead_groups == "skip":
            advantages = skip_dead(advantages, self.accelerator)
        output["advantages"] = advantages.flatten()
        if policy.credit == "first_difference":
            completions, targets = [member.completion for member in members], self._right_tokens(inputs)
            advantages = first_difference(output["advantages"], completions, targets, output["completion_mask"])
            output["advantages"] = advantages
        return output

    def _right_tokens(self, inputs: list[dict]) -> list[list[list[int]] | None]:
        return [None if row["target"] is None else self.roll_out.tokens(row["target"]) for row in inputs]

    def _add_members(self, inputs: list[dict], attempt: int = 0) -> None:
        """Every row gets its `member`, `item` and `rank`; rows of a prompt stand side by side."""
        size = self.num_generations
        first = inputs[::size]
        if len(inputs) % size or any(row["row"] != inputs[n - n % size]["row"] for n, row in enumerate(inputs)):
            raise ValueError(f"a process holds {len(inputs)} completions, which are no whole groups of {size}")
        seed = self.args.seed, self.state.global_step, attempt
        if self.roll_out.engine is not None:
            self._bring_up_to_date()
            searched = nullcontext()
        else:
            searched = self._whole()
        with together(), searched as model, torch.no_grad():
            groups = self.roll_out(model, first, seed) if first else []
        for row, entry in zip(inputs, groups, strict=True):
            row |= entry

    def _whole(self):
        return whole(self.model_wrapped, self.accelerator, self.args.ds3_gather_for_generation)

    def _bring_up_to_date(self) -> None:
        """Gives the engine the weights at steps that follow from their count and from the checkpoints."""
        step, every = self.state.global_step, self.policy.vllm_sync_steps
        if self._taken is None or step // every != self._taken // every:
            with together(), self._whole() as model:
                self.roll_out.engine.take(merged_weights(model))
            self._taken = step
        self._metrics["train"]["rollout/staleness"].append(float(step - self._taken))

    def _resample(self, inputs: list[dict]) -> None:
        """Groups whose rewards are all equal give way to groups of other rows, where such are found."""
        size, rows = self.num_generations, self.train_dataset
        for attempt in (1, 2):
            dead = [n for n, alive in enumerate(self._alive(inputs)) if not alive]
            taken = {row["row"] for row in inputs}
            others: list[dict] = []
            for n in dead:
                number = RollOut.seed(self.args.seed, self.state.global_step, attempt, inputs[n * size]["row"])
                row = rows[number % len(rows)]
                if row["row"] not in taken:
                    taken.add(row["row"])
                    others += [dict(row) for _ in range(size)]
            if not self._mean([float(len(others))]):  # of no process: what follows, all of them do
                return
            self._add_members(others, attempt)
            fresh = [n for n, alive in enumerate(self._alive(others)) if alive] if others else []
            for n, place in zip(dead, fresh):
                inputs[n * size : (n + 1) * size] = others[place * size : (place + 1) * size]

    def _alive(self, inputs: list[dict]) -> list[bool]:
        columns = {name: [row[name] for row in inputs] for name in inputs[0] if name != "prompt"}
        ids = [row["member"].completion for row in inputs]
        known = {
            "prompts": [row["prompt"] for row in inputs],
            "completions": self._tokenizer.batch_decode(ids, skip_special_tokens=True),
            "completion_ids": ids,
            "trainer_state": self.state,
            "log_extra": lambda *args: None,
            "log_metric": lambda *args: None,
        }
        total = torch.zeros(len(inputs))
        for weight, reward in zip(self.reward_weights.tolist(), self.reward_funcs):
            total += weight * torch.tensor([value or 0.0 for value in reward(**known, **columns)])
        total = total.view(-1, self.num_generations)
        return ((total - total[:, :1]).abs() > 1e-8).any(1).tolist()

    def _get_train_sampler(self, *args, **kwargs):
        """TRL's draws every epoch from one generator, so a resumed run would begin with the first epoch's order."""
        sampler = super()._get_train_sampler(*args, **kwargs)
        sampler.generator = self.order
        return sampler

    def _prepare_inputs(self, generation_batch):
        steps = self.args.steps_per_generation
        if self._step % (steps * self.num_iterations) == 0 or self._buffered_inputs is None:
            batch = self._generate_and_score_completions(generation_batch)
            self._buffered_inputs = split_tensor_dict(batch, steps)
        return self._buffered_inputs[self._step % steps]

    def _get_per_token_logps_and_entropies(
        self, model, input_ids, attention_mask, logits_to_keep, batch_size=None, compute_entropy=False, **kwargs
    ):
        size = self.num_generations if self.policy.shared_prompts else 1
        trie = self.roll_out.trie if self.policy.log_probs == "catalogue" and not self.roll_out.thinks else None
        parts = []
        for ids, mask in zip(*(part.split(batch_size or len(input_ids)) for part in (input_ids, attention_mask))):
            with self.accelerator.autocast():
                groups = Groups.of(ids, mask, logits_to_keep, size)
                parts.append(torch.stack(log_probs(model, groups, trie, self.temperature)).flatten(1, 2))
        logps, entropies = torch.cat(parts, 1)
        if compute_entropy:  # by the chain rule, over items (or thoughts): exact in expectation over samples
            self._metrics["train"]["entropy/completion"].append(self._mean(entropies.detach().sum(1)))
        return logps, entropies if compute_entropy else None, None

    def _compute_loss(self, model, inputs):
        if (weights := inputs.get("importance_weights")) is not None:
            self.beta = WeightedBeta(self.args.beta)
            self.beta.weights = weights
        return super()._compute_loss(model, inputs)

    def _mean(self, values) -> float:
        mean = torch.as_tensor(values, dtype=torch.float32, device=self.accelerator.device).mean()
        return self.accelerator.reduce(mean, "mean").item()

    def evaluate(self, *args, metric_key_prefix: str = "eval", **kwargs) -> dict[str, float]:
        return self.rank_and_tell(metric_key_prefix)

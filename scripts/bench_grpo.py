"""Times a GRPO step against transformers' `generate` and stock TRL, in one process on one random model.

    python scripts/bench_grpo.py --json grpo.json       # about 5 minutes on 2 cores
    python scripts/bench_grpo.py --vllm                 # and rollouts through vLLM

3,500 random items, 3 levels of 256; groups of 16; histories of 22 - 26 items in the words of the prompt next_item.
First a vocabulary of about 2,000 rows, then Qwen3's 151,936 (`_v152k`), where stock TRL takes a minute for one prompt
and gets no more, once. Methods alternate, each with a copy of the model; medians of wall time.

- rollout: from texts to items. Ours is the trainer's; the peer is MiniOneRec's: `generate` with beams and a prefix
  function over a ready dict. It stops after the Semantic ID, where MiniOneRec goes on to a line break and EOS.
- policy step: the trainer's loss and its backward for the same completions and advantages. "llmrec" is our default,
  normalised over the catalogue, TRL over the vocabulary. "TRL" is the stock `GRPOTrainer`: a row for each completion,
  and the fused head, which without Triton runs at every position of the prompts, too. "unfused" is TRL with
  `logits_to_keep` instead, so that nobody takes the cost of that head for what shared prompts gain.
- whole step: `_prepare_inputs` (rollout, rewards, advantages; on-policy and without KL, so no old and no reference
  pass), loss, backward, clipping, AdamW. TRL has the rollout above as its `rollout_func`.
- with --vllm, "vLLM" is our trainer with `use_vllm: true` in this process: its rollout beside ours (rollout_vs_vllm:
  its time as a multiple of ours), and its whole step, in which the engine gets the weights (whole_step_vs_vllm).
- gradient_max_rel_error: max |ours - TRL| / max |TRL| of the worst parameter and loss, off-policy; `_v152k` as timed.
"""

import argparse
import copy
import itertools
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import pyarrow as pa
import torch
from datasets import Dataset
from transformers.utils import logging
from trl import GRPOConfig, GRPOTrainer
from trl.trainer.utils import selective_log_softmax_and_entropy

from llmrec.catalogue.semids import SemIDIndex
from llmrec.files import write_json
from llmrec.instructions import load_prompt
from llmrec.models.folder import RecommenderConfig, plain_generation_config
from llmrec.models.from_scratch import model_from_config, train_tokenizer
from llmrec.models.vocabulary import extend_vocabulary
from llmrec.recommenders import LLMRecommender
from llmrec.rl import Facts, PolicyArguments, SemIDGRPOTrainer, load_rewards
from llmrec.serving.rollouts.engine import EngineRollouts

MODEL = {"model_type": "qwen3", "num_hidden_layers": 4, "hidden_size": 256, "intermediate_size": 768}
MODEL |= {"num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 32, "tie_word_embeddings": True}
LOSSES = {name: {"loss_type": name} for name in ("grpo", "dr_grpo", "bnpo", "dapo", "cispo")}
LOSSES |= {"gspo": {"loss_type": "grpo", "importance_sampling_level": "sequence"}}


class Clock:
    """Seconds of one stage after the other."""

    def __init__(self):
        self.laps, self.last = {}, time.perf_counter()

    def lap(self, name: str) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        before, self.last = self.last, time.perf_counter()
        self.laps[name] = self.laps.get(name, 0) + self.last - before

    @contextmanager
    def rollout(self, model: torch.nn.Module) -> Iterator[None]:
        """The first call of the model reads the prompts, the others are levels."""
        handle = model.register_forward_hook(lambda *_: self.lap("levels" if "prefill" in self.laps else "prefill"))
        yield
        handle.remove()
        self.lap("rest")


def compare(step: Callable, trainers: dict, given, repeats: int, once: set[str]) -> dict[str, float]:
    """Lets methods take turns, prints median seconds by stage; returns the time of each as a multiple of ours."""
    runs: dict[str, list[dict]] = {name: [] for name in trainers}
    for turn, (name, trainer) in itertools.product(range(repeats), trainers.items()):
        if turn == 0 or name not in once:
            step(trainer, given, clock := Clock())
            runs[name].append(clock.laps)
    totals = {name: statistics.median(sum(laps.values()) for laps in found) for name, found in runs.items()}
    ratios = {name: total / totals["llmrec"] for name, total in totals.items()}
    print(f"{step.__name__:<22}{'seconds':>9}{'of ours':>8}")
    for name, found in runs.items():
        stages = {stage: statistics.median(laps[stage] for laps in found) for stage in found[0]}
        parts = ", ".join(f"{stage} {value:.3f} ({value / totals[name]:.0%})" for stage, value in stages.items())
        print(f"  {name:<20}{totals[name]:>9.3f}{ratios[name]:>8.1f}    {parts}", flush=True)
    return ratios


def random_recommender(items: pa.Table, size: int, max_history: int, vocabulary: int = 0, **config) -> LLMRecommender:
    """Random codes of three levels for items, and a random model with at least `vocabulary` rows."""
    rng, count = np.random.default_rng(0), items.num_rows
    codes = rng.permutation(np.unique(rng.integers(0, size, (2 * count, 3)), axis=0))[:count].astype(np.int32)
    index, tokenizer = SemIDIndex(items["item_id"].to_pylist(), codes, [size] * 3), train_tokenizer([], 2_000)
    model = model_from_config(MODEL | config, tokenizer)
    model.resize_token_embeddings(max(vocabulary, len(tokenizer)), mean_resizing=False)
    extend_vocabulary(model, tokenizer, index)
    model.generation_config = plain_generation_config(tokenizer)
    settings = RecommenderConfig(load_prompt("next_item").to_dict(), max_history=max_history)
    return LLMRecommender(model, tokenizer, index, items, settings)


def random_setting(
    prompts: int, vocabulary: int = 0, group: int = 16, items: int = 3_500, size: int = 256, history=(22, 26), **config
) -> tuple[LLMRecommender, list[dict]]:
    """A recommender with at least `vocabulary` rows, and a step's rows as the trainer's sampler repeats them."""
    rng, (low, high) = np.random.default_rng(1), history
    table = pa.table({"item_id": [f"item-{n}" for n in range(items)], "title": [""] * items})
    recommender = random_recommender(table, size, high, vocabulary, **config)
    ids = recommender.item_ids
    walks = [rng.choice(ids, rng.integers(low, high + 1) + 1).tolist() for _ in range(prompts)]
    rows = [{"history": walk[:-1], "target": walk[-1], "following": [], "row": n} for n, walk in enumerate(walks)]
    texts = recommender.prompts([row["history"] for row in rows])
    return recommender, [row | {"prompt": text} for row, text in zip(rows, texts) for _ in range(group)]


def generate_rollout(recommender: LLMRecommender, group: int) -> Callable:
    """MiniOneRec's rollout, as TRL's `rollout_func`."""
    tokenizer, index = recommender.tokenizer, recommender.index
    semids = [tuple(tokenizer(index.semid_of_row(row))["input_ids"]) for row in range(len(index))]
    items, end, following = dict(zip(semids, index.item_ids)), [tokenizer.eos_token_id], {}
    for semid, level in itertools.product(semids, range(3)):
        following.setdefault(semid[:level], set()).add(semid[level])
    following = {prefix: sorted(tokens) for prefix, tokens in following.items()}

    @torch.no_grad()
    def rollout_func(prompts: list[str], trainer: GRPOTrainer) -> dict[str, list]:
        asked = tokenizer(prompts[::group], padding=True, padding_side="left", return_tensors="pt")
        asked = asked.to(trainer.model.device)
        width, model = asked["input_ids"].shape[1], trainer.model.eval()
        settings = {"num_beams": group, "num_return_sequences": group, "max_new_tokens": 3}
        settings["prefix_allowed_tokens_fn"] = lambda _, ids: following.get(tuple(ids[width:].tolist()), end)
        found = model.generate(**asked, **settings, do_sample=False, length_penalty=0.0)[:, width:].tolist()
        model.train()
        known = {"item": [items[tuple(semid)] for semid in found], "rank": [n % group for n in range(len(found))]}
        return {"prompt_ids": tokenizer(prompts)["input_ids"], "completion_ids": found, "logprobs": None, **known}

    return rollout_func


class Unfused(GRPOTrainer):
    """Stock TRL, but the head is the model's own and runs where completions are predicted."""

    def _get_per_token_logps_and_entropies(self, model, input_ids, attention_mask, logits_to_keep, **kwargs):
        logits = model(input_ids=input_ids, attention_mask=attention_mask, logits_to_keep=logits_to_keep + 1).logits
        return *selective_log_softmax_and_entropy(logits[:, :-1], input_ids[:, -logits_to_keep:]), None


OURS = ("llmrec", "llmrec, vocabulary", "vLLM")
METHODS = dict.fromkeys(OURS, SemIDGRPOTrainer) | {"TRL": GRPOTrainer, "unfused": Unfused}


def engine_of(recommender: LLMRecommender) -> EngineRollouts:
    """vLLM's for a recommender, in this process."""
    with tempfile.TemporaryDirectory() as folder:
        recommender.save_pretrained(f"{folder}/model")
        return EngineRollouts(f"{folder}/model", dtype="float32", max_model_len=1024)


def make_trainer(name: str, recommender: LLMRecommender, rows: list[dict], **more) -> GRPOTrainer:
    """The trainer of a method, with a copy of the model, on a GPU where there is one; `more` goes to `GRPOConfig`."""
    group, items = sum(row["row"] == 0 for row in rows), pa.table({"item_id": recommender.item_ids})
    rewards, _ = load_rewards(["exact_hit", "prefix_match"], Facts(recommender.index, items, items))
    settings = {"num_generations": group, "per_device_train_batch_size": len(rows), "max_completion_length": 3}
    settings |= {"use_cpu": not torch.cuda.is_available(), "bf16": False, "report_to": "none"}
    settings |= {"gradient_checkpointing": False} | more
    given = {"train_dataset": Dataset.from_list(rows), "processing_class": recommender.tokenizer}
    if name == "vLLM":
        settings["use_vllm"], given["engine"] = True, lambda: engine_of(recommender)
    if name in OURS:
        policy = PolicyArguments(log_probs="vocabulary" if "vocabulary" in name else "catalogue")
        given |= {"recommender": recommender, "policy": policy}
    else:
        given["rollout_func"] = generate_rollout(recommender, group)
    with tempfile.TemporaryDirectory() as folder:
        trainer = METHODS[name](copy.deepcopy(recommender.model), rewards, GRPOConfig(folder, **settings), **given)
    trainer.current_gradient_accumulation_steps = 1
    trainer.create_optimizer()
    return trainer


@torch.no_grad()
def rollout(trainer: GRPOTrainer, rows: list[dict], clock: Clock) -> None:
    with clock.rollout(trainer.model):
        if isinstance(trainer, SemIDGRPOTrainer):
            trainer.roll_out(trainer.model, rows[:: trainer.num_generations], (0, 0, 0))
        else:
            trainer.rollout_func([row["prompt"] for row in rows], trainer)


def policy_step(trainer: GRPOTrainer, inputs: dict, clock: Clock) -> None:
    """Leaves the gradients where they are."""
    trainer.model.zero_grad()
    loss = trainer.compute_loss(trainer.model, inputs)
    clock.lap("forward")
    trainer.accelerator.backward(loss)
    clock.lap("backward")


def whole_step(trainer: GRPOTrainer, rows: list[dict], clock: Clock) -> None:
    with clock.rollout(trainer.model):
        inputs = trainer._prepare_inputs([dict(row) for row in rows])
    policy_step(trainer, inputs, clock)
    trainer.accelerator.clip_grad_norm_(trainer.model.parameters(), trainer.args.max_grad_norm)
    trainer.optimizer.step()
    trainer.state.global_step += 1
    clock.lap("optimizer")


def gradient_errors(ours: SemIDGRPOTrainer, theirs: GRPOTrainer, inputs: dict, losses: dict) -> dict[str, float]:
    """The worst parameter's, as both hold gradients, then by loss type for two groups that another policy drew."""
    inputs = {name: value[: 2 * ours.num_generations] if value.dim() else value for name, value in inputs.items()}
    ids, mask = (torch.cat([inputs[f"prompt_{of}"], inputs[f"completion_{of}"]], 1) for of in ("ids", "mask"))
    with torch.no_grad():
        old, *_ = ours._get_per_token_logps_and_entropies(ours.model, ids, mask, inputs["completion_ids"].shape[1])
    inputs["old_per_token_logps"] = old + 0.2 * torch.randn_like(old)
    errors = {}
    for name, loss in ({"as timed": None} | losses).items():
        for trainer in (copy.copy(ours), copy.copy(theirs)) if loss else ():  # the same models
            clip = {"epsilon_high": 1.2 if name == "cispo" else 0.2}  # of the ratio, or of its distance from 1
            vars(trainer).update(clip | {"importance_sampling_level": "token"} | loss)
            policy_step(trainer, inputs, Clock())
        pairs = zip(ours.model.parameters(), theirs.model.parameters(), strict=True)
        errors[name] = max(float((a.grad - b.grad).abs().max() / b.grad.abs().max()) for a, b in pairs)
    print("gradient error: " + ", ".join(f"{name} {error:.1e}" for name, error in errors.items()))
    return errors


def bench(repeats: int, peers: Sequence[str] = ("TRL", "unfused"), vllm: bool = False, **sizes) -> dict[str, float]:
    """The figures of one vocabulary; where `sizes` widen it, stock TRL is timed once, and its gradients are those."""
    recommender, rows = random_setting(**sizes)
    model, lengths = recommender.model, list(map(len, recommender.tokenizer([r["prompt"] for r in rows])["input_ids"]))
    trainers = {name: make_trainer(name, recommender, rows) for name in ("llmrec", "llmrec, vocabulary", *peers)}
    ours, vocabulary, peer, *_ = trainers.values()
    print(f"\n{model.config.vocab_size:,} rows, {model.num_parameters():,} parameters;", end=" ")
    print(f"{len(rows)} completions of {sizes['prompts']} prompts of {min(lengths)} - {max(lengths)} tokens")
    once, losses = ({"TRL"}, {}) if "vocabulary" in sizes else (set(), LOSSES)
    engine = {"vLLM": make_trainer("vLLM", recommender, rows)} if vllm else {}
    rollouts = compare(rollout, {"llmrec": ours, "generate": peer, **engine}, rows, repeats, set())
    figures = {"rollout_speedup": rollouts["generate"]}
    inputs = ours._prepare_inputs([dict(row) for row in rows])
    inputs["advantages"] = torch.randn(len(rows), generator=torch.Generator().manual_seed(0))
    policy = compare(policy_step, trainers, inputs, repeats, once)
    if "TRL" in peers:
        figures["gradient_max_rel_error"] = max(gradient_errors(vocabulary, peer, inputs, losses).values())
    whole = compare(whole_step, {name: trainers[name] for name in ("llmrec", *peers)} | engine, rows, repeats, once)
    if vllm:
        figures |= {"rollout_vs_vllm": rollouts["vLLM"], "whole_step_vs_vllm": whole["vLLM"]}
    for name in peers:
        ending = "" if name == "TRL" else "_vs_unfused"
        figures |= {f"policy_step_speedup{ending}": policy[name], f"whole_step_speedup{ending}": whole[name]}
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", help="write the figures here")
    for name, value in (("prompts", 4), ("repeats", 3), ("threads", 2)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--vllm", action="store_true", help="time rollouts through vLLM, too")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    logging.set_verbosity_error()
    warnings.filterwarnings("ignore", "You are using 'rollout_func'")
    print(", ".join(f"{name} {value}" for name, value in MODEL.items()) + f", fp32; {args.threads} threads")
    figures = bench(args.repeats, vllm=args.vllm, prompts=args.prompts)
    for peer, prompts in (("TRL", 1), ("unfused", args.prompts)):
        wide = bench(args.repeats, [peer], vocabulary=151_936, prompts=prompts)
        figures |= {f"{name}_v152k": value for name, value in wide.items()}
    if args.json:
        write_json(args.json, {"figures": figures})


if __name__ == "__main__":
    main()

"""`SemIDGRPOTrainer`: losses and gradients of stock TRL from one row a group, every rollout, what is refused."""

import pytest
import torch
from datasets import Dataset
from grpo_runs import DATA, base_folder, batch_of, loaded, make_trainer, settings
from tiny import tiny_index, write_tiny_base
from trl import GRPOTrainer, ModelConfig

from llmrec.rl import PolicyArguments, prompt_rows

LOSSES = {
    "grpo": {"loss_type": "grpo"},
    "dr_grpo": {"loss_type": "dr_grpo"},
    "dapo": {"loss_type": "dapo"},
    "bnpo": {"loss_type": "bnpo"},
    "cispo": {"loss_type": "cispo"},
    "gspo": {"loss_type": "grpo", "importance_sampling_level": "sequence"},
}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return base_folder(tmp_path_factory.mktemp("grpo") / "base")


def gradients(trainer, loss) -> dict[str, torch.Tensor]:
    trainer.model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in trainer.model.named_parameters() if p.grad is not None}


def relative_error(found: dict, wanted: dict) -> float:
    return max(float((found[n] - wanted[n]).abs().max() / wanted[n].abs().max().clamp(min=1e-9)) for n in wanted)


@pytest.mark.parametrize("beta", [0.0, 0.1])
@pytest.mark.parametrize("loss", LOSSES)
def test_loss_and_gradients_are_those_of_one_row_per_completion(base, tmp_path, loss, beta):
    """Stock TRL on the same completions, one row each, after the policy moved away from what rolled out."""
    arguments = settings(tmp_path, num_iterations=2, beta=beta, epsilon=0.05, **LOSSES[loss])
    trainer = make_trainer(base, arguments, PolicyArguments(log_probs="vocabulary"))
    inputs = batch_of(trainer)
    assert "old_per_token_logps" in inputs and inputs["advantages"].abs().max() > 0
    with torch.no_grad():
        for parameter in trainer.model.parameters():
            parameter += (
                0.02 * parameter.std() * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0))
            )
    ours = trainer._compute_loss(trainer.model, inputs)
    found = gradients(trainer, ours)
    stock = type("Stock", (type(trainer),), {
        "_get_per_token_logps_and_entropies": GRPOTrainer._get_per_token_logps_and_entropies,
    })  # fmt: skip
    trainer.__class__ = stock
    theirs = GRPOTrainer._compute_loss(trainer, trainer.model, inputs)
    wanted = gradients(trainer, theirs)
    assert float(ours) == pytest.approx(float(theirs), rel=1e-3, abs=1e-6)
    assert relative_error(found, wanted) < 1e-3


def test_shared_prompts_change_nothing_over_the_catalogue(base, tmp_path):
    arguments = settings(tmp_path, beta=0.1)
    trainer = make_trainer(base, arguments, PolicyArguments(log_probs="catalogue"))
    inputs = batch_of(trainer)
    found = gradients(trainer, trainer._compute_loss(trainer.model, inputs))
    trainer.policy.shared_prompts = False
    wanted = gradients(trainer, trainer._compute_loss(trainer.model, inputs))
    assert relative_error(found, wanted) < 1e-3


def test_the_policy_learns_from_hits_alone(base, tmp_path):
    """Items follow each other in a circle, and a group holds the whole catalogue."""
    group = {"num_generations": 24, "per_device_train_batch_size": 24 * 16, "per_device_eval_batch_size": 24}
    arguments = settings(tmp_path, max_steps=40, learning_rate=2e-3, **group)
    trainer = make_trainer(base, arguments, rewards=("exact_hit",))
    start = trainer.evaluate()
    trainer.train()
    end = trainer.evaluate()
    assert end["eval_ndcg@10"] > start["eval_ndcg@10"] + 0.1
    assert end["eval_valid@10"] == 1


@pytest.mark.parametrize(
    "changes",
    [
        {"rollout": "sample"},
        {"rollout": "mixed", "log_positives": 2},
        {"dead_groups": "skip", "credit": "first_difference"},
        {"dead_groups": "resample", "log_probs": "vocabulary"},
    ],
    ids=str,
)
def test_every_kind_of_policy_trains(base, tmp_path, changes):
    trainer = make_trainer(base, settings(tmp_path, num_iterations=2, beta=0.05), PolicyArguments(**changes))
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    trainer.train()
    assert any(not torch.equal(before[name], p) for name, p in trainer.model.named_parameters())
    log = trainer.state.log_history[0]
    assert (
        0 < log["rollout/mass"] <= 1.0001 and log["entropy/completion"] > 0 and 0 <= log["frac_reward_zero_std"] <= 1
    )


@pytest.mark.parametrize("loss", ["grpo", "bnpo", "dapo"])
def test_the_kl_of_samples_is_the_expectation_over_the_catalogue(tmp_path, loss):
    """By enumeration: a sample of all items is the expectation itself, small ones are about it, unweighted are not."""
    index = tiny_index(DATA, ragged=False)  # equally long, or a mean over tokens is none over items
    base = write_tiny_base(tmp_path / "base", DATA, index, initializer_range=0.2)

    def kl(size: int, prompts: int, weighted: bool = True) -> tuple[float, float, float]:
        sizes = {"num_generations": size, "per_device_train_batch_size": size * prompts, "loss_type": loss}
        sizes |= {"per_device_eval_batch_size": size}
        arguments = settings(tmp_path / "out", beta=0.5, temperature=1.0, **sizes)
        policy, reward = PolicyArguments(rollout="sample"), ("exact_hit:0",)
        row = prompt_rows(DATA, loaded(base))[0]
        rows = Dataset.from_list([{**row, "row": number} for number in range(prompts)])
        trainer = make_trainer(base, arguments, policy, reward, train_dataset=rows)
        with torch.no_grad():
            for parameter in trainer.ref_model.parameters():
                noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
                parameter += 0.2 * parameter.std() * noise
        inputs = batch_of(trainer)
        if not weighted:
            del inputs["importance_weights"]
        value = float(trainer._compute_loss(trainer.model, inputs)) / 0.5
        ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], 1)[:size]
        mask = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], 1)[:size]
        with torch.no_grad():
            now, then = (
                trainer._get_per_token_logps_and_entropies(model, ids, mask, 3)[0].double().sum(1)
                for model in (trainer.model, trainer.ref_model)
            )
        return value, trainer._metrics["train"]["kl"][-1], float((now.exp() * (now - then)).sum() / 3)

    value, logged, exact = kl(24, 1)
    assert exact > 0.01
    assert value == pytest.approx(exact, rel=1e-3) and logged == pytest.approx(exact, rel=1e-3)
    assert kl(24, 1, weighted=False)[0] != pytest.approx(exact, rel=0.2)
    assert kl(8, 100)[0] == pytest.approx(exact, rel=0.1)
    assert kl(8, 100, weighted=False)[0] != pytest.approx(exact, rel=0.2)


def test_dead_groups_give_way_to_live_ones(base, tmp_path):
    def live(dead_groups: str) -> float:
        policy = PolicyArguments(dead_groups=dead_groups)
        arguments = settings(tmp_path, per_device_train_batch_size=64, num_generations=4)
        trainer = make_trainer(base, arguments, policy, rewards=("exact_hit",))
        advantages = batch_of(trainer)["advantages"].view(-1, 4)
        return float((advantages != 0).any(1).float().mean())

    assert live("resample") > live("keep") > 0


def test_skipped_groups_leave_the_mean_to_the_others(base, tmp_path):
    def gradient_of(dead_groups: str) -> tuple[dict, float]:
        arguments = settings(tmp_path, per_device_train_batch_size=32, loss_type="grpo")
        trainer = make_trainer(base, arguments, PolicyArguments(dead_groups=dead_groups), rewards=("exact_hit",))
        inputs = batch_of(trainer)
        share = float((inputs["advantages"].view(-1, 4) != 0).any(1).float().mean())
        return gradients(trainer, trainer._compute_loss(trainer.model, inputs)), share

    kept, share = gradient_of("keep")
    skipped, _ = gradient_of("skip")
    assert 0 < share < 1
    assert relative_error({name: share * value for name, value in skipped.items()}, kept) < 1e-3


def test_lora_is_its_own_reference(base, tmp_path):
    """The reference is the model with its adapter switched off: at first there is no KL, later there is."""
    lora = ModelConfig(use_peft=True, lora_r=4, lora_target_modules=["q_proj", "v_proj"])
    trainer = make_trainer(base, settings(tmp_path, max_steps=4, beta=0.1, learning_rate=1e-2), model_args=lora)
    assert trainer.ref_model is None
    trainer.train()
    divergence = [log["kl"] for log in trainer.state.log_history if "kl" in log]
    assert divergence[0] == pytest.approx(0, abs=1e-6) and divergence[-1] > 1e-4


def test_accumulated_steps_are_those_of_one_batch(base, tmp_path):
    def step(batch: int, accumulated: int) -> dict[str, torch.Tensor]:
        arguments = settings(
            tmp_path,
            max_steps=1,
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=accumulated,
            optim="sgd",
            learning_rate=0.1,
        )
        trainer = make_trainer(base, arguments)
        trainer.train()
        return {name: p.detach() for name, p in trainer.model.named_parameters()}

    whole, parts = step(16, 1), step(4, 4)
    assert all(torch.allclose(whole[name], parts[name], atol=1e-6) for name in whole)


def test_a_wish_is_rewarded_by_what_satisfies_it(base, tmp_path):
    trainer = make_trainer(
        base,
        settings(tmp_path, max_steps=2),
        PolicyArguments(credit="first_difference"),
        rewards=("exact_hit", "wish_satisfied:2"),
        tasks=("stream", "like_but"),
    )
    wishes = [row for row in trainer.train_dataset if row["wish"]]
    assert wishes and all(row["target"] is None for row in wishes)
    trainer.train()
    log = trainer.state.log_history[0]
    assert 0 <= log["rewards/wish_satisfied/mean"] <= 1


BAD = [
    (
        {"num_generations": 32, "per_device_train_batch_size": 32, "per_device_eval_batch_size": 32},
        {},
        "num_generations",
    ),
    ({"per_device_train_batch_size": 6, "gradient_accumulation_steps": 2}, {}, "per_device_train_batch_size"),
    ({"use_vllm": True}, {}, "use_vllm"),
    ({"mask_truncated_completions": True}, {}, "mask_truncated_completions"),
    ({}, {"rollout": "beams"}, "rollout"),
    ({}, {"log_probs": "items"}, "log_probs"),
    ({}, {"dead_groups": "drop"}, "dead_groups"),
    ({}, {"credit": "token"}, "credit"),
    ({}, {"log_positives": 4}, "log_positives"),
    ({}, {"log_positives": 1, "rollout": "sample"}, "log_positives"),
    ({}, {"beam_share": 1.0}, "beam_share"),
]


@pytest.mark.parametrize(("arguments", "policy", "named"), BAD, ids=str)
def test_settings_that_cannot_work_are_refused_by_name(base, tmp_path, arguments, policy, named):
    with pytest.raises(ValueError, match=f"^{named}: "):
        make_trainer(base, settings(tmp_path, **arguments), PolicyArguments(**policy))


def test_a_target_outside_the_catalogue_is_refused(base, tmp_path):
    rows = Dataset.from_list([{"prompt": "x", "history": [], "target": "item-99", "row": row} for row in range(8)])
    with pytest.raises(ValueError, match="target 'item-99' is not in the catalogue"):
        make_trainer(base, settings(tmp_path), train_dataset=rows)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (lambda n: [float("nan")] * n, "is nan"),
        (lambda n: [1.0], "returned 1 values"),
        (lambda n: 1 / 0, "ZeroDivision"),
    ],
)
def test_a_bad_reward_stops_the_first_step(base, tmp_path, values, said):
    from llmrec.rl.rewards import checked

    trainer = make_trainer(base, settings(tmp_path))
    trainer.reward_funcs = [checked(lambda prompts, **kwargs: values(len(prompts)), "mine")] * 2
    with pytest.raises(ValueError, match=f"'mine'.*{said}"):
        trainer.train()


def test_prompts_are_those_of_serving(base, tmp_path):
    trainer = make_trainer(base, settings(tmp_path))
    recommender = trainer.roll_out.recommender
    for row in trainer.train_dataset.select(range(20)):
        assert row["prompt"] == recommender.prompts([row["history"]])[0]
    assert len(trainer.train_dataset) == sum(len(items) - 1 for items in DATA.train["item_ids"].to_pylist())

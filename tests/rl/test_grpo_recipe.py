"""recipes/grpo.py end to end on a tiny catalogue: it runs, resumes to the same rewards, on two processes as on one."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from tiny import tiny_data, tiny_index, write_tiny_base

from llmrec.recommenders import LLMRecommender
from llmrec.training.run import last_complete_checkpoint

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("grpo-recipe")
    data = tiny_data()
    data.save(folder / "data")
    write_tiny_base(folder / "base", data, tiny_index(data))
    return folder


def command(folder: Path, output: str, *flags: str) -> list[str]:
    settings = {
        "model_name_or_path": folder / "base",
        "data_dir": folder / "data",
        "output_dir": folder / output,
        "max_steps": 40,
        "num_generations": 4,
        "per_device_train_batch_size": 32,
        "per_device_eval_batch_size": 4,
        "learning_rate": 1e-3,
        "rollout": "sample",
        "beta": 0.05,
        "validation_rows": 20,
        "eval_strategy": "steps",
        "eval_steps": 20,
        "save_steps": 5,
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "report_to": "none",
        "logging_steps": 1,
        "disable_tqdm": True,
    }
    arguments = [part for key, value in settings.items() for part in (f"--{key}", str(value))]
    return [sys.executable, str(ROOT / "recipes" / "grpo.py"), *arguments, *flags]


def run(folder: Path, output: str, *flags: str) -> subprocess.CompletedProcess:
    return subprocess.run(command(folder, output, *flags), capture_output=True, text=True, timeout=600)


def curve(folder: Path, name: str = "reward") -> dict[int, float]:
    state = json.loads(Path(last_complete_checkpoint(folder), "trainer_state.json").read_text())
    return {log["step"]: log[name] for log in state["log_history"] if name in log}


@pytest.fixture(scope="module")
def trained(base):
    result = run(base, "whole")
    assert result.returncode == 0, result.stderr[-3000:]
    return base / "whole"


def test_the_folder_is_a_recommender(trained, base):
    lists = LLMRecommender.from_pretrained(trained).recommend([["item-03", "item-04"]], k=10)
    assert len({item.item_id for item in lists[0]}) == 10
    stage = json.loads((trained / "stage.json").read_text())
    assert stage["complete"] and stage["results"]["valid@10"] == 1 and 0 < stage["results"]["coverage@10"] <= 1
    assert (trained / "training.png").stat().st_size > 5000
    card = (trained / "README.md").read_text()
    assert "grpo" in card and "ndcg@10" in card
    assert set(curve(trained, "frac_reward_zero_std")) == set(range(1, 41))
    assert curve(trained, "eval_recall@50").keys() == {0, 20, 40}
    again = run(base, "whole")
    assert again.returncode == 0 and "Reusing the model" in again.stdout


def test_a_killed_run_resumes_to_the_same_rewards(trained, base):
    process = subprocess.Popen(
        command(base, "killed"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    deadline = time.time() + 300
    while last_complete_checkpoint(base / "killed") is None and time.time() < deadline and process.poll() is None:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not json.loads((base / "killed" / "stage.json").read_text())["complete"], "it ended before it was killed"
    result = run(base, "killed")
    assert result.returncode == 0, result.stderr[-3000:]
    assert "Resuming from" in result.stdout
    for name in ("reward", "kl", "loss"):
        assert curve(trained, name) == curve(base / "killed", name), name
    weights = [LLMRecommender.from_pretrained(folder).model.state_dict() for folder in (trained, base / "killed")]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_two_processes_are_one(base):
    """Launched as a user would; equal global batches, so that every logged step must agree.

    Without accumulation: TRL averages what it logs over micro-batches, whose completions differ in length.
    """
    short = ["--max_steps", "6", "--num_iterations", "2", "--eval_strategy", "no"]
    short += ["--save_steps", "6", "--dead_groups", "skip"]
    one = run(base, "one", *short)
    assert one.returncode == 0, one.stderr[-3000:]
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--main_process_port", "0"]
    launch += ["--config_file", str(ROOT / "recipes/accelerate/cpu2.yaml")]
    for two, through in (("two", []), ("sharded", [str(ROOT / "tests/fsdp_on_cpu.py")])):
        program = command(base, two, "--per_device_train_batch_size", "16", *short)[1:]
        result = subprocess.run([*launch, *through, *program], capture_output=True, text=True, timeout=600)
        assert result.returncode == 0, result.stderr[-3000:]
        assert ("sharded: " in result.stdout) == bool(through) and "sharded: 0" not in result.stdout
        for name in ("reward", "kl", "grad_norm", "rollout/mass", "entropy/completion"):
            curves = [curve(base / folder, name) for folder in ("one", two)]
            assert curves[0].keys() == curves[1].keys() and len(curves[0]) >= 3
            for step, value in curves[0].items():
                assert math.isclose(value, curves[1][step], rel_tol=1e-3, abs_tol=1e-6), (two, name, step)
    assert len(LLMRecommender.from_pretrained(base / "sharded").recommend([[]], k=3)[0]) == 3


@pytest.mark.slow
def test_processes_that_share_the_weights_resample_together(base):
    """A process without a dead group takes part in the gathering of the weights for those that have one."""
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--main_process_port", "0", "--config_file"]
    launch += [str(ROOT / "recipes/accelerate/cpu2.yaml"), str(ROOT / "tests/fsdp_on_cpu.py")]
    short = ["--max_steps", "6", "--eval_strategy", "no", "--save_steps", "6", "--rollout", "beam"]
    short += ["--dead_groups", "resample", "--rewards", "exact_hit", "--per_device_train_batch_size", "8"]
    program = command(base, "resampled", *short)[1:]
    result = subprocess.run([*launch, *program], capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr[-3000:]
    shares = curve(base / "resampled", "groups/dead").values()
    assert len(shares) == 6 and len({*shares}) > 1


def test_a_folder_without_semantic_ids_is_refused(base, tmp_path):
    recommender = LLMRecommender.from_pretrained(base / "base")
    recommender.model.save_pretrained(tmp_path)
    recommender.tokenizer.save_pretrained(tmp_path)
    result = run(base, "plain", "--model_name_or_path", str(tmp_path))
    assert result.returncode != 0 and "is no llmrec model folder: it has no llmrec_config.json" in result.stderr
    assert not (base / "plain").exists()

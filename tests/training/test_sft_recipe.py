"""The SFT recipe end to end on a tiny catalogue: it learns, resumes to the same loss, reuses, refuses, merges LoRA."""

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from tiny import tiny_data, tiny_index, write_tiny_base

from llmrec.recommenders import LLMRecommender
from llmrec.stages import last_complete_checkpoint

ROOT = Path(__file__).parents[2]
USERS = 160


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sft")
    data = tiny_data(num_users=USERS)
    data.save(folder / "data")
    write_tiny_base(folder / "base", data, tiny_index(data))
    return folder


def command(folder: Path, output: str, *flags: str) -> list[str]:
    settings = {
        "model_name_or_path": folder / "base",
        "data_dir": folder / "data",
        "output_dir": folder / output,
        "num_train_epochs": 12,
        "per_device_train_batch_size": 8,
        "learning_rate": 3e-3,
        "hidden_dropout": 0.1,
        "max_length": 128,
        "train_sampling_strategy": "group_by_length",
        "validation_rows": 20,
        "num_beams": 24,
        "eval_strategy": "epoch",
        "save_strategy": "epoch",
        "load_best_model_at_end": True,
        "metric_for_best_model": "eval_ndcg@10",
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "report_to": "none",
        "logging_steps": 1,
        "disable_tqdm": True,
    }
    arguments = [part for key, value in settings.items() for part in (f"--{key}", str(value))]
    return [sys.executable, str(ROOT / "recipes" / "sft.py"), *arguments, *flags]


def run(folder: Path, output: str, *flags: str) -> subprocess.CompletedProcess:
    return subprocess.run(command(folder, output, *flags), capture_output=True, text=True, timeout=600)


def stage(folder: Path) -> dict:
    return json.loads((folder / "stage.json").read_text())


@pytest.fixture(scope="module")
def trained(base):
    result = run(base, "whole")
    assert result.returncode == 0, result.stderr[-3000:]
    return base / "whole"


def test_the_folder_is_a_recommender_that_learned(trained, base):
    data = tiny_data(num_users=USERS)
    recommender = LLMRecommender.from_pretrained(trained)
    lists = recommender.recommend(data.test["history"].to_pylist(), k=5)
    hits = [t in [item.item_id for item in items] for t, items in zip(data.test["target"].to_pylist(), lists)]
    assert sum(hits) / len(hits) > 0.8  # items follow each other in a circle
    card = (trained / "README.md").read_text()
    assert "ndcg@10" in card and recommender.config.semid_fingerprint in card
    assert stage(trained)["complete"] and stage(trained)["results"]["recall@10"] > 0.8


def test_learning_curves_over_tokens(trained, tmp_path):
    def curves(folder: Path) -> subprocess.CompletedProcess:
        arguments = [f"whole={trained}", f"other={folder}", "--png", str(tmp_path / "curves.png")]
        script = [sys.executable, str(ROOT / "scripts" / "learning_curves.py"), *arguments]
        return subprocess.run(script, capture_output=True, text=True, timeout=600)

    unfinished = tmp_path / "unfinished"
    shutil.copytree(last_complete_checkpoint(trained), unfinished / "checkpoint-240")
    result = curves(unfinished)
    assert result.returncode == 0, result.stderr[-3000:]
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    lines = [line.strip("| ").split(" | ") for line in result.stdout.splitlines() if line.startswith("|")][2:]
    log = json.loads((trained / "trainer_state.json").read_text())["log_history"]
    evaluated = [one for one in log if "eval_recall@10" in one]
    assert len(evaluated) == 13 and evaluated[-1]["step"] == evaluated[-2]["step"]  # the last: of the best model
    for number, one in enumerate(evaluated[:-1]):
        loss = [each["loss"] for each in log if "loss" in each and each["step"] <= one["step"]][-1]
        figures = [f"{one['num_input_tokens_seen']:,}", f"{loss:.4f}"]
        figures += [f"{one[name]:.4f}" for name in ("eval_recall@10", "eval_ndcg@10")]
        for start, name in ((0, "whole"), (12, "other")):
            found = lines[start + number]
            assert [found[0], *found[1:3], *found[4:]] == [name, *figures]
    assert len(lines) == 24
    state = json.loads((unfinished / "checkpoint-240" / "trainer_state.json").read_text())
    del state["log_history"][0]["num_input_tokens_seen"]
    (unfinished / "checkpoint-240" / "trainer_state.json").write_text(json.dumps(state))
    assert "not all of its logs count tokens" in curves(unfinished).stderr
    nothing = curves(tmp_path)
    assert nothing.returncode != 0 and "holds neither trainer_state.json nor a checkpoint" in nothing.stderr


def test_a_second_run_reuses_and_other_settings_are_refused(trained, base):
    again = run(base, "whole")
    assert again.returncode == 0 and "Reusing the model" in again.stdout
    other = run(base, "whole", "--learning_rate", "1e-3")
    assert other.returncode != 0 and "other settings (learning_rate)" in other.stderr


def test_a_killed_run_resumes_to_the_same_loss(trained, base):
    process = subprocess.Popen(
        command(base, "killed"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    deadline = time.time() + 300
    while last_complete_checkpoint(base / "killed") is None and time.time() < deadline and process.poll() is None:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not stage(base / "killed")["complete"], "the run ended before it could be killed"
    (base / "killed" / "checkpoint-999").mkdir()  # what a kill in the middle of saving leaves
    result = run(base, "killed")
    assert result.returncode == 0, result.stderr[-3000:]
    assert "Resuming from" in result.stdout
    assert " rows read lost the oldest items of their history to max_length 128" in result.stderr
    states = [
        json.loads(Path(last_complete_checkpoint(base / name), "trainer_state.json").read_text())
        for name in ("whole", "killed")
    ]
    for name in ("loss", "num_input_tokens_seen"):
        values = [{log["step"]: log[name] for log in state["log_history"] if name in log} for state in states]
        assert values[0] == values[1] and len(values[0]) > 10
    weights = [LLMRecommender.from_pretrained(base / name).model.state_dict() for name in ("whole", "killed")]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_lora_trains_the_new_rows_and_is_merged(base):
    flags = ["--use_peft", "true", "--lora_r", "4", "--lora_target_modules", "q_proj", "v_proj"]
    result = run(base, "lora", *flags, "--num_train_epochs", "2", "--hidden_dropout", "0")
    assert result.returncode == 0, result.stderr[-3000:]
    before = LLMRecommender.from_pretrained(base / "base")
    after = LLMRecommender.from_pretrained(base / "lora")
    old, new = (r.model.get_input_embeddings().weight for r in (before, after))
    changed = (old != new).any(1)
    semid_rows = torch.zeros(len(old), dtype=torch.bool)
    semid_rows[before.tokenizer.convert_tokens_to_ids(before.index.tokens)] = True
    assert not changed[~semid_rows].any() and changed[semid_rows].any()
    assert after.model.get_output_embeddings().weight is after.model.get_input_embeddings().weight
    assert not (base / "lora" / "adapter_config.json").exists()


def curve(folder: Path, name: str = "loss") -> dict[int, float]:
    state = json.loads((folder / "trainer_state.json").read_text())
    return {log["step"]: log[name] for log in state["log_history"] if name in log}


@pytest.mark.parametrize(
    "weights",
    [
        pytest.param([], marks=pytest.mark.slow),
        ["--level_weights", "1.0", "0.25", "--value_column", "price"],
        pytest.param(["--log_probs", "catalogue"], marks=pytest.mark.slow),
    ],
)
def test_two_processes_give_the_loss_curve_of_one(base, weights):
    """Launched as a user would; equal global batches, so that every logged step must agree."""
    short = ["--hidden_dropout", "0", "--num_train_epochs", "1", "--eval_strategy", "no", *weights]
    short += ["--load_best_model_at_end", "false", "--gradient_accumulation_steps", "2"]
    names = [f"{count}-{len(weights)}" for count in ("one", "two")]
    one = run(base, names[0], *short)
    assert one.returncode == 0, one.stderr[-3000:]
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--main_process_port", "0"]
    launch += ["--config_file", str(ROOT / "recipes/accelerate/cpu2.yaml")]
    program = command(base, names[1], "--per_device_train_batch_size", "4", *short)[1:]
    two = subprocess.run(launch + program, capture_output=True, text=True, timeout=600)
    assert two.returncode == 0, two.stderr[-3000:]
    curves = [curve(base / name) for name in names]
    assert curves[0].keys() == curves[1].keys() and len(curves[0]) == 10
    for step, loss in curves[0].items():
        assert math.isclose(loss, curves[1][step], rel_tol=1e-3), step
    assert curves[0][1] > (1.0 if "catalogue" in weights else 1.2) * curves[0][10]
    seen = [curve(base / name, "num_input_tokens_seen") for name in names]
    assert seen[0] == seen[1] and len(set(seen[0].values())) == 10
    assert (base / names[1] / "training.png").stat().st_size > 5000


LORA = ["--use_peft", "true", "--lora_target_modules", "all-linear"]


@pytest.mark.parametrize("adapter", [[], pytest.param(LORA, marks=pytest.mark.slow)])
def test_two_processes_that_share_the_weights_are_one(base, adapter):
    """FSDP2: loss and recall while training, the best checkpoint and its lists as of one process."""
    short = ["--hidden_dropout", "0", "--num_train_epochs", "2", "--lora_dropout", "0", *adapter]
    short += ["--load_best_model_at_end", "false"] if adapter else []
    names = [f"{count}-{len(adapter)}" for count in ("whole", "sharded")]
    one = run(base, names[0], *short)
    assert one.returncode == 0, one.stderr[-3000:]
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--main_process_port", "0"]
    launch += ["--config_file", str(ROOT / "recipes/accelerate/cpu2.yaml"), str(ROOT / "tests/fsdp_on_cpu.py")]
    program = command(base, names[1], "--per_device_train_batch_size", "4", *short)[1:]
    two = subprocess.run(launch + program, capture_output=True, text=True, timeout=600)
    assert two.returncode == 0, two.stderr[-3000:]
    assert "sharded: " in two.stdout and "sharded: 0" not in two.stdout
    for name in ("loss", "grad_norm", "eval_recall@10", "eval_ndcg@10"):
        curves = [curve(base / folder, name) for folder in names]
        assert curves[0].keys() == curves[1].keys() and len(curves[0]) >= 2
        for step, value in curves[0].items():
            rounding = 3e-3 if name == "grad_norm" else 1e-3  # it is far more sensitive
            assert math.isclose(value, curves[1][step], rel_tol=rounding), (name, step)
    lists = [LLMRecommender.from_pretrained(base / folder).recommend([["item-03"]], k=5)[0] for folder in names]
    scores = [[item.score for item in items] for items in lists]
    assert scores[0] == pytest.approx(scores[1], rel=1e-3)


def test_another_catalogue_is_refused(base):
    data = tiny_data(num_items=20)
    data.save(base / "other_data")
    result = run(base, "refused", "--data_dir", str(base / "other_data"))
    assert result.returncode != 0 and "made for another catalogue" in result.stderr
    assert not (base / "refused").exists()


def test_an_unknown_behaviour_is_refused_before_training(base, tmp_path):
    result = run(base, "refused", "--behaviour", "byu")
    assert result.returncode != 0 and "behaviour 'byu' has no token; the model knows none at all" in result.stderr
    data = tiny_data(num_users=USERS)
    data.save(tmp_path / "data")
    write_tiny_base(tmp_path / "base", data, tiny_index(data).with_behaviours(["view", "buy"]))
    result = run(tmp_path, "refused", "--behaviour", "byu")
    assert result.returncode != 0 and "behaviour 'byu' has no token; the model knows view, buy" in result.stderr
    assert not (base / "refused").exists() and not (tmp_path / "refused").exists()

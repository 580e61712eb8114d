"""The files of recipes/accelerate: those for the CPU are run, those for GPUs are read and checked by accelerate."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from accelerate import FullyShardedDataParallelPlugin
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import (
    prepare_deepspeed_cmd_env,
    prepare_multi_gpu_env,
    prepare_simple_launcher_cmd_env,
)

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "recipes/accelerate"
PROGRAM = """
import torch
from accelerate import Accelerator
accelerator = Accelerator(cpu=True)
ranks = accelerator.gather(torch.tensor([accelerator.process_index])).tolist()
if accelerator.is_main_process:
    print("ranks", ranks, accelerator.device.type)
accelerator.end_training()
"""


@pytest.mark.parametrize(("config", "ranks"), [("cpu", "[0]"), ("cpu2", "[0, 1]")])
def test_cpu_configurations_start_what_they_say(tmp_path, config, ranks):
    """accelerate's MULTI_CPU starts one process and does not say so; ours must not."""
    (tmp_path / "program.py").write_text(PROGRAM)
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--main_process_port", "0"]
    launch += ["--config_file", str(ROOT / f"recipes/accelerate/{config}.yaml"), str(tmp_path / "program.py")]
    result = subprocess.run(launch, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stderr[-2000:]
    assert f"ranks {ranks} cpu" in result.stdout


def test_two_machines_are_one_group(tmp_path):
    (tmp_path / "program.py").write_text(PROGRAM)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(FOLDER / "cpu2.yaml")]
    launch += ["--num_machines", "2", "--num_processes", "2", "--main_process_ip", "127.0.0.1"]
    launch += ["--main_process_port", port, "--machine_rank"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    machines = [subprocess.Popen([*launch, rank, str(tmp_path / "program.py")], **pipes) for rank in "01"]
    said = [machine.communicate(timeout=600)[0] for machine in machines]
    assert [machine.returncode for machine in machines] == [0, 0], said
    assert "ranks [0, 1] cpu" in said[0] and "ranks" not in said[1]


# What accelerate hands to the processes, by file; the rest of the environment is its own affair.
EXPECTED = {
    "cpu": {"ACCELERATE_USE_CPU": "True", "ACCELERATE_MIXED_PRECISION": "no"},
    "cpu2": {"ACCELERATE_MIXED_PRECISION": "no"},
    "single_gpu": {"CUDA_VISIBLE_DEVICES": "0", "ACCELERATE_MIXED_PRECISION": "bf16"},
    "ddp": {"ACCELERATE_MIXED_PRECISION": "bf16"},
    "fsdp2": {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "ACCELERATE_MIXED_PRECISION": "bf16"},
    "deepspeed_zero2": {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "2"},
    "deepspeed_zero3": {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "3"},
}


def launch_environment(path: Path) -> dict[str, str]:
    """What `accelerate launch --config_file <path> recipes/sft.py` would start its processes with, without starting
    any; accelerate's own reading, checks and preparation."""
    args = launch_command_parser().parse_args(["--config_file", str(path), "recipes/sft.py"])
    known = set(vars(args))
    args, defaults, _ = _validate_launch_command(args)  # refuses unknown keys at the top
    for section in ("fsdp_config", "deepspeed_config"):
        unknown = sorted(set(getattr(defaults, section)) - known)
        if unknown:  # accelerate ignores these
            raise ValueError(f"{path.name}: {section} has unknown keys {unknown}")
    if args.use_deepspeed:
        args.deepspeed_fields_from_accelerate_config = ",".join(defaults.deepspeed_config)
        return prepare_deepspeed_cmd_env(args)[1]
    if args.use_fsdp or args.multi_gpu:
        return prepare_multi_gpu_env(args)
    return prepare_simple_launcher_cmd_env(args)[1]


def test_every_file_is_checked():
    assert {path.stem for path in FOLDER.glob("*.yaml")} == set(EXPECTED)


@pytest.mark.parametrize("name", EXPECTED)
def test_accelerate_understands_every_key(name, monkeypatch):
    environment = launch_environment(FOLDER / f"{name}.yaml")
    for key, value in EXPECTED[name].items():
        assert environment.get(key) == value, key
    if name == "fsdp2":
        for key in [key for key in os.environ if key.startswith("FSDP_")]:
            monkeypatch.delenv(key)
        for key, value in environment.items():
            if key.startswith("FSDP_"):
                monkeypatch.setenv(key, value)
        plugin = FullyShardedDataParallelPlugin()
        assert plugin.fsdp_version == 2 and plugin.reshard_after_forward is True
        assert plugin.state_dict_type.name == "FULL_STATE_DICT" and plugin.auto_wrap_policy is not None


@pytest.mark.parametrize(
    ("name", "section", "key"),
    [
        ("ddp", None, "num_procs"),
        ("fsdp2", "fsdp_config", "fsdp_shard"),
        ("deepspeed_zero3", "deepspeed_config", "zero"),
    ],
)
def test_a_misspelt_key_fails(tmp_path, name, section, key):
    config = yaml.safe_load((FOLDER / f"{name}.yaml").read_text())
    (config if section is None else config[section])[key] = 1
    (tmp_path / "bad.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(ValueError, match=f"unknown keys.*{key}"):
        launch_environment(tmp_path / "bad.yaml")

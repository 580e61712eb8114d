import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
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

"""`scripts/check_gpu.sh`: every part runs, here on small shapes and on a GPU on larger ones."""

import json
import os
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "scripts" / "check_gpu.sh"
PARTS = ("sft_tokens_per_second", "grpo_tokens_per_second", "evaluation_users_per_second", "sasrec_epoch_s")
PARTS += ("rq_vae_epoch_s", "search_fp32_ctx24_beam4_ms", "generate_bf16_ctx24_beam16_ms", "syncs_per_search")


def check(path: Path, *arguments: str, **environment: str) -> dict:
    command = ["bash", str(SCRIPT), "--json", str(path), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | environment)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return json.loads(path.read_text())


def test_every_part_runs_on_small_shapes(tmp_path):
    found = check(tmp_path / "check.json", "--small")
    assert not found["failed"] and not found["left_out"]
    assert set(PARTS) <= found["figures"].keys()
    assert found["figures"]["syncs_per_search"] <= 2 and found["figures"]["device_lists_equal"] == 1
    assert all(value >= 0.98 for name, value in found["figures"].items() if name.startswith("shared_fp32"))


def test_what_is_not_installed_is_left_out_and_named(tmp_path):
    """Modules that cannot be imported stand for packages that are not there."""
    for name in ("trl", "faiss"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(f"raise ModuleNotFoundError('no', name={name!r})\n")
    found = check(
        tmp_path / "check.json", "--small", "--parts", "sft", "grpo", "rq_vae", "parity", PYTHONPATH=str(tmp_path)
    )
    assert found["left_out"] == {
        "sft": "trl is not installed",
        "grpo": "trl is not installed",
        "rq_vae": "faiss is not installed",
    }
    assert found["figures"]["syncs_per_search"] <= 2


def test_without_a_gpu_it_says_so():
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    done = subprocess.run(["bash", str(SCRIPT)], capture_output=True, text=True)
    assert done.returncode == 1 and "--small" in done.stderr


@pytest.mark.gpu
def test_a_gpu_says_what_the_cpu_says(tmp_path):
    found = check(tmp_path / "check.json", "--parts", "parity", "search", "sasrec", "evaluation", "rq_vae")
    assert not found["failed"] and found["figures"]["syncs_per_search"] <= 2

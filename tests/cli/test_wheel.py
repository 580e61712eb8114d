"""The wheel, built and installed where there is no clone. The package index is asked for hatchling."""

import os
import subprocess
import sys
import venv
from pathlib import Path

import pytest
import yaml

from llmrec.cli.__main__ import overview

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """`site-packages` of a new environment, with the wheel in it and all else that is installed here."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "pip", "wheel", str(ROOT), "--no-deps", "--quiet", "--wheel-dir", str(folder)]
    subprocess.run(build, check=True)
    venv.create(folder / "env", with_pip=True)
    [wheel] = folder.glob("*.whl")
    python = str(folder / "env" / "bin" / "python")
    subprocess.run([python, "-m", "pip", "install", "--quiet", "--no-deps", str(wheel)], check=True)
    [site] = (folder / "env" / "lib").glob("python*/site-packages")
    (site / "others.pth").write_text(f"{Path(yaml.__file__).parents[1]}\n")
    return site


@pytest.fixture
def run(site, tmp_path):
    def run(*argv: str) -> str:
        command = [str(site.parents[2] / "bin" / "llmrec"), *argv]
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


def test_it_brings_recipes_and_prompts_and_its_command(site, run):
    there = {str(path.relative_to(site / "llmrec")) for path in (site / "llmrec").rglob("*") if path.is_file()}
    for name in ("recipes", "prompts"):
        files = [path for path in (ROOT / name).rglob("*") if path.is_file() and path.suffix != ".pyc"]
        assert {str(path.relative_to(ROOT)) for path in files} <= there and files
    assert run("--help") == overview()
    assert "--hidden_dropout float" in run("sft", "--help")
    assert f"llmrec 0.3.0 in {site}" in run("env") and str(site) in run("configs")


def test_the_stages_run_from_it(run, tmp_path):
    small = {"name": "small", "output_dir": "out/quickstart/data", "source": "synthetic"}
    small["source_args"] = {"num_items": 1500, "num_users": 1000, "seed": 1}
    (tmp_path / "data.yaml").write_text(yaml.safe_dump(small))
    shipped = "recipes/configs/quickstart"
    run("prepare_data", "--config", "data.yaml")
    run("tokenize_items", "--config", f"{shipped}/semids.yaml")
    run("init_model", "--config", f"{shipped}/model.yaml")
    few = ["--max_steps", "2", "--eval_strategy", "no", "--save_strategy", "no", "--load_best_model_at_end", "false"]
    launch = ["--config_file", "recipes/accelerate/cpu.yaml"]
    said = run("sft", *launch, "--config", f"{shipped}/sft.yaml", *few, "--validation_rows", "20")
    assert "Wrote out/quickstart/model" in said

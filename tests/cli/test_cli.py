"""The command `llmrec`: which stages there are, what runs them, and what of the flags goes to accelerate."""

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from llmrec.arguments import did_you_mean
from llmrec.cli import env
from llmrec.cli.__main__ import FLOW, LAUNCHED, OWN, STAGES, apart, command_of, main, overview, shipped_configs
from llmrec.commands import Parser, read_yaml
from llmrec.flags import flags_of
from llmrec.instructions import load_prompt
from llmrec.shipped import find, folder

ROOT = Path(__file__).parents[2]
RECIPES = sorted((ROOT / "recipes").glob("*.py"))


def test_every_recipe_is_a_stage_and_is_said_in_one_line():
    assert sorted(STAGES) == [path.stem for path in RECIPES] and not {*STAGES} & {*OWN}
    text = overview()
    lines = [line for line in text.splitlines() if line.startswith("  ")]
    assert len(lines) == len(STAGES) + len(OWN) and all(f"\n{title}:\n" in text for title in FLOW)
    assert "  sft                  Supervised fine-tuning of a language model" in text


def test_those_that_train_are_launched():
    trains = [path.stem for path in RECIPES if any(f.name == "bf16" for g in flags_of(path).values() for f in g)]
    assert sorted(LAUNCHED) == trains


def test_help_imports_next_to_nothing(tmp_path):
    script = "import sys; sys.argv = ['llmrec', *sys.argv[1:]]; from llmrec.cli.__main__ import main; main()\n"
    script += "print({'torch', 'numpy', 'pyarrow', 'yaml', 'accelerate', 'trl'} & sys.modules.keys())"
    for argv in ["--help"], ["sft", "--help"], ["prepare_data", "--data_dir", "x", "-h"], ["configs"]:
        done = subprocess.run(
            [sys.executable, "-c", script, *argv], capture_output=True, text=True, cwd=ROOT, check=True
        )
        assert done.stdout.endswith("\nset()\n") and done.stdout.count("\n") > 20, argv
        assert ("accelerate launch:" in done.stdout) == ("sft" in argv)


def test_flags_go_to_whom_they_belong(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    given = ["--num_processes", "2", "--config", "my.yaml", "--mixed-precision=no", "--debug", "x", "--num_beams", "5"]
    launch, ours = apart(given, {"--config", "--debug", "--num_beams"})
    assert launch == ["--num_processes", "2", "--mixed-precision", "no"]
    assert ours == ["--config", "my.yaml", "--debug", "x", "--num_beams", "5"]
    assert apart(["--config", "my.yaml", "--tasks", "a", "--b"], {"--config", "--tasks", "--b"})[0] == []

    shipped = str(ROOT / "recipes" / "accelerate" / "cpu2.yaml")
    argv = ["--learning-rate=1e-3", "--config_file", "recipes/accelerate/cpu2.yaml", "--learning_rat", "1"]
    python, *launcher = command_of("sft", argv)
    script = str(ROOT / "recipes" / "sft.py")
    assert python == sys.executable and launcher[-6:-4] == ["--config_file", shipped]
    assert launcher[-4:] == [script, "--learning-rate=1e-3", "--learning_rat", "1"]  # which the recipe refuses
    assert "llmrec.cli.launch" in launcher
    script = str(ROOT / "recipes" / "evaluate.py")
    assert command_of("evaluate", ["--num_processes", "2"]) == [python, script, "--num_processes", "2"]


def test_an_unknown_stage_is_named_with_the_nearest(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["llmrec", "stf", "--config", "x"])
    monkeypatch.setattr(sys, "excepthook", sys.__excepthook__)
    with pytest.raises(ValueError, match=f"stage 'stf' is not one of new, .*{did_you_mean('stf', STAGES)[-6:]}"):
        main()


def test_errors_are_for_people(tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "llmrec.cli", "new", "shop", "--interactions", "nowhere.csv"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.startswith("Error: nowhere.csv: no such file")


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--max_steps", "ten"], "Error: --max_steps is 'ten', it should be a whole number\n"),
        (["--config_file", "no.yaml"], "Error: The passed configuration file `no.yaml` does not exist."),
        (["--num_processes", "two"], "Error: accelerate launch: argument --num_processes/"),
        (["--num_machines", "3", "--num_processes", "3"], "Error: accelerate launch: When using multiple machines"),
    ],
)
def test_a_launch_says_no_more_than_the_error(tmp_path, more, said):
    """Not which defaults accelerate took, nor its traceback."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HOME": str(tmp_path)}  # without defaults of its own
    command = [sys.executable, "-m", "llmrec.cli", "sft", *more]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    lines = done.stderr.splitlines(keepends=True)
    lines = [line for line in lines if "kernels-community" not in line]  # bitsandbytes, on CPUs with bfloat16
    assert done.returncode == 1 and "".join(lines).startswith(said) and len(lines) <= 3


def test_what_is_shipped_is_found_from_every_folder_and_yields_to_your_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = "recipes/configs/quickstart/data.yaml"
    assert find(name) == ROOT / name and read_yaml(name)["name"] == "quickstart"
    assert find("recipes/none.yaml") == Path("recipes/none.yaml") and find("out/x") == Path("out/x")
    assert load_prompt("prompts/lean/stream.yaml") == load_prompt(ROOT / "prompts/lean/stream.yaml")
    (tmp_path / name).parent.mkdir(parents=True)
    (tmp_path / name).write_text("name: mine\n")
    assert read_yaml(name) == {"name": "mine"}
    listed = shipped_configs().splitlines()
    assert name in listed and str(ROOT) in listed[-1]
    assert len(listed) == 1 + len([*(ROOT / "recipes").rglob("*.yaml")])


def test_a_recipe_takes_a_shipped_configuration(tmp_path, monkeypatch):
    from recipes.recommend import RecommendArguments

    monkeypatch.chdir(tmp_path)
    config = "recipes/configs/quickstart/recommend.yaml"
    [args] = Parser((RecommendArguments,)).parse_args_and_config(["--config", config, "--k", "2"])
    assert (args.model, args.k) == (yaml.safe_load((ROOT / config).read_text())["model"], 2)


def test_env_says_what_is_there_and_which_extra_brings_what_is_not(monkeypatch):
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    said = "\n".join(env.parts())
    assert all(f"\n{extra}: " in said for extra in extras) and "\n  trl 1.16." in said

    def version(name: str) -> str:
        if name == "gguf":
            raise env.PackageNotFoundError(name)
        return "0.1" if name == "trl" else true(name)

    true = env.version
    monkeypatch.setattr(env, "version", version)
    said = "\n".join(env.parts())
    assert '\ngguf: pip install "llmrec[gguf]"\n  gguf is missing (>=0.19)\n' in said
    assert "\n  trl 0.1 is there, <1.17,>=1.16 is needed\n" in said


def test_the_wheel_is_told_to_bring_what_is_looked_for_in_it():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    included = project["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"]
    assert included == {name: f"llmrec/{name}" for name in ("recipes", "prompts")}
    assert all(folder(name) == ROOT / name for name in included)
    assert project["project"]["scripts"] == {"llmrec": "llmrec.cli.__main__:main"}
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    assert all(f"!{name}" in ignored for name in ("llmrec", *included))

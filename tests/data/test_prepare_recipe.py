import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest
import yaml
from pyarrow import csv
from trl import TrlParser

from llmrec.data import PreparedData
from llmrec.data.provenance import expand
from llmrec.data.sources import SOURCES

ROOT = Path(__file__).parents[2]
CONFIGS = sorted((ROOT / "recipes" / "configs").glob("*/data.yaml"))

spec = importlib.util.spec_from_file_location("prepare_data_recipe", ROOT / "recipes" / "prepare_data.py")
recipe = importlib.util.module_from_spec(spec)
sys.modules[spec.name] = recipe
spec.loader.exec_module(recipe)


def run(*arguments):
    """The prepared data."""
    args = TrlParser((recipe.DataArguments,)).parse_args_and_config(args=list(map(str, arguments)))[0]
    recipe.main(args)
    return PreparedData.load(expand(args.output_dir))


@pytest.fixture
def config(tmp_path, monkeypatch):
    monkeypatch.setenv("MY_SHOP", str(tmp_path))
    users, items = [u for u in range(6) for _ in range(4)], [(u + step) % 5 for u in range(6) for step in range(4)]
    csv.write_csv(pa.table({"user_id": users, "item_id": items}), tmp_path / "log.csv")
    csv.write_csv(pa.table({"item_id": range(5), "title": list("ABCDE")}), tmp_path / "items.csv")
    path = tmp_path / "data.yaml"
    path.write_text(
        "output_dir: ${MY_SHOP}/out\nsource: table\nuser_k: 2\n"
        "source_args:\n  interactions: ${MY_SHOP}/log.csv\n  items: $MY_SHOP/items.csv\n"
    )
    return path


def test_files_that_the_source_does_not_name_do_not_matter(config, tmp_path, monkeypatch, capsys):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    run("--config", config)
    for name in ("table", "log.txt"):  # one is called like the value of a setting
        (elsewhere / name).write_text("new")
    run("--config", config)
    assert "Reusing" in capsys.readouterr().out


def test_second_run_reuses_and_a_changed_file_does_not(config, tmp_path, capsys):
    first = run("--config", config)
    assert "Prepared" in capsys.readouterr().out
    assert PreparedData.load(tmp_path / "out").fingerprint == first.fingerprint
    assert run("--config", config).fingerprint == first.fingerprint
    printed = capsys.readouterr().out
    assert "Reusing" in printed and re.search(r"users +6\n", printed)
    run("--config", config, "--overwrite", "true")
    assert "Prepared" in capsys.readouterr().out
    with open(tmp_path / "log.csv", "a") as file:
        file.write("7,1\n7,2\n7,3\n")
    assert run("--config", config).info["statistics"]["users"] == 7


def test_other_settings_do_not_replace_a_folder_unasked(config, tmp_path):
    before = run("--config", config)
    with pytest.raises(ValueError, match=r"prepared with other settings \(split, ties\).*--overwrite true"):
        run("--config", config, "--ties", "item_id", "--split", "given")
    assert PreparedData.load(tmp_path / "out").fingerprint == before.fingerprint
    run("--config", config, "--ties", "item_id", "--overwrite", "true")


def test_overwrite_replaces_prepared_data_alone(config, tmp_path):
    run("--config", config)
    for folder, file in ((tmp_path / "mine", "thesis.txt"), (tmp_path / "out", "notes.txt")):
        folder.mkdir(exist_ok=True)
        (folder / file).write_text("precious")
        with pytest.raises(ValueError, match=rf"{folder.name} holds files that are no prepared data \({file}\)"):
            run("--config", config, "--output_dir", folder, "--overwrite", "true")
        assert (folder / file).read_text() == "precious"
    with pytest.raises(ValueError, match="log.csv is a file, and should be a folder"):
        run("--config", config, "--output_dir", tmp_path / "log.csv")


def test_nothing_half_written_remains(config, tmp_path):
    with open(tmp_path / "log.csv", "a") as file:
        file.write("8,unknown\n")
    before = sorted(tmp_path.iterdir())
    with pytest.raises(ValueError, match=r"row 25: item 'unknown' is not among the items"):
        run("--config", config)
    assert sorted(tmp_path.iterdir()) == before


def test_wrong_settings_are_named(config, monkeypatch):
    with pytest.raises(ValueError, match="source 'tables' is not one of table, hub"):
        run("--config", config, "--source", "tables")
    with pytest.raises(ValueError, match="source_args of source 'movielens': .*'folder'"):
        run("--config", config, "--source", "movielens")
    config.write_text(config.read_text() + "user_core: 5\n")
    with pytest.raises(ValueError, match="user_core"):
        run("--config", config)
    monkeypatch.delenv("MY_SHOP")
    with pytest.raises(ValueError, match="environment variable MY_SHOP, which is not set"):
        expand({"a": ["${MY_SHOP}/log.csv"]})


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.parent.name)
def test_every_shipped_configuration_is_valid(path):
    (args,) = TrlParser((recipe.DataArguments,)).parse_args_and_config(args=["--config", str(path)])
    assert args.output_dir == f"out/{path.parent.name}/data" and args.name == path.parent.name
    recipe.inspect.signature(SOURCES[args.source]).bind(**args.source_args)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["industrial", "beauty", "sports", "games", "office", "office14", "movielens"])
def test_real_configurations(name, tmp_path):
    data = run("--config", ROOT / "recipes" / "configs" / name / "data.yaml", "--output_dir", tmp_path / name)
    assert data.test.num_rows and data.info["statistics"]["text_title"] > 0.99


def test_the_documents_first_steps_run_as_they_stand(tmp_path):
    text = (ROOT / "docs" / "own_data.md").read_text(encoding="utf-8")
    steps = text.split("## 3.")[0]
    script = "set -e\n" + "\n".join(re.findall(r"```bash\n(.*?)```", steps, re.DOTALL))
    assert script.count("\nllmrec new my_shop ") == script.count("\nllmrec prepare_data ") == 1
    script = script.replace("\nllmrec ", "\npython -m llmrec.cli ")  # installed or not
    paths = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        ["bash", "-c", script], cwd=tmp_path, env={**os.environ, **paths}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    by_hand = yaml.safe_load(re.search(r"```yaml\n(.*?)```", steps, re.DOTALL)[1])
    written = yaml.safe_load((tmp_path / "my_shop" / "data.yaml").read_text())
    for name in ("columns", "item_columns"):
        assert by_hand["source_args"][name].items() <= written["source_args"][name].items()
    assert "Prepared out/my_shop/data" in done.stdout
    data = PreparedData.load(tmp_path / "out" / "my_shop" / "data")
    assert data.info["statistics"]["users"] > 1000 and data.test["timestamp"].null_count == 0

    # The last section prepares the same files in Python.
    code = re.findall(r"```python\n(.*?)```", text, re.DOTALL)[-1]
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env={**os.environ, **paths}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert PreparedData.load(tmp_path / "out" / "my_shop" / "data_by_time").info["rules"]["split"] == "time"

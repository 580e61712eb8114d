"""Sweeps: which stages a try makes anew, what is refused, and the recipe end to end on a tiny store."""

import json
import runpy
import sys
from pathlib import Path

import pytest
import yaml
from stage_files import write_yaml
from tiny import tiny_data

from llmrec.evaluation.sweep import tries_of

ROOT = Path(__file__).parents[2]
CONFIGS = sorted(ROOT.glob("recipes/configs/*/sweep.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.parent.name)
def test_committed_sweeps_name_what_exists(path, monkeypatch):
    monkeypatch.chdir(ROOT)
    config = yaml.safe_load(path.read_text())
    runs = tries_of(config["base"], config["tries"], config["data_dir"], config["output_dir"])
    assert len({run.folder for run in runs}) == len(runs) > 1
    assert all((ROOT / f"recipes/{recipe}.py").exists() for run in runs for recipe, _ in [*run.shared, *run.stages])


@pytest.fixture
def base(tmp_path):
    semids = write_yaml(
        tmp_path / "semids.yaml", {"data_dir": "d", "output_dir": "o/semids", "args": {"a": 1, "b": 2}}
    )
    model = write_yaml(tmp_path / "base.yaml", {"data_dir": "d", "output_dir": "o/base", "semids": "o/semids"})
    sft = {"data_dir": "d", "output_dir": "o/model", "model_name_or_path": "o/base", "seed": 0, "epochs": 8}
    stages = [{"init_model": model}, {"sft": write_yaml(tmp_path / "sft.yaml", sft)}]
    return {"shared": [{"tokenize_items": semids}], "stages": stages, "seeds": [0, 1]}


def test_a_try_makes_anew_what_changes_and_what_follows(base):
    tries = {"longer": {"sft": {"epochs": 40}}, "codes": {"tokenize_items": {"args": {"b": 3}}, "sft": {"epochs": 9}}}
    runs = tries_of(base, tries, "d", "o/sweep")
    labels = ["base", "longer", "codes", "base-seed-1", "longer-seed-1", "codes-seed-1"]
    assert [run.label for run in runs] == labels
    first, longer, codes, again, longer_again, _ = runs
    assert first.folder == "o/model" and again.folder == "o/model-seed-1"
    ((recipe, settings),) = longer.stages
    assert recipe == "sft" and longer.shared == [*first.shared, first.stages[0]]
    assert settings == {**first.stages[1][1], "output_dir": "o/sweep/longer/3_sft", "epochs": 40}
    (_, settings) = longer_again.stages[0]
    assert (settings["model_name_or_path"], settings["seed"]) == ("o/base-seed-1", 1)
    assert codes.shared == [] and [recipe for recipe, _ in codes.stages] == ["tokenize_items", "init_model", "sft"]
    (_, semids), (_, model), (_, sft) = codes.stages
    assert semids["args"] == {"a": 1, "b": 3} and model["semids"] == "o/sweep/codes/1_tokenize_items"
    assert sft["model_name_or_path"] == "o/sweep/codes/2_init_model"
    assert first.shared[0][1]["args"] == {"a": 1, "b": 2}  # the base stays as it is


@pytest.mark.parametrize("tries, message", [
    ({"base": {"sft": {"epochs": 1}}}, "'base' should be a name for a folder"),
    ({"a/b": {"sft": {"epochs": 1}}}, "'a/b' should be a name for a folder"),
    ({"a": {"sfd": {"epochs": 1}}}, "tries: a: recipe 'sfd' is not one of .*did you mean 'sft'"),
    ({"a": {"sft": 3}}, "tries: a is .* it should be recipes and what changes"),
    ({"a": {"sft": {"epochs": 8}}}, "tries: a: sft has these settings already"),
    ({"a": {}}, "tries: a changes nothing"),
    ({"a": {"sft": {"output_dir": "elsewhere"}}}, "sft: output_dir: other stages would not follow"),
])  # fmt: skip
def test_tries_that_are_none(base, tries, message):
    with pytest.raises(ValueError, match=message):
        tries_of(base, tries, "d", "o/sweep")
    twice = base | {"stages": [*base["stages"], base["stages"][-1]]}
    with pytest.raises(ValueError, match="sft runs more than once"):
        tries_of(twice, {"a": {"sft": {"epochs": 1}}}, "d", "o/sweep")


def test_the_recipe_compares_on_validation_and_goes_on(tmp_path, monkeypatch, capfd):
    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["sweep.py", "--config", str(config), *arguments])
        runpy.run_path(str(ROOT / "recipes/sweep.py"), run_name="__main__")

    tiny_data().save(tmp_path / "data")
    small = {"max_length": 8, "hidden_size": 16, "learning_rate": 0.01, "batch_size": 16, "max_epochs": 6}
    fields = {"data_dir": str(tmp_path / "data"), "output_dir": str(tmp_path / "sasrec"), "kind": "sasrec"}
    stage = write_yaml(tmp_path / "sasrec.yaml", fields | {"settings": small})
    config = tmp_path / "sweep.yaml"
    settings = {
        "data_dir": str(tmp_path / "data"),
        "output_dir": str(tmp_path / "sweep"),
        "base": {"stages": [{"train_recommender": stage}], "seeds": [0, 1]},
        "tries": {
            "still": {"train_recommender": {"settings": {"learning_rate": 1e-6}}},
            "wrong": {"train_recommender": {"settings": {"learning_rate": -1.0}}},
        },
    }
    write_yaml(config, settings)
    with pytest.raises(ValueError, match="failed: wrong, wrong-seed-1"):
        run()
    found = json.loads((tmp_path / "sweep" / "sweep.json").read_text())
    assert [row["name"] for row in found["tries"]] == ["base", "still"] and found["missing"] == ["wrong"]
    ours, still = found["tries"]
    assert ours["seeds"] == 2 and ours["difference"] is None
    assert still["difference"] == pytest.approx(still["ndcg@10"] - ours["ndcg@10"]) and still["difference"] < 0
    table = (tmp_path / "sweep" / "sweep.md").read_text()
    assert "| still | settings: {'learning_rate': 1e-06} | 2 |" in table and "Not finished: wrong." in table
    del settings["tries"]["wrong"]
    write_yaml(config, settings)
    capfd.readouterr()
    run("--only", "still")
    assert capfd.readouterr().out.count("Reusing") == 4
    with pytest.raises(ValueError, match="only: 'stil'.*did you mean 'still'"):
        run("--only", "stil")

"""The leaderboard: runs and their seeds, its page, and the recipe end to end on a tiny store, stopped and gone on."""

import json
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from stage_files import write_yaml
from tiny import tiny_data

from llmrec.evaluation.leaderboard import runs_of
from llmrec.evaluation.leaderboard_page import published_figures, write_section

ROOT = Path(__file__).parents[2]
CONFIGS = sorted(ROOT.glob("recipes/configs/benchmarks/*/leaderboard.yaml"))


def run(monkeypatch, script: str, *arguments) -> None:
    monkeypatch.setattr(sys, "argv", [script, *map(str, arguments)])
    runpy.run_path(str(ROOT / script), run_name="__main__")


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.parent.name)
def test_committed_leaderboards_name_what_exists(path, monkeypatch):
    monkeypatch.chdir(ROOT)
    config = yaml.safe_load(path.read_text())
    runs = runs_of(config["recommenders"], config["data_dir"])
    assert len({run.label for run in runs}) == len(runs) and config["reference"] in config["recommenders"]
    assert all((ROOT / f"recipes/{recipe}.py").exists() for run in runs for recipe, _ in [*run.shared, *run.stages])
    if "published" in config:
        entries = published_figures(config["published"], config["recommenders"])
        assert all(0 < value < 1 for entry in entries for value in entry.figures.values())


def test_a_seed_has_folders_of_its_own(tmp_path):
    semids = write_yaml(tmp_path / "semids.yaml", {"data_dir": "d", "output_dir": "o/semids"})
    base = write_yaml(tmp_path / "base.yaml", {"data_dir": "d", "output_dir": "o/base", "semids": "o/semids"})
    settings = {"data_dir": "d", "output_dir": "o/model", "model_name_or_path": "o/base", "tasks": [{"a": "o/base/x"}]}
    sft = write_yaml(tmp_path / "sft.yaml", settings | {"seed": 3, "run_name": "o/base2"})
    rpg = write_yaml(tmp_path / "rpg.yaml", {"data_dir": "d", "output_dir": "o/rpg", "kind": "rpg"})
    recommenders = {
        "ours": {
            "shared": [{"tokenize_items": semids}],
            "stages": [{"init_model": base}, {"sft": sft}],
            "seeds": [3, 4],
        },
        "rpg": {"stages": [{"train_recommender": rpg}], "seeds": [0, 1]},
    }
    runs = runs_of(recommenders, "d")
    assert [(one.label, one.folder) for one in runs] == [
        ("ours", "o/model"),
        ("rpg", "o/rpg"),
        ("ours-seed-4", "o/model-seed-4"),
        ("rpg-seed-1", "o/rpg-seed-1"),
    ]
    assert runs[0].stages[1] == ("sft", yaml.safe_load(Path(sft).read_text()))
    assert runs[2].shared == runs[0].shared == [("tokenize_items", yaml.safe_load(Path(semids).read_text()))]
    (_, of_base), (_, of_model) = runs[2].stages
    assert of_base == {"data_dir": "d", "output_dir": "o/base-seed-4", "semids": "o/semids", "seed": 4}
    assert (of_model["model_name_or_path"], of_model["tasks"]) == ("o/base-seed-4", [{"a": "o/base-seed-4/x"}])
    assert (of_model["seed"], of_model["run_name"]) == (4, "o/base2")
    assert runs[3].stages[0][1]["settings"] == {"seed": 1} and "seed" not in runs[3].stages[0][1]
    unsaid = {"stages": [{"sft": write_yaml(tmp_path / "unsaid.yaml", settings)}], "seeds": [0]}  # TRL's own is 42
    (run,) = runs_of({"ours": unsaid}, "d")
    assert (run.label, run.stages[0][1]["seed"]) == ("ours-seed-0", 0)

    elsewhere = {"stages": [{"init_model": base}, {"sft": sft}], "seeds": [4], "folders": {"d": "e", "o": "p/q"}}
    (run,) = runs_of({"ours": elsewhere}, "e")
    (_, of_base), (_, of_model) = run.stages
    assert of_base == {"data_dir": "e", "output_dir": "p/q/base-seed-4", "semids": "p/q/semids", "seed": 4}
    assert (run.folder, of_model["model_name_or_path"]) == ("p/q/model-seed-4", "p/q/base-seed-4")

    (run,) = runs_of({"ours": elsewhere | {"changes": {"init_model": {"semids": "q", "model": {"a": 1}}}}}, "e")
    (_, of_base), (_, of_model) = run.stages
    assert (of_base["semids"], of_base["model"], of_base["data_dir"]) == ("q", {"a": 1}, "e")
    assert of_model["model_name_or_path"] == "p/q/base-seed-4"

    two = {"output_dir": "o/rpg", "kind": "hstu"}
    for wrong, message in (
        ({"stages": []}, "recommenders: x: there is no stage"),
        ({"stages": {"sft": sft}}, "recommenders: x: stages is {.*}, it should be a list"),
        ({"stages": [{"sft": sft}], "seeds": [-1]}, "recommenders: x: seeds is -1, it should be a whole number"),
        ({"stages": [rpg]}, "stage '.*rpg.yaml' should be a recipe and its YAML"),
        ({"stages": [{"sft": str(tmp_path / "gone.yaml")}]}, "gone.yaml is no readable YAML"),
        ({"stages": [{"sft": write_yaml(tmp_path / "w.yaml", {"a": 1})}]}, "w.yaml has no output_dir"),
        ({"stages": [{"sft": sft}], "seed": 1}, "recommenders: x: there is no argument 'seed'.*did you mean 'seeds'"),
        ({"stages": [{"sft": sft}], "folders": ["o"]}, "recommenders: x: folders is .*, it should be old: new"),
        ({"stages": [{"sft": sft}], "folders": {"o/modle": "p"}}, "x: folders: none of its YAML files names o/modle"),
        ({"stages": [{"sft": sft}], "changes": {"sfft": {"a": 1}}}, "x: changes: recipe .*'sfft'"),
        ({"stages": [{"sft": sft}], "changes": {"sft": 3}}, "x: changes is .*, it should be recipes and what changes"),
        ({"stages": [{"train_recommender": rpg}], "seeds": [0, 0]}, "x and x would write into one folder"),
    ):
        with pytest.raises(ValueError, match=message):
            runs_of({"x": wrong}, "d")
    with pytest.raises(ValueError, match="rpg.yaml is about d, this leaderboard about elsewhere"):
        runs_of({"rpg": recommenders["rpg"]}, "elsewhere")
    with pytest.raises(ValueError, match="rpg and hstu would write into one folder"):
        hstu = {"stages": [{"train_recommender": write_yaml(tmp_path / "two.yaml", two)}]}
        runs_of({"rpg": {"stages": [{"train_recommender": rpg}]}, "hstu": hstu}, "d")


def test_a_section_is_written_in_its_place(tmp_path):
    page = tmp_path / "benchmarks.md"
    write_section(page, "beauty", ["old"])
    page.write_text(page.read_text() + "\nwritten by hand\n")
    write_section(page, "office", ["## office"])
    before = page.read_text()
    write_section(page, "beauty", ["## beauty", "new"])
    assert page.read_text() == before.replace("old", "## beauty\nnew") and "written by hand" in before
    page.write_text(before.replace("<!-- end of office -->", ""))
    with pytest.raises(ValueError, match="office: written by .* has no <!-- end of office --> after it"):
        write_section(page, "office", [])


def test_published_figures_are_checked(tmp_path):
    entry = {"name": "TIGER", "protocol": "seen_kept", "figures": {"recall@10": 0.0648}, "source": "the paper"}
    for change, message in (
        ({"protocol": "kept"}, "entry 1: protocol 'kept' is not one of seen_removed, seen_kept, not said"),
        ({"figures": {"recall@7": 0.1}}, "entry 1: metric 'recall@7' is not one of recall@5"),
        ({"figures": {"recall@10": 6.48}}, "entry 1: recall@10 is 6.48, it should be a share between 0 and 1"),
        ({"paper": 2305.05065}, "entry 1: paper is 2305.05065, it should be text: write it in quotes"),
        ({"beside": "tigr"}, "TIGER: beside 'tigr' is not one of tiger: did you mean"),
    ):
        path = write_yaml(tmp_path / "published.yaml", {"published": [entry | change]})
        with pytest.raises(ValueError, match=message):
            published_figures(path, ["tiger"])
    with pytest.raises(ValueError, match="has no list `published`"):
        published_figures(write_yaml(tmp_path / "none.yaml", {"a": 1}), ["tiger"])


def test_the_recipe_tabulates_what_is_finished_and_goes_on(tmp_path, monkeypatch, capfd):
    data = tiny_data()
    data.save(tmp_path / "data")
    small = {"max_length": 8, "hidden_size": 16, "learning_rate": 0.01, "batch_size": 16, "max_epochs": 6}

    def member(name: str, kind: str, **settings) -> dict:
        fields = {"data_dir": str(tmp_path / "data"), "output_dir": str(tmp_path / name), "kind": kind}
        path = write_yaml(tmp_path / f"{name}.yaml", fields | {"settings": settings})
        return {"stages": [{"train_recommender": path}]}

    published = {"name": "SASRec", "protocol": "not said", "figures": {"recall@10": 0.25}, "source": "somebody"}
    config = {
        "data_dir": str(tmp_path / "data"),
        "output_dir": str(tmp_path / "board"),
        "page": str(tmp_path / "benchmarks.md"),
        "published": write_yaml(tmp_path / "p.yaml", {"published": [published | {"beside": "sasrec"}]}),
        "reference": "popularity",
        "recommenders": {
            "popularity": member("popularity", "popularity"),
            "sasrec": member("sasrec", "sasrec", **small) | {"seeds": [0]},
            "bsarec": member("bsarec", "bsarec", **small),
        },
    }
    path = write_yaml(tmp_path / "leaderboard.yaml", config)
    with pytest.raises(ValueError, match="members: 'sasrek'.*did you mean 'sasrec'"):
        run(monkeypatch, "recipes/leaderboard.py", "--config", path, "--members", "sasrek")

    run(monkeypatch, "recipes/leaderboard.py", "--config", path, "--members", "popularity", "sasrec")
    assert "recall@10 minus popularity" in capfd.readouterr().out
    first = json.loads((tmp_path / "board" / "metrics.json").read_text())
    assert first["missing"] == ["bsarec"] and set(first["recommenders"]) == {"popularity", "sasrec"}
    of_seed = tmp_path / "board" / "sasrec" / "metrics.json"
    alone = json.loads(of_seed.read_text())["recommenders"]["sasrec"]
    assert {name: first["recommenders"]["sasrec"][name] for name in ("metrics", "slices", "rows")} == {
        name: alone[name] for name in ("metrics", "slices", "rows")
    }
    for metric, ends in first["recommenders"]["sasrec"]["ci"].items():
        assert ends == pytest.approx(alone["ci"][metric]), metric
    page = (tmp_path / "benchmarks.md").read_text()
    assert "Not run to the end, or not evaluated since: bsarec." in page

    written = of_seed.stat().st_mtime_ns
    config["recommenders"]["sasrec"]["seeds"] = [0, 1]
    write_yaml(tmp_path / "leaderboard.yaml", config)
    run(monkeypatch, "recipes/leaderboard.py", "--config", path, "--members", "sasrec")
    printed = capfd.readouterr().out
    assert "Reusing" in printed and of_seed.stat().st_mtime_ns == written  # test rows are read once a seed
    summary = json.loads((tmp_path / "board" / "metrics.json").read_text())
    assert summary["missing"] == ["bsarec"]
    found = summary["recommenders"]["sasrec"]
    reports = [tmp_path / "board" / label / "metrics.json" for label in ("sasrec", "sasrec-seed-1")]
    seeds = [json.loads(path.read_text()) for path in reports]
    assert [one["seed"] for one in found["runs"]] == [0, 1] and found["runs"][0]["parameters"] > 24 * 16
    stages = [json.loads((tmp_path / one / "stage.json").read_text()) for one in ("sasrec", "sasrec-seed-1")]
    assert [one["seconds"] for one in found["runs"]] == [stage["results"]["seconds"] for stage in stages]
    assert [stage["settings"]["settings"][0]["seed"] for stage in stages] == [0, 1]
    for metric in ("recall@10", "ndcg@10", "recall@5", "kept/recall@10", "kept/ndcg@10"):
        values = [one["recommenders"]["sasrec"]["metrics"][metric] for one in seeds]
        assert found["metrics"][metric] == pytest.approx(np.mean(values))
        assert found["spread"][metric] == pytest.approx(max(values) - min(values))
        assert found["ci"][metric][0] <= found["metrics"][metric] <= found["ci"][metric][1]
        against = summary["differences"]["sasrec"][metric]
        popular = summary["recommenders"]["popularity"]["metrics"][metric]
        assert against["difference"] == pytest.approx(found["metrics"][metric] - popular)
        assert 0 < against["low"] < against["difference"]
    assert set(summary["differences"]) == {"sasrec"}

    page = (tmp_path / "benchmarks.md").read_text()
    assert page.count("## tiny") == 1 and "`seen_removed`" in page
    assert "![Learning curves](benchmarks_tiny.png)" in page
    assert (tmp_path / "benchmarks_tiny.png").stat().st_size > 5000
    row = next(line for line in page.splitlines() if line.startswith("| SASRec |"))
    kept = [f"{found['metrics'][f'kept/{metric}']:.4f}" for metric in ("recall@10", "ndcg@10")]
    assert row == f"| SASRec | not said | – | – | 0.2500 | – | somebody | sasrec | {kept[0]} | {kept[1]} |"

    run(monkeypatch, "scripts/write_results.py", f"tiny={tmp_path / 'board'}", "--json", tmp_path / "results.json")
    figures = json.loads((tmp_path / "results.json").read_text())["figures"]
    for key, metric in (("seen_removed", "recall@10"), ("seen_kept", "kept/recall@10"), ("item", "recall@10")):
        assert figures[f"tiny/sasrec/{key}/recall@10"] == pytest.approx(found["metrics"][metric], abs=1e-6)
        assert figures[f"tiny/sasrec/{key}/recall@10/low"] == pytest.approx(found["ci"][metric][0], abs=1e-6)
    assert figures["tiny/sasrec/seeds"] == 2 and figures["tiny/popularity/seeds"] == 1
    assert figures["tiny/sasrec/seeds/spread/ndcg@10"] == pytest.approx(found["spread"]["ndcg@10"], abs=1e-6)

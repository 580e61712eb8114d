"""train_baselines.py, evaluate.py and write_results.py on a tiny store, by YAML as users run them."""

import json
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from tiny import tiny_data, tiny_index, write_tiny_base

ROOT = Path(__file__).parents[2]


def run(monkeypatch, script: str, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", [script, *map(str, arguments)])
    runpy.run_path(str(ROOT / script), run_name="__main__")


def write_yaml(path: Path, **settings) -> Path:
    path.write_text(yaml.safe_dump(settings))
    return path


def test_baselines_then_evaluation_then_results(monkeypatch, tmp_path, capsys):
    data = tiny_data()
    data.save(tmp_path / "data")
    write_tiny_base(tmp_path / "model", data, tiny_index(data))
    baselines = write_yaml(
        tmp_path / "baselines.yaml",
        data_dir=str(tmp_path / "data"),
        output_dir=str(tmp_path / "baselines"),
        max_length=8,
        hidden_size=16,
        learning_rate=1e-2,
        batch_size=16,
        max_epochs=15,
    )
    run(monkeypatch, "recipes/train_baselines.py", "--config", baselines)
    written = (tmp_path / "baselines" / "sasrec" / "model.safetensors").stat().st_mtime_ns
    capsys.readouterr()
    run(monkeypatch, "recipes/train_baselines.py", "--config", baselines)
    assert "Reusing" in capsys.readouterr().out
    assert (tmp_path / "baselines" / "sasrec" / "model.safetensors").stat().st_mtime_ns == written
    with pytest.raises(ValueError, match="decay.*--overwrite"):
        run(monkeypatch, "recipes/train_baselines.py", "--config", baselines, "--decay", "0.9")

    folders = {name: str(tmp_path / "baselines" / name) for name in ("popularity", "item_knn", "sasrec")}
    evaluation = write_yaml(
        tmp_path / "evaluate.yaml",
        data_dir=str(tmp_path / "data"),
        output_dir=str(tmp_path / "evaluation"),
        recommenders={**folders, "ours": str(tmp_path / "model")},
        reference="popularity",
        controls=["sasrec"],
        semids=str(tmp_path / "model" / "semids.parquet"),
        max_rows=30,
        bootstrap=50,
    )
    run(monkeypatch, "recipes/evaluate.py", "--config", evaluation)
    printed = capsys.readouterr().out
    summary = json.loads((tmp_path / "evaluation" / "metrics.json").read_text())
    found = summary["recommenders"]
    assert set(found) == {*folders, "ours", "sasrec, shuffled histories", "sasrec, shuffled order"}
    assert f"{found['sasrec']['metrics']['recall@10']:.4f}" in printed and found["sasrec"]["rows"] == 30
    assert found["sasrec"]["metrics"]["ndcg@10"] > 2 * found["sasrec, shuffled histories"]["metrics"]["ndcg@10"]
    assert found["ours"]["metrics"]["valid@10"] == 1 and "semid/recall@10" in found["popularity"]["metrics"]
    run(monkeypatch, "recipes/evaluate.py", "--config", evaluation)
    again = capsys.readouterr().out
    assert "Reusing" in again and "evaluate" not in again.split("Reusing")[0]
    assert f"{found['sasrec']['metrics']['recall@10']:.4f}" in again

    results = tmp_path / "results.json"
    elsewhere = {"beauty/ours/item/recall@10": 0.5, "tiny/sasrec 2/item/recall@10": 0.25}
    results.write_text(json.dumps({"figures": elsewhere | {"tiny/sasrec/gone": 1}}))
    run(monkeypatch, "scripts/write_results.py", f"tiny={tmp_path / 'evaluation'}", "--json", results)
    figures = json.loads(results.read_text())["figures"]
    assert figures.items() >= elsewhere.items() and "tiny/sasrec/gone" not in figures
    figure = figures["tiny/sasrec/item/ndcg@10"]
    assert figure == pytest.approx(found["sasrec"]["metrics"]["ndcg@10"], abs=1e-6)
    assert figures["tiny/sasrec/item/ndcg@10/low"] <= figure <= figures["tiny/sasrec/item/ndcg@10/high"]
    assert "tiny/ours/semid/recall@10" in figures
    of_tail = next(one for one in found["ours"]["slices"] if one["slice"].startswith("target popularity / tail"))
    assert figures["tiny/ours/tail/ndcg@10"] == pytest.approx(of_tail["ndcg@10"], abs=1e-6)
    assert figures["tiny/ours/tail/ndcg@10/high"] == pytest.approx(of_tail["ci"]["ndcg@10"][1], abs=1e-6)

    (tmp_path / "sft.json").write_text('{"questions_kept": 33, "perplexity_ratio": 1.25, "answers": []}')
    run(monkeypatch, "scripts/write_results.py", f"tiny={tmp_path / 'sft.json'}", "--json", results)
    kept = {"tiny/questions_kept": 33, "tiny/perplexity_ratio": 1.25}
    assert json.loads(results.read_text())["figures"] == figures | kept
    (tmp_path / "rpg.json").write_text('{"figures": {"rpg_graph_speedup": 7.5}}')
    run(monkeypatch, "scripts/write_results.py", f"bench={tmp_path / 'rpg.json'}", "--json", results)
    figures["bench/rpg_graph_speedup"] = 7.5
    assert json.loads(results.read_text())["figures"] == figures | kept
    capsys.readouterr()
    (tmp_path / "sft.json").write_text('{"questions_kept": NaN, "answers": []}')
    run(monkeypatch, "scripts/write_results.py", f"tiny={tmp_path / 'sft.json'}", "--json", results)
    assert json.loads(results.read_text())["figures"] == figures
    said = capsys.readouterr().out
    assert "sft.json: tiny/questions_kept is nan, no finite number, and left out" in said
    assert "sft.json has no figure for tiny/perplexity_ratio" in said
    assert "loses what" in said and "sft.json lacks: tiny/perplexity_ratio, tiny/questions_kept" in said
    twice = [f"tiny={tmp_path / 'evaluation'}"] * 2
    with pytest.raises(SystemExit):
        run(monkeypatch, "scripts/write_results.py", *twice, "--json", results)
    assert "is in" in capsys.readouterr().err and json.loads(results.read_text())["figures"] == figures
    (tmp_path / "base.json").write_text('{"answers": []}')
    with pytest.raises(SystemExit):
        run(monkeypatch, "scripts/write_results.py", f"tiny={tmp_path / 'base.json'}", "--json", results)
    assert "base.json has none of recommenders, models, views, questions_kept, figures" in capsys.readouterr().err

    with pytest.raises(ValueError, match="nobody"):
        run(monkeypatch, "recipes/evaluate.py", "--config", evaluation, "--controls", "nobody")
    with pytest.raises(ValueError, match="reference 'typo'.*sasrec, shuffled order"):  # before the data is read
        run(monkeypatch, "recipes/evaluate.py", "--config", evaluation, "--reference", "typo", "--data_dir", "gone")
    with pytest.raises(ValueError, match="wrong_key"):
        bad = write_yaml(tmp_path / "bad.yaml", **yaml.safe_load(evaluation.read_text()), wrong_key=1)
        run(monkeypatch, "recipes/evaluate.py", "--config", bad)


def test_content_knn_follows_its_files_and_no_cache(monkeypatch, tmp_path, capsys):
    tiny_data().save(tmp_path / "data")
    vectors = np.random.default_rng(0).normal(size=(2, 24, 4)).astype(np.float32)
    np.save(tmp_path / "vectors.npy", vectors[0])
    baselines = write_yaml(
        tmp_path / "baselines.yaml",
        data_dir=str(tmp_path / "data"),
        output_dir=str(tmp_path / "baselines"),
        content_features=[{"kind": "precomputed", "path": str(tmp_path / "vectors.npy")}],
        max_length=8,
        hidden_size=8,
        max_epochs=1,
    )
    run(monkeypatch, "recipes/train_baselines.py", "--config", baselines)
    capsys.readouterr()
    run(monkeypatch, "recipes/train_baselines.py", "--config", baselines, "--content_cache", tmp_path / "elsewhere")
    assert "Reusing the baselines" in capsys.readouterr().out
    np.save(tmp_path / "vectors.npy", vectors[1])
    with pytest.raises(ValueError, match="other settings .content_inputs."):
        run(monkeypatch, "recipes/train_baselines.py", "--config", baselines)

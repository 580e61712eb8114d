"""The comparison of item tokenizers: its figures by hand, and the recipe end to end on a tiny catalogue."""

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from tiny import MODEL, tiny_data

from llmrec.catalogue.report import additive_error
from llmrec.commands import Parser
from llmrec.evaluation.bootstrap import over_seeds
from llmrec.evaluation.comparison import downstream_lines, plot_comparison
from llmrec.item_tokenizers import SEQUENCE_TOKENIZERS, TOKENIZERS

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "recipes" / "configs" / "compare_tokenizers.yaml"

spec = importlib.util.spec_from_file_location("compare_tokenizers_recipe", ROOT / "recipes" / "compare_tokenizers.py")
recipe = importlib.util.module_from_spec(spec)
sys.modules[spec.name] = recipe
spec.loader.exec_module(recipe)


def test_additive_error_is_zero_for_sums_of_codes_and_large_for_random_ones():
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 5, (400, 2)).astype(np.int32)
    codes[::7, 1] = -1
    books = [rng.normal(size=(5, 6)), np.vstack([rng.normal(size=(5, 6)), np.zeros(6)])]
    features = (books[0][codes[:, 0]] + books[1][codes[:, 1]]).astype(np.float32)
    assert additive_error(codes, (5, 5), features) < 1e-4
    assert additive_error(codes[rng.permutation(400)], (5, 5), features) > 0.9
    assert additive_error(codes[:, :1], (5,), features) > 0.2
    wide = np.arange(5000, dtype=np.int32)[:, None]
    assert additive_error(wide, (5000,), np.zeros((5000, 2), np.float32)) is None


def test_seeds_rank_by_ndcg_and_compare_the_same_users():
    rng = np.random.default_rng(0)
    hard = rng.random(300)  # what is easy for one is easy for all
    better, worse, users = hard + 0.02, hard, [f"u{number}" for number in range(300)]

    def run(values, shift=0.0):
        return {"recall@10": values + shift, "ndcg@10": values + shift}

    runs = {"worse": [run(worse), run(worse, 0.01)], "better": [run(better), run(better)]}
    rows = over_seeds(runs, "worse", users)
    assert [row["name"] for row in rows] == ["better", "worse"]
    ndcg = rows[0]["ndcg@10"]
    assert ndcg["mean"] == pytest.approx(better.mean())
    assert ndcg["spread"] == 0 and rows[1]["ndcg@10"]["spread"] == pytest.approx(0.01)
    assert ndcg["ci"][0] < better.mean() < ndcg["ci"][1]
    # Pairing removes the users' variance: the difference is certain although the two intervals overlap.
    assert ndcg["ci"][0] < rows[1]["ndcg@10"]["ci"][1]
    assert 0.01 < ndcg["against_ci"][0] <= ndcg["against_ci"][1] < 0.02
    table = downstream_lines(rows, "worse")
    assert len(table) == 4 and "| better | 2 |" in table[2] and table[3].endswith("| - |")
    one = downstream_lines(over_seeds({"worse": [run(worse)]}, "worse", users), "worse")
    assert one[2].endswith("| - | - |")  # one seed says nothing about seeds


def test_a_reference_that_trains_no_model_is_refused_at_once(tmp_path):
    settings = {"data_dir": "none", "output_dir": str(tmp_path / "out"), "tokenizers": {"rvq": {}, "rq_vae": {}}}
    for wrong, message in (
        ({"downstream": ["rvq"], "reference": "rq_vae"}, "reference 'rq_vae' is not among"),
        ({"downstream": ["opq"], "reference": "rvq"}, r"downstream names \['opq'\]"),
    ):
        with pytest.raises(ValueError, match=message):
            recipe.main(recipe.CompareArguments(**settings, sft={"seed": 0}, **wrong))
    assert not (tmp_path / "out").exists()


def test_a_figure_that_is_missing_is_not_drawn_as_the_best():
    row = {"collision_rate": 0.1, "purity": 0.5, "purity_control": 0.1, "neighbours": 0.2, "neighbours_control": 0.0}
    rows = {"one": row | {"error": 0.3, "error_control": 0.9}, "two": row | {"error": None, "error_control": None}}
    panel = plot_comparison(rows).axes[2]
    widths = [bar.get_width() for bar in panel.patches]
    assert widths[0] == 0.3 and np.isnan(widths[1])


def test_every_name_in_the_committed_config_exists():
    config = yaml.safe_load(CONFIG.read_text(encoding="utf-8"))
    for name, fields in config["tokenizers"].items():
        fields = fields or {}
        kind = fields.get("tokenizer", name)
        (TOKENIZERS | SEQUENCE_TOKENIZERS)[kind](**fields.get("tokenizer_args", {}))
    assert {config["reference"], *config.get("downstream", [])} <= set(config["tokenizers"])


def test_the_recipe_compares_and_goes_on_where_it_was(tmp_path, capfd):
    tiny_data().save(tmp_path / "data")
    config = {
        "data_dir": str(tmp_path / "data"),
        "output_dir": str(tmp_path / "out"),
        "semids": {"features": [{"kind": "text", "encoder": "tfidf", "dim": 8}]},
        "tokenizers": {
            "rq_kmeans": {"tokenizer_args": {"codebook_sizes": [4, 4]}},
            "appended": {"tokenizer": "rq_kmeans", "tokenizer_args": {"codebook_sizes": [2]}, "collision": "append"},
        },
        "downstream": ["rq_kmeans"],
        "seeds": [0],
        "model": {"model_config": MODEL, "vocab_size": 300},
        "sft": {
            "max_steps": 3,
            "per_device_train_batch_size": 8,
            "validation_rows": 5,
            "use_cpu": True,
            "bf16": False,
            "gradient_checkpointing": False,
            "report_to": "none",
            "eval_strategy": "no",
            "save_strategy": "no",
        },
    }
    path = tmp_path / "compare.yaml"
    path.write_text(yaml.safe_dump(config, sort_keys=False))
    recipe.main(*Parser((recipe.CompareArguments,)).parse_args_and_config(args=["--config", str(path)]))
    result = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert list(result["tokenizers"]) == ["rq_kmeans", "appended"]
    assert result["tokenizers"]["appended"]["collision_rate"] == pytest.approx(22 / 24)
    assert result["tokenizers"]["appended"]["tokens"] == 2
    assert result["tokenizers"]["rq_kmeans"]["bits"] >= 4
    (row,) = result["downstream"]
    assert row["name"] == "rq_kmeans" and 0 <= row["ndcg@10"]["mean"] <= 1
    text = (tmp_path / "out" / "comparison.md").read_text()
    assert "| appended |" in text and "do not choose a tokenizer by them" in text
    assert (tmp_path / "out" / "comparison.png").stat().st_size > 5000
    capfd.readouterr()

    config["tokenizers"]["rq_kmeans"]["tokenizer_args"] = {"codebook_sizes": [4]}
    path.write_text(yaml.safe_dump(config, sort_keys=False))
    with pytest.raises(SystemExit, match="tokenize_items.py failed"):
        recipe.main(*Parser((recipe.CompareArguments,)).parse_args_and_config(args=["--config", str(path)]))
    assert "holds a run with other settings (tokenizer_args)" in capfd.readouterr().err

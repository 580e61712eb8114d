"""docs/own_data.md with the shop of tests/messy_shop.py: from its CSV files to recommendations, by settings alone."""

import re
import runpy
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml
from messy_shop import write_messy_shop

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "recipes" / "configs" / "own_csv"
SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "head_dim": 16}


def the_documents_settings() -> dict:
    text = (ROOT / "docs" / "own_data.md").read_text(encoding="utf-8")
    [block] = re.findall(r"### Data as shops have it.*?```yaml\n(.*?)```", text, re.DOTALL)
    return yaml.safe_load(block)


@pytest.fixture
def stage(tmp_path, monkeypatch, capsys):
    """Runs a recipe with the shipped YAML of own data, and what else is set; returns what it printed."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "shop").mkdir()
    write_messy_shop(tmp_path / "shop")

    def run(recipe: str, config: str | None = None, drop: tuple = (), **settings) -> str:
        base = yaml.safe_load((CONFIGS / f"{config}.yaml").read_text()) if config else {}
        kept = {name: value for name, value in {**base, **settings}.items() if name not in drop}
        Path("x.yaml").write_text(yaml.safe_dump(kept, allow_unicode=True), encoding="utf-8")
        monkeypatch.setattr(sys, "argv", [recipe, "--config", "x.yaml"])
        runpy.run_path(str(ROOT / "recipes" / f"{recipe}.py"), run_name="__main__")
        return capsys.readouterr().out

    return run


def go(stage, model: dict, drop: tuple, **training) -> str:
    said = stage("prepare_data", "data", **the_documents_settings(), user_k=3, item_k=2)
    assert re.search(r"\nduplicates +\d+\n.*\ndropped max user interactions +\d+\n", said, re.DOTALL)
    features = [{"kind": "text", "encoder": "tfidf"}]
    stage("tokenize_items", "semids", features=features)
    said = stage("init_model", "model", drop, **model)
    said += stage("sft", "sft", ("load_best_model_at_end", "metric_for_best_model", "early_stopping_patience"),
                  max_steps=2, eval_strategy="no", save_strategy="no", validation_rows=4, **training)  # fmt: skip
    said += stage("recommend", model="out/own_csv/model", data_dir="out/own_csv/data", k=3, num_users=1)
    titles = pq.read_table("out/own_csv/data/items.parquet")["title"].to_pylist()
    shown = re.findall(r"^  [* ] +-\d+\.\d\d  \S+ +(.*)$", said, re.MULTILINE)
    assert len(shown) == 3 and all(title.strip() in titles for title in shown)
    return said


def test_a_shop_is_recommended_from(stage):
    shape = {"model_type": "qwen3", "num_key_value_heads": 2, "max_position_embeddings": 1024, **SMALL}
    said = go(stage, {"model_config": shape, "vocab_size": 400}, ())
    assert "embedding_init codebook, which follows from the model" in said
    assert "is a model from scratch: learning_rate 0.002, hidden_dropout 0.5" in said


@pytest.mark.pretrained
def test_the_same_with_a_pretrained_model_takes_one_line(stage, smollm2):
    small = {"per_device_train_batch_size": 2, "max_length": 256, "max_history": 5}
    said = go(stage, {"model_name_or_path": str(smollm2)}, ("model_config", "vocab_size"), **small)
    assert "embedding_init text, which follows from the model" in said
    assert "is a pretrained model: learning_rate 0.0003, hidden_dropout 0.0" in said

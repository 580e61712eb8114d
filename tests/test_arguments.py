"""What users write in YAML and on the command line: numbers that are too small are refused by name, at once."""

import runpy
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from llmrec.arguments import at_least
from llmrec.features.sasrec_network import SASRecConfig
from llmrec.recommenders.item_knn import ItemKNNConfig

ROOT = Path(__file__).parents[1]


@dataclass
class Settings:
    beams: int = 5
    rows: int | None = None
    ks: list[int] = field(default_factory=lambda: [1, 10])
    rate: float = 0.1


def test_numbers_from_the_least_on_pass():
    at_least(Settings(), beams=1, rows=1, ks=1, rate=0.0)
    at_least(Settings(beams=1, rows=1, ks=[1], rate=0), beams=1, rows=1, ks=1, rate=0.0)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"beams": 0}, "beams is 0, it should be a whole number of at least 1"),
        ({"beams": -3}, "beams is -3, it should be"),
        ({"beams": 2.5}, "beams is 2.5, it should be a whole number"),
        ({"beams": True}, "beams is True, it should be"),
        ({"beams": None}, "beams is None, it should be"),
        ({"beams": "many"}, "beams is 'many', it should be"),
        ({"rows": 0}, "rows is 0, it should be"),
        ({"ks": [5, 0]}, "ks is 0, it should be"),
        ({"ks": []}, "ks is empty: give at least one number"),
        ({"rate": -0.1}, "rate is -0.1, it should be a number of at least 0.0"),
        ({"rate": float("nan")}, "rate is nan, it should be"),
        ({"rate": float("inf")}, "rate is inf, it should be"),
    ],
    ids=str,
)
def test_others_are_named(changes, said):
    with pytest.raises(ValueError, match=f"^{said}"):
        at_least(Settings(**changes), beams=1, rows=1, ks=1, rate=0.0)


TRAINED = {"data_dir": "gone", "model_name_or_path": "gone", "output_dir": "gone", "report_to": "none"}
TRAINED |= {"use_cpu": "true", "bf16": "false"}
STEP = ("per_device_train_batch_size", "gradient_accumulation_steps")
RECIPES = {
    "sft": (TRAINED, ("max_history", "num_beams", "validation_rows", "max_length", *STEP)),
    "dpo": (TRAINED, ("validation_rows", "num_negatives", *STEP)),
    "grpo": (
        TRAINED,
        ("validation_rows", "thought_beams", "num_generations", "num_iterations", "steps_per_generation"),
    ),
    "evaluate": (
        {"data_dir": "gone", "output_dir": "gone"},
        ("max_rows", "ks", "batch_size", "alignment_rows"),
    ),
    "cold_start": ({"cold_dir": "gone", "step": "evaluate"}, ("max_warm", "ks", "batch_size")),
    "recommend": ({"data_dir": "gone", "model": "gone"}, ("num_users", "k")),
    "prepare_data": ({"output_dir": "gone", "source": "synthetic"}, ("max_history",)),
    "init_model": ({"data_dir": "gone", "semids": "gone", "output_dir": "gone"}, ("vocab_size",)),
    "generate_rationales": (
        {"data_dir": "gone", "output_dir": "gone"},
        ("max_new_tokens", "max_history", "max_rows", "batch_size"),
    ),
    "train_baselines": (
        {"data_dir": "gone", "output_dir": "gone"},
        ("neighbours", "max_length", "hidden_size", "num_layers", "num_heads", "batch_size", "max_epochs", "patience"),
    ),
}
NEGATIVE = [
    ("evaluate", "bootstrap"),
    ("cold_start", "bootstrap"),
    ("prepare_data", "user_k"),
    ("prepare_data", "item_k"),
    ("tokenize_items", "collision_reserve"),
    ("grpo", "log_positives"),
    ("sft", "early_stopping_patience"),
    ("sft", "learning_rate"),
    ("train_baselines", "dropout"),
]
CASES = [(recipe, name, value) for recipe, (_, names) in RECIPES.items() for name in names for value in ("0", "-1")]


@pytest.mark.parametrize(("recipe", "name", "value"), [*CASES, *((*case, "-1") for case in NEGATIVE)])
def test_recipes_refuse_them_before_they_read_anything(tmp_path, monkeypatch, recipe, name, value):
    """The folders that they are given do not exist."""
    flags = {"data_dir": "gone", "output_dir": "gone"} if recipe not in RECIPES else RECIPES[recipe][0]
    config = tmp_path / "config.yaml"
    lines = [f"{flag}: {tmp_path / 'gone' if text == 'gone' else text}" for flag, text in flags.items()]
    lines += ["recommenders: {a: gone}"] if recipe in ("evaluate", "cold_start") else []
    config.write_text("\n".join(lines))
    monkeypatch.setattr(sys, "argv", [f"{recipe}.py", "--config", str(config), f"--{name}", value])
    with pytest.raises(ValueError, match=rf"^{name} is {value}(\.0)?, it should be a (whole )?number of at least"):
        runpy.run_path(str(ROOT / "recipes" / f"{recipe}.py"), run_name="__main__")
    assert not (tmp_path / "gone").exists()


def test_settings_in_python_are_refused_alike():
    with pytest.raises(ValueError, match="^patience is 0, it should be a whole number of at least 1"):
        SASRecConfig(patience=0)
    with pytest.raises(ValueError, match="^dropout: 1.0 leaves nothing"):
        SASRecConfig(dropout=1.0)
    with pytest.raises(ValueError, match="^neighbours is 0, it should be"):
        ItemKNNConfig(neighbours=0)

"""What follows from the kind of model unless it is set, and that it is said."""

import pytest
import yaml
from trl import ModelConfig, SFTConfig

from llmrec.commands import Parser
from llmrec.files import write_json
from llmrec.training import SFTArguments, sft_defaults


@pytest.fixture
def bases(tmp_path):
    """The records that recipes/init_model.py and recipes/sft.py leave, by kind of model."""
    made = {
        "scratch": {"model_config": {"model_type": "qwen3"}, "model_name_or_path": None},
        "later": {"model_name_or_path": str(tmp_path / "scratch")},
        "pretrained": {"model_config": None, "model_name_or_path": "Qwen/Qwen3-0.6B"},
        "circle": {"model_name_or_path": str(tmp_path / "circle")},
    }
    for name, settings in made.items():
        (tmp_path / name).mkdir()
        write_json(tmp_path / name / "stage.json", {"settings": settings, "complete": True})
    return tmp_path


def parse(folder, base: str, *flags: str, **settings):
    config = {"output_dir": "out", "model_name_or_path": str(folder / base)} | settings
    (folder / "x.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    kinds = (SFTArguments, SFTConfig, ModelConfig)
    return Parser(kinds, sft_defaults).parse_args_and_config(["--config", str(folder / "x.yaml"), *flags])


@pytest.mark.parametrize(
    "base, rate, dropout, recomputes",
    [
        ("scratch", 2e-3, 0.5, False),
        ("later", 2e-3, 0.5, False),
        ("pretrained", 3e-4, 0.0, True),
        ("circle", 3e-4, 0.0, True),
    ],
)
def test_they_follow_from_the_model(bases, capsys, base, rate, dropout, recomputes):
    sft, training, _ = parse(bases, base)
    chosen = training.learning_rate, sft.hidden_dropout, training.gradient_checkpointing
    assert chosen == (rate, dropout, recomputes)
    kind = "from scratch" if dropout else "pretrained"
    assert f"{kind}" in (said := capsys.readouterr().out) and f"learning_rate {rate}" in said
    assert parse(bases, base, "--use_peft", "true")[1].learning_rate == (rate if dropout else 5e-4)


def test_what_is_set_stays(bases, capsys):
    sft, training, _ = parse(bases, "scratch", "--hidden-dropout", "0.1", learning_rate=1e-4)
    assert (training.learning_rate, sft.hidden_dropout, training.gradient_checkpointing) == (1e-4, 0.1, False)
    assert capsys.readouterr().out.endswith("is a model from scratch: gradient_checkpointing False\n")
    sft, training, _ = parse(bases, "scratch", "--learning_rate=1e-4", hidden_dropout=0.0, gradient_checkpointing=True)
    assert (training.learning_rate, sft.hidden_dropout, training.gradient_checkpointing) == (1e-4, 0.0, True)
    assert capsys.readouterr().out == ""


def test_the_device_decides_whether_the_cpu_is_used(bases, monkeypatch):
    monkeypatch.setattr("torch.accelerator.is_available", lambda: False)
    assert parse(bases, "scratch")[1].use_cpu and not parse(bases, "scratch")[1].bf16
    assert not parse(bases, "scratch", "--use_cpu", "false")[1].use_cpu
    with pytest.raises(ValueError, match="use_cpu"):  # transformers': a GPU is asked for, and missed
        parse(bases, "scratch", bf16=True)
    monkeypatch.setattr("torch.accelerator.is_available", lambda: True)
    assert not parse(bases, "scratch", "--bf16", "false")[1].use_cpu

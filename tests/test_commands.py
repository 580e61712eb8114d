from dataclasses import dataclass, field

import pytest
import yaml
from trl import SFTConfig

from llmrec.commands import Parser


@dataclass
class Arguments:
    k: int = 1
    name: str | None = None
    ids: list[str] = field(default_factory=list)
    parts: dict | str = field(default_factory=dict)


def parse(tmp_path, **settings):
    config = {"output_dir": str(tmp_path), "use_cpu": True, "bf16": False} | settings
    (tmp_path / "x.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    return Parser((Arguments, SFTConfig)).parse_args_and_config(["--config", str(tmp_path / "x.yaml")])


def test_values_of_the_right_shape_arrive(tmp_path):
    given, sft = parse(
        tmp_path, k="3", name=None, ids=["007"], parts={"a": 1}, learning_rate="1e-3", report_to=["tensorboard"]
    )
    assert given == Arguments(3, None, ["007"], {"a": 1})
    assert (sft.learning_rate, sft.report_to) == (1e-3, ["tensorboard"])


def test_bf16_is_off_without_a_gpu_unless_it_is_asked_for(tmp_path, monkeypatch):
    def of(available: bool, *flags: str):
        monkeypatch.setattr("torch.accelerator.is_available", lambda: available)
        return Parser((Arguments, SFTConfig)).parse_args_and_config(["--output_dir", str(tmp_path), *flags])[1].bf16

    on_cpu = ["--use_cpu", "true"]
    assert not of(False) and not of(False, *on_cpu) and of(False, *on_cpu, "--bf16", "true") and of(True, *on_cpu)
    assert Parser((Arguments,)).parse_args_and_config([]) == (Arguments(),)


@pytest.mark.parametrize(
    "setting, should",
    [
        ({"name": 7}, "name is 7, it should be text: write it in quotes"),
        ({"ids": ["a", 7]}, "ids is 7, it should be text"),
        ({"k": 2.5}, "k is 2.5, it should be a whole number"),
        ({"k": True}, "k is True, it should be a whole number"),
        ({"gradient_checkpointing": 3}, "gradient_checkpointing is 3, it should be true or false"),
    ],
)
def test_a_value_of_another_kind_is_named(tmp_path, setting, should):
    with pytest.raises(ValueError, match=should):
        parse(tmp_path, **setting)


@pytest.mark.parametrize(
    "name, value, should",
    [
        ("k", [1], r"k is \[1\], it should be one value"),
        ("k", None, "k is None, it should be one value"),
        ("name", {"a": 1}, "name is {'a': 1}, it should be one value or empty"),
        ("ids", "007", "ids is '007', it should be a list"),
        ("parts", [], r"parts is \[\], it should be one value or a mapping"),
        ("max_steps", [], r"max_steps is \[\], it should be one value"),
    ],
)
def test_a_value_of_the_wrong_shape_is_named(tmp_path, name, value, should):
    with pytest.raises(ValueError, match=should):
        parse(tmp_path, **{name: value})


def test_a_yaml_without_its_flag_is_named_before_what_is_missing():
    with pytest.raises(ValueError, match="'shop.yaml' belongs to no flag: write --config shop.yaml if it is"):
        Parser((Arguments, SFTConfig)).parse_args_and_config(["shop.yaml", "--k", "2"])

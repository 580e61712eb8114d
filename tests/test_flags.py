"""`--help` of every recipe says what its parser takes, though no dataclass is imported to write it."""

import dataclasses
import runpy
import sys
from pathlib import Path

import pytest

import llmrec.commands
from llmrec.flags import Unreadable, flags_of, print_help

RECIPES = sorted((Path(__file__).parents[1] / "recipes").glob("*.py"))
UNSEEN = {"optim": "default_optim"}  # chosen by the version of torch


def said(value) -> str:
    return "" if value is None else str(value)


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_the_flags_that_are_read_are_those_of_the_dataclasses(recipe, monkeypatch):
    kinds = []
    monkeypatch.setattr(llmrec.commands, "run_script", lambda main, *given, **_: kinds.extend(given))
    runpy.run_path(str(recipe), run_name="__main__")
    true = {}
    for field in (field for kind in kinds for field in dataclasses.fields(kind) if field.init):
        default = None
        if field.default is not dataclasses.MISSING:
            default = said(field.default)
        elif field.default_factory is not dataclasses.MISSING:
            default = said(field.default_factory())
        about = field.metadata.get("help", "")
        true[field.name] = default, " ".join((about if isinstance(about, str) else " ".join(about)).split())
    read = [flag for flags in flags_of(recipe).values() for flag in flags]
    assert len(read) == len(true) and kinds
    for flag in read:
        default, about = true[flag.name]
        assert flag.default in (default, UNSEEN.get(flag.name)), flag.name
        assert flag.help == about.replace("%%", "%"), flag.name


def test_own_flags_stand_before_those_of_trl_and_transformers(capsys):
    recipe = next(path for path in RECIPES if path.stem == "sft")
    assert [*flags_of(recipe)] == [
        "recipes/sft.py", "llmrec.SFTArguments", "trl.SFTConfig", "trl.BaseConfig", "trl.ModelConfig",
        "transformers.TrainingArguments",
    ]  # fmt: skip
    print_help(recipe)
    printed = capsys.readouterr().out
    assert printed.startswith("Supervised fine-tuning") and max(map(len, printed.splitlines())) < 125
    assert "  --data_dir str              Prepared data (recipes/prepare_data.py). Required.\n" in printed
    assert 0 < printed.index("--max_history") < printed.index("--packing ") < printed.index("--adam_beta1")


def test_what_cannot_be_read_is_said_and_argparse_takes_its_place(tmp_path, monkeypatch, capsys):
    @dataclasses.dataclass
    class Mine:
        k: int = 3

    script = tmp_path / "mine.py"
    script.write_text("run_script(main, made_up())\n")
    with pytest.raises(Unreadable, match="made_up"):
        flags_of(script)
    monkeypatch.setattr(sys, "argv", [str(script), "--help"])
    with pytest.raises(SystemExit):
        llmrec.commands.run_script(print, Mine)
    assert "--k K" in capsys.readouterr().out

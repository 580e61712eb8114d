"""What users write on the command line and in YAML, read into dataclasses; recipes in processes of their own."""

import subprocess
import sys
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

import torch
import yaml
from trl import TrlParser

_VALUE = "one value"
_SHAPES = {_VALUE: _VALUE, list: "a list", dict: "a mapping", NoneType: "empty"}
_KINDS = {str: "text: write it in quotes", int: "a whole number", bool: "true or false"}
_MISTAKEN = {str: (int, float), int: (bool, float), bool: (int, float)}


class Parser(TrlParser):
    """`TrlParser`, which takes anything from a YAML: here a list, a mapping or nothing where the field is something
    else, one value where it is a list or a mapping, and a value of another kind (a number where it is text: YAML reads
    007 as 7) raise a `ValueError` that names the setting. Without a GPU `bf16` is off unless it is asked for."""

    def __init__(self, dataclass_types, **rest):
        super().__init__(dataclass_types, **rest)
        trains = any("bf16" in kind.__dataclass_fields__ for kind in self.dataclass_types)
        if trains and not torch.accelerator.is_available():  # both are on, and then a GPU is asked for, or missed
            self.set_defaults(bf16=False, dataloader_pin_memory=False)

    def set_defaults_with_config(self, **config) -> list[str]:
        for kind in self.dataclass_types:
            hints = get_type_hints(kind)
            for name in config.keys() & kind.__dataclass_fields__.keys():
                value, allowed = config[name], _shapes(hints[name])
                if (type(value) if type(value) in _SHAPES else _VALUE) not in allowed:
                    takes = " or ".join(text for shape, text in _SHAPES.items() if shape in allowed)
                    raise ValueError(f"{name} is {value!r}, it should be {takes}")
                wanted = _scalar(hints[name])
                for one in value if isinstance(value, list) else [value]:
                    if type(one) in _MISTAKEN.get(wanted, ()):
                        raise ValueError(f"{name} is {one!r}, it should be {_KINDS[wanted]}")
        return super().set_defaults_with_config(**config)


def _shapes(hint: object) -> set:
    if hint is Any:
        return set(_SHAPES)
    if get_origin(hint) in (Union, UnionType):
        return set().union(*map(_shapes, get_args(hint)))
    kind = get_origin(hint) or hint
    return {kind if kind in _SHAPES else _VALUE}


def _scalar(hint: object) -> object:
    """What the values of a field are, or `None` where they may be of several kinds."""
    kinds = {*(get_args(hint) or [hint])} - {NoneType}
    kind = kinds.pop() if len(kinds) == 1 else None
    return _scalar(kind) if get_origin(kind) is list else kind


def read_yaml(path: str | Path, kind: type = dict):
    """Reads YAML that holds a mapping, or what `kind` says; a missing or damaged file, or one that holds something
    else, raises a `ValueError` that names it."""
    try:
        value = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"{path} is no readable YAML: {error}") from error
    if not isinstance(value, kind):
        raise ValueError(f"{path} holds {str(value)[:80]!r}, it should hold {_SHAPES[kind]}")
    return value


def run_recipe(recipe: Path, settings: dict, config: Path) -> None:
    """Runs a recipe in a process of its own, with these settings, which are written to the YAML `config`. Raises
    `SystemExit` where it fails."""
    config.parent.mkdir(parents=True, exist_ok=True)
    config.write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")
    if subprocess.run([sys.executable, recipe, "--config", config]).returncode:
        sys.exit(
            f"recipes/{recipe.name} failed with {config}; its message is above. The same command goes on from here."
        )

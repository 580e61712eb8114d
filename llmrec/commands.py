"""What users write on the command line and in YAML, read into dataclasses; recipes in processes of their own."""

import contextlib
import logging
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

import torch
import yaml
from transformers.utils.logging import set_tqdm_hook
from trl import TrlParser

from llmrec.arguments import did_you_mean
from llmrec.flags import Unreadable, print_help
from llmrec.messages import print_error
from llmrec.shipped import find

_VALUE = "one value"
_SHAPES = {_VALUE: _VALUE, list: "a list", dict: "a mapping", NoneType: "empty"}
_KINDS = {str: "text: write it in quotes", int: "a whole number", bool: "true or false"}
_MISTAKEN = {str: (int, float), int: (bool, float), bool: (int, float)}
# What argparse calls the types that a flag is read as.
_READ_AS = {"int": "a whole number", "float": "a number", "dict": "a mapping, which only the YAML can hold"}
# What argparse says of a flag, and what is said here.
_SAID = {
    r"invalid (\w+) value: (.*)": "is {1}, it should be {2}",
    r"invalid choice: (.*) \(choose from (.*)\)": "is {0}, it should be one of {1}",
    r"Truthy value expected: got (.*) but": "is {0!r}, it should be true or false",
    r"expected one argument": "needs a value",
}


def run_script(main: Callable, *kinds: type, level: int | None = None, defaults: Callable | None = None) -> None:
    """What a recipe does as a script: `main` gets its command line and YAML as dataclasses `kinds`. A user's error is
    printed in one to three lines (`message_of`), after its traceback where the variable LLMREC_TRACEBACK is set;
    `--help` is `print_help`.

    Args:
        level: of the package's log.
        defaults: (settings) → (why, further settings), for those that are not given; what it chose is printed.
    """
    sys.excepthook = print_error
    if {"-h", "--help"} & {*sys.argv[1:]}:
        with contextlib.suppress(Unreadable):  # then argparse says it, without groups
            return print_help(Path(sys.argv[0]))
    # transformers' bars, of loading and writing weights: only where that takes more than seconds
    set_tqdm_hook(lambda make, given, named: make(*given, **({"delay": 2} | named)))
    logging.basicConfig(format="%(message)s")
    if level is not None:
        logging.getLogger("llmrec").setLevel(level)
    main(*Parser(kinds, defaults).parse_args_and_config())


class _Loader(yaml.SafeLoader):
    """Refuses a key that stands twice in a mapping, of which the last would count."""

    def construct_mapping(self, node, deep=False):
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for place, key in enumerate(keys):
            if key in keys[:place]:
                raise ValueError(
                    f"{key!r} stands twice, the second time in line {node.value[place][0].start_mark.line + 1}"
                )
        return super().construct_mapping(node, deep)


class Parser(TrlParser):
    """`TrlParser`, which takes anything from a YAML: here a list, a mapping or nothing where the field is something
    else, one value where it is a list or a mapping, and a value of another kind (a number where it is text: YAML reads
    007 as 7) raise a `ValueError` that names the setting. So does what no field is called, on the command line and in
    the YAML, and a flag that is cut short. Without a GPU `bf16` is off and `use_cpu` on unless they are set; what asks
    for a GPU (`bf16: true`) transformers refuses where there is none. `defaults` are those of `run_script`."""

    def __init__(self, dataclass_types, defaults: Callable | None = None, **rest):
        super().__init__(dataclass_types, allow_abbrev=False, **rest)
        self._choose, self._given = defaults, set()
        trains = any("bf16" in kind.__dataclass_fields__ for kind in self.dataclass_types)
        self._on_cpu = trains and not torch.accelerator.is_available()
        if self._on_cpu:  # both are on, and then a GPU is asked for, or missed
            self.set_defaults(bf16=False, dataloader_pin_memory=False)

    def parse_args_and_config(self, args=None, **rest) -> tuple:
        args = [part for arg in (sys.argv[1:] if args is None else args) for part in _config_apart(str(arg))]
        if args and not args[0].startswith("-"):
            raise ValueError(f"{args[0]!r} belongs to no flag: write --config {args[0]} if it is the YAML")
        flags = [arg.partition("=")[0] for arg in args if arg.startswith("--")]
        for flag in flags:
            if flag not in self._option_string_actions and flag != "--config":
                raise ValueError(f"there is no flag {flag}{did_you_mean(flag, self._option_string_actions)}")
        if "--config" in args:
            path = args[place] if (place := args.index("--config") + 1) < len(args) else None
            if path is None or flags.count("--config") > 1:
                raise ValueError("--config takes the path of one YAML file")
            args[place] = str(find(path))
            known = [action.dest for action in self._actions]
            for name in read_yaml(path).keys() - {*known, "env"}:
                raise ValueError(f"{path}: there is no setting {name!r}{did_you_mean(str(name), known)}")
        return super().parse_args_and_config(args, **rest)

    def parse_args_into_dataclasses(self, args=None, **rest) -> tuple:
        settings, stray = self.parse_known_args(args)
        if stray:
            raise ValueError(f"{' '.join(stray)!r} belongs to no flag: write --flag value, and quotes around spaces")
        flags = [arg.partition("=")[0] for arg in args or () if arg.startswith("--")]
        given = self._given | {self._option_string_actions[flag].dest for flag in flags}
        if self._on_cpu and "use_cpu" not in given and not (settings.bf16 or settings.fp16):  # which are for a GPU
            self.set_defaults(use_cpu=True)
        if self._choose is not None:
            why, chosen = self._choose(vars(settings))
            chosen = {name: value for name, value in chosen.items() if name not in given}
            self.set_defaults(**chosen)
            if chosen and os.environ.get("RANK", "0") == "0":
                sys.stdout.write(f"{why}: {', '.join(f'{name} {value}' for name, value in chosen.items())}\n")
        return super().parse_args_into_dataclasses(args, **rest)

    def error(self, message: str):
        """Of argparse, which would print the usage of some hundred flags."""
        required = re.match("the following arguments are required: (.*)", message)
        if required:
            names = ", ".join(name.partition("/")[0] for name in required[1].split(", "))
            raise ValueError(f"{names.replace('--', '')} missing: give it in the YAML (--config), or as {names}")
        flag, said = re.match(r"(?:argument (--\w+)\S*: )?(.*)", message, re.DOTALL).groups()
        for pattern, text in _SAID.items():
            if found := re.match(pattern, said):
                kind = found[1] if found.groups() else ""
                said = text.format(*found.groups(), _READ_AS.get(kind, kind))
        raise ValueError(f"{flag or ''} {said}".strip())

    def set_defaults_with_config(self, **config) -> list[str]:
        self._given |= config.keys()
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


def _config_apart(argument: str) -> list[str]:
    return ["--config", argument.removeprefix("--config=")] if argument.startswith("--config=") else [argument]


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
    """Reads YAML, of the user or shipped (`llmrec.shipped.find`), that holds a mapping, or what `kind` says; a missing
    or damaged file, a key that stands twice, or a file that holds something else raises a `ValueError` that names it,
    and the place in it."""
    path, problem = find(path), f"{path} is no readable YAML"
    try:
        value = yaml.load(path.read_text(encoding="utf-8"), _Loader)  # a safe loader
    except OSError as error:
        beside = [str(file) for file in path.parent.glob("*.y*ml")] if path.parent.is_dir() else []
        near = did_you_mean(str(path), beside)
        raise ValueError(f"{problem}: {(error.strerror or str(error)).lower()}{near}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{problem}: byte {error.start} is not UTF-8; save it as UTF-8") from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}"
        raise ValueError(f"{problem}, {where}: {error.problem or error.context}") from error
    except (yaml.YAMLError, ValueError, TypeError) as error:
        raise ValueError(f"{problem}: {error}") from error
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

"""What users write in YAML and on the command line: checked by name."""

import importlib
import inspect
import math
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from difflib import get_close_matches
from numbers import Integral, Real
from typing import get_args, get_type_hints


def one_of(name: str, known: Iterable[str], what: str) -> str:
    """`name`, which a user wrote; raises `ValueError` with all known names, and the nearest, if it is none of them."""
    known = list(known)
    if name in known:
        return name
    raise ValueError(f"{what} {name!r} is not one of {', '.join(known)}{did_you_mean(name, known)}")


def part_named(name: str, known: Mapping, what: str):
    """What `name` stands for: an entry of `known`, or a part of the user's own by its dotted path, such as
    `my_shop.parts.Colours`, from the folder of the run or an installed package. Raises `ValueError` where it is
    neither, or cannot be imported."""
    if isinstance(name, str) and name in known:
        return known[name]
    module, _, attribute = str(name).rpartition(".")
    if not module:
        near = did_you_mean(name, known)
        raise ValueError(f"{what} {name!r} is not one of {', '.join(known)}, nor a dotted path to your own{near}")
    if os.getcwd() not in sys.path:  # as TRL's scripts do: a run's own folder comes first there
        sys.path.append(os.getcwd())
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"{what} {name!r} cannot be imported: {error}") from error


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`": did you mean 'x'?"` for the known name that is nearest to an unknown one; empty where none is near."""
    nearest = get_close_matches(str(name), known, n=1)
    return f": did you mean {nearest[0]!r}?" if nearest else ""


def whole_number(value, name: str, least: int = 1) -> int:
    """`value` as an `int`; `ValueError` naming it unless it is a whole number of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, Integral) or value < least:
        raise ValueError(f"{name} is {value!r}, it should be a whole number of at least {least}")
    return int(value)


def at_least(arguments, **least: int | float) -> None:
    """Refuses numbers of a dataclass that a user wrote and that are too small: `at_least(args, num_beams=1)`.

    A least value that is an `int` asks for whole numbers. A list has an entry, and each is looked at; `None` passes
    where the field's type allows it. Raises `ValueError` that begins with the field's name.
    """
    types = get_type_hints(type(arguments))  # not those of `fields`, which transformers' parser takes None out of
    for name, lowest in least.items():
        value = getattr(arguments, name)
        if value is None and type(None) in get_args(types[name]):
            continue
        if isinstance(value, list) and not value:
            raise ValueError(f"{name} is empty: give at least one number")
        for number in value if isinstance(value, list) else [value]:
            if isinstance(lowest, int):
                whole_number(number, name, lowest)
            elif isinstance(number, bool) or not isinstance(number, Real) or not lowest <= number < math.inf:
                raise ValueError(f"{name} is {number!r}, it should be a number of at least {lowest}")


def construct(kind: Callable, arguments: Mapping, what: str):
    """`kind(**arguments)` for arguments that a user wrote, in YAML for instance.

    Raises:
        ValueError: beginning with `what`: an argument that `kind` does not take (and those that it takes), or one
            that it refuses.
    """
    known = inspect.signature(kind).parameters
    open_ended = any(each.kind is each.VAR_KEYWORD for each in known.values())
    unknown = next((name for name in arguments if name not in known), None)
    if unknown is not None and not open_ended:
        names = [name for name in known if name != "cache_dir"]
        takes = ", ".join(names) or "none"
        raise ValueError(f"{what}: there is no argument {unknown!r}; it takes {takes}{did_you_mean(unknown, names)}")
    try:
        return kind(**arguments)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{what}: {error}") from error

"""What users write on the command line and in YAML, read into dataclasses."""

from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from trl import TrlParser

_VALUE = "one value"
_SHAPES = {_VALUE: _VALUE, list: "a list", dict: "a mapping", NoneType: "empty"}


class Parser(TrlParser):
    """`TrlParser`, which takes anything from a YAML: here a list, a mapping or nothing where the field is something
    else, or one value where it is a list or a mapping, raises a `ValueError` that names the setting. A number where
    the field takes text is text."""

    def set_defaults_with_config(self, **config) -> list[str]:
        for kind in self.dataclass_types:
            hints = get_type_hints(kind)
            for name in config.keys() & kind.__dataclass_fields__.keys():
                value, allowed = config[name], _shapes(hints[name])
                if (type(value) if type(value) in _SHAPES else _VALUE) not in allowed:
                    takes = " or ".join(text for shape, text in _SHAPES.items() if shape in allowed)
                    raise ValueError(f"{name} is {value!r}, it should be {takes}")
                if type(value) in (int, float) and {str, NoneType}.issuperset(get_args(hints[name]) or [hints[name]]):
                    config[name] = str(value)
        return super().set_defaults_with_config(**config)


def _shapes(hint: object) -> set:
    if hint is Any:
        return set(_SHAPES)
    if get_origin(hint) in (Union, UnionType):
        return set().union(*map(_shapes, get_args(hint)))
    kind = get_origin(hint) or hint
    return {kind if kind in _SHAPES else _VALUE}

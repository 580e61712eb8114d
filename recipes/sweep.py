"""Searches settings on validation: the stages of one recommender, trained anew with some settings changed, try by try.

    python recipes/sweep.py --config recipes/configs/beauty/sweep.yaml
    python recipes/sweep.py --config recipes/configs/beauty/sweep.yaml --only deeper wider

`base` names `stages`, recipes with their YAML, which run once for each of `seeds`, after those of `shared`, as a
member of a leaderboard does; `tries` maps a name to the settings that it changes, by recipe. Every stage is a
recipe in a process and a folder of its own: what is there is reused, and a run that was killed goes on. A try
that fails is named and the others go on. Writes sweep.md and sweep.json after every run. Test rows are not read.
"""

import logging
import sys
from dataclasses import dataclass, field
from pathlib import Path

from llmrec.arguments import one_of
from llmrec.commands import run_script
from llmrec.evaluation.leaderboard import check_recipes, train_run
from llmrec.evaluation.sweep import BASE, results_of, sweep_lines, tries_of
from llmrec.files import Lock, atomic_path, write_json

RECIPES = Path(__file__).parent


@dataclass
class SweepArguments:
    data_dir: str = field(metadata={"help": "Prepared data (recipes/prepare_data.py)."})
    output_dir: str = field(metadata={"help": "Folder of the tries and the table."})
    base: dict = field(metadata={"help": "YAML: stages, and where there are some shared, seeds."})
    tries: dict = field(metadata={"help": "YAML: name -> recipe -> settings that change."})
    only: list[str] = field(default_factory=list, metadata={"help": "Run these, and the base; by default all."})


def main(args: SweepArguments) -> None:
    output, runs = Path(args.output_dir), tries_of(args.base, args.tries, args.data_dir, args.output_dir)
    for name in args.only:
        one_of(name, args.tries, "only:")
    check_recipes(runs, RECIPES)
    failed, lines = [], []
    with Lock(output):
        for run in runs:
            if args.only and run.member not in (BASE, *args.only):
                continue
            try:
                train_run(run, RECIPES, output)
            except SystemExit as error:
                print(f"{run.label}: {error}", file=sys.stderr)
                failed.append(run.label)
                continue
            rows = results_of(runs)
            missing = sorted({one.member for one in runs} - {row["name"] for row in rows})
            lines = [*sweep_lines(rows, args.tries, missing)]
            write_json(output / "sweep.json", {"tries": rows, "missing": missing})
            with atomic_path(output / "sweep.md") as temporary:
                temporary.write_text("\n".join([*lines, ""]), encoding="utf-8")
    print("\n".join(lines))
    if failed:
        raise ValueError(f"failed: {', '.join(failed)}; their messages are above. The same command goes on from here")


if __name__ == "__main__":
    run_script(main, SweepArguments, level=logging.INFO)

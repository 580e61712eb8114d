"""Sweeps: one recommender trained anew with some settings changed, try by try, compared on validation alone.

The base is a member of a leaderboard (`llmrec.evaluation.leaderboard.Member`); a try changes settings of some of its
stages, and is made once per seed of the base. Stages before the first change are shared with the base, later ones get
folders of their own. Test rows are never read.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from llmrec.evaluation.leaderboard import Run, changed, moved, runs_of, training_of
from llmrec.files import read_json
from llmrec.stages import RECORD

BASE = "base"
CHOSEN_BY, BESIDE = "ndcg@10", "recall@10"


def tries_of(base: Mapping, tries: Mapping[str, Mapping], data_dir: str, output_dir: str | Path) -> list[Run]:
    """The runs of the base (fields of `Member`) and of all tries (name → recipe → settings that change): those of the
    first seed, then those of the second, ...

    Raises:
        ValueError: what `runs_of` refuses, a try of no name of a folder, of a recipe that the base has not once, or
            that changes nothing.
    """
    runs = []
    for run in runs_of({BASE: base}, data_dir):
        runs.append(run)
        for name, changes in tries.items():
            if name == BASE or Path(str(name)).name != name:
                raise ValueError(f"tries: {name!r} should be a name for a folder, and not {BASE!r}")
            runs.append(_changed(run, name, changes, Path(output_dir)))
    return runs


def _changed(run: Run, name: str, changes: Mapping[str, Mapping], output_dir: Path) -> Run:
    stages, first = changed([*run.shared, *run.stages], changes, f"tries: {name}")
    label = name + run.label.removeprefix(BASE)
    folders = {
        settings["output_dir"]: str(output_dir / label / f"{number}_{recipe}")
        for number, (recipe, settings) in enumerate(stages, 1)
        if number > first
    }
    stages = [(recipe, moved(settings, folders)) for recipe, settings in stages]
    return Run(name, run.seed, label, stages[:first], stages[first:])


def results_of(runs: Sequence[Run]) -> list[dict]:
    """Of every try that has a finished run, best validation ndcg@10 first: name, seeds, metrics (means over its
    seeds), spread (largest - smallest ndcg@10), difference of the ndcg@10 to the base's over the seeds that both have
    (`None` without such), seconds of training, and updates until the best. Raises `ValueError` for a recommender whose
    training notes no validation metrics."""
    found: dict[str, dict[int | None, dict]] = {}
    for run in runs:
        record = Path(run.folder) / RECORD
        if record.exists() and (stage := read_json(record))["complete"]:
            results = stage["results"].get("best", {}) | stage["results"] | training_of(run)
            if CHOSEN_BY not in results:
                raise ValueError(f"{run.folder}: its stage notes no validation {CHOSEN_BY}, so tries do not compare")
            found.setdefault(run.member, {})[run.seed] = results
    rows = []
    for name, seeds in found.items():
        values = {seed: one[CHOSEN_BY] for seed, one in seeds.items()}
        both = [value - found[BASE][seed][CHOSEN_BY] for seed, value in values.items() if seed in found.get(BASE, {})]
        rows.append({
            "name": name,
            "seeds": len(seeds),
            CHOSEN_BY: _mean(seeds, CHOSEN_BY),
            **({BESIDE: _mean(seeds, BESIDE)} if all(BESIDE in one for one in seeds.values()) else {}),
            "spread": max(values.values()) - min(values.values()),
            "difference": float(np.mean(both)) if both and name != BASE else None,
            **{name: _mean(seeds, name) for name in ("seconds", "updates", "best_update")},
        })  # fmt: skip
    return sorted(rows, key=lambda row: -row[CHOSEN_BY])


def _mean(seeds: Mapping[int | None, Mapping], name: str) -> float:
    return float(np.mean([one[name] for one in seeds.values()]))


def sweep_lines(rows: Sequence[Mapping], tries: Mapping[str, Mapping], missing: Sequence[str]) -> Iterator[str]:
    """Markdown of what `results_of` returned."""
    yield "Validation, means over seeds; spread: largest minus smallest ndcg@10 of the seeds."
    yield ""
    yield "| | what changed | seeds | ndcg@10 | to the base | spread | recall@10 | minutes | best after updates |"
    yield "|---|---|---:|---:|---:|---:|---:|---:|---:|"
    for row in rows:
        changed = [f"{name}: {value}" for one in tries.get(row["name"], {}).values() for name, value in one.items()]
        difference = "–" if row["difference"] is None else f"{row['difference']:+.4f}"
        spread = f"{row['spread']:.4f}" if row["seeds"] > 1 else "–"
        recall = f"{row[BESIDE]:.4f}" if BESIDE in row else "–"
        numbers = f"{row['seeds']} | {row[CHOSEN_BY]:.4f} | {difference} | {spread} | {recall}"
        cost = f"{row['seconds'] / 60:.1f} | {row['best_update']:.0f}"
        yield f"| {row['name']} | {'; '.join(changed)} | {numbers} | {cost} |"
    if missing:
        yield ""
        yield f"Not finished: {', '.join(missing)}."

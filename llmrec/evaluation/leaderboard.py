"""Leaderboards: a set of recommenders trained, evaluated and tabulated on one data set, beside published figures.

A member is trained by recipes, each with its YAML, and once per seed; every run has folders of its own. Notable: all
members are asked for the same rows by the same rule (`llmrec.evaluation.evaluate`), the test rows once per run, and
what is not finished is said to be missing. Intervals and differences are over users, of the mean over seeds.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from transformers.trainer import TRAINER_STATE_NAME

from llmrec.arguments import construct, one_of, whole_number
from llmrec.commands import read_yaml, run_recipe
from llmrec.data import PreparedData
from llmrec.evaluation.bootstrap import over_seeds
from llmrec.evaluation.evaluate import evaluate, row_figures
from llmrec.evaluation.report import is_report_of, write_report
from llmrec.features.network_training import learning_curve
from llmrec.files import Lock, fingerprint, read_json, read_parquet
from llmrec.recommenders import check_trained_on, files_of, load_recommender
from llmrec.stages import RECORD

SUMMARY = "metrics.json"
_OF_ONE = ("parameters", "inputs fingerprint")  # facts of one run


@dataclass(frozen=True)
class Member:
    """How a member of a leaderboard is made: `stages` and `shared`, each `{recipe: its YAML}`.

    Attributes:
        stages: in turn, once for every seed; the last one writes the recommender.
        shared: what they start from, made once.
        seeds: of the stages; none: as their YAML stands.
        folders: in all of these YAML files, old folder → new: so that several data sets have one recipe.
        changes: recipe → settings that differ from its YAML.
    """

    stages: list[dict]
    shared: list[dict] = field(default_factory=list)
    seeds: list[int] = field(default_factory=list)
    folders: dict[str, str] = field(default_factory=dict)
    changes: dict[str, dict] = field(default_factory=dict)

    def __post_init__(self):
        for name in ("stages", "shared", "seeds"):
            if not isinstance(value := getattr(self, name), list):
                raise ValueError(f"{name} is {value!r}, it should be a list")
        if not isinstance(self.folders, dict) or not all(isinstance(one, str) for one in self.folders.values()):
            raise ValueError(f"folders is {self.folders!r}, it should be old: new, such as out/own_csv: out/my_shop")
        for seed in self.seeds:
            whole_number(seed, "seeds", 0)
        if not self.stages:
            raise ValueError("there is no stage, such as train_recommender: my/sasrec.yaml")


@dataclass(frozen=True)
class Run:
    """One training of a member: (recipe, settings) of the stages that it shares with others, and of its own."""

    member: str
    seed: int | None
    label: str
    shared: list[tuple[str, dict]]
    stages: list[tuple[str, dict]]

    @property
    def folder(self) -> str:
        """Of the recommender."""
        return self.stages[-1][1]["output_dir"]


def runs_of(recommenders: Mapping[str, Mapping], data_dir: str) -> list[Run]:
    """All runs of the members (name → fields of `Member`): the first seed of each, then the second, ...

    Another seed than the last stage's own is set in every stage that is no shared one, and `-seed-N` added to the
    folders that they write. Raises `ValueError`: a member or stage that is none, other data than `data_dir`, no
    `output_dir`, `folders` that no YAML names, or two runs that would write into one folder.
    """
    if not recommenders:
        raise ValueError("recommenders is empty: give a name and its stages")
    runs = []
    for name, fields in recommenders.items():
        what = f"recommenders: {name}"
        member = construct(Member, fields or {}, what)
        for number, seed in enumerate(member.seeds or [None]):
            both = member.shared, member.stages
            shared, stages = ([*_settings(one, member.folders, data_dir, what)] for one in both)
            _check_named(member.folders, [*shared, *stages], what)
            if member.changes:
                both, _ = changed([*shared, *stages], member.changes, f"{what}: changes")
                shared, stages = both[: len(shared)], both[len(shared) :]
            again = seed not in (None, _seed_of(*stages[-1]))
            if again:
                stages = _with_seed(stages, seed)
            label = f"{name}-seed-{seed}" if again else name
            runs.append((number, Run(name, seed, label, shared, stages)))
    runs = [run for _, run in sorted(runs, key=lambda one: one[0])]
    folders = [run.folder for run in runs]
    if twice := [run.label for run in runs if folders.count(run.folder) > 1]:
        raise ValueError(f"{' and '.join(twice)} would write into one folder: each has its own output_dir, or seed")
    return runs


def _settings(stages: Iterable, folders: Mapping, data_dir: str, what: str) -> Iterator[tuple[str, dict]]:
    for stage in stages:
        if not isinstance(stage, dict) or len(stage) != 1:
            raise ValueError(f"{what}: stage {stage!r} should be a recipe and its YAML, such as sft: my/sft.yaml")
        ((recipe, path),) = stage.items()
        settings = moved(read_yaml(path), folders)
        if "output_dir" not in settings:
            raise ValueError(f"{what}: {path} has no output_dir")
        if settings.get("data_dir", data_dir) != data_dir:
            raise ValueError(f"{what}: {path} is about {settings['data_dir']}, this leaderboard about {data_dir}")
        yield recipe, settings


def _check_named(folders: Mapping, stages: Iterable[tuple[str, dict]], what: str) -> None:
    """Raises `ValueError` for a new folder that no setting names: its old one stands in no YAML."""
    for old, new in folders.items():
        if all(moved(settings, {new: ""}) == settings for _, settings in stages):
            raise ValueError(f"{what}: folders: none of its YAML files names {old}")


def changed(
    stages: Sequence[tuple[str, dict]], changes: Mapping[str, Mapping], what: str
) -> tuple[list[tuple[str, dict]], int]:
    """Stages with some settings changed (recipe → settings; mappings within them likewise), and the first that
    differs. Raises `ValueError`: a recipe that they run not once, what changes nothing, or a folder that other stages
    would not follow."""
    if not isinstance(changes, Mapping) or not all(isinstance(one, Mapping) for one in changes.values()):
        raise ValueError(f"{what} is {changes!r}, it should be recipes and what changes: sft: {{weight_decay: 0}}")
    stages, recipes, first = list(stages), [recipe for recipe, _ in stages], len(stages)
    for recipe, settings in changes.items():
        place = recipes.index(one_of(recipe, recipes, f"{what}: recipe"))
        if recipes.count(recipe) > 1:
            raise ValueError(f"{what}: {recipe} runs more than once, so it is not clear which changes")
        if moves := sorted({*settings} & {"output_dir", "data_dir"}):
            raise ValueError(f"{what}: {recipe}: {moves[0]}: other stages would not follow: see folders of the member")
        before = stages[place][1]
        after = _merged(before, settings)
        if after == before:
            raise ValueError(f"{what}: {recipe} has these settings already")
        stages[place], first = (recipe, after), min(first, place)
    if first == len(stages):
        raise ValueError(f"{what} changes nothing")
    return stages, first


def _merged(settings: Mapping, changes: Mapping) -> dict:
    both = {key: (settings[key], value) for key, value in changes.items() if key in settings}
    nested = {key: _merged(*two) for key, two in both.items() if all(isinstance(one, Mapping) for one in two)}
    return {**settings, **changes, **nested}


def _seeded(recipe: str, settings: dict) -> dict:
    """Where the seed of a stage stands in its settings."""
    return settings.setdefault("settings", {}) if recipe == "train_recommender" else settings


def _seed_of(recipe: str, settings: dict) -> int | None:
    """The seed of a stage as its YAML stands; `None` where it is left to TRL."""
    return _seeded(recipe, settings).get("seed", 0 if recipe == "train_recommender" else None)


def _with_seed(stages: Iterable[tuple[str, dict]], seed: int) -> list[tuple[str, dict]]:
    folders, seeded = {}, []
    for recipe, settings in stages:
        folders[settings["output_dir"]] = f"{settings['output_dir']}-seed-{seed}"
        settings = moved(settings, folders)
        _seeded(recipe, settings)["seed"] = seed
        seeded.append((recipe, settings))
    return seeded


def moved(value, folders: Mapping[str, str]):
    """Settings that name the new folders, or files in them, wherever they named the old ones."""
    if isinstance(value, dict):
        return {key: moved(one, folders) for key, one in value.items()}
    if isinstance(value, list):
        return [moved(one, folders) for one in value]
    old = next((old for old in folders if isinstance(value, str) and f"{value}/".startswith(f"{old}/")), None)
    return value if old is None else folders[old] + value.removeprefix(old)


def check_recipes(runs: Iterable[Run], recipes: str | Path) -> None:
    """Raises `ValueError` for a stage whose recipe is not in the folder `recipes`."""
    known = sorted(path.stem for path in Path(recipes).glob("*.py"))
    for run in runs:
        for recipe, _ in [*run.shared, *run.stages]:
            one_of(recipe, known, f"{run.member}: recipe")


def train_run(run: Run, recipes: str | Path, output_dir: str | Path) -> None:
    """Runs the stages of a run, each in a process of its own; `SystemExit` where one fails. Their settings are kept in
    `output_dir/stages/<label>`."""
    for number, (recipe, settings) in enumerate([*run.shared, *run.stages], 1):
        config = Path(output_dir) / "stages" / run.label / f"{number}_{recipe}.yaml"
        run_recipe(Path(recipes) / f"{recipe}.py", settings, config)


def evaluate_run(run: Run, data: PreparedData, output_dir: str | Path) -> None:
    """Writes the report of a trained run into `output_dir/<label>`; one that is there is not made again."""
    folder, inputs = Path(output_dir) / run.label, _inputs(run, data)
    if is_report_of(folder, inputs):
        return
    with Lock(folder):
        check_trained_on(run.folder, data)
        recommender = load_recommender(run.folder)
        result = evaluate(recommender, data.test, data, run.member)
        facts = {
            "data": data.info.get("name", ""),
            "data fingerprint": data.fingerprint,
            "split": f"test, {data.test.num_rows} rows",
            "items": data.items.num_rows,
            "items of the history": "left out" if result.exclude_seen else "kept",
            "parameters": recommender.num_parameters,
            "inputs fingerprint": inputs,
        }
        write_report([result], folder, f"{facts['data']}: {run.label}", facts=facts)


def _inputs(run: Run, data: PreparedData) -> str:
    return fingerprint(run.member, data.fingerprint, files_of(run.folder))


def standings(runs: Sequence[Run], data: PreparedData, output_dir: str | Path, reference: str | None = None) -> dict:
    """What is finished, laid out as `write_report` lays out metrics.json, best ndcg@10 first.

    Returns:
        `{"facts", "recommenders": {member: ...}, "reference", "differences": {member: ...}, "missing": [labels]}`.
        `metrics` and `slices` of a member are means over its seeds and `ci` intervals of these (slices of several
        seeds have none); beside stand `spread` (largest - smallest over seeds) and `runs`: seed, parameters, seconds
        of training, updates and the best of them by validation.
    """
    done: dict[str, list[tuple[Run, Path, dict]]] = {}
    missing = []
    for run in runs:
        folder = Path(output_dir) / run.label
        if (folder / SUMMARY).exists() and is_report_of(folder, _inputs(run, data)):
            done.setdefault(run.member, []).append((run, folder, read_json(folder / SUMMARY)))
        else:
            missing.append(run.label)
    of_rows = {member: [_rows(folder) for _, folder, _ in finished] for member, finished in done.items()}
    facts, recommenders, differences = {}, {}, {}
    for row in over_seeds(of_rows, reference, data.test["user_id"]):
        member, finished = row["name"], done[row["name"]]
        found = [summary["recommenders"][member] for _, _, summary in finished]
        ends = {metric: one for metric, one in row.items() if "@" in metric}
        several = {"ci": {}} if len(found) > 1 else {}
        recommenders[member] = {
            "rows": found[0]["rows"],
            "exclude_seen": found[0]["exclude_seen"],
            "metrics": _mean([one["metrics"] for one in found]),
            "ci": {metric: one["ci"] for metric, one in ends.items()},
            "slices": [_mean(same) | several for same in zip(*(one["slices"] for one in found))],
            "spread": {metric: one["spread"] for metric, one in ends.items()},
            "runs": [training_of(run) | {"parameters": one["facts"]["parameters"]} for run, _, one in finished],
        }
        facts = {name: value for name, value in finished[0][2]["facts"].items() if name not in _OF_ONE}
        if "against" in row["ndcg@10"] and member != reference:
            differences[member] = {
                metric: {"difference": one["against"], "low": one["against_ci"][0], "high": one["against_ci"][1]}
                for metric, one in ends.items()
            }
    shown = {"recommenders": recommenders, "reference": reference, "differences": differences, "missing": missing}
    return {"facts": facts, **shown}


def _rows(folder: Path) -> dict[str, np.ndarray]:
    (predictions,) = (folder / "predictions").glob("*.parquet")
    return row_figures(read_parquet(predictions))


def _mean(found: Sequence[Mapping]) -> dict:
    """Of mappings alike: the mean of every fraction, and of all else the first."""
    return {
        key: float(np.mean([one[key] for one in found])) if isinstance(value, float) else value
        for key, value in found[0].items()
    }


def training_of(run: Run) -> dict:
    """Seed, seconds of all its stages, updates, and the best of them by validation."""
    results = [read_json(Path(settings["output_dir"]) / RECORD)["results"] for _, settings in run.stages]
    curve = curve_of(run.folder)
    return {
        "seed": run.seed,
        "seconds": sum(one.get("seconds", 0) for one in results),
        "updates": curve[-1][0] if curve else 0,
        "best_update": max(curve, key=lambda point: point[1])[0] if curve else 0,
    }


def curve_of(folder: str | Path) -> list[tuple[int, float]]:
    """(updates, validation ndcg@10) of a network's folder (curve.json) or a language model's (trainer_state.json);
    nothing where neither was trained."""
    if curve := learning_curve(folder):
        return [(one["step"], one["ndcg@10"]) for one in curve]
    path = Path(folder) / TRAINER_STATE_NAME
    logs = read_json(path)["log_history"] if path.exists() else []
    points = {log["step"]: log["eval_ndcg@10"] for log in reversed(logs) if "eval_ndcg@10" in log}
    return sorted(points.items())

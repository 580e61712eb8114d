"""Collects the figures of evaluations into one JSON file.

    python scripts/write_results.py industrial=out/industrial/evaluation beauty=out/beauty/evaluation
    python scripts/write_results.py pretrained=out/evaluation/alignment.json pretrained=out/language/sft.json

Every argument is `<data set>=<file>`, or the folder of a metrics.json. Writes `{"figures": {...}}`, with `/low` and
`/high` after a key for its 95 % interval:

- metrics.json (recipes/evaluate.py, recipes/leaderboard.py): `industrial/ours/item/recall@10`, ...; with the protocol
  in the name (docs/evaluation.md) `beauty/ours/seen_removed/recall@10`, `beauty/ours/seen_kept/recall@10`; over the
  rows with a rare target `industrial/ours/cold/recall@10` and `.../tail/...`; of a leaderboard's member how many seeds
  the means are of, `beauty/ours/seeds`, and the largest minus the smallest, `beauty/ours/seeds/spread/recall@10`
- alignment.json (the same): one figure of each section and model, `pretrained/title_to_item/ours`
- cold_start.json (recipes/cold_start.py): `pretrained/cold/ours/recall@10`
- <name>.json (recipes/language.py): `pretrained/questions_kept`, `pretrained/perplexity_ratio`
- what a benchmark wrote (scripts/bench_rpg.py --json rpg.json), by `bench=rpg.json`: `bench/rpg_graph_speedup`

Recommenders and models that a file does not name keep their figures; of one that it names, a figure that it lacks is
removed, one that is no finite number left out, and both are said. What two of the files name is refused. Prints the
main figures as Markdown.
"""

import argparse
import math
from pathlib import Path

from llmrec.evaluation.cold_start import COLD
from llmrec.evaluation.report import protocols_of
from llmrec.files import read_json, write_json

METRICS = [f"{name}@{k}" for name in ("recall", "ndcg") for k in (1, 3, 5, 10, 20, 50)]
RARE, MAIN = ("tail", "cold"), ("recall@10", "ndcg@10")
LIST_METRICS = ("valid@10", "coverage@10")
LANGUAGE = ("questions_kept", "perplexity_ratio")
ALIGNMENT = {
    "title_to_item": "recall@10",
    "item_to_title": "token F1",
    "description_to_item": "recall@10",
    "search": "recall@10, unseen wordings",
    "steering": "precision@10",
    "explanation": "faithfulness",
    "robustness": "recall@10 unseen mean",
}


def _figure(key: str, figures: dict, ci: dict, name: str) -> dict[str, float]:
    """A figure under `key` with its interval; nothing where there is no such figure."""
    if name not in figures:
        return {}
    ends = dict(zip((f"{key}/low", f"{key}/high"), ci.get(name, ())))
    return {key: round(figures[name], 6)} | {end: round(bound, 6) for end, bound in ends.items()}


def of_evaluation(found: dict) -> dict[str, dict[str, float]]:
    """What belongs together → the end of each key, with its value: here by recommender."""
    owners: dict[str, dict[str, float]] = {}
    for owner, result in found["recommenders"].items():
        figures = owners[owner] = {"/rows": result["rows"]}
        for metric in METRICS:
            for level, name in (("item", metric), ("semid", f"semid/{metric}")):
                figures |= _figure(f"/{level}/{metric}", result["metrics"], result["ci"], name)
        for protocol, start in protocols_of(result).items():
            for metric in MAIN:
                figures |= _figure(f"/{protocol}/{metric}", result["metrics"], result["ci"], f"{start}{metric}")
        if runs := result.get("runs"):
            figures["/seeds"] = len(runs)
            if len(runs) > 1:
                figures |= {f"/seeds/spread/{metric}": round(result["spread"][metric], 6) for metric in MAIN}
        for metric in LIST_METRICS:
            figures |= _figure(f"/{metric}", result["metrics"], {}, metric)
        for one in result["slices"]:
            family, _, label = one["slice"].partition(" / ")
            if family == "target popularity" and (rare := label.split()[0]) in RARE:
                figures[f"/{rare}/rows"] = one["rows"]
                for metric in MAIN:
                    figures |= _figure(f"/{rare}/{metric}", one, one["ci"], metric)
    return owners


def of_alignment(found: dict) -> dict[str, dict[str, float]]:
    return {
        f"{section}/{model}": _figure(
            "", report["sections"][section]["figures"], report["sections"][section]["ci"], name
        )
        for model, report in found["models"].items()
        for section, name in ALIGNMENT.items()
        if section in report["sections"]
    }


def of_cold_start(found: dict) -> dict[str, dict[str, float]]:
    owners: dict[str, dict[str, float]] = {}
    for owner, result in found["views"][COLD].items():
        figures = owners[f"cold/{owner}"] = {"/rows": result["rows"]}
        for metric in MAIN:
            figures |= _figure(f"/{metric}", result["metrics"], result["ci"], metric)
    return owners


def of_language(found: dict) -> dict[str, dict[str, float]]:
    return {name: _figure("", found, {}, name) for name in LANGUAGE}


def of_benchmark(found: dict) -> dict[str, dict[str, float]]:
    return {name: _figure("", found["figures"], {}, name) for name in found["figures"]}


READERS = {
    "recommenders": of_evaluation,
    "models": of_alignment,
    "views": of_cold_start,
    "questions_kept": of_language,
    "figures": of_benchmark,
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("evaluations", nargs="+", metavar="DATASET=FILE_OR_FOLDER")
    parser.add_argument("--json", default="docs/results.json", help="the file to write (docs/results.json)")
    arguments = parser.parse_args()
    path = Path(arguments.json)
    figures, wrote = read_json(path)["figures"] if path.exists() else {}, {}
    for argument in arguments.evaluations:
        dataset, separator, file = argument.partition("=")
        if not separator:
            parser.error(f"{argument!r} should be DATASET=FILE_OR_FOLDER")
        file = file if file.endswith(".json") else Path(file) / "metrics.json"
        found = read_json(file)
        reader = next((reader for name, reader in READERS.items() if name in found), None)
        if reader is None:
            parser.error(f"{file} has none of {', '.join(READERS)}: name a file that the text above lists")
        fresh, gone = {}, set()
        for owner, values in reader(found).items():
            start = f"{dataset}/{owner}"
            if start in wrote:
                parser.error(f"{start} is in {wrote[start]} and in {file}: give one of them, or other names")
            wrote[start] = file
            gone |= {key for key in figures if key == start or key.startswith(f"{start}/")}
            finite = {end: value for end, value in values.items() if math.isfinite(value)}
            for end in values.keys() - finite:
                print(f"{file}: {start}{end} is {values[end]}, no finite number, and left out")
            if not values:
                print(f"{file} has no figure for {start}")
            fresh |= {f"{start}{end}": value for end, value in finite.items()}
        figures = {key: value for key, value in figures.items() if key not in gone} | fresh
        if lost := sorted(gone - {*fresh}):
            print(f"{path} loses what {file} lacks: {', '.join(lost)}")
        print(markdown(fresh, dataset) if reader is of_evaluation else listing(fresh))
    write_json(path, {"figures": dict(sorted(figures.items()))})
    print(f"{len(figures)} figures -> {path}")


def _cell(figures: dict[str, float], key: str) -> str:
    if key not in figures:
        return "–"
    low, high = figures.get(f"{key}/low"), figures.get(f"{key}/high")
    return f"{figures[key]:.4f}" if low is None else f"{figures[key]:.4f} [{low:.4f}, {high:.4f}]"


def listing(figures: dict[str, float]) -> str:
    """A line of Markdown for each figure."""
    keys = [key for key in figures if not key.endswith(("/low", "/high"))]
    return "\n".join(["| figure | value |", "|---|---:|", *(f"| {key} | {_cell(figures, key)} |" for key in keys)])


def markdown(figures: dict[str, float], dataset: str) -> str:
    """The main figures as a Markdown table, for docs/results.md."""
    names = dict.fromkeys(key.split("/")[1] for key in figures)
    columns = [("item", "recall@10"), ("item", "ndcg@10"), ("semid", "recall@10"), ("semid", "ndcg@10")]
    lines = [
        f"| {dataset} | " + " | ".join(f"{metric}, {level} level" for level, metric in columns) + " |",
        "|---" * (len(columns) + 1) + "|",
    ]
    for name in names:
        cells = [_cell(figures, f"{dataset}/{name}/{level}/{metric}") for level, metric in columns]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()

"""Collects the figures of evaluations into one JSON file.

    python scripts/write_results.py industrial=out/industrial/evaluation beauty=out/beauty/evaluation

Every argument is `<data set>=<folder that recipes/evaluate.py wrote>`, or `pretrained=<file of recipes/language.py>`
for `pretrained/questions_kept` and `pretrained/perplexity_ratio`. Writes `{"figures": {...}}` with keys such as
`industrial/ours/item/recall@10`, and `/low` and `/high` after a key for its 95 % interval. Recommenders that the
folder does not name keep their figures. Prints the main figures as Markdown.
"""

import argparse
from pathlib import Path

from llmrec.files import read_json, write_json

METRICS = [f"{name}@{k}" for name in ("recall", "ndcg") for k in (1, 3, 5, 10, 20, 50)]
LANGUAGE = ("questions_kept", "perplexity_ratio")
LIST_METRICS = ("valid@10", "coverage@10")


def figures_of(summary: dict, dataset: str) -> dict[str, float]:
    """The figures of one metrics.json."""
    figures = {}
    for name, result in summary["recommenders"].items():
        start = f"{dataset}/{name}"
        for metric in METRICS:
            for level, key in (("item", metric), ("semid", f"semid/{metric}"), ("kept", f"kept/{metric}")):
                if key not in result["metrics"]:
                    continue
                figures[f"{start}/{level}/{metric}"] = round(result["metrics"][key], 6)
                for side, bound in zip(("low", "high"), result["ci"].get(key, ())):
                    figures[f"{start}/{level}/{metric}/{side}"] = round(bound, 6)
        for metric in LIST_METRICS:
            if metric in result["metrics"]:
                figures[f"{start}/{metric}"] = round(result["metrics"][metric], 6)
        figures[f"{start}/rows"] = result["rows"]
    return figures


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("evaluations", nargs="+", metavar="DATASET=FOLDER_OR_FILE")
    parser.add_argument("--json", default="docs/results.json", help="the file to write (docs/results.json)")
    arguments = parser.parse_args()
    path = Path(arguments.json)
    figures = read_json(path)["figures"] if path.exists() else {}
    for argument in arguments.evaluations:
        dataset, separator, folder = argument.partition("=")
        if not separator:
            parser.error(f"{argument!r} should be DATASET=FOLDER")
        if folder.endswith(".json"):
            found = read_json(folder)
            if missing := [name for name in LANGUAGE if name not in found]:
                parser.error(f"{folder} has no {missing[0]}: name a file that recipes/language.py wrote for a model")
            figures |= {f"{dataset}/{name}": round(found[name], 6) for name in LANGUAGE}
            continue
        fresh = figures_of(read_json(Path(folder) / "metrics.json"), dataset)
        measured = {tuple(key.split("/")[:2]) for key in fresh}
        kept = {key: value for key, value in figures.items() if tuple(key.split("/")[:2]) not in measured}
        figures = kept | fresh
        print(markdown(fresh, dataset))
    write_json(path, {"figures": dict(sorted(figures.items()))})
    print(f"{len(figures)} figures -> {path}")


def markdown(figures: dict[str, float], dataset: str) -> str:
    """The main figures as a Markdown table, for docs/results.md."""
    names = dict.fromkeys(key.split("/")[1] for key in figures)
    columns = [("item", "recall@10"), ("item", "ndcg@10"), ("semid", "recall@10"), ("semid", "ndcg@10")]
    lines = [
        f"| {dataset} | " + " | ".join(f"{metric}, {level} level" for level, metric in columns) + " |",
        "|---" * (len(columns) + 1) + "|",
    ]
    for name in names:
        cells = []
        for level, metric in columns:
            key = f"{dataset}/{name}/{level}/{metric}"
            interval = (
                f" [{figures[f'{key}/low']:.4f}, {figures[f'{key}/high']:.4f}]" if f"{key}/low" in figures else ""
            )
            cells.append(f"{figures[key]:.4f}{interval}" if key in figures else "–")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()

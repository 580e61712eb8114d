"""Compares any set of item tokenizers on one catalogue: a table, a picture and, if asked, the same small model on all.

    python recipes/compare_tokenizers.py --config recipes/configs/compare_tokenizers.yaml

Every tokenizer is an entry of `tokenizers`: a name, and what differs from `semids`, the fields of tokenize_items.py
that all share. With `model` and `sft` (fields of init_model.py and sft.py; an entry may have its own) each trains
the same model, once per seed, and test rows rank them. Every stage is an ordinary recipe in a process and a folder of
its own: a killed run goes on where it was, and `output_dir/<tokenizer>/*.yaml` show what was run.
"""

from dataclasses import dataclass, field
from pathlib import Path

from llmrec.commands import read_yaml, run_recipe, run_script
from llmrec.evaluation import comparison
from llmrec.evaluation.bootstrap import over_seeds
from llmrec.evaluation.metrics import row_metrics
from llmrec.files import Lock, atomic_path, read_parquet, write_json

RECIPES = Path(__file__).parent


@dataclass
class CompareArguments:
    data_dir: str = field(metadata={"help": "Prepared data (recipes/prepare_data.py)."})
    output_dir: str = field(metadata={"help": "Folder for all of it."})
    tokenizers: dict = field(metadata={"help": "YAML: name -> fields of tokenize_items.py, and `sft`."})
    semids: dict = field(default_factory=dict, metadata={"help": "YAML: fields that all tokenizers share."})
    model: dict = field(default_factory=dict, metadata={"help": "YAML: fields of init_model.py, for the downstream."})
    sft: dict = field(default_factory=dict, metadata={"help": "YAML: fields of sft.py; {config: FILE} begins it."})
    downstream: list[str] = field(default_factory=list, metadata={"help": "Tokenizers to train on; none = all."})
    seeds: list[int] = field(default_factory=lambda: [0, 1], metadata={"help": "Of the downstream models."})
    reference: str = field(default="rq_kmeans", metadata={"help": "The tokenizer that others are compared with."})


def stage(recipe: str, name: str, folder: Path, *fields: dict) -> None:
    """Runs a recipe in its own process, with its settings in `folder/name.yaml`."""
    settings: dict = {}
    for each in fields:
        start = read_yaml(each["config"]) if "config" in each else {}
        settings |= start | {key: value for key, value in each.items() if key != "config"}
    run_recipe(RECIPES / f"{recipe}.py", settings, folder / f"{name}.yaml")


def train(args: CompareArguments, name: str, seed: int, folder: Path) -> tuple[dict, list[str]]:
    """One small model on one tokenizer's Semantic IDs; its test metrics and the users, by row."""
    at, data = folder / f"seed-{seed}", {"data_dir": args.data_dir}
    shared, (base, model, test) = data | {"seed": seed}, (str(at / part) for part in ("base", "model", "test"))
    stage("init_model", "model", at, args.model, shared, {"semids": str(folder / "semids"), "output_dir": base})
    shared |= (args.tokenizers[name] or {}).get("sft", {})
    stage("sft", "sft", at, args.sft, shared, {"model_name_or_path": base, "output_dir": model})
    stage("evaluate", "test", at, data, {"output_dir": test, "recommenders": {"model": model}})
    rows = read_parquet(at / "test" / "predictions" / "model.parquet")
    per_row = row_metrics(rows["rank"].to_numpy(), rows["group_size"].to_numpy(), [10])
    return {metric: per_row[metric] for metric in ("recall@10", "ndcg@10")}, rows["user_id"].to_pylist()


def main(args: CompareArguments) -> None:
    wrong = [name for name in args.downstream if name not in args.tokenizers or args.downstream.count(name) > 1]
    if wrong:
        raise ValueError(f"downstream names {wrong}: it takes every one of {[*args.tokenizers]} once at most")
    if args.sft and args.reference not in (args.downstream or args.tokenizers):
        raise ValueError(f"reference {args.reference!r} is not among the tokenizers that train a model")
    with Lock(args.output_dir):
        compare(args, Path(args.output_dir), figures={})


def compare(args: CompareArguments, output: Path, figures: dict) -> None:
    for name, fields in args.tokenizers.items():
        target = {"data_dir": args.data_dir, "output_dir": str(output / name / "semids")}
        own = {"tokenizer": name} | {key: value for key, value in (fields or {}).items() if key != "sft"}
        stage("tokenize_items", "semids", output / name, args.semids, own, target)
        figures[name] = comparison.tokenizer_figures(output / name / "semids")
    runs: dict[str, list] = {}
    for seed in args.seeds if args.sft else []:
        for name in args.downstream or args.tokenizers:
            of_rows, users = train(args, name, seed, output / name)
            runs.setdefault(name, []).append(of_rows)
    ranking = over_seeds(runs, args.reference, users) if runs else []
    lines = ["# Item tokenizers", "", *comparison.comparison_lines(figures), "", comparison.NOTE]
    lines += ["", "![Item tokenizers](comparison.png)", ""]
    lines += comparison.downstream_lines(ranking, args.reference) if ranking else []
    write_json(output / "comparison.json", {"tokenizers": figures, "downstream": ranking})
    with atomic_path(output / "comparison.md") as path:
        path.write_text("\n".join([*lines, ""]), encoding="utf-8")
    comparison.plot_comparison(figures, ranking).savefig(output / "comparison.png", dpi=130)
    print("\n".join(lines))


if __name__ == "__main__":
    run_script(main, CompareArguments)

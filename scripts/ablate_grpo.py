"""Which choice matters in GRPO? One small model on Industrial, another choice each time, several seeds.

    python scripts/ablate_grpo.py --output_dir out/grpo_ablation                       # all runs, one after the other
    python scripts/ablate_grpo.py --output_dir out/grpo_ablation --runs recipe "hits alone" --seeds 0 1 2

Needs out/industrial/{data,semids,baselines,model}: the recipes with recipes/configs/industrial, up to sft.py. Writes a
model folder for every run, and measures all of them on the test split beside the model that they start from. The
difference to it (searched over the vocabulary, as SFT left it) is that of the mean over seeds, with a 95 % interval
over users. A run that is done is reused.
"""

import argparse
import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import yaml

from llmrec.data import PreparedData
from llmrec.evaluation import evaluate, row_metrics
from llmrec.evaluation.bootstrap import paired_difference
from llmrec.files import write_json
from llmrec.recommenders import LLMRecommender

CONFIGS = Path("recipes/configs/industrial")
FEATURES = "out/industrial/semids/features.npy"
SIXTEEN = {"num_generations": 16, "per_device_train_batch_size": 512, "per_device_eval_batch_size": 16}
HITS = {"rewards": ["exact_hit"], "scale_rewards": "group"}
MINIONEREC = {"rewards": ["exact_hit", "rank_penalty"], "scale_rewards": "group", "log_probs": "vocabulary"}
MINIONEREC |= SIXTEEN | {"beta": 1e-3, "use_bias_correction_kl": False}
# The first is the shipped recipe; the others change what they name.
RUNS: dict[str, dict] = {
    "recipe": {},
    "hits alone": HITS,
    "hits alone, groups of 16": SIXTEEN | HITS,
    "hits alone, groups of 16, without KL": SIXTEEN | HITS | {"beta": 0.0},
    "MiniOneRec's rewards and log-probabilities": MINIONEREC,
    "without KL": {"beta": 0.0},
    "SASRec's score scaled by group": {"scale_rewards": "group"},
    "log-probabilities over the vocabulary": {"log_probs": "vocabulary"},
    "samples": {"rollout": "sample"},
    "half samples": {"rollout": "mixed"},
    "target always there": {"log_positives": 1},
    "rank penalty instead of SASRec's score": {"rewards": ["exact_hit", "rank_penalty"]},
    "prefix match instead": {"rewards": ["exact_hit", "prefix_match:0.1"]},
    "semantic similarity instead": {"rewards": ["exact_hit", "semantic_similarity:0.1"], "features": FEATURES},
    "popularity-corrected hit": {"rewards": ["popularity_corrected_hit", "collaborative:0.03"]},
    "hits alone, dead groups skipped": HITS | {"dead_groups": "skip"},
    "hits alone, dead groups resampled": HITS | {"dead_groups": "resample"},
    "first-difference credit": {"credit": "first_difference"},
    "undated rows too": {"tasks": []},
}
# What more likelihood on the same rows gives: an epoch of them is about as many as the recipe's steps roll out for.
SFT = "no GRPO, an epoch of SFT on its rows"
LIKELIHOOD = {"num_train_epochs": 1, "learning_rate": 1e-4, "warmup_steps": 10, "eval_strategy": "no"}
LIKELIHOOD |= {"load_best_model_at_end": False, "save_strategy": "no"}
QUICK = {"eval_strategy": "no", "eval_on_start": False, "save_strategy": "no"}
METRICS = ("recall@1", "recall@10", "recall@50", "ndcg@10")


def train(name: str, seed: int, output: Path, steps: int) -> Path:
    settings = yaml.safe_load((CONFIGS / "grpo.yaml").read_text(encoding="utf-8")) | QUICK | {"max_steps": steps}
    if name == SFT:
        start = {"model_name_or_path": settings["model_name_or_path"], "tasks": settings["tasks"]}
        settings = yaml.safe_load((CONFIGS / "sft.yaml").read_text(encoding="utf-8")) | start | LIKELIHOOD
    slug = "".join(c if c.isalnum() else "_" for c in name) + f"_seed{seed}"
    settings |= RUNS.get(name, {}) | {"seed": seed, "output_dir": str(output / slug)}
    file = output / f"{slug}.yaml"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")
    recipe = "sft" if name == SFT else "grpo"
    subprocess.run([sys.executable, f"recipes/{recipe}.py", "--config", str(file)], check=True)
    return Path(settings["output_dir"])


def measure(folder: Path, normalize: str, data: PreparedData, file: Path) -> tuple[dict, dict[str, np.ndarray]]:
    """Metrics, and float64 [rows] of each of `METRICS`, on the test split; kept in a file beside."""
    if not file.exists():
        recommender = LLMRecommender.from_pretrained(folder)
        recommender.config = dataclasses.replace(recommender.config, normalize=normalize)
        result = evaluate(recommender, data.test, data, folder.name, bootstrap=0)
        head = result.exposure["recommended"]["head"]
        ranks, sizes = (result.predictions[name].to_pylist() for name in ("rank", "group_size"))
        write_json(file, {"coverage": result.metrics["coverage@10"], "head": head, "ranks": ranks, "sizes": sizes})
    held = json.loads(file.read_text(encoding="utf-8"))
    rows = row_metrics(np.array(held["ranks"]), np.array(held["sizes"]), (1, 10, 50))
    shown = {"coverage@10": held["coverage"], "head@10": held["head"]}
    return {name: float(rows[name].mean()) for name in METRICS} | shown, {name: rows[name] for name in METRICS}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", default="out/grpo_ablation")
    parser.add_argument("--runs", nargs="*", default=[*RUNS, SFT], choices=[*RUNS, SFT])
    parser.add_argument("--seeds", nargs="*", type=int, default=[0])
    parser.add_argument("--max_steps", type=int, default=300, help="Of GRPO.")
    args = parser.parse_args()
    output, shared = Path(args.output_dir), yaml.safe_load((CONFIGS / "grpo.yaml").read_text(encoding="utf-8"))
    folders = {name: [train(name, seed, output, args.max_steps) for seed in args.seeds] for name in args.runs}
    data, start = PreparedData.load(shared["data_dir"]), {}
    print(f"| | {' | '.join(METRICS)} | coverage@10 | head@10 | ndcg@10 minus start | recall@50 minus start |")
    print("|---" * (len(METRICS) + 5) + "|")
    for normalize in ("vocabulary", "catalogue"):
        file = output / f"start_{normalize}.json"
        metrics, start[normalize] = measure(Path(shared["model_name_or_path"]), normalize, data, file)
        figures = " | ".join(f"{value:.4f}" for value in metrics.values())
        print(f"| the start, searched over the {normalize} | {figures} | | |")
    for name, seeds in folders.items():
        normalize = "vocabulary" if name == SFT else RUNS[name].get("log_probs", "catalogue")
        found = [measure(folder, normalize, data, folder / "test.json") for folder in seeds]
        mean = {key: np.mean([metrics[key] for metrics, _ in found]) for key in found[0][0]}
        figures = " | ".join(f"{value:.4f}" for value in mean.values())
        for key in ("ndcg@10", "recall@50"):
            ours = np.mean([rows[key] for _, rows in found], 0)[:, None]
            interval = paired_difference(ours, start["vocabulary"][key][:, None], data.test["user_id"])
            low, high, difference = (float(interval[part][0]) for part in ("low", "high", "difference"))
            figures += f" | {difference:+.4f} [{low:+.4f}, {high:+.4f}]"
        print(f"| {name} | {figures} |", flush=True)


if __name__ == "__main__":
    main()

"""What do instructions add? One small model on Industrial, the same steps, another mixture or start each time.

    python scripts/ablate_instructions.py --output_dir out/ablation            # all runs, one after the other
    python scripts/ablate_instructions.py --output_dir out/ablation --runs sequential "alignment, asymmetric"

Needs out/industrial/data and out/industrial/semids (recipes/prepare_data.py and tokenize_items.py with the files in
recipes/configs/industrial). Writes a model folder for every run and, with recipes/evaluate.py, one report with
intervals and the alignment of each. A run that is done is reused; a killed one goes on.
"""

import argparse
import subprocess
import sys
from pathlib import Path

import yaml

ALIGNMENT = ["item_to_title:4", "title_to_item:6", "description_to_item:2"]  # short rows, and every item only once
ASYMMETRIC = [
    {"prompt": "history_to_title", "cap": 7000},
    {"prompt": "titles_to_item", "cap": 7000},
    {"prompt": "mixed_to_item", "cap": 7000},
]
FULL = ["next_item", *ALIGNMENT, *ASYMMETRIC]
STEPS = 4800
# Chat rows cost many more tokens than streams, so the model is smaller than that of recipes/configs/industrial.
SMALL = {"hidden_size": 128, "intermediate_size": 256, "head_dim": 32}
# Stages of a run, one after the other: (tasks, steps, further settings). The first starts from the base of `init`.
RUNS: dict[str, dict] = {
    "sequential": {"stages": [(["next_item"], STEPS, {})]},
    "alignment": {"stages": [(["next_item", *ALIGNMENT], STEPS, {})]},
    "alignment, asymmetric": {"stages": [(FULL, STEPS, {})]},
    "stream, then all": {"stages": [(["stream"], STEPS // 2, {}), (FULL, STEPS // 2, {})]},
    "stream, then sequential": {"stages": [(["stream"], STEPS // 2, {}), (["next_item"], STEPS // 2, {})]},
    "warm-up, then all": {"stages": [(FULL, STEPS // 8, {"train": "new_tokens"}), (FULL, STEPS - STEPS // 8, {})]},
    "all from mean": {"init": "mean", "stages": [(FULL, STEPS, {})]},
    "all from text": {"init": "text", "stages": [(FULL, STEPS, {})]},
    "stream": {"stages": [(["stream"], STEPS, {})]},  # codebook, the init of all above
    "stream from mean": {"init": "mean", "stages": [(["stream"], STEPS, {})]},
    "stream from text": {"init": "text", "stages": [(["stream"], STEPS, {})]},
}
SHARED = {
    "data_dir": "out/industrial/data",
    "max_history": 20,
    "hidden_dropout": 0.4,
    "validation_rows": 1500,
    "per_device_train_batch_size": 32,
    "learning_rate": 2e-3,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 100,
    "weight_decay": 0.05,
    "max_grad_norm": 1.0,
    "max_length": 512,
    "train_sampling_strategy": "group_by_length",
    "eval_strategy": "no",
    "save_strategy": "steps",
    "save_steps": 800,
    "save_total_limit": 1,
    "per_device_eval_batch_size": 64,
    "logging_steps": 100,
    "report_to": "none",
    "use_cpu": True,
    "bf16": False,
    "gradient_checkpointing": False,
}


def recipe(name: str, settings: dict, file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")
    subprocess.run([sys.executable, f"recipes/{name}.py", "--config", str(file)], check=True)


def base_of(init: str, output: Path) -> str:
    settings = yaml.safe_load(Path("recipes/configs/industrial/model.yaml").read_text(encoding="utf-8"))
    settings |= {"vocab_size": 4000, "model_config": settings["model_config"] | SMALL}
    folder = str(output / f"base_{init}")
    recipe("init_model", settings | {"embedding_init": init, "output_dir": folder}, output / f"base_{init}.yaml")
    return folder


def train(name: str, output: Path, seed: int) -> str:
    folder = base_of(RUNS[name].get("init", "codebook"), output)
    for number, (tasks, steps, settings) in enumerate(RUNS[name]["stages"]):
        prompt = "next_item" if "next_item" in tasks else tasks[0]
        slug = f"{name.replace(', ', '_').replace(' ', '_')}_{number}_seed{seed}"
        stage = {"model_name_or_path": folder, "output_dir": str(output / slug), "tasks": tasks, "max_steps": steps}
        stage |= {"recommend_prompt": prompt, "seed": seed} | settings
        recipe("sft", SHARED | stage, output / f"{slug}.yaml")
        folder = stage["output_dir"]
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", default="out/ablation")
    parser.add_argument("--runs", nargs="*", default=list(RUNS), choices=list(RUNS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--max_rows", type=int, default=2500, help="Test rows, drawn at random.")
    parser.add_argument("--no_report", action="store_true", help="Train only.")
    args = parser.parse_args()
    output = Path(args.output_dir)
    models = {name: train(name, output, args.seed) for name in args.runs}
    if args.no_report:
        return
    report = {"data_dir": SHARED["data_dir"], "output_dir": str(output / f"report_seed{args.seed}")}
    report |= {"recommenders": models, "alignment": list(models), "split": "test", "reference": args.runs[0]}
    report |= {"max_rows": args.max_rows, "alignment_rows": 150}
    recipe("evaluate", report, output / f"report_seed{args.seed}.yaml")


if __name__ == "__main__":
    main()

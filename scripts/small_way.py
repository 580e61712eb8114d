"""Every stage of a small way, from data to lists, which the campaigns of reliability.py kill and give bad input.

A stage runs as its command does, in a forked child of a process that has imported all packages: seconds, not minutes.
"""

import importlib
import json
import os
import re
import runpy
import signal
import sys
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import trl
import yaml

ROOT = Path(__file__).parents[1]
PACKAGES = (
    *("accelerate", "datasets", "faiss", "peft", "scipy.sparse", "sentence_transformers", "sklearn.decomposition"),
    *("sklearn.feature_extraction.text", "llmrec.rl", "llmrec.training", "llmrec.serving.batch.parts"),
)
MODEL = {
    "model_type": "qwen3",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 512,
    "tie_word_embeddings": True,
}
TRAINING = {
    "max_steps": 6,
    "save_steps": 2,
    "eval_strategy": "no",
    "per_device_train_batch_size": 4,
    "report_to": "none",
    "use_cpu": True,
    "bf16": False,
    "gradient_checkpointing": False,
    "logging_steps": 1,
    "validation_rows": 10,
}
TOKENIZER = {
    "features": [{"kind": "text", "encoder": "tfidf", "dim": 16}],
    "tokenizer_args": {"codebook_sizes": [8, 8]},
    "collision": "append",
}


class Stage(NamedTuple):
    """`inputs`: settings that name a folder or file which another stage wrote. A command of the package has a dot."""

    command: str
    output: str
    inputs: dict[str, str]
    settings: dict


STAGES = {
    "data": Stage(
        "prepare_data",
        "data",
        {},
        {"source": "synthetic", "source_args": {"num_items": 80, "num_users": 80}, "user_k": 3, "item_k": 1},
    ),
    "semids": Stage("tokenize_items", "semids", {"data_dir": "data"}, TOKENIZER),
    "other semids": Stage("tokenize_items", "semids_b", {"data_dir": "data"}, TOKENIZER | {"seed": 1}),
    "updated semids": Stage("update_catalogue", "semids_2", {"semids": "semids"}, {"remove": ["ITEM"]}),
    "joined semids": Stage("join_semids", "joined", {}, {"semids": {"one": "semids", "other": "semids_b"}}),
    "baselines": Stage(
        "train_baselines",
        "baselines",
        {"data_dir": "data"},
        {
            "max_epochs": 1,
            "hidden_size": 8,
            "max_length": 8,
            "content_features": [{"kind": "text", "encoder": "tfidf", "dim": 8}],
        },
    ),
    "rationales": Stage("generate_rationales", "rationales", {"data_dir": "data"}, {"source": "columns"}),
    "base": Stage(
        "init_model",
        "base",
        {"data_dir": "data", "semids": "semids"},
        {"model_config": MODEL, "vocab_size": 400, "embedding_init": "codebook"},
    ),
    "model": Stage(
        "sft",
        "model",
        {"data_dir": "data", "model_name_or_path": "base"},
        TRAINING | {"tasks": ["stream"], "recommend_prompt": "stream", "max_history": 8, "max_length": 256},
    ),
    "grpo": Stage(
        "grpo",
        "grpo",
        {"data_dir": "data", "model_name_or_path": "model"},
        TRAINING | {"max_steps": 2, "save_steps": 1, "rewards": ["exact_hit"], "num_generations": 4},
    ),
    "evaluation": Stage(
        "evaluate",
        "evaluation",
        {"data_dir": "data"},
        {"recommenders": {"popularity": "baselines/popularity", "ours": "model"}, "max_rows": 30, "bootstrap": 20},
    ),
    "lists": Stage(
        "llmrec.serving.batch.recommend_file",
        "lists.parquet",
        {"model": "model", "input": "users.parquet"},
        {"k": 3, "part_rows": 8, "batch_size": 4},
    ),
}
OUTPUT = {"llmrec.serving.batch.recommend_file": "output"}  # what the setting is called where it is not output_dir
_LATER = ("stage.json", "trainer_state.json", "training_args.bin", ".self_check.json")  # of a run, or of a model's use
# What differs between equal runs: times, places and what is drawn from them.
_PASSING = re.compile(
    r"second|time|runtime|memory|_per_|flos|dir|path|fingerprint of|inputs fingerprint|base|settings"
)


class Outcome(NamedTuple):
    """`error`: the exception's type, empty where there was none; `message`: its text and what was printed last."""

    error: str
    message: str
    seconds: float
    killed: bool


def preload() -> None:
    """Imports what every stage needs, so that a fork has it."""
    for name in PACKAGES:
        importlib.import_module(name)
    for name in ("SFTTrainer", "GRPOTrainer"):
        getattr(trl, name)  # imported on first use
    torch.set_num_threads(1)


def settings_of(root: Path, name: str, output: Path | None = None) -> dict:
    stage = STAGES[name]
    settings = dict(stage.settings) | {key: str(root / value) for key, value in stage.inputs.items()}
    for key in {"recommenders", "semids"} & stage.settings.keys():
        settings[key] = {label: str(root / folder) for label, folder in stage.settings[key].items()}
    if settings.get("remove") == ["ITEM"]:
        settings["remove"] = [pq.read_table(root / "semids/semids.parquet")["item_id"][0].as_py()]
    return settings | {OUTPUT.get(stage.command, "output_dir"): str(output or root / stage.output)}


def run(name: str, settings: dict, log: Path, kill_after: float | None = None) -> Outcome:
    """Runs a stage's command with a YAML of these settings; SIGKILL comes `kill_after` seconds, if it still runs."""
    command, failure = STAGES[name].command, log.with_suffix(".failure")
    config = log.with_suffix(".yaml")
    config.write_text(yaml.safe_dump(settings, sort_keys=False, allow_unicode=True), encoding="utf-8")
    failure.unlink(missing_ok=True)
    log.touch()
    began = time.monotonic()
    child = os.fork()
    if not child:
        _child(command, config, log, failure)
    killed = False
    while not os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT):
        if kill_after is not None and time.monotonic() - began > kill_after:
            os.kill(child, signal.SIGKILL)
            killed = True
            break
        time.sleep(0.002)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    killed = killed and status == -signal.SIGKILL
    error, message = "", log.read_text(encoding="utf-8", errors="replace")[-2000:]
    if failure.exists():
        found = json.loads(failure.read_text(encoding="utf-8"))
        error, message = found["type"], f"{found['message']}\n{message}"
    elif status and not killed:
        error = f"exit status {status}"
    return Outcome(error, message, time.monotonic() - began, killed)


def _child(command: str, config: Path, log: Path, failure: Path) -> None:
    status = 0
    try:
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(output, 1), os.dup2(output, 2)
        os.chdir(log.parent)
        sys.argv = [command, "--config", str(config)]
        if "." in command:
            runpy.run_module(command, run_name="__main__", alter_sys=True)
        else:
            runpy.run_path(str(ROOT / "recipes" / f"{command}.py"), run_name="__main__")
    except BaseException as error:  # of any kind: which one it was is what is asked
        status = 1
        kinds = [kind.__name__ for kind in type(error).__mro__]
        kind = next((kind for kind in ("ValueError", "OSError", "SystemExit") if kind in kinds), kinds[0])
        failure.write_text(json.dumps({"type": kind, "message": str(error)}), encoding="utf-8")
    finally:
        sys.stdout.flush(), sys.stderr.flush()
        os._exit(status)


def build(root: Path, names: list[str] | None = None) -> dict[str, float]:
    """Runs the stages one after the other; gives the seconds of each."""
    root.mkdir(parents=True, exist_ok=True)
    seconds = {}
    for name in names or STAGES:
        outcome = run(name, settings_of(root, name), root / f"{name}.log")
        if outcome.error:
            raise RuntimeError(f"{name} failed: {outcome.error}: {outcome.message}")
        seconds[name] = outcome.seconds
        if name == "data":
            users = pq.read_table(root / "data/test.parquet").select(["user_id", "history"])
            pq.write_table(users, root / "users.parquet", row_group_size=20)
    return seconds


def content(output: Path) -> dict[str, object]:
    """What a stage wrote, by file name, without what differs between equal runs: bytes, or the figures of a JSON."""
    files = {"": output} if output.is_file() else {str(path.relative_to(output)): path for path in output.rglob("*")}
    found: dict[str, object] = {}
    for name, path in sorted(files.items()):
        if path.name in _LATER or "checkpoint-" in name:
            continue
        if path.suffix == ".parquet":  # its metadata names the model's files
            found[name] = pq.read_table(path).replace_schema_metadata(None).to_pylist()
        elif path.suffix == ".safetensors":
            found[name] = path.read_bytes()
        elif path.suffix == ".npy":
            found[name] = np.load(path).tobytes()
        elif path.suffix == ".json":
            try:
                found[name] = _figures(json.loads(path.read_text(encoding="utf-8")))
            except ValueError:
                found[name] = "no JSON"
    return found


def _figures(value: object) -> object:
    if isinstance(value, dict):
        return {key: _figures(part) for key, part in value.items() if not _PASSING.search(key)}
    return [_figures(part) for part in value] if isinstance(value, list) else value


def damages(path: Path) -> dict:
    """What may have happened to a file: name → function that does it."""
    found = {
        "missing": Path.unlink,
        "empty": lambda file: file.write_bytes(b""),
        "cut short": lambda file: file.write_bytes(file.read_bytes()[: file.stat().st_size // 2]),
        "something else": lambda file: file.write_text("something else\n"),
    }
    if path.suffix == ".json":
        for text in ("[]", "{}", "null", '"text"'):
            found[f"holds {text}"] = lambda file, text=text: file.write_text(text)
    if path.suffix == ".parquet":
        for column in pq.read_schema(path).names:
            found[f"without {column}"] = lambda file, name=column: _edit(file, lambda t: t.drop_columns([name]))
            found[f"numbers in {column}"] = lambda file, name=column: _edit(file, lambda t: _numbers(t, name))
            found[f"nulls in {column}"] = lambda file, name=column: _edit(file, lambda t: _nulls(t, name))
        found["no rows"] = lambda file: _edit(file, lambda table: table.slice(0, 0))
        found["a row twice"] = lambda file: _edit(file, lambda table: pa.concat_tables([table, table.slice(0, 1)]))
        found["a byte changed"] = _flip
    return found


def _edit(file: Path, change) -> None:
    pq.write_table(change(pq.read_table(file)), file)


def _numbers(table: pa.Table, name: str) -> pa.Table:
    return table.set_column(table.column_names.index(name), name, pa.array(np.arange(table.num_rows) + 0.5))


def _nulls(table: pa.Table, name: str) -> pa.Table:
    return table.set_column(
        table.column_names.index(name), name, pa.nulls(table.num_rows, table.schema.field(name).type)
    )


def _flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 4] ^= 1
    file.write_bytes(content)

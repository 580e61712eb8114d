"""What weights in 8 bits do to the lists: a model folder through vLLM's own options, beside its lists in float32.

    python scripts/bench_quantized.py --write        # the quickstart's model and test rows; needs vLLM

Each way is an engine in a process of its own. What a build of vLLM does not do is said in its own words. `int8` is a
folder whose projections were rounded to 8 bits a row beforehand, in the format of compressed-tensors (W8A8).
"""

import argparse
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from llmrec.data import PreparedData
from llmrec.files import read_json, write_json
from llmrec.models.folder import CHECKSUMS

INT8 = "int8, bfloat16"
WAYS = {
    "float32": {"dtype": "float32"},
    "bfloat16": {"dtype": "bfloat16"},
    INT8: {"dtype": "bfloat16"},
    **{
        f"{name}, bfloat16": {"dtype": "bfloat16", "quantization": name}
        for name in ("fp8_per_channel", "fp8", "fp8_per_block", "int8_per_channel_weight_only")
    },
}
PAGE = Path(__file__).parents[1] / "docs/serving.md"
MARKS = "<!-- python scripts/bench_quantized.py --write -->", "<!-- end -->"
K = 10


def rounded(model: str, output: Path) -> str:
    """A copy of a model folder with INT8 weights, a scale for each row."""
    from compressed_tensors.quantization import QuantizationConfig, preset_name_to_scheme

    shutil.copytree(model, output, ignore=shutil.ignore_patterns("checkpoint-*", CHECKSUMS))
    weights = load_file(output / "model.safetensors")
    for name in [name for name in weights if name.endswith("_proj.weight")]:
        scale = weights[name].abs().amax(1, keepdim=True) / 127
        weights[name] = (weights[name] / scale).round().to(torch.int8)
        weights[f"{name}_scale"] = scale
    save_file(weights, output / "model.safetensors", {"format": "pt"})
    groups = {"group_0": preset_name_to_scheme("W8A8", ["Linear"])}
    config = QuantizationConfig(config_groups=groups, format="int-quantized", ignore=["lm_head"])
    path = output / "config.json"
    write_json(path, read_json(path) | {"quantization_config": json.loads(config.model_dump_json())})
    return str(output)


def ask(model: str, engine: dict, histories: list[list[str]]) -> dict:
    """In this process: the lists, and the seconds that they took."""
    from llmrec.serving.vllm.recommender import VLLMRecommender

    recommender = VLLMRecommender.from_pretrained(model, **engine)
    recommender.recommend(histories[:32], k=K)
    began = time.perf_counter()
    lists = recommender.recommend(histories, k=K)
    return {"seconds": time.perf_counter() - began, "lists": [[one.item_id for one in found] for found in lists]}


def run(model: str, engine: dict, histories: list[list[str]]) -> dict:
    """In another process; `{"error"}` where that ended."""
    asked = json.dumps([model, engine, histories])
    done = subprocess.run([sys.executable, __file__, "--ask"], input=asked, capture_output=True, text=True)
    if done.returncode == 0:
        return json.loads(done.stdout.splitlines()[-1])
    said = [line for line in done.stderr.splitlines() if "Error:" in line]
    return {"error": said[-1].split("Error:", 1)[1].strip() if said else done.stderr[-300:]}


def row(name: str, found: dict, reference: list[list[str]], targets: list[str]) -> str:
    if "error" in found:
        return f"| {name} | | | | | {found['error'][:160]} |"
    lists = found["lists"]
    recall = np.mean([wanted in one for one, wanted in zip(lists, targets)])
    shared = np.mean([len({*one} & {*other}) / K for one, other in zip(lists, reference)])
    first = np.mean([one[0] == other[0] for one, other in zip(lists, reference)])
    return f"| {name} | {recall:.4f} | {shared:.1%} | {first:.1%} | {1e3 * found['seconds'] / len(lists):.1f} | |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="out/quickstart/model")
    parser.add_argument("--data", default="out/quickstart/data")
    parser.add_argument("--rows", type=int, default=1000, help="the first of the test rows")
    parser.add_argument("--write", action="store_true", help="put the table into docs/serving.md")
    parser.add_argument("--ask", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.ask:
        return print(json.dumps(ask(*json.load(sys.stdin))))
    rows = PreparedData.load(args.data).test.slice(0, args.rows).to_pylist()
    histories, targets = [one["history"] for one in rows], [one["target"] for one in rows]
    lines = [
        f"| weights | recall@{K} | items shared | same first item | ms a list | |",
        "|---|---:|---:|---:|---:|---|",
    ]
    reference = None
    with TemporaryDirectory() as scratch:
        for name, engine in WAYS.items():
            model = rounded(args.model, Path(scratch) / "int8") if name == INT8 else args.model
            found = run(model, engine, histories)
            reference = reference or found["lists"]
            lines.append(row(name, found, reference, targets))
            print(lines[-1], flush=True)
    if args.write:
        before, _, rest = PAGE.read_text(encoding="utf-8").partition(MARKS[0])
        table = "\n".join(lines)
        text = f"{before}{MARKS[0]}\n\n{table}\n\n{MARKS[1]}{rest.partition(MARKS[1])[2]}"
        PAGE.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()

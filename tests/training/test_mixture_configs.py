"""The published mixtures run from their YAML: LC-Rec, MiniOneRec, and OneRec-Think's two stages in a row."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tiny import write_tiny_base

from llmrec.catalogue.semids import SemIDIndex
from llmrec.data import prepare
from llmrec.data.synthetic import generate_store
from llmrec.recommenders import LLMRecommender

ROOT = Path(__file__).parents[2]
SHORT = ["--max_steps", "2", "--per_device_train_batch_size", "4", "--validation_rows", "4", "--num_beams", "5"]
SHORT += [
    "--eval_strategy",
    "no",
    "--save_strategy",
    "no",
    "--load_best_model_at_end",
    "false",
    "--disable_tqdm",
    "true",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("mixtures")
    data = prepare(*generate_store(num_items=80, num_users=30), name="store")
    data.save(path / "data")
    number = np.arange(data.items.num_rows)
    index = SemIDIndex(data.items["item_id"].to_pylist(), np.stack([number // 10, number % 10], 1), [8, 10])
    write_tiny_base(path / "base", data, index, max_position_embeddings=1024)
    return path, data


def run(path: Path, name: str, base: str) -> subprocess.CompletedProcess:
    where = ["--model_name_or_path", str(path / base), "--data_dir", str(path / "data")]
    where += ["--output_dir", str(path / name)]
    command = [sys.executable, "recipes/sft.py", "--config", f"recipes/configs/mixtures/{name}.yaml", *where, *SHORT]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)


@pytest.mark.parametrize(
    "names", [["lcrec"], ["minionerec"], ["onerec_think_alignment", "onerec_think_reasoning"]], ids=lambda n: n[-1]
)
def test_a_mixture_trains_from_its_yaml_and_the_folder_recommends(folder, names):
    path, data = folder
    for base, name in zip(["base", *names], names):
        done = run(path, name, base)
        assert done.returncode == 0, done.stderr[-3000:]
    recommender = LLMRecommender.from_pretrained(path / names[-1])
    (found,) = recommender.recommend(data.test["history"].to_pylist()[:1], k=10)
    assert len({item.item_id for item in found}) == 10

"""The pretrained path as far as it goes without weights: Qwen3-0.6B's full architecture and its real vocabulary."""

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from tiny import tiny_data, tiny_index

from llmrec.recommenders import LLMRecommender

ROOT = Path(__file__).parents[2]
# Qwen/Qwen3-0.6B's config.json
QWEN3_06B = """
  model_type: qwen3
  hidden_size: 1024
  intermediate_size: 3072
  num_hidden_layers: 28
  num_attention_heads: 16
  num_key_value_heads: 8
  head_dim: 128
  max_position_embeddings: 40960
  rope_parameters: {rope_type: default, rope_theta: 1000000}
  tie_word_embeddings: true
"""


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_one_step_and_one_recommendation_with_qwen3_06b(tmp_path, capfd):
    tokenizer = Path(os.environ["LLMREC_DATA"]) / "qwen3_tokenizer"
    data = tiny_data()
    data.save(tmp_path / "data")
    tiny_index(data).save(tmp_path / "semids.parquet", data.items)
    (tmp_path / "model.yaml").write_text(
        f"data_dir: {tmp_path}/data\nsemids: {tmp_path}/semids.parquet\noutput_dir: {tmp_path}/base\n"
        f"tokenizer_name_or_path: {tokenizer}\nembedding_init: text\nmodel_config:{QWEN3_06B}"
    )
    flags = "--max_steps 1 --per_device_train_batch_size 2 --max_length 512 --use_cpu true --bf16 false".split()
    flags += "--gradient_checkpointing true --validation_rows 2 --num_beams 4 --save_strategy no".split()
    sft = [
        "--model_name_or_path",
        tmp_path / "base",
        "--data_dir",
        tmp_path / "data",
        "--output_dir",
        tmp_path / "model",
    ]
    for recipe, arguments in (("init_model", ["--config", tmp_path / "model.yaml"]), ("sft", [*sft, *flags])):
        command = [sys.executable, ROOT / "recipes" / f"{recipe}.py", *arguments]
        result = subprocess.run([str(part) for part in command], capture_output=True, text=True)
        assert result.returncode == 0, result.stderr[-3000:]
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    with capfd.disabled():
        sys.stdout.write(f"\nQwen3-0.6B from its config: one fp32 AdamW step, peak {peak:.1f} GiB\n")
    recommender = LLMRecommender.from_pretrained(tmp_path / "model")
    assert recommender.model.num_parameters() > 590_000_000
    rows = recommender.model.get_input_embeddings().weight.shape[0]
    assert rows == recommender.model.get_output_embeddings().weight.shape[0] >= len(recommender.tokenizer)
    items = recommender.recommend([["item-01", "item-02"]], k=5)[0]
    assert len({item.item_id for item in items}) == 5
    assert peak < 20

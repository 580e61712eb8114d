"""A catalogue, a log and a model folder small enough for every test; real parts throughout."""

from pathlib import Path

import numpy as np
import pyarrow as pa

from llmrec.catalogue.semids import SemIDIndex
from llmrec.data import PreparedData
from llmrec.data.prepared import SEQUENCES, TARGETS
from llmrec.instructions import load_prompt
from llmrec.models.folder import RecommenderConfig, plain_generation_config, write_sidecars
from llmrec.models.from_scratch import model_from_config, train_tokenizer
from llmrec.models.vocabulary import extend_vocabulary

MODEL = {
    "model_type": "qwen3",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 256,
    "tie_word_embeddings": True,
}


def tiny_data(num_items: int = 24, num_users: int = 40, length: int = 8) -> PreparedData:
    """Users who walk through the catalogue in order, from random starts: the next item follows from the last."""
    rng = np.random.default_rng(0)
    ids = [f"item-{i:02d}" for i in range(num_items)]
    colours = ["red", "green", "blue"]
    items = pa.table(
        {
            "item_id": ids,
            "title": [f"{colours[i % 3]} gadget number {i}" for i in range(num_items)],
            "brand": [f"brand {i % 4}" for i in range(num_items)],
            "categories": [f"Shop > {colours[i % 3]}" for i in range(num_items)],
            "price": [float(i) for i in range(num_items)],
        }
    )
    starts = rng.integers(num_items, size=num_users)
    walks = [[ids[(start + step) % num_items] for step in range(length)] for start in starts]
    users = [f"user-{u}" for u in range(num_users)]
    train = pa.table(
        {
            "user_id": users,
            "item_ids": [walk[:-2] for walk in walks],
            "timestamps": [list(range(length - 2)) for _ in walks],
            "num_context": [1] * num_users,
        }
    ).cast(SEQUENCES)

    def targets(cut: int) -> pa.Table:
        return pa.table(
            {
                "user_id": users,
                "history": [walk[:cut] for walk in walks],
                "target": [walk[cut] for walk in walks],
                "timestamp": [cut] * num_users,
            }
        ).cast(TARGETS)

    return PreparedData(items, train, targets(length - 2), targets(length - 1), {"name": "tiny"})


def tiny_index(data: PreparedData, ragged: bool = True) -> SemIDIndex:
    """Two levels of 6 codes; items 6 apart share both, and a third level tells them apart (ragged: only those)."""
    number = np.arange(data.items.num_rows)
    codes = np.stack([number % 6, (number // 6) % 6, np.where(number % 2 == 0, -1, 0)], 1)
    if not ragged:
        codes[:, 2] = 0
    return SemIDIndex(data.items["item_id"].to_pylist(), codes, [6, 6, 4])


def tiny_model(data: PreparedData, index: SemIDIndex, init: str = "mean", **config):
    """A Qwen3 of two layers and its tokenizer, with the SemID tokens."""
    titles = dict(zip(data.items["item_id"].to_pylist(), data.items["title"].to_pylist()))
    tokenizer = train_tokenizer(titles.values(), 300)
    model = model_from_config({**MODEL, **config}, tokenizer)
    extend_vocabulary(model, tokenizer, index, init, texts=titles)
    model.generation_config = plain_generation_config(tokenizer)
    return model, tokenizer


def write_tiny_base(folder: Path, data: PreparedData, index: SemIDIndex, prompt: str = "stream", **config) -> Path:
    """What recipes/init_model.py writes."""
    model, tokenizer = tiny_model(data, index, **config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    settings = RecommenderConfig.of(data, index, prompt=load_prompt(prompt).to_dict(), num_beams=10)
    write_sidecars(folder, settings, index, data.items)
    return folder

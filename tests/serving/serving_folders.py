"""Model folders for the tests of serving: random models that tell items apart, and random ragged catalogues."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from tiny import MODEL

from llmrec.catalogue.semids import SemIDIndex
from llmrec.instructions import load_prompt
from llmrec.models.folder import RecommenderConfig, plain_generation_config, write_sidecars
from llmrec.models.from_scratch import model_from_config, train_tokenizer
from llmrec.models.vocabulary import extend_vocabulary

FAMILIES = {"qwen3": {}, "qwen2": {"model_type": "qwen2"}, "llama": {"model_type": "llama"}}


def random_catalogue(num_items: int, depth: int, seed: int, fixed: bool = False) -> tuple[SemIDIndex, pa.Table]:
    """Ragged Semantic IDs of 1 to `depth` tokens; some are shared by items, some begin others, some items have two.

    `fixed` ones are distinct, and all of `depth` tokens.
    """
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, 6, (num_items, depth)).astype(np.int32)
    lengths = rng.integers(min(2, depth), depth + 1, num_items)
    codes[np.arange(depth) >= lengths[:, None]] = -1
    names = [f"item-{number:04d}" for number in range(num_items)]
    shared = rng.integers(0, num_items, num_items // 10)
    again = rng.integers(0, num_items, num_items // 10)
    codes[shared] = codes[rng.permutation(shared)]
    rows = [*range(num_items), *again.tolist()]
    extra = rng.integers(0, 6, (len(again), depth)).astype(np.int32)
    index = SemIDIndex([names[row] for row in rows], np.concatenate([codes, extra]), [6] * depth)
    if fixed:
        numbers = rng.permutation(6**depth)[:num_items]
        index = SemIDIndex(names, np.stack(np.unravel_index(numbers, (6,) * depth), 1).astype(np.int32), [6] * depth)
    items = pa.table(
        {
            "item_id": names,
            "title": [f"gadget {number} of colour {number % 7}" for number in range(num_items)],
            "brand": [None if number % 11 == 0 else f"brand {number % 5}" for number in range(num_items)],
            "price": rng.random(num_items).round(3).tolist(),
            "in_stock": (rng.random(num_items) < 0.7).tolist(),
        }
    )
    return index, items


def random_folder(
    folder: Path,
    family: str = "qwen3",
    tied: bool = True,
    num_items: int = 150,
    depth: int = 4,
    seed: int = 0,
    prompt: str = "stream",
    fixed: bool = False,
    **settings,
) -> Path:
    """A model folder with weights large enough for beams to matter; heads have a width that vLLM has on a CPU."""
    index, items = random_catalogue(num_items, depth, seed, fixed)
    titles = dict(zip(items["item_id"].to_pylist(), items["title"].to_pylist()))
    tokenizer = train_tokenizer(titles.values(), 300)
    config = {**MODEL, "head_dim": 32, "tie_word_embeddings": tied, "initializer_range": 0.2, **FAMILIES[family]}
    if family == "qwen2":  # its heads share the width of the model
        config |= {"num_attention_heads": 2, "num_key_value_heads": 1}
        del config["head_dim"]
    torch.manual_seed(seed)
    model = model_from_config(config, tokenizer)
    extend_vocabulary(model, tokenizer, index, "mean", texts=titles)
    with torch.no_grad():
        for parameter in {model.get_input_embeddings().weight, model.get_output_embeddings().weight}:
            parameter.normal_(0, 0.4)
    model.generation_config = plain_generation_config(tokenizer)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    settings = RecommenderConfig(
        load_prompt(prompt).to_dict(), num_beams=20, semid_fingerprint=index.fingerprint, **settings
    )
    write_sidecars(folder, settings, index, items)
    return folder

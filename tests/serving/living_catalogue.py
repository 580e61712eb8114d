"""A model folder with a fitted item tokenizer and its text encoder, for tests of the living catalogue."""

from pathlib import Path

import numpy as np
from tiny import tiny_data

from llmrec.instructions import load_prompt
from llmrec.item_tokenizers import ItemFeatures, RQKMeans, fit_semids
from llmrec.model_folder import ITEM_TOKENIZER, RecommenderConfig, write_sidecars


def write_living_folder(folder: Path, collision: str = "append") -> Path:
    """Everything of a model folder that a catalogue needs; weights and tokenizer are not among it."""
    data = tiny_data()
    features = ItemFeatures([{"kind": "text", "encoder": "tfidf", "dim": 8}]).fit(data.items, data.train, 0)
    matrix = features.encode(data.items)
    tokenizer = RQKMeans([4, 4], niter=5)
    index = fit_semids(tokenizer, matrix, data.items, data.train, collision=collision)
    tokenizer.save_pretrained(folder / ITEM_TOKENIZER)
    features.save_pretrained(folder / ITEM_TOKENIZER / "features")
    np.save(folder / "features.npy", matrix)
    write_sidecars(folder, RecommenderConfig.of(data, index, prompt=load_prompt("stream").to_dict()), index, data.items)
    return folder

"""Search by content: the items whose text is nearest to some words, which a model that searches is to beat."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from llmrec.data import PreparedData, ids_to_rows
from llmrec.features.parts.text import TextFeatures


class ContentSearch:
    """Ranks a catalogue by the cosine between words and the text of each item, which is that of content-kNN. What is
    learned (TF-IDF) is learned from the items of the training sequences.

    Args:
        text_encoder, cache_dir: see `llmrec.features.text_encoders.choose_text_encoder`.
    """

    def __init__(self, data: PreparedData, text_encoder: str = "auto", cache_dir: str | Path | None = None):
        features = TextFeatures(text_encoder, cache_dir=cache_dir).fit(data.items, data.train, 0)
        self.encoder, self.vectors = features.encoder, features.encode(data.items)
        self.item_ids = data.items["item_id"]

    def ranks(self, words: Sequence[str], targets: Sequence[str]) -> np.ndarray:
        """int64 [n]: where (from 1) each target stands after the words beside it; equal ones in the catalogue's order.
        Raises `ValueError`: a target that the catalogue lacks."""
        scores = (self.encoder.encode(words) @ self.vectors.T).round(5)  # equal texts stay equal
        place = ids_to_rows(pa.array(targets, pa.string()), self.item_ids).astype(np.int64)
        own = scores[np.arange(len(place)), place][:, None]
        before = (scores == own) & (np.arange(scores.shape[1]) < place[:, None])
        return 1 + ((scores > own) | before).sum(1)

"""Features of kind `text`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Self

import numpy as np
import pyarrow as pa

from llmrec.features.parts.part import FeaturePart, some_in_training
from llmrec.features.text_encoders import TEXT_COLUMNS, choose_text_encoder, item_text


class TextFeatures(FeaturePart):
    """Embeddings of `item_text` by one of `choose_text_encoder`; TF-IDF is fitted on items of the training sequences
    (`some_in_training`)."""

    def __init__(
        self,
        encoder: str = "auto",
        columns: Sequence[str] = TEXT_COLUMNS,
        cache_dir: str | Path | None = None,
        **kwargs,
    ):
        self.columns = list(columns)
        self.encoder = choose_text_encoder(encoder, cache_dir, **kwargs)
        self.models = self.encoder.models
        config = dict(self.encoder.config)
        encoder = config.pop("model_name_or_path", self.encoder.name)
        self.config = {"encoder": encoder, "columns": self.columns, **config}

    def fit(self, items: pa.Table, train: pa.Table | None, seed: int) -> Self:
        texts = item_text(items.take(some_in_training(items, train, seed)), self.columns)
        if len(texts) > 1 and len(set(texts)) == 1:
            raise ValueError(f"columns {self.columns} hold the same text for all {len(texts)} training items")
        self.encoder.fit(texts, seed)
        return self

    def encode(self, items: pa.Table) -> np.ndarray:
        return self.encoder.encode(item_text(items, self.columns))

    def state(self) -> tuple[dict, dict[str, np.ndarray]]:
        return self.encoder.state()

    def restore(self, values: dict, arrays: dict[str, np.ndarray]) -> None:
        self.encoder.restore(values, arrays)

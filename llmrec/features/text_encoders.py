"""Text of items to vectors: any sentence-transformers model, or TF-IDF + SVD where no model can be had.

An empty text gives a zero row with TF-IDF.
"""

import logging
import socket
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Self
from urllib.parse import urlparse

import huggingface_hub
import numpy as np
import pyarrow as pa

from llmrec.arguments import construct
from llmrec.arrays import l2_normalize
from llmrec.features.embedding_cache import CachedModel, packaged_model

logger = logging.getLogger(__name__)

# Thai and Lao, Burmese, Khmer, kana, Chinese characters: scripts without spaces between words.
_UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"

TEXT_COLUMNS = ("title", "brand", "categories", "description")
AUTO_MODEL = "sentence-transformers/all-MiniLM-L6-v2"


def item_text(items: pa.Table, columns: Sequence[str] = TEXT_COLUMNS) -> list[str]:
    """One text per item: the title, then `Brand: X. Categories: Y. ...`; absent or empty columns are left out. Raises
    `ValueError` where the catalogue has none of the columns."""
    present = [column for column in columns if column in items.column_names]
    if not present:
        raise ValueError(f"the catalogue has none of the text columns {list(columns)}; it has {items.column_names}")
    texts = []
    for row in items.select(present).to_pylist():
        parts = []
        for column, value in row.items():
            if value := "" if value is None else str(value).strip():
                parts.append(value if column == "title" else f"{column.replace('_', ' ').capitalize()}: {value}")
        texts.append(". ".join(parts))
    return texts


class TextEncoder(ABC):
    """Texts to vectors; `config` and `state` (JSON and arrays) make an equal encoder again."""

    name: ClassVar[str]
    config: dict

    def fit(self, texts: Sequence[str], seed: int = 0) -> Self:
        return self

    @abstractmethod
    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """float32 `[N, D]`, rows of unit length."""

    def state(self) -> tuple[dict, dict[str, np.ndarray]]:
        return {}, {}

    def restore(self, values: dict, arrays: dict[str, np.ndarray]) -> None:  # noqa: B027
        """The inverse of `state`."""


class TfidfEncoder(TextEncoder):
    """TF-IDF over the `max_terms` most frequent words and word pairs, reduced by a truncated SVD (latent semantic
    analysis) to `dim` components, or fewer where the texts have fewer (logged). In scripts that put no spaces between
    words every character counts as one."""

    name = "tfidf"

    def __init__(self, dim: int = 256, max_terms: int = 50_000):
        self.config = {"dim": dim, "max_terms": max_terms}
        self.vocabulary: list[str] = []
        self.idf = self.components = np.empty(0)

    def fit(self, texts: Sequence[str], seed: int = 0) -> Self:
        from sklearn.decomposition import TruncatedSVD

        vectorizer = self._vectorizer(max_features=self.config["max_terms"])
        try:
            matrix = vectorizer.fit_transform(texts)
        except ValueError as error:
            raise ValueError(f"the items' texts hold no words to learn from: {error}") from error
        dim = min(self.config["dim"], *matrix.shape)
        if dim < self.config["dim"]:
            logger.warning("%d texts with %d terms give %d dimensions, not %d", *matrix.shape, dim, self.config["dim"])
        self.components = TruncatedSVD(dim, random_state=seed).fit(matrix).components_
        self.vocabulary, self.idf = vectorizer.get_feature_names_out().tolist(), vectorizer.idf_
        return self

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        vectorizer = self._vectorizer(vocabulary=self.vocabulary)
        vectorizer.idf_ = self.idf
        return l2_normalize(vectorizer.transform(texts) @ self.components.T).astype(np.float32)

    def state(self) -> tuple[dict, dict[str, np.ndarray]]:
        return {"vocabulary": self.vocabulary}, {"idf": self.idf, "components": self.components}

    def restore(self, values: dict, arrays: dict[str, np.ndarray]) -> None:
        self.vocabulary, self.idf, self.components = values["vocabulary"], arrays["idf"], arrays["components"]

    @staticmethod
    def _vectorizer(**kwargs):
        from sklearn.feature_extraction.text import TfidfVectorizer

        # sklearn's own pattern, words of two characters or more, would take a Japanese title for one word.
        pattern = rf"(?![{_UNSPACED}])\w(?:(?![{_UNSPACED}])\w)+|[{_UNSPACED}]"
        return TfidfVectorizer(
            sublinear_tf=True, ngram_range=(1, 2), strip_accents="unicode", token_pattern=pattern, **kwargs
        )


class SentenceTransformerEncoder(TextEncoder):
    """Any sentence-transformers model; see `llmrec.features.embedding_cache.CachedModel` for the arguments."""

    name = "sentence_transformers"

    def __init__(
        self,
        model_name_or_path: str,
        cache_dir: str | Path | None = None,
        batch_size: int = 64,
        max_seq_length: int | None = None,
    ):
        name = str(model_name_or_path)
        self.config = {"model_name_or_path": name, "batch_size": batch_size, "max_seq_length": max_seq_length}
        advice = "give the folder of a sentence-transformers model, or encoder: tfidf, which needs no download"
        self.model = CachedModel(name, "text encoder", advice, cache_dir, batch_size, max_seq_length)

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        return self.model.embed(texts, texts.__getitem__, "texts", list(map(len, texts)))


def choose_text_encoder(encoder: str = "auto", cache_dir: str | Path | None = None, **kwargs) -> TextEncoder:
    """An encoder by name; the choice of `"auto"` is logged.

    Args:
        encoder: `"tfidf"`, the name or folder of a sentence-transformers model, or `"auto"`: all-MiniLM-L6-v2
            if it is installed, cached or on a reachable Hub, TF-IDF otherwise.
        kwargs: arguments of the encoder; with `"auto"` those of a model, which TF-IDF does without.
    """
    if encoder == "auto":
        encoder = AUTO_MODEL
        if not _can_be_loaded(AUTO_MODEL):
            encoder, kwargs = "tfidf", {}
        logger.info("text encoder: auto chose %s %s", encoder, kwargs or "")
    if encoder == "tfidf":
        return construct(TfidfEncoder, kwargs, "encoder 'tfidf'")
    arguments = {"model_name_or_path": encoder, "cache_dir": cache_dir, **kwargs}
    return construct(SentenceTransformerEncoder, arguments, f"encoder {encoder!r}")


def _can_be_loaded(name: str) -> bool:
    if packaged_model(name) or huggingface_hub.try_to_load_from_cache(name, "modules.json") is not None:
        return True
    if huggingface_hub.constants.HF_HUB_OFFLINE:
        return False
    try:
        # The Hub's own client would retry for a minute before it gives up.
        socket.create_connection((urlparse(huggingface_hub.constants.ENDPOINT).hostname, 443), timeout=5).close()
    except OSError:
        return False
    return True

